"""Gradients of a calibration objective with respect to every target: the backward half of `directed`.

The margin of a pair is Δ = (1/|y⁺|) log p(y⁺|x) − (1/|y⁻|) log p(y⁻|x); its mean over the calibration
set is linear in the answers' log-probabilities, so each answer carries a fixed weight and batches may
be cut anywhere. One pass gives g = ∂/∂W Σ_a c_a log p(a|x). docs/methods.md section 4.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from personae.discovery.resume import Checkpoint
from personae.errors import DataError
from personae.models import Encoded, PrefixGradients, Question, Target, continuation_batches

ATTRIBUTION_BATCH_TOKENS = 192  # in float32; the activations of more outweigh the model itself, docs/experiments.md

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
    batch_tokens: int | None = None,
    share_prompt: bool = True,
    tick: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Gradients:
    """g = ∂/∂W Σ_q Σ_a c_qa · mean_t log p(a_t | x_q, a_<t), for every target, on the CPU in float32.

    Memory: one float32 copy of the targets besides the model, and the activations of one batch (batch_tokens:
    `attribution_batch_tokens`). With a `checkpoint` the sums are kept now and then, and a killed pass goes on
    where it was; those of a whole pass are kept until its caller clears them.
    """
    if not questions:
        raise DataError("no questions to attribute.")
    # Weights near 1 keep the tail of float16 gradients; a power of two, so nothing else is rounded by it.
    largest = max((abs(w) for q in questions for w in q.weights), default=0.0)
    scale = 2.0 ** -math.floor(math.log2(largest)) if largest else 1.0
    batch_weights = [[w * scale for w in q.weights] for q in questions]
    if batch_tokens is None:
        batch_tokens = attribution_batch_tokens(model)
    names = {id(p): n for n, p in model.named_parameters()}
    with gradients_on(model, targets) as buffers:
        prefix = PrefixGradients()
        done, kept = restore_sums(buffers, checkpoint, targets, names)
        prefix.restore(kept, next(model.parameters()).device)
        batches = continuation_batches(
            model,
            [q.question for q in questions],
            batch_tokens=batch_tokens,
            share_prompt=share_prompt,
            skip=done,
            skipped=tick,
            prefix_gradients=prefix,
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
                prefix.collect()
            del objective, scores, answers, values
            if tick:
                tick(len(items))
            done += 1
            if checkpoint and checkpoint.due():
                checkpoint.save(done, {names[key]: b for key, b in buffers.items()} | _marked(prefix))
        prefix.backward(model)
        if checkpoint:
            checkpoint.finish(done, {names[key]: b for key, b in buffers.items()})
    for buffer in buffers.values():
        buffer.div_(scale)
    return by_target(targets, buffers)


def by_target(targets: Sequence[Target], buffers: Mapping[int, torch.Tensor]) -> Gradients:
    """The sums of stored parameters (by their id) by target, on the CPU; experts of one parameter share its copy."""
    moved = {key: buffer.cpu() for key, buffer in buffers.items()}
    return {t.name: t.view_of(moved[id(t.parameter)]) for t in targets}


def attribution_batch_tokens(model: nn.Module) -> int:
    """`ATTRIBUTION_BATCH_TOKENS` in float32, twice as many in half precision: the same bytes of activations."""
    return ATTRIBUTION_BATCH_TOKENS * 4 // next(model.parameters()).element_size()


def squared_gradients(
    model: nn.Module,
    targets: Sequence[Target],
    texts: Sequence[Encoded],
    *,
    tick: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Gradients:
    """The diagonal empirical Fisher F = mean over texts of (∂ log p(text)/∂W)² / tokens, (out, in) float32.

    One backward pass a text, so that squares are taken before sums. On text that the model sampled
    itself, w²·F is, to second order, the divergence a token that dropping w alone would cause.
    """
    if not texts:
        raise DataError("no texts to take squared gradients on.")
    names = {id(p): n for n, p in model.named_parameters()}
    scale = rescue(model, math.sqrt(len(texts) * sum(len(t.answer) for t in texts) / len(texts)))
    with gradients_on(model, targets, squared=True) as buffers:
        done, _ = restore_sums(buffers, checkpoint, targets, names)
        if tick and done:
            tick(done)
        for number, text in enumerate(texts[done:], start=done + 1):
            # Plain text has no prompt: its first token is one.
            question = Question(text.prompt or text.answer[:1], (text.answer if text.prompt else text.answer[1:],))
            ((_, ((values,),)),) = continuation_batches(model, [question], share_prompt=False)
            (scale * values.sum() / math.sqrt(len(values) * len(texts))).backward()  # type: ignore[no-untyped-call]
            if tick:
                tick(1)
            if checkpoint and checkpoint.due():
                checkpoint.save(number, {names[key]: b for key, b in buffers.items()})
        if checkpoint:
            checkpoint.finish(len(texts), {names[key]: b for key, b in buffers.items()})
    return by_target(targets, rescued(buffers, scale * scale))


def rescue(model: nn.Module, divisor: float) -> float:
    """A power of two near `divisor`, by which a mean's gradient is enlarged on its way through a float16 model, whose
    numbers end at 6e-8; 1 for every other dtype. Who uses it divides the sums by it again."""
    half = next(model.parameters()).dtype == torch.float16
    return 2.0 ** round(math.log2(divisor)) if half and divisor > 0 else 1.0


def rescued(buffers: dict[int, torch.Tensor], scale: float) -> dict[int, torch.Tensor]:
    """The sums without the scale that carried them; a pass over all of them is spared where it is 1."""
    for buffer in buffers.values() if scale != 1 else ():
        buffer.div_(scale)
    return buffers


_PREFIX = "prefix|"  # before the names of what belongs to the shared beginning of the prompts


def _marked(prefix: PrefixGradients) -> dict[str, torch.Tensor]:
    return {_PREFIX + name: value for name, value in prefix.sums.items()}


def restore_sums(
    buffers: dict[int, torch.Tensor], checkpoint: Checkpoint | None, targets: Sequence[Target], names: dict[int, str]
) -> tuple[int, dict[str, torch.Tensor]]:
    """Kept sums into `buffers`; returns how many batches are in them, and the sums of the shared beginning."""
    kept = checkpoint.load() if checkpoint else None
    if kept is None:
        return 0, {}
    done, sums = kept
    stored = {id(t.parameter): t.parameter for t in targets}
    # what had no gradient yet (an expert no token had reached) is not among the kept sums
    buffers.update({k: sums[names[k]].to(p.device) for k, p in stored.items() if names[k] in sums})
    return done, {n.removeprefix(_PREFIX): v for n, v in sums.items() if n.startswith(_PREFIX)}


@contextlib.contextmanager
def gradients_on(
    model: nn.Module, targets: Sequence[Target], *, squared: bool = False
) -> Iterator[dict[int, torch.Tensor]]:
    """Gradients on for the targets alone; yields float32 sums (of squares) by id of the stored parameter.

    Whatever required a gradient before, does so again afterwards, and `.grad` is left as it was found. Plain
    Linear products add to the sums inside their own backward step (`_AddingLinear`); whatever else a weight
    goes through (Conv1D, experts, an architecture's own use of it) reaches them through autograd.
    """
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    stored = {id(t.parameter): t.parameter for t in targets}
    sums = _Sums(squared)
    handles = []

    def accumulate(parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        if gradient is not None:  # None: all its products have added themselves
            sums.add(parameter, gradient)
            parameter.grad = None

    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in stored.values():
            parameter.requires_grad_(True)
            register: Any = parameter.register_post_accumulate_grad_hook  # untyped in torch
            handles.append(register(accumulate))
        # Squares are taken of a text's whole gradient, so there a product alone must not be added.
        products = contextlib.nullcontext() if squared else _AddingProducts(stored, sums)
        with torch.enable_grad(), products:
            yield sums.buffers
        for key, parameter in stored.items():  # an expert no token reached has no gradient: zero
            if key not in sums.buffers:
                sums.buffers[key] = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient


@dataclass(slots=True)
class _Sums:
    """float32 sums by id of the stored parameter, whatever the model's dtype: a sum of thousands of bfloat16
    gradients loses its tail. Squared: each gradient that is added is squared first."""

    squared: bool
    buffers: dict[int, torch.Tensor] = field(default_factory=dict)

    def add(self, parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add one backward pass's whole gradient of a parameter."""
        buffer = self.buffers.get(id(parameter))
        if buffer is None:
            wide = gradient.float()
            self.buffers[id(parameter)] = (wide**2 if self.squared else wide).contiguous()
        elif self.squared:
            wide = gradient.float()
            buffer.addcmul_(wide, wide)
        else:
            buffer += gradient

    def add_product(self, parameter: torch.Tensor, gradient: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add gradientᵀ·inputs, (out, n)·(n, in), without a tensor in between where the dtype allows it."""
        buffer = self.buffers.get(id(parameter))
        if buffer is None or buffer.dtype != gradient.dtype:
            self.add(parameter, gradient.T @ inputs)
        else:
            buffer.addmm_(gradient.T, inputs)


class _AddingLinear(torch.autograd.Function):
    """y = x·Wᵀ + b, whose backward step adds yᵍᵀ·x to the sums instead of handing autograd a gradient of W.

    Autograd would write each batch's gradient and then add it: two more passes over memory, which for short
    batches cost as much as the product itself.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sums: _Sums
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.sums = weight, sums
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        (gradient,), (x,) = gradients, ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        ctx.sums.add_product(ctx.weight, flat, x.reshape(-1, x.shape[-1]))
        return (gradient @ ctx.weight if ctx.needs_input_grad[0] else None), None, None, None


class _AddingProducts(TorchFunctionMode):
    """Sends `linear(x, W)` with a target W through `_AddingLinear`, whoever calls it."""

    def __init__(self, stored: Mapping[int, torch.Tensor], sums: _Sums) -> None:
        super().__init__()
        self.stored, self.sums = stored, sums

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.linear and len(args) > 1 and id(args[1]) in self.stored and torch.is_grad_enabled():
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            return _AddingLinear.apply(args[0], args[1], bias, self.sums)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)
