"""A contrast or a persona as questions in token ids: what statistics, gradients and margins are taken on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery.attribution import WeightedQuestion
from personae.discovery.generic import generate
from personae.errors import DataError
from personae.models import (
    Encoded,
    Question,
    answer_nll,
    context_length,
    encode,
    encode_prompt,
    end_of_turn,
    score_continuations,
)
from personae.personas import Contrast, Pair, Persona

GREEDY_TOKENS = 64  # longest answer of the base model that stands in for a missing rival


@dataclass(frozen=True, slots=True)
class Calibration:
    """Encoded answers of both poles.

    paired: one question with both answers an item (positive first), or empty. positive, negative: the
    samples of each pole as prompt + answer, in their order.
    """

    paired: tuple[Question, ...]
    positive: tuple[Encoded, ...]
    negative: tuple[Encoded, ...]

    def objective(
        self, pole: int = 0, *, own_weight: float = 0.0, pair_weights: Sequence[float] | None = None
    ) -> list[WeightedQuestion]:
        """The mean margin of a pole, Σ_i ω_i (Δ_i + β·mean log p(own answer)), as weighted questions.

        Paired: Δ is mean log p(own) − mean log p(rival) of a pair, ω = 1/pairs unless `pair_weights` are
        given (they are scaled to sum to one). Unpaired: the difference of the two means. β is `own_weight`.
        """
        weights = [1.0 + own_weight, -1.0] if pole == 0 else [-1.0, 1.0 + own_weight]
        if self.paired:
            shares = list(pair_weights) if pair_weights is not None else [1.0] * len(self.paired)
            total = sum(shares)
            return [
                WeightedQuestion(q, (weights[0] * share / total, weights[1] * share / total))
                for q, share in zip(self.paired, shares, strict=True)
            ]
        return [
            WeightedQuestion(Question(e.prompt, (e.answer,)), (weight / len(samples),))
            for weight, samples in zip(weights, (self.positive, self.negative), strict=True)
            for e in samples
        ]


def encode_contrast(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, contrast: Contrast, system: str | None = None
) -> Calibration:
    """Both poles of a contrast as token ids, in the chat template."""
    context = context_length(model)

    def samples(pole: str) -> tuple[Encoded, ...]:
        return tuple(
            encode(tokenizer, s.prompt, s.answer, system=system, context=context) for s in contrast.samples(pole)
        )

    positive, negative = samples(contrast.positive), samples(contrast.negative)
    paired: tuple[Question, ...] = ()
    if contrast.paired:
        # A prompt cut from the left may be cut differently for the two answers; the shorter one serves both.
        paired = tuple(
            Question(min(p.prompt, n.prompt, key=len), (p.answer, n.answer))
            for p, n in zip(positive, negative, strict=True)
        )
    return Calibration(paired, positive, negative)


@torch.no_grad()
def against_base(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    persona: Persona,
    tick: Callable[[int], None] | None = None,
) -> Contrast:
    """A one-sided persona as a contrast: its rival is the base model's own greedy answer to each question.

    Answers the base model gives anyway (equal texts) are left out. Errors: `DataError` when none remain.
    """
    end = end_of_turn(tokenizer)
    stop = tokenizer(end, add_special_tokens=False)["input_ids"] if end else []
    context = context_length(model)
    room = max(context - GREEDY_TOKENS, 1) if context else None  # a longer prompt is cut from the left
    pairs: list[Pair] = []
    answers: dict[str, str] = {}
    for sample in persona.samples:
        if sample.prompt not in answers:
            ids = torch.tensor([encode_prompt(tokenizer, sample.prompt)[-(room or 0) :]])
            out = generate(
                model, ids, torch.ones_like(ids), do_sample=False, max_new_tokens=GREEDY_TOKENS,
                eos_token_id=stop[0] if len(stop) == 1 else None,
            )[0, ids.shape[1] :]  # fmt: skip
            whole = len(out) < GREEDY_TOKENS or int(out[-1]) in stop
            answers[sample.prompt] = _finished(str(tokenizer.decode(out, skip_special_tokens=True)), end, whole)
        rival = answers[sample.prompt]
        if rival and rival != sample.answer:
            pairs.append(Pair(sample.prompt, sample.answer, rival))
        if tick:
            tick(1)
    if not pairs:
        raise DataError(
            f"the base model already gives every answer of {persona.name!r}, or none of its own: there is nothing "
            "to tell apart; give other questions, or a contrast with both poles."
        )
    return Contrast(
        name=persona.name, positive=persona.name, negative=f"not-{persona.name}", pairs=tuple(pairs),
        positive_prompt=persona.prompt, description=persona.description, licence=persona.licence,
        source=persona.source,
    )  # fmt: skip


def _finished(answer: str, end: str, whole: bool) -> str:
    """A greedy answer up to the end of its turn, which is ordinary text where a template closes turns by more tokens.

    One that `GREEDY_TOKENS` cut off ends with its last whole sentence, if it has one: what is calibrated on is followed
    by the end of the turn, which in the middle of a sentence nothing would write.
    """
    closing = end.strip()
    if closing and closing in answer:
        return answer.partition(closing)[0].strip()
    sentences = None if whole else _SENTENCES.match(answer.strip())
    return sentences[0] if sentences else answer.strip()


_SENTENCES = re.compile(r".*[.!?…。！？]['\"”’)\]]*(?=\s|$)", re.DOTALL)  # to the last mark that ends one


def mean_log_probabilities(
    model: PreTrainedModel, calibration: Calibration, *, tick: Callable[[int], None] | None = None
) -> torch.Tensor:
    """Length-normalised log p of each pole's answer; paired (pairs, 2), unpaired (1, 2) of the two means."""
    if calibration.paired:
        scored = score_continuations(model, calibration.paired, tick=tick)
        return torch.tensor([[a.mean().item() for a in answers] for answers in scored], dtype=torch.float64)
    means = []
    for side in (calibration.positive, calibration.negative):
        sums = answer_nll(model, side, tick=tick)
        means.append(-(sums[:, 0] / sums[:, 1].clamp(min=1)).mean())
    return torch.stack(means)[None, :]


def margin(log_probabilities: torch.Tensor) -> tuple[float, float]:
    """(share of items with a positive margin, exact ties one half; mean margin), from (items, 2)."""
    difference = log_probabilities[:, 0] - log_probabilities[:, 1]
    wins = (difference > 0).double() + 0.5 * (difference == 0).double()
    return float(wins.mean()), float(difference.mean())
