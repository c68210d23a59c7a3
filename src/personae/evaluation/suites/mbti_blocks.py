"""Ranges of blocks that masks may be confined to, in thirds of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from personae.errors import ModelError
from personae.models import Target, find_blocks

RANGES = {"all": (0, 3), "first": (0, 1), "middle": (1, 2), "last": (2, 3)}  # in thirds of the blocks


@dataclass(frozen=True, slots=True)
class Span:
    """A range of blocks, and the names of the targets in it."""

    blocks: range
    targets: frozenset[str]


def third(name: str, blocks: int) -> range:
    """Positions of a range among so many blocks: third k of n blocks is [⌊(k−1)·n/3 + ½⌋, ⌊k·n/3 + ½⌋)."""
    first, last = (int(edge * blocks / 3 + 0.5) for edge in RANGES[name])
    return range(first, last)


def places(model: nn.Module, targets: Sequence[Target]) -> dict[str, int]:
    """The block that each target stands in, by the target's name."""
    inside = {id(module): number for number, block in enumerate(find_blocks(model)) for module in block.modules()}
    return {t.name: inside[id(t.module)] for t in targets}


def spans(model: nn.Module, targets: Sequence[Target], names: Sequence[str]) -> dict[str, Span]:
    """The ranges on one model. Errors: `ModelError` for a range without targets, as in models of one or two blocks."""
    blocks, place = len(find_blocks(model)), places(model, targets)
    found: dict[str, Span] = {}
    for name in names:
        within = third(name, blocks)
        inside = frozenset(t.name for t in targets if place[t.name] in within)
        if not inside:
            raise ModelError(
                f"the range '{name}' of this model's {blocks} blocks holds no target: leave it out of the ranges."
            )
        found[name] = Span(within, inside)
    return found
