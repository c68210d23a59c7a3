"""The table of targets at the head of docs/evidence.md: what was met, and by how much the others were missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MBTI = {
    "auc": 0.8, "auc_bag_of_words": 0.7, "auc_minus_best_control": 0.04, "own_answers": 0.1, "own_answers_opposite": 0.0
}  # fmt: skip


def figure(value: float, width: float = 0.05) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def row(name: str, acc: float, **more: Any) -> dict[str, Any]:
    shares = {"acc": 0.0, "acc_tied": -0.1, "acc_opposite": 0.0}
    return {
        "name": name, "kind": "method", "cost": "forward-only", "capability_loss": 0.02,
        "capability_loss_error": 0.005, "own_answers": figure(0.2), "own_answers_opposite": figure(-0.0002),
        **{key: figure(acc + by) for key, by in shares.items()}, **more,
    }  # fmt: skip


def files() -> dict[str, Any]:
    """Result files of one set, one dimension and one capability suite, with what the section reads of them."""
    directed = row("directed", 0.94, cost="75 backwards", acc_opposite=figure(0.1))
    letters = {
        "title": "MMLU: log-probability, change to base", "columns": ["mask", "gold letter among the four, nats"],
        "rows": [["a", figure(0.02)], ["b", figure(-0.13)]],
    }  # fmt: skip
    return {
        "ai_persona_power_steps": {"evaluation": {"rows": [directed, row("system prompt", 0.5, kind="prompt")]}},
        "ai_persona_power_methods": {"evaluation": {"rows": [row("wanda", 0.551), row("sparsegpt", 0.549)]}},
        "rivals_power_steps": {
            "made": {"lora-sft": [row("lora-sft", 0.7, kind="rival", capability_loss=0.04)]},
            "minus": {"lora-sft": {"acc": figure(0.24)}},
        },
        "suite_mbti-JP": {"figures": {f"JP.{k}": figure(v) for k, v in {**MBTI, "auc_ceiling": 0.9}.items()}},
        "suite_mbti-tuned-JP": {"figures": {f"JP.{k}": figure(0.1) for k in MBTI}},  # dropped, so not shown
        "suite_capability-power-steps": {"figures": {"hellaswag_change": figure(-0.004)}, "tables": [letters]},
    }


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The other cells of every line, by the first."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.report_targets import targets

    lines = [line.strip("| \n").split(" | ") for line in targets(files().get) if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines}


def test_figures_are_met_or_missed_by_so_much(cells: dict[str, list[str]]) -> None:
    of = "power-seeking: "
    assert cells[of + "acc"] == ["≥ 0.93", "0.940 [0.890, 0.990]", "met"]
    assert cells[of + "acc_tied"] == ["≥ 0.85", "0.840 [0.790, 0.890]", "**missed by 0.010**"]
    assert cells[of + "acc_opposite"] == ["≤ 0.08", "0.100 [0.050, 0.150]", "**missed by 0.020**"]
    assert cells[of + "capability loss, nats a token"] == ["≤ 0.05", "0.020 ± 0.010", "met"]
    missed = cells[of + "own answers of the opposite, nats a token"]
    assert missed == ["≥ 0", "-0.000 [-0.050, +0.050]", "**missed by 0.001**"]  # not by 0.000
    assert cells["HellaSwag, worst mask: accuracy, change"][1:] == ["-0.004 [-0.054, +0.046]", "met"]
    letters = cells["MMLU, worst mask: log p of the gold letter among the four, change in nats"]
    assert letters == ["within 0.03", "-0.130 [-0.180, -0.080]", "**missed by 0.100**"]


def test_differences_are_met_where_their_interval_is_clear_of_zero(cells: dict[str, list[str]]) -> None:
    of = "power-seeking: acc above "
    assert cells[of + "the system prompt"][1:] == ["+0.440: it has 0.500 [0.450, 0.550]", "met"]
    sft = cells[of + "LoRA, SFT, same budget"]
    assert sft == ["> 0, clear", "+0.240 [+0.190, +0.290], at losses of 0.020 and 0.040", "met"]
    above = cells["MBTI J/P, all blocks: AUC above the best control"]
    assert above == ["> 0, clear", "+0.040 [-0.010, +0.090]", "**not clear**"]


def test_what_was_kept_stands_there_and_nothing_of_what_was_not_measured(cells: dict[str, list[str]]) -> None:
    share = "0.89: AUC 0.800 [0.750, 0.850], ceiling 0.900 [0.850, 0.950]; words alone 0.700"
    assert cells["MBTI J/P, all blocks: share of the trained ceiling"] == ["≥ 0.9", share, "**missed by 0.011**"]
    best = cells["power-seeking: the best found by forwards alone"]
    assert best[1].startswith("wanda: 0.551 [0.501, 0.601] / 0.551 [0.501, 0.601] at 0.020 nats")
    assert not [what for what in cells if "wealth-seeking" in what or "chosen on dev" in what or "E/I" in what]


def test_the_papers_figures_stand_beside_ours(cells: dict[str, list[str]]) -> None:
    assert cells["prompt"] == ["41.0", "50.0", "44.0", "–"]
    assert cells["Wanda"] == ["51.5", "55.1", "54.5", "–"]
    assert cells["fine-tuning"] == ["64.0", "70.0", "71.0", "–"]
    assert cells["`directed`, short steps"] == ["–", "94.0", "–", "–"]
