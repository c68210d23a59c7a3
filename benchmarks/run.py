"""`make bench`: run every benchmark whose result is missing or was begun (or all, with --again), gather summary.json.

`make bench` then writes docs/evidence.md and the README's tables anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from typing import Any

from benchmarks.ai_persona import SETS
from benchmarks.begun import left
from benchmarks.common import RESULTS, ROOT, write
from benchmarks.rivals import CONTROLS
from benchmarks.suites import SUITES
from personae.discovery import versions

PARTS = {
    "discovery_speed": ["benchmarks.discovery_speed"],
    "ai_persona_power": ["benchmarks.ai_persona", "power"],
    "ai_persona_wealth": ["benchmarks.ai_persona", "wealth"],
    "ai_persona_power_methods": ["benchmarks.ai_persona", "power", "--methods"],
    "ai_persona_wealth_methods": ["benchmarks.ai_persona", "wealth", "--methods"],
    "objectives": ["benchmarks.objectives"],
    "planted": ["benchmarks.planted"],
    "switching": ["benchmarks.switching"],
    "mixed": ["benchmarks.mixed"],
    "leaks": ["benchmarks.leaks"],
    "serving": ["benchmarks.serving"],
    "file_size": ["benchmarks.file_size"],
    "fuzz_reader": ["benchmarks.fuzz_reader"],
    "compare": ["benchmarks.compare", "--limit", "24"],
    "trace": ["benchmarks.trace"],
    "audit": ["benchmarks.audit"],
    "audit_public": ["benchmarks.audit", "--public"],
    "causal_power": ["benchmarks.causal", "power"],
    "audit_budget": ["benchmarks.audit", "--budget", "0.1"],
    "gains": ["benchmarks.gains"],
    "budget_noise": ["benchmarks.budget_noise"],
    "negations": ["benchmarks.negations"],
    **{f"ai_persona_{name}_steps": ["benchmarks.ai_persona", name, "--steps"] for name in SETS},
    "openings": ["benchmarks.openings"],
    **{f"frontier_{name}_steps": ["benchmarks.frontier", name, "--steps"] for name in SETS},
    **{f"gates_{name}_steps": ["benchmarks.gates", name, "--steps"] for name in SETS},
    **{f"orders_{name}": ["benchmarks.orders", name, "--dtype", "bfloat16"] for name in SETS},
    "rivals_power": ["benchmarks.rivals", "power"],
    "rivals_wealth": ["benchmarks.rivals", "wealth"],
    **{f"rivals_{name}_steps": ["benchmarks.rivals", name, "--steps"] for name in SETS},
    **{f"suite_{name}": ["benchmarks.suites", name] for name in SUITES},
}
FIGURES = (  # key of the summary, result file, figure in it
    ("planted.directed_auc", "planted", "planted.directed_auc"),
    *(
        (f"isolated30.power_{figure}", "suite_grid-power-ours", f"isolated30.{figure}")
        for figure in ("acc", "capability_loss")  # never one without the other: this accuracy costs 12 nats a token
    ),
)


def summary() -> dict[str, float]:
    """The flat object of headline numbers, from the result files that are there."""
    flat: dict[str, float] = {}
    for name in ("power", "wealth"):
        # Two rounds are the default of discovery; short steps are the headline.
        for form, stem in (("directed", f"ai_persona_{name}"), ("headline", f"ai_persona_{name}_steps")):
            found = _read(stem)
            if not found:
                continue
            row = next(r for r in found["evaluation"]["rows"] if r["name"] == "directed")
            for key in ("acc", "acc_opposite", "acc_tied", "acc_tied_opposite"):
                flat[f"{name}.{form}.{key}"] = _value(row[key])
            flat[f"{name}.{form}.capability_loss"] = row["capability_loss"]
            claim = next((c for c in row["claims"] if c["figure"] == "acc"), None)
            if claim and form == "headline":
                flat[f"{name}.headline.minus_best_control_of_its_size"] = claim["value"]
                if others := _other_controls(name):
                    flat[f"{name}.headline.minus_best_control"] = min([claim["value"], *others])
        flat |= _rivals(name)
    speed = _read("discovery_speed")
    if speed:
        flat["discovery.statistics_over_forward"] = speed["statistics_over_forward"]
        flat["discovery.attribution_over_forward"] = speed["attribution_over_forward"]
        flat["scoring.shared_prompt_speedup"] = speed["shared_prompt_speedup"]
        flat["memory.statistics_over_model"] = speed["memory.statistics_over_model"]
        flat["memory.attribution_over_model"] = speed["memory.attribution_over_model"]
    size = _read("file_size")
    if size:
        flat |= {key: size[key] for key in ("file.over_entropy", "file.sixteen_over_one")}
    switching = [f"switch.{name}_over_copy" for name in ("sparse02", "sparse1", "dense50")]
    mixed = [f"mixed.{name}" for name in ("eight_over_none", "thirty_two_over_none", "peft_over_ours")]
    for result, keys in (("switching", [*switching, "switch.reload_over_sparse1"]), ("mixed", mixed)):
        kept = _read(result)
        if kept:
            flat |= {key: kept[key] for key in keys}
    leaks = _read("leaks")
    if leaks:
        flat["serve.leaks"] = leaks["serve.leaks"]
    serving = _read("serving")
    if serving:
        for key in ("serve.eight_over_one", "serve.ours_over_transformers", "serve.failed"):
            if serving[key] is not None:
                flat[key] = serving[key]
    compared = _read("compare")
    if compared:
        flat["compare.seconds"] = compared["compare.seconds"]
    traced = _read("trace")
    if traced:
        flat |= {key: value for key, value in traced.items() if key.startswith("trace.")}
    audited = _read("audit")
    if audited:
        flat |= {key: audited[key] for key in ("audit.minutes", "audit.disabled_max_alignment")}
    fuzz = _read("fuzz_reader")
    if fuzz:
        flat["file.fuzz_inputs"], flat["file.fuzz_crashes"] = fuzz["inputs"], fuzz["crashes"]
    for key, result, figure in FIGURES:
        kept = _read(result)
        if kept and kept["figures"].get(figure) is not None:
            flat[key] = _value(kept["figures"][figure])
    for dimension in ("EI", "SN", "TF", "JP"):
        flat |= _dimension(dimension)
    if both := [kept for name in ("power", "wealth") if (kept := _read(f"suite_capability-{name}-steps"))]:
        # The worst headline mask: of an accuracy the lowest, of what should stay where it is the farthest.
        flat["capability.hellaswag_change"] = min(_value(kept["figures"]["hellaswag_change"]) for kept in both)
        flat["capability.mmlu_gold_logprob_change"] = max((c for kept in both for c in _gold_letters(kept)), key=abs)
    return flat


MBTI_FORMS = {"mbti-steps": "steps", "mbti-tuned": "tuned", "mbti": "one_round"}  # the latest first


def _dimension(dimension: str) -> dict[str, float]:
    """MBTI: AUC of every form of masks, over what adapters reach on the same rows, and what both have above chance.

    Without a form in its name a key is of the latest that was measured: short steps in the last third of the blocks,
    blocks and share chosen on dev, all blocks in one round. No figure of test chooses between them.
    """
    plain, found = _read(f"suite_mbti-{dimension}"), dict[str, float]()
    for form, name in MBTI_FORMS.items():
        masks = _read(f"suite_{form}-{dimension}")
        if not masks:
            continue
        figures = {"auc": _value(masks["figures"][f"{dimension}.auc"])}
        if (ceiling := ceiling_of(dimension, masks, plain)) is not None:
            figures["auc_over_ceiling"] = figures["auc"] / _value(ceiling)
            if ceiling["low"] > 0.5:  # else there is no gain over chance to be a share of
                figures["auc_gain_over_ceiling"] = (figures["auc"] - 0.5) / (_value(ceiling) - 0.5)
        if not found:
            found |= {f"mbti.{dimension}.{key}": value for key, value in figures.items()}
        found |= {f"mbti.{dimension}.{name}_{key}": value for key, value in figures.items()}
    return found


def ceiling_of(dimension: str, found: dict[str, Any], plain: dict[str, Any] | None) -> Any:
    """AUC of the adapters of `mbti-<dimension>`, where masks were read on the same answers; None without them.

    found: the suite of the masks. plain: that of masks of all blocks, which the adapters were trained beside.
    """
    answers = f"{dimension}.test_answers"
    if not plain or found["data"] != plain["data"] or found["figures"][answers] != plain["figures"][answers]:
        return None
    return plain["figures"].get(f"{dimension}.auc_ceiling")


def _gold_letters(capability: dict[str, Any]) -> list[float]:
    """Change of the mean log-probability of MMLU's gold letter among the four, of every mask of a capability suite."""
    [table] = [t for t in capability["tables"] if t["title"] == "MMLU: log-probability, change to base"]
    place = table["columns"].index("gold letter among the four, nats")
    return [_value(row[place]) for row in table["rows"]]


