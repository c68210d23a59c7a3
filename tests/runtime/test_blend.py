from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae.errors import OptionError
from personae.runtime.blend import check_strengths, merge, single_gate

Part = tuple[np.ndarray, float]


def parts() -> st.SearchStrategy[list[Part]]:
    positions = st.sets(st.integers(0, 40)).map(lambda s: np.array(sorted(s), dtype=np.int64))
    return st.lists(st.tuples(positions, st.floats(0, 1)), max_size=4)


@given(parts())
def test_merge_is_the_formula(given_parts: list[Part]) -> None:
    dense = np.zeros(41)
    for positions, strength in given_parts:
        dense[positions] += strength
    expected = 1 - np.minimum(1, dense)

    positions, gates = merge(given_parts)

    got = np.ones(41)
    got[positions] = gates
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert gates.dtype == np.float32
    assert (np.diff(positions) > 0).all()
    assert ((gates >= 0) & (gates < 1)).all(), "a gate of 1 changes nothing and may not be written"


@given(parts(), st.randoms())
def test_merge_does_not_depend_on_the_order_of_personas(given_parts: list[Part], random: object) -> None:
    shuffled = list(given_parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for one, other in zip(merge(given_parts), merge(shuffled), strict=True):
        np.testing.assert_array_equal(one, other)


def test_strengths_that_sum_to_one_drop_exactly() -> None:
    here = np.array([3], dtype=np.int64)
    # In float64 0.1 + 0.2 + 0.7 is 0.9999999999999999 in one order and 1 in another.
    assert merge([(here, 0.7), (here, 0.1), (here, 0.2)])[1].tolist() == [0.0]


def test_a_single_persona_in_a_merge_has_its_single_gate() -> None:
    here = np.array([0, 5], dtype=np.int64)
    for strength in (0.1, 0.3, 1.0):
        assert merge([(here, strength)])[1].tolist() == [single_gate(strength)] * 2


def test_single_gate() -> None:
    assert single_gate(1.0) == 0.0
    assert single_gate(0.25) == 0.75
    assert single_gate(1.5) == -0.5
    assert single_gate(0.1) == float(np.float32(1) - np.float32(0.1))


def test_check_strengths_leaves_out_what_changes_nothing() -> None:
    assert check_strengths({"a": 0.0, "b": 1, "c": np.float32(0.5)}) == {"b": 1.0, "c": 0.5}
    assert check_strengths({"a": 0}) == {}


def test_a_strength_above_one_is_for_one_persona_alone() -> None:
    assert check_strengths({"a": 1.5}) == {"a": 1.5}
    assert check_strengths({"a": 1.5, "b": 0}) == {"a": 1.5}
    with pytest.raises(OptionError, match=r"'a' is 1\.5: in a blend give 0 to 1"):
        check_strengths({"a": 1.5, "b": 0.1})


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, "much", None])
def test_strengths_out_of_range(bad: object) -> None:
    with pytest.raises(OptionError, match="strength of persona 'a'"):
        check_strengths({"a": bad, "b": 0.5})  # type: ignore[dict-item]


def test_an_empty_blend_is_not_the_base_model() -> None:
    with pytest.raises(OptionError, match="disable_persona"):
        check_strengths({})
