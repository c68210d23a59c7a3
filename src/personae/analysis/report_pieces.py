"""What a report is made of, as plain data: tables, charts, heat maps, a passage of text, and the part that holds them.

A figure is described here once; `report_plotly` and `report_matplotlib` draw the same description. Numbers become text
in `number` and `cell` and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "COLOURS",
    "NO_COMMAND",
    "Axis",
    "Cell",
    "Chart",
    "Figure",
    "HeatMap",
    "ModelName",
    "Part",
    "Passage",
    "Rule",
    "Series",
    "Table",
    "Token",
    "cell",
    "ends",
    "fixed",
    "flattened",
    "number",
    "percent",
    "triple",
]

# Told apart by the colour-blind (after Okabe and Ito, the light ones darkened), at least 3 : 1 against a white and a
# nearly black page; a ninth series begins again, and dashes and markers tell series apart as well.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#c0689a", "#94731b", "#7a6fd0", "#8a8a8a", "#2f8fbf")

MOST_LISTED = 100  # values of one list among the parameters

Points = tuple[float | None, ...]

NO_COMMAND = "The file names no command; `personae {}` with the data, seed and settings below makes it again."


# --- tables ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure as text; interval: what stands below it, such as '[0.77, 0.88]'."""

    text: str
    interval: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """rows: cells in the order of columns. words: numbers of the columns that hold words and not figures. warnings:
    what should make a reader doubt it, notes: what it rests on."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: frozenset[int] = frozenset({0})
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


# --- figures --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Axis:
    """title: with the unit. log: logarithmic. low, high: ends, None: from the data. ticks: text at position 0, 1, …
    where the axis has names and not numbers."""

    title: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    ticks: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """One line, or one set of points or bars. None in x or y breaks the line.

    low, high: ends of the interval of y; x_low, x_high: of x. texts: what is told of each point beside its numbers.
    colour: number of its colour, None: its place among the series.
    """

    name: str
    x: Points
    y: Points
    low: Points | None = None
    high: Points | None = None
    x_low: Points | None = None
    x_high: Points | None = None
    style: Literal["line", "points", "both", "bars", "steps"] = "both"
    band: bool = False  # the interval as a band instead of whiskers
    dashed: bool = False
    texts: tuple[str, ...] | None = None
    colour: int | None = None
    listed: bool = True  # in the legend


@dataclass(frozen=True, slots=True)
class Rule:
    """A straight dotted line at a value of y, or of x (upright): chance, a budget, a threshold."""

    at: float
    name: str
    upright: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Series on two axes. key: its name in file names and on the page. caption: estimator, denominator, intervals."""

    key: str
    title: str
    caption: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class HeatMap:
    """values: (rows, columns), None where there is none. unit: of the values. diverging: about 0, both ways alike.

    numbers: written into the cells. low, high: of the colours; None: from the data (diverging: ± the largest).
    """

    key: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    x_title: str
    y_title: str
    values: tuple[Points, ...]
    unit: str
    diverging: bool = False
    numbers: bool = False
    low: float | None = None
    high: float | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """Least and greatest value of the colours; never equal."""
        known = [value for row in self.values for value in row if value is not None]
        most = max((abs(value) for value in known), default=0.0) or 1.0
        if self.diverging:
            return (-most if self.low is None else self.low), (most if self.high is None else self.high)
        low = min([0.0, *known]) if self.low is None else self.low
        high = max(known, default=1.0) if self.high is None else self.high
        return (low, high) if low < high else (low, low + 1.0)


Figure = Chart | HeatMap


def ends(estimates: Sequence[tuple[float, float, float] | None]) -> tuple[Points, Points, Points]:
    """Values, lower and upper ends of estimates, for a series; None where there is none."""
    value, low, high = (tuple(None if each is None else each[at] for each in estimates) for at in range(3))
    return value, low, high


# --- text -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Token:
    """colour: number of the colour of the persona that it speaks for. strength: 0 to 1. about: shown on pointing."""

    text: str
    colour: int
    strength: float
    about: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A text in coloured tokens. legend: (colour, name)."""

    title: str
    caption: str
    opening: str
    tokens: tuple[Token, ...]
    legend: tuple[tuple[int, str], ...]


# --- parts ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelName:
    """What a file was measured on, or belongs to."""

    id: str
    fingerprint: str

    def __str__(self) -> str:
        short = self.fingerprint.removeprefix("sha256:")[:12]
        return f"{self.id} ({short}…)".strip() if short else self.id


@dataclass(frozen=True, slots=True)
class Part:
    """What one file says, or several of them together.

    source: name of the file. sha256: of its bytes. model: None where it belongs to none. findings: its sentences of the
    summary. made: (name, value) of every parameter, seed, version and hash. command: what makes it again, or None;
    command_note: what a reader must know about it.
    """

    title: str
    kind: str
    source: str
    sha256: str
    model: ModelName | None
    findings: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    passages: tuple[Passage, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    made: tuple[tuple[str, str], ...] = field(default=())
    command: str | None = None
    command_note: str = ""


# --- numbers as text ------------------------------------------------------------------------------------------


def number(value: Any, digits: int = 3, *, signed: bool = False) -> str:
    """'0.830', '1,234', '–' of nothing; text as it is. Small numbers keep three digits that count."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:+,}" if signed else f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    sign = "+" if signed else ""
    if value and abs(value) < 10**-digits:
        return f"{value:{sign}.2e}"
    return f"{value:{sign},.{digits}f}"


def fixed(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """So many decimals, however small: what stands beside an interval is read against its width."""
    return f"{value:{'+' if signed else ''},.{digits}f}"


def percent(value: float | None) -> str:
    """'0.169 %', with three digits that count; '–' of nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.3g} %" if abs(value) < 0.1 else f"{100 * value:.1f} %"


def cell(value: Any, digits: int = 3, *, signed: bool = False) -> Cell:
    """A cell of anything: an estimate (attributes or keys value, low, high), a number, text, nothing."""
    keyed = isinstance(value, Mapping)
    main, low, high = (value.get(k) if keyed else getattr(value, k, None) for k in ("value", "low", "high"))
    if main is None:
        return Cell(number(None if keyed else value, digits, signed=signed))
    interval = "" if low is None or high is None else f"[{fixed(low, digits)}, {fixed(high, digits)}]"
    return Cell(fixed(main, digits, signed=signed), interval)


def triple(estimate: tuple[float, float, float] | None, *, signed: bool = False) -> Cell:
    """A cell of (value, low, high), or of nothing."""
    if estimate is None:
        return Cell("–")
    return cell(dict(zip(("value", "low", "high"), estimate, strict=True)), signed=signed)


def flattened(content: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """(dotted name, text) of every leaf of nested mappings; lists of numbers and words stay one line."""
    if isinstance(content, Mapping):
        for key, item in content.items():
            yield from flattened(item, f"{name}.{key}" if name else str(key))
    elif (
        isinstance(content, Sequence) and not isinstance(content, str) and any(isinstance(i, Mapping) for i in content)
    ):
        for place, item in enumerate(content):
            yield from flattened(item, f"{name}[{place}]")
    else:
        yield name, _leaf(content)


def _leaf(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        rest = f" … ({len(value)} in all)" if len(value) > MOST_LISTED else ""
        return (", ".join(_leaf(item) for item in value[:MOST_LISTED]) or "none") + rest
    return repr(value) if isinstance(value, float) else str(value)
