"""What the grid of isolated subnetworks says: figures, tables, and the claims over sparsities.

Let s_i = 1[p⁺'s answer wins item i under p⁺'s mask] − 1[it wins under p⁻'s mask]; separation is the mean of s. The
claim at sparsity ρ is mean(s of directed) − max over the paper's methods of mean(s), the best of them chosen again
within each resample; p by Holm over the sparsities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.discovery import Capability
from personae.evaluation.bootstrap import Difference, difference, holm, interval, margin_over_best_control
from personae.evaluation.suites.faithfulness_readings import Floats, Reading
from personae.evaluation.suites.report import Cell, Table

PAPER = ("wanda", "contrastive-wanda", "contrastive-sparse", "sparsegpt")
METHODS = ("directed", *PAPER)
CONTROLS = ("random", "generic")
FIGURES = (
    "acc", "acc_opposite", "separation", "acc_tied", "acc_tied_opposite", "gain", "gain_opposite", "capability_loss",
    "capability_loss_error",
)  # fmt: skip

LEGEND = (
    "acc: share of items on which p⁺'s answer is likelier under p⁺'s mask; acc_opposite: under p⁻'s (small is good); "
    "separation: acc − acc_opposite, paired; …_tied: on items whose answers open with the same polarity.",
    "gain, gain_opposite: mean margin under p⁺'s and p⁻'s mask minus that of base, nats a token.",
    "capability_loss: the largest over both masks and both texts, nats a token; capability_loss_error: its standard "
    "error over texts. Methods are compared at equal sparsity, not at equal loss.",
    "base: no mask. random: one draw a pole, within each row. generic: Wanda on generic text, one mask for both poles. "
    "Both read no pair.",
    "Intervals are over items and hold for the masks as found once.",
)
PAPERS_FIGURES = (
    "ANOTHER MODEL, to stand beside and not to be compared: the persona paper (arXiv 2602.07164), LLaMA-2-13B, "
    "AI-Persona accuracy %, power / wealth / hallucination: prompt 41.0/44.0/58.5, RAG 45.5/50.5/64.5, Wanda "
    "51.5/54.5/89.0, contrastive Wanda 54.0/66.0/95.0, contrastive sparse 56.5/64.5/96.0, fine-tuning 64.0/71.0/97.5."
)


@dataclass(frozen=True, eq=False)
class Side:
    """What was read under one mask: both answers of every test item, and the capability text."""

    answers: Reading
    text: Capability


Pole = tuple[Side, Side]  # under p⁺'s mask, under p⁻'s mask


@dataclass(frozen=True, eq=False)
class Grid:
    """All that was read. cells: by (method, pairs, sparsity); controls: by (method, sparsity).

    tied: True where both answers of an item open with the same polarity, (n,). fixed_pairs, fixed_sparsity: the cross.
    """

    base: Side
    cells: Mapping[tuple[str, int, float], Pole]
    controls: Mapping[tuple[str, float], Pole]
    tied: NDArray[np.bool_]
    fixed_pairs: int
    fixed_sparsity: float
    seed: int

    @property
    def methods(self) -> tuple[str, ...]:
        """In the order of METHODS."""
        there = {method for method, _, _ in self.cells}
        return tuple(m for m in METHODS if m in there)

    def sparsities(self, pairs: int) -> list[float]:
        """That were read with so many pairs."""
        return sorted({rho for _, n, rho in self.cells if n == pairs})

    def pairs(self, sparsity: float) -> list[int]:
        """Numbers of pairs that were read at this sparsity."""
        return sorted({n for _, n, rho in self.cells if rho == sparsity})


def separation(poles: Pole) -> Floats:
    """s of every item, (n,)."""
    result: Floats = poles[0].answers.wins - poles[1].answers.wins
    return result


def worst_loss(poles: Pole, base: Side) -> tuple[float, float]:
    """(largest rise over base over both masks and both texts, its standard error), nats a token."""
    return max(rise for side in poles for rise in side.text.rises(base.text))


def figures_of(poles: Pole, grid: Grid) -> tuple[Cell, ...]:
    """Of one cell, in the order of FIGURES; tied figures are None where no item is tied."""
    own, rival = (side.answers for side in poles)
    tied = grid.tied
    before = grid.base.answers.margin
    loss, error = worst_loss(poles, grid.base)
    return (
        interval(own.wins, seed=grid.seed),
        interval(rival.wins, seed=grid.seed),
        difference(own.wins, rival.wins, seed=grid.seed),
        interval(own.wins[tied], seed=grid.seed) if tied.any() else None,
        interval(rival.wins[tied], seed=grid.seed) if tied.any() else None,
        difference(own.margin, before, seed=grid.seed),
        difference(rival.margin, before, seed=grid.seed),
        loss,
        error,
    )


def figures_and_tables(grid: Grid) -> tuple[dict[str, Cell], list[Table]]:
    """'isolatedNN.…' at the fixed sparsity (NN in percent) and most pairs, 'rhoNN.…' (claims), and the tables."""
    figures: dict[str, Cell] = {"base.acc": interval(grid.base.answers.wins, seed=grid.seed)}
    figures |= _headline(grid)
    tables = []
    for number in sorted({n for _, n, _ in grid.cells}):
        found = grid.sparsities(number)
        if number == grid.fixed_pairs or len(found) > 1:
            tables.append(_over_sparsity(grid, number, found))
    numbers = grid.pairs(grid.fixed_sparsity)
    if len(numbers) > 1:
        tables.append(_over_pairs(grid, numbers))
    claimed, table = _claims(grid)
    return figures | claimed, tables + ([table] if table else [])


def best_paper(grid: Grid, pairs: int, sparsity: float) -> str | None:
    """The paper's method with the largest separation in this cell (the first of equal ones), or None."""
    there = [m for m in PAPER if (m, pairs, sparsity) in grid.cells]
    return max(there, key=lambda m: separation(grid.cells[m, pairs, sparsity]).mean(), default=None)


