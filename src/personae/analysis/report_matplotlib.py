"""The same figures with Matplotlib, as files for papers: SVG, PDF or PNG, the same bytes for the same figure.

Nothing global is touched: no pyplot, no rcParams that outlast the call. Text is drawn as outlines, so that a file looks
the same everywhere; '$' and '_' in names stay what they are.
"""

from __future__ import annotations

import io
import math
from typing import Any

from personae.analysis.report_pieces import COLOURS, Axis, Chart, Figure, HeatMap, Series, fixed
from personae.analysis.report_plotly import CIVIDIS, MOST_TICKS, MOST_WHISKERS, RED_BLUE, cut
from personae.errors import OptionError

__all__ = ["FORMATS", "draw"]

FORMATS = ("svg", "png", "pdf")
WIDTH = 6.3  # inches: the text block of an A4 page
RESOLUTION = 200  # dots an inch, of PNG
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "p", "h", "<", ">", "d", "8", "H")

_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "personae", "svg.fonttype": "path", "pdf.fonttype": 42, "text.parse_math": False,
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": False, "legend.frameon": False, "legend.fontsize": 7,
    "axes.axisbelow": True, "text.usetex": False,
}  # fmt: skip
# What would make two runs differ: the time, and the version where it is not asked for.
_METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": "personae"}
}  # fmt: skip


def draw(figure: Figure, form: str) -> bytes:
    """One figure as a file of the form 'svg', 'png' or 'pdf'. Errors: `OptionError` for another, or no Matplotlib."""
    if form not in FORMATS:
        raise OptionError(f"--figure-format is {form!r}: choose {', '.join(FORMATS)}.")
    try:
        import matplotlib
        from matplotlib import style
        from matplotlib.figure import Figure as Sheet
    except ImportError as error:
        raise OptionError("--figures needs Matplotlib: pip install 'personae[analysis]'.") from error
    with style.context("default"), matplotlib.rc_context(_SETTINGS):
        sheet = Sheet(figsize=(WIDTH, _height(figure)), layout="constrained")
        axes = sheet.add_subplot()
        if isinstance(figure, HeatMap):
            _heat_map(sheet, axes, figure)
        else:
            _chart(sheet, axes, figure)
        axes.set_title(figure.title, loc="left", wrap=True)
        written = io.BytesIO()
        sheet.savefig(written, format=form, dpi=RESOLUTION, metadata=_METADATA[form])
    return written.getvalue()


def _height(figure: Figure) -> float:
    if isinstance(figure, HeatMap):
        return max(1.8, 0.17 * len(figure.rows) + 1.3)
    return 3.4 if figure.y.ticks is None else max(2.2, 0.36 * len(figure.y.ticks) + 1.2)


# --- charts ---------------------------------------------------------------------------------------------------


def _chart(sheet: Any, axes: Any, chart: Chart) -> None:
    shown, names = [], []
    for place, series in enumerate(chart.series):
        colour = COLOURS[(place if series.colour is None else series.colour) % len(COLOURS)]
        handle = _drawn(axes, series, colour, place)
        if series.listed:
            shown.append(handle)
            names.append(series.name)
    for rule in chart.rules:
        line = axes.axvline if rule.upright else axes.axhline
        line(rule.at, color="#8a8a8a", linewidth=0.8, linestyle=":", zorder=0)
        axes.annotate(  # a level rule is named to the right of the axes, where no data are
            cut(rule.name), (rule.at, 0) if rule.upright else (1, rule.at),
            xycoords=("data", "axes fraction") if rule.upright else ("axes fraction", "data"),
            xytext=(2, 2) if rule.upright else (3, 0), textcoords="offset points", fontsize=6.5, color="#555555",
            ha="left", va="bottom" if rule.upright else "center", annotation_clip=False,
        )  # fmt: skip
    _axis(axes, axes.xaxis, axes.set_xlabel, axes.set_xlim, axes.set_xscale, chart.x)
    _axis(axes, axes.yaxis, axes.set_ylabel, axes.set_ylim, axes.set_yscale, chart.y)
    axes.grid(color="#d9d9d9", linewidth=0.5)
    if len(shown) > 1:
        sheet.legend(shown, names, loc="outside lower left", ncols=3)


