"""What a suite hands back: figures by name, tables for a reader, and what is needed to make them again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from personae.evaluation.bootstrap import Difference, Estimate
from personae.evaluation.results import ModelRecord

FORMAT = "personae.suite/1"

Cell = str | int | float | Estimate | Difference | None


@dataclass(frozen=True, slots=True)
class Table:
    """One table. rows: cells in the order of columns. notes: what a reader must know to believe it.

    warnings: what should make a reader doubt it (one class, equal lengths, a trivial baseline above 0.9): they stand in
    the table itself, above its rows.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def warned(tables: Sequence[Table], warnings: Sequence[str]) -> tuple[Table, ...]:
    """The same tables, the first of which begins with these warnings."""
    first, *others = tables
    return (replace(first, warnings=(*warnings, *first.warnings)), *others)


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """The result of one suite on one model.

    figures: headline figures under dotted names ('EI.auc'), numbers or estimates with their interval. data: SHA-256 by
    file. settings: every option that decides a figure. seed: of splits and resamples.
    """

    suite: str
    model: ModelRecord
    data: Mapping[str, str]
    settings: Mapping[str, Any]
    figures: Mapping[str, Cell]
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)


def suite_to_dict(result: SuiteResult) -> dict[str, Any]:
    """Everything as JSON-able values, unrounded; numbers that are not finite become null."""
    return {"format": FORMAT, **_plain(asdict(result))}


def suite_to_markdown(result: SuiteResult) -> str:
    """All tables as GitHub Markdown, each with its warnings and notes."""
    lines = [f"# {result.suite} on {result.model.id}", ""]
    for table in result.tables:
        lines += [f"## {table.title}", ""]
        lines += [f"> **Warning**: {warning}" for warning in table.warnings] + ([""] if table.warnings else [])
        lines += [_line(table.columns), _line("---" for _ in table.columns)]
        lines += [_line(shown(cell) for cell in row) for row in table.rows]
        lines += ["", *(f"- {note}" for note in table.notes), ""]
    lines += [f"- {note}" for note in result.notes]
    return "\n".join(lines).rstrip() + "\n"


def suite_to_rich(result: SuiteResult) -> RenderableType:
    """The same for `rich.print`."""
    parts: list[RenderableType] = []
    for table in result.tables:
        shape = RichTable(title=table.title, title_justify="left", box=SIMPLE, padding=(0, 1))
        for column in table.columns:
            shape.add_column(column)
        for row in table.rows:
            shape.add_row(*(Text(shown(cell)) for cell in row))
        parts += [Text(f"warning: {warning}", style="yellow") for warning in table.warnings]
        parts += [shape, *(Text(note) for note in table.notes)]
    return Group(*parts, *(Text(note) for note in result.notes))


def shown(cell: Cell) -> str:
    """'0.83 [0.77, 0.88]' of an estimate, three decimals of a number (of a smaller one two digits), '–' of nothing."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "–"
    if isinstance(cell, Estimate | Difference):
        return f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]"
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.2g}" if 0 < abs(cell) < 0.001 else f"{cell:.3f}"  # a share of 0.00025 is not 0.000


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
