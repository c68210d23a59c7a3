"""What the files say, whoever changes them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from personae.errors import ArtefactError, MaskMismatchError, OptionError, UnknownPersonaError
from personae.serving.catalogue import Catalogue
from personae.serving.folder import Folder
from personae.serving.refusals import Refusal
from personae.subnetwork import inspect


class Model:
    """Counts which files it is asked to check; refuses those of another fingerprint."""

    def __init__(self) -> None:
        self.checked: list[str] = []

    def __call__(self, path: Path) -> None:
        self.checked.append(path.name)
        if inspect(path).model.fingerprint == "sha256:other":
            raise MaskMismatchError(f"{path} was made for another model.")


@pytest.fixture
def check() -> Model:
    return Model()


def names(catalogue: Catalogue) -> list[str]:
    return [entry.name for entry in catalogue.entries()]


def put(shelf: Folder, path: Path, name: str) -> Path:
    """Move a file into the folder by one rename."""
    final = shelf.path / f"{name}.persona"
    os.replace(path, final)
    return final


def test_a_folder_that_cannot_be_read_at_the_start_is_the_operators_mistake(
    shelf: Folder, check: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listdir(*_: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    catalogue = Catalogue(check, [], shelf)
    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(OptionError, match="cannot be used: Permission denied"):
        Catalogue(check, [], shelf)
    with pytest.raises(OptionError, match=r"--folder .* cannot be read: Permission denied"):
        Folder(shelf.path)
    with pytest.raises(Refusal, match="cannot be used: Permission denied"):  # later it is a client who asks
        catalogue.entries()


def test_files_and_folder_together(shelf: Folder, check: Model, persona_file: Callable[..., Path]) -> None:
    fixed = persona_file("loud", description="Shouts.", system_prompt="Shout!")
    put(shelf, persona_file("calm", "bold"), "two")
    catalogue = Catalogue(check, [fixed], shelf)
    assert names(catalogue) == ["bold", "calm", "loud"]
    loud = catalogue.entry("loud")
    assert loud.fixed
    assert loud.texts == ("loud Shouts. Shout!",)
    assert not catalogue.entry("calm").fixed
    assert catalogue.entry("calm").texts == ("calm",)
    assert catalogue.unreadable == {}


def test_only_changed_files_are_read_again(shelf: Folder, check: Model, persona_file: Callable[..., Path]) -> None:
    put(shelf, persona_file("calm"), "a")
    catalogue = Catalogue(check, [], shelf)
    version = catalogue.version
    assert names(catalogue) == names(catalogue) == ["calm"]
    assert (check.checked, catalogue.version) == (["a.persona"], version)
    put(shelf, persona_file("bold"), "b")
    assert names(catalogue) == ["bold", "calm"]
    assert check.checked == ["a.persona", "b.persona"]
    assert catalogue.version > version
    (shelf.path / "a.persona").unlink()
    assert names(catalogue) == ["bold"]
    assert check.checked == ["a.persona", "b.persona"]


def test_another_server_adds_replaces_and_removes(
    shelf: Folder, check: Model, persona_file: Callable[..., Path]
) -> None:
    catalogue = Catalogue(check, [], shelf)
    with pytest.raises(UnknownPersonaError, match="'calm'; there are: none"):
        catalogue.entry("calm")
    path = put(shelf, persona_file("calm", description="old"), "a")
    assert catalogue.entry("calm").description == "old"  # a miss reads the folder
    put(shelf, persona_file("calm", description="new"), "a")
    assert catalogue.entry("calm").description == "new"  # a hit looks at the file
    path.unlink()
    with pytest.raises(UnknownPersonaError):
        catalogue.entry("calm")


def test_unknown_names_are_told_what_there_is(shelf: Folder, check: Model, persona_file: Callable[..., Path]) -> None:
    put(shelf, persona_file(*(f"p{n:02}" for n in range(60))), "many")
    catalogue = Catalogue(check, [], shelf)
    for wrong in ("p99", "../p01", "p01.persona", "", "\0", "x" * 10_000):
        with pytest.raises(UnknownPersonaError, match=r"p00, p01, .*p49 and 10 more") as caught:
            catalogue.entry(wrong)
        assert len(str(caught.value)) < 1000


def test_files_that_cannot_be_served_are_named(shelf: Folder, check: Model, persona_file: Callable[..., Path]) -> None:
    put(shelf, persona_file("calm"), "a")
    put(shelf, persona_file("calm", "bold", seed=1), "b")
    put(shelf, persona_file("other", fingerprint="sha256:other"), "c")
    put(shelf, persona_file("auto"), "e")
    (shelf.path / "d.persona").write_bytes(b"no such thing")
    (shelf.path / "bold.prompts.jsonl").write_text("{")
    catalogue = Catalogue(check, [], shelf)
    assert names(catalogue) == ["bold", "calm"]
    assert catalogue.entry("calm").path.name == "a.persona"  # the first file keeps the name
    problems = dict(catalogue.unreadable)
    assert sorted(problems) == ["b.persona", "bold.prompts.jsonl", "c.persona", "d.persona", "e.persona"]
    assert "'calm' is taken by a.persona" in problems["b.persona"]
    assert "'auto' is reserved" in problems["e.persona"]
    assert "another model" in problems["c.persona"]
    assert not any(str(shelf.path) in problem for problem in problems.values())  # paths are nobody's business
    (shelf.path / "d.persona").unlink()
    assert "d.persona" in catalogue.unreadable
    catalogue.scan()
    assert "d.persona" not in catalogue.unreadable


def test_files_given_at_the_start_must_be_good(
    shelf: Folder, check: Model, persona_file: Callable[..., Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.persona"
    broken.write_bytes(b"x")
    cases: list[tuple[Sequence[Path], type[Exception]]] = [
        ([broken], ArtefactError),
        ([persona_file("a", fingerprint="sha256:other")], MaskMismatchError),
        ([persona_file("a"), persona_file("a", seed=1)], OptionError),
        ([persona_file("base")], OptionError),
    ]
    for files, kind in cases:
        with pytest.raises(kind):
            Catalogue(check, files, shelf)
    path = persona_file("a")
    assert names(Catalogue(check, [path, path], shelf)) == ["a"]  # one file named twice is one file


def test_fixed_files_come_first_and_count_once(shelf: Folder, check: Model, persona_file: Callable[..., Path]) -> None:
    put(shelf, persona_file("calm", description="in the folder"), "a")
    fixed = persona_file("calm", description="fixed")
    inside = put(shelf, persona_file("bold"), "b")
    catalogue = Catalogue(check, [fixed, inside], shelf)
    assert catalogue.entry("calm").description == "fixed"
    assert catalogue.entry("bold").fixed
    assert list(catalogue.unreadable) == ["a.persona"]


def test_where_routing_texts_come_from(shelf: Folder, check: Model, persona_file: Callable[..., Path]) -> None:
    put(shelf, persona_file("calm", "bold", metadata={"prompts": {"calm": ["Be still?", 3]}}), "a")
    put(shelf, persona_file("loud", metadata={"prompts": ["Shout?", "Sing?"]}), "b")
    put(shelf, persona_file("odd", metadata={"prompts": "no list"}), "c")
    catalogue = Catalogue(check, [], shelf)
    assert catalogue.entry("calm").texts == ("Be still?",)
    assert catalogue.entry("bold").texts == ("bold",)
    assert catalogue.entry("loud").texts == ("Shout?", "Sing?")
    assert catalogue.entry("odd").texts == ("odd",)
    version = catalogue.version
    (shelf.path / "loud.prompts.jsonl").write_text('"From a file?"\n')
    (shelf.path / "nobody.prompts.jsonl").write_text('"x"\n')
    assert [entry.texts for entry in catalogue.entries() if entry.name == "loud"] == [("From a file?",)]
    assert catalogue.version > version


def test_a_folder_that_vanishes_is_an_error_and_not_an_empty_folder(
    shelf: Folder, check: Model, persona_file: Callable[..., Path]
) -> None:
    put(shelf, persona_file("calm"), "a")
    catalogue = Catalogue(check, [], shelf)
    shelf.path.rename(shelf.path.with_name("away"))
    with pytest.raises(Refusal, match="cannot be used") as caught:
        catalogue.entries()
    assert caught.value.status == 507
    shelf.path.with_name("away").rename(shelf.path)
    assert names(catalogue) == ["calm"]


def test_many_threads_while_files_come_and_go(shelf: Folder, check: Model, persona_file: Callable[..., Path]) -> None:
    put(shelf, persona_file("calm"), "calm")
    catalogue = Catalogue(check, [], shelf)
    wrong: list[BaseException] = []
    stop = threading.Event()

    def look() -> None:
        try:
            while not stop.is_set():
                assert catalogue.entry("calm").name == "calm"
                assert "calm" in names(catalogue)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(20):
        put(shelf, persona_file(f"other{number}"), f"o{number % 3}")
        put(shelf, persona_file("calm", seed=number), "calm")
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert "other19" in names(catalogue)