def _drawn(axes: Any, series: Series, colour: str, place: int) -> Any:
    x, y = ([math.nan if v is None else v for v in values] for values in (series.x, series.y))
    if series.style == "bars":
        return axes.bar(
            x, y, width=0.7, color=colour, yerr=_errors(series.y, series.low, series.high), ecolor="#333333"
        )
    if series.band and series.low is not None and series.high is not None:
        low, high = ([math.nan if v is None else v for v in values] for values in (series.low, series.high))
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    few = len(x) <= MOST_WHISKERS
    errors = {} if series.band or not few else {
        name: found
        for name, found in (
            ("yerr", _errors(series.y, series.low, series.high)),
            ("xerr", _errors(series.x, series.x_low, series.x_high)),
        )
        if found is not None
    }  # fmt: skip
    lines = series.style in ("line", "both", "steps") or not few
    marked = series.style in ("points", "both") and few
    return axes.errorbar(
        x, y, **errors, color=colour, linestyle=("--" if series.dashed else "-") if lines else "none",
        marker=MARKERS[place % len(MARKERS)] if marked else "none", markersize=4, linewidth=1.2, elinewidth=0.8,
        capsize=2, drawstyle="steps-post" if series.style == "steps" else "default",
    )  # fmt: skip


def _errors(values: Any, low: Any, high: Any) -> list[list[float]] | None:
    """Distances below and above; 0 where there is no interval."""
    if low is None or high is None or all(v is None for v in low):
        return None
    below = [0.0 if v is None or e is None else max(v - e, 0.0) for v, e in zip(values, low, strict=True)]
    above = [0.0 if v is None or e is None else max(e - v, 0.0) for v, e in zip(values, high, strict=True)]
    return [below, above]


def _axis(axes: Any, axis: Any, label: Any, limits: Any, scale: Any, asked: Axis) -> None:
    label(asked.title)
    if asked.log:
        scale("log")
    if asked.ticks is not None:
        _ticks(axis, asked.ticks)
        limits(-0.8, len(asked.ticks) - 0.4)
    elif asked.low is not None and asked.high is not None:
        margin = 0.0 if asked.log else 0.02 * (asked.high - asked.low)
        limits(asked.low - margin, asked.high + margin)
    elif asked.low is not None and not asked.log:
        limits(asked.low, None)


def _ticks(axis: Any, names: tuple[str, ...]) -> None:
    at = list(range(0, len(names), math.ceil(len(names) / MOST_TICKS)))
    crowded = axis.axis_name == "x" and sum(len(names[i]) + 2 for i in at) > 90
    leaning = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axis.set_ticks(at, labels=[cut(names[i]) for i in at], fontsize=6 if len(at) > 16 else 7, **leaning)


# --- heat maps ------------------------------------------------------------------------------------------------


def _heat_map(sheet: Any, axes: Any, figure: HeatMap) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    low, high = figure.limits
    colours = LinearSegmentedColormap.from_list("personae", RED_BLUE if figure.diverging else CIVIDIS)
    values = [[math.nan if v is None else v for v in row] for row in figure.values]
    drawn = axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    _ticks(axes.xaxis, figure.columns)
    _ticks(axes.yaxis, figure.rows)
    axes.set_xlabel(figure.x_title)
    axes.set_ylabel(figure.y_title)
    sheet.colorbar(drawn, ax=axes, label=figure.unit, pad=0.02)
    if figure.numbers:
        for row, content in enumerate(figure.values):
            for column, value in enumerate(content):
                if value is not None:
                    red, green, blue, _ = colours((value - low) / (high - low))
                    dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
                    text = fixed(value)
                    axes.text(column, row, text, ha="center", va="center", fontsize=6, color="w" if dark else "k")
