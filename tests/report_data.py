"""Result files for the tests of `personae report`: small, with the fields that the analyses and suites write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from personae.evaluation import Estimate, to_dict
from personae.evaluation.bootstrap import Difference
from personae.evaluation.conditions import Claim, Loss, Reading, Row
from personae.evaluation.results import DataRecord, Evaluation, ModelRecord, TextRecord
from personae.evaluation.scoring import Baselines
from personae.evaluation.suites import SuiteResult, Table, suite_to_dict

MODEL = ModelRecord("tiny-f00d", None, "sha256:f00d", "LlamaForCausalLM", "float32", "cpu", 720)
VERSIONS = {"personae": "0.1.0", "torch": "2.0"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> $x$ _y %{z} {{ 7*7 }} <b>&amp;"


def three(value: float, width: float = 0.05) -> dict[str, float]:
    """An estimate with its interval."""
    return {"value": value, "low": value - width, "high": value + width}


def four(value: float, width: float = 0.05, p: float = 0.01) -> dict[str, float]:
    """A difference with interval and p."""
    return {**three(value, width), "p": p}


def record(kind: str, result: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The file of an analysis, as `write_result` writes it."""
    model = {
        "id": MODEL.id, "revision": None, "fingerprint": MODEL.fingerprint, "architecture": MODEL.architecture,
        "dtype": "float32", "device": "cpu", "weights": MODEL.weights,
    }  # fmt: skip
    return {
        "format": "personae.analysis/1", "kind": kind, "command": f"personae {kind} x.persona --seed 3", "model": model,
        "inputs": {"x.persona": "ab" * 32}, "settings": {"items": 40, "deep": {"share": 0.25}}, "seed": 3,
        "notes": [f"a note of {kind}"], "versions": VERSIONS, "result": dict(result), **more,
    }  # fmt: skip


def write(path: Path, content: Any) -> Path:
    """Write JSON."""
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


# --- evaluations ----------------------------------------------------------------------------------------------


def row(name: str, kind: str, acc: float, loss: float | None, share: float = 0.01, **more: Any) -> Row:
    """A condition: acc and 1 − acc under the two masks, loss under p⁻'s mask half of that under p⁺'s."""
    up, down = Estimate(acc, acc - 0.05, acc + 0.05), Estimate(1 - acc, 0.95 - acc, 1.05 - acc)
    margin = Estimate(2 * acc - 1, 2 * acc - 1.2, 2 * acc - 0.8)
    lost = None if loss is None else Loss(loss, loss / 2, loss / 4, loss / 8, (0.002, 0.001, 0.004, 0.003))
    reading = Reading(None, acc, 1 - acc, (0.1,), (-0.1,), ((-1.0, -2.0),), ((-2.0, -1.0),))
    given: dict[str, Any] = {
        "name": name, "kind": kind, "acc": up, "acc_opposite": down, "acc_tied": up, "acc_tied_opposite": None,
        "tied_separation": None, "margin": margin, "margin_opposite": margin, "acc_sum": up, "acc_sum_opposite": down,
        "acc_byte": up, "acc_byte_opposite": down, "own_answers": margin, "own_answers_opposite": margin,
        "sparsity": share, "sparsity_positive": share, "sparsity_negative": 2 * share, "loss": lost, "seconds": 12.0,
        "cost": "one backward", "extra_prompt_tokens": 0.0, "note": "", "readings": (reading,),
    }  # fmt: skip
    return Row(**{**given, **more})


def evaluation(*rows: Row, test: str = "7e57", text: str = "7ec7", **more: Any) -> Evaluation:
    """Base, a prompt, a method with a claim and a control, or the rows given."""
    claim = Claim("acc", "random", 0.3, 0.2, 0.4, 0.0004, 0.0012)
    chosen = rows or (
        row("base", "base", 0.55, 0.0, 0.0),
        row("system prompt", "prompt", 0.6, None, 0.0, extra_prompt_tokens=31.0),
        row("directed", "method", 0.9, 0.04, claims=(claim,)),
        row("random", "control", 0.5, 0.02),
    )
    data = DataRecord(
        "bold-shy", "bold", "shy", "made here", "Apache-2.0", "c0" * 32, test, 0, 2, 1, "Q: Hello?\nA:", ("a", "b"),
        ((3, 4), (5, 6)), ((9, 9), (9, 9)), (False, True),
    )  # fmt: skip
    given: dict[str, Any] = {
        "model": MODEL, "data": data, "text": TextRecord("plain and chat", text, 24, 200, 3.7, 1.7),
        "baselines": Baselines(0.52, 0.8, 0.5, 0.53, 0.5), "rows": chosen, "notes": ("a note of eval",),
        "resamples": 2000, "seed": 0, "versions": VERSIONS, "warnings": ("the items give themselves away",),
    }  # fmt: skip
    return Evaluation(**{**given, **more})


