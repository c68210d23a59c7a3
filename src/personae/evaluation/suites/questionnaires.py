"""Questionnaires answered by the log-probability of every option, listed in order and in reverse order.

The model is asked in its chat template, without a persona. What it prefers because of an option's place in the list
shows as the difference of the two orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery import Progress, silent
from personae.errors import DataError, ModelError, OptionError
from personae.evaluation.bootstrap import Estimate, interval
from personae.models import Question, encode_prompt, render_answer, score_continuations
from personae.personas.rows import Row, read_rows

Floats = NDArray[np.float64]

# From most opposed to most in favour; values are spread evenly over -1 … 1.
AGREE_2 = ("Disagree", "Agree")
AGREE_5 = ("Strongly disagree", "Disagree", "Neither agree nor disagree", "Agree", "Strongly agree")
AGREE_7 = (
    "Strongly disagree", "Disagree", "Somewhat disagree", "Neither agree nor disagree", "Somewhat agree", "Agree",
    "Strongly agree",
)  # fmt: skip
ACCURATE_5 = (
    "Very inaccurate", "Moderately inaccurate", "Neither accurate nor inaccurate", "Moderately accurate",
    "Very accurate",
)  # fmt: skip

# The list stands before the statement, so that all statements share it and it is encoded once.
_REQUEST = (
    "Here is a statement about you. Choose the answer that fits you best, and reply with it word for word.\n"
    "Answers:\n{options}\nStatement: {statement}"
)


# ------------------------------------------------------------------ answering


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answers. options: k texts from most opposed to most in favour.

    log_p: summed log-probability of each option with its end-of-turn token, nats, (items, 2, k) float64; index 0 of
    the second axis: listed as in `options`, 1: listed in reverse. The third axis is always in the order of `options`.
    """

    options: tuple[str, ...]
    log_p: Floats

    @property
    def values(self) -> Floats:
        """What each option is worth, evenly from -1 to 1, (k,)."""
        return np.linspace(-1, 1, len(self.options))

    @property
    def expected(self) -> Floats:
        """Σ_k p_k·value_k of each item in [-1, 1], p = softmax over options of log p averaged over orders, (items,)."""
        result: Floats = _softmax(self.log_p.mean(axis=1)) @ self.values
        return result

    @property
    def flips(self) -> Floats:
        """1 where the preferred option changes with the order, else 0, (items,).

        Options that are exactly as likely as the likeliest count as one preference if the orders share any of them.
        """
        best = self.log_p == self.log_p.max(axis=2, keepdims=True)  # (items, 2, k)
        result: Floats = 1.0 - (best[:, 0] & best[:, 1]).any(axis=1)
        return result

    @property
    def first_listed(self) -> Floats:
        """Share, among the options, of the one listed first, mean over both orders, (items,).

        Over both orders the extreme options stand first once each, and last once each: a model that ignores the order
        gives the option listed first what it gives the one listed last.
        """
        p = _softmax(self.log_p)  # (items, 2, k)
        result: Floats = (p[:, 0, 0] + p[:, 1, -1]) / 2
        return result

    @property
    def last_listed(self) -> Floats:
        """The same of the option listed last, (items,)."""
        p = _softmax(self.log_p)
        result: Floats = (p[:, 0, -1] + p[:, 1, 0]) / 2
        return result

    @property
    def mass(self) -> Floats:
        """Probability that the answer is any of the options, mean over both orders, (items,)."""
        result: Floats = np.exp(self.log_p).sum(axis=2).mean(axis=1)
        return result

    @property
    def preferred(self) -> Floats:
        """How often each option is the likeliest over both orders together, shares, (k,)."""
        best = self.log_p.mean(axis=1).argmax(axis=1)
        shares: Floats = np.bincount(best, minlength=len(self.options)) / len(best)
        return shares


def answer_items(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    statements: Sequence[str],
    options: Sequence[str],
    progress: Progress = silent,
    title: str = "questionnaire",
) -> Answers:
    """Every statement with the options in order and in reverse, under whatever the model wears now.

    options: from most opposed to most in favour. Errors: `DataError` without statements; `OptionError` for fewer than
    two options or equal ones; `ModelError` where a log-probability is no finite number.
    """
    if not statements:
        raise DataError("a questionnaire needs at least one statement.")
    if len(options) < 2 or len({o.strip().casefold() for o in options}) < len(options):
        raise OptionError(f"a questionnaire needs two different options or more, found {', '.join(options) or 'none'}.")
    answers = tuple(
        tuple(tokenizer(render_answer(tokenizer, option), add_special_tokens=False)["input_ids"]) for option in options
    )
    log_p = np.empty((len(statements), 2, len(options)))
    with progress(title, 2 * len(statements)) as tick:
        for order, listed in enumerate((options, options[::-1])):
            prompts = [tuple(encode_prompt(tokenizer, request(s, listed), lead=True)) for s in statements]
            asked = [Question(prompt, answers) for prompt in prompts]
            scored = score_continuations(model, asked, tick=tick)
            log_p[:, order] = [[float(a.double().sum()) for a in item] for item in scored]
    if not np.isfinite(log_p).all():
        raise ModelError(f"{title}: log-probabilities are no finite numbers; load the model in float32.")
    return Answers(tuple(options), log_p)


