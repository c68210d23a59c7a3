"""The option-letter format against whole forwards, by hand, and where a liking for a letter is planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from personae.errors import DataError, ModelError
from personae.evaluation.suites.letters import (
    averaged,
    first_letter,
    flips,
    letter_figures,
    letter_margins,
    until_they_differ,
    with_options,
)
from personae.models import encode_prompt
from personae.personas import Contrast, Sample


def slow_log_p(model: Any, prompt: list[int], letter: list[int]) -> float:
    """log p of the letter's tokens, one whole forward, a loop over tokens."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + letter])).logits[0].double()
    return sum(float(torch.log_softmax(logits[len(prompt) + i - 1], -1)[token]) for i, token in enumerate(letter))


@pytest.mark.parametrize("template", [True, False])
def test_margins_against_whole_forwards(tiny_model: Callable[..., Any], contrast: Contrast, template: bool) -> None:
    model, tokenizer = tiny_model("llama", template=template)
    some = contrast.take(5)
    found = letter_margins(model, tokenizer, some)
    lead = "" if template else " "
    letters = [tokenizer(f"{lead}({x}", add_special_tokens=False)["input_ids"] for x in "AB"]
    for pair, row in zip(some.pairs, found, strict=True):
        for order in (0, 1):
            options = (pair.positive, pair.negative) if order == 0 else (pair.negative, pair.positive)
            text = f"{pair.prompt}\n\nChoices:\n (A) {options[0]}\n (B) {options[1]}"
            prompt = encode_prompt(tokenizer, text)
            a, b = (slow_log_p(model, prompt, letter) for letter in letters)
            assert row[order] == pytest.approx(a - b if order == 0 else b - a, abs=1e-4)


def test_exchanging_the_poles_turns_the_margins(model_and_tokenizer: Any, contrast: Contrast) -> None:
    some = contrast.take(6)
    one, other = (letter_margins(*model_and_tokenizer, c) for c in (some, some.swapped()))
    assert np.allclose(one, -other[:, ::-1], atol=1e-5)


def test_a_liking_for_a_letter_flips_every_item_and_drops_out_of_the_mean() -> None:
    content = np.array([0.3, -0.2, 0.1, 0.4])
    for liking in (5.0, -5.0):
        margins = np.stack([content + liking, content - liking], axis=1)
        assert flips(margins).tolist() == [1, 1, 1, 1]
        assert first_letter(margins).tolist() == [1.0 if liking > 0 else 0.0] * 4
        assert averaged(margins) == pytest.approx(content)
        figures = letter_figures(margins, resamples=200)
        assert (figures["acc"].value, figures["flip_rate"].value) == (0.75, 1.0)
        assert figures["flip_rate"].low == figures["flip_rate"].high == 1.0
        assert figures["acc"].low < 0.75 <= figures["acc"].high


def test_by_hand_with_ties() -> None:
    margins = np.array([[1.0, 2.0], [-1.0, 0.5], [0.0, 3.0], [0.0, 0.0], [-2.0, -1.0]])
    assert flips(margins).tolist() == [0, 1, 0.5, 0, 0]
    assert first_letter(margins).tolist() == [0.5, 0.0, 0.25, 0.5, 0.5]
    assert letter_figures(margins, resamples=20)["acc"].value == pytest.approx((1 + 0 + 1 + 0.5 + 0) / 5)


def test_only_what_differs_is_scored() -> None:
    assert until_they_differ((1, 2, 3), (1, 4, 3)) == ((1, 2), (1, 4))
    assert until_they_differ((7,), (8,)) == ((7,), (8,))
    assert until_they_differ((1, 2, 3, 9), (1, 4, 3, 9)) == ((1, 2), (1, 4))
    for first, second in (((1, 2), (1, 2)), ((2, 3), (3,))):
        with pytest.raises(DataError, match="no letter format"):
            until_they_differ(first, second)


def test_the_text_of_a_question() -> None:
    assert with_options("Why?", "So.", "No.") == "Why?\n\nChoices:\n (A) So.\n (B) No."


def test_refused(tiny_model: Callable[..., Any], contrast: Contrast) -> None:
    model, tokenizer = tiny_model("llama")
    unpaired = replace(contrast, pairs=(), positive_samples=(Sample("a", "b"),), negative_samples=(Sample("a", "c"),))
    with pytest.raises(DataError, match="not paired"):
        letter_margins(model, tokenizer, unpaired)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="no finite numbers"):
        letter_margins(model, tokenizer, contrast.take(2))