def _headline(grid: Grid) -> dict[str, Cell]:
    rho = grid.fixed_sparsity
    if not grid.pairs(rho):
        return {}
    number, name = grid.pairs(rho)[-1], _name("isolated", rho)
    figures: dict[str, Cell] = {f"{name}.pairs": number}
    best = best_paper(grid, number, rho)
    for method, prefix in (("directed", name), (best, f"{name}.best_paper")):
        if method is not None and (method, number, rho) in grid.cells:
            values = figures_of(grid.cells[method, number, rho], grid)
            figures |= {f"{prefix}.{key}": cell for key, cell in zip(FIGURES, values, strict=True)}
    if best is not None:
        figures[f"{name}.best_paper"] = best
    return figures


def _over_sparsity(grid: Grid, number: int, sparsities: Sequence[float]) -> Table:
    rows: list[tuple[Cell, ...]] = [("base", None, *figures_of((grid.base, grid.base), grid))]
    for method in CONTROLS:
        read = [rho for rho in sparsities if (method, rho) in grid.controls]
        rows += [(method, rho, *figures_of(grid.controls[method, rho], grid)) for rho in read]
    for method in grid.methods:
        rows += [(method, rho, *figures_of(grid.cells[method, number, rho], grid)) for rho in sparsities]
    title = f"Isolated subnetworks over sparsity, {number} calibration pairs"
    return Table(title, ("method", "sparsity", *FIGURES), tuple(rows), (*LEGEND, PAPERS_FIGURES), _doubts(grid))


def _over_pairs(grid: Grid, numbers: Sequence[int]) -> Table:
    rho = grid.fixed_sparsity
    rows: list[tuple[Cell, ...]] = [("base", None, *figures_of((grid.base, grid.base), grid))]
    rows += [(m, None, *figures_of(grid.controls[m, rho], grid)) for m in CONTROLS if (m, rho) in grid.controls]
    for method in grid.methods:
        rows += [(method, n, *figures_of(grid.cells[method, n, rho], grid)) for n in numbers]
    notes = (*LEGEND, "A smaller number of pairs is part of every larger one.", PAPERS_FIGURES)
    title = f"Isolated subnetworks over calibration pairs, sparsity {rho:g}"
    return Table(title, ("method", "pairs", *FIGURES), tuple(rows), notes, _doubts(grid))


def _claims(grid: Grid) -> tuple[dict[str, Cell], Table | None]:
    """directed − the best of the paper's methods in separation, at every sparsity of the fixed number of pairs."""
    number = grid.fixed_pairs
    papers = [m for m in PAPER if m in grid.methods]
    sparsities = grid.sparsities(number)
    if "directed" not in grid.methods or not papers or not sparsities:
        return {}, None
    found: list[Difference] = []
    for rho in sparsities:
        others = np.column_stack([separation(grid.cells[m, number, rho]) for m in papers])
        found.append(margin_over_best_control(separation(grid.cells["directed", number, rho]), others, seed=grid.seed))
    adjusted = holm([claim.p for claim in found])
    figures: dict[str, Cell] = {}
    rows: list[tuple[Cell, ...]] = []
    for rho, claim, p in zip(sparsities, found, adjusted, strict=True):
        best = best_paper(grid, number, rho)
        assert best is not None  # papers is not empty
        ours, theirs = grid.cells["directed", number, rho], grid.cells[best, number, rho]
        rows.append(
            (rho, difference(*(s.answers.wins for s in ours), seed=grid.seed), worst_loss(ours, grid.base)[0], best,
             difference(*(s.answers.wins for s in theirs), seed=grid.seed), worst_loss(theirs, grid.base)[0],
             claim, claim.p, p)
        )  # fmt: skip
        figures |= {f"{_name('rho', rho)}.separation_minus_best": claim, f"{_name('rho', rho)}.p_holm": p}
    columns = (
        "sparsity", "separation of directed", "its loss", "best of the paper's", "its separation", "its loss",
        "difference", "p", "p (Holm)",
    )  # fmt: skip
    notes = (
        f"At each sparsity, with {number} pairs: separation of directed minus that of the best of {', '.join(papers)}, "
        "chosen again in every resample; Holm over the sparsities.",
        "At equal sparsity, not at equal capability loss.",
    )
    return figures, Table("Claims: directed against the paper's methods", columns, tuple(rows), notes, _doubts(grid))


def _doubts(grid: Grid) -> tuple[str, ...]:
    few = [f"{len(grid.tied)} test items: fewer than 100."] if len(grid.tied) < 100 else []
    missing = [m for m in METHODS if m not in grid.methods]
    if missing:
        few.append(f"without {', '.join(missing)}: 'best' is the best of what was run.")
    return tuple(few)


def _name(prefix: str, sparsity: float) -> str:
    return f"{prefix}{100 * sparsity:g}"