def request(statement: str, listed: Sequence[str]) -> str:
    """The text of the user's turn."""
    return _REQUEST.format(options="\n".join(f"- {option}" for option in listed), statement=statement)


def _softmax(log_p: Floats) -> Floats:
    result: Floats = torch.softmax(torch.from_numpy(log_p), dim=-1).numpy()
    return result


# ---------------------------------------------------------------- inventories


@dataclass(frozen=True, slots=True)
class InventoryItem:
    """A statement in the second person, its trait, and its key: 1 where to agree shows the trait, -1 where not."""

    statement: str
    trait: str
    key: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """A questionnaire. traits: in the order in which they are shown."""

    name: str
    traits: tuple[str, ...]
    items: tuple[InventoryItem, ...]

    @property
    def keys(self) -> Floats:
        """Key of every item, (items,)."""
        return np.array([item.key for item in self.items], dtype=np.float64)

    def of(self, trait: str) -> NDArray[np.bool_]:
        """Which items belong to a trait, (items,)."""
        return np.array([item.trait == trait for item in self.items])

    def always_agree(self) -> dict[str, float]:
        """The trivial baseline: the score of 'agree with everything', which is the mean key of each trait."""
        return {t: float(self.keys[self.of(t)].mean()) for t in self.traits if self.of(t).any()}


def keyed(inventory: Inventory, expected: Floats, *, centred: bool = False) -> Floats:
    """key·expected score of every item, (items,). centred: with the mean over all items subtracted first.

    Centred, who answers every item alike scores 0 on every trait: mere agreement is taken out (ipsatised scores).
    """
    result: Floats = inventory.keys * (expected - expected.mean() if centred else expected)
    return result


def trait_scores(inventory: Inventory, expected: Floats, *, seed: int = 0) -> dict[str, Estimate]:
    """Mean keyed expected score of each trait that has items, in [-1, 1], bootstrapped over its items."""
    values = keyed(inventory, expected)
    return {t: interval(values[inventory.of(t)], seed=seed) for t in inventory.traits if inventory.of(t).any()}


def read_mpi(path: Path) -> Inventory:
    """MPI-120 (Jiang et al. 2023, arXiv 2206.07550): CSV of label_raw, text, label_ocean, key; 'You' goes in front.

    Errors: `DataError` naming file and line.
    """
    traits = ("O", "C", "E", "A", "N")
    items = []
    for row in read_rows(path):
        text = row.text("text").rstrip(".")
        statement = f"You {text[0].lower()}{text[1:]}."
        items.append(InventoryItem(statement, _one_of(row, "label_ocean", traits), _key(row)))
    return Inventory("MPI-120", traits, tuple(items))


def _key(row: Row) -> int:
    return int(_one_of(row, "key", ("1", "-1")))


def _one_of(row: Row, field: str, allowed: Sequence[str]) -> str:
    value = row.text(field)
    if value not in allowed:
        raise DataError(f"{row.where}: '{field}' is {value!r}; it must be one of {', '.join(allowed)}.")
    return value


def read_16_personalities(path: Path) -> Inventory:
    """The 60 items of 16Personalities as InCharacter publishes them (Wang et al. 2024, arXiv 2310.17976).

    A trait is a dimension such as 'E/I', scored towards its first letter: key 1 where the item's 'category' is that
    letter. The file's list 'reverse' says the same but for item 25 ('You enjoy watching people argue', category T),
    whose category fits its text. Errors: `DataError` naming the item.
    """
    traits = ("E/I", "S/N", "T/F", "P/J")
    rows = read_rows(path)
    if len(rows) != 1:
        raise DataError(f"{path} holds {len(rows)} rows; give InCharacter's 16Personalities.json, which is one object.")
    [whole] = rows
    questions = whole.fields.get("questions")
    if not isinstance(questions, dict) or not questions:
        raise DataError(f"{path}: there are no 'questions'; give InCharacter's 16Personalities.json.")
    items = []
    for number, fields in questions.items():
        if not isinstance(fields, dict):
            raise DataError(f"{path}, question {number}: it must be an object.")
        row = Row(fields, f"{path}, question {number}")
        trait = _one_of(row, "dimension", traits)
        letter = _one_of(row, "category", trait.split("/"))
        statement = f"{row.text('origin_en').rstrip('.')}."
        items.append(InventoryItem(statement, trait, 1 if letter == trait[0] else -1))
    return Inventory("16Personalities", traits, tuple(items))
