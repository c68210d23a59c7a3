"""A small model whose persona sits in known weights: the only case in which the right answer is known.

A toy language: a question is 4 topic tokens; one answer repeats them in 'lower case', the rival answer in 'upper
case'. First a tiny Llama learns to give either answer half of the time, with a chosen set of weights held at zero
(the plant). Then everything but the plant is frozen, and the plant learns to prefer the positive answer. So the
plant is the persona: with it zeroed, the model is the balanced one again, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from personae.discovery import Calibration, GenericText
from personae.models import Encoded, Question, Target, find_targets

TOPICS = 10
ASK, END = 0, 1
QUESTION = 4  # topic tokens of a question
VOCABULARY = 2 + 3 * TOPICS


@dataclass(frozen=True)
class Planted:
    """The model with its plant, which weights it is (True = planted), and texts of the toy language."""

    model: LlamaForCausalLM
    targets: list[Target]
    plant: dict[str, torch.Tensor]
    calibration: Calibration
    held_out: Calibration
    generic: GenericText


def make_planted(share: float = 0.02, seed: int = 0) -> Planted:
    """Train the model (a few seconds on one core); the global random state is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32,
                bos_token_id=None, eos_token_id=None, pad_token_id=None,
            )
        )  # fmt: skip
        targets = find_targets(model)
        plant = {t.name: torch.rand(t.shape) < share for t in targets}
        generator = torch.Generator().manual_seed(seed)
        _train(model, targets, plant, generator, planted=False, steps=400, rate=5e-3)
        _train(model, targets, plant, generator, planted=True, steps=60, rate=2e-2)
    model.eval()
    questions = [tuple(row) for row in _questions(96, generator).tolist()]
    return Planted(
        model, targets, plant, _calibration(questions[:64]), _calibration(questions[64:]), _generic(questions)
    )


def _train(
    model: LlamaForCausalLM,
    targets: Sequence[Target],
    plant: dict[str, torch.Tensor],
    generator: torch.Generator,
    *,
    planted: bool,
    steps: int,
    rate: float,
) -> None:
    """planted=False: all weights but the plant, both answers; True: the plant alone, positive answers."""
    masks = {id(t.parameter): plant[t.name] for t in targets}
    with torch.no_grad():
        for target in targets if not planted else ():
            target.weight[plant[target.name]] = 0.0
    trained = [p for p in model.parameters() if not planted or id(p) in masks]
    optimizer = torch.optim.Adam(trained, lr=rate)
    for _ in range(steps):
        questions = _questions(32, generator)
        upper = torch.zeros(32, 1) if planted else (torch.rand(32, 1, generator=generator) < 0.5)
        ids = _sequence(questions, upper.long())
        logits = model(input_ids=ids).logits[:, QUESTION:-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, QUESTION + 1 :].flatten())
        optimizer.zero_grad()
        loss.backward()
        for p in trained:
            if id(p) in masks and p.grad is not None:
                p.grad[masks[id(p)] != planted] = 0.0  # Adam leaves a weight without gradient where it is
        optimizer.step()


def _questions(number: int, generator: torch.Generator) -> torch.Tensor:
    """(number, QUESTION) topics."""
    return torch.randint(TOPICS, (number, QUESTION), generator=generator)


def _sequence(questions: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """Topic tokens, ASK, the answer in lower or upper case, END."""
    rows = len(questions)
    answer = questions + 2 + TOPICS * (1 + upper)
    return torch.cat([questions + 2, torch.full((rows, 1), ASK), answer, torch.full((rows, 1), END)], dim=1)


def _calibration(questions: Sequence[tuple[int, ...]]) -> Calibration:
    paired = []
    for question in questions:
        prompt = (*(t + 2 for t in question), ASK)
        answers = tuple((*(t + 2 + TOPICS * (1 + upper) for t in question), END) for upper in (0, 1))
        paired.append(Question(prompt, answers))
    samples = [tuple(Encoded(q.prompt, q.answers[side]) for q in paired) for side in (0, 1)]
    return Calibration(tuple(paired), *samples)


def _generic(questions: Sequence[tuple[int, ...]]) -> GenericText:
    """What the balanced model does: questions, and both answers equally often."""
    plain = tuple(Encoded((), (*(t + 2 for t in q), ASK)) for q in questions[:16])
    chat = tuple(
        Encoded((*(t + 2 for t in q), ASK), (*(t + 2 + TOPICS * (1 + n // 2 % 2) for t in q), END))
        for n, q in enumerate(questions[:64])
    )
    return GenericText(plain, chat, "toy language")


def auc(scores: dict[str, torch.Tensor], plant: dict[str, torch.Tensor]) -> float:
    """P(score of a planted weight > score of another), ties one half."""
    values = torch.cat([scores[n].double().flatten() for n in plant])
    truth = torch.cat([plant[n].flatten() for n in plant])
    ordered, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0)
    ranks = (ends - (counts - 1) / 2.0)[inverse]
    positive = int(truth.sum())
    negative = len(truth) - positive
    assert len(ordered) > 1
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))
