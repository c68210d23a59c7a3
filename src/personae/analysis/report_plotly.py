"""Figures as Plotly's own JSON (data, layout), for the page.

Nothing here fixes a colour of text: the page's style sheet does, so that a figure follows light, dark and print. Plotly
reads a few tags in its labels, so every text is escaped once before it gets there. Positions on axes are numbers
and names stand at them as ticks: names that repeat, or that look like numbers or dates, stay what they are.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from personae.analysis.report_pieces import COLOURS, Axis, Chart, Figure, HeatMap, Points, Rule, Series, fixed, number

__all__ = ["CIVIDIS", "DASHES", "LONGEST", "MOST_TICKS", "MOST_WHISKERS", "RED_BLUE", "cut", "spec"]

MOST_TICKS = 40  # names on one axis; of more, every so many-th
LONGEST = 32  # characters of a name on an axis
MOST_WHISKERS = 120  # points of a series that get a marker each
MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star", "circle-open",
           "square-open", "diamond-open", "triangle-up-open", "triangle-down-open", "hexagram", "bowtie")  # fmt: skip
DASHES = ("solid", "dash", "dot", "dashdot")

# From 0 to 1, told apart by the colour-blind and in grey (cividis); about 0, the ends blue and orange.
CIVIDIS = ("#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838")
RED_BLUE = ("#a04000", "#d5722e", "#eab48c", "#f2f2f2", "#8fbbd9", "#3a86b8", "#00507d")

_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


def spec(figure: Figure) -> dict[str, Any]:
    """{'data': […], 'layout': {…}} of one figure; JSON-able, and the same for the same figure."""
    return _heat_map(figure) if isinstance(figure, HeatMap) else _chart(figure)


# --- charts ---------------------------------------------------------------------------------------------------


def _chart(chart: Chart) -> dict[str, Any]:
    data: list[dict[str, Any]] = []
    for place, series in enumerate(chart.series):
        colour = (place if series.colour is None else series.colour) % len(COLOURS)
        if series.band and series.low is not None and series.high is not None:
            data.append(_band(series, colour))
        data.append(_trace(series, colour, place))
    layout = _layout(_height(chart))
    layout["xaxis"] = _axis(chart.x, log=chart.x.log)
    layout["yaxis"] = _axis(chart.y, log=chart.y.log)
    layout["showlegend"] = sum(series.listed for series in chart.series) > 1
    layout["shapes"] = [_rule(rule) for rule in chart.rules]
    layout["annotations"] = [_rule_name(rule, chart) for rule in chart.rules]
    beside = max((len(rule.name) for rule in chart.rules if not rule.upright), default=0)
    layout["margin"]["r"] += 6 * min(beside, LONGEST)
    return {"data": data, "layout": layout}


def _trace(series: Series, colour: int, place: int) -> dict[str, Any]:
    x, y = _points(series.x), _points(series.y)
    marked = len(x) <= MOST_WHISKERS
    told = [_told(series, i) for i in range(len(x))]
    trace: dict[str, Any] = {
        "x": x, "y": y, "name": _text(series.name), "showlegend": series.listed, "hoverinfo": "text", "hovertext": told,
        "legendgroup": f"{place}",
    }  # fmt: skip
    if not series.band:
        trace |= _whiskers(series)
    if series.style == "bars":
        if "error_y" in trace:
            trace["error_y"]["color"] = "#8a8a8a"  # of the bar's own colour it could not be seen on the bar
        return {**trace, "type": "bar", "marker": {"color": COLOURS[colour]}, "width": 0.7}
    lines, points = series.style in ("line", "both", "steps"), series.style in ("points", "both") and marked
    mode = "+".join(name for name, on in (("lines", lines or not points), ("markers", points)) if on)
    dash = DASHES[1] if series.dashed else DASHES[0]
    line = {"color": COLOURS[colour], "width": 2, "dash": dash, "shape": "hv" if series.style == "steps" else "linear"}
    marker = {"color": COLOURS[colour], "size": 8, "symbol": MARKERS[place % len(MARKERS)]}
    return {**trace, "type": "scatter", "mode": mode, "line": line, "marker": marker, "connectgaps": False}


def _told(series: Series, at: int) -> str:
    """What pointing at one point tells: series, numbers, interval, and the point's own text."""
    y = number(series.y[at])
    if series.low is not None and series.high is not None and series.low[at] is not None:
        y += f" [{number(series.low[at])}, {number(series.high[at])}]"
    x = number(series.x[at])
    if series.x_low is not None and series.x_high is not None and series.x_low[at] is not None:
        x += f" [{number(series.x_low[at])}, {number(series.x_high[at])}]"
    own = "" if series.texts is None else f"<br>{_text(series.texts[at])}"
    return f"{_text(series.name)}<br>{x}; {y}{own}"


def _whiskers(series: Series) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for axis, values, low, high in (
        ("error_y", series.y, series.low, series.high), ("error_x", series.x, series.x_low, series.x_high)
    ):  # fmt: skip
        if low is None or high is None or all(v is None for v in low) or len(values) > MOST_WHISKERS:
            continue
        found[axis] = {
            "type": "data", "symmetric": False, "array": _apart(high, values), "arrayminus": _apart(values, low),
            "thickness": 1.3, "width": 3,
        }  # fmt: skip
    return found


def _apart(upper: Points, lower: Points) -> list[float | None]:
    return [
        None if a is None or b is None else _rounded(max(a - b, 0.0)) for a, b in zip(upper, lower, strict=True)
    ]  # fmt: skip


