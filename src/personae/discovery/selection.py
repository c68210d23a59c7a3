"""Which weights to drop: exact counts, stated ties, per row, per target, globally, or N:M.

Ties: equal scores are ordered by the tie-breaker (lower first) and, if that is equal too, by position.
Counts: a share ρ of n weights is round(ρ·n) with halves rounded up; never one more, never one less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from personae.errors import OptionError

Scores = Mapping[str, torch.Tensor]  # by target name, (out, in); the lowest are dropped
Dropped = dict[str, torch.Tensor]  # by target name, (out, in) bool, True = dropped

SCOPES = ("row", "target", "global")


def count(share: float, total: int) -> int:
    """round(share·total), halves up."""
    return math.floor(share * total + 0.5)


def check_share(share: float, option: str = "--sparsity") -> None:
    """Errors: `OptionError` unless 0 < share < 1."""
    if not (isinstance(share, (int, float)) and 0.0 < share < 1.0):
        raise OptionError(f"{option} is {share}: it must lie between 0 and 1, both excluded.")


def drop_lowest(scores: Scores, share: float, scope: str = "row", ties: Scores | None = None) -> Dropped:
    """Drop the `share` of weights with the lowest scores within each row, each target, or over all targets."""
    check_share(share)
    if scope not in SCOPES:
        raise OptionError(f"unknown selection scope {scope!r}: choose {', '.join(SCOPES)}.")
    if scope == "global":
        return _drop_global(scores, share, ties)
    dropped: Dropped = {}
    for name, score in scores.items():
        rows = score if scope == "row" else score.reshape(1, -1)
        tie = ties[name].reshape(rows.shape) if ties is not None else None
        number = count(share, rows.shape[1])
        mask = torch.zeros_like(rows, dtype=torch.bool)
        mask.scatter_(1, _order(rows, tie)[:, :number], True)
        dropped[name] = mask.reshape(score.shape)
    return dropped


def drop_n_of_m(scores: Scores, keep: int, group: int, ties: Scores | None = None) -> Dropped:
    """N:M sparsity: in every `group` consecutive inputs of a row keep the `keep` highest scores."""
    if not 0 < keep < group:
        raise OptionError(f"--n-m {keep}:{group}: N must be at least 1 and smaller than M.")
    dropped: Dropped = {}
    for name, score in scores.items():
        if score.shape[1] % group:
            raise OptionError(f"--n-m {keep}:{group}: {name} has {score.shape[1]} inputs, no multiple of {group}.")
        rows = score.reshape(-1, group)
        tie = ties[name].reshape(rows.shape) if ties is not None else None
        mask = torch.zeros_like(rows, dtype=torch.bool)
        mask.scatter_(1, _order(rows, tie)[:, : group - keep], True)
        dropped[name] = mask.reshape(score.shape)
    return dropped


def drop_highest(gains: Scores, candidates: Dropped, number: int) -> Dropped:
    """Drop, over all targets, the `number` candidates with the largest gains (fewer where fewer are positive).

    Equal gains at the threshold are taken in the order of targets and positions.
    """
    values = {n: torch.where(candidates[n] & (g > 0), g, torch.zeros_like(g)) for n, g in gains.items()}
    positive = sum(int((v > 0).sum()) for v in values.values())
    if number >= positive:
        return {n: v > 0 for n, v in values.items()}
    if number <= 0:
        return {n: torch.zeros_like(candidates[n]) for n in gains}
    pool = torch.cat([v[v > 0] for v in values.values()])
    threshold = pool.kthvalue(len(pool) - number + 1).values
    spare = number - int((pool > threshold).sum())  # how many at the threshold itself may go
    dropped: Dropped = {}
    for name, v in values.items():
        mask = v > threshold
        if spare:
            at = (v == threshold).flatten().nonzero().flatten()[:spare]
            mask.view(-1)[at] = True
            spare -= len(at)
        dropped[name] = mask
    return dropped


def _drop_global(scores: Scores, share: float, ties: Scores | None) -> Dropped:
    names = list(scores)
    flat = torch.cat([scores[n].flatten() for n in names])
    number = count(share, len(flat))
    mask = torch.zeros(len(flat), dtype=torch.bool)
    if number:
        threshold = flat.kthvalue(number).values
        mask = flat < threshold
        at = (flat == threshold).nonzero().flatten()
        if ties is not None:
            tie = torch.cat([ties[n].flatten() for n in names])[at]
            at = at[tie.argsort(stable=True)]
        mask[at[: number - int(mask.sum())]] = True
    parts = torch.split(mask, [scores[n].numel() for n in names])
    return {n: part.reshape(scores[n].shape) for n, part in zip(names, parts, strict=True)}


def _order(rows: torch.Tensor, ties: torch.Tensor | None) -> torch.Tensor:
    """Columns of each row from lowest to highest score; ties by the tie-breaker, then by column."""
    if ties is None:
        return rows.argsort(dim=1, stable=True)
    first = ties.argsort(dim=1, stable=True)
    return first.gather(1, rows.gather(1, first).argsort(dim=1, stable=True))
