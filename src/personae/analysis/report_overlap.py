"""Parts of overlap: what `personae compare` has written, and the personas of all artefacts given, compared now."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from personae.analysis.compare import Compared, compare
from personae.analysis.compare import Pair as ComparedPair
from personae.analysis.dendrogram import Tree
from personae.analysis.overlap import Overlap
from personae.analysis.report_pieces import (
    Axis,
    Cell,
    Chart,
    Figure,
    HeatMap,
    Part,
    Series,
    Table,
    flattened,
    number,
    percent,
)
from personae.analysis.report_read import Given
from personae.analysis.report_stability import stability_figures, stability_tables, state_figures
from personae.errors import DataError

__all__ = ["compare_part", "overlap_part", "tree_chart"]

MOST_PAIRS = 6  # pairs drawn by block
MOST_NUMBERS = 12  # personas whose matrix has its numbers written in
MOST_BY_KIND = 15  # pairs that the table tells by kind, and that masks by chance are drawn for; of more, all weights
DRAWS = 200  # of masks by chance

_COMPARED: TypeAdapter[Compared] = TypeAdapter(Compared)


def compare_part(given: Given) -> Part:
    """What `personae compare` has written."""
    try:
        found = _COMPARED.validate_python(given.said.content["result"])
    except (KeyError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        where = "result" if first is None else ".".join(["result", *(str(each) for each in first["loc"])])
        what = "is missing" if first is None else first["msg"]
        raise DataError(f"{given.name}: {where}: {what}: the file is damaged or altered; make it again.") from error
    said = given.said
    skip = {"format", "kind", "command", "result", "notes"}
    return Part(
        title=f"Overlap of {len(found.personas)} personas",
        kind="compare",
        source=given.name,
        sha256=given.sha256,
        model=given.model,
        findings=tuple(_overlap_findings(found)),
        tables=(*_tables(found), *stability_tables(found.stability)),
        figures=(*_figures(found), *stability_figures(found.stability), *state_figures(found)),
        notes=said.texts("notes", optional=True),
        made=tuple(flattened({key: value for key, value in said.content.items() if key not in skip})),
        command=said.text("command") if said.has("command") else None,
    )


def overlap_part(files: Sequence[Given]) -> Part:
    """The personas of all artefacts of one model, compared now."""
    personas = sum(len(given.artefact or ()) for given in files)
    draws = DRAWS if personas * (personas - 1) // 2 <= MOST_BY_KIND else 0
    found = compare(*(str(given.path) for given in files), draws=draws)
    return Part(
        title=f"Overlap of the {len(found.personas)} personas given",
        kind="together",
        source=", ".join(given.name for given in files),
        sha256="",
        model=files[0].model,
        findings=tuple(_overlap_findings(found)),
        tables=tuple(_tables(found)),
        figures=tuple(_figures(found)),
        made=(("draws by chance", str(found.draws)), ("seed", str(found.seed))),
        command=shlex.join(["personae", "compare", *(given.name for given in files), "--draws", str(draws)]),
    )


def _overlap_findings(found: Compared) -> list[str]:
    if len(found.pairs) == 1:
        both = found.pairs[0]["all"]
        return [
            f"{found.pairs[0].first} and {found.pairs[0].second}: Jaccard index {number(both.jaccard.value, 4)}, by "
            f"chance {number(both.jaccard.chance, 4)}{_ends(both.jaccard)}."
        ]
    ranked = sorted(found.pairs, key=lambda pair: -pair["all"].jaccard.value)
    return [
        f"{what}: {pair.first} and {pair.second}, Jaccard index {number(pair['all'].jaccard.value, 4)}, by chance "
        f"{number(pair['all'].jaccard.chance, 4)}{_ends(pair['all'].jaccard)}."
        for what, pair in (("most alike", ranked[0]), ("least alike", ranked[-1]))
    ]


def _ends(figure: Any) -> str:
    return "" if figure.low is None else f" [{number(figure.low, 4)}, {number(figure.high, 4)}]"


def _tables(found: Compared) -> list[Table]:
    rows = []
    for pair in found.pairs:
        for overlap in pair.parts:
            if overlap.level == "all" or (overlap.level == "kind" and len(found.pairs) <= MOST_BY_KIND):
                rows.append((Cell(f"{pair.first} – {pair.second}"), Cell(overlap.part), *_overlap_cells(overlap)))
    columns = ("pair", "part", "first", "second", "both", "difference", "Jaccard", "cosine", "z")
    drawn = f" and the central 95 % of {found.draws} draws" if found.draws else ""
    note = (
        "first, second, both: weights dropped. Below each figure: what masks with as many dropped in every row come to "
        f"by chance, its exact expectation{drawn}. difference: over all weights "
        "of the part; Jaccard: of what either drops, the share that both drop; z: standard deviations of chance."
    )
    return [Table("Overlap against chance", columns, tuple(rows), words=frozenset({0, 1}), notes=(note,))]


def _overlap_cells(overlap: Overlap) -> tuple[Cell, ...]:
    counts = (Cell(number(n)) for n in (overlap.first, overlap.second, overlap.common))
    difference = overlap.difference
    shares = Cell(percent(difference.value), f"chance {percent(difference.chance)}")
    others = (
        Cell(number(figure.value, 4), f"chance {number(figure.chance, 4)}{_ends(figure)}")
        for figure in (overlap.jaccard, overlap.cosine)
    )
    return (*counts, shares, *others, Cell("–" if overlap.z is None else f"{overlap.z:+,.1f}"))


def _figures(found: Compared) -> list[Figure]:
    figures: list[Figure] = []
    if len(found.personas) > 2:
        figures += [_matrix(found), tree_chart(found.tree)]
    figures += [_by_block(pair, place) for place, pair in enumerate(found.pairs[:MOST_PAIRS], 1) if _blocks(pair)]
    return figures


def _matrix(found: Compared) -> HeatMap:
    """Jaccard indices in the order of the tree, so that groups stand together."""
    order = found.tree.order
    labels = tuple(found.personas[i].label for i in order)
    values = tuple(tuple(found.matrices["jaccard"][i][j] if i != j else None for j in order) for i in order)
    return HeatMap(
        "overlap", "Jaccard index of dropped weights",
        "Of the weights that either persona drops, the share that both drop, over all targets; the diagonal, 1, is "
        "left out. In the order of the tree below. Chance and intervals stand in the table.",
        labels, labels, "", "", values, "Jaccard index", numbers=len(order) <= MOST_NUMBERS,
    )  # fmt: skip


def tree_chart(tree: Tree) -> Chart:
    """A dendrogram: leaves on y in the tree's order, from top to bottom, 1 − Jaccard on x."""
    count = len(tree.labels)
    at: dict[int, tuple[float, float]] = {
        leaf: (0.0, float(count - 1 - place)) for place, leaf in enumerate(tree.order)
    }
    x: list[float | None] = []
    y: list[float | None] = []
    for made, (first, second, distance, _) in enumerate(tree.merges, count):
        (x1, y1), (x2, y2) = at[first], at[second]
        x += [x1, distance, distance, x2, None]
        y += [y1, y1, y2, y2, None]
        at[made] = (distance, (y1 + y2) / 2)
    return Chart(
        "tree", "Which personas are nearest",
        "Average linkage on 1 − Jaccard index of the dropped weights: two groups join at the mean distance of their "
        "members.",
        Axis("1 − Jaccard index", low=0.0), Axis("", ticks=tuple(tree.labels[leaf] for leaf in reversed(tree.order))),
        (Series("joined", tuple(x), tuple(y), style="line", listed=False),),
    )  # fmt: skip


def _blocks(pair: ComparedPair) -> dict[int, Overlap]:
    return {int(name.removeprefix("block ")): overlap for name, overlap in pair.of_level("block").items()}


def _by_block(pair: ComparedPair, place: int) -> Chart:
    blocks = _blocks(pair)
    xs = tuple(float(block) for block in blocks)
    jaccards = [overlap.jaccard for overlap in blocks.values()]
    return Chart(
        f"blocks-{place}",
        f"{pair.first} and {pair.second}: Jaccard index by block",
        "Of the weights of a block that either drops, the share that both drop; by chance: the exact expectation for "
        "as many dropped in every row, with the central 95 % of the draws as a band.",
        Axis("block"), Axis("Jaccard index", low=0.0),
        (
            Series("observed", xs, tuple(j.value for j in jaccards)),
            Series("by chance", xs, tuple(j.chance for j in jaccards), tuple(j.low for j in jaccards),
                   tuple(j.high for j in jaccards), style="line", band=True, dashed=True, colour=6),
        ),
    )  # fmt: skip
