"""Masks that know nothing of the persona: the same number of weights, chosen otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from personae.discovery import Session, Settings, to_masks
from personae.models import Target
from personae.subnetwork import Mask

Masks = Mapping[str, Mask]

CONTROLS = ("random", "magnitude", "generic", "opposite")
_TOLERANCE = 0.05  # how far per-row rounding may miss the asked number of weights


def dropped(masks: Masks) -> int:
    """Number of weights that masks drop."""
    return sum(mask.dropped for mask in masks.values())


def random_masks(
    targets: Sequence[Target], number: int, seed: int, candidates: Mapping[str, torch.Tensor] | None = None
) -> dict[str, Mask]:
    """`number` weights drawn uniformly without replacement, among the candidates (True) or among all.

    Fewer where there are fewer candidates. The weights of a target are drawn after how many fall to each target
    (a multivariate hypergeometric draw), so no list over the whole model is ever made.
    """
    generator = np.random.default_rng(seed)
    pools = [t.size if candidates is None else int(candidates[t.name].sum()) for t in targets]
    number = min(number, sum(pools))
    counts = generator.multivariate_hypergeometric(pools, number, method="marginals") if number else [0] * len(pools)
    masks: dict[str, Mask] = {}
    for target, pool, count in zip(targets, pools, counts, strict=True):
        positions = generator.choice(pool, size=int(count), replace=False, shuffle=False)
        if candidates is not None:
            positions = candidates[target.name].flatten().nonzero().flatten().numpy()[positions]
        masks[target.name] = Mask.from_positions(positions, target.shape)
    return masks


def scored_masks(session: Session, method: str, number: int) -> tuple[dict[str, Mask], str]:
    """(masks, note): `magnitude` or `generic` at the share of `number` weights, within each row where that fits.

    A row cannot drop a fraction of a weight: where the rounding misses the number by more than 5 %, each target
    is selected as a whole, and the note says so.
    """
    if not number:
        return {}, "nothing is dropped: the persona's masks are empty"
    for selection in ("row", "target"):
        masks = to_masks(session.family(Settings(method=method, selection=selection), 0).at(number))
        if abs(dropped(masks) - number) <= _TOLERANCE * number:
            break
    return masks, "" if selection == "row" else "selected within each target: the share is below one weight a row"
