"""What masks cost: public tasks, plain text and free answers, the base model and every persona on the same items."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from personae.discovery import windows
from personae.discovery.generic import WINDOW, neutral_prompts
from personae.errors import DataError, OptionError
from personae.evaluation.bootstrap import Estimate, difference, ends, interval, paired_bootstrap
from personae.evaluation.suites.capability_tasks import (
    LETTERS,
    TASKS,
    Floats,
    Item,
    Task,
    chosen,
    credit,
    gold_of,
    read_items,
    score_choices,
    scores,
)
from personae.evaluation.suites.capability_text import ANSWER_TOKENS, GRAM, divergence, greedy_answers, repetition
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.report import Cell, SuiteResult, Table
from personae.evaluation.suites.worn import Condition, conditions, under_each
from personae.models import context_length
from personae.runtime import wearing
from personae.subnetwork import Artefact

WIKITEXT = "wikitext2_tokenised/wikitext-2/valid.txt"
WIKITEXT_SOURCE = "the validation part of WikiText-2, tokenised (pytorch/examples)"
WINDOWS = 40  # of 256 tokens each
ANSWERS = 24  # free answers
TRIVIAL = 0.9  # above this a rule that reads nothing, or a single choice, makes a task worthless


def run(context: SuiteContext, artefacts: Sequence[Artefact] = (), items: int = 500) -> SuiteResult:
    """Five multiple-choice tasks, WikiText-2 and greedy free answers; each persona against base on the same items.

    items: of each task, chosen by a seeded hash. Figures: '<task>_base' and '<task>_change' (accuracy, 0 to 1, so -0.01
    is one point), 'mmlu_gold_logprob_…' (gold letter among the four, nats), 'mmlu_gold_logprob_raw_…' (among all
    tokens), 'mmlu_gold_answer_…' (the gold choice written out, nats a token), 'wikitext_nll_…', 'wikitext_kl' (nats a
    token), 'repetition_…', 'answer_tokens_…'. A change is that of the worst persona, chosen again in every resample.
    Without artefacts only base is measured. Errors: `OptionError` for fewer than one item; `DataError` for missing or
    broken files; `MaskMismatchError` for masks of another model.
    """
    if items < 1:
        raise OptionError(f"items is {items}: at least 1 is needed.")
    worn = conditions(context, artefacts)
    counts = {"items": items, "windows": WINDOWS, "answers": ANSWERS}
    if context.limit is not None:
        counts = {name: min(count, context.limit) for name, count in counts.items()}
    for name, source in (*((task.file, task.source) for task in TASKS), (WIKITEXT, WIKITEXT_SOURCE)):
        context.file(name, source)  # all first: a missing file shows at once, and kept parts depend on all of them
    tasks = [_task(context, task, worn, counts["items"]) for task in TASKS]
    free = [*_text(context, worn, counts["windows"]), *_answers(context, worn, counts["answers"])]
    readings = [reading for task in tasks for reading in task.readings]
    mmlu = next(task for task in tasks if task.task.name == "mmlu").gold
    personas = [c.name for c in worn[1:]]
    figures: dict[str, Cell] = {}
    for reading in [*(r for r in readings if r.headline), *mmlu, *free]:
        base = reading.values["base"]
        if reading.name != "wikitext_kl":
            figures[f"{reading.name}_base"] = interval(base, seed=context.seed)
        if personas:
            name = reading.name if reading.name == "wikitext_kl" else f"{reading.name}_change"
            gaps = np.column_stack([reading.values[p] - base for p in personas])
            figures[name] = worst(gaps, highest=reading.costs, seed=context.seed)
    notes = [f"Items, windows and prompts are chosen by a hash with seed {context.seed}, the same for every row."]
    if context.limit is not None:
        notes.append(f"A quick look: at most {context.limit} items of a set.")
    tables = [
        _levels("Accuracy", readings, worn, context.seed, tuple(w for task in tasks for w in task.warnings)),
        *_changes("Accuracy, change to base", readings, personas, context.seed),
        _trivial(tasks),
        _levels("MMLU: log-probability of what is right", mmlu, worn, context.seed, notes=_MMLU_NOTES),
        *_changes("MMLU: log-probability, change to base", mmlu, personas, context.seed),
        _levels("Plain text and free answers", free, worn, context.seed, notes=_text_notes(counts)),
        *_changes("Plain text and free answers, change to base", free, personas, context.seed),
    ]
    return SuiteResult(
        suite="capability", model=context.record(), data=dict(context.read),
        settings={
            **counts, "limit": context.limit, "window": WINDOW, "answer_tokens": ANSWER_TOKENS, "gram": GRAM,
            "conditions": {c.name: c.sha256 for c in worn},
        },
        figures=figures, tables=tuple(tables), notes=tuple(notes), seed=context.seed, versions=context.versions(),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Reading:
    """One figure of every item under every condition, (items,) each. costs: larger is worse."""

    name: str
    title: str
    values: Mapping[str, Floats]
    costs: bool = False
    headline: bool = True


# ------------------------------------------------------------------ the tasks


@dataclass(frozen=True, eq=False)
class TaskReadings:
    """A task's accuracies, of MMLU the log-probabilities, its trivial baselines, and what speaks against it."""

    task: Task
    items: int
    readings: tuple[Reading, ...]
    gold: tuple[Reading, ...]
    trivial: Mapping[str, float]
    most_chosen: float
    warnings: tuple[str, ...]


