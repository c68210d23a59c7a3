"""Contrasts in token ids, the objective's weights, margins, and the rival of a one-sided persona."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from discovery_data import small_contrast
from personae.discovery import Calibration, against_base, encode_contrast, margin, mean_log_probabilities
from personae.discovery.calibration import _finished
from personae.errors import DataError
from personae.models import encode, encode_prompt, end_of_turn
from personae.personas import Contrast, Pair, Persona, Sample

TinyModel = Callable[..., tuple[Any, Any]]


def test_pairs_become_questions(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    contrast = small_contrast(3)
    found = encode_contrast(model, tokenizer, contrast)
    assert len(found.paired) == len(found.positive) == len(found.negative) == 3
    for pair, question, yes, no in zip(contrast.pairs, found.paired, found.positive, found.negative, strict=True):
        assert yes == encode(tokenizer, pair.prompt, pair.positive)
        assert no == encode(tokenizer, pair.prompt, pair.negative)
        assert (question.prompt, question.answers) == (yes.prompt, (yes.answer, no.answer))


def test_unpaired_sets_stay_apart(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    found = encode_contrast(model, tokenizer, small_contrast(4, paired=False))
    assert (len(found.paired), len(found.positive), len(found.negative)) == (0, 4, 3)


def test_both_answers_get_the_shorter_of_two_cut_prompts(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama", max_position_embeddings=40)
    pair = Pair("Where would you go? " * 5, "Home.", "To the whole team, the user and the assistant.")
    with pytest.warns(UserWarning, match="cut from the left"):
        found = encode_contrast(model, tokenizer, Contrast("x", "p", "n", pairs=(pair,)))
    (question,) = found.paired
    assert question.prompt == found.negative[0].prompt
    assert len(question.prompt) < len(found.positive[0].prompt)
    assert all(len(question.prompt) + len(a) <= 40 for a in question.answers)
    assert question.answers == (found.positive[0].answer, found.negative[0].answer)


def calibration(tiny_model: TinyModel, *, paired: bool = True) -> tuple[Any, Calibration]:
    model, tokenizer = tiny_model("llama")
    return model, encode_contrast(model, tokenizer, small_contrast(4, paired=paired))


@pytest.mark.parametrize("pole", [0, 1])
def test_the_objective_of_pairs_is_the_mean_margin(tiny_model: TinyModel, pole: int) -> None:
    _, items = calibration(tiny_model)
    own = 0.25 if pole == 0 else -0.25
    assert [q.weights for q in items.objective(pole)] == [(own, -own)] * 4
    assert [q.question for q in items.objective(pole)] == list(items.paired)
    leaning = items.objective(pole, own_weight=0.5)
    assert [q.weights for q in leaning] == [(0.375, -0.25) if pole == 0 else (-0.25, 0.375)] * 4
    uneven = items.objective(pole, pair_weights=[3.0, 1.0, 0.0, 4.0])
    assert [abs(q.weights[0]) for q in uneven] == [3 / 8, 1 / 8, 0, 1 / 2]


def test_the_objective_of_unpaired_sets_is_the_difference_of_means(tiny_model: TinyModel) -> None:
    _, items = calibration(tiny_model, paired=False)
    weights = [q.weights for q in items.objective()]
    assert weights == [(1 / 4,)] * 4 + [(-1 / 3,)] * 3
    assert [q.question.answers[0] for q in items.objective()] == [e.answer for e in items.positive + items.negative]
    assert [q.weights for q in items.objective(1)] == [(-1 / 4,)] * 4 + [(1 / 3,)] * 3


def slow(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    with torch.no_grad():
        logs = torch.log_softmax(model(input_ids=torch.tensor([prompt + answer])).logits[0].double(), dim=-1)
    return sum(float(logs[len(prompt) - 1 + k, t]) for k, t in enumerate(answer)) / len(answer)


def test_mean_log_probabilities(tiny_model: TinyModel) -> None:
    model, items = calibration(tiny_model)
    found = mean_log_probabilities(model, items)
    expected = [[slow(model, q.prompt, a) for a in q.answers] for q in items.paired]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    model, items = calibration(tiny_model, paired=False)
    means = [
        sum(slow(model, e.prompt, e.answer) for e in side) / len(side) for side in (items.positive, items.negative)
    ]
    ticks: list[int] = []
    found = mean_log_probabilities(model, items, tick=ticks.append)
    torch.testing.assert_close(found, torch.tensor([means], dtype=torch.float64), rtol=1e-4, atol=1e-4)
    assert sum(ticks) == 7


def test_margin_counts_ties_one_half() -> None:
    acc, mean = margin(torch.tensor([[-1.0, -2.0], [-3.0, -1.0], [-2.0, -2.0], [-1.0, -5.0]]))
    assert (acc, mean) == (0.625, 0.75)


def persona(*samples: tuple[str, str]) -> Persona:
    return Persona(
        "pirate",
        tuple(Sample(*s) for s in samples),
        prompt="Be a pirate.",
        licence="CC0-1.0",
        description="Arr",
        source="s",
    )


def greedy(model: Any, tokenizer: Any, prompt: str, length: int) -> str:
    """The likeliest token each time, by plain forwards."""
    ids = encode_prompt(tokenizer, prompt)
    (stop,) = tokenizer(end_of_turn(tokenizer), add_special_tokens=False)["input_ids"]
    begin = len(ids)
    for _ in range(length):
        with torch.no_grad():
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
        if ids[-1] == stop:
            break
    return str(tokenizer.decode(ids[begin:], skip_special_tokens=True)).strip()


def test_the_rival_is_the_base_models_greedy_answer(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personae.discovery.calibration.GREEDY_TOKENS", 8)
    model, tokenizer = tiny_model("llama")
    habits = GenerationConfig(repetition_penalty=5.0, do_sample=True, top_k=3, eos_token_id=2)
    model.generation_config = habits  # what a checkpoint ships must not change the answer
    rival = greedy(model, tokenizer, "Who are you?", 8)
    ticks: list[int] = []
    found = against_base(
        model,
        tokenizer,
        persona(("Who are you?", "Arr!"), ("Who are you?", rival), ("Where?", "At sea.")),
        ticks.append,
    )
    assert found.pairs == (
        Pair("Who are you?", "Arr!", rival),
        Pair("Where?", "At sea.", greedy(model, tokenizer, "Where?", 8)),
    )
    assert (found.name, found.poles) == ("pirate", ("pirate", "not-pirate"))
    assert (found.positive_prompt, found.licence, found.description) == ("Be a pirate.", "CC0-1.0", "Arr")
    assert ticks == [1, 1, 1]
    assert model.generation_config is habits


def test_a_long_prompt_is_cut_for_the_rival(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personae.discovery.calibration.GREEDY_TOKENS", 4)
    model, tokenizer = tiny_model("gpt2", n_positions=40)  # learnt positions: one token more would fail
    found = against_base(model, tokenizer, persona(("Where would you go, and why? " * 20, "To sea.")))
    assert len(found.pairs) == 1


def test_a_persona_that_the_base_model_is_already(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personae.discovery.calibration.GREEDY_TOKENS", 4)
    model, tokenizer = tiny_model("llama")
    with pytest.raises(DataError, match="already gives every answer of 'pirate'"):
        against_base(model, tokenizer, persona(("Where?", greedy(model, tokenizer, "Where?", 4))))


@pytest.mark.parametrize(
    ("answer", "whole", "ends"),
    [
        ("I sail. I fish. And then I", False, "I sail. I fish."),
        ("I said 'Stop!' and then", False, "I said 'Stop!'"),
        ("I paid 3.50 for it and", False, "I paid 3.50 for it and"),  # no sentence ends within a number
        ("Nothing ends here", False, "Nothing ends here"),
        ("I sail. I fish. And then I", True, "I sail. I fish. And then I"),
        ("I sail.</turn>\nuser: and you?", True, "I sail."),  # a turn that several tokens close
    ],
)
def test_a_rival_ends_where_an_answer_may_end(answer: str, whole: bool, ends: str) -> None:
    assert _finished(answer, "</turn>", whole) == ends
