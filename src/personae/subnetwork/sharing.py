"""What the masks of several personas have in common on one target, stored once.

A mask of n weights, a share p of them dropped, takes about n·H₂(p) bits; the difference of two masks, the set of the d
weights on which they differ, about n·H₂(d/n). So masks that are much alike are stored as one consensus C and their
differences D_p = M_p xor C, if that is really smaller than each on its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from personae.subnetwork.bits import Bits
from personae.subnetwork.codec import encode
from personae.subnetwork.mask import Mask, difference_count, differing, is_sparse

__all__ = ["Encoded", "consensus_of", "encode_against", "encode_together"]

_ALIKE = 0.9  # masks are alike if their difference has less than this share of the entropy of one of them
_CHUNK = 1 << 17  # bytes of packed bits on which votes are counted at once


@dataclass(frozen=True, slots=True)
class Encoded:
    """What is stored for a mask: a payload in a named encoding, of the mask itself or of its difference."""

    encoding: str
    payload: bytes
    is_difference: bool = False


def encode_together(masks: Sequence[Mask], *, cost: int) -> tuple[tuple[Mask, Encoded] | None, list[Encoded]]:
    """The masks of one target, encoded; with them the consensus, or None where one would not save `cost` bytes.

    The second part has an entry for each mask, in their order.
    """
    alone = [Encoded(*encode(mask)) for mask in masks]
    consensus = consensus_of(masks)
    if consensus is None:
        return None, alone
    shared = [_shorter(mask, consensus, own) for mask, own in zip(masks, alone, strict=True)]
    common = Encoded(*encode(consensus))
    if _bytes([common, *shared]) + cost >= _bytes(alone):
        return None, alone
    return (consensus, common), shared


def encode_against(mask: Mask, consensus: Mask | None) -> Encoded:
    """A mask, as its difference from the consensus where there is one and the difference is shorter."""
    alone = Encoded(*encode(mask))
    return alone if consensus is None else _shorter(mask, consensus, alone)


def consensus_of(masks: Sequence[Mask]) -> Mask | None:
    """The majority of those masks that are like the leader, the one of largest entropy; None if no other is.

    Most masks of sparse personas have little in common and most files one persona: that is found out by counting
    alone. A weight is dropped if more than half of the alike masks drop it, or half of them and the leader too.
    """
    if len(masks) < 2:
        return None
    first = max(range(len(masks)), key=lambda i: entropy(masks[i].dropped, masks[i].size))  # the first of equals
    others = [mask for i, mask in enumerate(masks) if i != first and _alike(mask, masks[first])]
    return _majority(masks[first], others) if others else None


def entropy(count: int, size: int) -> float:
    """n·H₂(count/n) in bits, for n = size."""
    return sum(-part * math.log2(part / size) for part in (count, size - count) if part)


def _alike(mask: Mask, leader: Mask) -> bool:
    return entropy(difference_count(mask, leader), mask.size) < _ALIKE * entropy(mask.dropped, mask.size)


def _majority(leader: Mask, others: Sequence[Mask]) -> Mask:
    """Each weight as most masks have it; where they are half and half, as the leader has it."""
    if all(is_sparse(mask.dropped, mask.size) for mask in (leader, *others)):
        # Among an even number of masks the leader votes twice, which breaks ties and changes nothing else.
        voters = [leader, *others] + ([leader] if len(others) % 2 else [])
        positions, votes = np.unique(np.concatenate([mask.positions() for mask in voters]), return_counts=True)
        return Mask.from_positions(positions[2 * votes > len(voters)], leader.shape)
    packed = [mask.packed() for mask in (leader, *others)]
    starts = range(0, packed[0].size, _CHUNK)
    return Mask.from_packed(
        np.concatenate([_packed_majority([p[s : s + _CHUNK] for p in packed]) for s in starts]), leader.shape
    )


def _packed_majority(packed: Sequence[Bits]) -> Bits:
    """The same of packed bits, the leader's first."""
    votes = np.zeros(8 * packed[0].size, dtype=np.int32)
    for bits in packed:
        votes += np.unpackbits(bits, bitorder="little")
    leader = np.unpackbits(packed[0], bitorder="little")
    return np.packbits(2 * votes + leader > len(packed), bitorder="little")


def _shorter(mask: Mask, consensus: Mask, alone: Encoded) -> Encoded:
    if entropy(difference_count(mask, consensus), mask.size) >= entropy(mask.dropped, mask.size):
        return alone
    difference = Encoded(*encode(differing(mask, consensus)), is_difference=True)
    return min(alone, difference, key=lambda encoded: len(encoded.payload))


def _bytes(encoded: Sequence[Encoded]) -> int:
    return sum(len(e.payload) for e in encoded)
