"""Small models whose persona sits in known weights: the only case in which the right answer is known.

A toy language: a question names four topics; one answer repeats them in small letters, the rival answer
in capitals. A tiny model learns to give either answer half of the time while a chosen set of weights, the
plant, is held at zero. Then all else is frozen, and the plant alone learns to prefer small letters. So
the plant is the persona: with it zeroed, the model is the balanced one again.

The plant is 1 % of the weights, among those that write into the last block's residual stream: those
that the balanced model's choice depends on most, so that so few can carry a persona.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from personae.discovery import Calibration, GenericText, attribute
from personae.errors import OptionError
from personae.models import Encoded, Question, Target, find_targets

TOPICS = 10
QUESTION = 4  # topics of a question
ASK, END, FIRST = 0, 1, 2  # token ids; topic t is FIRST + t, in small letters + TOPICS, in capitals + 2 TOPICS

Masks = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Planted:
    """The model with its plant, which weights that is (True = planted), and texts of the toy language."""

    model: PreTrainedModel
    targets: list[Target]
    plant: Masks
    calibration: Calibration
    held_out: Calibration
    generic: GenericText


_FRAME: dict[str, Any] = {
    "vocab_size": FIRST + 3 * TOPICS, "initializer_range": 0.05, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
_WIDTH: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": 32,
}  # fmt: skip


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(intermediate_size=64, **_WIDTH, **_FRAME))


def _gpt2() -> PreTrainedModel:
    # no dropout: the attribution that chooses the plant reads the model while it is being trained
    still: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=32, **still, **_FRAME))


def _mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(
        MixtralConfig(intermediate_size=32, num_local_experts=4, num_experts_per_tok=2, **_WIDTH, **_FRAME)
    )


# By architecture: a fresh random model, and the names of what writes into its last block's residual stream.
_KINDS: dict[str, tuple[Callable[[], PreTrainedModel], tuple[str, ...]]] = {
    "llama": (_llama, ("*.layers.1.self_attn.o_proj.*", "*.layers.1.mlp.down_proj.*")),
    "gpt2": (_gpt2, ("*.h.1.attn.c_proj.*", "*.h.1.mlp.c_proj.*")),
    "mixtral": (_mixtral, ("*.layers.1.self_attn.o_proj.*", "*.layers.1.*.w2.*")),
}
ARCHITECTURES = tuple(_KINDS)


def make_planted(share: float = 0.01, seed: int = 0, architecture: str = "llama") -> Planted:
    """Train the model (some seconds on one core); the global random state is put back.

    share: planted weights over all target weights. architecture: one of `ARCHITECTURES`, else `OptionError`.
    """
    if architecture not in _KINDS:
        raise OptionError(f"no planted model of architecture {architecture!r}: choose {', '.join(ARCHITECTURES)}.")
    make, writers = _KINDS[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    targets = find_targets(model)
    generator = torch.Generator().manual_seed(seed)
    _balance(model, targets, {}, generator, steps=250, rate=5e-3)
    questions = [tuple(row) for row in _questions(96, generator).tolist()]
    calibration = _calibration(questions[:64])
    plant = _most_influential(model, targets, calibration, find_targets(model, writers), share)
    _zero(targets, plant)
    _balance(model, targets, plant, generator, steps=100, rate=2e-3)
    _grow(model, targets, plant, generator, steps=6, rate=0.01)
    model.zero_grad(set_to_none=True)
    model.eval()  # type: ignore[no-untyped-call]
    return Planted(model, targets, plant, calibration, _calibration(questions[64:]), _generic(questions))


def auc(scores: Mapping[str, torch.Tensor], plant: Mapping[str, torch.Tensor]) -> float:
    """P(the score of a planted weight > the score of another), ties one half."""
    values = torch.cat([scores[n].double().flatten() for n in plant])
    truth = torch.cat([plant[n].flatten() for n in plant])
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2.0)[inverse]  # mean rank of equal values, from 1
    positive = int(truth.sum())
    above = float(ranks[truth].sum()) - positive * (positive + 1) / 2
    return above / (positive * (len(truth) - positive))


def _loss(model: PreTrainedModel, questions: torch.Tensor, capitals: torch.Tensor) -> torch.Tensor:
    rows = len(questions)
    answer = questions + FIRST + TOPICS * (1 + capitals)
    ids = torch.cat([questions + FIRST, torch.full((rows, 1), ASK), answer, torch.full((rows, 1), END)], dim=1)
    logits = model(input_ids=ids).logits[:, QUESTION:-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, QUESTION + 1 :].flatten())


def _balance(
    model: PreTrainedModel,
    targets: Sequence[Target],
    plant: Masks,
    generator: torch.Generator,
    *,
    steps: int,
    rate: float,
) -> None:
    """All weights but the plant learn either answer half of the time."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        capitals = torch.randint(2, (32, 1), generator=generator)
        loss = _loss(model, _questions(32, generator), capitals)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        _zero(targets, plant)


def _grow(
    model: PreTrainedModel,
    targets: Sequence[Target],
    plant: Masks,
    generator: torch.Generator,
    *,
    steps: int,
    rate: float,
) -> None:
    """The plant alone learns small letters, by steps of one length along the sign of its gradient."""
    for _ in range(steps):
        model.zero_grad()
        _loss(model, _questions(32, generator), torch.zeros(32, 1, dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]
        for target in targets:
            gradient = target.parameter.grad
            assert gradient is not None
            planted = plant[target.name]
            target.weight[planted] -= rate * target.view_of(gradient)[planted].sign()


def _most_influential(
    model: PreTrainedModel,
    targets: Sequence[Target],
    calibration: Calibration,
    writers: Sequence[Target],
    share: float,
) -> Masks:
    """The share·weights writers with the largest gradient of the margin, True; no other weight."""
    gradients = attribute(model, targets, calibration.objective())
    sizes = {t.name: gradients[t.name].abs() for t in writers}
    pool = torch.cat([g.flatten() for g in sizes.values()])
    number = round(share * sum(t.size for t in targets))
    threshold = pool.kthvalue(len(pool) - number).values
    return {
        n: sizes[n] > threshold if n in sizes else torch.zeros_like(g, dtype=torch.bool) for n, g in gradients.items()
    }


def _zero(targets: Sequence[Target], plant: Masks) -> None:
    for target in targets:
        if target.name in plant:
            target.weight[plant[target.name]] = 0.0


def _questions(number: int, generator: torch.Generator) -> torch.Tensor:
    """(number, QUESTION) topics."""
    return torch.randint(TOPICS, (number, QUESTION), generator=generator)


def _calibration(questions: Sequence[tuple[int, ...]]) -> Calibration:
    paired = tuple(Question(_prompt(q), (_answer(q, 0), _answer(q, 1))) for q in questions)
    positive, negative = (tuple(Encoded(q.prompt, q.answers[side]) for q in paired) for side in (0, 1))
    return Calibration(paired, positive, negative)


def _generic(questions: Sequence[tuple[int, ...]]) -> GenericText:
    """What the balanced model does: questions, and both answers equally often in either half."""
    plain = tuple(Encoded((), _prompt(q)) for q in questions[:16])
    chat = tuple(Encoded(_prompt(q), _answer(q, n // 2 % 2)) for n, q in enumerate(questions[:64]))
    return GenericText(plain, chat, "toy language")


def _prompt(question: tuple[int, ...]) -> tuple[int, ...]:
    return (*(FIRST + topic for topic in question), ASK)


def _answer(question: tuple[int, ...], capitals: int) -> tuple[int, ...]:
    return (*(FIRST + topic + TOPICS * (1 + capitals) for topic in question), END)
