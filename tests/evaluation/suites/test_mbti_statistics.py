"""AUC, separations and length matching, each against a slow loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae.errors import DataError
from personae.evaluation.bootstrap import interval
from personae.evaluation.suites.mbti_statistics import (
    Resampled,
    auc,
    best,
    length_matched,
    mean,
    separation,
    weights_of,
)

INSTRUCTIONS = ["a", "a", "b", "b", "c", "c", "c", "d"]
POSITIVE = np.array([True, False, True, False, True, False, True, False])
SCORES = np.array([0.3, 0.1, 0.1, 0.4, 0.9, -0.2, 0.1, 0.1])


def slow_auc(scores: list[float], positive: list[bool]) -> float:
    """Every couple of answers, one by one."""
    won = couples = 0.0
    for own, is_own in zip(scores, positive, strict=True):
        for rival, is_rival_own in zip(scores, positive, strict=True):
            if is_own and not is_rival_own:
                couples += 1
                won += 1.0 if own > rival else 0.5 if own == rival else 0.0
    return won / couples


def test_weights_draw_whole_instructions() -> None:
    weights = weights_of(INSTRUCTIONS, resamples=50, seed=3)
    assert weights.shape == (50, 8)
    for name in "abcd":
        at = [i for i, x in enumerate(INSTRUCTIONS) if x == name]
        assert (weights[:, at] == weights[:, at[:1]]).all()
    assert (weights[:, [0, 2, 4, 7]].sum(axis=1) == 4).all()  # as many instructions as there are
    assert np.array_equal(weights, np.rint(weights))
    assert not np.array_equal(weights, weights_of(INSTRUCTIONS, resamples=50, seed=4))


def test_auc_of_all_and_of_every_resample() -> None:
    weights = weights_of(INSTRUCTIONS, resamples=40, seed=0)
    found = auc([SCORES], POSITIVE, weights)
    assert found.value == pytest.approx(slow_auc(SCORES.tolist(), POSITIVE.tolist()))
    for draw, times in zip(found.draws, weights.astype(int), strict=True):
        again = [i for i, n in enumerate(times) for _ in range(n)]  # the resample written out
        labels = POSITIVE[again].tolist()
        if all(labels) or not any(labels):
            assert np.isnan(draw)
        else:
            assert draw == pytest.approx(slow_auc(SCORES[again].tolist(), labels))


@given(st.lists(st.integers(-3, 3), min_size=4, max_size=12))
def test_auc_of_reversed_scores(values: list[int]) -> None:
    positive = np.arange(len(values)) % 2 == 0
    scores, weights = np.array(values, dtype=np.float64), np.ones((1, len(values)))
    turned = auc([-scores], positive, weights).value
    assert auc([scores], positive, weights).value == pytest.approx(1 - turned)
    assert auc([scores, -scores], positive, weights).value == pytest.approx(0.5)  # the mean over draws


def test_auc_of_perfect_scores_and_of_one_class() -> None:
    weights = weights_of(INSTRUCTIONS, resamples=200, seed=0)
    estimate = auc([np.where(POSITIVE, 1.0, 0.0)], POSITIVE, weights).estimate()
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)
    with pytest.raises(DataError, match="both poles"):
        auc([SCORES], np.ones(8, dtype=bool), weights)


def test_mean_is_that_of_the_bootstrap_where_instructions_are_single() -> None:
    values = np.random.default_rng(0).normal(size=30)
    names = [f"{n:02d}" for n in range(30)]
    ours = mean(values, weights_of(names, resamples=500, seed=5)).estimate()
    theirs = interval(values, resamples=500, seed=5)
    assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high))


def test_separation_in_every_resample() -> None:
    weights = weights_of(INSTRUCTIONS, resamples=30, seed=1)
    found = separation(SCORES, POSITIVE, weights)
    assert found.value == pytest.approx(SCORES[POSITIVE].mean() - SCORES[~POSITIVE].mean())
    for draw, times in zip(found.draws, weights.astype(int), strict=True):
        again = np.repeat(np.arange(8), times)
        own, rival = (SCORES[again][POSITIVE[again] == side] for side in (True, False))
        if len(own) and len(rival):
            assert draw == pytest.approx(own.mean() - rival.mean())


def test_differences_ratios_and_the_best_control() -> None:
    first, second = Resampled(0.8, np.array([0.7, 0.9, np.nan])), Resampled(0.5, np.array([0.5, 0.6, 0.4]))
    gap = first.minus(second)
    assert gap.value == pytest.approx(0.3)
    assert (gap.low, gap.high) == pytest.approx(tuple(np.quantile([0.2, 0.3], [0.025, 0.975])))
    assert gap.p == pytest.approx(2 / 3)  # no draw at or below zero, of two
    ratio = first.over(second)
    assert ratio.value == pytest.approx(1.6)
    assert (ratio.low, ratio.high) == pytest.approx(tuple(np.quantile([1.4, 1.5], [0.025, 0.975])))
    third = Resampled(0.6, np.array([0.4, 0.7, 0.1]))
    chosen = best([second, third])
    assert chosen.value == 0.6
    assert chosen.draws.tolist() == [0.5, 0.7, 0.4]


def test_length_matching_by_hand() -> None:
    #          p⁺  p⁻   p⁺  p⁻  p⁺  p⁻
    lengths = [10, 100, 50, 52, 99, 300]
    positive = np.arange(6) % 2 == 0
    assert length_matched(lengths, positive) == [1, 2, 3, 4]
    assert length_matched([10, 100], positive[:2]) == []
    assert length_matched([7, 7, 7, 7], positive[:4]) == [0, 1, 2, 3]


@given(st.lists(st.integers(1, 30), min_size=2, max_size=9))
def test_length_matching_finds_as_many_as_any_matching(lengths: list[int]) -> None:
    positive = np.arange(len(lengths)) % 2 == 0
    kept = length_matched(lengths, positive)
    own, rival = ([i for i in range(len(lengths)) if positive[i] == side] for side in (True, False))

    def fits(i: int, j: int) -> bool:
        return abs(lengths[i] - lengths[j]) <= 0.1 * max(lengths[i], lengths[j])

    def most(left: list[int], free: list[int]) -> int:
        """Every choice of partners."""
        if not left:
            return 0
        skip = most(left[1:], free)
        return max([skip, *(1 + most(left[1:], [k for k in free if k != j]) for j in free if fits(left[0], j))])

    assert len(kept) == 2 * most(own, rival)
    assert positive[kept].sum() * 2 == len(kept)
