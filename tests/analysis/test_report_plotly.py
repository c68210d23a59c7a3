"""Plotly's descriptions: valid, complete, with names as plain text; colours that anybody can tell apart."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects
import pytest

import report_data as data
from personae.analysis.report import report
from personae.analysis.report_pieces import COLOURS, Axis, Chart, Figure, HeatMap, Rule, Series
from personae.analysis.report_plotly import CIVIDIS, RED_BLUE, spec

WHITE, DARK = "#ffffff", "#17171a"


def chart(*series: Series, **more: Any) -> Chart:
    """A chart with these series."""
    given = {"key": "k", "title": "t", "caption": "c", "x": Axis("x"), "y": Axis("y"), "series": series}
    return Chart(**{**given, **more})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[Figure]:
    """Every kind of figure that files become."""
    folder = tmp_path_factory.mktemp("files")
    contents = (data.frontier(), data.faithfulness(), data.trace(), data.audit("a", "b"), data.dynamics(),
                data.causal(), data.trace(tokens=("word",) * 130))  # fmt: skip
    paths = [data.write(folder / f"{i}.json", content) for i, content in enumerate(contents)]
    made = report([data.evaluation_file(Path(folder) / "e.json"), *paths])
    return [figure for part in made.parts for figure in part.figures]


def test_plotly_takes_every_description(figures: list[Figure]) -> None:
    assert len(figures) > 25
    for figure in figures:
        made = spec(figure)
        plotly.graph_objects.Figure(made)  # raises ValueError for a property that is none
        assert json.loads(json.dumps(made, allow_nan=False)) == made
        assert spec(figure) == made


def test_a_line_carries_its_numbers_and_its_interval() -> None:
    series = Series("a", (0.0, 1.0, None), (0.5, 0.123456789, 0.7), (0.4, None, 0.6), (0.65, None, 0.8))
    trace = spec(chart(series))["data"][0]
    assert trace["x"] == [0.0, 1.0, None]
    assert trace["y"] == [0.5, 0.123457, 0.7]
    assert trace["error_y"]["array"] == pytest.approx([0.15, None, 0.1])
    assert trace["error_y"]["arrayminus"] == pytest.approx([0.1, None, 0.1])
    assert trace["mode"] == "lines+markers"
    assert trace["hovertext"][0] == "a<br>0.000; 0.500 [0.400, 0.650]"


def test_a_band_is_one_closed_shape_behind_its_line() -> None:
    series = Series("a", (0.0, 1.0), (0.5, 0.6), (0.4, 0.5), (0.6, 0.7), band=True, dashed=True, style="line")
    band, line = spec(chart(series))["data"]
    assert band["x"] == [0.0, 1.0, 1.0, 0.0]
    assert band["y"] == [0.6, 0.7, 0.5, 0.4]
    assert band["fill"] == "toself"
    assert "error_y" not in line
    assert line["line"]["dash"] == "dash"


def test_steps_bars_and_points() -> None:
    styles = [
        spec(chart(Series("a", (0.0,), (1.0,), style=style)))["data"][0]  # type: ignore[arg-type]
        for style in ("steps", "bars", "points")
    ]
    assert styles[0]["line"]["shape"] == "hv"
    assert styles[1]["type"] == "bar"
    assert styles[2]["mode"] == "markers"


def test_a_heat_map_has_its_first_row_on_top_and_gaps_where_there_is_nothing() -> None:
    made = spec(HeatMap("k", "t", "c", ("a", "a"), ("r", "s", "q"), "x", "y", ((1.0, None), (0.0, -2.0), (0.5, 1.0)),
                        "u", diverging=True, numbers=True))  # fmt: skip
    trace = made["data"][0]
    assert trace["z"] == [[1.0, None], [0.0, -2.0], [0.5, 1.0]]
    assert (trace["zmin"], trace["zmax"]) == (-2.0, 2.0)
    assert made["layout"]["yaxis"]["range"] == [2.5, -0.5]
    assert made["layout"]["xaxis"]["ticktext"] == ["a", "a"]  # two columns of one name stay two
    assert trace["text"][0] == ["1.000", ""]
    assert trace["hovertext"][1][1] == "s, a: -2.000 u"


def test_limits_are_never_equal() -> None:
    for values, diverging in ((((0.0,),), False), (((0.0,),), True), (((None,),), False)):
        low, high = HeatMap("k", "t", "c", ("a",), ("r",), "", "", values, "u", diverging=diverging).limits
        assert low < high


def test_many_names_are_thinned_and_long_ones_cut() -> None:
    names = tuple(f"{i} {'x' * 50}" for i in range(100))
    axis = spec(chart(Series("a", (0.0,), (1.0,)), x=Axis("", ticks=names)))["layout"]["xaxis"]
    assert axis["tickvals"] == list(range(0, 100, 3))
    assert all(len(text) == 32 and text.endswith("…") for text in axis["ticktext"])


def test_names_are_text_and_no_tags() -> None:
    name = '<a href="x">b</a> <b>&$y$'
    made = spec(
        chart(Series(name, (0.0,), (1.0,), texts=(name,)), x=Axis(name, ticks=(name,)), rules=(Rule(0.5, name),))
    )
    said = [made["data"][0]["name"], made["layout"]["xaxis"]["title"]["text"], made["layout"]["xaxis"]["ticktext"][0],
            made["layout"]["annotations"][0]["text"]]  # fmt: skip
    assert said == ['&lt;a href="x"&gt;b&lt;/a&gt; &lt;b&gt;&amp;&#36;y&#36;'] * 4
    assert made["data"][0]["hovertext"][0].replace("<br>", "").count("<") == 0
    heat = spec(HeatMap("k", name, name, (name,), (name,), name, name, ((1.0,),), name))
    assert "<" not in json.dumps({k: v for k, v in heat["data"][0].items() if k != "hovertext"})
    assert "<" not in heat["data"][0]["hovertext"][0][0]


def test_rules_of_a_logarithmic_axis_stand_where_they_belong() -> None:
    made = spec(chart(Series("a", (0.1,), (1.0,)), x=Axis("x", log=True), rules=(Rule(0.01, "r", upright=True),)))
    assert made["layout"]["shapes"][0]["x0"] == 0.01
    assert made["layout"]["annotations"][0]["x"] == pytest.approx(-2.0)
    assert made["layout"]["xaxis"]["type"] == "log"


# --- colours --------------------------------------------------------------------------------------------------


def _linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _contrast(a: str, b: str) -> float:
    first, second = sorted((float(_linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b)), reverse=True)
    return (first + 0.05) / (second + 0.05)


def test_series_can_be_seen_on_a_light_and_on_a_dark_page() -> None:
    for colour in COLOURS:
        assert _contrast(colour, WHITE) >= 3, colour
        assert _contrast(colour, DARK) >= 3, colour


# What a deuteranope and a protanope see, in linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
DEUTERANOPE = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
PROTANOPE = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def _lab(linear: np.ndarray) -> np.ndarray:
    scaled = TO_XYZ @ np.clip(linear, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", [np.eye(3), DEUTERANOPE, PROTANOPE], ids=["usual", "deuteranope", "protanope"])
def test_the_first_four_series_can_be_told_apart(eye: np.ndarray) -> None:
    seen = [_lab(eye @ _linear(colour)) for colour in COLOURS[:4]]
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > 15


def test_heat_maps_rise_in_lightness_and_have_two_unlike_ends() -> None:
    lightness = [float(_lab(_linear(colour))[0]) for colour in CIVIDIS]
    assert lightness == sorted(lightness)
    middle = len(RED_BLUE) // 2
    arms = [float(_lab(_linear(colour))[0]) for colour in RED_BLUE]
    assert arms[: middle + 1] == sorted(arms[: middle + 1])
    assert arms[middle:] == sorted(arms[middle:], reverse=True)
    for eye in (np.eye(3), DEUTERANOPE, PROTANOPE):
        ends = [_lab(eye @ _linear(colour)) for colour in (RED_BLUE[0], RED_BLUE[-1])]
        assert float(np.linalg.norm(ends[0] - ends[1])) > 40
