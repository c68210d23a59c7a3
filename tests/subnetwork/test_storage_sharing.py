"""Files in which personas share what they have in common: smaller, and no persona leaks into another."""

from __future__ import annotations

import json
import runpy
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from personae.errors import ArtefactError
from personae.subnetwork import (
    Artefact,
    Mask,
    ModelIdentity,
    PayloadEntry,
    Provenance,
    Subnetwork,
    add_persona,
    codec,
    inspect,
    load,
    remove_persona,
    save,
    sharing,
    storage,
)

GOLDEN = Path(__file__).parent / "golden"
SHAPES = {"down": (96, 128), "tiny": (3, 5), "up": (96, 100)}
NAMES = ("eins", "zwei", "drei", "vier")


def shared_artefact(
    count: int = 4, share: float = 0.5, change: float = 0.01, seed: int = 0, names: tuple[str, ...] = NAMES
) -> Artefact:
    """Personas that differ on `change` of the weights from what they have in common; the last lacks a target."""
    generator = np.random.default_rng(seed)
    common = {target: generator.random(shape) < share for target, shape in SHAPES.items()}
    personas = {}
    for name in names[:count]:
        masks = {
            target: Mask.from_dropped(bits ^ (generator.random(bits.shape) < change)) for target, bits in common.items()
        }
        if name == names[-1]:
            del masks["up"]
        personas[name] = Subnetwork(name, masks, Provenance(method="m", sparsity=share))
    model = ModelIdentity(id="tiny", fingerprint="f00d", architecture="L", dtype="float32", targets=SHAPES)
    return Artefact(model, personas)


@pytest.fixture
def artefact() -> Artefact:
    return shared_artefact()


@pytest.fixture
def path(artefact: Artefact, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "four.persona"
    save(artefact, path)
    yield path
    assert not list(tmp_path.glob(".*"))


def payloads(path: Path) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in load_file(path).items()}


def bases(path: Path) -> dict[tuple[str, str], str | None]:
    return {(p.name, target): payload.base for p in inspect(path).personas for target, payload in p.payloads.items()}


def version(path: Path) -> str:
    raw = path.read_bytes()
    found: str = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])["__metadata__"]["format_version"]
    return found


# --------------------------------------------------------------- back and forth


def test_what_is_alike_is_stored_once(artefact: Artefact, path: Path) -> None:
    assert load(path) == artefact
    assert load(path).names == artefact.names
    header = inspect(path)
    assert list(header.consensus) == ["down", "up"]  # the tiny target would cost more than it saves
    assert {key for key, base in bases(path).items() if base == "consensus"} == {
        (name, target) for name in NAMES for target in ("down", "up") if target in artefact[name].masks
    }
    assert {p.name: p.payloads["down"].dropped for p in header.personas} == {
        name: artefact[name].masks["down"].dropped for name in NAMES
    }
    assert {"/down", "/up"} <= payloads(path).keys()
    assert version(path) == "2"


def test_a_file_without_sharing_is_of_version_1(artefact: Artefact, path: Path) -> None:
    save(artefact.without("eins").without("zwei").without("drei"), path)
    assert version(path) == "1"
    assert inspect(path).consensus == {}


def test_equal_artefacts_give_equal_bytes(path: Path) -> None:
    other = path.with_name("other.persona")
    save(load(path), other)
    assert other.read_bytes() == path.read_bytes()


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 4),
    share=st.sampled_from([0.003, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0]),
    change=st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.2]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_artefact_comes_back_and_no_file_is_larger_for_sharing(
    tmp_path_factory: pytest.TempPathFactory, count: int, share: float, change: float, seed: int
) -> None:
    artefact = shared_artefact(count, share, change, seed)
    folder = tmp_path_factory.mktemp("size")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "consensus_of", lambda masks: None)
        save(artefact, folder / "alone.persona")
    save(artefact, folder / "shared.persona")
    assert load(folder / "alone.persona") == load(folder / "shared.persona") == artefact
    assert (folder / "shared.persona").stat().st_size <= (folder / "alone.persona").stat().st_size
    for name in artefact:
        assert load(folder / "shared.persona", personas=[name])[name] == artefact[name]


def test_a_persona_with_a_name_like_the_consensus_does_not_collide(tmp_path: Path) -> None:
    artefact = shared_artefact(names=("consensus", "!", "down", "vier"))  # '!' sorts before '/'
    save(artefact, tmp_path / "x.persona")
    assert load(tmp_path / "x.persona") == artefact


def test_the_golden_file_of_version_2_is_read() -> None:
    expected = runpy.run_path(str(GOLDEN / "make_golden.py"))["shared_artefact"]()
    assert load(GOLDEN / "shared.persona") == expected
    assert set(bases(GOLDEN / "shared.persona").values()) == {None, "consensus"}
    assert version(GOLDEN / "shared.persona") == "2"


@pytest.mark.skipif(zstandard.ZSTD_VERSION != (1, 5, 7), reason="the golden bytes are of zstd 1.5.7")
def test_the_golden_file_of_version_2_is_written(tmp_path: Path) -> None:
    runpy.run_path(str(GOLDEN / "make_golden.py"))["shared_artefact"]().save(tmp_path / "shared.persona")
    assert (tmp_path / "shared.persona").read_bytes() == (GOLDEN / "shared.persona").read_bytes()


