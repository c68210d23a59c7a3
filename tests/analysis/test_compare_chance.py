"""Chance against whole numbers, against numpy's hypergeometric draws and against permuting positions."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personae.analysis.compare_chance import common_by_chance, drawn, moments

Rows = tuple[np.ndarray, np.ndarray, int]


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    columns = draw(st.integers(1, 12))
    pairs = draw(st.lists(st.tuples(st.integers(0, columns), st.integers(0, columns)), min_size=1, max_size=7))
    first, second = np.array(pairs, dtype=np.int64).T
    return first, second, columns


def exact(first: np.ndarray, second: np.ndarray, columns: int) -> dict[int, Fraction]:
    """The distribution of the sum in fractions, one row after the other."""
    total = {0: Fraction(1)}
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        row = {c: Fraction(comb(a, c) * comb(columns - a, b - c), comb(columns, b)) for c in range(min(a, b) + 1)}
        longer: dict[int, Fraction] = {}
        for before, p in total.items():
            for c, q in row.items():
                longer[before + c] = longer.get(before + c, Fraction(0)) + p * q
        total = longer
    return {c: p for c, p in total.items() if p}


@given(rows())
@settings(max_examples=200, deadline=None)
def test_the_distribution_is_exact(made: Rows) -> None:
    expected = exact(*made)
    least, p = common_by_chance(*made)
    found = dict(enumerate(p.tolist(), least))
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)
    for c in found.keys() | expected.keys():
        assert found.get(c, 0.0) == pytest.approx(float(expected.get(c, 0)), abs=1e-13)
    assert min(found) >= min(expected)
    assert max(found) <= max(expected)


@given(rows())
@settings(deadline=None)
def test_mean_and_variance_are_exact(made: Rows) -> None:
    expected = exact(*made)
    mean = sum(c * p for c, p in expected.items())
    variance = sum((c - mean) ** 2 * p for c, p in expected.items())
    assert moments(*made) == pytest.approx((float(mean), float(variance)), abs=1e-9)


def test_a_few_rows_by_permuting_positions() -> None:
    chance = np.random.default_rng(0)
    first, second = chance.random((5, 9)) < 0.4, chance.random((5, 9)) < 0.3
    permuted = [(first & chance.permuted(second, axis=1)).sum() for _ in range(20_000)]
    least, p = common_by_chance(first.sum(axis=1), second.sum(axis=1), 9)
    counted = np.bincount(permuted, minlength=least + p.size)[least:] / len(permuted)
    assert sum(counted) == pytest.approx(1)  # permuting gives nothing else
    assert counted == pytest.approx(p, abs=0.015)


@pytest.mark.parametrize(
    ("columns", "number", "share"),
    [(576, 400, 0.5), (1536, 300, 0.5), (576, 1000, 0.002), (300, 500, 0.97), (48, 1, 0.5)],
)
def test_large_masks_by_the_hypergeometric_draws_of_numpy(columns: int, number: int, share: float) -> None:
    """Where positions are permuted, or rows drawn one by one, it is the same distribution; here it is read at once."""
    chance = np.random.default_rng(1)
    first, second = (chance.binomial(columns, share, size=number) for _ in range(2))
    least, p = common_by_chance(first, second, columns)
    at = np.arange(least, least + p.size)
    mean, variance = moments(first, second, columns)
    assert (at * p).sum() == pytest.approx(mean, rel=1e-10)
    assert ((at - mean) ** 2 * p).sum() == pytest.approx(variance, rel=1e-8)
    slow = np.sort(chance.hypergeometric(first, columns - first, second, size=(2000, number)).sum(axis=1))
    below = p.cumsum()[np.searchsorted(at, slow.clip(at[0], at[-1]))]  # P(c ≤ drawn)
    shares = np.searchsorted(slow, slow, side="right") / slow.size
    assert np.abs(below - shares).max() < 0.045  # Kolmogorov–Smirnov: beyond it once in a thousand times


def test_draws_follow_the_distribution_and_the_seed() -> None:
    p = np.array([0.1, 0.0, 0.6, 0.3])
    found = drawn(7, p, 20_000, np.random.default_rng(0))
    assert np.bincount(found - 7, minlength=4) / found.size == pytest.approx(p, abs=0.02)
    assert not (found == 8).any()
    assert np.array_equal(found, drawn(7, p, 20_000, np.random.default_rng(0)))
    assert drawn(7, p, 0, np.random.default_rng(0)).shape == (0,)


@pytest.mark.parametrize(
    ("first", "second", "common"), [((0, 0), (3, 5), 0), ((5, 5), (3, 5), 8), ((5, 0), (2, 4), 2), ((0,), (0,), 0)]
)
def test_where_chance_has_no_choice(first: tuple[int, ...], second: tuple[int, ...], common: int) -> None:
    least, p = common_by_chance(np.array(first), np.array(second), 5)
    assert (least, p.tolist()) == (common, [1.0])
    assert moments(np.array(first), np.array(second), 5) == pytest.approx((common, 0))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from personae.analysis import compare_chance

    chance = np.random.default_rng(3)
    made = chance.integers(0, 60, 200), chance.integers(0, 60, 200), 60
    least, p = common_by_chance(*made)
    monkeypatch.setattr(compare_chance, "_AT_ONCE", 1)
    again = common_by_chance(*made)
    assert again[0] == least
    assert again[1] == pytest.approx(p, abs=1e-14)
