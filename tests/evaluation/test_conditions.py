from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from personae.evaluation import ItemScores, Loss, holm, interval, margin_over_best_control
from personae.evaluation.conditions import Condition, make_row, with_claims

Scores = Callable[..., ItemScores]
TIED = [True, True, False, False]


def row_of(condition: Condition, base: ItemScores):  # type: ignore[no-untyped-def]
    return make_row(condition, base, resamples=300, seed=0)


def test_figures_of_a_planted_condition(scores_of: Scores) -> None:
    base = scores_of([0.0, 0.0, 1.0, -1.0], TIED)
    first, second = scores_of([2.0, -1.0, 1.0, 3.0], TIED), scores_of([-1.0, 0.0, -2.0, 1.0], TIED)
    row = row_of(Condition("m", "method", [(first, second)], (0.02, 0.04), Loss(0.01, 0.02, 0.05, 0.03), 7.0), base)
    assert row.acc == interval(np.array([1.0, 0.0, 1.0, 1.0]), resamples=300)
    assert row.acc_opposite.value == pytest.approx((0 + 0.5 + 0 + 1) / 4)
    assert row.acc_tied is not None
    assert row.acc_tied_opposite is not None
    assert row.tied_separation is not None
    assert (row.acc_tied.value, row.acc_tied_opposite.value, row.tied_separation.value) == (0.5, 0.25, 0.25)
    assert row.margin.value == pytest.approx(1.25)
    assert row.margin_opposite.value == pytest.approx(-0.5)
    # column 0 is difference - 3 under p+'s side; column 1 is -3 everywhere, so p-'s own answers do not move
    assert row.own_answers.value == pytest.approx((5 - 0) / 4)
    assert row.own_answers_opposite.value == 0
    assert (row.sparsity, row.sparsity_positive, row.sparsity_negative) == (pytest.approx(0.03), 0.02, 0.04)
    assert row.capability_loss == 0.05
    assert row.readings[0].difference == (2.0, -1.0, 1.0, 3.0)
    assert row.readings[0].log_p_opposite[2] == (-5.0, -3.0)
    assert (row.readings[0].acc, row.readings[0].acc_opposite) == (0.75, 0.375)
    assert row.readings[0].seed is None


def test_seeds_are_averaged_and_kept(scores_of: Scores) -> None:
    base = scores_of([0.0, 0.0])
    up, down = scores_of([1.0, 1.0]), scores_of([-1.0, 1.0])
    row = row_of(Condition("random", "control", [(up, down), (down, down)], seeds=(0, 1)), base)
    assert row.acc.value == 0.75
    assert row.margin.value == pytest.approx(0.5)
    assert [(r.seed, r.acc) for r in row.readings] == [(0, 1.0), (1, 0.5)]


def test_without_tied_items_there_are_no_tied_figures(scores_of: Scores) -> None:
    base = scores_of([1.0, -1.0])
    row = row_of(Condition("base", "base", [(base, base)]), base)
    assert row.acc_tied is None
    assert row.tied_separation is None
    assert row.capability_loss is None
    assert row.acc == row.acc_opposite


def test_exchanged_losses_change_places() -> None:
    one = Loss(1.0, 2.0, 3.0, 4.0, (0.1, 0.2, 0.3, 0.4))
    assert one.exchanged() == Loss(2.0, 1.0, 4.0, 3.0, (0.2, 0.1, 0.4, 0.3))
    assert one.error == one.exchanged().error == 0.4
    assert Loss(0.1, 0.2, -3.0, 0.15).worst == 0.2


def table(scores_of: Scores, tied: list[bool] | None = None) -> list[Condition]:
    n = 40
    tied = tied or [i % 2 == 0 for i in range(n)]
    generator = np.random.default_rng(0)
    base = scores_of(generator.normal(0, 1, n), tied)
    good = scores_of(np.abs(generator.normal(0, 1, n)), tied)
    bad = scores_of(-np.abs(generator.normal(0, 1, n)), tied)
    idle = scores_of(generator.normal(0, 1, n), tied)
    return [
        Condition("base", "base", [(base, base)]),
        Condition("system prompt", "prompt", [(good, bad)]),
        Condition("persona", "method", [(good, bad)]),
        Condition("idle", "method", [(idle, idle)]),
        Condition("random", "control", [(idle, base), (base, idle)], seeds=(0, 1)),
        Condition("opposite", "control", [(bad, good)]),
    ]


def test_claims_are_persona_minus_the_best_control(scores_of: Scores) -> None:
    conditions = table(scores_of)
    base = conditions[0].readings[0][0]
    rows = with_claims([row_of(c, base) for c in conditions], conditions, resamples=300, seed=0)
    persona, idle = rows[2], rows[3]
    controls = [conditions[i] for i in (0, 4, 5)]
    assert [c.figure for c in persona.claims] == ["acc", "acc_opposite", "tied_separation"]
    for claim in persona.claims:
        expected = margin_over_best_control(
            conditions[2].claimed(claim.figure), np.column_stack([c.claimed(claim.figure) for c in controls]),
            resamples=300,
        )  # fmt: skip
        assert (claim.value, claim.low, claim.high, claim.p) == (
            expected.value, expected.low, expected.high, expected.p,
        )  # fmt: skip
        assert claim.low > 0
    headline = persona.minus_best_control
    assert headline is not None
    assert headline.value == pytest.approx(1 - max(rows[0].acc.value, rows[4].acc.value))
    assert headline.over in ("base", "random")
    assert persona.claims[1].value == pytest.approx(min(rows[0].acc_opposite.value, rows[4].acc_opposite.value))
    assert idle.minus_best_control is not None
    assert idle.minus_best_control.p_holm > 0.05
    every = [c for row in rows for c in row.claims]
    assert [c.p_holm for c in every] == holm([c.p for c in every])
    assert all(not row.claims for row in rows if row.kind != "method")


def test_the_mask_of_the_wrong_pole_claims_nothing(scores_of: Scores) -> None:
    conditions = table(scores_of)
    good, bad = conditions[2].readings[0]
    conditions[2] = Condition("persona", "method", [(bad, good)])
    base = conditions[0].readings[0][0]
    rows = with_claims([row_of(c, base) for c in conditions], conditions, resamples=300, seed=0)
    assert all(claim.high < 0 for claim in rows[2].claims)


def test_no_control_or_no_tied_item_no_claim(scores_of: Scores) -> None:
    conditions = table(scores_of)[:4]
    base = conditions[0].readings[0][0]
    assert not any(
        r.claims for r in with_claims([row_of(c, base) for c in conditions], conditions, resamples=9, seed=0)
    )
    conditions = table(scores_of, [False] * 40)
    rows = with_claims([row_of(c, base) for c in conditions], conditions, resamples=9, seed=0)
    assert [c.figure for c in rows[2].claims] == ["acc", "acc_opposite"]
