"""`.persona` files: byte-exact, verified, and never half written."""

from __future__ import annotations

import base64
import errno
import json
import math
import os
import resource
import runpy
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue
from safetensors.numpy import load_file, save_file

from personae.errors import ArtefactError, MaskMismatchError, OptionError, UnknownPersonaError
from personae.subnetwork import (
    Artefact,
    Mask,
    ModelIdentity,
    Provenance,
    Subnetwork,
    add_persona,
    encode,
    inspect,
    layout,
    load,
    remove_persona,
    save,
    sharing,
)

GOLDEN = Path(__file__).parent / "golden"
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def path(artefact: Artefact, tmp_path: Path) -> Iterator[Path]:
    """The small artefact in a file; afterwards no temporary file may be left beside it."""
    path = tmp_path / "pair.persona"
    save(artefact, path)
    yield path
    assert not list(tmp_path.glob(".*"))


def rewrite(path: Path, change: Callable[[dict[str, object]], object], **metadata: str) -> None:
    """Change the description of a file and give it a fitting digest, as a forger or another writer would."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    compressed = base64.b64decode(header["__metadata__"]["personae"])
    description = json.loads(zstandard.ZstdDecompressor().decompress(compressed))
    change(description)
    text = base64.b64encode(zstandard.ZstdCompressor().compress(json.dumps(description).encode())).decode()
    header["__metadata__"] |= {"personae": text, "digest": layout.content_hash(text.encode())} | metadata
    if "personae" in metadata:
        header["__metadata__"]["digest"] = layout.content_hash(metadata["personae"].encode())
    front = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(front)) + front + raw[8 + length :])


# ----------------------------------------------------------------- back and forth


def test_round_trip(artefact: Artefact, path: Path) -> None:
    assert load(path) == artefact
    assert Artefact.load(str(path)) == artefact
    assert load(path).names == artefact.names


def test_equal_artefacts_give_equal_bytes(artefact: Artefact, path: Path) -> None:
    other = path.with_name("other.persona")
    load(path).save(other)
    assert other.read_bytes() == path.read_bytes()


def test_an_artefact_without_personas(artefact: Artefact, path: Path) -> None:
    empty = artefact.without("introvert").without("extravert")
    save(empty, path)
    assert load(path) == empty


def test_only_some_personas(artefact: Artefact, path: Path) -> None:
    assert load(path, personas=["extravert"]) == artefact.without("introvert")
    with pytest.raises(UnknownPersonaError, match=r"'nobody'.*introvert, extravert"):
        load(path, personas=["introvert", "nobody"])


def test_inspect_reads_no_payload(artefact: Artefact, path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    header = inspect(path)
    assert header.names == artefact.names
    assert header.model == artefact.model
    entry = header.personas[0].payloads["layers.1.up"]
    assert (entry.shape, entry.dropped) == ((16, 64), artefact["introvert"].masks["layers.1.up"].dropped)
    assert header.personas[0].provenance == artefact["introvert"].provenance


def test_any_safetensors_library_opens_it(artefact: Artefact, path: Path) -> None:
    tensors = load_file(path)
    assert sorted(tensors) == sorted(f"{n}/{t}" for n in artefact for t in artefact[n].targets)
    assert all(tensor.dtype == np.uint8 for tensor in tensors.values())


def test_golden_file_is_read() -> None:
    expected = runpy.run_path(str(GOLDEN / "make_golden.py"))["golden_artefact"]()
    assert load(GOLDEN / "golden.persona") == expected


@pytest.mark.skipif(zstandard.ZSTD_VERSION != (1, 5, 7), reason="the golden bytes are of zstd 1.5.7")
def test_golden_file_is_written(tmp_path: Path) -> None:
    runpy.run_path(str(GOLDEN / "make_golden.py"))["golden_artefact"]().save(tmp_path / "golden.persona")
    assert (tmp_path / "golden.persona").read_bytes() == (GOLDEN / "golden.persona").read_bytes()


@pytest.mark.parametrize("share", [0.002, 0.01, 0.5])
def test_a_whole_file_stays_near_the_entropy_of_its_masks(tmp_path: Path, share: float) -> None:
    kinds = {"self_attn.q_proj": (576, 576), "mlp.up_proj": (1536, 576), "mlp.down_proj": (576, 1536)}
    shapes = {f"model.layers.{i}.{kind}.weight": s for i in range(10) for kind, s in kinds.items()}
    generator = np.random.default_rng(0)
    masks = {target: Mask.from_dropped(generator.random(shape) < share) for target, shape in shapes.items()}
    whole = Subnetwork("introvert", masks, Provenance(method="directed", sparsity=share))
    model = ModelIdentity(id="m", fingerprint="f", architecture="L", dtype="float32", targets=shapes)
    save(Artefact(model, {whole.name: whole}), tmp_path / "whole.persona")
    p = whole.sparsity
    entropy = whole.size * -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8
    assert (tmp_path / "whole.persona").stat().st_size <= 1.15 * entropy


# ------------------------------------------------------------- adding, removing


def payloads(path: Path) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in load_file(path).items()}


def test_adding_copies_the_other_payloads(artefact: Artefact, third: Subnetwork, path: Path) -> None:
    before = payloads(path)
    add_persona(path, third, model=artefact.model)
    assert load(path) == artefact.add(third)
    assert before.items() <= payloads(path).items()
    whole = path.with_name("whole.persona")
    save(artefact.add(third), whole)
    assert whole.read_bytes() == path.read_bytes()


def test_removing_gives_the_file_back(third: Subnetwork, path: Path) -> None:
    before = path.read_bytes()
    add_persona(path, third)
    remove_persona(path, third.name)
    assert path.read_bytes() == before


def test_adding_never_encodes_what_is_there(third: Subnetwork, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Mask] = []

    def recording(mask: Mask) -> tuple[str, bytes]:
        encoded.append(mask)
        return encode(mask)

    monkeypatch.setattr(sharing, "encode", recording)
    add_persona(path, third)
    assert encoded == list(third.masks.values())


def test_adding_a_taken_name(artefact: Artefact, third: Subnetwork, path: Path) -> None:
    before = path.read_bytes()
    other = third.renamed("introvert")
    with pytest.raises(OptionError, match="already there"):
        add_persona(path, other)
    assert path.read_bytes() == before
    add_persona(path, other, overwrite=True)
    assert load(path) == artefact.add(other, overwrite=True)
    assert load(path).names == artefact.names


def test_adding_what_does_not_fit(artefact: Artefact, third: Subnetwork, path: Path) -> None:
    before = path.read_bytes()
    wrong = Subnetwork("wrong", {"layers.0.up": Mask.full((2, 2))}, third.provenance)
    with pytest.raises(MaskMismatchError, match=r"\(2, 2\)"):
        add_persona(path, wrong)
    with pytest.raises(MaskMismatchError, match="f00d"):
        add_persona(path, third, model=artefact.model.model_copy(update={"fingerprint": "beef"}))
    with pytest.raises(UnknownPersonaError, match="introvert, extravert"):
        remove_persona(path, "nobody")
    assert path.read_bytes() == before


def test_damage_is_not_copied_under_a_fresh_header(third: Subnetwork, path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ArtefactError, match="does not match its hash"):
        add_persona(path, third)
    assert path.read_bytes() == raw


# ---------------------------------------------------------------------- damage


def test_every_flipped_bit_of_the_header_is_found(artefact: Artefact, tmp_path: Path) -> None:
    path = tmp_path / "small.persona"
    mask = artefact["introvert"].masks["layers.0.up"]
    small = Subnetwork('ï "quoted"', {"layers.0.up": mask}, Provenance(method="m", sparsity=0.5))
    save(Artefact(artefact.model, {small.name: small}), path)
    raw = path.read_bytes()
    broken = bytearray(raw)
    start = raw.index(b'"personae":"')  # under the digest, so one bit a byte is enough
    text = range(start + 12, raw.index(b'"', start + 12))
    for offset in range(8 + struct.unpack("<Q", raw[:8])[0]):
        for bit in (offset % 8,) if offset in text else range(8):
            broken[offset] ^= 1 << bit
            path.write_bytes(broken)
            with pytest.raises(ArtefactError):
                inspect(path)
            broken[offset] ^= 1 << bit


@in_one_folder
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_found(path: Path, position: float, bit: int) -> None:
    raw = path.read_bytes()
    broken = bytearray(raw)
    broken[int(position * len(raw))] ^= 1 << bit
    copy = path.with_name("broken.persona")
    copy.write_bytes(broken)
    with pytest.raises(ArtefactError, match=r"broken\.persona"):
        load(copy)


@in_one_folder
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_found(path: Path, share: float) -> None:
    raw = path.read_bytes()
    copy = path.with_name("short.persona")
    copy.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(ArtefactError, match=r"short\.persona"):
        load(copy)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"GGUF" + bytes(100), b"text\n" * 30, b"PK\x03\x04" + bytes(99)])
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.persona").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"not a \.persona file"):
        load(tmp_path / "x.persona")


def test_foreign_safetensors_files(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        save_file({"w": np.zeros(3, dtype=np.float32)}, tmp_path / "x.safetensors", metadata=metadata)
        with pytest.raises(ArtefactError, match=r"no \.persona file"):
            load(tmp_path / "x.safetensors")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for name in (".", "nowhere.persona"):
        with pytest.raises(ArtefactError, match="cannot read"):
            load(tmp_path / name)


def test_another_format_version(path: Path) -> None:
    rewrite(path, lambda description: None, format_version="3")
    with pytest.raises(ArtefactError, match=r"version '3'.*reads '1' and '2'.*update personae"):
        load(path)


@pytest.mark.parametrize("text", ["not Base64", "AAAA", base64.b64encode(b"no zstd").decode()])
def test_a_description_that_cannot_be_unpacked(path: Path, text: str) -> None:
    rewrite(path, lambda description: None, personae=text)
    with pytest.raises(ArtefactError, match="damaged or was altered"):
        load(path)


def first_persona(description: dict[str, object]) -> dict[str, object]:
    personas = description["personas"]
    assert isinstance(personas, list)
    first = personas[0]
    assert isinstance(first, dict)
    return first


def all_payloads(description: dict[str, object]) -> dict[str, object]:
    payloads = first_persona(description)["payloads"]
    assert isinstance(payloads, dict)
    return payloads


def first_payload(description: dict[str, object]) -> dict[str, object]:
    payload = all_payloads(description)["layers.0.down"]
    assert isinstance(payload, dict)
    return payload


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(surprise=1), "'surprise'"),
        (lambda d: d.pop("model"), "'model'"),
        (lambda d: d["personas"].append(d["personas"][0]), "names a persona twice"),
        (lambda d: d["personas"].pop(), "not those of its description"),
        (lambda d: first_persona(d).update(name="a/b"), "bad persona name"),
        (lambda d: first_persona(d).update(name="someone"), "not those of its description"),
        (lambda d: all_payloads(d).update({"": first_payload(d)}), "bad target name"),
        (lambda d: first_payload(d).update(shape=[33, 7]), "not the shape of the target"),
        (lambda d: first_payload(d).update(length=9999), "not the length"),
        (lambda d: first_payload(d).update(blake2b="00"), "does not match its hash"),
        (lambda d: first_payload(d).update(dropped=0), "not its number of weights"),
        (lambda d: first_payload(d).update(dropped=232), "drops more than its 231 weights"),
        (lambda d: first_payload(d).update(encoding="magic"), "layers.0.down: unknown mask encoding 'magic'"),
    ],
)
def test_descriptions_that_contradict_the_file(
    path: Path, change: Callable[[dict[str, object]], object], message: str
) -> None:
    rewrite(path, change)
    with pytest.raises(ArtefactError) as caught:
        load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_rewritten_file_is_read_if_it_is_right(artefact: Artefact, path: Path) -> None:
    # other spaces and another order of keys, another zstd level: a reader takes them
    rewrite(path, lambda description: None)
    assert load(path) == artefact


# --------------------------------------------------------------------- writing


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_the_old_file_survives_a_failure(
    artefact: Artefact, path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    before = path.read_bytes()

    def fail(*arguments: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        expected = ArtefactError if isinstance(failure, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as caught:
            save(artefact.without("introvert"), path)
        if expected is ArtefactError:
            assert f"cannot write {path}: No space left on device" in str(caught.value)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_disk_that_fills_up_midway(artefact: Artefact, third: Subnetwork, path: Path) -> None:
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(ArtefactError, match="Nothing was changed"):
            add_persona(path, third)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_places_where_nothing_can_be_written(artefact: Artefact, path: Path) -> None:
    (path.parent / "folder").mkdir()
    for place in (path / "below-a-file", path.parent / "nowhere" / "x", path.parent / "folder"):
        with pytest.raises(ArtefactError, match="cannot write"):
            save(artefact, place)
    assert sorted(file.name for file in path.parent.iterdir()) == ["folder", path.name]


def test_overwriting_can_be_refused(artefact: Artefact, path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ArtefactError, match="exists"):
        save(artefact.without("introvert"), path, overwrite=False)
    assert path.read_bytes() == before
    artefact.save(path.with_name("new.persona"), overwrite=False)
    assert path.with_name("new.persona").read_bytes() == before


def test_a_link_stays_a_link(artefact: Artefact, path: Path) -> None:
    link = path.with_name("link.persona")
    link.symlink_to(path.name)
    save(artefact.without("introvert"), link)
    assert link.is_symlink()
    assert load(path).names == ("extravert",)


def test_a_folder_that_cannot_be_synced_is_no_failure(
    artefact: Artefact, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.open

    def refuse(name: str | Path, *arguments: int) -> int:
        if Path(name) == path.parent:
            raise OSError(errno.EINVAL, "Invalid argument")
        return original(name, *arguments)

    monkeypatch.setattr(os, "open", refuse)
    save(artefact.without("introvert"), path)
    assert load(path).names == ("extravert",)


def test_what_has_no_json_form_is_refused_before_writing(artefact: Artefact, third: Subnetwork, path: Path) -> None:
    before = path.read_bytes()
    nested: JsonValue = "deep"
    for _ in range(220):
        nested = [nested]
    for bad in (float("nan"), "\ud800", nested):
        with pytest.raises(OptionError, match="no JSON form"):
            save(Artefact(artefact.model, artefact.personas, {"x": bad}), path)
    with pytest.raises(OptionError, match="no JSON form"):
        add_persona(path, replace(third, description="\ud800"))
    assert path.read_bytes() == before


def test_a_header_beyond_the_limit_of_safetensors(
    artefact: Artefact, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "LARGEST_HEADER", 1000)
    with pytest.raises(OptionError, match="several files"):
        save(artefact, path)