def _task(context: SuiteContext, task: Task, worn: Sequence[Condition], count: int) -> TaskReadings:
    path = context.file(task.file, task.source)
    items = read_items(task, path, count, context.seed)
    digest = hashlib.sha256(repr(items).encode()).hexdigest()

    def score(condition: Condition) -> Any:
        with wearing(context.targets, condition.masks):
            title = f"{task.title}, {condition.name}"
            return score_choices(context.model, context.tokenizer, items, title, context.progress)

    scored = under_each(context, f"capability/{task.name}", {"items": digest}, worn, score)
    gold = gold_of(items)

    def reading(by_bytes: bool) -> Reading:
        kind = "by bytes" if by_bytes else "summed"
        values = {name: credit(scores(items, s, by_bytes=by_bytes), gold) for name, s in scored.items()}
        return Reading(task.name, f"{task.title}, {kind}", values, headline=by_bytes == task.by_bytes)

    kinds = (True, False) if task.by_bytes else (False,)
    accuracies = tuple(reading(kind) for kind in kinds)
    trivial = trivial_baselines(items)
    choices = {n: scores(items, s, by_bytes=task.by_bytes).argmax(axis=1) for n, s in scored.items()}
    most = {name: float(np.bincount(c).max() / len(c)) for name, c in choices.items()}
    warnings = [
        f"{task.title}: the rule '{rule}' is right on {share:.2f} of the items."
        for rule, share in trivial.items()
        if share > TRIVIAL
    ]
    warnings += [
        f"{task.title}: {name} takes one and the same position on {share:.2f} of the items."
        for name, share in most.items()
        if share > TRIVIAL
    ]
    base = interval(accuracies[0].values["base"], seed=context.seed)
    if base.low <= trivial["chance"]:
        warnings.append(
            f"{task.title}: base ({base.value:.3f}) is not shown to be above chance ({trivial['chance']:.3f}), so "
            "accuracy can hardly fall; it says nothing of what a mask costs."
        )
    mmlu = mmlu_readings(items, scored) if task.name == "mmlu" else ()
    return TaskReadings(task, len(items), accuracies, mmlu, trivial, most["base"], tuple(warnings))


def mmlu_readings(items: Sequence[Item], scored: Mapping[str, Any]) -> tuple[Reading, ...]:
    """Log-probabilities of what is right; unlike accuracy they move where a small model is at chance.

    log p(gold letter) − log Σ_letters p(letter); log p(gold letter); log p(gold choice's text) a token.
    """
    among, alone, written = {}, {}, {}
    for name, values in scored.items():
        letters = np.array([[choice[0] for choice in item[: len(LETTERS)]] for item in values])  # (items, 4)
        gold = letters[np.arange(len(items)), gold_of(items)]
        among[name] = gold - np.logaddexp.reduce(letters, axis=1)
        alone[name] = gold
        written[name] = np.array([item[-1][0] / item[-1][1] for item in values])
    return (
        Reading("mmlu_gold_logprob", "gold letter among the four, nats", among),
        Reading("mmlu_gold_logprob_raw", "gold letter among all tokens, nats", alone),
        Reading("mmlu_gold_answer", "gold choice written out, nats a token", written),
    )


def trivial_baselines(items: Sequence[Item]) -> dict[str, float]:
    """Accuracy of rules that read no meaning: chance, the most frequent position, the shortest and longest choice."""
    gold = gold_of(items)
    sizes = np.full((len(items), max(len(i.texts) for i in items)), np.inf)
    for row, item in enumerate(items):
        sizes[row, : len(item.texts)] = [len(t.encode()) for t in item.texts]
    return {
        "chance": float(np.mean([1 / len(i.texts) for i in items])),
        "most frequent position": float(np.bincount(gold).max() / len(gold)),
        "shortest": float(credit(-sizes, gold).mean()),
        "longest": float(credit(np.where(np.isfinite(sizes), sizes, -np.inf), gold).mean()),
    }


# ------------------------------------------------------------- the plain text


