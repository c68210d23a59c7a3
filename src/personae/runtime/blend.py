"""The gate of one persona or of several at once, as plain arithmetic (docs/methods.md, section 1).

    G = 1 - min(1, Σ_p α_p (1 - M_p)),  α_p the strength of persona p

1 - M_p is 1 on the weights that persona p drops, so only dropped positions ever matter: everything here
works on sorted arrays of positions and never makes anything of the size of the weight matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from personae.errors import OptionError

__all__ = ["Gates", "Positions", "check_strengths", "merge", "single_gate"]

Positions = NDArray[np.int64]
Gates = NDArray[np.float32]


def check_strengths(strengths: Mapping[str, float]) -> dict[str, float]:
    """The strengths as floats, without those that are 0 (they change nothing).

    Errors: `OptionError` when none is given, when one is negative, infinite or no number, or when one
    is above 1 while another persona is worn with it.
    """
    if not strengths:
        raise OptionError("a blend needs at least one persona; disable_persona() gives the base model.")
    worn: dict[str, float] = {}
    for name, given in strengths.items():
        try:
            strength = float(given)
        except (TypeError, ValueError):
            raise OptionError(f"the strength of persona {name!r} must be a number, not {given!r}.") from None
        if not math.isfinite(strength) or strength < 0:
            raise OptionError(f"the strength of persona {name!r} is {strength}: give a number from 0 up.")
        if strength > 0:
            worn[name] = strength
    for name, strength in worn.items():
        if strength > 1 and len(worn) > 1:
            raise OptionError(
                f"the strength of persona {name!r} is {strength}: in a blend give 0 to 1; "
                "a strength above 1 is for one persona worn alone."
            )
    return worn


def single_gate(strength: float) -> float:
    """G on the dropped weights of one persona worn alone: 1 - strength in float32 (below 0 above 1)."""
    return float(np.float32(1) - np.float32(strength))


def merge(parts: Sequence[tuple[Positions, float]]) -> tuple[Positions, Gates]:
    """Positions whose gate is not 1, sorted, and their gates G = 1 - min(1, Σ strength) in float32.

    parts: for each persona its sorted dropped positions, (dropped,), and its strength in [0, 1].
    Strengths are summed in float64 in the order of their size, so the result does not depend on the
    order of the personas, and the sum is rounded to float32 before it is subtracted, so that
    0.1 + 0.2 + 0.7 drops a weight exactly.
    """
    ordered = sorted(parts, key=lambda part: part[1])
    strengths = np.array([strength for _, strength in ordered], dtype=np.float64)
    # One integer holds a position and, below it, the rank of the strength: sorting integers is several
    # times faster than sorting an order for them.
    shift = len(ordered).bit_length()
    keys = np.concatenate([np.empty(0, np.int64), *((p << shift) | rank for rank, (p, _) in enumerate(ordered))])
    if not keys.size:
        return keys, np.empty(0, np.float32)
    keys.sort()
    positions = keys >> shift
    first = np.flatnonzero(np.concatenate([[True], positions[1:] != positions[:-1]]))
    total = np.add.reduceat(strengths[keys & ((1 << shift) - 1)], first).astype(np.float32)
    gates = np.float32(1) - np.minimum(total, np.float32(1))
    changed = gates != 1  # a weight that is multiplied by 1 is better left alone, NaN bits and all
    return positions[first][changed], gates[changed]
