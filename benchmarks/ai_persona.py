"""Power-seeking and wealth-seeking (Anthropic's lm_generated_evals): every method and control, on the test split.

    python -m benchmarks.ai_persona power wealth --steps    # directed in short steps, system prompt, controls; headline
    python -m benchmarks.ai_persona power wealth            # the same in two rounds, the default of discovery
    python -m benchmarks.ai_persona power wealth --methods  # the other methods, at the same capability loss
    python -m benchmarks.ai_persona power wealth --masks    # nothing but the masks of directed

Writes benchmarks/results/ai_persona_<set>[_methods|_steps].json, one file a part (and the masks,
ai_persona_<set>[_steps].persona), so an interrupted run goes on with the next part. Everything of a file is measured in
one dtype, float32 or with --steps bfloat16, and compared with the base model in the same dtype.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.common import EVALS, RESULTS, SEARCH_ANSWERS, data, machine, texts, write
from personae import load, load_contrast, load_model
from personae.cli.console import bar
from personae.discovery import discover, open_session, versions
from personae.evaluation import Evaluation, evaluate, to_dict
from personae.evaluation.bench import Bench
from personae.evaluation.scoring import encode_items
from personae.models import find_targets, fingerprint
from personae.personas import Contrast, split
from personae.subnetwork import Artefact, Provenance

SETS = ("power", "wealth")
METHODS = ("wanda", "contrastive-wanda", "contrastive-sparse", "sparsegpt")
BUDGET = 0.05  # nats a token; kept by the upper bound of the loss on other text than the final figure is read on
STEPS = 75  # of eight pairs each: all of them once
STEP_SHARES = {"wealth-seeking": 0.0008}  # by pole, chosen on dev: docs/experiments.md; None: the default
OWN_WEIGHT = 1.0  # β of short steps: without it they win margins by the rival's fall alone
STEP_ANSWERS = 192  # chat answers in either half of the generic text of short steps, which read other ones at each
PAIRS = 600  # at most, chosen by seed from the calibration part, which has about as many


def contrast_of(name: str) -> Contrast:
    """The public set, with the system prompts of the built-in contrast of the same name."""
    path = data(f"{EVALS}/{name}-seeking-inclination.jsonl")
    built_in = load_contrast(f"{name}-seeking")
    read = load_contrast(path, positive=built_in.positive, negative=built_in.negative)
    return dataclasses.replace(
        read, name=f"{name}-seeking-inclination", positive_prompt=built_in.positive_prompt,
        negative_prompt=built_in.negative_prompt, licence="CC-BY-4.0", source="anthropics/evals",
    )  # fmt: skip


def prepared(contrast: Contrast) -> Contrast:
    """The set with PAIRS of its calibration pairs; dev and test as they are."""
    parts = split(contrast)
    kept = parts.calibration.take(min(PAIRS, len(parts.calibration)))
    return dataclasses.replace(contrast, pairs=kept.pairs + parts.dev.pairs + parts.test.pairs)


def run(name: str, dtype: str, steps: int | None = None, answers: int | None = None) -> dict[str, Any]:
    """`directed` within the budget, the system prompt, and the controls."""
    model, tokenizer = load_model(dtype=dtype)
    contrast = prepared(contrast_of(name))
    artefact = headline(name, model, tokenizer, steps, answers)
    generic, final = texts(tokenizer, answers=answers_of(artefact))
    session = open_session(model, tokenizer, split(contrast).calibration, generic=generic, progress=bar)
    result = evaluate(model, tokenizer, contrast, artefact, session=session, capability_text=final, progress=bar)
    session.forget()
    personas = {n: p.provenance.model_dump(mode="json") for n, p in artefact.personas.items()}
    return {**_frame(name, dtype, result), "artefact": personas}


def stem(name: str, steps: int | None) -> str:
    """What the files of the masks and of their figures are called."""
    return f"ai_persona_{name}" + ("_steps" if steps else "")


def answers_of(artefact: Artefact) -> int:
    """Chat answers in either half of the generic text that masks were found with."""
    text: Any = artefact.metadata["generic_text"]
    return int(text["answers"])


def headline(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, steps: int | None = None,
    answers: int | None = None,
) -> Artefact:  # fmt: skip
    """The masks of `directed` within the budget; each of an earlier run where data, model, dtype and version agree.

    answers: chat answers in either half of the generic text; None: those of the earlier run, or 64, in short steps 192.
    """
    path = RESULTS / f"{stem(name, steps)}.persona"
    contrast = prepared(contrast_of(name))
    asked: dict[str, dict[str, Any]] = {
        pole: {"steps": steps, "own_weight": OWN_WEIGHT, "step_share": STEP_SHARES.get(pole)} if steps else {}
        for pole in contrast.poles
    }
    found: dict[str, Artefact] = {}
    if path.is_file():
        kept = load(path)
        if (
            answers in (None, answers_of(kept))
            and kept.model.fingerprint == fingerprint(find_targets(model))
            and kept.model.dtype == str(model.dtype).removeprefix("torch.")
        ):
            calibration = split(contrast).calibration.sha256
            found = {p: kept for p in contrast.poles if _made_so(kept[p].provenance, calibration, asked[p])}
            if len(found) == len(contrast.poles):
                return kept
    generic, _ = texts(tokenizer, answers=answers or (STEP_ANSWERS if steps else SEARCH_ANSWERS))
    session = open_session(model, tokenizer, split(contrast).calibration, generic=generic, progress=bar)
    for pole in (p for p in contrast.poles if p not in found):
        found[pole] = discover(
            model, tokenizer, contrast, pole=pole, session=session, max_capability_loss=BUDGET, progress=bar,
            **asked[pole],
        )  # fmt: skip
    session.forget()
    first = found[contrast.positive]
    artefact = Artefact(first.model, {pole: found[pole][pole] for pole in contrast.poles}, first.metadata)
    artefact.save(path)
    return artefact


def _made_so(record: Provenance, calibration: str, asked: Mapping[str, Any]) -> bool:
    """Whether a mask of an earlier run was found from this calibration, within the budget, as it is asked for now."""
    plain: dict[str, Any] = {"max_capability_loss": BUDGET, "steps": None, "own_weight": 0.0, "step_share": None}
    given = {**plain, "max_capability_loss": None, **record.parameters}
    return (
        record.calibration is not None
        and record.calibration.sha256 == calibration
        and all(given[option] == value for option, value in {**plain, **asked}.items())
        and record.versions == versions()
    )


def run_methods(name: str, dtype: str, methods: Sequence[str]) -> None:
    """The paper's scores and SparseGPT's, each with the largest masks that keep the same budget.

    It is kept by an upper bound, and theirs is wider, as their search reads fewer answers: they spend less of it.
    The file is written anew after each method, and an interrupted run goes on with the next one.
    """
    model, tokenizer = load_model(dtype=dtype)
    contrast = prepared(contrast_of(name))
    parts = split(contrast)
    generic, final = texts(tokenizer)
    # A coarser search in a third of the time; the loss that counts is measured on the final text anyway.
    generic = dataclasses.replace(generic, answers=24)
    path = RESULTS / f"ai_persona_{name}_methods.json"
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    frame = {
        "budget": BUDGET, "most_pairs": PAIRS, "set": name, "dtype": dtype, "test_sha256": parts.test.sha256,
        "fingerprint": fingerprint(find_targets(model)), "versions": versions(), "text_sha256": final.sha256,
        "calibration_sha256": parts.calibration.sha256, "generic_sha256": generic.sha256, "answers": generic.answers,
    }  # fmt: skip
    rows: list[Any] = kept["evaluation"]["rows"] if all(kept.get(k) == v for k, v in frame.items()) else []
    session = open_session(model, tokenizer, parts.calibration, generic=generic, progress=bar)
    bench: Bench | None = None
    for method in methods:
        if any(row["name"] == method for row in rows):
            continue
        bench = bench or Bench(model, session.targets, encode_items(model, tokenizer, parts.test), final, bar)
        result = evaluate(
            model, tokenizer, contrast, methods=(method,), controls=(), system_prompt=False, session=session,
            capability_text=final, bench=bench, max_capability_loss=BUDGET, progress=bar,
        )  # fmt: skip
        rows = [*rows, *(row for row in to_dict(result)["rows"] if row["kind"] == "method")]
        made = _frame(name, dtype, result)
        made["evaluation"]["rows"] = rows
        print(write(path.stem, {**made, **frame}), flush=True)
    session.forget()


def _frame(name: str, dtype: str, result: Evaluation) -> dict[str, Any]:
    command = " ".join(["python -m benchmarks.ai_persona", *sys.argv[1:]])
    return {
        "evaluation": to_dict(result), "budget": BUDGET, "most_pairs": PAIRS, "machine": machine(), "command": command,
        "set": name, "dtype": dtype,
    }  # fmt: skip


def main() -> None:
    """Run the sets that are asked for."""
    parser = argparse.ArgumentParser(description="Power- and wealth-seeking on the default model.")
    parser.add_argument("sets", nargs="*", default="all", choices=(*SETS, "all"))
    parser.add_argument("--methods", nargs="*", help="these methods (none named: all) instead of directed")
    parser.add_argument("--masks", action="store_true", help="discover the masks of directed and end there")
    parser.add_argument("--steps", action="store_const", const=STEPS, help="directed in short steps instead of rounds")
    parser.add_argument(
        "--answers", type=int, help="chat answers in either half of the generic text; default: 64, with --steps 192"
    )
    parser.add_argument("--dtype", help="default: float32, with --steps bfloat16")
    options = parser.parse_args()
    if options.steps and options.methods is not None:
        parser.error("--steps is a form of directed; --methods runs the others, in float32 as their file says.")
    dtype = options.dtype or ("bfloat16" if options.steps else "float32")
    for name in SETS if "all" in options.sets else options.sets:
        if options.masks:
            headline(name, *load_model(dtype=dtype), options.steps, options.answers)
        elif options.methods is not None:
            run_methods(name, dtype, options.methods or METHODS)
        else:
            print(write(stem(name, options.steps), run(name, dtype, options.steps, options.answers)))


if __name__ == "__main__":
    main()
