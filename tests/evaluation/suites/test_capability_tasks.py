"""The forms of the tasks, their scores against one forward pass a choice, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from personae.discovery import silent
from personae.errors import DataError
from personae.evaluation.suites.capability_tasks import (
    TASKS,
    Item,
    arc,
    chosen,
    credit,
    gold_of,
    hellaswag,
    mmlu,
    piqa,
    read_items,
    score_choices,
    scores,
    to_questions,
    winogrande,
)
from personae.personas.rows import Row

DATA = Path(os.environ.get("PERSONAE_DATA", Path(__file__).parents[4] / "shared" / "data"))


def test_hellaswag_as_the_harness_prepares_it() -> None:
    fields = {
        "activity_label": "Cooking",
        "ctx_a": "How to cook an egg [title] Boil it [substeps] now.",
        "ctx_b": "the man",
        "endings": ["eats [step] it.", "[header] leaves."],
        "label": "1",
    }
    item = hellaswag(Row(fields, "x"))
    assert item.prompts == ("Cooking: How to cook an egg. Boil it now. The man",) * 2
    assert item.continuations == (" eats it.", " leaves.")
    assert item.texts == ("eats it.", "leaves.")
    assert item.gold == 1
    without = hellaswag(Row(fields | {"ctx_b": "", "label": 0}, "x"))
    assert without.prompts[0] == "Cooking: How to cook an egg. Boil it now."


def test_the_other_forms() -> None:
    choices = {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}
    item = arc(Row({"question": "Why?", "choices": choices, "answerkey": "3"}, "x"))
    assert item == Item(("Question: Why?\nAnswer:",) * 3, (" a", " b", " c"), ("a", "b", "c"), 2)
    item = piqa(Row({"goal": "Open it", "sol1": "pull ", "sol2": "push", "label": 0}, "x"))
    assert item == Item(("Question: Open it\nAnswer:",) * 2, (" pull", " push"), ("pull", "push"), 0)
    sentence = {"sentence": "Ann saw Bea so _ waved.", "option1": "Ann", "option2": "Bea", "answer": "2"}
    item = winogrande(Row(sentence, "x"))
    assert item == Item(("Ann saw Bea so Ann", "Ann saw Bea so Bea"), (" waved.",) * 2, ("Ann", "Bea"), 1)
    item = mmlu(Row({"question": "2+2?", "choices": ["1", "2", "3", "4"], "answer": 3}, "x"))
    assert item.prompts[0] == "Question: 2+2?\nChoices:\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    assert item.continuations == (" A", " B", " C", " D")
    assert (item.gold, item.beside) == (3, " 4")


@pytest.mark.parametrize(
    ("parse", "fields", "message"),
    [
        (hellaswag, {"activity_label": "a", "ctx_a": "b", "endings": ["c", "d"], "label": "2"}, "'label' is '2'"),
        (hellaswag, {"activity_label": "a", "ctx_a": "b", "endings": ["c"], "label": "0"}, "two choices"),
        (hellaswag, {"activity_label": "a", "ctx_a": "b", "endings": ["c", "[x]"], "label": "0"}, "none of them empty"),
        (arc, {"question": "q", "choices": ["a"], "answerkey": "A"}, "'text' and 'label'"),
        (arc, {"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerkey": "E"}, "none of the labels A"),
        (piqa, {"goal": "g", "sol1": "a", "label": 0}, "no 'sol2'"),
        (piqa, {"goal": "g", "sol1": "a", "sol2": "b", "label": -1}, "'label' is '-1'"),
        (winogrande, {"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}, "one '_'"),
        (winogrande, {"sentence": "a _ b", "option1": "a", "option2": "b", "answer": "0"}, "from 1 to 2"),
        (mmlu, {"question": "q", "choices": ["1", "2", "3"], "answer": 1}, "holds 3 texts"),
    ],
)
def test_broken_rows_are_named(parse: Callable[[Row], Item], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        parse(Row(fields, "set.jsonl, line 7"))
    assert "set.jsonl, line 7" in str(error.value)


ITEMS = [
    Item(("What would you do?",) * 3, (" call my friends", " stay", " go dancing until late"), ("a", "bb", "ccc"), 2),
    Item(("The user asks so the user", "The user asks so he"), (" is short.",) * 2, ("the user", "he"), 0),
    Item(("Questions are short:",) * 4, (" A", " B", " C", " D"), ("w", "x", "y", "z"), 1, beside=" answers are long"),
]  # fmt: skip


def one_forward(model: Any, tokenizer: Any, prompt: str, continuation: str) -> tuple[float, int]:
    """log p of the continuation and its tokens, from one whole forward and a plain sum."""
    head, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + continuation)["input_ids"]
    with torch.no_grad():
        log_p = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1)
    return sum(float(log_p[i - 1, whole[i]]) for i in range(len(head), len(whole))), len(whole) - len(head)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_scores_equal_one_forward_a_choice(tiny_model: Any, name: str) -> None:
    model, tokenizer = tiny_model(name)
    found = score_choices(model, tokenizer, ITEMS, "test", silent)
    for item, values in zip(ITEMS, found, strict=True):
        pairs = list(zip(item.prompts, item.continuations, strict=True))
        pairs += [(item.prompts[0], item.beside)] if item.beside else []
        expected = [one_forward(model, tokenizer, *pair) for pair in pairs]
        assert np.allclose(values, expected, atol=1e-4)
    summed = scores(ITEMS, found, by_bytes=False)
    assert summed[0].tolist()[:3] == [v[0] for v in found[0]]
    assert summed[1].tolist()[2:] == [-np.inf, -np.inf]  # two choices only; and `beside` is no choice
    assert summed.shape == (3, 4)
    assert np.allclose(scores(ITEMS, found, by_bytes=True)[0, 2], found[0][2][0] / 3)


def test_a_prompt_too_long_loses_its_beginning(tiny_model: Any) -> None:
    _, tokenizer = tiny_model("llama")
    item = Item(("one two three four five six",) * 2, (" yes", " no, never"), ("yes", "no"), 0)
    [whole] = to_questions(tokenizer, item, None)
    longest = max(len(a) for a in whole.answers)
    [cut] = to_questions(tokenizer, item, longest + 4)
    assert cut.prompt == whole.prompt[-4:]
    assert cut.answers == whole.answers
    with pytest.raises(DataError, match="does not fit"):
        to_questions(tokenizer, item, longest)


def test_credit_is_shared_among_exact_ties() -> None:
    values = np.array([[3.0, 1, 2], [1, 3, 3], [2, 2, 2], [0, 5, -np.inf]])
    assert credit(values, np.array([0, 2, 1, 0])).tolist() == [1, 0.5, 1 / 3, 0]
    assert gold_of(ITEMS).tolist() == [2, 0, 1]


def test_the_choice_of_items_is_seeded_nested_and_blind_to_the_order() -> None:
    things = [f"item {n}" for n in range(200)]
    few, many = chosen(things, str, 20, 0), chosen(things, str, 80, 0)
    assert len(few) == 20
    assert set(few) < set(many)
    assert few == sorted(few, key=things.index)
    assert set(few) == set(chosen(things[::-1], str, 20, 0))
    assert set(few) != set(chosen(things, str, 20, 1))
    assert chosen(things, str, 999, 0) == things


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_the_public_files(task: Any) -> None:
    path = DATA / task.file
    if not path.is_file():
        pytest.skip(f"public data {path} not found; set PERSONAE_DATA to the folder that holds it")
    items = read_items(task, path, 10**6, 0)
    assert len(items) == sum(1 for line in path.read_text().split("\n") if line.strip())
    gold = gold_of(items)
    assert set(gold.tolist()) == set(range(4 if task.name in ("hellaswag", "mmlu", "arc_easy") else 2))
    assert all(c.startswith(" ") and c.strip() for item in items for c in item.continuations)
    assert read_items(task, path, 5, 3) == read_items(task, path, 5, 3) != read_items(task, path, 5, 4)
