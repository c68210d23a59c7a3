"""Files made to do harm: refused before memory is taken, whatever they claim; and thousands of mutants of good ones."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import random
import struct
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personae.errors import ArtefactError, OptionError
from personae.subnetwork import Artefact, Mask, ModelIdentity, Provenance, Subnetwork, add_persona, inspect, load, save
from personae.subnetwork.layout import content_hash

TARGET = "w"
RICE_ALL_DROPPED = struct.pack("<BBQ", 0, 1, 0)  # the smallest payload of the largest mask


def frame(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def claiming(size: int) -> bytes:
    """A zstd frame of 16 bytes that claims `size` bytes: one segment, 8 bytes of content size, one empty block."""
    return struct.pack("<IBQ", 0xFD2FB528, 0b11100000, size) + (1).to_bytes(3, "little")


def described(shape: tuple[int, int], dropped: int, encoding: str, payloads: dict[str, bytes]) -> dict[str, Any]:
    model = {"id": "m", "fingerprint": "f", "architecture": "L", "dtype": "float32", "targets": {TARGET: shape}}
    personas = [
        {
            "name": name.split("/")[0],
            "provenance": {"method": "m", "sparsity": 0.5},
            "payloads": {
                TARGET: {
                    "encoding": encoding,
                    "shape": shape,
                    "dropped": dropped,
                    "length": len(payload),
                    "blake2b": content_hash(payload),
                }
            },
        }
        for name, payload in payloads.items()
    ]
    return {"model": model, "personas": personas}


def forged(
    path: Path,
    description: dict[str, Any] | bytes,
    payloads: dict[str, bytes],
    container: dict[str, Any] | None = None,
    version: str = "1",
) -> Path:
    """A file with a fitting digest. description: JSON, or the compressed bytes; container: its tensors, if other."""
    packed = description if isinstance(description, bytes) else frame(json.dumps(description).encode())
    text = base64.b64encode(packed).decode()
    metadata = {"format": "persona", "format_version": version, "personae": text, "digest": content_hash(text.encode())}
    tensors, offset = {}, 0
    for name, payload in sorted(payloads.items()):
        end = offset + len(payload)
        tensors[name] = {"data_offsets": [offset, end], "dtype": "U8", "shape": [len(payload)]}
        offset = end
    header = json.dumps({"__metadata__": metadata, **(tensors if container is None else container)}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"".join(p for _, p in sorted(payloads.items())))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hostile.persona"


def refused_within(megabytes: float, path: Path, message: str) -> None:
    """`load` refuses the file with this message, at a peak of traced memory below the limit."""
    tracemalloc.start()
    try:
        with pytest.raises(ArtefactError) as caught:
            load(path)
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_forger_can_make_a_good_file(path: Path) -> None:
    payload = {"p/w": frame(b"\x05")}
    forged(path, described((2, 4), 2, "bits+zstd", payload), payload)
    assert load(path)["p"].masks[TARGET].positions().tolist() == [0, 2]


# ---------------------------------------------------------------- sizes and bombs


@pytest.mark.parametrize("claimed", [14, 2**20, 2**31, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("encoding", ["bits+zstd", "rice+zstd"])
def test_a_payload_that_claims_more_than_its_shape_allows(path: Path, encoding: str, claimed: int) -> None:
    payload = {"p/w": claiming(claimed)}
    forged(path, described((2, 4), 2, encoding, payload), payload)
    refused_within(1, path, "claims more than the")


@pytest.mark.parametrize("encoding", ["bits+zstd", "rice+zstd"])
def test_a_payload_that_is_a_bomb(path: Path, encoding: str) -> None:
    payload = {"p/w": frame(bytes(50_000_000))}
    assert len(payload["p/w"]) < 10_000
    forged(path, described((1000, 1000), 2, encoding, payload), payload)
    refused_within(1, path, "claims more than the")


@pytest.mark.parametrize("claimed", [2**20 + 1, 100_000_001, 2**40, 2**64 - 1])
def test_a_description_that_claims_too_much(path: Path, claimed: int) -> None:
    refused_within(1, forged(path, claiming(claimed), {}), "claims more than the")


@pytest.mark.parametrize("unit", [b" ", b"[", b"{},", b'{"a":'])
def test_a_description_that_is_a_bomb(path: Path, unit: bytes) -> None:
    """It stays below the limit of a header, but no honest description compresses like that."""
    bomb = frame(unit * (60_000_000 // len(unit)))
    assert len(bomb) < 100_000
    refused_within(1, forged(path, bomb, {}), "claims more than the")


def test_no_description_is_written_that_a_reader_takes_for_a_bomb(path: Path) -> None:
    """The limits of both sides are the same."""
    mask = Subnetwork("p", {TARGET: Mask.full((2, 4))}, Provenance(method="m", sparsity=0))
    model = ModelIdentity(id="m", fingerprint="f", architecture="L", dtype="float32", targets={TARGET: (2, 4)})
    for length, fits in ((2**20 - 2000, True), (2**21, False)):
        artefact = Artefact(model, {"p": mask}, {"note": "x" * length})
        if fits:
            save(artefact, path)
            assert load(path) == artefact
        else:
            before = path.read_bytes()
            with pytest.raises(OptionError, match="take for a bomb"):
                save(artefact, path)
            assert path.read_bytes() == before


@pytest.mark.parametrize("shape", [(2**20, 2**21), (2**40, 2**40), (10**30, 1), (10**4000, 10**4000)])
@pytest.mark.parametrize("encoding", ["bits+zstd", "rice+zstd"])
def test_shapes_that_no_model_has(path: Path, encoding: str, shape: tuple[int, int]) -> None:
    payload = {"p/w": frame(RICE_ALL_DROPPED)}
    forged(path, described(shape, 8, encoding, payload), payload)
    refused_within(2, path, "more weights than any model has")


@pytest.mark.parametrize("shape", [(0, 4), (-2, -4), (4, 2)])
def test_shapes_that_contradict_the_model(path: Path, shape: tuple[int, int]) -> None:
    payload = {"p/w": frame(b"\x05")}
    description = described(shape, 2, "bits+zstd", payload)
    if shape == (4, 2):
        description["model"]["targets"] = {TARGET: (2, 4)}
    refused_within(1, forged(path, description, payload), "has not the shape of the target")


def test_masks_that_do_not_fit_into_the_machine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = 64_000_000
    original = os.sysconf
    monkeypatch.setattr(
        os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": memory}.get(str(name)) or original(name)
    )
    payloads = {f"p{i}/w": frame(RICE_ALL_DROPPED) for i in range(20)}
    shape = (2**10, 2**15)  # 4 MB each as a bit map
    forged(path, described(shape, 2**25, "rice+zstd", payloads), payloads)
    refused_within(1, path, "do not fit in the 0.1 GB of this machine: load fewer personas at once")
    assert load(path, personas=["p3"])["p3"].masks[TARGET] == ~Mask.full(shape)
    assert len(inspect(path).personas) == 20


def test_memory_that_runs_out_all_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = {"p/w": frame(b"\x05")}
    forged(path, described((2, 4), 2, "bits+zstd", payload), payload)

    def fail(*arguments: object) -> Mask:
        raise MemoryError

    monkeypatch.setattr("personae.subnetwork.storage.decode", fail)
    with pytest.raises(ArtefactError, match=r"hostile\.persona needs more memory than there is"):
        load(path)


# ------------------------------------------------------------------- the container


def tensor(begin: int, end: int, length: int | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {"data_offsets": [begin, end], "dtype": dtype, "shape": [end - begin if length is None else length]}


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ({"p/w": tensor(0, 14), "q/w": tensor(0, 14)}, "not a .persona file"),  # overlapping
        ({"p/w": tensor(0, 14), "q/w": tensor(7, 28)}, "not a .persona file"),
        ({"p/w": tensor(0, 14)}, "not a .persona file"),  # bytes of no tensor
        ({"p/w": tensor(0, 14), "q/w": tensor(14, 2**62)}, "not a .persona file"),
        ({"p/w": tensor(0, 14), "q/w": tensor(14, 29)}, "not a .persona file"),
        ({"p/w": tensor(14, 28), "q/w": tensor(0, 14)}, "not those of its description"),  # another order
        ({"p/w": tensor(0, 13), "q/w": tensor(13, 28)}, "not the length of its description"),
        ({"p/w": tensor(0, 14), "r/w": tensor(14, 28)}, "not those of its description"),
        ({"p/w": tensor(0, 14, dtype="I8"), "q/w": tensor(14, 28)}, "not the length of its description"),
    ],
)
def test_tensors_that_are_not_where_they_should_be(path: Path, container: dict[str, Any], message: str) -> None:
    payloads = {"p/w": frame(b"\x05"), "q/w": frame(b"\x06")}
    assert [len(payload) for payload in payloads.values()] == [14, 14]
    forged(path, described((2, 4), 2, "bits+zstd", payloads), payloads, container)
    refused_within(1, path, message)


@pytest.mark.parametrize("length", [0, 1, 2**20, 10**8 + 1, 2**63, 2**64 - 1])
def test_lengths_of_the_header(path: Path, length: int) -> None:
    path.write_bytes(struct.pack("<Q", length) + b'{"__metadata__":{}}' * 9)
    refused_within(1, path, "not a .persona file")


# ----------------------------------------------------------------- the description


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
@pytest.mark.parametrize("place", ["metadata", "parameters", "measured"])
def test_numbers_that_could_not_be_written_again(path: Path, place: str, number: str) -> None:
    payload = {"p/w": frame(b"\x05")}
    description = described((2, 4), 2, "bits+zstd", payload)
    holder = description if place == "metadata" else description["personas"][0]["provenance"]
    holder[place] = {"x": ["@"]}
    text = json.dumps(description).replace('"@"', number)
    forged(path, frame(text.encode()), payload)
    with pytest.raises(ArtefactError, match="no JSON form"):
        inspect(path)


def test_references_to_a_consensus(path: Path) -> None:
    """Version 2 by hand, then every way in which it can contradict itself."""
    payloads = {"p/w": frame(b"\x05")}
    good = described((2, 4), 2, "bits+zstd", payloads)
    payloads["/w"] = frame(b"\x0c")
    entry = {**good["personas"][0]["payloads"][TARGET], "blake2b": content_hash(payloads["/w"])}
    good |= {"consensus": {TARGET: entry}}
    good["personas"][0]["payloads"][TARGET]["base"] = "consensus"
    forged(path, good, payloads, version="2")
    assert load(path)["p"].masks[TARGET].positions().tolist() == [0, 3]  # {0, 2} xor {2, 3}
    forged(path, good, payloads, version="1")
    refused_within(1, path, "it has 1 payloads in common, which version 1 has not")
    without = {key: value for key, value in good.items() if key != "consensus"}
    forged(path, without, {"p/w": payloads["p/w"]}, version="1")
    refused_within(1, path, "differs from a consensus that is not there")
    forged(path, without, {"p/w": payloads["p/w"]}, version="2")
    refused_within(1, path, "it has 0 payloads in common, which version 2 has not")
    for change, message in (
        ({"base": "consensus"}, "the consensus of w has a base itself"),
        ({"dropped": 3}, "the consensus of w has not its number of weights"),
        ({"dropped": 9}, "the mask of w in the consensus drops more than its 8 weights"),
        ({"shape": [4, 2]}, "the mask of w in the consensus has not the shape of the target"),
        ({"encoding": "magic"}, "consensus, target w: unknown mask encoding 'magic'"),
        ({"blake2b": "00"}, "the payload /w does not match its hash"),
        ({"length": 15}, "the payload /w has not the length of its description"),
        ({"shape": None}, "consensus.w.shape"),
    ):
        forged(path, {**good, "consensus": {TARGET: {**entry, **change}}}, payloads, version="2")
        refused_within(1, path, message)
    forged(path, {**good, "consensus": {"v": entry}}, payloads, version="2")
    refused_within(1, path, "the mask of v in the consensus has not the shape of the target")
    forged(path, {**good, "consensus": {"\n": entry}}, payloads, version="2")
    refused_within(1, path, "bad target name")
    forged(path, good, {"p/w": payloads["p/w"]}, version="2")
    refused_within(1, path, "not those of its description")


def test_a_wrong_consensus_is_noticed_by_the_count(path: Path) -> None:
    """A forger can swap the consensus and fit its hash; the persona's own count finds most of that."""
    payloads = {"p/w": frame(b"\x05"), "/w": frame(b"\x0d")}
    description = described((2, 4), 2, "bits+zstd", {"p/w": payloads["p/w"]})
    own = description["personas"][0]["payloads"][TARGET]
    description["consensus"] = {TARGET: {**own, "dropped": 3, "blake2b": content_hash(payloads["/w"])}}
    own["base"] = "consensus"
    forged(path, description, payloads, version="2")
    refused_within(1, path, "the mask of w in 'p' has not its number of weights")
    stranger = Subnetwork("q", {TARGET: Mask.full((2, 4))}, Provenance(method="m", sparsity=0))
    add_persona(path, stranger)
    assert load(path, personas=["q"])["q"] == stranger  # the one that is right can be read


