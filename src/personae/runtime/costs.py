"""Whether a row of a mixed batch is cheaper than a forward of its own, by what this machine does in what time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from personae.models import Target
from personae.runtime.mixed import csr

__all__ = ["Costs", "cheaper", "measure"]

_BYTES = 8  # of a nonzero: a float32 and the number of its column
_ROWS = 4  # of a batch that wear the same look
_HEIGHT, _EACH = 1 << 14, 4  # of the sparse matrix that is timed: rows, and nonzeros of each, as few as personas have
_WEIGHTS = 1 << 23  # that are read at most, about what the largest caches of a processor hold


@dataclass(frozen=True)
class Costs:
    """Seconds, of one token of each of the few rows of a batch that wear the same look.

    dense: for each weight of a product with a target, read from memory. sparse: for each nonzero of a sparse product.
    call: for each target, to call a module or a hook at all. share: no seconds, but how much of the weights' memory the
    products of one look may take.
    """

    dense: float
    sparse: float
    call: float
    share: float = 0.25


def cheaper(nonzeros: int, touched: int, weights: int, targets: int, size: int, costs: Costs) -> bool:
    """Whether a look costs less in a mixed batch than in a forward of its own, in which its rows are alone.

    nonzeros: of its sparse products. touched: targets that it changes, of `targets` with `weights` in all, which take
    `size` bytes. Products that would take more than `costs.share` of that are too large whatever they save.
    """
    mixed = (costs.sparse * nonzeros if nonzeros else 0.0) + costs.call * touched  # ∞ · 0 is no number
    return mixed < costs.dense * weights + costs.call * targets and _BYTES * nonzeros <= costs.share * size


def measure(targets: Sequence[Target]) -> Costs:
    """Time the products on the device of a model, some ten milliseconds.

    targets: of the model, at least one. Where PyTorch has no sparse product for the device, it costs infinitely much.
    """
    device = targets[0].parameter.device
    wide = torch.promote_types(targets[0].parameter.dtype, torch.float32)
    with torch.inference_mode():
        return Costs(_dense(targets), _sparse(device, wide), _call(device, wide))


def _dense(targets: Sequence[Target]) -> float:
    chosen, weights = [], 0
    for target in targets[:: max(1, len(targets) // 64)]:
        if weights and weights + target.size > _WEIGHTS:
            break
        chosen.append(target.weight)
        weights += target.size
    inputs = [weight.new_ones(_ROWS, weight.shape[1]) for weight in chosen]

    def products() -> None:
        for rows, weight in zip(inputs, chosen, strict=True):
            nn.functional.linear(rows, weight)

    return _seconds(products, chosen[0].device, repeats=2) / weights


def _sparse(device: torch.device, dtype: torch.dtype) -> float:
    nonzeros, width = _HEIGHT * _EACH, _HEIGHT // 4
    starts = torch.arange(0, nonzeros + 1, _EACH, dtype=torch.int32, device=device)
    inputs = (torch.arange(nonzeros, device=device) * 1231 % width).view(-1, _EACH).sort(dim=1).values  # spread out
    values = torch.ones(nonzeros, dtype=dtype, device=device)
    try:
        matrix = csr(starts, inputs.view(-1).int(), values, (_HEIGHT, width))
        rows = torch.ones(width, _ROWS, dtype=dtype, device=device)
        return _seconds(lambda: matrix @ rows, device, repeats=8) / nonzeros
    except RuntimeError:  # 'not implemented' and 'built without MKL' among them
        return float("inf")


def _call(device: torch.device, dtype: torch.dtype) -> float:
    module = nn.Linear(1, 1, bias=False, device=device, dtype=dtype)
    row = torch.ones(1, 1, device=device, dtype=dtype)

    def calls() -> None:
        for _ in range(32):
            module(row)

    return _seconds(calls, device, repeats=4) / 32


def _seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The shortest of some runs, after one to warm up."""
    shortest = float("inf")
    for run in range(repeats + 1):
        _finish(device)
        started = time.perf_counter()
        work()
        _finish(device)
        if run:
            shortest = min(shortest, time.perf_counter() - started)
    return shortest


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
