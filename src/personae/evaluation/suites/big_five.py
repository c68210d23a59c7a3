"""The Big Five of a model and of its personas, by the 120 items of MPI."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from personae.evaluation.bootstrap import Difference, difference, holm, interval
from personae.evaluation.suites.capability_tasks import chosen
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.questionnaires import (
    ACCURATE_5,
    Answers,
    Inventory,
    answer_items,
    keyed,
    read_mpi,
    request,
    trait_scores,
)
from personae.evaluation.suites.report import Cell, SuiteResult, Table
from personae.evaluation.suites.worn import Condition, conditions, under_each
from personae.runtime import wearing
from personae.subnetwork import Artefact

FILE = "mpi/inventories/mpi_120.csv"
NAMES = {"O": "openness", "C": "conscientiousness", "E": "extraversion", "A": "agreeableness", "N": "neuroticism"}
CENTRED = {"change": False, "centred_change": True}  # the two tables of changes, by the names of their figures
ONE_ANSWER = 0.9  # of all items: above it the scores are those of a constant answer
LITTLE_MASS = 0.05
MANY_FLIPS = 0.5

Changes = Mapping[tuple[str, str], tuple[Difference, float]]


def run(context: SuiteContext, artefacts: Sequence[Artefact] = ()) -> SuiteResult:
    """Trait scores O, C, E, A, N of base and of every persona, and each persona's difference to base, item by item.

    A score is the mean keyed expected answer in [-1, 1] (`questionnaires`). Figures: 'base.O' …, '<persona>.O',
    '<persona>.O_change', '<persona>.O_centred_change' (mere agreement taken out), both with '….p_holm' (Holm over the
    traits and personas of their table), 'always_agree.O', and of each condition '.flip_rate', '.first_minus_last' and
    '.option_mass'. Errors: `DataError` for a missing or broken file.
    """
    inventory = read_mpi(context.file(FILE, "jianggy/MPI on GitHub"))
    if context.limit is not None:
        inventory = replace(inventory, items=tuple(chosen(inventory.items, repr, context.limit, context.seed)))
    worn = conditions(context, artefacts)
    statements = [item.statement for item in inventory.items]
    asked = [request(s, listed) for s in statements for listed in (ACCURATE_5, ACCURATE_5[::-1])]

    def ask(condition: Condition) -> Any:
        with wearing(context.targets, condition.masks):
            title = f"MPI, {condition.name}"
            answers = answer_items(context.model, context.tokenizer, statements, ACCURATE_5, context.progress, title)
        return answers.log_p.tolist()

    digest = hashlib.sha256(repr(asked).encode()).hexdigest()
    found = under_each(context, "big-five", {"asked": digest}, worn, ask)
    answers = {name: Answers(ACCURATE_5, np.array(log_p)) for name, log_p in found.items()}
    traits = tuple(t for t in inventory.traits if inventory.of(t).any())
    changes = {key: _changes(inventory, traits, answers, context.seed, flag) for key, flag in CENTRED.items()}
    notes = [
        f"{len(statements)} items, {len(ACCURATE_5)} options ('{ACCURATE_5[0]}' to '{ACCURATE_5[-1]}'), each in both "
        "orders, in the chat template without a persona.",
        "A language model has no personality; these are answers to a questionnaire. Compare them with base only.",
    ]
    if context.limit is not None:
        notes.append(f"A quick look: at most {context.limit} of the items.")
    return SuiteResult(
        suite="big-five", model=context.record(), data=dict(context.read),
        settings={"options": list(ACCURATE_5), "limit": context.limit, "conditions": {c.name: c.sha256 for c in worn}},
        figures=_figures(inventory, answers, changes, context.seed),
        tables=(
            _scores(inventory, traits, answers, context.seed),
            *(_changes_table(traits, changes[key], key) for key in CENTRED if changes[key]),
            _order(answers, context.seed),
        ),
        notes=tuple(notes), seed=context.seed, versions=context.versions(),
    )  # fmt: skip


def change(
    inventory: Inventory, trait: str, worn: Answers, base: Answers, seed: int, *, centred: bool = False
) -> Difference:
    """Trait score of `worn` minus that of `base`, paired over the trait's items."""
    of = inventory.of(trait)
    first, second = (keyed(inventory, a.expected, centred=centred)[of] for a in (worn, base))
    return difference(first, second, seed=seed)


