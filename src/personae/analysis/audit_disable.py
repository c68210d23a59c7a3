"""The mask that disables: a prefix of the harmless pole's ranking, as small as will do, within the capability budget.

1. On dev items, halving: the smallest prefix whose alignment with the hazardous pole is within the target by the upper
   end of its interval, so that a target that was kept by luck on few items is not taken for one.
2. On generic text: does that prefix keep the budget (upper confidence bound of the loss, as everywhere)? If not, or if
   there is no such prefix, the largest that does.
3. Where the target is not reached so, once more in the second round's order, in which weights that cost much beside the
   others come later (`Session.refined`); a round is taken only if dev gains by it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from personae.analysis.audit_model import Subject, count_dropped, pack
from personae.discovery import Family, Session, Settings, largest_within, to_masks
from personae.evaluation import interval
from personae.evaluation.scoring import Items, wins

HARMLESS = 1  # the negative pole
_TRIED = tuple(1e-4 * math.pow(10, step / 4) for step in range(13))  # shares of the prefixes that halving tries
_FIRST = 0.002  # share at which the search for the budget begins where no prefix reaches the target
_PROBES = 5  # capability evaluations a round, at most


class _Search:
    """One search: readings of dev and of generic text are taken once a prefix."""

    def __init__(self, subject: Subject, dev: Items) -> None:
        self.subject, self.dev = subject, dev
        self.probes = 0

    def margins(self, family: Family, number: int) -> list[float]:
        masks = to_masks(family.at(number))
        return self.subject.margins(f"dev items, {number:,} weights dropped", self.dev, masks)

    def upper(self, margins: list[float]) -> float:
        """Upper end of the alignment's interval."""
        settings = self.subject.settings
        return interval(wins(np.array(margins)), resamples=settings.resamples, seed=settings.seed).high

    def bound(self, family: Family, number: int) -> float:
        self.probes += 1
        worn = self.subject.searched(to_masks(family.at(number)))
        return worn.loss_bound(self.subject.base_searched)

    def wanted(self, family: Family) -> tuple[int, bool]:
        """The smallest of the tried prefixes that is within the target by its upper end, and True; if none is, the
        largest that is tried, and False."""
        numbers = sorted({min(max(1, round(share * family.size)), int(family.most)) for share in _TRIED})
        low, high = 0, len(numbers)  # alignment falls along a ranking, but for noise
        while low < high:
            middle = (low + high) // 2
            if self.upper(self.margins(family, numbers[middle])) <= self.subject.settings.target:
                high = middle
            else:
                low = middle + 1
        return (numbers[low], True) if low < len(numbers) else (numbers[-1], False)

    def within(self, family: Family, most: int, start: int | None) -> tuple[int, float]:
        """The largest prefix of at most `most` weights that keeps the budget, and its bound of the loss.

        start: where the search begins; None: with `most` itself.
        """
        budget = self.subject.settings.max_capability_loss
        known: dict[int, float] = {}

        def bound(number: int) -> float:
            if number not in known:
                known[number] = self.bound(family, number)
            return known[number]

        if start is None and bound(most) <= budget:
            return most, known[most]
        return largest_within(bound, most, budget, start=start or max(1, most // 2), steps=_PROBES - len(known))


def find_disabling(subject: Subject, session: Session, dev: Items) -> dict[str, Any]:
    """The mask (packed), and what the search read: dropped, rounds, dev margins, bound of the loss, probes.

    An empty mask (dropped 0) where nothing keeps the budget.
    """
    settings = subject.settings
    discovery = Settings(seed=settings.seed).checked()
    search = _Search(subject, dev)
    family = session.family(discovery, HARMLESS, settings.cheap_share)
    if not family.most:
        return _found(search, family, 0, 0.0, 1, subject.margins("dev items", dev))
    wanted, enough = search.wanted(family)
    number, bound = search.within(family, wanted, None if enough else max(1, round(_FIRST * family.size)))
    best = _found(search, family, number, bound, 1, search.margins(family, number))
    for round_ in range(2, settings.rounds + 1):
        if (enough and number == wanted) or not number:
            break
        worn = family.at(number)
        family = session.refined(discovery, HARMLESS, settings.cheap_share, worn)
        wanted, enough = search.wanted(family)
        number, bound = search.within(family, wanted, min(round(1.5 * number), wanted))
        again = _found(search, family, number, bound, round_, search.margins(family, number))
        if _log_sigmoid(again["dev"]) >= _log_sigmoid(best["dev"]):
            break  # the hazardous answers are as likely as before
        best = again
    return {**best, "probes": search.probes}


def _found(search: _Search, family: Family, number: int, bound: float, round_: int, dev: list[float]) -> dict[str, Any]:
    masks = to_masks(family.at(number))
    return {
        "mask": pack(masks), "dropped": count_dropped(masks), "bound": bound, "rounds": round_, "dev": dev,
        "probes": search.probes,
    }  # fmt: skip


def _log_sigmoid(margins: list[float]) -> float:
    """Mean log σ of the margins with the hazardous pole: the lower, the better it is disabled."""
    return float(-np.logaddexp(0.0, -np.array(margins)).mean())
