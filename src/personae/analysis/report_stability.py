"""Tables and figures of stability under resampled items, and of hidden states under masks."""

from __future__ import annotations

from collections.abc import Sequence

from personae.analysis.compare import Compared
from personae.analysis.report_pieces import Axis, Cell, Chart, Series, Table, ends, number
from personae.analysis.stability import Spread, Stability

__all__ = ["stability_figures", "stability_tables", "state_figures"]

MOST_PAIRS = 6  # pairs drawn


def stability_tables(found: Sequence[Stability]) -> list[Table]:
    """Agreement of all weights and of each kind; none without resamples."""
    rows = [
        (Cell(each.persona), Cell(part.part), _spread(part.jaccard), Cell(number(part.jaccard.chance, 4)),
         _spread(part.difference), _spread(part.own))
        for each in found
        for part in each.parts
        if part.level != "block"
    ]  # fmt: skip
    if not rows:
        return []
    title = f"Masks on {found[0].resamples} bootstrap resamples of {found[0].items} items"
    columns = (
        "persona", "part", "Jaccard of two", "Jaccard by chance", "difference of two", "Jaccard with its own mask"
    )  # fmt: skip
    note = "Mean over couples of resamples; in brackets the least and the greatest of them, which is no interval."
    return [Table(title, columns, tuple(rows), words=frozenset({0, 1}), notes=(note,))]


def _spread(spread: Spread) -> Cell:
    return Cell(number(spread.mean, 4), f"[{number(spread.least, 4)}, {number(spread.greatest, 4)}]")


def stability_figures(found: Sequence[Stability]) -> list[Chart]:
    """Agreement by block, a chart a persona."""
    charts = []
    for place, each in enumerate(found, 1):
        blocks = [part for part in each.parts if part.level == "block"]
        if not blocks:
            continue
        xs = tuple(float(part.part.removeprefix("block ")) for part in blocks)
        series = [
            Series(name, xs, tuple(s.mean for s in spreads), tuple(s.least for s in spreads),
                   tuple(s.greatest for s in spreads), band=True)
            for name, spreads in (("two resamples", [p.jaccard for p in blocks]),
                                  ("a resample and its own mask", [p.own for p in blocks]))
        ]  # fmt: skip
        chance = tuple(part.jaccard.chance for part in blocks)
        series.append(Series("two resamples, by chance", xs, chance, style="line", dashed=True, colour=6))
        charts.append(
            Chart(f"stability-{place}", f"{each.persona}: masks under resampled calibration items, by block",
                  f"Jaccard index of dropped weights, mean over couples of {each.resamples} bootstrap resamples of "
                  f"{each.items} items; bands from the least to the greatest couple.",
                  Axis("block"), Axis("Jaccard index", low=0.0, high=1.0), tuple(series))
        )  # fmt: skip
    return charts


def state_figures(found: Compared) -> list[Chart]:
    """Centred cosines by block; none where they were not read."""
    states = found.hidden_states
    if states is None:
        return []
    xs = tuple(float(block) for block in range(states.blocks))
    series = tuple(
        Series(
            f"{pair.first} – {pair.second}", xs,
            *ends([None if c is None else (c.value, c.low, c.high) for c in pair.centred]),
            band=True,
        )
        for pair in states.pairs[:MOST_PAIRS]
    )  # fmt: skip
    return [
        Chart("hidden-states", "Hidden states under two personas, by block",
              f"Cosine of mean hidden states of {states.answers} answers to {states.contrast}, centred on the base "
              f"model: 1 pushes the same way, 0 unrelated, −1 opposite. Bands: 95 %, bootstrap over answers, "
              f"{states.resamples} resamples.",
              Axis("block"), Axis("cosine, centred", low=-1.05, high=1.05), series)
    ]  # fmt: skip
