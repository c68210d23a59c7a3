"""Masks against dense boolean arrays as the oracle, in both internal forms."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from personae.errors import MaskMismatchError, OptionError
from personae.subnetwork import Mask, difference_count, difference_rate
from personae.subnetwork.mask import differing

Bools = NDArray[np.bool_]

OPERATORS: dict[str, tuple[Callable[[Mask, Mask], Mask], Callable[[Bools, Bools], Bools]]] = {
    "and": (operator.and_, np.logical_and),
    "or": (operator.or_, np.logical_or),
    "xor": (operator.xor, np.logical_xor),
    "minus": (operator.sub, lambda a, b: a & ~b),
}


@st.composite
def dropped_arrays(draw: st.DrawFn, count: int = 1) -> list[Bools]:
    """Arrays of one shape, from nothing dropped over sparse and dense to all dropped."""
    shape = (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    arrays = []
    for _ in range(count):
        share = draw(st.sampled_from([0.0, 0.005, 0.02, 0.1, 0.5, 0.98, 1.0]))
        generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        arrays.append(generator.random(shape) < share)
    return arrays


@given(dropped_arrays())
def test_every_view_and_constructor_agrees_with_the_dense_array(arrays: list[Bools]) -> None:
    (dropped,) = arrays
    mask = Mask.from_dropped(dropped)
    assert mask.shape == dropped.shape
    assert (mask.dropped, mask.kept, mask.size) == (dropped.sum(), (~dropped).sum(), dropped.size)
    assert mask.sparsity == dropped.mean()
    assert np.array_equal(mask.dropped_bool(), dropped)
    assert np.array_equal(mask.keep_bool(), ~dropped)
    assert np.array_equal(mask.positions(), np.flatnonzero(dropped))
    assert mask.positions().dtype == np.int64
    assert np.array_equal(mask.packed(), np.packbits(dropped.reshape(-1), bitorder="little"))
    assert np.array_equal(mask.row_counts(), dropped.sum(axis=1))
    assert mask.nbytes == min(4 * mask.dropped, (mask.size + 7) // 8)
    shape = mask.shape
    for same in (
        Mask.from_keep(~dropped),
        Mask.from_positions(np.flatnonzero(dropped)[::-1], shape),
        Mask.from_packed(mask.packed(), shape),
        copy.deepcopy(mask),
        ~~mask,
    ):
        assert same == mask
        assert hash(same) == hash(mask)


@pytest.mark.parametrize("name", OPERATORS)
@given(arrays=dropped_arrays(count=2))
def test_operators_work_on_kept_weights(name: str, arrays: list[Bools]) -> None:
    on_masks, on_bools = OPERATORS[name]
    kept_a, kept_b = arrays
    result = on_masks(Mask.from_keep(kept_a), Mask.from_keep(kept_b))
    assert np.array_equal(result.keep_bool(), on_bools(kept_a, kept_b))


@given(dropped_arrays(count=2))
def test_complement_difference_and_equality(arrays: list[Bools]) -> None:
    a, b = (Mask.from_dropped(array) for array in arrays)
    assert np.array_equal((~a).dropped_bool(), ~arrays[0])
    assert difference_count(a, b) == int((arrays[0] != arrays[1]).sum())
    assert difference_rate(a, b) == (arrays[0] != arrays[1]).mean()
    assert (a == b) == bool((arrays[0] == arrays[1]).all())
    assert np.array_equal(differing(a, b).dropped_bool(), arrays[0] != arrays[1])
    assert differing(differing(a, b), b) == a


@given(dropped_arrays(count=3))
def test_laws_of_set_algebra(arrays: list[Bools]) -> None:
    a, b, c = (Mask.from_dropped(array) for array in arrays)
    assert ~(a & b) == ~a | ~b
    assert a & (b | c) == (a & b) | (a & c)
    assert a ^ b == (a - b) | (b - a)
    assert (a - b) & b == Mask.from_keep(np.zeros(a.shape, dtype=np.bool_))
    assert a | Mask.full(a.shape) == Mask.full(a.shape)


def test_sparse_masks_are_held_as_positions_and_dense_ones_as_bits() -> None:
    shape = (576, 1536)
    dropped = np.zeros(shape, dtype=np.bool_)
    dropped.reshape(-1)[::500] = True
    assert Mask.from_dropped(dropped).nbytes == 4 * dropped.sum()
    assert Mask.from_dropped(~dropped).nbytes == dropped.size // 8
    assert Mask.full(shape).nbytes == 0


def test_a_mask_beyond_2_to_the_31_weights_uses_wide_positions() -> None:
    shape = (2**16, 2**16)
    mask = Mask.from_positions(np.array([2**32 - 1, 5]), shape)
    assert mask.positions().tolist() == [5, 2**32 - 1]
    assert mask.nbytes == 16
    both = mask & Mask.from_positions(np.array([7]), shape)
    assert both.positions().tolist() == [5, 7, 2**32 - 1]
    assert difference_count(mask, both) == 1
    assert differing(mask, both).positions().tolist() == [7]
    assert (mask | both) == mask
    assert mask.row_counts()[[0, 2**16 - 1]].tolist() == [1, 1]


def test_a_mask_cannot_be_changed_from_outside() -> None:
    source = np.array([[True, False, True]])
    mask = Mask.from_dropped(source)
    before = hash(mask)
    source[:] = False
    mask.packed()[:] = 0
    mask.positions()[:] = 0
    assert mask.positions().tolist() == [0, 2]
    assert hash(mask) == before
    packed = np.array([5], dtype=np.uint8)
    mask = Mask.from_packed(packed, (1, 3))
    packed[:] = 0
    assert mask.dropped == 2
    with pytest.raises(AttributeError):
        mask.dropped = 3  # type: ignore[misc]


def test_unequal_things() -> None:
    mask = Mask.full((2, 3))
    assert mask != Mask.full((3, 2))
    assert mask != "mask"
    assert repr(mask) == "Mask(shape=(2, 3), dropped=0, sparsity=0.0000%)"


@pytest.mark.parametrize(
    "combine", [operator.and_, operator.or_, operator.xor, operator.sub, difference_rate, differing]
)
def test_other_shapes_do_not_combine(combine: Callable[[Mask, Mask], object]) -> None:
    with pytest.raises(MaskMismatchError, match=r"\(2, 3\) and \(3, 2\)"):
        combine(Mask.full((2, 3)), Mask.full((3, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask.from_positions(np.array([0, 6]), (2, 3)), "0..6 do not fit"),
        (lambda: Mask.from_positions(np.array([-1]), (2, 3)), "do not fit"),
        (lambda: Mask.from_positions(np.array([4, 1, 4]), (2, 3)), "occurs twice"),
        (lambda: Mask.from_positions(np.array([0.5]), (2, 3)), "integer array"),
        (lambda: Mask.from_positions(np.array([[1]]), (2, 3)), "2-D"),
        (lambda: Mask.from_dropped(np.ones((2, 3))), "boolean"),  # type: ignore[arg-type]
        (lambda: Mask.from_keep(np.ones((2, 3))), "boolean"),  # type: ignore[arg-type]
        (lambda: Mask.from_keep(np.ones(3, dtype=np.bool_)), "(out, in)"),
        (lambda: Mask.full((0, 3)), "at least 1"),
        (lambda: Mask.from_packed(np.zeros(2, dtype=np.uint8), (2, 3)), "need 1 bytes"),
        (lambda: Mask.from_packed(np.array([64], dtype=np.uint8), (2, 3)), "behind the last"),
    ],
)
def test_bad_arguments(make: Callable[[], Mask], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        make()
    assert message in str(caught.value)
