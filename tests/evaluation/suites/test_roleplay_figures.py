"""Figures of role play against slow oracles and planted gains."""

from __future__ import annotations

import numpy as np
import pytest

from personae.evaluation.bootstrap import RESAMPLES, Difference, Estimate, paired_bootstrap
from personae.evaluation.suites.roleplay_figures import (
    Reading,
    figures_of,
    largest,
    own_minus_others,
    shuffled_accuracy,
    tables_of,
)
from personae.evaluation.suites.roleplay_texts import Plan
from personae.personas import Sample

ROLES = ("Ann", "Bob", "Cat")


def make_gains(
    strength: float, numbers: tuple[int, ...] = (12, 15, 10), seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Noise of size 0.1, `strength` more under the own mask, and a mask that is kinder to all texts (column 2)."""
    owner = np.repeat(np.arange(len(numbers)), numbers)
    gains = np.random.default_rng(0).normal(0, 0.1, (len(owner), len(numbers)))
    gains[np.arange(len(owner)), owner] += strength
    gains[:, 2] += 0.05
    return gains, owner


def make_plan(numbers: tuple[int, ...], words: bool) -> dict[str, Plan]:
    """Characters whose answers either are told by one word of their own, or are all the same."""
    own = {r: Sample("What now?", f"Well, {r.lower()}word says so." if words else "Well, who can say?") for r in ROLES}
    rival = (Sample("What now?", "No."),)
    return {
        role: Plan((own[role],) * 3, rival * 3, (own[role],), rival, (own[role],) * n)
        for role, n in zip(ROLES, numbers, strict=True)
    }


def make_reading(gains: np.ndarray, owner: np.ndarray) -> Reading:
    free = {role: (["base"] * 2, ["masked"] * 2) for role in ROLES}
    return Reading(gains, owner, free, [10, 20, 30], [0.01, 0.03, 0.02])


def test_own_minus_others_equals_loops_over_answers_and_resamples() -> None:
    gains, owner = make_gains(0.3)
    each, total = own_minus_others(gains, owner, seed=4)

    def gap(rows: list[int], c: int) -> float:
        own = [gains[i, c] for i in rows if owner[i] == c]
        others = [gains[i, c] for i in rows if owner[i] != c]
        return sum(own) / len(own) - sum(others) / len(others)

    everybody = list(range(len(owner)))
    assert [d.value for d in each] == pytest.approx([gap(everybody, c) for c in range(3)])
    assert total.value == pytest.approx(np.mean([d.value for d in each]))
    # the resamples, drawn the long way: how often each answer of each character is taken
    counts = [
        np.rint(paired_bootstrap(np.eye(n), seed=4 * 1009 + a) * n).astype(int)
        for a, n in enumerate((12, 15, 10))
    ]  # fmt: skip
    starts = (0, 12, 27)
    drawn = np.array(
        [
            [gap([starts[a] + i for a in range(3) for i, k in enumerate(counts[a][r]) for _ in range(k)], c)
             for c in range(3)]
            for r in range(RESAMPLES)
        ]
    )  # fmt: skip
    assert (each[1].low, each[1].high) == pytest.approx(tuple(np.quantile(drawn[:, 1], [0.025, 0.975])))
    assert (total.low, total.high) == pytest.approx(tuple(np.quantile(drawn.mean(1), [0.025, 0.975])))


def test_characters_of_equal_size_are_resampled_apart() -> None:
    """Were they drawn in step, equal noise in both would cancel in the difference and leave no interval."""
    noise = np.random.default_rng(1).normal(0, 1, 20)
    gains = np.stack([np.concatenate([noise, noise])] * 2, axis=1)
    each, _ = own_minus_others(gains, np.repeat([0, 1], 20))
    assert each[0].value == pytest.approx(0, abs=1e-12)
    assert each[0].high - each[0].low > 0.5


def test_planted_gains_are_found_and_noise_is_not() -> None:
    gains, owner = make_gains(0.4)
    each, total = own_minus_others(gains, owner)
    assert all(d.low > 0.25 and d.high < 0.55 and d.p < 0.01 for d in (*each, total))
    gains, owner = make_gains(0.0)
    _, total = own_minus_others(gains, owner)
    assert total.low < 0 < total.high
    # a mask that lifts every text alike is not a persona: nothing is left of it in the difference
    lifted, _ = own_minus_others(gains + np.array([0.0, 5.0, 0.0]), owner)
    same, _ = own_minus_others(gains, owner)
    assert lifted[1].value == pytest.approx(same[1].value)


def test_largest_shares_ties() -> None:
    found = largest(np.array([[1.0, 2.0, 0.0], [3.0, 3.0, 1.0], [0.0, 0.0, 0.0]]))
    assert np.allclose(found, [[0, 1, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])


def test_shuffled_accuracy_against_its_exact_mean() -> None:
    gains, owner = make_gains(0.3)
    shares = largest(gains)
    found, p = shuffled_accuracy(shares, owner, seed=2)
    # a label meets an answer as often as any other: Σ_c share of labels c · share of answers won by c
    exact = float((shares.mean(0) * np.bincount(owner) / len(owner)).sum())
    assert found.value == pytest.approx(exact, abs=0.01)
    assert found.low < exact < found.high < shares[np.arange(len(owner)), owner].mean()
    assert p == pytest.approx(1 / (1 + RESAMPLES))
    noise, owner = make_gains(0.0)
    assert shuffled_accuracy(largest(noise), owner)[1] > 0.05


def test_one_kind_mask_wins_all_and_centring_takes_it_out() -> None:
    gains, owner = make_gains(0.4)
    gains[:, 0] += 3
    plan = make_plan((12, 15, 10), words=False)
    figures = figures_of(plan, make_reading(gains, owner), None, seed=0)
    accuracy, centred = figures["accuracy"], figures["accuracy_centred"]
    assert isinstance(accuracy, Estimate)
    assert isinstance(centred, Estimate)
    assert accuracy.value == pytest.approx(12 / 37)
    assert centred.value > 0.9
    assert figures["capability_loss"] == 0.03
    assert figures["accuracy_p"] == 1.0  # the same for any labels
    tables = tables_of("set", plan, make_reading(gains, owner), None, figures, seed=0)
    assert any("the mask of Ann has the largest gain on 100%" in w for w in tables[0].warnings)
    assert tables[2].rows[1][2] == pytest.approx(float(gains[owner == 1, 1].mean()))  # Bob's answers, Bob's mask


def test_words_that_tell_everything_are_warned_of() -> None:
    gains, owner = make_gains(0.4)
    told, untold = (make_plan((12, 15, 10), words=w) for w in (True, False))
    by_words = figures_of(told, make_reading(gains, owner), None, seed=0)["accuracy_words"]
    assert isinstance(by_words, Estimate)
    assert by_words.value == 1.0
    nothing = figures_of(untold, make_reading(gains, owner), None, seed=0)["accuracy_words"]
    assert isinstance(nothing, Estimate)
    assert nothing.value == pytest.approx(12 / 37)  # every answer is given to the first
    reading = make_reading(gains, owner)
    assert any("words alone tell 100%" in w for w in tables_of("s", told, reading, None, {}, seed=0)[0].warnings)
    assert not any("words" in w for w in tables_of("s", untold, reading, None, {}, seed=0)[0].warnings)


def test_few_answers_and_empty_masks_are_warned_of() -> None:
    gains, owner = make_gains(0.4, (12, 15, 3))
    reading = Reading(gains, owner, {}, [10, 0, 30], [0.0, 0.0, 0.0])
    warnings = tables_of("set", make_plan((12, 15, 3), words=False), reading, None, {}, seed=0)[0].warnings
    assert "fewer than 10 test answers: Cat" in warnings
    assert "the mask drops nothing: Bob" in warnings


def test_a_loss_on_text_that_chose_the_masks_is_warned_of() -> None:
    gains, owner = make_gains(0.4, (12, 15, 13))
    plan = make_plan((12, 15, 13), words=False)
    told = {
        text: [w for w in tables_of("set", plan, reading, None, {}, seed=0)[0].warnings if "chosen on it" in w]
        for text in ("sampled (held out)", "sampled (held out; chat text also read by the budget search)")
        for reading in [Reading(gains, owner, {}, [10, 10, 30], [0.0, 0.0, 0.0], text)]
    }
    assert [len(found) for found in told.values()] == [0, 1]


def test_similarity_is_paired_by_question() -> None:
    gains, owner = make_gains(0.4)
    base = {role: np.array([0.1, 0.5, 0.9]) * (n + 1) for n, role in enumerate(ROLES)}
    similarity = {role: (values, values + 0.2) for role, values in base.items()}
    plan = make_plan((12, 15, 10), words=False)
    figures = figures_of(plan, make_reading(gains, owner), similarity, seed=0)
    change = figures["similarity_change"]
    assert isinstance(change, Difference)
    assert (change.value, change.low, change.high) == pytest.approx((0.2, 0.2, 0.2))  # though the answers differ much
    before = figures["similarity_base"]
    assert isinstance(before, Estimate)
    assert before.value == pytest.approx(1.0)
    assert before.high - before.low > 0.3
    rows = tables_of("set", plan, make_reading(gains, owner), similarity, figures, seed=0)[1].rows
    assert isinstance(rows[0][7], Difference)
    assert rows[0][7].value == pytest.approx(0.2)
