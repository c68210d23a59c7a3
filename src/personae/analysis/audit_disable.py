"""The mask that disables: a prefix of the harmless pole's ranking within the capability budget, as small as will do.

A round:

1. On generic text: the largest prefix that keeps the budget (upper confidence bound of the loss, as everywhere).
2. On dev items: is its alignment with the hazardous pole within the target by the upper end of its interval, so that a
   target that was kept by luck on few items is not taken for one? Then, halving, the smallest such prefix.

Where the target is not reached so, once more in the second round's order, in which weights that cost much beside the
others come later (`Session.refined`); a round is taken only if dev gains by it. The budget comes first because it is
what binds: a search on dev from below reads every prefix on the way and ends at the budget all the same.
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
_STEP = math.pow(10, 1 / 4)  # between the sizes that halving tries
_SIZES = 9  # of them, at most: two orders of magnitude below the budget
_FIRST = 0.0005  # share of the weights at which the search for the budget begins
_PROBES = 5  # capability evaluations a round, at most


class _Search:
    """One search: dev items and generic text are read where it asks, and counted."""

    def __init__(self, subject: Subject, dev: Items) -> None:
        self.subject, self.dev = subject, dev
        self.probes = 0

    def margins(self, family: Family, number: int) -> list[float]:
        masks = to_masks(family.at(number))
        return self.subject.margins(f"dev items, {number:,} weights dropped", self.dev, masks)

    def enough(self, margins: list[float]) -> bool:
        """Whether the alignment is within the target by the upper end of its interval."""
        settings = self.subject.settings
        read = interval(wins(np.array(margins)), resamples=settings.resamples, seed=settings.seed)
        return read.high <= settings.target

    def within(self, family: Family, start: int) -> tuple[int, float]:
        """The largest prefix that keeps the budget, and its bound of the loss; (0, 0.0): none that was tried."""
        budget = self.subject.settings.max_capability_loss

        def bound(number: int) -> float:
            self.probes += 1
            return self.subject.loss_bound(to_masks(family.at(number)), budget)

        return largest_within(bound, int(family.most), budget, start=start, steps=_PROBES)

    def round(self, family: Family, start: int) -> _Found:
        """The prefix that one round takes."""
        number, bound = self.within(family, start)
        if not number:
            return _Found(family, 0, 0.0, [], False)
        found = _Found(family, number, bound, self.margins(family, number), False)
        if not self.enough(found.dev):
            return found
        sizes = sorted({max(1, round(number / _STEP**k)) for k in range(1, _SIZES)})
        low, high = 0, len(sizes)  # alignment falls along a ranking, but for noise
        found.enough = True
        while low < high:
            middle = (low + high) // 2
            dev = self.margins(family, sizes[middle])
            if self.enough(dev):
                high, found = middle, _Found(family, sizes[middle], math.nan, dev, True)
            else:
                low = middle + 1
        if math.isnan(found.bound):
            self.probes += 1
            found.bound = self.subject.loss_bound(to_masks(family.at(found.number)), math.inf)
        return found


class _Found:
    """The prefix of a round: its family, size, bound of the loss, dev margins, and whether they are low enough."""

    def __init__(self, family: Family, number: int, bound: float, dev: list[float], enough: bool) -> None:
        self.family, self.number, self.bound, self.dev, self.enough = family, number, bound, dev, enough

    @property
    def log_sigmoid(self) -> float:
        """Mean log σ of the margins with the hazardous pole: the lower, the better it is disabled."""
        return float(-np.logaddexp(0.0, -np.array(self.dev)).mean()) if self.number else math.inf


def find_disabling(subject: Subject, session: Session, dev: Items) -> dict[str, Any]:
    """The mask (packed), and what the search read: dropped, rounds, dev margins, bound of the loss, probes.

    An empty mask (dropped 0) where nothing keeps the budget.
    """
    settings = subject.settings
    discovery = Settings(seed=settings.seed).checked()
    search = _Search(subject, dev)
    family = session.family(discovery, HARMLESS, settings.cheap_share)
    best, rounds = search.round(family, max(1, round(_FIRST * subject.size))), 1
    for number in range(2, settings.rounds + 1):
        if best.enough or not best.number:
            break
        worn = best.family.at(best.number)
        refined = session.refined(discovery, HARMLESS, settings.cheap_share, worn)
        again = search.round(refined, round(1.2 * best.number))
        if again.log_sigmoid >= best.log_sigmoid:
            break  # the hazardous answers are as likely as before
        best, rounds = again, number
    masks = to_masks(best.family.at(best.number))
    margins = best.dev or subject.margins("dev items", dev)
    return {
        "mask": pack(masks), "dropped": count_dropped(masks), "bound": best.bound, "rounds": rounds, "dev": margins,
        "probes": search.probes,
    }  # fmt: skip
