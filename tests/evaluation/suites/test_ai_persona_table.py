"""Tables of the ai-persona suite: claims against a slow bootstrap, planted traps, every cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from personae.discovery import open_session
from personae.evaluation import Baselines, CapabilityText, Difference, Estimate, evaluate, holm
from personae.evaluation.bootstrap import RESAMPLES
from personae.evaluation.suites.ai_persona_table import (
    COLUMNS,
    Line,
    empty_masks,
    line_of,
    over_controls,
    set_table,
    truth_table,
)
from personae.models import encode
from personae.personas import split

FAIR = Baselines(0.5, 0.5, 0.6, 0.5)


def line(name: str, kind: str, share: float, n: int = 40, **more: Any) -> Line:
    first = np.zeros(n)
    first[: round(share * n)] = 1.0
    return Line(name, kind, first, 1 - first, **more)


def test_the_claim_against_a_loop_over_resamples() -> None:
    lines = [
        line("base", "base", 0.5), line("system prompt", "prompt", 1.0), line("m", "method", 0.8),
        line("w", "method", 0.4), line("random", "control", 0.45), line("opposite", "control", 0.55),
    ]  # fmt: skip
    found = over_controls(lines)
    assert set(found) == {"m", "w"}
    gap, best, _ = found["m"]
    assert best == "opposite"
    drawn = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=RESAMPLES)
    means = []
    for counts in drawn:
        own, *others = (float(counts @ lines[i].first) / 40 for i in (2, 0, 4, 5))
        means.append(own - max(others))
    assert gap.value == pytest.approx(0.25)
    assert (gap.low, gap.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert [found[m][2] for m in ("m", "w")] == holm([found[m][0].p for m in ("m", "w")])
    assert over_controls(lines[:4]) == {}


@pytest.mark.filterwarnings("ignore:the artefact's generic text")
def test_claims_are_those_of_the_evaluation(model_and_tokenizer: Any, contrast: Any, artefact_of: Any) -> None:
    model, tokenizer = model_and_tokenizer
    text = CapabilityText((encode(tokenizer, "", "the sea"),), (encode(tokenizer, "a?", "b"),), "text")
    session = open_session(model, tokenizer, split(contrast).calibration, generic=text.generic, resume=False)
    result = evaluate(
        model, tokenizer, contrast, artefact_of(model, contrast, share=0.3), session=session, capability_text=text,
        controls=("random", "opposite"), random_seeds=2,
    )  # fmt: skip
    lines = [line_of(row) for row in result.rows]
    row, [own] = result["directed"], [x for x in lines if x.name == "directed"]
    claim = row.minus_best_control
    assert claim is not None
    gap, best, _ = over_controls(lines)["directed"]
    assert (gap.value, gap.low, gap.high, gap.p, best) == (claim.value, claim.low, claim.high, claim.p, claim.over)
    table, figures = set_table("t", lines, np.array(result.data.tied), result.baselines)
    assert figures["directed.acc"] == row.acc
    assert figures["directed.acc_opposite"] == row.acc_opposite
    assert figures["directed.acc_tied"] == row.acc_tied
    assert figures["random.acc"] == result["random"].acc
    assert isinstance(figures["directed.capability_loss"], Estimate)
    assert figures["directed.capability_loss"].value == row.capability_loss
    assert figures["directed.dropped"] == row.sparsity
    assert own.loss is not None
    assert row.loss is not None
    assert own.loss.high - own.loss.low == pytest.approx(2 * 1.96 * row.loss.error)
    assert [r[0] for r in table.rows] == [r.name for r in result.rows]
    prompt = table.rows[1]
    assert (prompt[0], prompt[6]) == ("system prompt", None)
    assert "prompt tokens a request" in str(prompt[-1])


def test_cells_stand_under_their_columns() -> None:
    loss = Estimate(0.04, 0.03, 0.05)
    lines = [
        line("base", "base", 0.5),
        line("m", "method", 1.0, loss=loss, dropped=0.0123, seconds=12.4, cost="x", note="n"),
        line("random", "control", 0.5),
    ]  # fmt: skip
    tied = np.arange(40) < 10
    table, figures = set_table("title", lines, tied, FAIR, notes=["last"], warnings=["beware"])
    cells = dict(zip(COLUMNS, table.rows[1], strict=True))
    assert cells["condition"] == "m"
    assert cells["acc"] == Estimate(1.0, 1.0, 1.0)
    assert cells["acc_opposite"] == Estimate(0.0, 0.0, 0.0)
    assert isinstance(cells["minus best control"], Difference)
    assert (cells["capability loss"], cells["dropped"], cells["seconds"], cells["cost"]) == (loss, "1.23%", 12, "x")
    assert table.rows[0][5] is None
    assert figures["tied_items"] == 10
    assert figures["m.acc_tied"] == Estimate(1.0, 1.0, 1.0)
    assert figures["base.acc_tied"] == Estimate(1.0, 1.0, 1.0)  # the first items of `line` are won
    assert table.notes[-1] == "last"
    assert "m: n" in table.notes
    assert table.warnings == ("beware",)  # the masks of m are not empty
    untied, figures = set_table("title", lines, np.zeros(40, dtype=bool), FAIR)
    assert untied.rows[1][3] is None
    assert "m.acc_tied" not in figures


def test_a_method_no_better_than_its_controls_is_told_so() -> None:
    lines = [line("base", "base", 0.5), line("m", "method", 0.4), line("random", "control", 0.5)]
    table, _ = set_table("t", lines, np.zeros(40, dtype=bool), FAIR)
    assert "no better than its controls" in table.notes[0]


def test_empty_masks_are_warned_of() -> None:
    assert empty_masks([line("a", "method", 1, dropped=0.1), line("r", "control", 1)]) == []
    lines = [line("a", "method", 1), line("random", "control", 1)]
    [warning] = empty_masks(lines)
    assert "a found no mask within the budget" in warning
    table, _ = set_table("t", lines, np.zeros(40, dtype=bool), FAIR, warnings=["first"])
    assert table.warnings == ("first", warning)


def test_truth_control_tells_denial_from_honesty() -> None:
    n = 40
    yes, no = np.ones(n), np.zeros(n)
    half = (np.arange(n) < n // 2).astype(float)
    table, figures = truth_table(
        [("base", half, yes), ("m, confabulating", yes, yes), ("m, truthful", no, yes), ("m, denying", no, no)]
    )
    assert figures["m, confabulating.separation"] == Difference(0.0, 0.0, 0.0, 1.0)
    truthful = figures["m, truthful.separation"]
    assert isinstance(truthful, Difference)
    assert truthful.value == 1.0
    base = figures["base.separation"]
    assert isinstance(base, Difference)
    assert base.value == 0.5
    [warning] = table.warnings
    assert warning.startswith("m, denying: 'Yes' where it is right falls by 1.00")
    assert table.rows[-1] == ("always yes", Estimate(1.0, 1.0, 1.0), Estimate(1.0, 1.0, 1.0), 0.0)
