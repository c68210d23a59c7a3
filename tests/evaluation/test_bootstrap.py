from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from personae.errors import DataError, OptionError
from personae.evaluation import difference, holm, interval, margin_over_best_control, paired_bootstrap
from personae.evaluation.bootstrap import least_p, too_few, two_sided_p

halves = st.sampled_from([0.0, 0.5, 1.0])
probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_constant_values_have_no_spread() -> None:
    found = interval(np.full(17, 0.5))
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_the_spread_is_that_of_a_mean() -> None:
    values = np.array([0.0, 1.0] * 100)
    means = paired_bootstrap(values, resamples=4000)
    assert means.mean() == pytest.approx(0.5, abs=0.003)
    assert means.std() == pytest.approx(0.5 / math.sqrt(200), rel=0.05)
    found = interval(values, resamples=4000)
    assert found.low == pytest.approx(0.5 - 1.96 * 0.0354, abs=0.01)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.0354, abs=0.01)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        found = interval((generator.random(120) < 0.7).astype(float), resamples=400, seed=trial)
        covered += found.low <= 0.7 <= found.high
    assert 0.90 <= covered / 300 <= 0.985


def test_p_is_small_as_often_as_it_should_be_when_nothing_is_there() -> None:
    generator = np.random.default_rng(1)
    rejected = sum(
        difference(generator.random(100), generator.random(100), resamples=400, seed=trial).p < 0.05
        for trial in range(300)
    )
    assert rejected / 300 <= 0.09


def test_pairing_makes_a_steady_gain_certain() -> None:
    noise = np.random.default_rng(2).normal(0, 10, 50)
    found = difference(noise + 0.25, noise)
    assert found.value == pytest.approx(0.25)
    assert found.low == pytest.approx(0.25)
    assert found.high == pytest.approx(0.25)
    assert found.p == pytest.approx(2 / 2001)
    assert difference(noise, noise + 0.25).p == pytest.approx(2 / 2001)  # two-sided


def test_an_exact_tie_is_no_difference() -> None:
    outcomes = np.array([1.0, 0.0, 0.5, 1.0, 0.0, 0.5, 1.0])
    found = difference(outcomes, outcomes.copy())
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_few_questions_allow_no_small_p() -> None:
    """Three questions that all gain: a sign test gives 2·(1/2)³, and every resample gains."""
    for questions, p in ((1, 1.0), (3, 0.25), (5, 0.0625), (30, 2 / 2001)):
        ones, none = np.ones(questions), np.zeros(questions)
        assert difference(ones, none).p == pytest.approx(p)
        assert margin_over_best_control(ones, none[:, None]).p == pytest.approx(p)


def test_two_sided_p_counts_zeros_on_both_sides() -> None:
    assert two_sided_p(np.array([1.0, 2.0, 3.0, -1.0])) == pytest.approx(2 * 2 / 5)
    assert two_sided_p(np.array([0.0, 0.0])) == 1.0
    fifths = np.array([0.1 + 0.2 - 0.3, 0.3 - 0.1 - 0.2])  # 5.6e-17 and -2.8e-17
    assert fifths.any()
    assert two_sided_p(fifths) == 1.0


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9), elements=halves))
def test_over_the_best_control_equals_a_slow_loop(values: np.ndarray) -> None:
    persona, controls = values[:, 0], values[:, 1:]
    found = margin_over_best_control(persona, controls, resamples=200, seed=3)
    counts = np.random.default_rng(3).multinomial(len(values), [1 / len(values)] * len(values), size=200)
    slow = []
    for row in counts:
        drawn = np.repeat(np.arange(len(values)), row)
        slow.append(persona[drawn].mean() - max(controls[drawn, k].mean() for k in range(controls.shape[1])))
    assert found.value == pytest.approx(persona.mean() - controls.mean(axis=0).max())
    assert found.low == pytest.approx(np.quantile(slow, 0.025), abs=1e-9)
    assert found.high == pytest.approx(np.quantile(slow, 0.975), abs=1e-9)


def test_choosing_the_control_anew_costs_the_persona() -> None:
    generator = np.random.default_rng(4)
    persona = (generator.random(100) < 0.6).astype(float)
    rivals = (generator.random((100, 6)) < 0.5).astype(float)
    best = rivals[:, rivals.mean(axis=0).argmax()]
    chosen_once, chosen_anew = difference(persona, best), margin_over_best_control(persona, rivals)
    assert chosen_anew.value == pytest.approx(chosen_once.value)
    assert chosen_anew.low <= chosen_once.low + 1e-9
    assert chosen_anew.high < chosen_once.high
    assert chosen_anew.p >= chosen_once.p


def test_one_control_is_a_plain_difference() -> None:
    generator = np.random.default_rng(5)
    persona, control = generator.random(30), generator.random(30)
    plain, over = difference(persona, control), margin_over_best_control(persona, control[:, None])
    assert (plain.value, plain.low, plain.high) == pytest.approx((over.value, over.low, over.high))


def test_seeds_decide_the_resamples() -> None:
    values = np.random.default_rng(6).random(40)
    assert paired_bootstrap(values, seed=1).tolist() == paired_bootstrap(values, seed=1).tolist()
    assert paired_bootstrap(values, seed=1).tolist() != paired_bootstrap(values, seed=2).tolist()


def test_nothing_to_resample_is_refused() -> None:
    with pytest.raises(DataError, match="no questions"):
        paired_bootstrap(np.array([]))
    with pytest.raises(OptionError, match="--resamples is 0"):
        paired_bootstrap(np.ones(3), resamples=0)


def test_holm_of_a_known_case() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(probabilities)
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    for raw, new in zip(p, adjusted, strict=True):
        assert raw <= new <= min(1.0, len(p) * raw) or new == pytest.approx(min(1.0, max(raw, new)))
        assert new <= 1.0
    by_raw = [new for _, new in sorted(zip(p, adjusted, strict=True), key=lambda both: both[0])]
    assert by_raw == sorted(by_raw)


@given(probabilities, st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_rule_rejects(p: list[float], level: float) -> None:
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[index] * (len(p) - rank) > level:
            break
        rejected.add(index)
    assert {i for i, value in enumerate(holm(p)) if value <= level} == rejected


@pytest.mark.parametrize(("claims", "resamples"), [(60, 2000), (60, 2400), (50, 2000), (51, 2000), (1, 39), (1, 40)])
def test_too_few_resamples_are_those_that_give_no_star_to_any_effect(claims: int, resamples: int) -> None:
    """Against p after Holm of effects as clear as can be."""
    best = min(holm([two_sided_p(np.ones(resamples))] * claims))
    assert least_p(claims, resamples) == pytest.approx(best)
    said = too_few(claims, resamples, "parts")
    assert (said is None) == (best < 0.05)
    assert too_few(claims, 40 * claims, "parts") is None  # what the sentence advises
    assert said is None or f"--resamples {40 * claims} or more" in said
