"""What a reader sees of an audit: every figure in its table, doubts and limits under them."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from benchmarks.audit import disabled_max_alignment, figures
from rich.console import Console

from personae.analysis.audit_result import (
    LIMITS,
    Accessibility,
    Alignment,
    Attack,
    Audit,
    Disabling,
    FoundAgain,
    Hazard,
    Kept,
    Loss,
    Place,
    Point,
    Restored,
    Together,
)
from personae.analysis.audit_view import tables, to_markdown, to_rich
from personae.evaluation import Difference, Estimate


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.05, value + 0.05)


def change(value: float) -> Difference:
    return Difference(value, value - 0.05, value + 0.05, 0.01)


def alignment(value: float) -> Alignment:
    return Alignment(30, 10, estimate(value), estimate(value - 0.01), estimate(0.3))


def curve(*values: float, smallest: float | None, control: bool) -> Accessibility:
    shares = (0.001, 0.01)
    points = tuple(
        Point(int(share * 1e5), share, estimate(value), 0.2, estimate(0.51) if control else None)
        for share, value in zip(shares, values, strict=True)
    )
    beside = estimate(0.52) if control else None
    return Accessibility(
        estimate(0.55), points, 0.75, estimate(0.7), beside, change(0.18) if control else None, smallest,
        None if smallest is None else 0.0005, None, 0.9, None if smallest is None else 0.033,
    )  # fmt: skip


LOSS = Loss(estimate(0.011), estimate(0.021), 0.021, True)
KEPT = Kept("calm-hasty", "calm", 20, estimate(0.5), estimate(0.3), change(-0.2), change(-0.4), True)
HAZARD = Hazard(
    contrast="bold|meek", pole="bold", opposite="meek", sha256="0" * 64, calibration_items=50, dev_items=20,
    base=alignment(0.55), accessibility=curve(0.6, 0.91, smallest=0.0023, control=True),
    places=(Place(4, "mlp", 700, 0.7, 0.01), Place(2, "attention", 300, 0.3, 0.02)),
    restored=(Restored((0, 1), 12, change(0.07)), Restored((4,), 12, change(0.44))),
    disabling=Disabling(
        "disable-bold", 1234, 0.0123, 2, 0.15, alignment(0.12), True, 0.05, 0.049, 4, LOSS, (KEPT,), estimate(0.03)
    ),
    disabled=alignment(0.14), lowered=change(0.41),
    attacks=(
        Attack("few-shot", "prompt", estimate(0.83), estimate(0.31), change(0.28), change(0.5), True),
        Attack("system prompt", "prompt", estimate(0.57), estimate(0.17), change(0.02), change(0.1), False),
    ),
    found_again=FoundAgain(curve(0.2, 0.4, smallest=None, control=False), None, change(0.3), True),
    exposure=0.31, exposure_to_weights=0.4, verdict="disabled at a cost", sentence="All is said.",
    warnings=("only few items",), seconds=60.0,
)  # fmt: skip
BARE = replace(
    HAZARD, contrast="rash-wary", pole="rash", disabling=None, disabled=None, lowered=None, found_again=None,
    attacks=(), restored=(), verdict="absent", warnings=(), base=alignment(0.22),
)  # fmt: skip
AUDIT = Audit("tiny", "sha256:f00d", (HAZARD, BARE), 0.31, 0.4)


def printed(audit: Audit, fail_above: float | None = None) -> str:
    console = Console(file=io.StringIO(), width=250)
    console.print(to_rich(audit, fail_above=fail_above))
    return " ".join(console.file.getvalue().split())


@pytest.mark.parametrize(
    "figure",
    [
        "0.55 [0.50, 0.60]", "0.54 [0.49, 0.59]", "30 (10)", "disabled at a cost",  # verdicts
        "0.91 (0.51)", "0.230% [0.050%, not reached]", "+0.033", "0.52 [0.47, 0.57]",  # curves
        "4 mlp 70.0%", "4 +0.44 [+0.39, +0.49]", "0–1 +0.07",  # places
        "1,234", "1.230%", "0.03 [-0.02, 0.08]", "+0.011 [-0.039, +0.061]",  # disabling
        "calm -0.20 [-0.25, -0.15] TOUCHED",
        "+0.28 [+0.23, +0.33] yes 0.31", "no: does not move the base model",  # attacks
        "All is said.", "doubt: only few items", LIMITS, "0.31 to prompts, 0.40 to a fresh discovery",
    ],
)  # fmt: skip
def test_every_figure_is_shown(figure: str) -> None:
    assert figure in printed(AUDIT)


def test_markdown_has_the_same_cells_and_survives_a_pipe_in_a_name() -> None:
    said = to_markdown(AUDIT, command="personae audit --hazard x", fail_above=0.3)
    for _, columns, rows in tables(AUDIT):
        for row in rows:
            assert len(row) == len(columns)
            assert "| " + " | ".join(row) + " |" in said
    assert "**bold\\|meek**, disabled at a cost: All is said." in said
    assert "Fails at 0.3." in said
    assert "    personae audit --hazard x" in said
    assert LIMITS in said


def test_what_decides_the_exit_code_is_said() -> None:
    assert "Passes at 0.31" in printed(AUDIT, 0.31)
    assert "Fails at 0.3." in printed(AUDIT, 0.30)
    assert "Passes" not in printed(AUDIT)
    counted = to_markdown(AUDIT, fail_above=0.35, count_rediscovery=True)
    assert "Fails at 0.35, the fresh discovery counted." in counted
    assert "Passes at 0.35." in to_markdown(AUDIT, fail_above=0.35)


def test_all_masks_at_once_have_a_table_of_their_own() -> None:
    both = Together(("a", "b"), 2000, 0.02, {"bold|meek": alignment(0.18), "rash-wary": alignment(0.09)}, LOSS, (KEPT,))
    said = printed(replace(AUDIT, together=both))
    assert "All masks at once, 2.000% of the weights" in said
    assert "0.18 [0.13, 0.23]" in said
    assert "at once" not in printed(AUDIT)
    assert not any("Disabling masks" in title for title, _, _ in tables(replace(AUDIT, hazards=(BARE,))))


def test_the_benchmark_takes_the_disabled_model_where_there_is_a_mask() -> None:
    assert disabled_max_alignment(AUDIT) == 0.22, "of the hazard without a mask, the base model's"
    assert disabled_max_alignment(replace(AUDIT, hazards=(HAZARD,))) == 0.14
    flat = figures(AUDIT, 12.5)
    assert flat["audit.minutes"] == 12.5
    assert flat["audit.disabled_max_alignment"] == 0.22
