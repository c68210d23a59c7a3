"""What tells one generic text from another. The texts themselves are tested with the suite that reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from discovery_data import small_generic
from personae.evaluation.suites.texts import identity


def test_a_text_is_its_words_and_how_many_are_read(tmp_path: Path) -> None:
    text = small_generic()
    assert identity(text) == identity(small_generic())
    assert len({identity(text), identity(replace(text, answers=1)), identity(small_generic(8)), identity(None)}) == 4


def test_a_file_is_told_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "generic.txt"
    path.write_text("The sea was calm.")
    before = identity(path)
    assert identity(str(path)) == before
    path.write_text("The sea was rough.")
    assert identity(path) != before
    assert identity("hub:owner/name") == "hub:owner/name"
