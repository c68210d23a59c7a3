"""The table of targets at the head of docs/evidence.md: what was met, and by how much the others were missed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MBTI = {
    "auc": 0.8, "auc_bag_of_words": 0.7, "auc_minus_best_control": 0.06, "own_answers": 0.1, "own_answers_opposite": 0.0
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


def suite(letters: str, dtype: str = "bfloat16", **figures: float | None) -> dict[str, Any]:
    """A suite of one dimension, as far as the page reads it."""
    kept = {f"{letters}.{k}": figure(v) for k, v in {**MBTI, **figures}.items() if v is not None}
    kept |= {f"{letters}.test_answers": 192, f"{letters}.capability_loss": 0.02}
    return {"figures": kept, "data": {"rows": "da7a"}, "model": {"dtype": dtype}}


def capability(rises: Sequence[float], letters: Sequence[float]) -> dict[str, Any]:
    accuracy = {
        "title": "Accuracy, change to base", "columns": ["worn", "HellaSwag, by bytes"],
        "rows": [[str(n), figure(v)] for n, v in enumerate(rises)],
    }  # fmt: skip
    mmlu = {
        "title": "MMLU: log-probability, change to base",
        "columns": [
            "worn", "gold letter among the four, nats", "gold letter among all tokens, nats",
            "gold choice written out, nats a token",
        ],
        "rows": [[str(n), figure(v), figure(2 * v), figure(v / 10)] for n, v in enumerate(letters)],
    }  # fmt: skip
    return {"tables": [accuracy, mmlu]}


def files() -> dict[str, Any]:
    """Result files of one set, of two dimensions and of capability, with what the section reads of them."""
    claims = [{"figure": "acc", "over": "random", **figure(0.4), "p_holm": 0.01}, {"figure": "acc_opposite"}]
    directed = row("directed", 0.94, cost="75 backwards", acc_opposite=figure(0.1), claims=claims)
    rivals = {"lora-sft": 0.04, "lora-dpo": 0.06, "retrieval": None}
    others = [row("other: rich", 0.9, kind="control"), row("other: poor", 0.1, kind="control")]
    return {
        "ai_persona_power_steps": {"evaluation": {"rows": [directed, row("system prompt", 0.5, kind="prompt")]}},
        "ai_persona_power_methods": {
            "evaluation": {"rows": [row("wanda", 0.551), row("sparsegpt", 0.549)], "model": {"dtype": "float32"}}
        },
        "rivals_power_steps": {
            "dtype": "bfloat16",
            "made": {**{n: [row(n, 0.7, kind="rival", capability_loss=v)] for n, v in rivals.items()}, "other": others},
            "minus": {
                **{n: {"acc": figure(0.24) | {"p_holm": 0.01}} for n in rivals},
                "other: rich": {"acc": figure(0.06) | {"p_holm": 0.3}},
                "other: poor": {"acc": figure(0.8) | {"p_holm": 0.01}},
            },
        },
        "suite_mbti-JP": suite("JP", auc_ceiling=0.9),
        "suite_mbti-tuned-JP": suite("JP", auc=0.88, auc_minus_best_control=0.04),
        "suite_mbti-SN": suite("SN", dtype="float32", auc=0.6, auc_ceiling=0.65),
        "suite_mbti-steps-SN": suite("SN", auc_bag_of_words=0.85),
        "suite_capability-power-steps": capability((0.001, -0.004), (0.02, -0.13)),
        "suite_capability-wealth-steps": capability((0.012, 0.0), (0.01, 0.0)),
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


def test_capability_goes_by_the_mask_that_moves_farthest_either_way(cells: dict[str, list[str]]) -> None:
    hellaswag = cells["HellaSwag, by bytes: accuracy, change, farthest of 4 masks"]
    assert hellaswag == ["within 0.01", "+0.012 [-0.038, +0.062]", "**missed by 0.002**"]
    for called, missed in (
        ("gold letter among the four", "-0.130 [-0.180, -0.080] | **missed by 0.100**"),
        ("gold letter among all tokens", "-0.260 [-0.310, -0.210] | **missed by 0.230**"),
        ("gold choice written out, a token", "-0.013 [-0.063, +0.037] | met"),
    ):
        found = cells[f"MMLU: log p of the {called}, change in nats, farthest of 4 masks"]
        assert found == ["within 0.03", *missed.split(" | ")]


def test_differences_are_met_where_they_are_clear_of_zero(cells: dict[str, list[str]]) -> None:
    of = "power-seeking: acc above "
    assert cells[of + "the system prompt"][1:] == ["+0.440: it has 0.500 [0.450, 0.550]", "met"]
    assert cells[of + "the best control of its size (random)"][1:] == ["+0.400 [+0.350, +0.450]", "met"]
    assert cells[of + "the mask of poor"][2] == "met"
    rich = cells[of + "the mask of rich"]  # its interval is clear of zero, its p after Holm is not
    assert rich == ["> 0, clear", "+0.060 [+0.010, +0.110]", "**not clear**"]


def test_rivals_stand_with_their_losses_and_what_is_wanted_of_each(cells: dict[str, list[str]]) -> None:
    of, gap = "power-seeking: acc above ", "+0.240 [+0.190, +0.290]; "
    assert cells[of + "retrieval"] == ["> 0, clear", gap + "its loss not measured", "met"]
    sft = cells[of + "LoRA, SFT, scaled within the same bound"]
    assert sft == ["≥ 0", gap + "losses 0.020 and 0.040", "met"]
    dpo = cells[of + "LoRA, DPO, scaled within the same bound"]
    assert dpo[:2] == ["no target", gap + "losses 0.020 and 0.060, **over the budget**"]
    best = cells["power-seeking: acc / acc_opposite of the best found by forwards alone, of 2 on these very items"]
    figures = "wanda (float32): 0.551 [0.501, 0.601] / 0.551 [0.501, 0.601], loss 0.020"
    assert best[1].startswith(figures + "; directed-forward was not measured")


def test_every_form_of_a_dimensions_masks_stands_there(cells: dict[str, list[str]]) -> None:
    own = "J +0.100 [+0.050, +0.150]: met; P +0.000 [-0.050, +0.050]: met"
    assert cells["J/P, all blocks, one round (bfloat16)"] == [
        "0.800 [0.750, 0.850]", "0.900 [0.850, 0.950]", "0.700", "0.89: **missed by 0.011**",
        "+0.060 [+0.010, +0.110]: met", own, "0.020",
    ]  # fmt: skip
    tuned = cells["J/P, blocks and share chosen on dev (bfloat16)"]
    assert tuned[3:5] == ["0.98: met", "+0.040 [-0.010, +0.090]: **not clear**"]
    steps = cells["S/N, short steps, last third (bfloat16)"]
    assert steps[1] == "0.650 [0.600, 0.700] (float32)"  # adapters of another dtype
    assert steps[3] == "1.23: met, in name"  # words alone have more than adapters and masks
    assert not [what for what in cells if "wealth-seeking" in what or "E/I" in what]


def test_the_papers_figures_stand_beside_ours(cells: dict[str, list[str]]) -> None:
    assert cells["prompt"] == ["41.0", "50.0", "44.0", "–"]
    assert cells["Wanda"] == ["51.5", "55.1", "54.5", "–"]
    assert cells["fine-tuning"] == ["64.0", "70.0", "71.0", "–"]
    assert cells["`directed`, short steps"] == ["–", "94.0", "–", "–"]
