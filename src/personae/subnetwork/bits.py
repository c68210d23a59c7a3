"""Packed bits: bit i of a set is bit i % 8, counted from the lowest, of byte i // 8; unused bits are 0.

Everything here works in chunks or on whole bytes, so that a huge target with few bits set never becomes an array of
one byte or more a weight.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bits", "Positions", "count_bits", "inverted", "row_counts", "set_bits", "set_positions", "unpacked"]

Bits = NDArray[np.uint8]
Positions = NDArray[np.int64]

_CHUNK = 1 << 17  # bytes that are unpacked at once


def count_bits(packed: Bits) -> int:
    """Number of bits that are set."""
    return int(np.bitwise_count(packed).sum(dtype=np.int64))


def inverted(packed: Bits, size: int) -> Bits:
    """A new array with each of the `size` bits inverted."""
    flipped = ~packed
    if size % 8:
        flipped[-1] &= (1 << (size % 8)) - 1  # the unused bits of the last byte stay 0
    return flipped


def set_positions(packed: Bits) -> Positions:
    """Where bits are set, rising."""
    starts = range(0, packed.size, _CHUNK)
    chunks = [np.flatnonzero(unpacked(packed[s : s + _CHUNK])) + 8 * s for s in starts]
    return np.concatenate(chunks).astype(np.int64, copy=False)


def unpacked(packed: Bits) -> NDArray[np.bool_]:
    """One boolean a bit, unused ones included, (8·bytes,): `flatnonzero` is ten times faster on it than on numbers."""
    return np.unpackbits(packed, bitorder="little").view(np.bool_)


def set_bits(packed: Bits, positions: NDArray[np.int32] | Positions) -> None:
    """Set, in place, the bits at rising and distinct positions."""
    octets = positions >> 3
    first = np.flatnonzero(np.append(True, octets[1:] != octets[:-1])[: octets.size])
    bits = np.left_shift(1, positions & 7).astype(np.uint8)
    packed[octets[first]] |= np.add.reduceat(bits, first) if first.size else bits  # distinct bits: sum = union


def row_counts(packed: Bits, shape: tuple[int, int]) -> Positions:
    """Number of set bits in every row of a bit map of shape (out, in), (out,)."""
    starts = np.arange(shape[0] + 1, dtype=np.int64) * shape[1]
    octets = np.append(packed, np.uint8(0))  # where the last row ends
    # Set bits in front of each row: those of the whole bytes, and those of the byte that two rows may share.
    before = np.concatenate([[0], np.cumsum(np.bitwise_count(octets), dtype=np.int64)])
    shared = octets[starts >> 3] & ((1 << (starts & 7)) - 1).astype(np.uint8)
    counts: Positions = np.diff(before[starts >> 3] + np.bitwise_count(shared))
    return counts
