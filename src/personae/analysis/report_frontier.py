"""The part of a frontier of the benchmarks: accuracy over loss for masks of rising size."""

from __future__ import annotations

from personae.analysis.report_evaluation import ACC, INTERVALS
from personae.analysis.report_pareto import Point, chart
from personae.analysis.report_pieces import Cell, Part, Table, cell, flattened, number, percent
from personae.analysis.report_read import Given
from personae.errors import DataError

__all__ = ["frontier_part"]


def frontier_part(given: Given) -> Part:
    """Accuracy over loss for masks of rising size, a chart a pole."""
    said = given.said
    name, budget = said.text("set"), said.number("budget")
    poles: dict[str, list[Point]] = {}
    rows = []
    for point in said.objects("points"):
        acc = point.numbers("acc")
        if len(acc) != 3 or any(value is None for value in acc):
            raise DataError(f"{given.name}: {point.place}.acc is not value, low, high: make the file again.")
        value, low, high = (float(v) for v in acc if v is not None)
        plain, chat = point.number("plain"), point.number("chat")
        loss, error = max((plain, point.number("plain_error")), (chat, point.number("chat_error")))
        made = Point(point.text("condition"), value, low, high, loss, error, point.number("share"))
        poles.setdefault(point.text("pole"), []).append(made)
        tied = point.numbers("acc_tied") if point.has("acc_tied") else (None,) * 3
        rows.append((
            Cell(made.condition), Cell(point.text("pole")), Cell(number(point.whole("dropped"))),
            Cell(percent(made.share)), cell({"value": value, "low": low, "high": high}, 2),
            cell(dict(zip(("value", "low", "high"), tied, strict=True)), 2),
            Cell(f"{plain:+.4f}", f"± {1.96 * point.number('plain_error'):.4f}"),
            Cell(f"{chat:+.4f}", f"± {1.96 * point.number('chat_error'):.4f}"),
        ))  # fmt: skip
    caption = (
        f"{ACC} Loss: the larger of plain text and chat, on a quarter of the text of the final figures. Masks of one "
        f"condition are nested prefixes of one ranking. {INTERVALS} The staircase joins what no other point beats."
    )
    columns = ("condition", "pole", "dropped", "share", "acc", "acc, tied", "loss, plain", "loss, chat")
    skip = {"points", "command"}
    return Part(
        title=f"{name}: accuracy over capability loss",
        kind="frontier",
        source=given.name,
        sha256=given.sha256,
        model=given.model,
        tables=(Table("Points", columns, tuple(rows), words=frozenset({0, 1}), notes=(INTERVALS,)),),
        figures=tuple(
            chart(f"frontier-{place}", f"{pole}: accuracy over capability loss, by size of the mask", pole, points,
                  caption, budget)
            for place, (pole, points) in enumerate(poles.items(), 1)
        ),
        made=tuple(flattened({key: value for key, value in said.content.items() if key not in skip})),
        command=said.text("command") if said.has("command") else None,
    )  # fmt: skip