# -------------------------------------------------------------- reading in part


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Payloads in the order in which they are decoded."""
    seen: list[bytes] = []

    def recording(encoding: str, payload: bytes, shape: tuple[int, int]) -> Mask:
        seen.append(payload)
        return codec.decode(encoding, payload, shape)

    monkeypatch.setattr(storage, "decode", recording)
    return seen


def test_reading_one_persona_decodes_no_other(artefact: Artefact, path: Path, decoded: list[bytes]) -> None:
    stored = payloads(path)
    assert load(path, personas=["drei"])["drei"] == artefact["drei"]
    names = ["drei/down", "drei/tiny", "drei/up", "/down", "/up"]
    assert sorted(decoded) == sorted(stored[name] for name in names)


def test_a_consensus_is_decoded_once(path: Path, decoded: list[bytes]) -> None:
    stored = payloads(path)
    load(path)
    assert len(decoded) == len(stored)
    assert decoded.count(stored["/down"]) == decoded.count(stored["/up"]) == 1


# --------------------------------------------------------------- adding, removing


def test_adding_stores_the_difference_and_copies_the_rest(artefact: Artefact, path: Path) -> None:
    before, header = payloads(path), inspect(path)
    newcomer = artefact["zwei"].renamed("neu")
    add_persona(path, newcomer)
    after = payloads(path)
    assert {name: after[name] for name in before} == before
    assert bases(path)["neu", "down"] == "consensus"
    assert after["neu/down"] == before["zwei/down"]
    assert inspect(path).consensus == header.consensus
    assert load(path) == artefact.add(newcomer)


def test_a_stranger_is_stored_by_itself(path: Path) -> None:
    stranger = shared_artefact(1, share=0.02, seed=99, names=("fremd", ""))["fremd"]
    add_persona(path, stranger)
    assert {base for (name, _), base in bases(path).items() if name == "fremd"} == {None}
    assert load(path)["fremd"] == stranger


def test_removing_gives_the_file_back(artefact: Artefact, path: Path) -> None:
    before = path.read_bytes()
    add_persona(path, artefact["eins"].renamed("neu"))
    remove_persona(path, "neu")
    assert path.read_bytes() == before


def test_a_consensus_stays_until_nobody_refers_to_it(artefact: Artefact, path: Path) -> None:
    before = payloads(path)
    for name in ("eins", "zwei", "drei"):
        remove_persona(path, name)
        artefact = artefact.without(name)
        after = payloads(path)
        assert {n: before[n] for n in after} == after
        assert load(path) == artefact
    assert list(inspect(path).consensus) == ["down"]  # 'vier' has no mask of 'up'
    remove_persona(path, "vier")
    assert inspect(path).consensus == {}
    assert version(path) == "1"


def test_saving_anew_forgets_who_was_removed(artefact: Artefact, path: Path) -> None:
    for name in ("eins", "zwei", "drei"):
        remove_persona(path, name)
    save(load(path), path)
    alone = path.with_name("alone.persona")
    save(Artefact(artefact.model, {"vier": artefact["vier"]}), alone)
    assert path.read_bytes() == alone.read_bytes()


def test_overwriting_the_last_that_refers(artefact: Artefact, path: Path) -> None:
    for name in ("eins", "zwei", "drei"):
        remove_persona(path, name)
    stranger = shared_artefact(1, share=0.02, seed=99, names=("vier", ""))["vier"]
    add_persona(path, stranger, overwrite=True)
    assert load(path) == Artefact(artefact.model, {"vier": stranger})
    assert version(path) == "1"


def test_a_damaged_consensus_is_neither_read_nor_copied(artefact: Artefact, path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[raw.index(payloads(path)["/down"]) + 20] ^= 1
    path.write_bytes(raw)
    for act in (
        lambda: load(path),
        lambda: load(path, personas=["zwei"]),
        lambda: remove_persona(path, "eins"),
        lambda: add_persona(path, artefact["eins"].renamed("neu")),
    ):
        with pytest.raises(ArtefactError, match="/down does not match its hash"):
            act()
    assert path.read_bytes() == raw


def test_payloads_are_read_while_the_new_file_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a large file is never held in memory."""
    read: list[str] = []
    original = storage._Reader.payload

    def recording(reader: storage._Reader, name: str) -> bytes:
        assert list(path.parent.glob(".*.tmp"))
        read.append(name)
        return original(reader, name)

    monkeypatch.setattr(storage._Reader, "payload", recording)
    remove_persona(path, "eins")
    assert read == sorted(payloads(path))


def test_a_header_says_what_a_payload_differs_from() -> None:
    entry = PayloadEntry(encoding="bits+zstd", shape=(1, 8), dropped=1, length=1, blake2b="")
    assert entry.base is None
    with pytest.raises(ValueError, match="consensus"):
        PayloadEntry(encoding="bits+zstd", shape=(1, 8), dropped=1, length=1, blake2b="", base="eins")  # type: ignore[arg-type]
