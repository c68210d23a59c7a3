"""Which weights of one target a subnetwork keeps and which it drops.

A mask is M ∈ {0,1}^(out, in): 1 = kept, 0 = dropped. It is held as the smaller of two forms, so that a
0.2 % mask and a 50 % mask both stay close to their information: the sorted positions of the dropped
weights, or one bit a weight (set = dropped). Which form is used follows from the counts alone, so equal
masks always have equal arrays.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.errors import MaskMismatchError, OptionError
from personae.subnetwork.bits import Bits, Positions, count_bits, inverted, row_counts, set_bits, set_positions

__all__ = ["Bits", "Bools", "Mask", "Positions", "difference_count", "difference_rate", "differing", "is_sparse"]

Bools = NDArray[np.bool_]
_INT32_LIMIT = 2**31


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Mask:
    """Immutable mask of one target; make it with `from_keep`, `from_dropped`, `from_positions` or `full`.

    The operators work on the set of **kept** weights: ``a & b`` kept in both, ``a | b`` kept in either,
    ``a ^ b`` kept in exactly one, ``a - b`` kept in a but not in b, ``~a`` kept where a drops.

    Attributes:
        shape: (out, in) of the target's weight, both at least 1.
        dropped: number of dropped weights (zeros of the mask).
    """

    shape: tuple[int, int]
    dropped: int
    # Sorted row-major positions (int32 or int64), or packed bits (uint8, little bit order). Read-only.
    _data: NDArray[np.int32] | NDArray[np.int64] | NDArray[np.uint8]

    # ------------------------------------------------------------------ making

    @classmethod
    def from_keep(cls, keep: Bools) -> Mask:
        """Mask of a boolean array (out, in) that is True where the weight is kept."""
        return cls.from_dropped(~_checked_bools(keep))

    @classmethod
    def from_dropped(cls, dropped: Bools) -> Mask:
        """Mask of a boolean array (out, in) that is True where the weight is dropped."""
        _checked_bools(dropped)
        shape = _checked_shape(dropped.shape)
        return _of_bits(np.packbits(dropped.reshape(-1), bitorder="little"), shape)

    @classmethod
    def from_positions(cls, positions: NDArray[np.integer], shape: tuple[int, int]) -> Mask:
        """Mask that drops the weights at these flat row-major positions (row · in + column), in any order.

        Raises:
            OptionError: a position is out of range or occurs twice, or the array is not of integers.
        """
        shape = _checked_shape(shape)
        size = shape[0] * shape[1]
        given = np.asarray(positions)
        if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)):
            raise OptionError(
                f"positions must be a 1-D integer array, not {given.ndim}-D {given.dtype}; "
                "for a boolean array use Mask.from_dropped"
            )
        if given.size and (int(given.min()) < 0 or int(given.max()) >= size):
            raise OptionError(
                f"positions {int(given.min())}..{int(given.max())} do not fit a mask of shape {shape}: "
                f"give positions from 0 to {size - 1}"
            )
        ordered = np.sort(given.astype(np.int64))
        if ordered.size and bool((ordered[1:] == ordered[:-1]).any()):
            raise OptionError("a position occurs twice: give each dropped weight once (numpy.unique does it)")
        return _of_positions(ordered, shape)

    @classmethod
    def from_packed(cls, packed: Bits, shape: tuple[int, int]) -> Mask:
        """Mask of packed bits as `packed` returns them: bit i%8 of byte i//8 is set if weight i is dropped.

        Raises:
            OptionError: the length does not fit the shape, or a bit behind the last weight is set.
        """
        shape = _checked_shape(shape)
        size = shape[0] * shape[1]
        if packed.dtype != np.uint8 or packed.shape != ((size + 7) // 8,):
            raise OptionError(
                f"packed bits of shape {shape} need {(size + 7) // 8} bytes of uint8, "
                f"got {packed.dtype} of shape {packed.shape}"
            )
        if size % 8 and int(packed[-1]) >> (size % 8):
            raise OptionError(f"packed bits behind the last of {size} weights must be 0")
        return _of_bits(packed.copy(), shape)

    @classmethod
    def full(cls, shape: tuple[int, int]) -> Mask:
        """Mask that keeps every weight."""
        return _of_positions(np.empty(0, dtype=np.int64), _checked_shape(shape))

    # ----------------------------------------------------------------- looking

    @property
    def size(self) -> int:
        """Number of weights, out · in."""
        return self.shape[0] * self.shape[1]

    @property
    def kept(self) -> int:
        """Number of kept weights (ones of the mask)."""
        return self.size - self.dropped

    @property
    def sparsity(self) -> float:
        """Share of dropped weights, in [0, 1]."""
        return self.dropped / self.size

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the mask holds."""
        return self._data.nbytes

    def positions(self) -> Positions:
        """Sorted flat row-major positions of the dropped weights, a new int64 array (dropped,)."""
        if self._data.dtype == np.uint8:
            return set_positions(self._data.astype(np.uint8, copy=False))
        return self._data.astype(np.int64)

    def packed(self) -> Bits:
        """One bit a weight, set = dropped: uint8 (⌈out·in/8⌉,), little bit order, unused bits 0."""
        if self._data.dtype == np.uint8:
            return self._data.astype(np.uint8)
        packed = np.zeros((self.size + 7) // 8, dtype=np.uint8)
        set_bits(packed, self.positions())
        return packed

    def dropped_bool(self) -> Bools:
        """Boolean array (out, in), True where the weight is dropped."""
        return self._flat_bools().reshape(self.shape)

    def keep_bool(self) -> Bools:
        """Boolean array (out, in), True where the weight is kept."""
        return ~self.dropped_bool()

    def row_counts(self) -> Positions:
        """Number of dropped weights of every output row, int64 (out,)."""
        if self._data.dtype == np.uint8:
            return row_counts(self._data.astype(np.uint8, copy=False), self.shape)
        starts = np.arange(self.shape[0] + 1, dtype=np.int64) * self.shape[1]
        return np.diff(np.searchsorted(self.positions(), starts)).astype(np.int64)

    def _flat_bools(self) -> Bools:
        if self._data.dtype == np.uint8:
            bits = self._data.astype(np.uint8, copy=False)
            return np.unpackbits(bits, count=self.size, bitorder="little").view(np.bool_)
        flat = np.zeros(self.size, dtype=np.bool_)
        flat[self._data] = True
        return flat

    # ----------------------------------------------------------------- algebra

    def __and__(self, other: Mask) -> Mask:
        """Kept in both, so dropped in either."""
        _same_shape(self, other)
        if _both_sparse(self, other):
            merged = _merged(self, other)
            return _of_positions(merged[np.append(True, merged[1:] != merged[:-1])[: merged.size]], self.shape)
        return _of_bits(self.packed() | other.packed(), self.shape)

    def __or__(self, other: Mask) -> Mask:
        """Kept in either, so dropped in both."""
        _same_shape(self, other)
        if _both_sparse(self, other):
            merged = _merged(self, other)
            return _of_positions(merged[1:][merged[1:] == merged[:-1]], self.shape)
        return _of_bits(self.packed() & other.packed(), self.shape)

    def __xor__(self, other: Mask) -> Mask:
        """Kept in exactly one."""
        return ~differing(self, other)

    def __sub__(self, other: Mask) -> Mask:
        """Kept in the first and not in the second."""
        return self & ~other

    def __invert__(self) -> Mask:
        """Kept where this mask drops."""
        return _of_bits(inverted(self.packed(), self.size), self.shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        # The form follows from shape and count, so equal masks hold equal arrays.
        same_counts = self.shape == other.shape and self.dropped == other.dropped
        return same_counts and bool(np.array_equal(self._data, other._data))

    def __hash__(self) -> int:
        content = hashlib.blake2b(np.ascontiguousarray(self._data).data, digest_size=8).digest()
        return hash((self.shape, self.dropped, content))

    def __repr__(self) -> str:
        return f"Mask(shape={self.shape}, dropped={self.dropped}, sparsity={self.sparsity:.4%})"


def difference_count(a: Mask, b: Mask) -> int:
    """Number of weights that one mask keeps and the other drops.

    Raises:
        MaskMismatchError: the shapes differ.
    """
    _same_shape(a, b)
    if _both_sparse(a, b):
        merged = _merged(a, b)
        return merged.size - 2 * int(np.count_nonzero(merged[1:] == merged[:-1]))
    return count_bits(a.packed() ^ b.packed())


def difference_rate(a: Mask, b: Mask) -> float:
    """Share of all weights on which two masks differ, in [0, 1] ('mask difference' of the persona paper)."""
    return difference_count(a, b) / a.size


def differing(a: Mask, b: Mask) -> Mask:
    """The mask that drops the weights on which two masks differ; `differing(differing(a, b), b)` is a again.

    Raises:
        MaskMismatchError: the shapes differ.
    """
    _same_shape(a, b)
    if not _both_sparse(a, b):
        return _of_bits(a.packed() ^ b.packed(), a.shape)
    merged = _merged(a, b)
    twice = merged[1:] == merged[:-1]
    return _of_positions(merged[~(np.append(twice, False) | np.append(False, twice))[: merged.size]], a.shape)


def is_sparse(dropped: int, size: int) -> bool:
    """Whether a list of the dropped positions takes fewer bytes than one bit a weight; then a mask holds the list."""
    return dropped * (4 if size < _INT32_LIMIT else 8) < (size + 7) // 8


# --------------------------------------------------------------------- helpers


def _of_positions(positions: NDArray[np.int32] | Positions, shape: tuple[int, int]) -> Mask:
    """Mask of sorted, distinct positions in range, in the form that its count calls for."""
    size = shape[0] * shape[1]
    if not is_sparse(positions.size, size):
        flat = np.zeros(size, dtype=np.bool_)
        flat[positions] = True
        return _sealed(np.packbits(flat, bitorder="little"), positions.size, shape)
    narrow = positions.astype(np.int32) if size < _INT32_LIMIT else positions.astype(np.int64)
    return _sealed(narrow, positions.size, shape)


def _of_bits(packed: Bits, shape: tuple[int, int]) -> Mask:
    """Mask of packed bits with clean padding, in the form that its count calls for."""
    size = shape[0] * shape[1]
    dropped = count_bits(packed)
    if is_sparse(dropped, size):
        return _of_positions(set_positions(packed), shape)
    return _sealed(packed, dropped, shape)


def _sealed(data: NDArray[np.int32] | Positions | Bits, dropped: int, shape: tuple[int, int]) -> Mask:
    data.flags.writeable = False
    return Mask(shape, int(dropped), data)


def _both_sparse(a: Mask, b: Mask) -> bool:
    return is_sparse(a.dropped, a.size) and is_sparse(b.dropped, b.size)


def _merged(a: Mask, b: Mask) -> NDArray[np.int32] | Positions:
    """The positions of two masks held as lists, sorted; those of both stand twice, side by side."""
    merged = np.concatenate([a._data, b._data])
    merged.sort(kind="stable")  # which merges two sorted runs in linear time
    return merged


def _same_shape(a: Mask, b: Mask) -> None:
    if a.shape != b.shape:
        raise MaskMismatchError(
            f"masks of shape {a.shape} and {b.shape} cannot be combined: "
            "both must belong to the same target of the same model"
        )


def _checked_bools(array: Bools) -> Bools:
    if array.dtype != np.bool_:
        raise OptionError(f"a mask needs a boolean array, not {array.dtype}; compare first (array != 0)")
    return array


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2 or min(shape) < 1:
        raise OptionError(f"the shape of a mask is (out, in), both at least 1, not {tuple(shape)}")
    return int(shape[0]), int(shape[1])
