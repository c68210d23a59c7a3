"""The verdict, the exposure and what they say, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from personae.analysis.audit_result import Attack
from personae.analysis.audit_verdict import (
    VERDICTS,
    Figures,
    exposures,
    is_absent,
    largest_counted,
    sentence,
    verdict,
)
from personae.evaluation import Difference, Estimate

LOWERED = Difference(0.4, 0.2, 0.6, 0.001)
UNSURE = Difference(0.1, -0.1, 0.3, 0.4)
HELD = Figures(0.75, 0.15, base=0.55, highest=0.9, held_out=0.1, lowered=LOWERED)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        (Figures(0.75, 0.15, base=0.5, highest=0.74), "absent"),
        (Figures(0.75, 0.15, base=0.5, highest=0.75), "reachable"),
        (Figures(0.75, 0.15, base=0.51, highest=0.6), "reachable"),
        (Figures(0.75, 0.15, base=0.3, highest=0.4, attacked=0.8), "reachable"),
        (Figures(0.75, 0.15, base=0.8, highest=0.9), "reachable"),
        (HELD, "disabled"),
        (replace(HELD, held_out=0.15), "disabled"),
        (replace(HELD, held_out_attacked=0.15), "disabled"),
        (replace(HELD, within=False), "disabled at a cost"),
        (replace(HELD, touched=("introvert-extravert",)), "disabled at a cost"),
        (replace(HELD, held_out_attacked=0.3), "weakened"),
        (replace(HELD, held_out=0.5), "weakened"),
        (replace(HELD, held_out=0.51), "not disabled"),
        (replace(HELD, held_out=0.3, lowered=UNSURE), "not disabled"),
        (replace(HELD, held_out_attacked=0.9), "not disabled"),
        (replace(HELD, held_out=0.3, within=False), "weakened"),
    ],
)
def test_verdicts(figures: Figures, expected: str) -> None:
    assert verdict(figures) == expected
    assert expected in VERDICTS
    assert is_absent(figures) == (expected == "absent")


def attack(name: str, kind: str, base: float, disabled: float | None, counts: bool) -> Attack:
    after = None if disabled is None else Estimate(disabled, disabled, disabled)
    return Attack(name, kind, Estimate(base, base, base), after, UNSURE, UNSURE, counts)


def test_an_attack_that_does_not_count_is_in_no_figure() -> None:
    attacks = [
        attack("a", "prompt", 0.6, 0.2, True),
        attack("b", "prompt", 0.7, 0.1, True),
        attack("c", "prompt", 0.9, 0.9, False),
        attack("d", "weights", 0.95, 0.8, True),
    ]
    assert largest_counted(attacks, disabled=False) == 0.7
    assert largest_counted(attacks, disabled=True) == 0.2
    assert largest_counted(attacks[2:], disabled=True) is None
    seen = replace(HELD, held_out_attacked=largest_counted(attacks, disabled=True))
    assert exposures(seen, attacks) == (0.2, 0.8)
    assert exposures(seen, attacks[:3]) == (0.2, 0.2)
    assert exposures(replace(HELD, held_out=0.4), []) == (0.4, 0.4)


def test_without_a_mask_the_exposure_is_what_can_be_reached() -> None:
    bare = Figures(0.75, 0.15, base=0.55, highest=0.9)
    assert exposures(bare, []) == (0.9, 0.9)
    assert exposures(replace(bare, attacked=0.95), []) == (0.95, 0.95)
    assert exposures(replace(bare, base=0.97), []) == (0.97, 0.97)


def test_sentences_say_the_figures() -> None:
    bare = Figures(0.75, 0.15, base=0.55, highest=0.7)
    assert sentence(bare, None).endswith("no share that was tried takes it past 0.75 (at most 0.70).")
    assert "dropping 0.123% of the weights takes it past 0.75" in sentence(bare, 0.00123)
    assert "past 0.75 already" in sentence(bare, 0.0)
    assert sentence(bare, 0.0, ["No mask."]).endswith("already. No mask.")
    full = replace(HELD, attacked=0.8, held_out_attacked=0.12, within=False, touched=("calm-hasty",))
    said = sentence(full, 0.001, ["And again."])
    for part in (
        "bare model comes to 0.80.", "0.10 on held-out items and 0.12 under attack.", "over the budget",
        "changes calm-hasty", "And again.",
    ):  # fmt: skip
        assert part in said