def evaluation_file(path: Path, *rows: Row, **more: Any) -> Path:
    """An evaluation on disk, without a command."""
    return write(path, to_dict(evaluation(*rows, **more)))


def frontier() -> dict[str, Any]:
    """As benchmarks/frontier.py writes it: two conditions of one pole, one of the other."""

    def point(condition: str, pole: str, dropped: int, acc: float, loss: float) -> dict[str, Any]:
        return {
            "condition": condition, "pole": pole, "dropped": dropped, "share": dropped / 1e6, "multiple": 1.0,
            "acc": [acc, acc - 0.04, acc + 0.04], "acc_tied": [acc, acc - 0.1, acc + 0.1], "plain": loss / 2,
            "chat": loss, "plain_error": 0.001, "chat_error": 0.002, "outcomes": [1.0, 0.0],
        }  # fmt: skip

    return {
        "set": "bold", "budget": 0.05, "fingerprint": MODEL.fingerprint, "test_sha256": "7e57", "text_sha256": "7ec7",
        "calibration_sha256": "ca11", "dtype": "float32", "command": "python -m benchmarks.frontier bold",
        "versions": VERSIONS, "machine": {"threads": 1},
        "points": [
            point("directed", "bold", 3000, 0.9, 0.04), point("directed", "bold", 300, 0.7, 0.01),
            point("random", "bold", 300, 0.55, 0.02), point("directed", "shy", 300, 0.65, 0.015),
        ],
    }  # fmt: skip


# --- suites ---------------------------------------------------------------------------------------------------


def faithfulness() -> dict[str, Any]:
    """The tables of the suite 'faithfulness', with their real titles and columns."""
    at = (0.1, 0.3, 0.5)
    f = {rho: Estimate(1.2 - rho, 1.1 - rho, 1.3 - rho) for rho in at}
    change = Difference(0.2, 0.1, 0.3, 0.01)
    blank = (None,) * 4
    sufficiency = Table(
        "Sufficiency of isolated subnetworks",
        ("method", "sparsity", "F", "acc", "margin", "gain", "own", "complement F", "complement acc", "acc minus best",
         "p (Holm)"),
        (
            ("base", 0.0, f[0.1], f[0.1], f[0.1], change, change, *blank),
            ("none", 1.0, f[0.1], f[0.1], f[0.1], change, change, *blank),
            *(("directed", rho, f[rho], f[rho], f[rho], change, change, f[0.5], f[0.5], change, 0.02) for rho in at),
            *(("wanda", rho, f[rho], f[rho], f[rho], change, change, *blank) for rho in reversed(at)),
        ),
        ("F: faithfulness",), ("lengths differ",),
    )  # fmt: skip
    minimality = Table(
        "Minimality: the mask by tenths", ("decile", "margin gained", "minus random", "acc"),
        (*((k, Difference(1 / k, 0.9 / k, 1.1 / k, 0.01), change, f[0.1]) for k in range(1, 11)),
         ("random", Difference(0.05, 0.0, 0.1, 0.3), None, None)),
    )  # fmt: skip
    restored = Table(
        "Restoring one part at a time", ("part", "lost when restored", "brought alone", "items"),
        (("attention", f[0.3], f[0.1], 40), ("mlp", f[0.5], f[0.3], 40),
         *((f"block {b}", Estimate(0.1 * b, 0.05 * b, 0.2 * b), None, 20) for b in range(3))),
    )  # fmt: skip
    result = SuiteResult(
        "faithfulness", MODEL, {"bold-shy": "c0" * 32}, {"sparsities": list(at)}, {"necessity": change},
        (sufficiency, minimality, restored), ("persona: bold",), 0, VERSIONS,
    )  # fmt: skip
    return suite_to_dict(result)


# --- analyses -------------------------------------------------------------------------------------------------


def trace(personas: tuple[str, ...] = ("bold", "shy"), tokens: tuple[str, ...] = ("Yes", ",", " I\n")) -> Any:
    """The file of a trace; each token speaks for another persona than the one before."""
    signs = [[1.0 if (p + t) % 2 == 0 else -1.0 for t in range(len(tokens))] for p in range(len(personas))]
    layers = [{"block": block, "kind": kind} for block in range(2) for kind in ("attention", "mlp")]
    scores = {name: sum(row) / len(row) for name, row in zip(personas, signs, strict=True)}
    result = {
        "question": "Would you?", "opening": "", "personas": list(personas),
        "verdict": {
            "persona": personas[0], "second": personas[-1], "decided": True, "lead": 0.667, "error": 0.2,
            "scores": scores, "offsets": dict.fromkeys(personas, 0.0), "sentence": f"{personas[0]} speaks",
        },
        "over_base": scores, "tokens": list(tokens), "ids": list(range(len(tokens))), "base": [-1.0] * len(tokens),
        "log_p": dict(zip(personas, signs, strict=True)), "relative": dict(zip(personas, signs, strict=True)),
        "layers": layers, "overall_share": {name: [0.01, 0.02, 0.03, None] for name in personas},
        "share": None,
    }  # fmt: skip
    return record("trace", result)


