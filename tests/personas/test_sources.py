"""Built-in names, paths and the Hub (a local stand-in)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from personae.errors import DataError, OptionError
from personae.personas import list_contrasts, load_contrast
from personae.personas.sources import open_source

ROWS = [
    {"prompt": None, "positive": "warm", "negative": "cold", "contrast": "warm-cold"},
    {"prompt": "q", "positive": "y", "negative": "n", "contrast": None},
]


class Hub:
    """Stands in for `datasets`: answers with `rows` or raises, and keeps what it was asked."""

    def __init__(self, rows: list[dict[str, Any]], error: Exception | None = None) -> None:
        self.rows, self.error = rows, error
        self.asked: tuple[str, object, str] | None = None

    def load_dataset(self, name: str, *, data_files: object, split: str) -> list[dict[str, Any]]:
        self.asked = (name, data_files, split)
        if self.error:
            raise self.error
        return self.rows


@pytest.mark.parametrize(
    ("source", "asked", "stem"),
    [
        ("hub:me/set", ("me/set", None, "train"), "set"),
        ("hub:me/set:dev", ("me/set", None, "dev"), "set"),
        ("hub:me/set#a/b.jsonl", ("me/set", {"train": "a/b.jsonl"}, "train"), "b"),
        ("hub:me/set:dev#b.csv", ("me/set", {"dev": "b.csv"}, "dev"), "b"),
    ],
)
def test_hub_sources(monkeypatch: pytest.MonkeyPatch, source: str, asked: object, stem: str) -> None:
    hub = Hub(ROWS)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    opened = open_source(source)
    assert hub.asked == asked
    assert (opened.stem, opened.origin) == (stem, source)
    assert opened.rows[1].where == f"{source}, row 2"
    contrast = load_contrast(source)  # the header survives a table's empty cells
    assert (contrast.name, contrast.poles, len(contrast)) == ("warm-cold", ("warm", "cold"), 1)


def test_the_real_datasets_is_asked_by_these_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra personae[hub] is not installed")
    local = datasets.Dataset.from_list(ROWS[1:])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *, data_files, split: local)
    assert load_contrast("hub:me/set").pairs[0].prompt == "q"


def test_hub_failures_are_errors_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ConnectionError("no\nroute"), ValueError('Unknown split "train"'), RuntimeError()):
        monkeypatch.setitem(sys.modules, "datasets", Hub([], error))
        with pytest.raises(DataError, match=r"hub:me/set: cannot be loaded \(\w.*check the id") as caught:
            load_contrast("hub:me/set")
        assert caught.value.__cause__ is error
    monkeypatch.setitem(sys.modules, "datasets", Hub([]))
    with pytest.raises(DataError, match="there are no rows"):
        load_contrast("hub:me/set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'pip install "personae\[hub\]"'):
        load_contrast("hub:me/set")
    with pytest.raises(OptionError, match="write hub:owner/name"):
        load_contrast("hub:")


def test_unknown_sources_name_the_nearest_contrasts() -> None:
    with pytest.raises(OptionError, match=r"Did you mean .*introvert-extravert"):
        load_contrast("introvert-extrovert")
    with pytest.raises(OptionError, match="judging-perceiving"):
        load_contrast("zzzz" * 2000)  # nothing near, and too long for a path: all are named
    for source in ("gone.csv", "folder/gone", Path("gone")):
        with pytest.raises(DataError, match=r"gone.*there is no such file"):
            load_contrast(source)


def test_a_built_in_name_wins_over_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("introvert-extravert").write_text('{"prompt": "q", "positive": "y", "negative": "n"}')
    assert load_contrast("introvert-extravert").source == "built-in introvert-extravert"
    assert len(load_contrast("./introvert-extravert")) == 1
    Path("mine").write_text("question,matching,not_matching\nq,y,n\n")
    assert load_contrast("mine").poles == ("mine", "not-mine")


def test_the_list_is_sorted_and_by_name() -> None:
    names = list_contrasts()
    assert names == sorted(names)
    assert "introvert-extravert" in names
