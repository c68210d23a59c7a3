"""The stored bits of weights, read and written as integers.

On the CPU numpy does it: at some thousand weights a target the cost of a call decides, and torch's is three times as
high. Everything here is given positions and masks that were checked before.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from personae.models import Target
from personae.runtime.blend import Positions
from personae.subnetwork.bits import Bits

__all__ = ["BITS", "Stored", "flat_bits", "read", "rooms", "save_and_clear", "window", "write"]

Stored = NDArray[Any] | torch.Tensor  # integers: numpy's on the CPU, torch's elsewhere

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of an element -> its bits
_KINDS = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}

_CHUNK = 1 << 16  # weights cleared at a time, few enough to be still in the processor's cache from being saved


def flat_bits(parameter: torch.Tensor) -> Stored:
    """The bits of a contiguous parameter as it lies in memory, (weights,) integers: a view."""
    bits = parameter.detach().view(BITS[parameter.element_size()])
    return bits.numpy().reshape(-1) if bits.is_cpu else bits.view(-1)


def read(stored: Stored, index: Positions, room: NDArray[Any]) -> Stored:
    """The integers at `index`, (n,); on the CPU in `room`."""
    if isinstance(stored, torch.Tensor):
        return stored.index_select(0, torch.from_numpy(index).to(stored.device))
    return stored.take(index, out=room, mode="wrap")  # the quickest; no position is out of range


def write(stored: Stored, index: Positions, values: Stored | int) -> None:
    """Write `values`, (n,), or one number at `index`, which names no place twice."""
    if not isinstance(stored, torch.Tensor):
        stored[index] = values
    elif isinstance(values, torch.Tensor):
        stored.scatter_(0, torch.from_numpy(index).to(stored.device), values)
    else:
        stored.index_fill_(0, torch.from_numpy(index).to(stored.device), int(values))


def window(target: Target) -> NDArray[Any]:
    """The bits of a target on the CPU, (out, in): a view."""
    bits: NDArray[Any] = target.weight.view(BITS[target.parameter.element_size()]).numpy()
    return bits


def rooms(sizes: Sequence[tuple[int, int]]) -> list[NDArray[Any]]:
    """Room for as many integers of as many bytes as each pair says.

    It is one array for all: fresh pages cost more than what is written to them, and numpy asks the system for large
    ones where an array takes some megabytes.
    """
    pages = np.empty(sum(-(-count * width // 8) for count, width in sizes), dtype=np.int64)  # each begins at 8 bytes
    found, start = [], 0
    for count, width in sizes:
        stop = start + -(-count * width // 8)
        found.append(pages[start:stop].view(_KINDS[width])[:count])
        start = stop
    return found


def save_and_clear(rows: NDArray[Any], packed: Bits, room: NDArray[Any]) -> Iterator[int]:
    """Clear all bits of the dropped weights, chunk by chunk of rows; before each, how many rows are saved by then.

    rows: (out, in) integers. packed: the mask (`Mask.packed`). room: (out, in), where all that was there is saved.
    An interruption leaves every row behind the last figure given as it was.
    """
    height, width = rows.shape
    step = max(8, _CHUNK // width // 8 * 8)  # as many rows as fill whole bytes of the mask
    kept, some = _kept(rows.dtype), np.empty((step * width // 8, 8), rows.dtype)
    for start in range(0, height, step):
        chunk = rows[start : start + step]
        octets = packed[start * width // 8 : -(-(start + len(chunk)) * width // 8)]
        room[start : start + step] = chunk
        yield start + len(chunk)
        keep = kept.take(octets, axis=0, out=some[: octets.size], mode="clip").reshape(-1)[: chunk.size]
        np.bitwise_and(chunk, keep.reshape(chunk.shape), out=chunk)


@functools.cache
def _kept(kind: np.dtype[Any]) -> NDArray[Any]:
    """For each byte of a packed mask 8 integers, (256, 8): every bit is set where a weight is kept, none elsewhere."""
    dropped = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    kept: NDArray[Any] = np.where(dropped, 0, ~np.zeros((), kind))
    return kept.astype(kind)
