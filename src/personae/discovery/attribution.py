"""Gradients of a calibration objective with respect to every target: the backward half of `directed`.

The margin of a pair is Δ = (1/|y⁺|) log p(y⁺|x) − (1/|y⁻|) log p(y⁻|x); its mean over the calibration
set is linear in the answers' log-probabilities, so each answer carries a fixed weight and batches may
be cut anywhere. One pass gives g = ∂/∂W Σ_a c_a log p(a|x). docs/methods.md section 4.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from personae.discovery.resume import Checkpoint
from personae.errors import DataError
from personae.models import Encoded, Question, Target, continuation_batches

ATTRIBUTION_BATCH_TOKENS = 128  # activations of a larger batch outweigh the model itself; see docs/experiments.md

Gradients = dict[str, torch.Tensor]  # by target name, (out, in) float32


@dataclass(frozen=True, slots=True)
class WeightedQuestion:
    """A question and the weight c of the length-normalised log-probability of each of its answers."""

    question: Question
    weights: tuple[float, ...]


def attribute(
    model: nn.Module,
    targets: Sequence[Target],
    questions: Sequence[WeightedQuestion],
    *,
    batch_tokens: int = ATTRIBUTION_BATCH_TOKENS,
    share_prompt: bool = True,
    tick: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Gradients:
    """g = ∂/∂W Σ_q Σ_a c_qa · mean_t log p(a_t | x_q, a_<t), for every target, on the CPU in float32.

    Memory: one float32 copy of the targets besides the model, and the activations of one batch. With a
    `checkpoint` the sums are kept now and then, and a killed pass goes on where it was.
    """
    if not questions:
        raise DataError("no questions to attribute.")
    # Weights near 1 keep the tail of float16 gradients; a power of two, so nothing else is rounded by it.
    largest = max((abs(w) for q in questions for w in q.weights), default=0.0)
    scale = 2.0 ** -math.floor(math.log2(largest)) if largest else 1.0
    batch_weights = [[w * scale for w in q.weights] for q in questions]
    kept = checkpoint.load() if checkpoint else None
    done = kept[0] if kept else 0
    names = {id(p): n for n, p in model.named_parameters()}
    with gradients_on(model, targets) as buffers:
        if kept:
            stored = {id(t.parameter): t.parameter for t in targets}
            # what had no gradient yet (an expert no token had reached) is not among the kept sums
            buffers.update({k: kept[1][names[k]].to(p.device) for k, p in stored.items() if names[k] in kept[1]})
        batches = continuation_batches(
            model,
            [q.question for q in questions],
            batch_tokens=batch_tokens,
            share_prompt=share_prompt,
            skip=done,
            skipped=tick,
        )
        for items, scores in batches:
            objective: torch.Tensor | None = None
            for item, answers in zip(items, scores, strict=True):
                for weight, values in zip(batch_weights[item], answers, strict=True):
                    if weight:
                        term = weight * values.mean()
                        objective = term if objective is None else objective + term
            if objective is not None:
                objective.backward()  # type: ignore[no-untyped-call]
            del objective, scores, answers, values
            if tick:
                tick(len(items))
            done += 1
            if checkpoint and checkpoint.due():
                checkpoint.save(done, {names[key]: b for key, b in buffers.items()})
    for buffer in buffers.values():
        buffer.div_(scale)
    if checkpoint:
        checkpoint.clear()
    return {t.name: t.view_of(buffers[id(t.parameter)].cpu()) for t in targets}


def _parts(weighted: WeightedQuestion, batch_tokens: int) -> list[WeightedQuestion]:
    """A question too long for a batch goes answer by answer: activations, not prompts, are what memory is short of."""
    question = weighted.question
    if len(question.prompt) + sum(len(a) for a in question.answers) <= batch_tokens:
        return [weighted]
    return [
        WeightedQuestion(Question(question.prompt, (answer,)), (weight,))
        for answer, weight in zip(question.answers, weighted.weights, strict=True)
    ]


def squared_gradients(
    model: nn.Module,
    targets: Sequence[Target],
    texts: Sequence[Encoded],
    *,
    tick: Callable[[int], None] | None = None,
) -> Gradients:
    """The diagonal empirical Fisher F = mean over texts of (∂ log p(text)/∂W)² / tokens, (out, in) float32.

    One backward pass a text, so that squares are taken before sums. On text that the model sampled
    itself, w²·F is, to second order, the divergence a token that dropping w alone would cause.
    """
    if not texts:
        raise DataError("no texts to take squared gradients on.")
    with gradients_on(model, targets, squared=True) as buffers:
        for text in texts:
            # Plain text has no prompt: its first token is one.
            question = Question(text.prompt or text.answer[:1], (text.answer if text.prompt else text.answer[1:],))
            ((_, ((values,),)),) = continuation_batches(model, [question])
            (values.sum() / math.sqrt(len(values) * len(texts))).backward()  # type: ignore[no-untyped-call]
            if tick:
                tick(1)
    return {t.name: t.view_of(buffers[id(t.parameter)].cpu()) for t in targets}


@contextlib.contextmanager
def gradients_on(
    model: nn.Module, targets: Sequence[Target], *, squared: bool = False
) -> Iterator[dict[int, torch.Tensor]]:
    """Gradients on for the targets alone; yields float32 sums (of squares) by id of the stored parameter.

    Whatever required a gradient before, does so again afterwards, and `.grad` is left as it was found.
    """
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    stored = {id(t.parameter): t.parameter for t in targets}
    buffers: dict[int, torch.Tensor] = {}
    handles = []

    def accumulate(parameter: torch.Tensor) -> None:
        # float32 whatever the model's dtype: a sum of thousands of bfloat16 gradients loses its tail
        gradient = parameter.grad
        assert gradient is not None
        if id(parameter) not in buffers:
            buffers[id(parameter)] = (gradient.float() ** 2 if squared else gradient.float()).contiguous()
        elif squared:
            wide = gradient.float()
            buffers[id(parameter)].addcmul_(wide, wide)
        else:
            buffers[id(parameter)] += gradient
        parameter.grad = None

    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in stored.values():
            parameter.requires_grad_(True)
            register: Any = parameter.register_post_accumulate_grad_hook  # untyped in torch
            handles.append(register(accumulate))
        with torch.enable_grad():
            yield buffers
        for key, parameter in stored.items():  # an expert no token reached has no gradient: zero
            if key not in buffers:
                buffers[key] = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
