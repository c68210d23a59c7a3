from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from personae.analysis.trace_verdict import even, gains, leading, relative, verdict
from personae.errors import DataError, OptionError

NAMES = ("calm", "hasty", "stern", "kind")


@st.composite
def log_probabilities(draw: st.DrawFn, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Under base, (T,), and under one to four personas, (P, T)."""
    personas, tokens = draw(st.integers(least, 4)), draw(st.integers(1, 12))
    numbers = st.floats(-20, 0, width=32)
    return draw(arrays(np.float64, tokens, elements=numbers)), draw(
        arrays(np.float64, (personas, tokens), elements=numbers)
    )


def slow(base: np.ndarray, worn: np.ndarray) -> list[list[float]]:
    """r, persona by persona and token by token, from the formulas."""
    found = []
    for own in worn:
        row = []
        for t, y in enumerate(base):
            s = [float(other[t]) - float(y) for other in worn]
            row.append((float(own[t]) - float(y)) - (sum(s) / len(s) if len(worn) > 1 else 0.0))
        found.append(row)
    return found


@given(log_probabilities())
def test_scores_lead_and_error_are_those_of_the_formulas(given_: tuple[np.ndarray, np.ndarray]) -> None:
    base, worn = given_
    rows = slow(base, worn)
    share = relative(gains(base, worn))
    np.testing.assert_allclose(share, rows, atol=1e-9)
    found = verdict(NAMES[: len(worn)], share)
    means = [statistics.fmean(row) for row in rows]
    assert found.scores == pytest.approx(tuple(means), abs=1e-9)
    against = [*rows, *([[0.0] * len(base)] if len(worn) == 1 else [])]
    ranked = sorted((statistics.fmean(row) for row in against), reverse=True)
    assert found.lead == pytest.approx(ranked[0] - ranked[1], abs=1e-9)
    names = [*NAMES[: len(worn)], *([None] if len(worn) == 1 else [])]
    differences = [
        a - b for a, b in zip(*(against[names.index(n)] for n in (found.persona, found.second)), strict=True)
    ]
    if len(base) == 1:
        assert found.error is None
        assert not found.decided
    else:
        assert found.error == pytest.approx(statistics.stdev(differences) / math.sqrt(len(base)), abs=1e-9)
        assert found.decided == (found.lead > found.error)


@given(log_probabilities(least=2), st.integers(0, 99))
def test_what_all_masks_do_alike_decides_nothing(given_: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    base, worn = given_
    shift = np.random.default_rng(seed).normal(size=base.shape)
    names = NAMES[: len(worn)]
    plain, shifted = (verdict(names, relative(gains(base, w))) for w in (worn, worn - 2 + shift))
    assert shifted.scores == pytest.approx(plain.scores, abs=1e-9)
    other = verdict(names, relative(gains(base - 3, worn)))
    assert other.scores == pytest.approx(plain.scores, abs=1e-9), "nor does what base thinks of the text"


@given(log_probabilities(least=2), st.randoms())
def test_the_order_of_the_personas_does_not_matter(given_: tuple[np.ndarray, np.ndarray], random: object) -> None:
    base, worn = given_
    names = list(NAMES[: len(worn)])
    found = verdict(names, relative(gains(base, worn)))
    assume(found.lead > 1e-6)
    order = list(range(len(names)))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = verdict([names[i] for i in order], relative(gains(base, worn[order])))
    assert again.persona == found.persona
    assert again.lead == pytest.approx(found.lead, abs=1e-9)


def test_one_persona_stands_against_the_base_model() -> None:
    ahead = verdict(("calm",), np.array([[0.5, 0.4, 0.6]]))
    assert (ahead.persona, ahead.second, ahead.decided) == ("calm", None, True)
    assert ahead.sentence == "calm speaks: ahead of the base model by 0.50 ± 0.06 nats a token"
    behind = verdict(("calm",), np.array([[-0.5, -0.4, -0.6]]))
    assert (behind.persona, behind.second, behind.lead) == (None, "calm", pytest.approx(0.5))
    assert behind.sentence.startswith("the base model speaks: ahead of calm by 0.50")


def test_a_lead_within_its_error_is_undecided_and_says_who_leads() -> None:
    found = verdict(("calm", "hasty"), np.array([[0.6, -0.5], [-0.6, 0.5]]))
    assert (found.persona, found.decided) == ("calm", False)
    assert found.sentence.startswith("undecided: calm is ahead of hasty by 0.10 ± 1.10 nats a token")
    assert "within noise" in found.sentence


def test_equal_scores_are_undecided() -> None:
    found = verdict(("calm", "hasty"), np.zeros((2, 4)))
    assert (found.persona, found.lead, found.error, found.decided) == ("calm", 0.0, 0.0, False)


def test_offsets_move_the_point_at_which_two_poles_are_even() -> None:
    share = np.array([[0.1] * 4, [-0.1] * 4])
    assert verdict(("calm", "hasty"), share).persona == "calm"
    moved = verdict(("calm", "hasty"), share, (0.2, -0.2))
    assert (moved.persona, moved.offsets) == ("hasty", (0.2, -0.2))
    assert moved.scores == pytest.approx((-0.1, 0.1))


@given(st.lists(st.floats(-0.875, 0.875, width=32), min_size=1, max_size=30))
def test_offsets_leave_half_of_the_labelled_answers_on_either_side(leads: list[float]) -> None:
    answers = [np.array([[lead] * 3, [-lead] * 3]) for lead in leads]
    first, second = even(answers)
    assert first == pytest.approx(statistics.median(leads), abs=1e-9)
    assert second == pytest.approx(-first, abs=1e-9)
    scores = [verdict(("calm", "hasty"), r, (first, second)).scores[0] for r in answers]
    assert sum(s > 1e-9 for s in scores) <= len(scores) / 2
    assert sum(s < -1e-9 for s in scores) <= len(scores) / 2


def test_each_token_speaks_for_the_persona_with_the_largest_share() -> None:
    who, much = leading(np.array([[0.2, -1.0, 0.0], [-0.2, 1.0, 0.0]]))
    assert who.tolist() == [0, 1, 0]
    assert much.tolist() == [0.2, 1.0, 0.0]


def test_bad_input() -> None:
    with pytest.raises(DataError, match="without tokens"):
        verdict(("calm",), np.zeros((1, 0)))
    with pytest.raises(OptionError, match="as many names and offsets"):
        verdict(("calm",), np.zeros((2, 3)))
    with pytest.raises(OptionError, match="not 2 and 1"):
        verdict(("calm", "hasty"), np.zeros((2, 3)), (0.0,))
    with pytest.raises(OptionError):
        verdict((), np.zeros((0, 3)))
    with pytest.raises(DataError, match="labelled answers"):
        even([])
