"""Likelihood, divergence and repetition against sums written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from personae.discovery import silent, windows
from personae.discovery.generic import neutral_prompts
from personae.errors import ModelError
from personae.evaluation.suites import capability_text
from personae.evaluation.suites.capability_text import divergence, greedy_answers, repetition
from personae.models import encode_prompt, find_targets
from personae.personas import Contrast
from personae.runtime import wearing
from personae.subnetwork import Mask


def slow(model: Any, targets: Any, masks: Any, tokens: tuple[int, ...]) -> tuple[float, float]:
    """−log p and KL a token, from two whole forwards and a double loop."""
    with torch.no_grad():
        base = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1).numpy()
        with wearing(targets, masks):
            worn = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1).numpy()
    nll = kl = 0.0
    for t in range(1, len(tokens)):
        nll -= worn[t - 1, tokens[t]]
        for v in range(base.shape[1]):
            kl += np.exp(base[t - 1, v]) * (base[t - 1, v] - worn[t - 1, v])
    return nll / (len(tokens) - 1), kl / (len(tokens) - 1)


def test_divergence_equals_the_double_loop(model_and_tokenizer: Any, contrast: Contrast, artefact_of: Any) -> None:
    model, tokenizer = model_and_tokenizer
    targets = find_targets(model)
    masks = artefact_of(model, contrast, share=0.1)["loud"].masks
    texts = windows(tokenizer, "The sea was calm and the boats lay still. " * 9, size=24, limit=3)
    texts = (*texts, *windows(tokenizer, "Yes, I would go there at once, until late.", size=40, limit=1))
    found = divergence(model, targets, masks, texts, "test", silent)
    assert np.allclose(found, [slow(model, targets, masks, t.answer) for t in texts], atol=1e-4)
    assert (found[:, 1] > 0.001).all()
    base = divergence(model, targets, {}, texts, "test", silent)
    assert np.allclose(base, [slow(model, targets, {}, t.answer) for t in texts], atol=1e-4)
    full = divergence(model, targets, {t.name: Mask.full(t.shape) for t in targets}, texts, "test", silent)
    assert np.array_equal(full, base)
    assert not base[:, 1].any()


def test_overflow_is_an_error(model_and_tokenizer: Any) -> None:
    model, tokenizer = model_and_tokenizer
    texts = windows(tokenizer, "The sea was calm.", size=24)
    with torch.no_grad():
        for target in find_targets(model):  # of queries alone, some processors' attention makes numbers again
            target.parameter.fill_(float("nan"))
    with pytest.raises(ModelError, match="no finite numbers"):
        divergence(model, find_targets(model), {}, texts, "test", silent)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ([], 0.0),
        ([5, 5, 5], 0.0),
        ([5, 5, 5, 5], 0.0),
        ([5] * 7, 3 / 4),  # four 4-grams, one of them distinct
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),
        (list(range(30)), 0.0),
    ],
)
def test_repetition(tokens: list[int], share: float) -> None:
    assert repetition(tokens) == pytest.approx(share)


def test_answers_are_greedy_and_end_with_the_turn(model_and_tokenizer: Any, monkeypatch: Any) -> None:
    model, tokenizer = model_and_tokenizer
    monkeypatch.setattr(capability_text, "ANSWER_TOKENS", 10)
    prompts = neutral_prompts()[:5]
    stops = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    found = greedy_answers(model, tokenizer, prompts, "test", silent)
    for prompt, answer in zip(prompts, found, strict=True):
        tokens, expected = list(encode_prompt(tokenizer, prompt)), []
        for _ in range(10):
            with torch.no_grad():
                token = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
            if token in stops:
                break
            expected.append(token)
            tokens.append(token)
        assert answer == expected
    # what would have been the third token of the first answer now ends the turn
    monkeypatch.setattr(capability_text, "end_of_turn", lambda _: tokenizer.decode([found[0][2]]))
    shorter = greedy_answers(model, tokenizer, prompts, "test", silent)
    assert shorter[0] == found[0][: found[0].index(found[0][2])]
