"""What masks have in common: the majority by counting, the sizes by encoding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from personae.subnetwork import Mask, decode, encode, sharing
from personae.subnetwork.mask import differing
from personae.subnetwork.sharing import Encoded, consensus_of, encode_against, encode_together, entropy

Bools = NDArray[np.bool_]


def alike(count: int, share: float, change: float, seed: int, shape: tuple[int, int] = (64, 96)) -> list[Bools]:
    """Dropped weights of masks that differ from a common one on `change` of the weights they drop."""
    generator = np.random.default_rng(seed)
    common = generator.random(shape) < share
    return [common ^ (generator.random(shape) < change * share) for _ in range(count)]


def masks_of(dropped: Sequence[Bools]) -> list[Mask]:
    return [Mask.from_dropped(d) for d in dropped]


def decoded(encoded: Encoded, consensus: Mask | None, shape: tuple[int, int]) -> Mask:
    mask = decode(encoded.encoding, encoded.payload, shape)
    if not encoded.is_difference:
        return mask
    assert consensus is not None
    return differing(mask, consensus)


@given(st.integers(2, 7), st.sampled_from([0.004, 0.02, 0.3, 0.5, 0.8, 1.0]), st.integers(0, 2**32 - 1))
def test_consensus_is_the_majority_with_ties_to_the_leader(count: int, share: float, seed: int) -> None:
    dropped = alike(count, share, 0.02, seed)
    masks = masks_of(dropped)
    entropies = [entropy(mask.dropped, mask.size) for mask in masks]
    leader = entropies.index(max(entropies))
    members = [
        d
        for i, d in enumerate(dropped)
        if i == leader or entropy(int((d != dropped[leader]).sum()), d.size) < 0.9 * entropies[i]
    ]
    votes = np.sum(members, axis=0)
    expected = (2 * votes > len(members)) | ((2 * votes == len(members)) & dropped[leader])
    assert consensus_of(masks) == (Mask.from_dropped(expected) if len(members) > 1 else None)


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_the_majority_of_a_target_that_fills_more_than_one_chunk(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setattr(sharing, "_CHUNK", 100)
    dropped = alike(4, share, 0.02, 1)
    majority = np.sum(dropped, axis=0) >= 3
    consensus = consensus_of(masks_of(dropped))
    assert consensus is not None
    decided = np.sum(dropped, axis=0) != 2
    assert np.array_equal(consensus.dropped_bool()[decided], majority[decided])


def test_masks_that_have_nothing_in_common_have_no_consensus() -> None:
    generator = np.random.default_rng(0)
    for share in (0.002, 0.03, 0.3, 0.5):
        assert consensus_of(masks_of([generator.random((64, 96)) < share for _ in range(5)])) is None
    (one,) = masks_of(alike(1, 0.5, 0, 0))
    assert consensus_of([]) is consensus_of([one]) is None
    assert consensus_of([Mask.full((3, 4)), Mask.full((3, 4))]) is None  # nothing to save


def test_the_same_mask_twice_is_alike() -> None:
    (one,) = masks_of(alike(1, 0.5, 0, 0))
    assert consensus_of([one, one]) == one


def test_strangers_do_not_vote() -> None:
    dropped = alike(3, 0.3, 0.02, 4)
    sparse = [np.random.default_rng(i).random((64, 96)) < 0.002 for i in range(6)]
    assert consensus_of(masks_of([*sparse, *dropped])) == consensus_of(masks_of(dropped))


@given(
    st.integers(1, 6),
    st.sampled_from([0.0, 0.005, 0.05, 0.5, 0.95, 1.0]),
    st.sampled_from([0.0, 0.001, 0.01, 0.2, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_masks_come_back_and_sharing_never_costs(count: int, share: float, change: float, seed: int) -> None:
    masks = masks_of(alike(count, share, change, seed))
    alone = [len(encode(mask)[1]) for mask in masks]
    common, stored = encode_together(masks, cost=100)
    consensus = common[0] if common else None
    assert [decoded(s, consensus, m.shape) for s, m in zip(stored, masks, strict=True)] == masks
    assert encode_together(masks, cost=100) == (common, stored)
    assert all(len(s.payload) <= a for s, a in zip(stored, alone, strict=True))
    if common:
        assert decoded(common[1], None, masks[0].shape) == common[0]
        assert not common[1].is_difference
        assert len(common[1].payload) + sum(len(s.payload) for s in stored) + 100 < sum(alone)
    else:
        assert stored == [Encoded(*encode(mask)) for mask in masks]


def test_sixteen_dense_masks_with_a_mutual_difference_of_one_per_cent_take_less_than_two() -> None:
    q = (1 - math.sqrt(1 - 2 * 0.01)) / 2  # 2·q·(1 − q) = 0.01
    dropped = alike(16, 0.5, 2 * q, 0, (300, 400))
    masks = masks_of(dropped)
    differences = [(a != b).mean() for i, a in enumerate(dropped) for b in dropped[:i]]
    assert np.mean(differences) == pytest.approx(0.01, rel=0.02)
    common, stored = encode_together(masks, cost=0)
    assert common is not None
    together = len(common[1].payload) + sum(len(s.payload) for s in stored)
    one = len(encode(masks[0])[1])
    # by arithmetic 1 + 16·H₂(0.005) = 1.73
    assert together < 1.9 * one


def test_against_a_consensus_the_shorter_form_is_taken() -> None:
    first, second, stranger = masks_of([*alike(2, 0.5, 0.01, 0), *alike(1, 0.5, 0.01, 9)])
    assert encode_against(second, first).is_difference
    assert len(encode_against(second, first).payload) < len(encode(second)[1]) / 5
    assert decoded(encode_against(second, first), first, second.shape) == second
    assert encode_against(stranger, first) == encode_against(stranger, None) == Encoded(*encode(stranger))
    columns = np.zeros((64, 96), dtype=np.bool_)
    columns[:, ::2] = True  # short by itself, although its entropy is not
    noisy = columns ^ (np.random.default_rng(0).random(columns.shape) < 0.2)
    assert not encode_against(*masks_of([columns, noisy])).is_difference


def test_entropy() -> None:
    assert entropy(0, 10) == entropy(10, 10) == 0
    assert entropy(5, 10) == 10
    assert entropy(1, 4) == pytest.approx(4 * 0.8112781)