def _other_controls(name: str) -> list[float]:
    """Accuracy of the headline minus each control that stands among its rivals: another persona's mask, and so on."""
    found = _read(f"rivals_{name}_steps") or {"made": {}, "minus": {}}
    rows = [row["name"] for which in CONTROLS for row in found["made"].get(which, ())]
    return [_value(found["minus"][row]["acc"]) for row in rows]


def _rivals(name: str) -> dict[str, float]:
    """The headline minus trained and steered rivals in acc, and the best masks found without a gradient."""
    flat: dict[str, float] = {}
    # A mean of paired differences is the difference of means, so a rival measured in float32 beside two rounds can
    # stand in, on the same test items, for one that has not been measured in the headline's bfloat16 yet.
    files = [_read(f"rivals_{name}{form}") or {"made": {}} for form in ("_steps", "")]
    headline = _read(f"ai_persona_{name}_steps")
    for key, rival in (("sft", "lora-sft"), ("dpo", "lora-dpo"), ("caa", "steering")):
        measured = next((f for f in files if rival in f["made"]), None)
        if measured and headline and measured["test_sha256"] == headline["evaluation"]["data"]["test_sha256"]:
            own = next(r for r in headline["evaluation"]["rows"] if r["name"] == "directed")
            [row] = measured["made"][rival]
            flat[f"{name}.headline.minus_{key}"] = _value(own["acc"]) - _value(row["acc"])
    others = _read(f"ai_persona_{name}_methods")
    rows = [r for file in files for rows in file["made"].values() for r in rows]
    rows += others["evaluation"]["rows"] if others else []
    forward = [_value(r["acc"]) for r in rows if r["kind"] == "method" and r["cost"] == "forward-only"]
    if forward:  # the best of them on these very items, which favours them
        flat[f"{name}.forward_only.acc"] = max(forward)
    return flat


def _read(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _value(figure: Any) -> float:
    return float(figure["value"] if isinstance(figure, dict) else figure)


def _forget(name: str) -> None:
    """Remove a result and its masks, which their benchmark would take up again: git has the last ones."""
    for ending in ("json", "persona"):
        (RESULTS / f"{name}.{ending}").unlink(missing_ok=True)


def main() -> None:
    """Run, then gather."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="forget results, masks and parts, and run all")
    parser.add_argument("--gather", action="store_true", help="run nothing, only gather")
    options = parser.parse_args()
    if options.again and not options.gather:
        shutil.rmtree(ROOT / "benchmarks" / ".parts", ignore_errors=True)
    for name, command in PARTS.items():
        if options.again and not options.gather:
            _forget(name)
        found = _read(name)
        begun = found is not None and left(name, found)
        if begun and found["versions"] != versions() and not options.gather:
            # To go on would throw away what is there: its conditions are taken up on the same versions only.
            print(f"{name} was begun under other versions: --again measures it anew.", flush=True)
            continue
        if not options.gather and (found is None or begun):
            subprocess.run([sys.executable, "-m", *command], check=True)
    print(write("summary", summary()))


if __name__ == "__main__":
    main()
