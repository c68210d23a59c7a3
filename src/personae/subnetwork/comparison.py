"""How much two subnetworks differ, and how much two unrelated ones of the same sizes would.

'Mask difference' of the persona paper (arXiv 2602.07164) is a share of all weights, so where both masks drop little it
is small whatever they drop. Beside it stand the share among the weights that at least one of them drops, and what both
come to by chance: as many weights dropped in every output row, anywhere in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from personae.errors import MaskMismatchError
from personae.subnetwork.mask import Mask, difference_count


@dataclass(frozen=True, slots=True)
class Comparison:
    """Counts over all targets: of weights, of those the first and the second mask drop, and of those on which they
    differ; `expected` is the mean of that last count over independent masks with the same counts in every row."""

    weights: int
    first: int
    second: int
    different: int
    expected: float

    @property
    def difference(self) -> float:
        """Mask difference: share of all weights on which they differ, in [0, 1]."""
        return self.different / self.weights

    @property
    def difference_by_chance(self) -> float:
        """The same of independent masks."""
        return self.expected / self.weights

    @property
    def among_dropped(self) -> float:
        """Share of the weights dropped by at least one of them that only one drops (1 − Jaccard index); 0 for two
        empty masks."""
        return _share(self.different, self.first + self.second)

    @property
    def among_dropped_by_chance(self) -> float:
        """The same of independent masks, by their expected counts."""
        return _share(self.expected, self.first + self.second)


def _share(different: float, dropped: int) -> float:
    """different/|A ∪ B|, with |A ∪ B| = (|A| + |B| + different)/2."""
    return 2 * different / (dropped + different) if dropped else 0.0


def compare(first: Mapping[str, Mask], second: Mapping[str, Mask]) -> Comparison:
    """Compare the masks of two subnetworks of one model.

    By chance, two masks that drop a and b of the n weights of a row have ab/n in common (hypergeometric mean), so they
    differ on a + b − 2ab/n of them. Errors: `MaskMismatchError` for other targets or other shapes, or no target at all.
    """
    if not first or first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise MaskMismatchError(
            f"only one of the two masks {odd[0]}: compare subnetworks of one model, over the same targets."
            if odd
            else "there is no mask to compare."
        )
    weights = dropped = other = different = 0
    expected = 0.0
    for name in sorted(first):
        a, b = first[name], second[name]
        different += difference_count(a, b)
        weights, dropped, other = weights + a.size, dropped + a.dropped, other + b.dropped
        rows = a.row_counts().astype(np.float64), b.row_counts().astype(np.float64)
        expected += float((rows[0] + rows[1] - 2 * rows[0] * rows[1] / a.shape[1]).sum())
    return Comparison(weights, dropped, other, different, expected)
