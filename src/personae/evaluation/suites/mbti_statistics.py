"""AUC and differences of means with intervals over instructions, as pure functions.

Answers to one instruction are not independent, so the bootstrap draws instructions and takes all their answers along.
All figures on the same answers use the same resamples, so their differences and ratios are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.errors import DataError
from personae.evaluation.bootstrap import RESAMPLES, Difference, Estimate, ends, paired_bootstrap, two_sided_p

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TOLERANCE = 0.1  # two answers are of one length if they differ by at most this share of the longer


@dataclass(frozen=True, eq=False)
class Resampled:
    """A figure on all answers, and on each resample of their instructions, (resamples,).

    A resample without an answer of one pole has no value; it is nan there and left out of the interval.
    """

    value: float
    draws: Floats

    def estimate(self) -> Estimate:
        """The figure with its percentile interval."""
        return Estimate(self.value, *ends(self.draws))

    def minus(self, other: Resampled) -> Difference:
        """This figure minus another one on the same answers, with the two-sided p of 'there is no difference'."""
        gap = self.draws - other.draws
        return Difference(self.value - other.value, *ends(gap), two_sided_p(gap[np.isfinite(gap)]))

    def above(self, chance: float) -> Resampled:
        """This figure less what chance alone gives."""
        return Resampled(self.value - chance, self.draws - chance)

    def over(self, other: Resampled) -> Estimate:
        """This figure divided by another one on the same answers."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = self.draws / other.draws
        return Estimate(self.value / other.value if other.value else float("nan"), *ends(ratio))


def best(figures: Sequence[Resampled]) -> Resampled:
    """The largest of some figures, chosen again inside every resample."""
    return Resampled(max(f.value for f in figures), np.max([f.draws for f in figures], axis=0))


def weights_of(instructions: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """How often each answer is drawn, (resamples, answers), when its instruction is what is drawn.

    instructions: of each answer; equal ones are drawn together.
    """
    names = sorted(set(instructions))
    place = {name: number for number, name in enumerate(names)}
    shares = paired_bootstrap(np.eye(len(names)), resamples=resamples, seed=seed)  # (resamples, instructions)
    drawn: Floats = np.rint(shares * len(names))[:, [place[i] for i in instructions]]
    return drawn


def auc(scores: Sequence[Floats], positive: Bools, weights: Floats) -> Resampled:
    """P(score of an answer of p⁺ > score of an answer of p⁻), ties one half; of several scores the mean of their AUCs.

    AUC = Σ_ij w_i w_j [s_i > s_j] / (Σ_i w_i · Σ_j w_j), i over answers of p⁺, j over those of p⁻; all w = 1 for the
    value, else the resample's. scores: each (n,). positive: (n,). weights: (resamples, n).
    Errors: `DataError` when there is one class only.
    """
    if positive.all() or not positive.any():
        raise DataError("an AUC needs answers of both poles.")
    ahead = np.mean(
        [(np.sign(s[positive][:, None] - s[~positive][None, :]) + 1) / 2 for s in scores], axis=0
    )  # (answers of p⁺, answers of p⁻)
    own, rival = weights[:, positive], weights[:, ~positive]
    with np.errstate(invalid="ignore"):
        draws = ((own @ ahead) * rival).sum(axis=1) / (own.sum(axis=1) * rival.sum(axis=1))
    return Resampled(float(ahead.mean()), draws)


def mean(values: Floats, weights: Floats) -> Resampled:
    """Mean over answers, (n,) with weights (resamples, n)."""
    with np.errstate(invalid="ignore"):
        return Resampled(float(values.mean()), (weights @ values) / weights.sum(axis=1))


def separation(change: Floats, positive: Bools, weights: Floats) -> Resampled:
    """Mean change of p⁺'s answers minus mean change of p⁻'s, from one change an answer, (n,)."""
    own, rival = (mean(change[side], weights[:, side]) for side in (positive, ~positive))
    return Resampled(own.value - rival.value, own.draws - rival.draws)


def length_matched(lengths: Sequence[int], positive: Bools, tolerance: float = TOLERANCE) -> list[int]:
    """Indices of answers that have a partner of the other pole of their own length, each partner once; sorted.

    Shortest first, so that as many as possible find one. Lengths a ≤ b are one length if b − a ≤ tolerance·b.
    """
    own, rival = (
        sorted((i for i in range(len(lengths)) if positive[i] == side), key=lambda i: (lengths[i], i))
        for side in (True, False)
    )
    kept: list[int] = []
    first = second = 0
    while first < len(own) and second < len(rival):
        a, b = lengths[own[first]], lengths[rival[second]]
        if abs(a - b) <= tolerance * max(a, b):
            kept += [own[first], rival[second]]
            first, second = first + 1, second + 1
        elif a < b:
            first += 1
        else:
            second += 1
    return sorted(kept)
