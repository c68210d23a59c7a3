"""The Pareto frontier of accuracy over capability loss: what no other condition beats in both.

A point is a condition, or one size of it: its loss (small is good) and its accuracy (large is good). It lies on the
frontier if no point has at most its loss and at least its accuracy, and one of the two better. The frontier is of the
point estimates; the whiskers say how far it can be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from personae.analysis.report_pieces import Axis, Chart, Rule, Series, number, percent
from personae.evaluation.conditions import Loss, Row

__all__ = ["Point", "chart", "frontier", "of_rows"]

Z95 = 1.96  # standard errors on either side of a 95 % interval of a mean over texts


@dataclass(frozen=True, slots=True)
class Point:
    """condition: its name. acc, low, high: the share of items won, and its 95 % interval. loss: nats a token; error:
    its standard error. share: of weights dropped."""

    condition: str
    acc: float
    low: float
    high: float
    loss: float
    error: float
    share: float


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats, by rising loss. Of equal points the first stays."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.loss, -p.acc)):
        if not best or point.acc > best[-1].acc:
            best.append(point)
    return best


def of_rows(rows: Sequence[Row], pole: int) -> list[Point]:
    """Of the conditions whose loss was measured. pole 0: acc over the loss under p⁺'s mask; 1: 1 − acc_opposite over
    the loss under p⁻'s."""
    found = []
    for row in rows:
        if row.loss is None:
            continue
        loss, error = _worse(row.loss, pole)
        if pole == 0:
            acc, low, high = row.acc.value, row.acc.low, row.acc.high
        else:
            acc, low, high = 1 - row.acc_opposite.value, 1 - row.acc_opposite.high, 1 - row.acc_opposite.low
        share = row.sparsity_positive if pole == 0 else row.sparsity_negative
        found.append(Point(row.name, acc, low, high, loss, error, share))
    return found


def _worse(loss: Loss, pole: int) -> tuple[float, float]:
    """The larger rise of plain text and chat under one pole's mask, and its standard error."""
    return max((loss.values[i], loss.errors[i]) for i in (pole, pole + 2))


def chart(key: str, title: str, pole: str, points: Sequence[Point], caption: str, budget: float | None = None) -> Chart:
    """Points by condition, lines through the sizes of one condition, the frontier as a dashed staircase."""
    series = []
    for name in dict.fromkeys(point.condition for point in points):
        own = sorted((p for p in points if p.condition == name), key=lambda p: p.loss)
        series.append(
            Series(
                name, tuple(p.loss for p in own), tuple(p.acc for p in own),
                low=tuple(p.low for p in own), high=tuple(p.high for p in own),
                x_low=tuple(p.loss - Z95 * p.error for p in own), x_high=tuple(p.loss + Z95 * p.error for p in own),
                style="both" if len(own) > 1 else "points",
                texts=tuple(f"drops {percent(p.share)}, loss {number(p.loss)} ± {number(Z95 * p.error)}" for p in own),
            )
        )  # fmt: skip
    best = frontier(points)
    if len(best) > 1:
        series.append(
            Series(
                "frontier", tuple(p.loss for p in best), tuple(p.acc for p in best), style="steps", dashed=True,
                texts=tuple(p.condition for p in best), colour=6,
            )
        )  # fmt: skip
    rules = [Rule(0.5, "chance")]
    if budget is not None:
        rules.append(Rule(budget, "budget", upright=True))
    return Chart(
        key, title, caption, Axis("capability loss, nats a token"),
        Axis(f"share of items won by {pole}", low=0.0, high=1.0), tuple(series), tuple(rules),
    )  # fmt: skip
