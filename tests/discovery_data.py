"""Small texts for the tests of discovery: random token ids, a contrast of one-line answers, generic text."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn

from personae.discovery import GenericText, discover
from personae.models import Encoded, Question
from personae.personas import Contrast, Pair, Sample
from personae.subnetwork import Artefact

VOCABULARY = 300  # every tiny model has more tokens than that


def random_texts(number: int, seed: int = 0) -> tuple[Encoded, ...]:
    """Prompts and answers of different lengths."""
    chance = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(chance.randrange(4, VOCABULARY) for _ in range(chance.randint(low, high)))

    return tuple(Encoded(ids(2, 9), ids(2, 7)) for _ in range(number))


def random_questions(number: int, seed: int = 0) -> list[Question]:
    """Two answers a question; the questions begin alike, as rendered prompts do."""
    first, second = random_texts(number, seed), random_texts(number, seed + 1)
    return [Question((5, 6, 7, *a.prompt), (a.answer, b.answer)) for a, b in zip(first, second, strict=True)]


def small_generic(seed: int = 7) -> GenericText:
    """Four plain windows and six chat answers."""
    texts = random_texts(10, seed)
    return GenericText(tuple(Encoded((), e.prompt + e.answer) for e in texts[:4]), texts[4:], "random ids")


def small_contrast(pairs: int = 6, *, paired: bool = True) -> Contrast:
    """Leading or following, in a few words."""
    rows = [
        Pair(f"Would you lead team {n}?", f"Yes, I would lead team {n}.", f"No, thank you, not {n}.")
        for n in range(pairs)
    ]
    if paired:
        return Contrast("lead-follow", "lead", "follow", pairs=tuple(rows), licence="CC0-1.0", source="test")
    return Contrast(
        "lead-follow", "lead", "follow",
        positive_samples=tuple(Sample(p.prompt, p.positive) for p in rows),
        negative_samples=tuple(Sample(p.prompt, p.negative) for p in rows[1:]),
    )  # fmt: skip


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every bit of the model."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {n: t.detach().contiguous().view(-1).view(torch.uint8).clone() for n, t in named}


def same_bits(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    """Whether not one bit has changed since."""
    now = bits(model)
    return now.keys() == before.keys() and all(torch.equal(now[n], before[n]) for n in now)


def run(model: Any, tokenizer: Any, contrast: Any = None, **options: Any) -> Artefact:
    """`discover` on all of a small contrast with given generic text."""
    options = {"generic": small_generic(), "split_seed": None, "resume": False, **options}
    return discover(model, tokenizer, small_contrast(4) if contrast is None else contrast, **options)
