"""The ai-persona suite: six public two-choice sets, each method and rival on the same items, with what would fool it.

For every set:
1. Read it; which items calibrate, choose and give the figures (`ai_persona_sets`).
2. Masks of both poles by each method, within the budget.
3. `evaluate`: base, system prompt, masks, controls; then the rivals that are asked for, one by one.
4. A stronger model on the same items, with a system prompt and with retrieval.
5. The same items by option letter; for hallucination, the true twins.
Each of these is a part of its own, so a suite that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from personae.discovery import DEFAULT_BUDGET, METHODS, Settings
from personae.errors import OptionError
from personae.evaluation.controls import CONTROLS, SLOW_CONTROLS
from personae.evaluation.results import Evaluation
from personae.evaluation.rivals import RIVALS
from personae.evaluation.scoring import FEW
from personae.evaluation.suites.ai_persona_readings import (
    ROUNDS,
    Loaded,
    SetBench,
    read_conditions,
    read_letters,
    read_stronger,
    read_truth,
)
from personae.evaluation.suites.ai_persona_sets import SETS
from personae.evaluation.suites.ai_persona_table import set_table
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.report import Cell, SuiteResult, Table
from personae.evaluation.suites.texts import QUICK, TextSize, suite_texts
from personae.models import find_targets, fingerprint

WIDE = 100  # items below which a reader is warned
QUICK_CONTROLS = ("random", "opposite")  # magnitude and generic moved neither power nor wealth in the benchmarks


def run(
    context: SuiteContext,
    sets: Sequence[str] = SETS,
    *,
    budget: float = DEFAULT_BUDGET,
    pairs: int = 96,
    items: int | None = 50,
    methods: Sequence[str] = ("directed",),
    rivals: Sequence[str] = (),
    controls: Sequence[str] = QUICK_CONTROLS,
    random_seeds: int = 3,
    letters: bool = True,
    stronger: Loaded | None = None,
    size: TextSize = QUICK,
) -> SuiteResult:
    """Measure `sets` (of `SETS`) and return a table a set, one of letters, and hallucination's truth control.

    budget: capability loss that the masks may cost, nats a token. pairs, items: at most so many calibration pairs and
    test items a set (items None: all). methods: of `discovery.METHODS`; controls and rivals are matched to the first.
    rivals: of `evaluation.RIVALS`, on the same calibration and dev items. stronger: a second model for 'system prompt'
    and 'retrieval'. size: of the capability texts.

    The defaults are for a look: about 300,000 GFLOP on the default model, some 40 minutes on two cores of 60 GFLOP/s.
    Where a table claims something: pairs=600, items=None, random_seeds=20, size=BENCHMARK, all controls.

    Errors: `OptionError` before anything is computed, `DataError` for missing or broken files, `ModelError`.
    """
    _check(sets, budget, pairs, items, methods, rivals, controls, random_seeds)
    common = replace(context, read={})  # what one set has read must not decide the parts of another
    texts = suite_texts(common, size)
    context.read.update(common.read)
    tables: list[Table] = []
    figures: dict[str, Cell] = {}
    letter_rows: list[tuple[Cell, ...]] = []
    for name in sets:
        bench = SetBench(replace(context, read=dict(common.read)), name, texts, budget, pairs, items)
        evaluations, lines = read_conditions(bench, methods, rivals, controls, random_seeds)
        if stronger is not None:
            lines += read_stronger(bench, stronger)
        first = evaluations[0]
        table, found = set_table(
            f"{name}: {first.data.positive} against {first.data.negative}", lines, np.array(first.data.tied),
            first.baselines, notes=_notes(bench, first), warnings=[*first.warnings, *_doubts(bench)], seed=context.seed,
        )  # fmt: skip
        tables.append(table)
        figures |= {f"{name}.{key}": cell for key, cell in found.items()}
        if bench.prepared.truth is not None:
            table, found = read_truth(bench, bench.prepared.truth, methods, evaluations)
            tables.append(table)
            figures |= {f"{name}.truth.{key}": cell for key, cell in found.items()}
        if letters:
            rows, found = read_letters(bench, methods)
            letter_rows += rows
            figures |= {f"{name}.letters.{key}": cell for key, cell in found.items()}
        context.read.update(bench.context.read)
    if letters:
        columns = ("set", "condition", "acc", "flip rate", "chooses (A)")
        explained = (
            "acc: share of items on which the letter of p⁺'s answer has the larger log-probability, averaged over both "
            "orders of the options (under p⁻'s mask small is good); flip rate: share of items whose choice turns with "
            "the order; a model that follows the letter flips always and chooses (A) 0 or 1 of the time",
        )
        tables.append(Table("option letters", columns, tuple(letter_rows), explained))
    settings = {
        "sets": list(sets), "budget": budget, "pairs": pairs, "items": items, "methods": list(methods),
        "rivals": list(rivals), "controls": list(controls), "random_seeds": random_seeds, "letters": letters,
        "stronger": None if stronger is None else fingerprint(find_targets(stronger[0])), "rounds": ROUNDS,
        "texts": asdict(size), "limit": context.limit,
    }  # fmt: skip
    return SuiteResult(
        "ai-persona", context.record(), dict(context.read), settings, figures, tuple(tables), seed=context.seed,
        versions=context.versions(),
    )  # fmt: skip


def _notes(bench: SetBench, first: Evaluation) -> list[str]:
    text = first.text
    notes = [
        bench.prepared.described,
        f"capability loss ± 1.96 standard errors over texts, nats a token, the largest over both masks and both texts, "
        f"on {text.plain_windows} plain windows and {text.chat_answers} chat answers: {text.name}",
    ]
    if bench.prepared.paper:
        figures = ", ".join(f"{row} {value:.1f}" for row, value in bench.prepared.paper.items())
        notes.append(f"the persona paper's own accuracy, % (LLaMA-2-13B: another model, other items): {figures}")
    return notes + list(first.notes)


def _doubts(bench: SetBench) -> list[str]:
    number = len(bench.prepared.test)
    return [f"only {number} test items: the intervals are wide"] if FEW <= number < WIDE else []


def _check(
    sets: Sequence[str],
    budget: float,
    pairs: int,
    items: int | None,
    methods: Sequence[str],
    rivals: Sequence[str],
    controls: Sequence[str],
    random_seeds: int,
) -> None:
    """Errors: `OptionError` for an unknown or repeated name, or a number out of range."""
    if not sets or not methods:
        raise OptionError("the ai-persona suite needs at least one set and one method.")
    for option, given, known in (
        ("set", sets, SETS),
        ("method", methods, METHODS),
        ("rival", rivals, RIVALS),
        ("control", controls, CONTROLS + SLOW_CONTROLS),
    ):
        for name in given:
            if name not in known:
                raise OptionError(f"unknown {option} {name!r}: choose {', '.join(known)}.")
        if len(set(given)) < len(given):
            raise OptionError(f"{option}: {', '.join(given)} names one thing twice.")
    Settings(max_capability_loss=budget).checked()
    for option, number in (("pairs", pairs), ("items", items), ("random seeds", random_seeds)):
        if number is not None and number < 1:
            raise OptionError(f"{option} is {number}: at least 1 is needed.")
    if "shuffled" in controls and methods[0] != "directed":
        raise OptionError(f"the control 'shuffled' repeats directed, but the first method is {methods[0]}.")
