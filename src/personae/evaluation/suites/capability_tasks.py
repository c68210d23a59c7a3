"""Items of public multiple-choice tasks as prompts with continuations, as lm-evaluation-harness has all but MMLU's.

Every form is plain text before the continuation, no chat template: these tasks measure what the weights know, and
published figures use these forms; that of MMLU is our own. Accuracy is the share of items whose gold choice scores
highest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery import Progress
from personae.errors import DataError, ModelError
from personae.models import Question, context_length, score_continuations
from personae.personas.rows import Row, read_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
T = TypeVar("T")

LETTERS = "ABCD"


@dataclass(frozen=True, slots=True)
class Item:
    """One question. prompts, continuations, texts: one a choice; gold: which of them is right.

    The score of choice i is log p(continuations[i] | prompts[i]); texts[i] is what a reader would call the choice, and
    its UTF-8 bytes normalise the score. beside: a further continuation of the first prompt, no choice ('' = none).
    """

    prompts: tuple[str, ...]
    continuations: tuple[str, ...]
    texts: tuple[str, ...]
    gold: int
    beside: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """A file of items. by_bytes: the headline accuracy divides log p by the bytes of the choice."""

    name: str
    title: str
    file: str
    source: str
    parse: Callable[[Row], Item]
    by_bytes: bool


# ---------------------------------------------------------------- the forms


def hellaswag(row: Row) -> Item:
    """'{activity}: {ctx_a} {Ctx_b}' + ' ' + ending (Zellers et al. 2019).

    As lm-evaluation-harness prepares both: ' [title]' becomes '. ', other bracketed marks of the source vanish, double
    spaces become single.
    """
    second = str(row.fields.get("ctx_b") or "").strip()
    context = f"{row.text('activity_label')}: {row.text('ctx_a')} {second.capitalize()}"
    return _shared(row, _without_brackets(context), tuple(_without_brackets(e) for e in row.texts("endings")), "label")


def arc(row: Row) -> Item:
    """'Question: …\\nAnswer:' + ' ' + choice (Clark et al. 2018); three to five choices, by letter or number."""
    choices = row.fields.get("choices")
    if not isinstance(choices, dict) or not {"text", "label"} <= choices.keys():
        raise DataError(f"{row.where}: 'choices' must hold 'text' and 'label'.")
    labels = [str(label) for label in choices["label"]]
    gold = str(row.fields.get("answerkey"))
    if gold not in labels:
        raise DataError(f"{row.where}: 'answerKey' is {gold!r}, which is none of the labels {', '.join(labels)}.")
    texts = Row({"choices": choices["text"]}, row.where).texts("choices")
    numbered = Row({**row.fields, "answerkey": labels.index(gold)}, row.where)
    return _shared(numbered, f"Question: {row.text('question')}\nAnswer:", texts, "answerkey")


def piqa(row: Row) -> Item:
    """'Question: {goal}\\nAnswer:' + ' ' + solution (Bisk et al. 2020)."""
    return _shared(row, f"Question: {row.text('goal')}\nAnswer:", (row.text("sol1"), row.text("sol2")), "label")


def winogrande(row: Row) -> Item:
    """Partial scoring (Trinh and Le 2018): either option in the gap, then log p of the rest of the sentence.

    The continuation is the same text, so its length favours nobody.
    """
    sentence = row.text("sentence")
    if sentence.count("_") != 1 or not sentence.split("_")[1].strip():
        raise DataError(f"{row.where}: 'sentence' must hold one '_' with text after it.")
    before, after = sentence.split("_")
    options = (row.text("option1"), row.text("option2"))
    gold = _gold(row, "answer", 2, first=1)
    return Item(tuple(before + o for o in options), (f" {after.strip()}",) * 2, options, gold)


def mmlu(row: Row) -> Item:
    """'Question: …\\nChoices:\\nA. …\\nB. …\\nC. …\\nD. …\\nAnswer:' + ' A' … ' D', zero-shot (Hendrycks et al. 2021).

    Beside the letters, the gold choice's text written out after the same prompt.
    """
    texts = row.texts("choices")
    if len(texts) != len(LETTERS):
        raise DataError(f"{row.where}: 'choices' holds {len(texts)} texts; MMLU has {len(LETTERS)}.")
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=True))
    prompt = f"Question: {row.text('question')}\nChoices:\n{listed}\nAnswer:"
    gold = _gold(row, "answer", len(texts))
    return Item((prompt,) * 4, tuple(f" {letter}" for letter in LETTERS), texts, gold, beside=f" {texts[gold]}")


def _shared(row: Row, prompt: str, texts: tuple[str, ...], key: str) -> Item:
    if len(texts) < 2 or not all(texts):
        raise DataError(f"{row.where}: an item needs two choices or more, none of them empty.")
    return Item((prompt,) * len(texts), tuple(f" {t}" for t in texts), texts, _gold(row, key, len(texts)))


def _gold(row: Row, key: str, choices: int, first: int = 0) -> int:
    value = str(row.fields.get(key)).strip()
    if not value.isdecimal() or not 0 <= int(value) - first < choices:
        raise DataError(f"{row.where}: '{key}' is {value!r}; give a number from {first} to {first + choices - 1}.")
    return int(value) - first


def _without_brackets(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ").strip()


_FOLDER = "capability_jsonl"
TASKS = (
    Task("hellaswag", "HellaSwag", f"{_FOLDER}/hellaswag_val_dev1000.jsonl", "Rowan/hellaswag", hellaswag, True),
    Task("mmlu", "MMLU", f"{_FOLDER}/mmlu_test_dev1000.jsonl", "cais/mmlu", mmlu, False),
    Task("arc_easy", "ARC-easy", f"{_FOLDER}/arc_easy_val.jsonl", "allenai/ai2_arc", arc, True),
    Task("piqa", "PIQA", f"{_FOLDER}/piqa_val.jsonl", "ybisk/piqa", piqa, True),
    Task("winogrande", "WinoGrande", f"{_FOLDER}/winogrande_xl_val.jsonl", "allenai/winogrande", winogrande, False),
)  # fmt: skip


# ------------------------------------------------------- choosing and scoring


def chosen(things: Sequence[T], text: Callable[[T], str], count: int, seed: int) -> list[T]:
    """At most `count` of them, those with the smallest blake2b(seed, text), in their own order.

    Which are chosen does not depend on the order of a file, and a smaller count chooses some of the same.
    """
    keys = [hashlib.blake2b(f"{seed}\n{text(t)}".encode(), digest_size=8).digest() for t in things]
    best = sorted(range(len(things)), key=lambda i: (keys[i], i))[:count]
    return [things[i] for i in sorted(best)]


def read_items(task: Task, path: Path, count: int, seed: int) -> list[Item]:
    """Chosen items of a task's file. Errors: `DataError` naming file and line."""
    return chosen([task.parse(row) for row in read_rows(path)], repr, count, seed)


