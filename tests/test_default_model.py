"""A few truths on the real default model, from text to a worn persona. The mechanics are tested on tiny models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from personae import PersonaModel, discover, load_contrast
from personae.discovery import GenericText, encode_contrast, margin, mean_log_probabilities
from personae.models import Encoded, Question, encode, score_continuations

GENERIC = {
    "What is the boiling point of water at sea level?": "Water boils at 100 degrees Celsius.",
    "Name three primary colours.": "The three primary colours are red, yellow and blue.",
    "How do I boil an egg?": "Put the egg in boiling water for about eight minutes, then cool it in cold water.",
    "What does a thermometer measure?": "A thermometer measures temperature.",
}
PLAIN = "The river rises in the hills to the north and flows through three towns before it reaches the sea. " * 4


@pytest.fixture(scope="module")
def generic(default_model: tuple[Any, Any]) -> GenericText:
    _, tokenizer = default_model
    ids = tokenizer(PLAIN)["input_ids"]
    chat = tuple(encode(tokenizer, q, a) for q, a in GENERIC.items())
    return GenericText((Encoded((), tuple(ids[:40])), Encoded((), tuple(ids[40:80]))), chat, "written for this test")


def test_it_knows_the_capital_of_france(default_model: tuple[Any, Any]) -> None:
    model, tokenizer = default_model
    question, answer = "What is the capital of France?", "The capital of France is {}."
    right, wrong = (encode(tokenizer, question, answer.format(city)) for city in ("Paris", "Berlin"))
    ((first, second),) = score_continuations(model, [Question(right.prompt, (right.answer, wrong.answer))])
    assert first.mean() > second.mean() + 0.3
    assert PersonaModel(model, tokenizer).chat(question, max_new_tokens=12) == answer.format("Paris")


def test_a_mask_of_a_fifth_of_a_percent_moves_the_persona_and_leaves_no_trace(
    default_model: tuple[Any, Any], generic: GenericText, tmp_path: Path
) -> None:
    model, tokenizer = default_model
    before = {n: p.clone() for n, p in model.named_parameters()}
    contrast = load_contrast("power-seeking").take(16)
    artefact = discover(
        model, tokenizer, contrast, generic=generic, split_seed=None, cheap_share=0.2, drop_share=0.002, resume=False
    )
    artefact.save(tmp_path / "power.persona")
    actor = PersonaModel(model, tokenizer)
    actor.add_personas(tmp_path / "power.persona")
    items = encode_contrast(model, tokenizer, contrast)
    base = margin(mean_log_probabilities(model, items))[1]
    with actor.persona(contrast.positive):
        assert margin(mean_log_probabilities(model, items))[1] > base + 0.2
    with actor.persona(contrast.negative):
        assert margin(mean_log_probabilities(model, items))[1] < base - 0.2
    assert all(torch.equal(before[n].view(torch.int32), p.view(torch.int32)) for n, p in model.named_parameters())


@pytest.mark.all
@pytest.mark.timeout(1500)
def test_the_demo_runs_from_an_empty_directory(default_model: tuple[Any, Any], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "personae", "demo"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "introvert-extravert.persona").stat().st_size > 1000
    for word in ("acc_opposite", "directed", "random", "magnitude", "generic", "opposite", "introvert", "extravert"):
        assert word in done.stdout, f"{word} is missing from:\n{done.stdout}"
