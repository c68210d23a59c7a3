"""The suites of docs/suites.md on the default model, one result file a suite.

    python -m benchmarks.suites mbti roleplay-rolebench roleplay-merchant big-five-power capability-power …

Each ends within about 40 minutes on two cores by the arithmetic in its module (`mbti-steps-…`: an hour of one core);
finished parts are kept under benchmarks/.parts, so an interrupted run goes on (`seconds_of_this_run` knows nothing of
earlier ones). `capability-…`, `big-five-…` and `generation-…` read the masks of two rounds
(benchmarks/results/ai_persona_<set>.persona, written by `python -m benchmarks.ai_persona`) and run in float32, as those
were found; so does S/N, measured before there was a choice. `…-steps` reads the masks of short steps, the headline
(ai_persona_<set>_steps.persona). All others run in bfloat16, in which a core with matrix units reads four times as many
tokens; `--dtype` says otherwise.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.ai_persona import BUDGET, OWN_WEIGHT, SETS, STEPS, contrast_of, prepared, stem
from benchmarks.common import DATA, RESULTS, ROOT, machine, texts, write
from personae import load, load_model
from personae.cli.console import bar
from personae.discovery import Settings
from personae.evaluation.suites import SuiteContext, SuiteResult, suite_to_dict, suite_to_markdown
from personae.subnetwork import Artefact

MBTI_STEPS = 30  # of eight couples each: 120 answers a pole twice
MBTI_RANDOM_SEEDS = 5


def committed_masks(names: Sequence[str] = SETS, steps: int | None = None) -> list[Artefact]:
    """Artefacts of two rounds, or of short steps; the benchmark ends with a reason where they are absent."""
    paths = [RESULTS / f"{stem(name, steps)}.persona" for name in names]
    missing = [str(p.name) for p in paths if not p.is_file()]
    if missing:
        command = "python -m benchmarks.ai_persona" + " --steps" * bool(steps)
        sys.exit(f"no {', '.join(missing)} in benchmarks/results: run {command} first.")
    return [load(path) for path in paths]


def _ai_persona(context: SuiteContext) -> SuiteResult:
    from personae.evaluation.suites.ai_persona import run

    return run(context, ("hallucination", "survival-instinct", "myopic-reward", "corrigible"), pairs=200)


def _mbti(dimensions: tuple[str, ...]) -> Callable[[SuiteContext], SuiteResult]:
    """Masks as the product finds them, within a budget: a fixed share of 0.2 % cost S/N 0.22 and 0.69 nats a token."""

    def run_these(context: SuiteContext) -> SuiteResult:
        from personae.evaluation.suites.mbti import run

        return run(
            context, dimensions=dimensions, cheap_share=None, drop_share=None, max_capability_loss=BUDGET,
            ceiling=len(dimensions) == 1,
        )  # fmt: skip

    return run_these


def _mbti_steps(dimension: str) -> Callable[[SuiteContext], SuiteResult]:
    """Short steps in the last third of the blocks, where tuning found S/N and E/I; the ceiling is that of `mbti-…`."""

    def run_this(context: SuiteContext) -> SuiteResult:
        from personae.evaluation.suites.mbti import SHORT_STEPS, run

        return run(
            context, dimensions=(dimension,), cheap_share=None, drop_share=None, max_capability_loss=BUDGET,
            steps=MBTI_STEPS, **SHORT_STEPS, random_seeds=MBTI_RANDOM_SEEDS,
        )  # fmt: skip

    return run_this


def _mbti_tuned(dimension: str) -> Callable[[SuiteContext], SuiteResult]:
    """Per range of blocks, within the budget: sizes about those that the budget leaves to masks of all blocks."""

    def run_this(context: SuiteContext) -> SuiteResult:
        from personae.evaluation.suites.mbti import run
        from personae.evaluation.suites.mbti_tuning import Tuning

        return run(
            context,
            dimensions=(dimension,),
            tuning=Tuning(shares=(0.00025, 0.0005, 0.001, 0.002), max_capability_loss=BUDGET),
        )

    return run_this


def _roleplay(name: str) -> Callable[[SuiteContext], SuiteResult]:
    """Within a budget, as MBTI's masks: the suite's fixed share costs more than the gains that it is there for.

    Own answers weigh more: by the margin alone most masks of a play made all of its lines less likely, own ones too.
    """

    def run_this(context: SuiteContext) -> SuiteResult:
        from personae.evaluation.suites.roleplay import run

        return run(
            context, sets=(name,), settings=Settings(max_capability_loss=BUDGET, rounds=1, own_weight=OWN_WEIGHT)
        )

    return run_this


def _faithfulness(name: str) -> Callable[[SuiteContext], SuiteResult]:
    def run_this(context: SuiteContext) -> SuiteResult:
        from personae.evaluation.suites.faithfulness import run

        return run(context, contrast_of(name))

    return run_this


def _grid(name: str, **chosen: Any) -> Callable[[SuiteContext], SuiteResult]:
    """Sparsity × pairs, some of the methods a run: all at once would take hours, and their parts outlive no machine."""

    def run_this(context: SuiteContext) -> SuiteResult:
        from personae.evaluation.suites.isolated_grid import run

        generic, final = texts(context.tokenizer)
        # Less than a headline is read on, for a cell of so many; answers come pole by pole, so these are of one.
        text = replace(
            final, plain=final.plain[:8], chat=final.chat[:24],
            name=f"the first 8 windows and the first 24 answers, all of one pole, of: {final.name}",
        )  # fmt: skip
        return run(context, contrast_of(name), generic=replace(generic, answers=24), text=text, **chosen)

    return run_this


def _activation(name: str) -> Callable[[SuiteContext], SuiteResult]:
    def run_this(context: SuiteContext) -> SuiteResult:
        from personae.evaluation.suites.activation import run

        generic, _ = texts(context.tokenizer)
        return run(context, contrast_of(name), generic=replace(generic, answers=24))

    return run_this


def _generation(name: str, steps: int | None = None) -> Callable[[SuiteContext], SuiteResult]:
    def run_this(context: SuiteContext) -> SuiteResult:
        from personae.evaluation.suites.generation import run

        return run(context, committed_masks((name,), steps)[0], prepared(contrast_of(name)))

    return run_this


def _big_five(name: str, steps: int | None = None) -> Callable[[SuiteContext], SuiteResult]:
    def run_this(context: SuiteContext) -> SuiteResult:
        from personae.evaluation.suites.big_five import run

        return run(context, committed_masks((name,), steps))

    return run_this


def _capability(name: str, steps: int | None = None) -> Callable[[SuiteContext], SuiteResult]:
    def run_this(context: SuiteContext) -> SuiteResult:
        from personae.evaluation.suites.capability import run

        # What base says is kept for the other set. In float32 an item takes four times as long.
        return run(context, committed_masks((name,), steps), items=500 if steps else 250)

    return run_this


SUITES: dict[str, Callable[[SuiteContext], Any]] = {
    "ai-persona": _ai_persona,
    "mbti": _mbti(("EI", "SN", "TF", "JP")),
    **{f"mbti-{d}": _mbti((d,)) for d in ("EI", "SN", "TF", "JP")},  # with the trained ceiling
    **{f"mbti-steps-{d}": _mbti_steps(d) for d in ("EI", "SN", "TF", "JP")},
    "roleplay-rolebench": _roleplay("rolebench"),
    "roleplay-merchant": _roleplay("merchant"),
    **{f"big-five-{name}": _big_five(name) for name in SETS},
    "capability-power": _capability("power"),  # of two rounds; the headline masks of both sets are below
    **{f"faithfulness-{name}": _faithfulness(name) for name in SETS},
    # On the same items and text; the first has the controls of all four.
    "grid-power-ours": _grid("power", methods=("directed",)),
    "grid-power-wanda": _grid("power", methods=("wanda", "contrastive-wanda"), controls=()),
    "grid-power-sparse": _grid("power", methods=("contrastive-sparse",), controls=()),
    "grid-power-sparsegpt": _grid("power", methods=("sparsegpt",), controls=()),
    **{f"activation-{name}": _activation(name) for name in SETS},
    "generation-power": _generation("power"),
    **{f"big-five-{name}-steps": _big_five(name, STEPS) for name in SETS},
    **{f"capability-{name}-steps": _capability(name, STEPS) for name in SETS},
    **{f"generation-{name}-steps": _generation(name, STEPS) for name in SETS},
    **{f"mbti-tuned-{d}": _mbti_tuned(d) for d in ("EI", "SN", "JP")},  # T/F meets its target without
}

IN_FLOAT32 = ("big-five", "capability", "generation", "mbti-SN")


def dtype_of(suite: str) -> str:
    """The dtype that a suite is measured in."""
    return "float32" if suite.startswith(IN_FLOAT32) and not suite.endswith("-steps") else "bfloat16"


def main() -> None:
    """Run the suites that are asked for."""
    parser = argparse.ArgumentParser(description="Suites on the default model.")
    parser.add_argument("suites", nargs="+", choices=sorted(SUITES))
    parser.add_argument("--limit", type=int, help="at most so many items a set; recorded")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: by suite")
    options = parser.parse_args()
    loaded = functools.lru_cache(maxsize=1)(lambda dtype: load_model(dtype=dtype))
    for name in options.suites:
        model, tokenizer = loaded(options.dtype or dtype_of(name))
        parts, started = ROOT / "benchmarks" / ".parts", time.monotonic()
        context = SuiteContext(model, tokenizer, DATA, parts=parts, limit=options.limit, progress=bar)
        result = SUITES[name](context)
        print(suite_to_markdown(result))
        command = " ".join(["python -m benchmarks.suites", name, *_given(options)])
        told = {"machine": machine(), "command": command, "seconds_of_this_run": round(time.monotonic() - started)}
        print(write(f"suite_{name}", {**suite_to_dict(result), **told}), flush=True)


def _given(options: argparse.Namespace) -> list[str]:
    """The options, as they were given."""
    said = {"--limit": options.limit, "--dtype": options.dtype}
    return [word for name, value in said.items() if value is not None for word in (name, str(value))]


if __name__ == "__main__":
    main()
