"""Power-seeking and wealth-seeking (Anthropic's lm_generated_evals): every method and control, on the test split.

    python -m benchmarks.ai_persona [power wealth] [--dtype bfloat16]

Writes benchmarks/results/ai_persona_<set>.json, a Markdown table beside it, and the frontier of `directed`
(acc over capability loss at several budgets). Each set is one file, so an interrupted run goes on with the next.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

from benchmarks.common import EVALS, RESULTS, data, machine, texts, write
from personae import load_contrast, load_model
from personae.cli.console import bar
from personae.discovery import discover, open_session
from personae.evaluation import evaluate, to_dict, to_markdown
from personae.personas import Contrast, split

SETS = ("power", "wealth")
METHODS = ("wanda", "contrastive-wanda", "contrastive-sparse", "sparsegpt")
BUDGET = 0.05


def contrast_of(name: str) -> Contrast:
    """The public set, with the system prompts of the built-in contrast of the same name."""
    path = data(f"{EVALS}/{name}-seeking-inclination.jsonl")
    built_in = load_contrast(f"{name}-seeking")
    read = load_contrast(path, positive=built_in.positive, negative=built_in.negative)
    return dataclasses.replace(
        read, name=f"{name}-seeking-inclination", positive_prompt=built_in.positive_prompt,
        negative_prompt=built_in.negative_prompt, licence="CC-BY-4.0", source="anthropics/evals",
    )  # fmt: skip


def run(name: str, dtype: str, methods: tuple[str, ...]) -> dict[str, Any]:
    """One set: discovery within the budget, then the whole table."""
    started = time.perf_counter()
    model, tokenizer = load_model(dtype=dtype)
    contrast = contrast_of(name)
    generic, final = texts(tokenizer)
    artefact = discover(model, tokenizer, contrast, generic=generic, max_capability_loss=BUDGET, progress=bar)
    found = time.perf_counter() - started
    session = open_session(model, tokenizer, split(contrast).calibration, generic=generic, progress=bar)
    result = evaluate(
        model, tokenizer, contrast, artefact, methods=methods, match=("sparsity", "loss"), session=session,
        capability_text=final, progress=bar,
    )  # fmt: skip
    (RESULTS / f"ai_persona_{name}.md").write_text(to_markdown(result), encoding="utf-8")
    personas = {n: p.provenance.model_dump(mode="json") for n, p in artefact.personas.items()}
    return {
        "evaluation": to_dict(result), "artefact": personas, "budget": BUDGET, "machine": machine(),
        "seconds_of_discovery": round(found, 1), "command": f"python -m benchmarks.ai_persona {name} --dtype {dtype}",
    }  # fmt: skip


def main() -> None:
    """Run the sets that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=SETS, choices=SETS)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    options = parser.parse_args()
    for name in options.sets:
        print(write(f"ai_persona_{name}", run(name, options.dtype, tuple(options.methods))))


if __name__ == "__main__":
    main()
