"""Mean-difference steering: the rival that adds a direction to the residual stream instead of dropping weights.

After Rimsky et al. 2023 (CAA, arXiv 2312.06681). For every block, v = mean over pairs of (the mean output of the
block over the answer's tokens, y⁺) − (the same, y⁻). Steering adds coefficient · v to the block's output at
every position, those of the prompt too, as a mask is worn for all of them. Which block and how much is chosen as
for a mask: the largest coefficient within the capability budget, and among blocks what does best on dev.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from personae.discovery import (
    Calibration,
    GenericText,
    capability,
    largest_within,
    loss_bound_of,
    mean_log_probabilities,
)
from personae.errors import DataError, OptionError
from personae.models import Encoded, find_blocks, head_on, sequence_batches

STEPS = 100  # coefficients are searched in hundredths
MOST = 8 * STEPS
FINALISTS = 2  # blocks whose coefficient is searched on all of the text


@dataclass(frozen=True, eq=False)
class Steering:
    """`coefficient` · `vector`, (hidden,) float32, added to the output of block `block`."""

    block: int
    coefficient: float
    vector: torch.Tensor


@torch.no_grad()
def mean_differences(
    model: PreTrainedModel, calibration: Calibration, *, tick: Callable[[int], None] | None = None
) -> torch.Tensor:
    """v of every block, (blocks, hidden) float32 on the CPU; 0 for blocks that text does not run through.

    Errors: `DataError` where a pole has no answers.
    """
    if not calibration.positive or not calibration.negative:
        raise DataError("steering needs answers of both poles.")
    means = [_mean_outputs(model, side, tick) for side in (calibration.positive, calibration.negative)]
    return (means[0] - means[1]).float()


def _mean_outputs(model: PreTrainedModel, texts: Sequence[Encoded], tick: Callable[[int], None] | None) -> torch.Tensor:
    """Mean over answers of the mean over their tokens of every block's output, (blocks, hidden) float64."""
    blocks = find_blocks(model)
    sums: list[torch.Tensor | None] = [None] * len(blocks)
    weights: list[torch.Tensor] = [torch.empty(0)]

    def see(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            hidden = _hidden(output)  # (B, T, hidden)
            part = torch.einsum("bt,bth->h", weights[0], hidden.float()).double().cpu()
            before = sums[index]
            sums[index] = part if before is None else before + part

        return hook

    handles = [block.register_forward_hook(see(i)) for i, block in enumerate(blocks)]
    try:
        for batch in sequence_batches(texts):
            here = batch.to(next(model.parameters()).device)
            counted = here.counted.float()
            weights[0] = counted / counted.sum(1, keepdim=True).clamp(min=1)
            with head_on(model, torch.zeros_like(here.counted)):
                model(input_ids=here.ids, attention_mask=here.mask, use_cache=False)
            if tick:
                tick(len(batch.items))
    finally:
        for handle in handles:
            handle.remove()
    [unread, *_] = [torch.zeros_like(s) for s in sums if s is not None]  # of another tower, such as a vision model's
    return torch.stack([unread if s is None else s for s in sums]) / len(texts)


def _hidden(output: Any) -> torch.Tensor:
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, torch.Tensor)
    return hidden


@contextlib.contextmanager
def steered(model: PreTrainedModel, steering: Steering) -> Iterator[None]:
    """The model with the vector added at every position; the hook is removed in the end, whatever happens.

    Errors: `OptionError` for a block that the model does not have.
    """
    blocks = find_blocks(model)
    if not 0 <= steering.block < len(blocks):
        raise OptionError(f"no block {steering.block}: the model has {len(blocks)}.")

    def add(module: nn.Module, arguments: Any, output: Any) -> Any:
        hidden = _hidden(output)
        moved = hidden + (steering.coefficient * steering.vector).to(hidden.device, hidden.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = blocks[steering.block].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def middle_blocks(vectors: torch.Tensor) -> list[int]:
    """Every fourth block of the middle three quarters of those that text runs through (v is not 0)."""
    ran = [block for block, v in enumerate(vectors) if v.any()] or list(range(len(vectors)))
    number = len(ran)
    return ran[number // 8 : number - number // 8 : 4] or [ran[number // 2]]


def choose_steering(
    model: PreTrainedModel,
    vectors: torch.Tensor,
    text: GenericText,
    dev: Calibration,
    *,
    sign: int,
    budget: float,
    blocks: Sequence[int] | None = None,
    tick: Callable[[int], None] | None = None,
) -> Steering:
    """The block and the coefficient for one pole: the largest within the budget, the best block on dev.

    sign: +1 for the positive pole, −1 for the negative one. blocks: those that are tried; by default every fourth
    of the middle three quarters. Dev chooses by the mean log σ of the margin, as it does for masks. First all blocks
    are compared, each at the coefficient whose loss on a quarter of the text keeps the budget; then the best
    `FINALISTS`, each at the coefficient that keeps it by the upper bound on all of the text, as a mask does.
    """
    tried = middle_blocks(vectors) if blocks is None else blocks
    quarter = replace(text, plain=text.plain[::4], chat=text.chat[::4])
    base, base_of_quarter = capability(model, text), capability(model, quarter)

    def at(block: int, steps: int) -> Steering:
        return Steering(block, sign * steps / STEPS, vectors[block])

    def on_dev(block: int, steps: int) -> float:
        with steered(model, at(block, steps)):
            scored = mean_log_probabilities(model, dev)
        return float(torch.nn.functional.logsigmoid(sign * (scored[:, 0] - scored[:, 1])).mean())

    coarse: list[tuple[float, int, int]] = []
    for block in tried:

        def loss(steps: int, block: int = block) -> float:
            with steered(model, at(block, steps)):
                return capability(model, quarter).loss(base_of_quarter)

        steps, _ = largest_within(loss, MOST, budget, start=STEPS)
        coarse.append((on_dev(block, steps), block, steps))
        if tick:
            tick(1)
    final: list[tuple[float, int, int]] = []
    for _, block, near in sorted(coarse, key=lambda c: (-c[0], c[1]))[:FINALISTS]:

        def bound(steps: int, block: int = block) -> float:
            with steered(model, at(block, steps)):
                return loss_bound_of(model, text, base, budget)

        steps, _ = largest_within(bound, MOST, budget, start=max(near, 1))
        final.append((on_dev(block, steps), block, steps))
    _, block, steps = max(final, key=lambda f: (f[0], -f[1]))
    return at(block, steps)
