"""Claims, Holm and the form of answers against sums written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from personae.evaluation.bootstrap import Difference, Estimate, paired_bootstrap
from personae.evaluation.suites.generation_figures import (
    CLAIMS,
    EXAMPLE_LENGTH,
    Claim,
    Judged,
    Reading,
    claims_of,
    cut,
    figures_of,
    tables_of,
)

CONDITIONS = ("base", "mask_positive", "mask_negative", "random_positive", "random_negative")
HEARD, UNHEARD = Estimate(0.8, 0.7, 0.9), Estimate(0.6, 0.5, 0.7)


def reading_of(answers: dict[str, Any] | None = None, test: int = 12, neutral: int = 12) -> Reading:
    number = test + neutral
    same = {name: [[[5, 6, 7]]] * number for name in CONDITIONS}
    return Reading(
        [f"question {n}" for n in range(number)], np.arange(number) >= test, answers or same,
        lambda tokens: " ".join(map(str, tokens)), ("loud", "quiet"),
    )  # fmt: skip


def judged(name: str = "ratio", auc: Estimate = HEARD, number: int = 24, seed: int = 0) -> Judged:
    chance = np.random.default_rng(seed)
    shift = {"mask_positive": 1.0, "mask_negative": -0.4}
    return Judged(name, auc, (12, 12), {c: chance.normal(shift.get(c, 0.0), 0.6, number) for c in CONDITIONS})


def slow_claim(judge: Judged, of: Any, first: str, second: str) -> tuple[float, float, float, float]:
    gap = (judge.scores[first] - judge.scores[second])[of]
    drawn = paired_bootstrap(gap)
    below, above = int((drawn <= 0).sum()), int((drawn >= 0).sum())
    p = min(1.0, 2 * (1 + min(below, above)) / (1 + len(drawn)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(gap.mean()), float(low), float(high), p


def test_claims_and_holm_by_hand() -> None:
    reading, judges = reading_of(), [judged(), judged("similarity", seed=1)]
    found = claims_of(reading, judges, seed=0)
    assert [(c.judge, c.kind, c.name) for c in found] == [
        (judge, kind, name) for judge in ("ratio", "similarity") for kind in ("test", "neutral") for name in CLAIMS
    ]
    by_name = {judge.name: judge for judge in judges}
    for claim in found:
        slow = slow_claim(by_name[claim.judge], reading.sets[claim.kind], *CLAIMS[claim.name])
        value = claim.found
        assert (value.value, value.low, value.high, value.p) == pytest.approx(slow)
    order = sorted(range(len(found)), key=lambda i: found[i].found.p)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(found) - rank) * found[index].found.p))
        assert found[index].p_holm == pytest.approx(running)


def test_claims_are_turned_so_that_larger_is_better() -> None:
    """A mask that does what it should wins every claim; the same masks in each other's place lose every one."""
    flat = {c: np.zeros(24) for c in CONDITIONS}
    good = Judged("ratio", HEARD, (1, 1), {**flat, "mask_positive": np.ones(24), "mask_negative": -np.ones(24)})
    bad = Judged("ratio", HEARD, (1, 1), {**flat, "mask_positive": -np.ones(24), "mask_negative": np.ones(24)})
    for judge, verdict, sign in ((good, "yes", 1), (bad, "the other way", -1)):
        found = claims_of(reading_of(), [judge], seed=0)
        assert {c.verdict for c in found} == {verdict}
        assert [c.found.value for c in found if c.kind == "test"] == [2 * sign, sign, sign, sign, sign]


def test_without_a_difference_nothing_is_shown() -> None:
    same = Judged("ratio", HEARD, (1, 1), {c: np.zeros(24) for c in CONDITIONS})
    found = claims_of(reading_of(), [same], seed=0)
    assert {(c.p_holm, c.verdict) for c in found} == {(1.0, "not shown")}


@pytest.mark.parametrize(("auc", "heard"), [(HEARD, True), (UNHEARD, False), (Estimate(0.4, 0.3, 0.45), False)])
def test_only_a_judge_that_hears_claims(auc: Estimate, heard: bool) -> None:
    judge = judged(auc=auc)
    assert judge.heard is heard
    figures, claims = figures_of(reading_of(), [judge], seed=0)
    assert bool(claims) is heard
    assert ("ratio.test.mask_separation.p_holm" in figures) is heard
    assert "ratio.test.mask_positive" in figures  # levels are shown all the same
    tables = tables_of(reading_of(), [judge], claims, ("beware",), seed=0)
    warnings = [w for t in tables for w in t.warnings]
    assert ("beware" in warnings) is True
    assert any("ratio does not tell" in w for w in warnings) is not heard
    assert not Judged("ratio", Estimate(0.9, float("nan"), float("nan")), (1, 1), {}).heard


def test_levels_are_of_their_own_questions() -> None:
    reading, judge = reading_of(), judged()
    figures: Any = figures_of(reading, [judge], seed=0)[0]
    for name in CONDITIONS:
        assert figures[f"ratio.test.{name}"].value == pytest.approx(judge.scores[name][:12].mean())
        assert figures[f"ratio.neutral.{name}"].value == pytest.approx(judge.scores[name][12:].mean())
    gap = judge.scores["random_positive"][:12].mean() - judge.scores["random_negative"][:12].mean()
    assert figures["ratio.test.random_separation"].value == pytest.approx(gap)
    assert "ratio.test.prompt_separation" not in figures


def test_the_form_of_answers_by_hand() -> None:
    answers = {
        "base": [[[1, 2, 3]], [[4, 5, 6]]],
        "mask_positive": [[[1, 2, 3], []], [[7] * 7, [4, 5, 6]]],
        "mask_negative": [[[9]], [[4, 5, 6]]],
        "random_positive": [[[1, 2, 3]], [[4, 5, 6]]],
        "random_negative": [[[]], [[]]],
    }
    form = reading_of(answers, 1, 1).form()
    assert form["tokens"]["mask_positive"].tolist() == [1.5, 5.0]
    assert form["repetition"]["mask_positive"].tolist() == [0.0, pytest.approx(3 / 8)]  # 3/4 of one of two answers
    assert form["empty"]["mask_positive"].tolist() == [0.5, 0.0]
    assert form["same_as_base"]["mask_positive"].tolist() == [0.5, 0.5]
    assert form["same_as_base"]["mask_negative"].tolist() == [0.0, 1.0]
    assert form["empty"]["random_negative"].tolist() == [1.0, 1.0]


def test_examples_are_cut() -> None:
    assert cut("a\n b\t\tc ") == "a b c"
    assert cut("x" * EXAMPLE_LENGTH) == "x" * EXAMPLE_LENGTH
    longer = cut("x" * (EXAMPLE_LENGTH + 1))
    assert len(longer) == EXAMPLE_LENGTH
    assert longer.endswith("x…")


def test_examples_are_the_same_questions_for_all() -> None:
    reading = reading_of()
    examples = tables_of(reading, [], [], (), seed=0)[-1]
    assert [row[0] for row in examples.rows[:: len(CONDITIONS)]] == ["question 0", "question 1", "question 12"]
    assert [row[1] for row in examples.rows[: len(CONDITIONS)]] == list(CONDITIONS)
    assert {row[2] for row in examples.rows} == {"5 6 7"}


def test_a_verdict_needs_holm() -> None:
    assert Claim("ratio", "test", "x", Difference(1.0, 0.5, 1.5, 0.01), 0.05).verdict == "not shown"
    assert Claim("ratio", "test", "x", Difference(1.0, 0.5, 1.5, 0.01), 0.049).verdict == "yes"