def _text(context: SuiteContext, worn: Sequence[Condition], count: int) -> list[Reading]:
    path = context.file(WIKITEXT, WIKITEXT_SOURCE)
    size = min(WINDOW, context_length(context.model) or WINDOW)
    pieces = windows(context.tokenizer, path.read_text(encoding="utf-8"), size=size)
    whole = [w for w in pieces if len(w.answer) == size]  # of one length: the mean of windows is the mean of tokens
    whole = whole[len(whole) // 2 :]  # the public suites search budgets on the first half
    if not whole:
        raise DataError(f"{path}: it holds no window of {size} tokens; give the whole file.")
    texts = chosen(whole, repr, count, context.seed)
    digest = hashlib.sha256(repr(texts).encode()).hexdigest()

    def read(condition: Condition) -> Any:
        title = f"WikiText-2, {condition.name}"
        return divergence(context.model, context.targets, condition.masks, texts, title, context.progress).tolist()

    found = under_each(context, "capability/wikitext", {"windows": digest}, worn, read)
    nll, kl = ({name: np.array(v, dtype=np.float64)[:, i] for name, v in found.items()} for i in (0, 1))
    return [
        Reading("wikitext_nll", "WikiText-2, nats a token", nll, costs=True),
        Reading("wikitext_kl", "KL(base ‖ masked), nats a token", kl, costs=True),
    ]


# ------------------------------------------------------------ the free answers


def _answers(context: SuiteContext, worn: Sequence[Condition], count: int) -> list[Reading]:
    prompts = chosen(neutral_prompts(), str, count, context.seed)

    def answer(condition: Condition) -> Any:
        with wearing(context.targets, condition.masks):
            title = f"free answers, {condition.name}"
            return greedy_answers(context.model, context.tokenizer, prompts, title, context.progress)

    found = under_each(context, "capability/answers", {"prompts": prompts, "tokens": ANSWER_TOKENS}, worn, answer)
    repeated = {name: np.array([repetition(tokens) for tokens in answers]) for name, answers in found.items()}
    tokens = {name: np.array([float(len(tokens)) for tokens in answers]) for name, answers in found.items()}
    return [
        Reading("repetition", f"repeated {GRAM}-grams", repeated, costs=True),
        Reading("answer_tokens", "tokens of an answer", tokens),  # who says nothing repeats nothing
    ]


# ---------------------------------------------------------------- the tables


def worst(gaps: Floats, *, highest: bool, seed: int) -> Estimate:
    """The lowest (or highest) of the means of gaps (items, personas), chosen again inside every resample.

    Without a p: the worst of several is worse than 0 by their noise alone. The table of changes has one a persona.
    """
    pick = np.max if highest else np.min
    means: Floats = pick(paired_bootstrap(gaps, seed=seed), axis=1)
    return Estimate(float(pick(gaps.mean(axis=0))), *ends(means))


def _levels(
    title: str, readings: Sequence[Reading], worn: Sequence[Condition], seed: int,
    warnings: tuple[str, ...] = (), notes: tuple[str, ...] = (),
) -> Table:  # fmt: skip
    rows: list[tuple[Cell, ...]] = [(c.name, *(interval(r.values[c.name], seed=seed) for r in readings)) for c in worn]
    return Table(title, ("worn", *(r.title for r in readings)), tuple(rows), notes, warnings)


def _changes(title: str, readings: Sequence[Reading], personas: Sequence[str], seed: int) -> list[Table]:
    if not personas:
        return []
    shown = [r for r in readings if r.name != "wikitext_kl"]  # it is a comparison with base already
    rows: list[tuple[Cell, ...]] = [
        (p, *(difference(r.values[p], r.values["base"], seed=seed) for r in shown)) for p in personas
    ]
    return [Table(title, ("worn", *(r.title for r in shown)), tuple(rows), ("Paired over items, 95 % intervals.",))]


def _trivial(tasks: Sequence[TaskReadings]) -> Table:
    rows: list[tuple[Cell, ...]] = [(t.task.title, t.items, *t.trivial.values(), t.most_chosen) for t in tasks]
    columns = ("task", "items", *tasks[0].trivial, "base's share of one position")
    return Table("What rules score that read no meaning", columns, tuple(rows))


_MMLU_NOTES = ("Larger is better. Unlike accuracy it moves where a small model is at chance.",)


def _text_notes(counts: Mapping[str, int]) -> tuple[str, ...]:
    return (
        f"At most {counts['windows']} windows of {WINDOW} tokens of the second half of the validation part, resampled "
        "whole.",
        f"{counts['answers']} greedy answers of at most {ANSWER_TOKENS} tokens to neutral prompts that ship with the "
        "package; the share of an answer's 4-grams of tokens that stood in it before. Smaller is better.",
    )