def _changes(
    inventory: Inventory, traits: Sequence[str], answers: Mapping[str, Answers], seed: int, centred: bool
) -> Changes:
    """By (persona, trait): the change to base, and its p by Holm over all of them."""
    base = answers["base"]
    found = {
        (name, t): change(inventory, t, given, base, seed, centred=centred)
        for name, given in answers.items()
        if given is not base
        for t in traits
    }
    adjusted = holm([moved.p for moved in found.values()])
    return {key: (moved, p) for (key, moved), p in zip(found.items(), adjusted, strict=True)}


def _figures(
    inventory: Inventory, answers: Mapping[str, Answers], changes: Mapping[str, Changes], seed: int
) -> dict[str, Cell]:
    figures: dict[str, Cell] = {f"always_agree.{t}": v for t, v in inventory.always_agree().items()}
    for name, given in answers.items():
        figures |= {f"{name}.{t}": score for t, score in trait_scores(inventory, given.expected, seed=seed).items()}
        figures[f"{name}.flip_rate"] = interval(given.flips, seed=seed)
        figures[f"{name}.first_minus_last"] = interval(given.first_listed - given.last_listed, seed=seed)
        figures[f"{name}.option_mass"] = interval(given.mass, seed=seed)
    for key, found in changes.items():
        for (name, t), (moved, p) in found.items():
            figures |= {f"{name}.{t}_{key}": moved, f"{name}.{t}_{key}.p_holm": p}
    return figures


def _scores(inventory: Inventory, traits: Sequence[str], answers: Mapping[str, Answers], seed: int) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, given in answers.items():
        scores = trait_scores(inventory, given.expected, seed=seed)
        rows.append((name, *(scores[t] for t in traits), interval(given.expected, seed=seed)))
    baseline = inventory.always_agree()
    rows.append(("always agree", *(baseline[t] for t in traits), 1.0))
    notes = (
        "Mean keyed expected answer, -1 to 1; intervals over items. Last column: the mean answer without keys.",
        "'Always agree' is the mean key of a trait; a model that agrees with everything scores that, whatever it is.",
    )
    columns = ("worn", *(NAMES[t] for t in traits), "agrees")
    return Table("Big Five", columns, tuple(rows), notes, tuple(_warnings(answers)))


def _warnings(answers: Mapping[str, Answers]) -> list[str]:
    found = []
    for name, given in answers.items():
        often = int(given.preferred.argmax())
        if given.preferred[often] > ONE_ANSWER:
            found.append(
                f"{name} prefers '{given.options[often]}' on {given.preferred[often]:.2f} of the items: its scores are "
                "nearly those of a constant answer; read the centred changes."
            )
        if given.flips.mean() > MANY_FLIPS:
            found.append(f"{name}: the order of the options decides {given.flips.mean():.2f} of the answers.")
        if given.mass.mean() < LITTLE_MASS:
            found.append(
                f"{name} gives all options together a probability of {given.mass.mean():.3f}: it would hardly answer "
                "with any of them."
            )
    return found


def _changes_table(traits: Sequence[str], changes: Changes, key: str) -> Table:
    title, note = "Big Five, change to base", "Paired over items, 95 % intervals."
    if CENTRED[key]:
        title += " with mere agreement taken out"
        note = "Each answer minus its condition's mean answer, then keyed: agreeing with everything scores 0."
    rows: list[tuple[Cell, ...]] = []
    for name in dict.fromkeys(name for name, _ in changes):
        adjusted = ", ".join(f"{t} {changes[name, t][1]:.3f}" for t in traits)
        rows.append((name, *(changes[name, t][0] for t in traits), adjusted))
    holms = f"p: two-sided, by Holm over the {len(changes)} changes of this table; the intervals are not adjusted."
    return Table(title, ("worn", *(NAMES[t] for t in traits), "p (Holm)"), tuple(rows), (note, holms))


def _order(answers: Mapping[str, Answers], seed: int) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            *(interval(v, seed=seed) for v in (given.flips, given.first_listed, given.last_listed, given.mass)),
            given.options[int(given.preferred.argmax())],
            float(given.preferred.max()),
        )
        for name, given in answers.items()
    ]
    columns = ("worn", "flip rate", "listed first", "listed last", "option mass", "most preferred", "its share")
    notes = (
        "Flip rate: share of items whose preferred option changes when the list is reversed.",
        "Position bias: the share, among the options, of the one listed first and of the one listed last; equal for "
        "a model that ignores the order. Option mass: probability that the answer is any of the options.",
    )
    return Table("Order of the options", columns, tuple(rows), notes)
