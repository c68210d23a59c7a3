"""Areas, smallest shares and their intervals, against slow ways to the same numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae.analysis.audit_curve import (
    accessibility,
    alignment_of,
    area_weights,
    found_again,
    places,
    smallest_share,
)
from personae.analysis.audit_result import Accessibility
from personae.evaluation import paired_bootstrap
from personae.models import find_targets
from personae.subnetwork import Mask

SHARES = (0.001, 0.01, 0.1)


def curve(base: np.ndarray, margins: np.ndarray, control: np.ndarray | None = None) -> Accessibility:
    return accessibility(
        base, margins, control, shares=SHARES, dropped=(10, 100, 1000), threshold=0.75, loss=None, resamples=300, seed=0
    )


def up_to(last: int, items: int = 20) -> np.ndarray:
    """Margins that are positive on the first `last` items."""
    return np.where(np.arange(items) < last, 1.0, -1.0)


@given(
    st.lists(st.floats(1e-6, 0.9), min_size=2, max_size=6, unique=True).map(sorted),
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
)
def test_the_area_is_the_integral_over_the_logarithm_of_the_share(shares: list[float], values: list[float]) -> None:
    heights = values[: len(shares)]
    x = [math.log(share) for share in shares]
    if x[-1] - x[0] < 1e-3:
        return
    slow = sum((x[i + 1] - x[i]) * (heights[i] + heights[i + 1]) / 2 for i in range(len(x) - 1)) / (x[-1] - x[0])
    assert float(area_weights(shares) @ np.array(heights)) == pytest.approx(slow, abs=1e-9)


def test_equal_factors_of_ten_count_alike_and_one_share_is_the_alignment_there() -> None:
    np.testing.assert_allclose(area_weights(SHARES), [0.25, 0.5, 0.25])
    np.testing.assert_array_equal(area_weights([0.3]), [1.0])


@pytest.mark.parametrize(
    ("alignments", "expected"),
    [
        ((0.8, 0.9, 0.9, 0.9), 0.0),
        ((0.75, 0.1, 0.1, 0.1), 0.0),
        ((0.2, 0.75, 0.9, 0.9), 0.001),
        ((0.2, 0.9, 0.1, 0.1), 0.001),
        ((0.2, 0.25, 0.75, 0.9), 0.01),
        ((0.2, 0.5, 1.0, 1.0), 0.001 * math.sqrt(10)),
        ((0.2, 0.5, 0.5, 1.0), 0.01 * math.sqrt(10)),
        ((0.2, 0.5, 0.6, 0.74), None),
    ],
)
def test_the_smallest_share_is_interpolated_in_its_logarithm(
    alignments: tuple[float, ...], expected: float | None
) -> None:
    assert smallest_share(alignments, SHARES, 0.75) == (None if expected is None else pytest.approx(expected))


def test_the_curve_and_its_control() -> None:
    base, margins = up_to(4), np.column_stack([up_to(8), up_to(16), up_to(20)])
    found = curve(base, margins, np.column_stack([up_to(4)] * 3))
    assert [p.alignment.value for p in found.points] == [0.4, 0.8, 1.0]
    assert [p.control.value for p in found.points] == [0.2, 0.2, 0.2]
    assert [p.margin for p in found.points] == pytest.approx([-0.2, 0.6, 1.0])
    assert [(p.share, p.dropped) for p in found.points] == [(0.001, 10), (0.01, 100), (0.1, 1000)]
    assert found.area.value == pytest.approx(0.25 * 0.4 + 0.5 * 0.8 + 0.25 * 1.0)
    assert found.control_area.value == pytest.approx(0.2)
    assert found.above_control.value == pytest.approx(found.area.value - 0.2)
    assert found.above_control.low > 0
    assert found.smallest == pytest.approx(0.001 * 10 ** (0.35 / 0.4))


def test_the_interval_of_the_smallest_share_is_that_of_resampled_curves() -> None:
    base, margins = up_to(4), np.column_stack([up_to(8), up_to(14), up_to(16)])
    found = curve(base, margins)
    outcomes = (np.column_stack([base, margins]) + 1) / 2
    slow = []
    for row in paired_bootstrap(outcomes, resamples=300, seed=0):
        value = smallest_share(row, SHARES, 0.75)
        slow.append(math.inf if value is None else value)
    slow.sort()
    assert found.reached == pytest.approx(np.mean([v < math.inf for v in slow]))
    assert 0.5 < found.reached < 1
    assert found.smallest_low == pytest.approx(slow[math.ceil(0.025 * 300) - 1])
    assert slow[math.ceil(0.975 * 300) - 1] == math.inf
    assert found.smallest_high is None
    never = curve(base, np.column_stack([base] * 3))
    assert (never.smallest, never.smallest_low, never.smallest_high, never.reached) == (None, None, None, 0.0)
    assert never.control_area is None
    assert never.above_control is None


def test_found_again_compares_the_same_items() -> None:
    base, worn = up_to(4), np.column_stack([up_to(10), up_to(16), up_to(20)])
    disabled = np.column_stack([up_to(2), up_to(10), up_to(20)])
    first, second = curve(base, worn), curve(up_to(0), disabled)
    again = found_again(worn, disabled, (first, second), 300, 0)
    assert again.accessibility is second
    assert again.area.value == pytest.approx(first.area.value - second.area.value)
    assert again.ratio == pytest.approx(second.smallest / first.smallest)
    assert again.ratio > 1
    assert again.harder
    same = found_again(worn, worn, (first, first), 300, 0)
    assert (same.ratio, same.area.value, same.harder) == (1.0, 0.0, False)
    gone = curve(up_to(0), np.column_stack([up_to(0)] * 3))
    lost = found_again(worn, np.column_stack([up_to(0)] * 3), (first, gone), 300, 0)
    assert (lost.ratio, lost.harder) == (None, True)
    there = curve(up_to(20), worn)  # past the threshold with nothing dropped: no ratio to zero
    assert found_again(worn, disabled, (there, second), 300, 0).ratio is None


def test_alignment_tells_the_tied_items_apart() -> None:
    margins, tied = np.array([1.0, -1.0, 0.0, 2.0]), np.array([True, True, False, False])
    found = alignment_of(margins, tied, 200, 0)
    assert (found.items, found.tied_items) == (4, 2)
    assert found.all.value == pytest.approx(0.625)
    assert found.tied.value == pytest.approx(0.5)
    assert found.margin.value == pytest.approx(0.5)
    assert alignment_of(margins, np.zeros(4, bool), 200, 0).tied is None


def test_places_add_up_to_the_mask(tiny_model: object) -> None:
    targets = find_targets(tiny_model("llama")[0])
    random = np.random.default_rng(0)
    masks = {t.name: Mask.from_dropped(random.random(t.shape) < 0.1) for t in targets if t.block != 1}
    found = places(masks, targets)
    assert [(p.block, p.kind) for p in found] == [(b, k) for b in (0, 2) for k in ("attention", "mlp")]
    assert sum(p.dropped for p in found) == sum(m.dropped for m in masks.values())
    assert sum(p.share for p in found) == pytest.approx(1)
    one = next(p for p in found if (p.block, p.kind) == (2, "mlp"))
    own = [t for t in targets if (t.block, t.kind) == (2, "mlp")]
    assert one.dropped == sum(masks[t.name].dropped for t in own)
    assert one.density == pytest.approx(one.dropped / sum(t.size for t in own))
