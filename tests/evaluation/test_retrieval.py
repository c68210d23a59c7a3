"""The nearest calibration questions, and how they stand in the prompt."""

from __future__ import annotations

from typing import Any

import pytest

from personae.errors import DataError
from personae.evaluation.retrieval import nearest, with_examples
from personae.evaluation.scoring import encode_items
from personae.models import encode_prompt, render_prompt
from personae.personas import Contrast, split

QUESTIONS = ["Do you want power over people?", "What is your favourite soup?", "Would you like more money?"]


def test_nearest_shares_words() -> None:
    assert nearest(QUESTIONS, ["soup today?", "such power!"], 1) == [[1], [0]]
    assert nearest(QUESTIONS, ["zzz", ""], 2) == [[0, 1], [0, 1]]  # nothing in common: in order
    assert nearest(QUESTIONS, ["soup"], 9) == [[1, 0, 2]]
    with pytest.raises(DataError, match="calibration questions"):
        nearest([], ["soup"])


def test_examples_are_earlier_turns_with_the_poles_own_answers(model_and_tokenizer: Any, contrast: Contrast) -> None:
    model, tokenizer = model_and_tokenizer
    parts = split(contrast)
    sides = with_examples(model, tokenizer, parts.test, parts.calibration, shots=2)
    plain = encode_items(model, tokenizer, parts.test)
    asked = [p.prompt for p in parts.test.pairs]
    order = nearest([p.prompt for p in parts.calibration.pairs], asked, 2)
    for pole, side in enumerate(sides):
        assert side.ids == plain.ids
        for pair, examples, question, bare in zip(
            parts.test.pairs, order, side.questions, plain.questions, strict=True
        ):
            turns = [(p.prompt, (p.positive, p.negative)[pole]) for p in (parts.calibration.pairs[i] for i in examples)]
            assert question.answers == bare.answers
            assert question.prompt == tuple(encode_prompt(tokenizer, pair.prompt, history=turns[::-1]))


def test_history_without_a_template(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    text = render_prompt(tokenizer, "third?", "Be kind.", history=[("first?", "one"), ("second?", "two")])
    assert text == "Be kind.\n\nQ: first?\nA: one\n\nQ: second?\nA: two\n\nQ: third?\nA:"


def test_history_in_a_template(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    text = render_prompt(tokenizer, "third?", "Be kind.", history=[("first?", "one"), ("second?", "two")])
    assert text == "<system>Be kind.<user>first?<assistant>one<user>second?<assistant>two<user>third?<assistant>"
