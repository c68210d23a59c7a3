"""What tuning on dev chose, and what it brought on test."""

from __future__ import annotations

from collections.abc import Mapping

from personae.evaluation.bootstrap import Difference, Estimate, holm
from personae.evaluation.suites.mbti_data import flat
from personae.evaluation.suites.mbti_readings import Readings, positive
from personae.evaluation.suites.mbti_report import Draws, Figures, gap
from personae.evaluation.suites.mbti_statistics import auc, weights_of
from personae.evaluation.suites.mbti_tuning import LABELS, Point, Tuned, Tuning
from personae.evaluation.suites.report import Cell, Table


def tuned_figures(tuned: Tuned, readings: Readings, draws: Draws) -> Figures:
    """Figures of one dimension that stand beside those of the chosen masks."""
    labels, weights = positive(flat(readings.data.test)), draws.weights(readings)
    own = auc([gap(readings.persona)], labels, weights)
    before = auc([gap(tuned.untuned)], labels, weights)
    chosen = tuned.chosen[0]
    return {
        "auc_untuned": before.estimate(),
        "auc_minus_untuned": own.minus(before),
        "auc_dev": dev_auc(chosen, tuned, draws),
        "tuned_blocks": where(chosen),
        "tuned_share": chosen.share,
    }


def dev_auc(point: Point, tuned: Tuned, draws: Draws) -> Estimate:
    """AUC of s(a) on the dev answers, with its interval over their instructions."""
    weights = weights_of([a.instruction for a in tuned.dev], resamples=draws.resamples, seed=draws.seed)
    return auc([point.scores], positive(tuned.dev), weights).estimate()


def where(point: Point) -> str:
    """'first (0-9)': the range and its blocks."""
    return f"{point.where} ({point.blocks[0]}-{point.blocks[-1]})"


def tuning_tables(
    every: Mapping[str, Tuned], figures: Mapping[str, Figures], tuning: Tuning, draws: Draws
) -> tuple[Table, Table]:
    """What was chosen and what it brought, by dimension; and dev's AUC at every point of the grid."""
    gaps = {name: cell for name in every if isinstance(cell := figures[name]["auc_minus_untuned"], Difference)}
    p = dict(zip(gaps, holm([cell.p for cell in gaps.values()]), strict=True))
    columns = ("tuned_blocks", "tuned_share", "auc_dev", "auc", "auc_untuned", "auc_minus_untuned")
    budget = tuning.max_capability_loss
    chosen = Table(
        "Masks tuned on dev (AUC)",
        ("dimension", *columns, "p (Holm)", "dev answers", "shuffled: blocks", "shuffled: share"),
        tuple(
            (
                name, *(figures[name][c] for c in columns), p[name], len(tuned.dev),
                where(tuned.chosen[1]), tuned.chosen[1].share,
            )
            for name, tuned in every.items()
        ),
        notes=(
            "auc, auc_untuned: the test answers under the chosen masks, and under the masks of all blocks that the "
            "suite takes without tuning. auc_dev is the best of the grid and therefore too high; dev and test share no "
            "instruction.",
            "The masks of exchanged labels choose from the same grid by the same rule; random ones have the persona's "
            "size and blocks. Shares are of all target weights. p (Holm) is of auc_minus_untuned.",
        ),
        warnings=tuple(
            f"{name}, {labels} labels: no point keeps {budget:g} nats a token; the one with the lowest bound was taken."
            for name, tuned in every.items()
            for labels, point in zip(LABELS, tuned.chosen, strict=True)
            if budget is not None and point.bound is not None and point.bound > budget
        ),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = [
        (
            name, point.labels, where(point), point.share, dev_auc(point, tuned, draws), point.bound,
            "yes" if point in tuned.chosen else "",
        )
        for name, tuned in every.items()
        for point in tuned.grid
    ]  # fmt: skip
    grid = Table(
        "Dev AUC at every point of the grid",
        ("dimension", "labels", "blocks", "share", "auc_dev", "loss bound", "chosen"),
        tuple(rows),
        notes=(
            f"Over at most {tuning.couples} dev answers a pole; 95 % intervals over instructions. The largest is "
            "taken; of equal ones the smaller share, then the more blocks.",
            "loss bound: 95 % upper bound of the capability loss on the text that searches read, the larger of both "
            "masks', nats a token; read only where a budget is given, from the best point on until one keeps it.",
        ),
    )
    return chosen, grid
