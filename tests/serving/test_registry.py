"""Who is in memory, who uses it, and how personas come and go meanwhile."""

from __future__ import annotations

import io
import os
import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from personae.errors import (
    ArtefactError,
    BusyError,
    MaskMismatchError,
    OptionError,
    PersonaInUseError,
    UnknownPersonaError,
)
from personae.runtime import PersonaModel
from personae.serving import Folder, Registry
from personae.serving.refusals import Refusal
from personae.subnetwork import inspect

CALM, LOUD = (("calm", 1.0),), (("loud", 1.0),)


@pytest.fixture
def registry(actor: PersonaModel, shelf: Folder) -> Registry:
    return Registry(actor, folder=shelf)


def upload(registry: Registry, path: Path) -> list[str]:
    return [entry.name for entry in registry.upload(io.BytesIO(path.read_bytes()))]


def kept(shelf: Folder) -> list[str]:
    """Every file of the folder but the lock."""
    return sorted(str(p.relative_to(shelf.path)) for p in shelf.path.rglob("*") if p.is_file() and p.name != ".lock")


# --------------------------------------------------------------------- in use


def test_a_persona_is_loaded_once_and_when_it_is_needed(
    registry: Registry, actor: PersonaModel, persona_file: Callable[..., Path]
) -> None:
    upload(registry, persona_file("calm", "loud"))
    assert actor.personas == ()
    assert not registry.is_loaded("calm")
    one, two = registry.acquire(CALM), registry.acquire((("calm", 0.5), ("loud", 0.25)))
    assert actor.personas == ("calm #1", "loud #2")
    assert one.worn == (("calm #1", 1.0),)
    assert two.worn == (("calm #1", 0.5), ("loud #2", 0.25))
    assert two.look == (("calm", 0.5), ("loud", 0.25))
    assert registry.is_loaded("calm")
    registry.release(one)
    registry.release(two)
    assert registry.acquire(CALM).worn == one.worn  # it stays in memory
    assert registry.acquire(()).worn == ()


def test_the_masks_are_those_of_the_file(
    registry: Registry, actor: PersonaModel, persona_file: Callable[..., Path], make_artefact: Callable[..., Any]
) -> None:
    upload(registry, persona_file("calm", share=0.3))
    lease = registry.acquire(CALM)
    alone = PersonaModel(actor.model, actor.tokenizer)
    alone.add_personas(make_artefact("calm", share=0.3))
    said = []
    for model, look in ((actor, dict(lease.worn)), (alone, {"calm": 1.0})):
        with model.persona(look):
            said.append(model.chat("Hello?", max_new_tokens=8))
    assert said[0] == said[1] != actor.chat("Hello?", max_new_tokens=8)


def test_the_least_recently_used_makes_room(model: Any, shelf: Folder, persona_file: Callable[..., Path]) -> None:
    small = PersonaModel(*model, max_personas=2)
    registry = Registry(small, folder=shelf, most=2)
    upload(registry, persona_file("calm", "loud", "bold"))
    for name in ("calm", "loud", "calm", "bold"):
        lease = registry.acquire(((name, 1.0),))
        with small.persona(dict(lease.worn)):  # as the engine does
            pass
        registry.release(lease)
    assert [registry.is_loaded(name) for name in ("calm", "loud", "bold")] == [True, False, True]
    assert len(small.personas) == 2
    registry.release(registry.acquire(LOUD))
    assert [registry.is_loaded(name) for name in ("calm", "loud", "bold")] == [False, True, True]


def test_what_is_in_use_makes_no_room(model: Any, shelf: Folder, persona_file: Callable[..., Path]) -> None:
    small = PersonaModel(*model, max_personas=2)
    registry = Registry(small, folder=shelf, most=2)
    upload(registry, persona_file("calm", "loud", "bold"))
    leases = [registry.acquire(CALM), registry.acquire(LOUD)]
    with pytest.raises(BusyError, match="in use"):
        registry.acquire((("bold", 1.0),))
    with pytest.raises(OptionError, match="only 2"):
        registry.acquire((("bold", 0.1), ("calm", 0.1), ("loud", 0.1)))
    with pytest.raises(BusyError):
        registry.acquire((("bold", 0.5), ("calm", 0.5)))
    registry.release(leases[0])
    assert registry.acquire((("bold", 0.5), ("loud", 0.5))).worn[0][0].startswith("bold")  # half of it was there
    with pytest.raises(BusyError):
        registry.acquire(CALM)


