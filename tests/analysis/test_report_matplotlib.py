"""Figures as files: the same bytes twice, every form, names that mean something to Matplotlib, nothing left behind."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import matplotlib
import pytest

import report_data as data
from personae.analysis.report import report
from personae.analysis.report_matplotlib import FORMATS, draw
from personae.analysis.report_pieces import Axis, Chart, Figure, HeatMap, Rule, Series
from personae.errors import OptionError

BANDED = Chart(
    "k", "$x$ and _y", "c", Axis("share, %", log=True), Axis("acc", low=0.0, high=1.0),
    (
        Series("_hidden?", (0.1, 1.0), (0.4, 0.6), (0.3, 0.5), (0.5, 0.7), band=True),
        Series("$a_b$", (0.1, 1.0), (0.5, None), (0.4, None), (0.6, None), style="points"),
        Series("steps", (0.1, 1.0), (0.2, 0.3), style="steps", dashed=True),
    ),
    (Rule(0.5, "chance"), Rule(0.2, "budget", upright=True)),
)  # fmt: skip
GRID = HeatMap("h", "title", "c", ("a", "b"), ("r", "s"), "x", "y", ((0.1, None), (-0.2, 0.3)), "u", True, True)
BARS = Chart(
    "b", "bars", "c", Axis("", ticks=("one", "two")), Axis("y"),
    (Series("a", (0.0, 1.0), (1.0, 2.0), (0.5, 1.5), (1.5, 2.5), style="bars"),),
)  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("figure", [BANDED, GRID, BARS], ids=["lines", "heat map", "bars"])
def test_the_same_figure_gives_the_same_bytes(figure: Figure, form: str) -> None:
    first = draw(figure, form)
    assert draw(figure, form) == first
    assert first[:8].startswith({"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[form])
    assert re.search(rb"20\d\d-\d\d-\d\dT|D:20\d\d", first) is None


def test_other_data_give_another_picture() -> None:
    other = HeatMap("h", "title", "c", ("a", "b"), ("r", "s"), "x", "y", ((0.1, 0.1), (-0.2, 0.3)), "u", True, True)
    assert draw(other, "svg") != draw(GRID, "svg")


def test_settings_of_the_caller_stay_and_do_not_matter() -> None:
    before = draw(BANDED, "svg")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "text.usetex": False, "lines.linewidth": 9}):
        inside = dict(matplotlib.rcParams)
        assert draw(BANDED, "svg") == before
        after = dict(matplotlib.rcParams)
    del inside["backend"], after["backend"]  # an object that stands for 'not chosen yet' until somebody looks
    assert after == inside


def test_every_figure_of_every_file_is_drawn(tmp_path: Path) -> None:
    contents = (data.trace(tokens=("a b",) * 90), data.audit("a"), data.faithfulness())
    paths = [data.write(tmp_path / f"{i}.json", content) for i, content in enumerate(contents)]
    made = report(paths)
    written = made.figures(tmp_path / "figures", "svg")
    assert len(written) == sum(len(part.figures) for part in made.parts) > 8
    assert all(b"</svg>" in path.read_bytes() for path in written)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(path.name for path in written)


def test_hostile_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    path = data.write(tmp_path / "t.json", data.trace((data.HOSTILE, "$\\frac{"), ("$", "_", "\\")))
    assert len(report([path]).figures(tmp_path / "figures", "svg")) == 4


def test_an_unknown_form_and_a_missing_package_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="'gif': choose svg, png, pdf"):
        draw(GRID, "gif")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OptionError, match=r"Matplotlib: pip install 'personae\[analysis\]'"):
        draw(GRID, "svg")
