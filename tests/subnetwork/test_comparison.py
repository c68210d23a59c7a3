"""Mask differences and their chance level, against counting and against drawing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from personae.errors import MaskMismatchError
from personae.subnetwork import Mask, compare

SHAPES = {"a": (3, 5), "b": (2, 8)}


@st.composite
def masks(draw: st.DrawFn) -> dict[str, np.ndarray]:
    return {n: draw(arrays.arrays(np.bool_, shape)) for n, shape in SHAPES.items()}


def of(dropped: dict[str, np.ndarray]) -> dict[str, Mask]:
    return {n: Mask.from_dropped(d) for n, d in dropped.items()}


@given(masks(), masks())
def test_counts_equal_counting(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    found = compare(of(first), of(second))
    one, two = (np.concatenate([d[n].ravel() for n in sorted(SHAPES)]) for d in (first, second))
    assert (found.weights, found.first, found.second) == (31, one.sum(), two.sum())
    assert found.difference == pytest.approx((one != two).mean())
    either = (one | two).sum()
    assert found.among_dropped == pytest.approx((one != two).sum() / either if either else 0.0)
    turned = compare(of(second), of(first))
    assert (turned.different, turned.expected) == (found.different, pytest.approx(found.expected))
    assert compare(of(first), of(first)).different == 0


def test_chance_is_what_drawing_within_rows_comes_to() -> None:
    chance = np.random.default_rng(0)
    counts = {"a": ((0, 2, 5), (1, 4, 2)), "b": ((3, 8), (6, 1))}

    def draw(side: int) -> dict[str, np.ndarray]:
        drawn = {n: np.zeros(shape, dtype=bool) for n, shape in SHAPES.items()}
        for name, rows in drawn.items():
            for row, number in zip(rows, counts[name][side], strict=True):
                row[chance.choice(len(row), number, replace=False)] = True
        return drawn

    found = [compare(of(draw(0)), of(draw(1))) for _ in range(3000)]
    expected = found[0]
    assert np.mean([f.difference for f in found]) == pytest.approx(expected.difference_by_chance, abs=0.005)
    assert np.mean([f.among_dropped for f in found]) == pytest.approx(expected.among_dropped_by_chance, abs=0.01)


def test_small_masks_hardly_differ_whatever_they_drop() -> None:
    """Why the paper's figure does not stand alone: disjoint masks of 1 % differ on 2 % of the weights, as by chance."""
    first, second = np.zeros((1, 1000), dtype=bool), np.zeros((1, 1000), dtype=bool)
    first[0, :10], second[0, 10:20] = True, True
    found = compare(of({"w": first}), of({"w": second}))
    assert (found.difference, found.among_dropped) == (0.02, 1.0)
    assert found.difference_by_chance == pytest.approx(0.0198)
    assert found.among_dropped_by_chance == pytest.approx(2 * 19.8 / (20 + 19.8))


def test_what_cannot_be_compared() -> None:
    one = of({n: np.zeros(shape, dtype=bool) for n, shape in SHAPES.items()})
    with pytest.raises(MaskMismatchError, match="only one of the two masks b"):
        compare(one, {"a": one["a"]})
    with pytest.raises(MaskMismatchError, match="no mask"):
        compare({}, {})
    with pytest.raises(MaskMismatchError):
        compare(one, {**one, "b": one["a"]})
    empty = compare(one, one)
    assert (empty.among_dropped, empty.among_dropped_by_chance, empty.difference) == (0.0, 0.0, 0.0)
