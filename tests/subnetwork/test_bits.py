"""Packed bits against boolean arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from personae.subnetwork import bits

Bools = NDArray[np.bool_]
shapes = st.tuples(st.integers(1, 30), st.integers(1, 30))


def packed(flags: Bools) -> bits.Bits:
    return np.packbits(flags.reshape(-1), bitorder="little")


@given(arrays.arrays(np.bool_, shapes))
def test_every_function_agrees_with_the_booleans(flags: Bools) -> None:
    source = packed(flags)
    before = source.copy()
    rows, columns = flags.shape
    assert bits.count_bits(source) == flags.sum()
    assert np.array_equal(bits.inverted(source, flags.size), packed(~flags))
    assert np.array_equal(bits.set_positions(source), np.flatnonzero(flags))
    assert np.array_equal(bits.unpacked(source)[: flags.size], flags.reshape(-1))
    assert bits.row_counts(source, (rows, columns)).tolist() == flags.sum(axis=1).tolist()
    assert np.array_equal(source, before)


@given(arrays.arrays(np.bool_, 90), arrays.arrays(np.bool_, 90))
def test_setting_bits_keeps_those_that_are_set(old: Bools, new: Bools) -> None:
    result = packed(old)
    bits.set_bits(result, np.flatnonzero(new))
    assert np.array_equal(result, packed(old | new))


@pytest.mark.parametrize("size", [8 * bits._CHUNK - 8, 8 * bits._CHUNK, 16 * bits._CHUNK + 8])
def test_sets_that_fill_more_than_one_chunk(size: int) -> None:
    positions = np.unique(np.random.default_rng(size).integers(0, size, 1000))
    source = np.zeros(size // 8, dtype=np.uint8)
    bits.set_bits(source, positions)
    assert np.array_equal(bits.set_positions(source), positions)
    assert bits.set_positions(source).dtype == np.int64