def to_questions(tokenizer: PreTrainedTokenizerBase, item: Item, context: int | None) -> list[Question]:
    """Token ids: choices of one prompt share it. The answers of all questions in turn are the choices, then `beside`.

    A continuation's tokens are those of prompt + continuation after the prompt's own; where the border melts into one
    token, those of the continuation alone. A prompt that leaves no room in the context loses its beginning.
    Errors: `DataError` for a continuation that alone fills the context.
    """
    groups: dict[str, list[str]] = {}
    for prompt, continuation in zip(item.prompts, item.continuations, strict=True):
        groups.setdefault(prompt, []).append(continuation)
    if item.beside:
        groups[item.prompts[0]].append(item.beside)
    return [_question(tokenizer, prompt, group, context) for prompt, group in groups.items()]


def _question(
    tokenizer: PreTrainedTokenizerBase, prompt: str, continuations: Sequence[str], context: int | None
) -> Question:
    head = _ids(tokenizer, prompt)
    answers = []
    for continuation in continuations:
        whole = _ids(tokenizer, prompt + continuation)
        answers.append(tuple(whole[len(head) :] if whole[: len(head)] == head else _ids(tokenizer, continuation)))
    # models that were trained with a begin-of-text token are lost without it
    empty = tokenizer("")["input_ids"]
    lead = empty[:1] if empty and empty[0] == tokenizer.bos_token_id else []
    if context is not None:
        room = context - len(lead) - max(len(a) for a in answers)
        if room < 1:
            raise DataError(f"a choice does not fit the model's context of {context} tokens: {prompt[:60]!r}…")
        head = head[-room:]
    return Question((*lead, *head), tuple(answers))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def score_choices(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], title: str, progress: Progress
) -> list[list[list[float]]]:
    """For every item, for every choice (and `beside`): [log p in nats, tokens], under whatever the model wears now.

    Errors: `ModelError` where a log-probability is no finite number.
    """
    context = context_length(model)
    asked = [to_questions(tokenizer, item, context) for item in items]
    flat = [question for questions in asked for question in questions]
    with progress(title, len(flat)) as tick:
        scored = iter(score_continuations(model, flat, tick=tick))
    result = [[_sum(a) for _ in questions for a in next(scored)] for questions in asked]
    if not np.isfinite([log_p for item in result for log_p, _ in item]).all():
        raise ModelError(f"{title}: log-probabilities are no finite numbers; load the model in float32.")
    return result


def _sum(values: torch.Tensor) -> list[float]:
    return [float(values.double().sum()), float(values.numel())]


def scores(items: Sequence[Item], scored: Sequence[Sequence[Sequence[float]]], *, by_bytes: bool) -> Floats:
    """log p of every choice, or log p over its bytes, (items, most choices); -inf where an item has fewer."""
    result = np.full((len(items), max(len(i.texts) for i in items)), -np.inf)
    for row, (item, values) in enumerate(zip(items, scored, strict=True)):
        for column, text in enumerate(item.texts):
            result[row, column] = values[column][0] / (len(text.encode()) if by_bytes else 1)
    return result


def gold_of(items: Sequence[Item]) -> Ints:
    """Which choice is right, (items,)."""
    return np.array([item.gold for item in items], dtype=np.int64)


def credit(values: Floats, gold: Ints) -> Floats:
    """1 where the gold choice alone scores highest, 1/m where it is one of m that do, else 0, (items,)."""
    best = values == values.max(axis=1, keepdims=True)  # (items, choices)
    result: Floats = best[np.arange(len(gold)), gold] / best.sum(axis=1)
    return result
