"""The part of a causal map: heat maps of block × kind, and necessity and sufficiency by block, kind and target."""

from __future__ import annotations

from collections.abc import Sequence

from personae.analysis.report_pieces import (
    Axis,
    Cell,
    Chart,
    Figure,
    HeatMap,
    Part,
    Rule,
    Series,
    Table,
    ends,
    flattened,
    number,
    triple,
)
from personae.analysis.report_read import Given, Said

__all__ = ["causal_part"]

_INTERVALS = "Intervals: 95 %, bootstrap over items."
_SKIP = {"format", "kind", "command", "result", "notes"}


def causal_part(given: Given) -> Part:
    """What `personae causal-map -o` has written."""
    said = given.said
    result = said.object("result")
    cells = result.objects("cells")
    gain = result.estimate("gain")
    title = f"What each part of {result.text('persona')} is needed for"
    return Part(
        title=title,
        kind="causal-map",
        source=given.name,
        sha256=given.sha256,
        model=given.model,
        findings=(
            f"{result.text('persona')}: the whole mask gains {number(gain[0], signed=True)} [{number(gain[1])}, "
            f"{number(gain[2])}] nats a token of margin over base.",
            *_largest(cells),
        ),
        tables=(_cells(cells),),
        figures=tuple(_maps(cells, result)),
        notes=(*said.texts("notes", optional=True), *result.texts("notes", optional=True)),
        made=tuple(flattened({key: value for key, value in said.content.items() if key not in _SKIP})),
        command=said.text("command") if said.has("command") else None,
    )


def _largest(cells: Sequence[Said]) -> list[str]:
    found = []
    for figure, what in (("necessity", "most is lost without"), ("sufficiency", "most is brought alone by")):
        for level in dict.fromkeys(c.text("level") for c in cells):
            best = max((c for c in cells if c.text("level") == level), key=lambda c: c.estimate(figure)[0])
            value, low, high = best.estimate(figure)
            found.append(
                f"Of each {level}, {what} {best.text('part')}: {number(value, signed=True)} [{number(low)}, "
                f"{number(high)}] nats a token, p {number(best.maybe(f'{figure}_p_holm'))} after Holm."
            )
    return found


def _cells(cells: Sequence[Said]) -> Table:
    rows = tuple(
        (Cell(c.text("level")), Cell(c.text("part")), Cell(number(c.whole("dropped"))),
         triple(c.estimate("necessity"), signed=True), Cell(number(c.maybe("necessity_p_holm"))),
         triple(c.estimate("sufficiency"), signed=True), Cell(number(c.maybe("sufficiency_p_holm"))),
         triple(c.maybe_estimate("over_random"), signed=True), triple(c.maybe_estimate("necessity_share")),
         triple(c.maybe_estimate("sufficiency_share")))
        for c in cells
    )  # fmt: skip
    columns = (
        "level", "part", "dropped", "necessity", "p (Holm)", "sufficiency", "p (Holm)", "over random",
        "necessity, share", "sufficiency, share",
    )  # fmt: skip
    note = (
        "necessity: margin of the whole mask minus margin with this part's weights restored; sufficiency: margin under "
        "this part's mask alone minus base; over random: sufficiency minus that of as many random weights of the same "
        "matrices. Nats a token, paired bootstrap over items; shares are of the whole mask's gain and need not sum to "
        "one. p: Holm over the parts of one level."
    )
    return Table("Parts of the mask", columns, rows, words=frozenset({0, 1}), notes=(note,))


def _maps(cells: Sequence[Said], result: Said) -> list[Figure]:
    items = result.whole("items")
    about = {
        "necessity": f"Margin lost when this part gets its weights back, nats a token, mean over {items} items.",
        "sufficiency": f"Margin that this part's mask alone brings over base, nats a token, mean over {items} items.",
    }
    figures: list[Figure] = []
    grid = [c for c in cells if c.text("level") == "cell"]
    if grid:
        blocks = sorted({c.whole("block") for c in grid})
        kinds = sorted({c.text("kind") for c in grid})
        for figure, caption in about.items():
            found = {(c.whole("block"), c.text("kind")): c.estimate(figure)[0] for c in grid}
            figures.append(
                HeatMap(f"causal-{figure}", f"{result.text('persona')}: {figure} by block and kind",
                        f"{caption} Intervals stand in the table.", tuple(kinds), tuple(map(str, blocks)), "kind",
                        "block", tuple(tuple(found.get((b, k)) for k in kinds) for b in blocks), "nats a token",
                        diverging=True)
            )  # fmt: skip
    for level in ("block", "kind", "target"):
        own = [c for c in cells if c.text("level") == level]
        if own:
            names = tuple(c.text("part").removeprefix("block ") for c in own)
            xs = tuple(float(i) for i in range(len(own)))
            points = tuple(
                Series(figure, tuple(x + shift for x in xs), *ends([c.estimate(figure) for c in own]), style="points")
                for figure, shift in (("necessity", -0.1), ("sufficiency", 0.1))
            )
            figures.append(
                Chart(f"causal-by-{level}", f"{result.text('persona')}: necessity and sufficiency by {level}",
                      f"{about['necessity']} {about['sufficiency']} {_INTERVALS}", Axis(level, ticks=names),
                      Axis("nats a token"), points, (Rule(0.0, "nothing"),))
            )  # fmt: skip
    return figures