def test_a_failed_blend_holds_nothing(model: Any, shelf: Folder, persona_file: Callable[..., Path]) -> None:
    small = PersonaModel(*model, max_personas=1)
    registry = Registry(small, folder=shelf, most=3)
    upload(registry, persona_file("calm", "loud"))
    for _ in range(3):
        with pytest.raises(UnknownPersonaError):
            registry.acquire((("calm", 0.5), ("nobody", 0.5)))
    registry.release(registry.acquire(LOUD))  # so nothing is pinned
    assert registry.is_loaded("loud")


def test_a_file_that_breaks_after_it_was_listed(
    registry: Registry, shelf: Folder, persona_file: Callable[..., Path]
) -> None:
    path = persona_file("calm")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + bytes(20))  # the description is whole, a payload is not
    os.replace(path, shelf.path / "a.persona")
    assert [entry.name for entry in registry.catalogue.entries()] == ["calm"]
    with pytest.raises(UnknownPersonaError, match="damaged"):
        registry.acquire(CALM)


# ------------------------------------------------------------------- replaced


def test_a_replaced_file_is_another_persona_in_memory(
    registry: Registry, actor: PersonaModel, shelf: Folder, persona_file: Callable[..., Path]
) -> None:
    os.replace(persona_file("calm"), shelf.path / "a.persona")
    old = registry.acquire(CALM)
    os.replace(persona_file("calm", seed=1), shelf.path / "a.persona")
    new = registry.acquire(CALM)
    assert new.worn != old.worn
    assert set(actor.personas) == {"calm #1", "calm #2"}  # the running answer keeps what it began with
    registry.release(old)
    assert actor.personas == ("calm #2",)
    registry.release(new)
    assert actor.personas == ("calm #2",)


def test_what_another_server_deleted_is_forgotten(
    registry: Registry, actor: PersonaModel, shelf: Folder, persona_file: Callable[..., Path]
) -> None:
    os.replace(persona_file("calm"), shelf.path / "a.persona")
    lease = registry.acquire(CALM)
    (shelf.path / "a.persona").unlink()
    with pytest.raises(UnknownPersonaError):
        registry.acquire(CALM)
    assert actor.personas == ("calm #1",)
    registry.release(lease)
    assert actor.personas == ()


# -------------------------------------------------------------------- deleting


def test_deleting_one_of_a_file_and_the_last(
    registry: Registry, actor: PersonaModel, shelf: Folder, persona_file: Callable[..., Path]
) -> None:
    upload(registry, persona_file("calm", "loud"))
    (file,) = kept(shelf)
    registry.release(registry.acquire(LOUD))
    registry.delete("calm")
    assert kept(shelf) == [file]
    assert inspect(shelf.path / file).names == ("loud",)
    registry.delete("loud")
    assert kept(shelf) == []
    assert actor.personas == ()
    with pytest.raises(UnknownPersonaError):
        registry.delete("loud")
    assert upload(registry, persona_file("calm")) == ["calm"]


def test_what_is_in_use_is_not_deleted(registry: Registry, persona_file: Callable[..., Path]) -> None:
    upload(registry, persona_file("calm"))
    lease = registry.acquire(CALM)
    with pytest.raises(PersonaInUseError, match="answers requests now"):
        registry.delete("calm")
    registry.release(lease)
    registry.delete("calm")


def test_what_was_given_at_the_start_stays(
    actor: PersonaModel, shelf: Folder, persona_file: Callable[..., Path]
) -> None:
    path = persona_file("calm")
    with pytest.raises(Refusal, match="it stays") as caught:
        Registry(actor, [path], shelf).delete("calm")
    assert caught.value.status == 403
    assert path.exists()
    bare = Registry(actor, [path])
    for action in (lambda: bare.delete("calm"), lambda: bare.upload(io.BytesIO(b""))):
        with pytest.raises(Refusal, match="--folder"):
            action()