# ------------------------------------------------------------------------- mutants


@pytest.fixture(scope="module")
def fuzz() -> Iterator[ModuleType]:
    """The mutations of benchmarks/fuzz_reader.py, which needs no package beside it until it is run."""
    file = Path(__file__).parents[2] / "benchmarks" / "fuzz_reader.py"
    spec = importlib.util.spec_from_file_location("fuzz_reader_of_the_tests", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


@pytest.fixture(scope="module")
def good_files(fuzz: ModuleType) -> list[bytes]:
    files: list[bytes] = fuzz.valid_files()
    return files


@pytest.fixture(scope="module")
def quick_path(fuzz: ModuleType) -> Iterator[Path]:
    """A name in memory where the system has a folder there, since every mutant is a file."""
    with tempfile.TemporaryDirectory(dir=fuzz.MEMORY_FOLDER if fuzz.MEMORY_FOLDER.is_dir() else None) as folder:
        yield Path(folder) / "mutant.persona"


@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kind=st.integers(0, 10**6), seed=st.integers(0, 2**64))
def test_mutants_are_read_or_refused(
    fuzz: ModuleType, good_files: list[bytes], quick_path: Path, kind: int, seed: int
) -> None:
    mutations = list(fuzz.KINDS.values())
    raw = mutations[kind % len(mutations)](random.Random(seed), good_files[seed % len(good_files)])
    fuzz.try_reading(raw, quick_path)


def test_good_files_are_read_and_every_kind_of_mutant_is_refused_somewhere(
    fuzz: ModuleType, good_files: list[bytes], path: Path
) -> None:
    for raw in good_files:
        assert fuzz.try_reading(raw, path) == ""
        parts = fuzz.take_apart(raw)
        assert fuzz.try_reading(parts.file(), path) == ""  # what all mutations but the first are made of
    for kind in fuzz.KINDS:
        assert any(fuzz.try_reading(fuzz.mutant(kind, number, good_files), path) for number in range(20))
