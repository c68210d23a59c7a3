"""What two masks drop in common, and what masks that drop as many weights of every row would by chance.

A part of the model (a target, a block, a kind, all of it) has `weights` weights, of which two subnetworks drop the sets
A and B, with c = |A ∩ B|. Three figures, all monotone in c:

    difference = (|A| + |B| − 2c) / weights    share of the weights on which they differ (the persona paper's figure)
    jaccard    = c / (|A| + |B| − c)           of what either drops, the share that both drop
    cosine     = c / √(|A|·|B|)                of the two indicator vectors of what is dropped

Counts of targets add up to those of blocks and kinds, and so do mean, variance and draws of c by chance
(`compare_chance`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.analysis.compare_chance import common_by_chance, drawn, moments
from personae.errors import MaskMismatchError
from personae.models.targets import Kind, kind_of
from personae.subnetwork import Mask, difference_count

Ints = NDArray[np.int64]

LEVEL = 0.95  # of the intervals


@dataclass(frozen=True, eq=False)
class Drops:
    """What one subnetwork drops: its mask of every target, and how many weights of each row, int64 (out,)."""

    masks: Mapping[str, Mask]
    rows: Mapping[str, Ints]

    @classmethod
    def of(cls, masks: Mapping[str, Mask], shapes: Mapping[str, tuple[int, int]]) -> Drops:
        """Over all targets of a model; one without a mask is kept whole.

        Errors: `MaskMismatchError` for a mask of an unknown target or of another shape.
        """
        for name, mask in masks.items():
            if shapes.get(name) != mask.shape:
                raise MaskMismatchError(f"the mask of {name} has shape {mask.shape}, the model {shapes.get(name)}.")
        whole = {n: masks[n] if n in masks else Mask.full(shape) for n, shape in sorted(shapes.items())}
        return cls(whole, {name: mask.row_counts() for name, mask in whole.items()})


@dataclass(frozen=True, eq=False)
class Common:
    """Counts of one part; mean, variance and draws are those of `common` by chance, draws int64 (draws,)."""

    weights: int
    first: int
    second: int
    common: int
    mean: float
    variance: float
    draws: Ints

    def __add__(self, other: Common) -> Common:
        return Common(
            self.weights + other.weights, self.first + other.first, self.second + other.second,
            self.common + other.common, self.mean + other.mean, self.variance + other.variance,
            self.draws + other.draws,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Against:
    """A figure, its expectation by chance, and the central 95 % of its draws by chance (None without draws)."""

    value: float
    chance: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two subnetworks on one part of a model. level: 'all', 'kind', 'block' or 'target'; part: its name.

    weights, first, second, common: of the part, dropped by the first, by the second, by both. expected: mean of common
    by chance. z: how many standard deviations (by chance) common lies above it; None where chance has no choice.
    """

    part: str
    level: str
    weights: int
    first: int
    second: int
    common: int
    expected: float
    z: float | None
    difference: Against
    jaccard: Against
    cosine: Against


# --- the figures ----------------------------------------------------------------------------------------------


def difference(common: float, first: int, second: int, weights: int) -> float:
    """(|A| + |B| − 2c) / weights."""
    return (first + second - 2 * common) / weights


def jaccard(common: float, first: int, second: int) -> float:
    """c / (|A| + |B| − c); 1 of two masks that drop nothing, which are equal."""
    either = first + second - common
    return common / either if either else 1.0


def cosine(common: float, first: int, second: int) -> float:
    """c / √(|A|·|B|); of an empty mask 1 to another empty one, 0 to any other."""
    return common / math.sqrt(first * second) if first and second else float(first == second)


def expected_jaccard(mean: float, variance: float, first: int, second: int) -> float:
    """E[c/(s − c)], s = |A| + |B|, to second order in the spread of c: μ/(s − μ) + s·σ²/(s − μ)³."""
    both = first + second
    return jaccard(mean, first, second) + (both * variance / (both - mean) ** 3 if both else 0.0)


def figures(part: str, level: str, c: Common) -> Overlap:
    """The three figures of a part beside chance."""
    counts = c.first, c.second
    low = high = None
    if c.draws.size:  # whole numbers that were drawn: figures are monotone in them, so their quantiles go over
        tail = (1 - LEVEL) / 2
        low = int(np.quantile(c.draws, tail, method="lower"))
        high = int(np.quantile(c.draws, 1 - tail, method="higher"))

    def bound(at: int | None, figure: str) -> float | None:
        if at is None:
            return None
        if figure == "difference":
            return difference(at, *counts, c.weights)
        return jaccard(at, *counts) if figure == "jaccard" else cosine(at, *counts)

    return Overlap(
        part, level, c.weights, *counts, c.common, c.mean,
        (c.common - c.mean) / math.sqrt(c.variance) if c.variance > 0 else None,
        Against(  # the more is in common, the smaller the difference
            difference(c.common, *counts, c.weights), difference(c.mean, *counts, c.weights),
            bound(high, "difference"), bound(low, "difference"),
        ),
        Against(
            jaccard(c.common, *counts), expected_jaccard(c.mean, c.variance, *counts),
            bound(low, "jaccard"), bound(high, "jaccard"),
        ),
        Against(
            cosine(c.common, *counts), cosine(c.mean, *counts), bound(low, "cosine"), bound(high, "cosine"),
        ),
    )  # fmt: skip


# --- counts by target, and their sums -------------------------------------------------------------------------


def tally(first: Drops, second: Drops, *, draws: int = 0, seed: Iterable[int] = (0,)) -> dict[str, Common]:
    """Counts of every target, from positions or packed bits as the masks hold them. seed: of the draws."""
    counted = {}
    start = tuple(seed)
    for number, (name, mask) in enumerate(first.masks.items()):
        other = second.masks[name]
        common = (mask.dropped + other.dropped - difference_count(mask, other)) // 2
        rows = first.rows[name], second.rows[name]
        mean, variance = moments(*rows, mask.shape[1])
        by_chance = np.zeros(0, dtype=np.int64)
        if draws:
            random = np.random.default_rng((*start, number))
            by_chance = drawn(*common_by_chance(*rows, mask.shape[1]), draws, random)
        counted[name] = Common(mask.size, mask.dropped, other.dropped, common, mean, variance, by_chance)
    return counted


def by_part(counted: Mapping[str, Common]) -> list[Overlap]:
    """All weights, each kind, each block, each target; in this order, names and numbers rising."""
    kinds: dict[str, list[Common]] = {}
    blocks: dict[int, list[Common]] = {}
    for name, c in counted.items():
        block, kind = place_of(name)
        kinds.setdefault(kind, []).append(c)
        if block is not None:
            blocks.setdefault(block, []).append(c)
    return [
        figures("all", "all", _sum(list(counted.values()))),
        *(figures(kind, "kind", _sum(group)) for kind, group in sorted(kinds.items())),
        *(figures(f"block {block}", "block", _sum(group)) for block, group in sorted(blocks.items())),
        *(figures(name, "target", c) for name, c in counted.items()),
    ]


def _sum(parts: list[Common]) -> Common:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def place_of(target: str) -> tuple[int | None, Kind]:
    """(block, kind) of a target by its name alone, since artefacts are compared without their model.

    The block is the first number in the name, as in 'model.layers.3.mlp.up_proj.weight': repeated blocks are the
    outermost lists of modules (`find_targets`). What follows it says whether it is attention or MLP.
    """
    words = target.split(".")
    at = next((i for i, word in enumerate(words) if word.isdigit()), None)
    if at is None:
        return None, kind_of(target)
    return int(words[at]), kind_of(".".join(words[at + 1 :]))
