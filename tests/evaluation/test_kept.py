"""Finished parts: found again under the same key, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from personae.errors import ArtefactError
from personae.evaluation.kept import Kept


def test_a_part_is_found_under_its_own_key_alone(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "parts", ["frame"])
    assert kept.read("a/b c", [1]) is None
    assert not (tmp_path / "parts").exists()  # nothing is made before there is something to keep
    kept.write("a/b c", [1], {"x": 0.1 + 0.2})
    assert Kept(tmp_path / "parts", ["frame"]).read("a/b c", [1]) == {"x": 0.1 + 0.2}
    assert kept.read("a/b c", [2]) is None
    assert kept.read("a/b d", [1]) is None
    assert Kept(tmp_path / "parts", ["other"]).read("a/b c", [1]) is None
    [file] = (tmp_path / "parts").iterdir()
    assert file.name.startswith("a-b-c-")


@pytest.mark.parametrize("content", ["", "[1]", "{", "\x00"])
def test_a_damaged_part_counts_as_none(tmp_path: Path, content: str) -> None:
    kept = Kept(tmp_path)
    kept.write("a", [], {"x": 1})
    path = kept.path("a", [])
    assert path is not None
    path.write_text(content)
    assert kept.read("a", []) is None


def test_without_a_folder_nothing_is_kept() -> None:
    kept = Kept(None)
    kept.write("a", [], {"x": 1})
    assert kept.read("a", []) is None
    assert kept.path("a", []) is None


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="--resume"):
        Kept(tmp_path / "file" / "parts").write("a", [], {})


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ArtefactError, match="No space left"):
        Kept(tmp_path).write("a", [], {"x": 1})
    assert list(tmp_path.iterdir()) == []