def accessibility(start: float, top: float) -> dict[str, Any]:
    """A curve that rises from start to top over four sizes."""
    points = [
        {"dropped": 10**k, "share": 10.0 ** (k - 6), "alignment": three(start + (top - start) * (k - 1) / 3),
         "margin": 0.1 * k, "control": three(start) if k < 4 else None}
        for k in range(1, 5)
    ]  # fmt: skip
    reached = top > 0.75
    return {
        "base": three(start), "points": points, "threshold": 0.75, "area": three((start + top) / 2),
        "control_area": three(start), "above_control": four((top - start) / 2),
        "smallest": 0.001 if reached else None, "smallest_low": 0.0005 if reached else None, "smallest_high": None,
        "reached": 1.0 if reached else 0.1, "loss": 0.03 if reached else None,
    }  # fmt: skip


def aligned(value: float) -> dict[str, Any]:
    """An alignment on 40 items."""
    return {"items": 40, "tied_items": 12, "all": three(value), "tied": three(value, 0.1), "margin": three(2 * value)}


def hazard(contrast: str, *, disabled: bool = True) -> dict[str, Any]:
    """One hazard of an audit, disabled or without a mask that would do it."""
    kept = {
        "contrast": "introvert-extravert", "pole": "introvert", "items": 32, "before": three(0.5), "after": three(0.52),
        "change": four(0.02), "margin_change": four(0.01), "touched": False,
    }  # fmt: skip
    mask = {
        "persona": f"{contrast}-averse", "dropped": 1000, "share": 0.001, "rounds": 2, "target": 0.15,
        "dev": aligned(0.1), "reached": True, "budget": 0.05, "searched_loss_bound": 0.045, "probes": 7,
        "loss": {"plain": three(0.01), "chat": three(0.04), "worst": 0.04, "within": True}, "kept": [kept],
        "own": three(0.06),
    }  # fmt: skip
    attacks = [
        {"name": "few-shot", "kind": "prompt", "base": three(0.8), "disabled": three(0.3) if disabled else None,
         "moved": four(0.25), "margin_moved": four(0.5), "counts": True, "note": ""},
        {"name": "system prompt", "kind": "prompt", "base": three(0.56), "disabled": three(0.1) if disabled else None,
         "moved": four(0.01, p=0.8), "margin_moved": four(0.0), "counts": False, "note": "one prompt"},
    ]  # fmt: skip
    again = {"accessibility": accessibility(0.1, 0.6), "ratio": None, "area": four(0.3), "harder": True}
    return {
        "contrast": contrast, "pole": contrast, "opposite": f"{contrast}-averse", "sha256": "ab" * 32,
        "calibration_items": 100, "dev_items": 40, "base": aligned(0.55), "accessibility": accessibility(0.55, 0.9),
        "places": [
            {"block": block, "kind": kind, "dropped": 100, "share": share, "density": 0.001}
            for block in range(3)
            for kind, share in (("attention", 0.1 * block / 3), ("mlp", 0.3 * block / 3))
        ],
        "restored": [{"blocks": [0, 1], "items": 20, "effect": four(0.4)}, {"blocks": [2], "items": 20,
                                                                          "effect": four(0.1)}],
        "disabling": mask if disabled else None, "disabled": aligned(0.1) if disabled else None,
        "lowered": four(-0.45) if disabled else None, "attacks": attacks, "found_again": again if disabled else None,
        "exposure": 0.3 if disabled else 0.9, "exposure_to_weights": 0.6 if disabled else 0.9,
        "verdict": "disabled" if disabled else "reachable", "sentence": "A sentence of it.",
        "warnings": ["every answer starts with yes"], "seconds": 3.0,
    }  # fmt: skip


def audit(*names: str) -> dict[str, Any]:
    """The file of an audit: the last hazard has no disabling mask."""
    hazards = [hazard(name, disabled=name != names[-1] or len(names) == 1) for name in names]
    some = hazards[0]
    together = {
        "contrasts": list(names[:-1]), "dropped": 40, "share": 0.05,
        "alignments": dict.fromkeys(names, some["base"]),
        "loss": some["disabling"]["loss"], "kept": [],
    } if len(names) > 1 else None  # fmt: skip
    result = {
        "model": MODEL.id, "fingerprint": MODEL.fingerprint, "hazards": hazards, "worst": 0.9, "worst_to_weights": 0.9,
        "seconds": 6.0, "limits": "This certifies nothing.", "together": together,
    }  # fmt: skip
    return record("audit", result)


