"""Figures of a suite's tables: faithfulness curves, necessity by tenths, parts restored one at a time, and traits.

A table is known by its title and its columns; one that is not known stays a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from personae.analysis.report_pieces import (
    NO_COMMAND,
    Axis,
    Cell,
    Chart,
    Figure,
    Part,
    Rule,
    Series,
    Table,
    cell,
    flattened,
    number,
)
from personae.analysis.report_read import Given, Said
from personae.errors import DataError

__all__ = ["suite_part"]

MOST_FIGURES = 40
_OVER_ITEMS = "Intervals: 95 %, percentile bootstrap over items."


def suite_figures(said: Said) -> tuple[Figure, ...]:
    """The figures of every table that is known, in the order of the tables."""
    found: list[Figure] = []
    for table in said.objects("tables"):
        title, columns = table.text("title"), table.texts("columns")
        rows = [dict(zip(columns, row, strict=False)) for row in table.list("rows") if isinstance(row, list)]
        if title == "Sufficiency of isolated subnetworks" and {"method", "sparsity", "F", "acc"} <= set(columns):
            found += _sufficiency(rows)
        elif title == "Minimality: the mask by tenths" and {"decile", "margin gained"} <= set(columns):
            found.append(_minimality(rows))
        elif title == "Restoring one part at a time" and {"part", "lost when restored"} <= set(columns):
            found += _restoration(rows)
        elif title.startswith("Big Five") and "worn" in columns:
            found += _traits(title, columns, rows)
    return tuple(figure for figure in found if not isinstance(figure, Chart) or figure.series)


def _sufficiency(rows: Sequence[dict[str, Any]]) -> list[Chart]:
    """F and acc over sparsity, a line a method; complements of `directed` where they were read."""
    methods = [m for m in dict.fromkeys(str(row["method"]) for row in rows) if m not in ("base", "none")]
    charts = []
    for column, title, caption, rules in (
        ("F", "Faithfulness over sparsity",
         "F: (margin − margin of none) / (margin of base − margin of none); none: every target weight dropped. "
         "1 is as faithful as the whole model.", (Rule(1.0, "whole model"), Rule(0.0, "nothing left"))),
        ("acc", "Accuracy of isolated subnetworks over sparsity",
         "Share of items won by the persona's answer under the isolated subnetwork.", (Rule(0.5, "chance"),)),
    ):  # fmt: skip
        series = []
        for place, method in enumerate(methods):
            own = sorted((r for r in rows if r["method"] == method), key=lambda r: float(r["sparsity"]))
            series.append(_line(method, [r["sparsity"] for r in own], [r.get(column) for r in own], place))
            rest = [r for r in own if r.get(f"complement {column}") is not None]
            if rest:
                values = [r[f"complement {column}"] for r in rest]
                series.append(_line(f"{method}, complement", [r["sparsity"] for r in rest], values, place, dashed=True))
        caption += " complement: only what the mask drops is left, so that at sparsity ρ it keeps the share ρ. "
        charts.append(
            Chart(f"faithfulness-{column.lower()}", title, caption + _OVER_ITEMS, Axis("sparsity ρ, share dropped"),
                  Axis("F" if column == "F" else "acc"), tuple(series), rules)
        )  # fmt: skip
    return charts


def _minimality(rows: Sequence[dict[str, Any]]) -> Chart:
    tenths = [row for row in rows if isinstance(row["decile"], int)]
    chance = next((_three(row["margin gained"])[0] for row in rows if row["decile"] == "random"), None)
    series = _line("margin gained", [row["decile"] for row in tenths], [row["margin gained"] for row in tenths], 0)
    return Chart(
        "minimality", "Margin gained by each tenth of the mask alone",
        "A tenth of the weights that the mask drops, by rank, 1 the best, dropped alone; change of the mean margin "
        f"over base, nats a token. random: as many of the same candidates, mean over draws. {_OVER_ITEMS}",
        Axis("tenth of the mask, by rank"), Axis("margin gained, nats a token"), (series,),
        () if chance is None else (Rule(chance, "random"),),
    )  # fmt: skip


def _restoration(rows: Sequence[dict[str, Any]]) -> list[Chart]:
    blocks = [row for row in rows if str(row["part"]).startswith("block ")]
    if not blocks:
        return []
    numbers = [int(str(row["part"]).removeprefix("block ")) for row in blocks]
    series = tuple(
        _line(column, numbers, [row.get(column) for row in blocks], place)
        for place, column in enumerate(("lost when restored", "brought alone"))
        if any(_three(row.get(column))[0] is not None for row in blocks)
    )
    return [
        Chart(
            "restoration", "What each block is needed for, and what it brings alone",
            "Share of the whole mask's gain in margin: lost when the block gets its weights back and the rest stays "
            f"masked; brought by the block's mask alone. Shares need not sum to one. {_OVER_ITEMS}",
            Axis("block"), Axis("share of the gain"), series, (Rule(0.0, "nothing"),),
        )
    ]  # fmt: skip


def _traits(title: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Chart]:
    """A line of points a condition, over the traits whose cells are figures with intervals."""
    traits = [
        c
        for c in columns
        if all(_three(row[c])[0] is not None for row in rows) and any(_three(row[c])[1] is not None for row in rows)
    ]
    if not traits:
        return []
    series = []
    for place, row in enumerate(rows):
        shift = 0.12 * (place - (len(rows) - 1) / 2)
        made = _line(str(row["worn"]), [t + shift for t in range(len(traits))], [row[t] for t in traits], place)
        series.append(Series(made.name, made.x, made.y, made.low, made.high, style="points", colour=place))
    made_of = Chart(
        f"traits-{'-'.join(title.lower().replace(',', ' ').split())[:40]}", title,
        f"Keyed answers, −1 to 1, or their change to base; see the table. {_OVER_ITEMS}",
        Axis("", ticks=tuple(traits)), Axis("keyed answer"), tuple(series), (Rule(0.0, "neutral"),),
    )  # fmt: skip
    return [made_of]


def _line(name: str, xs: Sequence[Any], values: Sequence[Any], colour: int, *, dashed: bool = False) -> Series:
    value, low, high = zip(*(_three(v) for v in values), strict=True) if values else ((), (), ())
    return Series(
        name, tuple(None if x is None else float(x) for x in xs), value, low, high, dashed=dashed, colour=colour
    )


def _three(value: Any) -> tuple[float | None, float | None, float | None]:
    """(value, low, high) of a cell; without an interval where it is a bare number, nothing where it is text."""
    if isinstance(value, dict):
        found = [value.get(key) for key in ("value", "low", "high")]
        return tuple(float(v) if isinstance(v, int | float) else None for v in found)  # type: ignore[return-value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value), None, None
    return None, None, None


# --- the part and its tables ---------------------------------------------------------------------------------


def suite_part(given: Given) -> Part:
    """All tables of a suite with their warnings, and figures of those that this module knows."""
    said = given.said
    model = said.object("model")
    tables = (*_headline(said), *(_suite_table(table) for table in said.objects("tables")))
    figures: tuple[Figure, ...] = suite_figures(said)
    skip = {"tables", "figures", "format", "command", "notes"}
    named = said.content.get("command")
    return Part(
        title=f"{said.text('suite')} on {model.text('id')}",
        kind="suite",
        source=given.name,
        sha256=given.sha256,
        model=given.model,
        tables=tables,
        figures=figures,
        notes=said.texts("notes", optional=True),
        made=tuple(flattened({key: value for key, value in said.content.items() if key not in skip})),
        command=str(named) if named else None,
        command_note="" if named else NO_COMMAND.format(f"eval --suite {said.text('suite')}"),
    )


def _headline(said: Said) -> list[Table]:
    """The figures by name; none where there are so many that they only say the tables again."""
    found = said.object("figures").content
    if not 0 < len(found) <= MOST_FIGURES:
        return []
    rows = tuple(
        (Cell(name), _suite_cell(said, value), Cell(number(value.get("p")) if isinstance(value, Mapping) else "–"))
        for name, value in found.items()
    )
    return [Table("Figures by name", ("figure", "value", "p"), rows, notes=("In brackets 95 % intervals.",))]


def _suite_table(said: Said) -> Table:
    columns = said.texts("columns")
    rows = []
    for row in said.list("rows"):
        if not isinstance(row, list) or len(row) != len(columns):
            raise DataError(f"{said.file}: {said.place} has a row of another width than its columns.")
        rows.append(tuple(_suite_cell(said, value) for value in row))
    words = {c for c in range(len(columns)) if any(isinstance(row[c], str) for row in said.list("rows"))} | {0}
    return Table(
        said.text("title"), columns, tuple(rows), frozenset(words), said.texts("notes", optional=True),
        said.texts("warnings", optional=True),
    )  # fmt: skip


def _suite_cell(said: Said, value: Any) -> Cell:
    if value is None or isinstance(value, str | int | float):
        return cell(value)
    if isinstance(value, Mapping):
        inner = Said(value, said.file, f"{said.place}.rows")
        inner.number("value"), inner.number("low"), inner.number("high")
        return cell(value)
    raise DataError(f"{said.file}: {said.place} has a cell that is neither a figure nor text.")