# ------------------------------------------------------------------- uploading


def test_uploads_that_are_refused_leave_the_folder_as_it_was(
    registry: Registry, shelf: Folder, persona_file: Callable[..., Path], tmp_path: Path
) -> None:
    upload(registry, persona_file("calm"))
    before = {name: (shelf.path / name).read_bytes() for name in kept(shelf)}
    good = persona_file("loud").read_bytes()
    cases: list[tuple[bytes, type[Exception]]] = [
        (b"", ArtefactError),
        (b"\x80\x04K\x01.", ArtefactError),  # a pickle
        (good[: len(good) // 2], ArtefactError),
        (good[:-1], ArtefactError),
        (good[:-9] + bytes(9), ArtefactError),
        (good + b"\0", ArtefactError),
        (struct.pack("<Q", 2**62) + good[8:], ArtefactError),
        (persona_file("loud", "calm").read_bytes(), Refusal),  # one of the two is taken: none comes in
        (persona_file("auto").read_bytes(), OptionError),
        (persona_file("loud", fingerprint="sha256:other").read_bytes(), MaskMismatchError),
        (persona_file(*map(str, range(65)), share=0.01).read_bytes(), OptionError),
    ]
    for content, kind in cases:
        with pytest.raises(kind) as caught:
            registry.upload(io.BytesIO(content))
        assert str(shelf.path) not in str(caught.value)
    assert {name: (shelf.path / name).read_bytes() for name in kept(shelf)} == before
    assert [entry.name for entry in registry.catalogue.entries()] == ["calm"]


def test_damage_anywhere_is_found(registry: Registry, shelf: Folder, persona_file: Callable[..., Path]) -> None:
    good = persona_file("loud").read_bytes()
    draw = random.Random(0)
    for _ in range(60):
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        with pytest.raises((ArtefactError, MaskMismatchError, OptionError)):
            registry.upload(io.BytesIO(bytes(bad)))
    assert kept(shelf) == []


@pytest.mark.parametrize("name", ["..", "a\\b", "~root", "%2e%2e%2f", "con", "x" * 100, "ä" * 100, "-rf", "$(x)"])
def test_names_are_never_paths(registry: Registry, shelf: Folder, persona_file: Callable[..., Path], name: str) -> None:
    assert upload(registry, persona_file(name)) == [name]
    (file,) = kept(shelf)
    assert len(file) == len("0" * 32 + ".persona")
    lease = registry.acquire(((name, 1.0),))
    registry.release(lease)
    registry.delete(name)
    assert kept(shelf) == []
    assert sorted(os.listdir(shelf.path.parent)) == ["made-0.persona", "personas"]


def test_two_uploads_of_one_name_at_once(model: Any, shelf: Folder, persona_file: Callable[..., Path]) -> None:
    """Two servers on one folder: one of them is told that the name is taken."""
    contents = [persona_file("calm", seed=seed).read_bytes() for seed in range(4)]
    actor = PersonaModel(*model)
    registries = [Registry(actor, folder=shelf) for _ in contents]
    begin, outcomes = threading.Barrier(len(contents)), []

    def send(registry: Registry, content: bytes) -> None:
        begin.wait()
        try:
            registry.upload(io.BytesIO(content))
            outcomes.append(201)
        except Refusal as refusal:
            outcomes.append(refusal.status)

    threads = [threading.Thread(target=send, args=pair) for pair in zip(registries, contents, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [201, 409, 409, 409]
    assert len(kept(shelf)) == 1
    assert {entry.name for each in registries for entry in each.catalogue.entries()} == {"calm"}


def test_a_folder_that_cannot_be_written(registry: Registry, shelf: Folder, persona_file: Callable[..., Path]) -> None:
    (shelf.path / ".incoming").write_bytes(b"in the way")
    with pytest.raises(Refusal, match="cannot be used") as caught:
        upload(registry, persona_file("calm"))
    assert caught.value.status == 507
    assert registry.catalogue.entries() == []