def overlap(value: float) -> dict[str, Any]:
    """All weights of two masks."""
    figure = {"value": value, "chance": 0.1, "low": 0.08, "high": 0.12}
    return {
        "part": "all", "level": "all", "weights": 720, "first": 70, "second": 70, "common": 20, "expected": 7.0,
        "z": 3.0, "difference": figure, "jaccard": figure, "cosine": figure,
    }  # fmt: skip


def dynamics(steps: tuple[int | None, ...] = (100, 200, 300)) -> dict[str, Any]:
    """Separation rises with every checkpoint."""
    stages = []
    for place, step in enumerate(steps):
        acc = 0.5 + 0.1 * place
        control = {
            "name": "random", "seeds": [0, 1], "acc": three(0.5), "acc_opposite": three(0.5),
            "separation": three(0.01), "separations": [0.0, 0.02],
        }  # fmt: skip
        stages.append({
            "label": f"checkpoint-{place}", "step": step, "source": f"run/{place}", "revision": None,
            "fingerprint": f"sha256:{place}", "items": 40, "tied_items": 0, "base_acc": three(0.5),
            "base_acc_tied": None, "base_margin": three(0.0), "acc": three(acc), "acc_opposite": three(1 - acc),
            "separation": three(2 * acc - 1), "acc_tied": None, "acc_tied_opposite": None, "separation_tied": None,
            "margin": three(acc), "margin_opposite": three(-acc), "controls": [control], "best_control": "random",
            "over_control": four(2 * acc - 1.01), "p_holm": 0.02, "capability_loss": 0.01 * place,
            "capability_loss_error": 0.002, "capability_text": "sampled", "base_plain": 3.0, "base_chat": 2.0,
            "weights": 720, "dropped": [7, 9], "sparsity": 0.011,
            "chosen": [{"cheap_share": 0.1}, {"cheap_share": 0.2}], "seconds": 2.0, "masks": None, "notes": [],
        })  # fmt: skip
    overlaps = [
        {"first": f"checkpoint-{a}", "second": f"checkpoint-{b}", "against": against, "pole": pole,
         "parts": [overlap(0.1 + 0.1 * b)], "among_candidates": 0.05}
        for pole in ("bold", "shy")
        for against, couples in (("previous", [(i, i + 1) for i in range(len(steps) - 1)]),
                                 ("last", [(i, len(steps) - 1) for i in range(len(steps) - 1)]))
        for a, b in couples
    ]  # fmt: skip
    onsets = [{"figure": "separation", "label": "checkpoint-1", "step": steps[1]},
              {"figure": "overlap", "label": None, "step": None}]  # fmt: skip
    result = {
        "contrast": "bold-shy", "positive": "bold", "negative": "shy", "method": "directed", "stages": stages,
        "overlaps": overlaps, "onsets": onsets, "draws": 200, "resamples": 2000, "seed": 0, "notes": ["a series"],
    }  # fmt: skip
    return record("dynamics", result)


def causal() -> dict[str, Any]:
    """Three blocks by two kinds; block 1's MLP holds nearly all."""
    cells = []

    def cell(level: str, part: str, block: int | None, kind: str | None, value: float) -> None:
        cells.append({
            "level": level, "part": part, "block": block, "kind": kind, "target": None, "targets": 3, "weights": 240,
            "dropped": 20, "restored_margin": three(1 - value), "restored_alignment": three(0.7),
            "alone_margin": three(value), "alone_alignment": three(0.6), "necessity": four(value),
            "sufficiency": four(value / 2), "necessity_alignment": four(0.1), "sufficiency_alignment": four(0.1),
            "necessity_share": three(value), "sufficiency_share": None, "random": four(0.0), "over_random": four(0.1),
            "necessity_p_holm": 0.01, "sufficiency_p_holm": 0.2,
        })  # fmt: skip

    for block in range(3):
        for kind in ("attention", "mlp"):
            cell("cell", f"block {block} {kind}", block, kind, 0.9 if (block, kind) == (1, "mlp") else -0.05 * block)
    for block in range(3):
        cell("block", f"block {block}", block, None, 0.9 if block == 1 else 0.02)
    result = {
        "persona": "bold", "rival": "shy", "contrast": "bold-shy", "items": 40, "tied_items": 12,
        "base_margin": three(0.1), "base_alignment": three(0.55), "worn_margin": three(1.1),
        "worn_alignment": three(0.9), "gain": four(1.0), "gain_alignment": four(0.35), "dropped": 60, "weights": 720,
        "cells": cells, "readings": 22, "random_seeds": 3, "resamples": 2000, "seed": 0, "notes": ["a map"],
    }  # fmt: skip
    return record("causal-map", result)
