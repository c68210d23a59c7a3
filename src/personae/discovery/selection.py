"""Which weights to drop: exact counts, stated ties, per row, per target, globally, or N:M.

Ties: equal scores are ordered by the tie-breaker (lower first) and, if that is equal too, by position.
Counts: a share ρ of a target's (or all) n weights is round(ρ·n) with halves rounded up; never one more, never
one less. Rows share it out as evenly as whole numbers allow.
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
    return drop_ranked(scores, rank_lines(scores, scope, ties), share, ties)


def rank_lines(scores: Scores, scope: str, ties: Scores | None = None) -> dict[str, torch.Tensor]:
    """Rank of every weight within its line (its row, or its target laid end to end), lowest score 0; int32."""
    ranks: dict[str, torch.Tensor] = {}
    for name, score in scores.items():
        lines = score if scope == "row" else score.reshape(1, -1)
        order = _order(lines, ties[name].reshape(lines.shape) if ties is not None else None)
        steps = torch.arange(lines.shape[1], dtype=torch.int32).expand(lines.shape)
        ranks[name] = torch.empty(lines.shape, dtype=torch.int32).scatter_(1, order, steps)
    return ranks


def drop_ranked(scores: Scores, ranks: Mapping[str, torch.Tensor], share: float, ties: Scores | None = None) -> Dropped:
    """Drop, in each target, round(share·size) weights: the floor in every line, the rest where it costs least.

    Each line drops its floor(share·length) lowest; the weights still missing are one more in the lines
    whose next score is lowest (equal scores: by the tie-breaker, then the earlier line).
    """
    dropped: Dropped = {}
    for name, rank_in_line in ranks.items():
        lines, length = rank_in_line.shape
        each = math.floor(share * length + 1e-9)
        mask = rank_in_line < each
        missing = count(share, lines * length) - each * lines
        if missing > 0:
            following = rank_in_line == each  # one a line
            score = scores[name].reshape(lines, length)[following]
            tie = ties[name].reshape(lines, length)[following] if ties is not None else None
            cheapest = _order(score[None], None if tie is None else tie[None])[0, :missing]
            mask[following.nonzero()[cheapest].unbind(1)] = True
        dropped[name] = mask.reshape(scores[name].shape)
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

    Equal gains are taken in the order of targets and positions.
    """
    return rank(gains, candidates).drop(number)


class Ranking:
    """Candidates with a positive gain, the best first.

    shapes: of the targets, (out, in), laid end to end. positions, values: of the candidates over all of them, (n,)
    int64 and float. A search drops a small part of tens of millions, so only the head of the order is sorted, and a
    longer one when a larger number is asked for.
    """

    def __init__(self, shapes: dict[str, tuple[int, int]], positions: torch.Tensor, values: torch.Tensor) -> None:
        self.shapes, self._positions, self._values = shapes, positions, values
        self._head = positions[:0]

    def __len__(self) -> int:
        return len(self._positions)

    def drop(self, number: int) -> Dropped:
        """The first `number` of them, as masks."""
        number = min(max(number, 0), len(self))
        if number > len(self._head):
            self._head = self._first(max(2 * number, _HEAD))
        sizes = [rows * columns for rows, columns in self.shapes.values()]
        flat = torch.zeros(sum(sizes), dtype=torch.bool)
        flat[self._head[:number]] = True
        parts = torch.split(flat, sizes)
        return {n: part.reshape(shape) for (n, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def _first(self, number: int) -> torch.Tensor:
        """At least the first `number` positions, sorted; all that tie with the last of them are among them."""
        if number >= len(self):
            return self._positions[self._values.argsort(descending=True, stable=True)]
        last = self._values.kthvalue(len(self) - number + 1).values
        among = (self._values >= last).nonzero().flatten()
        return self._positions[among[self._values[among].argsort(descending=True, stable=True)]]


_HEAD = 1 << 21  # sorted at once: ten times what a budget of 0.05 nats has allowed on the default model


def rank(gains: Scores, candidates: Dropped) -> Ranking:
    """The order in which `drop_highest` drops."""
    shapes: dict[str, tuple[int, int]] = {}
    positions: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    begin = 0
    for name, gain in gains.items():
        at = (candidates[name] & (gain > 0)).flatten().nonzero().flatten()
        positions.append(at + begin)
        values.append(gain.flatten()[at])
        shapes[name] = (gain.shape[0], gain.shape[1])
        begin += gain.numel()
    return Ranking(shapes, torch.cat(positions), torch.cat(values))


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
