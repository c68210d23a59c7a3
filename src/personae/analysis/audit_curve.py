"""How cheaply a persona is reached: pure arithmetic on what items said under nested masks.

s_1 < … < s_K are shares of the target weights, a_k the alignment under the mask with share s_k, a_0 that of the bare
model. All figures are functions of means over items, so every interval resamples items, the same in every column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from personae.analysis.audit_result import Accessibility, Alignment, FoundAgain, Place, Point
from personae.evaluation import Estimate, difference, interval, paired_bootstrap
from personae.evaluation.scoring import wins
from personae.models import Target
from personae.subnetwork import Mask

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_ENDS = (0.025, 0.975)


def area_weights(shares: Sequence[float]) -> Floats:
    """Weights (K,) that sum to 1: area = Σ_k weight_k · a_k is the trapezoid rule over ln s, over ln s_K − ln s_1.

    So the area is the mean alignment over the range of shares, each factor of ten counting alike: 0 to 1, and the
    alignment itself where there is one share alone.
    """
    steps = np.diff(np.log(np.asarray(shares, dtype=np.float64)))
    if not len(steps):
        return np.ones(1)
    weights = np.zeros(len(shares))
    weights[:-1] += steps / 2
    weights[1:] += steps / 2
    result: Floats = weights / steps.sum()
    return result


def smallest_share(alignments: Sequence[float] | Floats, shares: Sequence[float], threshold: float) -> float | None:
    """The least share at which the alignment is `threshold` or more; alignments: (K + 1,), a_0 first.

    0 where a_0 is. Else, with k the first such point: s_1 for k = 1 (what lies below was not read), and between two
    points ln s is interpolated: ln s = ln s_(k−1) + (ln s_k − ln s_(k−1))·(threshold − a_(k−1))/(a_k − a_(k−1)).
    None where there is no such point.
    """
    if alignments[0] >= threshold:
        return 0.0
    for k, share in enumerate(shares):
        above = float(alignments[k + 1])
        if above >= threshold:
            if k == 0:
                return float(share)
            below = float(alignments[k])
            part = (threshold - below) / (above - below)
            return float(np.exp(np.log(shares[k - 1]) + part * (np.log(share) - np.log(shares[k - 1]))))
    return None


def alignment_of(margins: Floats, tied: Bools, resamples: int, seed: int) -> Alignment:
    """What margins (n,), hazardous minus harmless answer, say. tied: (n,)."""

    def read(values: Floats) -> Estimate:
        return interval(values, resamples=resamples, seed=seed)

    outcomes = wins(margins)
    some = read(outcomes[tied]) if tied.any() else None
    return Alignment(len(margins), int(tied.sum()), read(outcomes), some, read(margins))


def accessibility(
    base: Floats,
    margins: Floats,
    control: Floats | None,
    *,
    shares: Sequence[float],
    dropped: Sequence[int],
    threshold: float,
    loss: float | None,
    resamples: int,
    seed: int,
) -> Accessibility:
    """The curve from margins of items: base (n,), under the masks (n, K), under the random masks (n, K) or None."""
    outcomes = np.column_stack([wins(base), wins(margins)])  # (n, K + 1)
    random = None if control is None else wins(control)
    points = []
    for k, (share, number) in enumerate(zip(shares, dropped, strict=True)):
        beside = None if random is None else interval(random[:, k], resamples=resamples, seed=seed)
        value = interval(outcomes[:, k + 1], resamples=resamples, seed=seed)
        points.append(Point(number, share, value, float(margins[:, k].mean()), beside))
    weights = area_weights(shares)
    area = outcomes[:, 1:] @ weights  # by item
    control_area = None if random is None else random @ weights
    means = paired_bootstrap(outcomes, resamples=resamples, seed=seed)
    low, high, reached = _ends([smallest_share(row, shares, threshold) for row in means])
    return Accessibility(
        base=interval(outcomes[:, 0], resamples=resamples, seed=seed),
        points=tuple(points),
        threshold=threshold,
        area=interval(area, resamples=resamples, seed=seed),
        control_area=None if control_area is None else interval(control_area, resamples=resamples, seed=seed),
        above_control=None if control_area is None else difference(area, control_area, resamples=resamples, seed=seed),
        smallest=smallest_share(outcomes.mean(axis=0), shares, threshold),
        smallest_low=low,
        smallest_high=high,
        reached=reached,
        loss=loss,
    )


def found_again(
    base: Floats, disabled: Floats, curves: tuple[Accessibility, Accessibility], resamples: int, seed: int
) -> FoundAgain:
    """Curve of base against curve of the disabled model, from the margins (n, K) of the same items and shares."""
    first, second = curves
    weights = area_weights([point.share for point in first.points])
    lost = difference(wins(base) @ weights, wins(disabled) @ weights, resamples=resamples, seed=seed)
    ratio = second.smallest / first.smallest if first.smallest and second.smallest else None
    gone = first.smallest is not None and second.smallest is None
    return FoundAgain(second, ratio, lost, gone or lost.low > 0)


def places(masks: Mapping[str, Mask], targets: Sequence[Target]) -> tuple[Place, ...]:
    """Where dropped weights lie, by block and kind, in the order of the model; places without any are left out."""
    counts: dict[tuple[int, str], tuple[int, int]] = {}
    for target in targets:
        dropped, size = counts.get((target.block, target.kind), (0, 0))
        own = masks[target.name].dropped if target.name in masks else 0
        counts[target.block, target.kind] = dropped + own, size + target.size
    total = sum(dropped for dropped, _ in counts.values())
    return tuple(
        Place(block, kind, dropped, dropped / total, dropped / size)
        for (block, kind), (dropped, size) in counts.items()
        if dropped
    )


def _ends(found: Sequence[float | None]) -> tuple[float | None, float | None, float]:
    """Ends of the interval, 'not reached' counting as infinite, and the share of resamples that reach."""
    numbers = np.array([np.inf if each is None else each for each in found])
    low, high = np.quantile(numbers, _ENDS, method="inverted_cdf")
    reached = float(np.isfinite(numbers).mean())
    return float(low) if np.isfinite(low) else None, float(high) if np.isfinite(high) else None, reached
