"""Exact counts, ties, scopes, N:M and nesting, against oracles that sort."""

from __future__ import annotations

import math
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from personae.discovery import drop_highest, drop_lowest, drop_n_of_m, selection
from personae.discovery.selection import Dropped, count, rank
from personae.errors import OptionError

# Few distinct values, so that ties are the rule.
TIED = st.integers(-3, 3).map(float)


@st.composite
def scored(draw: st.DrawFn, multiple: int = 1) -> dict[str, torch.Tensor]:
    """Scores of one to three targets."""
    found = {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        shape = (draw(st.integers(1, 4)), draw(st.integers(1, 6)) * multiple)
        found[name] = torch.from_numpy(draw(arrays.arrays(np.float32, shape, elements=TIED)))
    return found


def ties_of(scores: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: (torch.arange(s.numel()).reshape(s.shape) * 7 % 3).float() for n, s in scores.items()}


def total(dropped: Dropped) -> int:
    return sum(int(d.sum()) for d in dropped.values())


def lowest(values: list[tuple[float, ...]], number: int) -> set[int]:
    """Positions of the `number` smallest, by value, then tie-breaker, then position."""
    return set(sorted(range(len(values)), key=lambda i: (*values[i], i))[:number])


@given(st.floats(0.01, 0.99), st.integers(1, 10_000))
def test_count_rounds_halves_up(share: float, size: int) -> None:
    assert abs(count(share, size) - Fraction(share) * size) <= Fraction(1, 2) + Fraction(1, 10**9)
    assert [count(0.5, n) for n in (1, 2, 3, 5)] == [1, 1, 2, 3]


@given(scored(), st.floats(0.01, 0.99), st.sampled_from(["row", "target", "global"]), st.booleans())
def test_drop_lowest_equals_sorting(scores: dict[str, torch.Tensor], share: float, scope: str, broken: bool) -> None:
    ties = ties_of(scores) if broken else None
    dropped = drop_lowest(scores, share, scope, ties)

    def keys(name: str, row: int | None = None) -> list[tuple[float, ...]]:
        score = (scores[name] if row is None else scores[name][row]).flatten().tolist()
        if ties is None:
            return [(v,) for v in score]
        tie = (ties[name] if row is None else ties[name][row]).flatten().tolist()
        return list(zip(score, tie, strict=True))

    def found(mask: torch.Tensor) -> set[int]:
        return set(mask.flatten().nonzero().flatten().tolist())

    if scope == "global":
        values = [k for n in scores for k in keys(n)]
        assert found(torch.cat([dropped[n].flatten() for n in scores])) == lowest(values, count(share, len(values)))
        return
    for name, score in scores.items():
        if scope == "target":
            assert found(dropped[name]) == lowest(keys(name), count(share, score.numel()))
            continue
        rows, columns = score.shape
        each = math.floor(share * columns + 1e-9)
        following: list[tuple[float, ...]] = []  # (score, tie-breaker, row): what each row would drop next
        for row in range(rows):
            ordered = sorted(range(columns), key=lambda i, row=row: (*keys(name, row)[i], i))
            following.append((*keys(name, row)[ordered[each]], row) if each < columns else (math.inf, row))
        extra = {int(key[-1]) for key in sorted(following)[: count(share, score.numel()) - each * rows]}
        for row in range(rows):
            assert found(dropped[name][row]) == lowest(keys(name, row), each + (row in extra))


@given(scored(), st.floats(0.01, 0.99), st.sampled_from(["row", "target", "global"]))
def test_counts_are_exact(scores: dict[str, torch.Tensor], share: float, scope: str) -> None:
    dropped = drop_lowest(scores, share, scope)
    if scope == "global":
        assert total(dropped) == count(share, sum(s.numel() for s in scores.values()))
    else:
        assert [int(d.sum()) for d in dropped.values()] == [count(share, s.numel()) for s in scores.values()]
    if scope == "row":  # as even as whole numbers allow
        assert all(d.sum(1).max() - d.sum(1).min() <= 1 for d in dropped.values())


@given(scored(multiple=4), st.sampled_from([(2, 4), (1, 4), (3, 4), (1, 2)]), st.booleans())
def test_n_of_m_keeps_the_highest_of_each_group(
    scores: dict[str, torch.Tensor], n_m: tuple[int, int], broken: bool
) -> None:
    keep, group = n_m
    ties = ties_of(scores) if broken else None
    dropped = drop_n_of_m(scores, keep, group, ties)
    for name, score in scores.items():
        for row in range(len(score)):
            for begin in range(0, score.shape[1], group):
                part = slice(begin, begin + group)
                tie = ties[name][row, part].tolist() if ties else [0.0] * group
                values = list(zip(score[row, part].tolist(), tie, strict=True))
                assert set(dropped[name][row, part].nonzero().flatten().tolist()) == lowest(values, group - keep)


@given(scored(), st.data())
def test_drop_highest_equals_sorting(gains: dict[str, torch.Tensor], data: st.DataObject) -> None:
    candidates = {n: torch.from_numpy(data.draw(arrays.arrays(np.bool_, tuple(g.shape)))) for n, g in gains.items()}
    number = data.draw(st.integers(-1, sum(g.numel() for g in gains.values()) + 1))
    flat = torch.cat([g.flatten() for g in gains.values()]).tolist()
    free = torch.cat([c.flatten() for c in candidates.values()]).tolist()
    allowed = [i for i, (g, c) in enumerate(zip(flat, free, strict=True)) if c and g > 0]
    expected = set(sorted(allowed, key=lambda i: (-flat[i], i))[: max(number, 0)])
    dropped = drop_highest(gains, candidates, number)
    assert set(torch.cat([dropped[n].flatten() for n in gains]).nonzero().flatten().tolist()) == expected
    assert all(dropped[n].shape == gains[n].shape for n in gains)


@given(scored(), st.lists(st.floats(0.01, 0.99), min_size=2, max_size=2), st.sampled_from(["row", "target", "global"]))
def test_a_larger_share_contains_a_smaller_one(
    scores: dict[str, torch.Tensor], shares: list[float], scope: str
) -> None:
    small, large = (drop_lowest(scores, s, scope, ties_of(scores)) for s in sorted(shares))
    assert not any((small[n] & ~large[n]).any() for n in scores)


@given(scored(), st.lists(st.integers(0, 70), min_size=2, max_size=2))
def test_a_larger_number_contains_a_smaller_one(gains: dict[str, torch.Tensor], numbers: list[int]) -> None:
    everything = {n: torch.ones(g.shape, dtype=torch.bool) for n, g in gains.items()}
    small, large = (drop_highest(gains, everything, n) for n in sorted(numbers))
    assert not any((small[n] & ~large[n]).any() for n in gains)
    positive = sum(int((g > 0).sum()) for g in gains.values())
    assert [total(small), total(large)] == [min(n, positive) for n in sorted(numbers)]


@given(scored(), st.lists(st.integers(0, 70), min_size=1, max_size=4), st.integers(1, 9))
def test_a_short_head_drops_what_the_whole_order_drops(
    gains: dict[str, torch.Tensor], numbers: list[int], head: int
) -> None:
    everything = {n: torch.ones(g.shape, dtype=torch.bool) for n, g in gains.items()}
    flat = torch.cat([g.flatten() for g in gains.values()]).tolist()
    best = sorted((i for i, g in enumerate(flat) if g > 0), key=lambda i: (-flat[i], i))
    with mock.patch.object(selection, "_HEAD", head):
        ranking = rank(gains, everything)
        assert len(ranking) == len(best)
        for number in numbers:
            dropped = torch.cat([d.flatten() for d in ranking.drop(number).values()])
            assert set(dropped.nonzero().flatten().tolist()) == set(best[:number])


def test_what_is_no_number_is_not_dropped() -> None:
    gains = {"a": torch.tensor([[math.nan, 1.0, -1.0, 2.0]])}
    everything = {"a": torch.ones(1, 4, dtype=torch.bool)}
    assert drop_highest(gains, everything, 4)["a"].tolist() == [[False, True, False, True]]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan])
def test_shares_outside_the_open_interval(share: float) -> None:
    with pytest.raises(OptionError, match=r"--sparsity is .* between 0 and 1"):
        drop_lowest({"a": torch.zeros(2, 2)}, share)


def test_bad_scopes_and_groups() -> None:
    with pytest.raises(OptionError, match="'column': choose row, target, global"):
        drop_lowest({"a": torch.zeros(2, 2)}, 0.5, "column")
    with pytest.raises(OptionError, match="4:4"):
        drop_n_of_m({"a": torch.zeros(2, 8)}, 4, 4)
    with pytest.raises(OptionError, match=r"a\.weight has 6 inputs, no multiple of 4"):
        drop_n_of_m({"a.weight": torch.zeros(2, 6)}, 2, 4)


def test_what_rows_have_left_over_goes_by_the_tie_breaker_and_not_by_index() -> None:
    scores = {"w": torch.zeros(4, 10)}  # all scores tie, as with relu
    ties = {"w": torch.arange(40.0).reshape(4, 10).flip(0)}
    dropped = drop_lowest(scores, 0.05, "row", ties)["w"]  # two of forty weights, none a row by the floor
    assert dropped.nonzero().tolist() == [[2, 0], [3, 0]]
