"""Paired bootstrap over questions: intervals, two-sided p, persona minus the best control, Holm.

Every function draws the same resamples from the same (number of questions, resamples, seed), so figures of
two conditions on the same questions are paired without further care. Percentile intervals (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from personae.errors import DataError, OptionError

Floats = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over questions and its percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of two conditions, its interval, and the two-sided p of 'there is none'."""

    value: float
    low: float
    high: float
    p: float


def paired_bootstrap(values: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Means of resampled questions: values (n,) → (resamples,), values (n, k) → (resamples, k).

    All k columns see the same questions in each resample. Sums of wins and halves are exact, so an exact tie of
    two conditions stays one; means over seeds are rounded, see `two_sided_p`.

    Errors: `DataError` without questions, `OptionError` for fewer than 1 resample.
    """
    if not len(values):
        raise DataError("no questions to resample.")
    if resamples < 1:
        raise OptionError(f"--resamples is {resamples}: at least 1 is needed.")
    means: Floats = (_counts(len(values), resamples, seed) @ values) / len(values)
    return means


def interval(values: Floats, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL) -> Estimate:
    """The mean of values (n,) with its interval."""
    low, high = ends(paired_bootstrap(values, resamples=resamples, seed=seed), level)
    return Estimate(float(np.mean(values)), low, high)


def difference(
    first: Floats, second: Floats, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Difference:
    """mean(first) − mean(second) over the same questions, both (n,)."""
    gap = first - second
    means = paired_bootstrap(gap, resamples=resamples, seed=seed)
    return Difference(float(gap.mean()), *ends(means, level), two_sided_p(means, len(gap)))


def margin_over_best_control(
    persona: Floats, controls: Floats, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Difference:
    """mean(persona) − max_k mean(controls_k); larger is better in both. persona (n,), controls (n, k).

    The best control is chosen again inside every resample, so its luck counts against the persona.
    """
    means = paired_bootstrap(np.column_stack([persona, controls]), resamples=resamples, seed=seed)
    gap = means[:, 0] - means[:, 1:].max(axis=1)
    value = float(persona.mean() - controls.mean(axis=0).max())
    return Difference(value, *ends(gap, level), two_sided_p(gap, len(persona)))


_ROUNDING = 1e-12


def two_sided_p(means: Floats, questions: int | None = None) -> float:
    """Twice the smaller share of resamples on either side of zero (zeros on both), each share as (1+k)/(1+R).

    Zero is what differs from it by rounding alone, at most 1e-12: fifths of a win do not add up exactly.

    Never below 2^(1−n), n the number of questions (None: many): so much the sign test allows when all n agree. Of few
    questions all resamples lie on one side, whatever chance had its part in it.
    """
    least = min(int((means <= _ROUNDING).sum()), int((means >= -_ROUNDING).sum()))
    fewest = 0.0 if questions is None else 2.0 ** (1 - questions)
    return min(1.0, max(2 * (1 + least) / (1 + len(means)), fewest))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): in rising order p_(i)·(m−i), never falling, at most 1."""
    adjusted = [0.0] * len(p)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = running
    return adjusted


def least_p(claims: int, resamples: int) -> float:
    """The smallest p after Holm that so many resamples can give the first of so many claims, whatever the effect."""
    return claims * 2 / (1 + resamples)


def too_few(claims: int, resamples: int, what: str, clear: float = 0.05) -> str | None:
    """A sentence where no p after Holm over so many claims can fall below `clear`; else None."""
    least = least_p(claims, resamples)
    if least < clear:
        return None
    return (
        f"{what}: {resamples:,} resamples cannot give a p after Holm below {least:.2g}, so none can be below "
        f"{clear:g}, whatever the effect; --resamples {round(2 * claims / clear)} or more can."
    )


@lru_cache(maxsize=4)  # all items and tied items, twice over: every figure of a table uses one of them
def _counts(items: int, resamples: int, seed: int) -> Floats:
    """How often each question is drawn in each resample, (resamples, items); rows sum to items."""
    drawn = np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), size=resamples)
    counts = drawn.astype(np.float64)
    counts.flags.writeable = False
    return counts


def ends(draws: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of a figure's resamples; those without a value (nan, infinity) are left out."""
    finite = draws[np.isfinite(draws)]
    if not finite.size:
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