def _band(series: Series, colour: int) -> dict[str, Any]:
    """The interval as one closed shape."""
    ends = [
        (x, low, high)
        for x, low, high in zip(series.x, series.low or (), series.high or (), strict=True)
        if x is not None and low is not None and high is not None
    ]
    r, g, b = (int(COLOURS[colour][i : i + 2], 16) for i in (1, 3, 5))
    return {
        "type": "scatter", "x": _points([x for x, _, _ in ends] + [x for x, _, _ in ends[::-1]]),
        "y": _points([high for _, _, high in ends] + [low for _, low, _ in ends[::-1]]), "mode": "lines",
        "fill": "toself", "fillcolor": f"rgba({r},{g},{b},0.22)", "line": {"width": 0}, "hoverinfo": "skip",
        "showlegend": False,
        "name": _text(series.name),
    }  # fmt: skip


def _rule(rule: Rule) -> dict[str, Any]:
    ends = (
        {"x0": rule.at, "x1": rule.at, "y0": 0, "y1": 1, "yref": "paper"}
        if rule.upright
        else {"y0": rule.at, "y1": rule.at, "x0": 0, "x1": 1, "xref": "paper"}
    )
    return {"type": "line", **ends, "line": {"color": "#8a8a8a", "width": 1.2, "dash": "dot"}, "layer": "below"}


def _rule_name(rule: Rule, chart: Chart) -> dict[str, Any]:
    """Of a level rule to the right of the axes, where no data are; of an upright one along its end."""
    axis = chart.x if rule.upright else chart.y
    at = math.log10(rule.at) if axis.log and rule.at > 0 else rule.at
    common = {"text": _text(cut(rule.name)), "showarrow": False, "font": {"size": 11}, "xanchor": "left", "xshift": 3}
    if rule.upright:
        return {**common, "x": at, "y": 0, "yref": "paper", "yanchor": "bottom"}
    return {**common, "y": at, "x": 1, "xref": "paper", "yanchor": "middle"}


def _height(chart: Chart) -> int:
    if chart.y.ticks is not None:
        return max(200, 34 * len(chart.y.ticks) + 130)
    return 380


# --- heat maps ------------------------------------------------------------------------------------------------


def _heat_map(figure: HeatMap) -> dict[str, Any]:
    low, high = figure.limits
    rows, columns = len(figure.rows), len(figure.columns)
    stops = RED_BLUE if figure.diverging else CIVIDIS
    told = [
        [f"{_text(row)}, {_text(column)}: {number(value)} {_text(figure.unit)}"
         for column, value in zip(figure.columns, values, strict=True)]
        for row, values in zip(figure.rows, figure.values, strict=True)
    ]  # fmt: skip
    trace: dict[str, Any] = {
        "type": "heatmap", "z": [_points(row) for row in figure.values], "x": list(range(columns)),
        "y": list(range(rows)), "zmin": _rounded(low), "zmax": _rounded(high),
        "colorscale": [[i / (len(stops) - 1), colour] for i, colour in enumerate(stops)],
        "xgap": 1 if columns <= 60 else 0, "ygap": 1, "hoverinfo": "text", "hovertext": told,
        "colorbar": {"title": {"text": _text(figure.unit), "side": "top"}, "thickness": 14, "outlinewidth": 0},
    }  # fmt: skip
    if figure.numbers:
        trace |= {
            "text": [["" if v is None else fixed(v) for v in row] for row in figure.values],
            "texttemplate": "%{text}",
        }
    each = 34 if rows <= 6 else 26 if rows <= 14 else 17
    layout = _layout(max(230, each * rows + 130))
    layout["xaxis"] = _axis(Axis(figure.x_title, ticks=figure.columns), grid=False)
    layout["yaxis"] = {**_axis(Axis(figure.y_title, ticks=figure.rows), grid=False), "range": [rows - 0.5, -0.5]}
    layout["xaxis"]["range"] = [-0.5, columns - 0.5]
    return {"data": [trace], "layout": layout}


# --- common ---------------------------------------------------------------------------------------------------


def _layout(height: int) -> dict[str, Any]:
    return {
        "height": height, "autosize": True, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": _FONT, "size": 12}, "margin": {"l": 64, "r": 16, "t": 16, "b": 52}, "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom",
                   "bgcolor": "rgba(0,0,0,0)"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#8a8a8a", "activecolor": "#0072b2"},
    }  # fmt: skip


def _axis(axis: Axis, *, log: bool = False, grid: bool = True) -> dict[str, Any]:
    made: dict[str, Any] = {
        "title": {"text": _text(axis.title), "standoff": 8}, "automargin": True, "showgrid": grid, "zeroline": False,
        "gridcolor": "rgba(128,128,128,0.25)", "linecolor": "rgba(128,128,128,0.6)", "showline": True,
    }  # fmt: skip
    if log:
        made["type"] = "log"
    if axis.ticks is not None:
        step = math.ceil(len(axis.ticks) / MOST_TICKS)
        at = list(range(0, len(axis.ticks), step))
        made |= {"tickmode": "array", "tickvals": at, "ticktext": [_text(cut(axis.ticks[i])) for i in at]}
        made["range"] = [-0.8, len(axis.ticks) - 0.4]
    elif axis.low is not None and axis.high is not None:
        low, high = (math.log10(end) if log else end for end in (axis.low, axis.high))
        made["range"] = [low - 0.02 * (high - low), high + 0.02 * (high - low)]
    elif axis.low is not None and not log:
        made["rangemode"] = "tozero"
    return made


def cut(name: str) -> str:
    """A name as it stands on an axis; all of it is told on pointing, and stands in the tables."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _text(text: str) -> str:
    # between two '$' Plotly looks for a formula, and complains where nothing can set it
    return html.escape(text, quote=False).replace("$", "&#36;")


def _points(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else _rounded(value) for value in values]


def _rounded(value: float) -> float:
    """Six digits: more cannot be seen, and would make the page larger."""
    return float(f"{value:.6g}")
