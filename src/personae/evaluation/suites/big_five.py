"""The Big Five of a model and of its personas, by the 120 items of MPI."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from personae.evaluation.bootstrap import difference, interval
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
ONE_ANSWER = 0.9  # of all items: above it the scores are those of a constant answer
LITTLE_MASS = 0.05
MANY_FLIPS = 0.5


def run(context: SuiteContext, artefacts: Sequence[Artefact] = ()) -> SuiteResult:
    """Trait scores O, C, E, A, N of base and of every persona, and each persona's difference to base, item by item.

    A score is the mean keyed expected answer in [-1, 1] (`questionnaires`). Figures: 'base.O' …, '<persona>.O',
    '<persona>.O_change', '<persona>.O_centred_change' (mere agreement taken out), 'always_agree.O', and of each
    condition '.flip_rate', '.first_minus_last' and '.option_mass'. Errors: `DataError` for a missing or broken file.
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
        figures=_figures(inventory, traits, answers, context.seed),
        tables=(
            _scores(inventory, traits, answers, context.seed),
            *_changes(inventory, traits, answers, context.seed),
            _order(answers, context.seed),
        ),
        notes=tuple(notes), seed=context.seed, versions=context.versions(),
    )  # fmt: skip


def change(inventory: Inventory, trait: str, worn: Answers, base: Answers, seed: int, *, centred: bool = False) -> Cell:
    """Trait score of `worn` minus that of `base`, paired over the trait's items."""
    of = inventory.of(trait)
    first, second = (keyed(inventory, a.expected, centred=centred)[of] for a in (worn, base))
    return difference(first, second, seed=seed)


def _figures(inventory: Inventory, traits: Sequence[str], answers: Mapping[str, Answers], seed: int) -> dict[str, Cell]:
    figures: dict[str, Cell] = {f"always_agree.{t}": v for t, v in inventory.always_agree().items()}
    base = answers["base"]
    for name, given in answers.items():
        figures |= {f"{name}.{t}": score for t, score in trait_scores(inventory, given.expected, seed=seed).items()}
        if given is not base:
            figures |= {f"{name}.{t}_change": change(inventory, t, given, base, seed) for t in traits}
            figures |= {
                f"{name}.{t}_centred_change": change(inventory, t, given, base, seed, centred=True) for t in traits
            }
        figures[f"{name}.flip_rate"] = interval(given.flips, seed=seed)
        figures[f"{name}.first_minus_last"] = interval(given.first_listed - given.last_listed, seed=seed)
        figures[f"{name}.option_mass"] = interval(given.mass, seed=seed)
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


def _changes(inventory: Inventory, traits: Sequence[str], answers: Mapping[str, Answers], seed: int) -> list[Table]:
    base = answers["base"]
    titles = {
        False: "Big Five, change to base",
        True: "Big Five, change to base with mere agreement taken out",
    }
    notes = {
        False: "Paired over items, 95 % intervals.",
        True: "Each answer minus its condition's mean answer, then keyed: agreeing with everything scores 0.",
    }
    columns = ("worn", *(NAMES[t] for t in traits))
    tables = []
    for centred, title in titles.items():
        rows: list[tuple[Cell, ...]] = [
            (name, *(change(inventory, t, given, base, seed, centred=centred) for t in traits))
            for name, given in answers.items()
            if given is not base
        ]
        tables.append(Table(title, columns, tuple(rows), (notes[centred],)))
    return tables if len(answers) > 1 else []


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
