"""Masks of one dimension tuned on dev: in which third of the blocks, and with how many weights, its poles part best.

Every point of the grid, a range of blocks × a share of the weights, takes the best candidates of its blocks in the
order of the gains that are there already, so a point costs forwards on dev and no backward pass. s(a) is read under
both poles' masks; the point with the largest dev AUC is taken (equal ones: the smaller share, then the more blocks).
The masks of exchanged labels choose from the same grid by the same rule on the same answers, and like the persona's
they get one round, within a budget too; random ones get the persona's size and range. Dev answers neither calibrate
nor test.

Cost of a dimension, as tokens of a forward pass: c·(8·points·couples + 4·test), c about 82 with the suite's defaults;
the second term, the test answers under untuned masks, is read already where the suite ran untuned before. By
arithmetic, on the default model (0.27 GFLOP a token) with the default grid: 51,000 + 8,500 GFLOP, 17 minutes of a core
of 60 GFLOP/s, and about 2 minutes for sorting weights 16 times and packing 48 masks (20 MB of parts); 40 minutes on two
cores for four dimensions. A budget adds about 2,500 GFLOP for each point that is tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from personae.discovery import to_masks
from personae.discovery.selection import check_share, count
from personae.errors import DataError, OptionError
from personae.evaluation.suites.mbti_blocks import RANGES, Span
from personae.evaluation.suites.mbti_data import Answer, Dimension, flat
from personae.evaluation.suites.mbti_masks import Finder, Found, Masks, confined, packed, unpacked
from personae.evaluation.suites.mbti_readings import Floats, Reader, Sides, mean_log_p, positive
from personae.evaluation.suites.mbti_statistics import auc
from personae.runtime import wearing

LABELS = ("true", "shuffled")


@dataclass(frozen=True, slots=True)
class Tuning:
    """The grid, and what chooses. Errors: `OptionError` for options out of range.

    ranges: of RANGES. shares: of all target weights, in a third too, so that ranges are compared at equal size.
    couples: dev answers a pole. max_capability_loss: nats a token; the best point whose 95 % upper bound of the loss,
    on the generic text that searches read, is within it for both masks; where there is none, the point with the lowest
    bound.
    """

    ranges: tuple[str, ...] = tuple(RANGES)
    shares: tuple[float, ...] = (0.001, 0.002, 0.004)
    couples: int = 24
    max_capability_loss: float | None = None

    def __post_init__(self) -> None:
        if not self.ranges or set(self.ranges) - set(RANGES) or len(set(self.ranges)) < len(self.ranges):
            raise OptionError(f"ranges are {', '.join(self.ranges) or 'none'}: choose from {', '.join(RANGES)}, once.")
        if not self.shares or len(set(self.shares)) < len(self.shares):
            raise OptionError(f"the grid's shares are {self.shares}: give at least one, each once.")
        for share in self.shares:
            check_share(share, "a share of the grid")
        if self.couples < 1:
            raise OptionError(f"couples is {self.couples}: at least one dev answer a pole must choose.")
        if self.max_capability_loss is not None and not 0 < self.max_capability_loss < float("inf"):
            raise OptionError(f"the grid's budget is {self.max_capability_loss}: it must be a positive number.")


@dataclass(frozen=True, eq=False)
class Point:
    """A point of the grid as dev reads it.

    labels: of LABELS. where: of RANGES. scores: s(a) of the dev answers, (n,). bound: upper bound of the capability
    loss, the larger of both masks', nats a token; None where no budget asked for it.
    """

    labels: str
    where: str
    blocks: range
    share: float
    scores: Floats
    auc: float
    bound: float | None = None


@dataclass(frozen=True, eq=False)
class Tuned:
    """found: the masks of the chosen points. untuned: mean log p of the test answers under the masks as found before.
    dev: the answers that chose. grid: all points, the persona's first. chosen: the persona's and the control's."""

    found: Found
    untuned: Sides
    dev: tuple[Answer, ...]
    grid: tuple[Point, ...]
    chosen: tuple[Point, Point]


def by_preference(points: Sequence[Point]) -> list[Point]:
    """The largest dev AUC first; equal ones: the smaller share, then the more blocks, then the order given."""
    return sorted(points, key=lambda p: (-p.auc, p.share, -len(p.blocks)))


@dataclass
class Tuner:
    """Tunes the masks of one dimension after the other. Every reading is a resumable part.

    reader: for the test answers under the untuned masks. spans: the grid's ranges on the model.
    """

    finder: Finder
    reader: Reader
    tuning: Tuning
    spans: Mapping[str, Span]

    def tune(self, data: Dimension) -> Tuned:
        """The grid of one dimension, and the masks it chooses.

        Errors: `DataError` without dev answers; `OptionError` for a share that a range cannot give.
        """
        if not data.dev:
            raise DataError(f"{data.name}: masks are tuned on the dev part, which has no answers; give more rows.")
        before = self.finder.find(data)
        first, second = (
            self.reader.masked(f"mask {pole}", data, masks)
            for pole, masks in zip(data.poles, before.persona, strict=True)
        )
        grid = {"ranges": list(self.tuning.ranges), "shares": list(self.tuning.shares)}
        kept = self.finder.context.part(
            f"mbti {data.name} grid masks", {**self.finder.key, **grid}, lambda: self._masks(data)
        )
        self.finder.release()
        dev = flat(data.dev[: self.tuning.couples])
        own, control = (self._chosen(data, dev, labels, kept[labels]) for labels in LABELS)
        pair = self._pair(kept, own[0])
        return Tuned(
            found=Found(
                persona=pair,
                shuffled=self._pair(kept, control[0]),
                losses=self._losses(data, own[0], pair),
                dropped=(_number(pair[0]), _number(pair[1])),
                cheap=before.cheap,
                inside=self.spans[own[0].where].targets,
            ),
            untuned=(first, second),
            dev=tuple(dev),
            grid=(*own[1], *control[1]),
            chosen=(own[0], control[0]),
        )

    def _masks(self, data: Dimension) -> dict[str, Any]:
        """Both poles' masks of every point, packed, by labels, range and share."""
        settings = self.finder.finding.settings(self.finder.context.seed)
        cheap = settings.cheap_share
        made: dict[str, Any] = {}
        both = self.finder.both(data)
        for labels, session in zip(LABELS, both, strict=True):
            made[labels] = {}
            for where, span in self.spans.items():
                narrow = session.with_calibration(session.calibration)  # a copy, for gains of its own
                narrow.gains = confined(session.gains, span.targets)
                made[labels][where] = {str(share): [] for share in self.tuning.shares}
                for pole in (0, 1):
                    family = narrow.family(settings, pole, cheap)
                    for share in self.tuning.shares:
                        number = count(share, session.size)
                        if number > family.most:
                            raise OptionError(
                                f"{data.name}: a share of {share} asks for {number:,} weights, but only "
                                f"{family.most:,} candidates in the range '{where}' help a pole; leave it out."
                            )
                        made[labels][where][str(share)].append(packed(to_masks(family.at(number))))
        both[0].forget()
        return made

    def _pair(self, kept: dict[str, Any], point: Point) -> tuple[Masks, Masks]:
        targets = self.finder.context.targets
        first, second = (unpacked(m, targets) for m in kept[point.labels][point.where][str(point.share)])
        return first, second

    def _chosen(
        self, data: Dimension, dev: Sequence[Answer], labels: str, kept: dict[str, Any]
    ) -> tuple[Point, list[Point]]:
        """The point that dev chooses, and all points, with the bounds that a budget asked for."""
        points = [
            self._read(data, dev, labels, where, share, kept[where][str(share)])
            for where in self.tuning.ranges
            for share in self.tuning.shares
        ]
        budget = self.tuning.max_capability_loss
        if budget is None:
            return by_preference(points)[0], points
        bounds: dict[Point, float] = {}
        for point in by_preference(points):  # the best first: what would not be taken anyway is not read
            bounds[point] = self._bound(data, point, kept[point.where][str(point.share)])
            if bounds[point] <= budget:
                break
        chosen = min(bounds, key=bounds.__getitem__)  # a point within the budget has the least bound of those read
        told = {p: replace(p, bound=bound) for p, bound in bounds.items()}
        return told[chosen], [told.get(p, p) for p in points]

    def _read(
        self, data: Dimension, dev: Sequence[Answer], labels: str, where: str, share: float, kept: Sequence[Any]
    ) -> Point:
        """s(a) of the dev answers under the two masks of a point, and its AUC."""
        context, title = self.finder.context, f"{data.name} dev, {labels} labels, {where} blocks, {share:g}"

        def compute() -> list[list[float]]:
            sides = []
            for letter, masks in zip(data.poles, kept, strict=True):
                with wearing(context.targets, unpacked(masks, context.targets)):
                    sides.append(mean_log_p(context, dev, f"{title}, mask {letter}"))
            return sides

        settings = {**self._key(labels, where, share), "answers": len(dev)}
        first, second = (np.array(side) for side in context.part(f"mbti {data.name} dev", settings, compute))
        scores: Floats = first - second
        area = auc([scores], positive(dev), np.ones((1, len(dev))))
        return Point(labels, where, self.spans[where].blocks, share, scores, area.value)

    def _bound(self, data: Dimension, point: Point, kept: Sequence[Any]) -> float:
        """The larger upper bound of the two masks' capability loss; infinite where the model overflows."""
        context = self.finder.context

        def compute() -> list[float]:
            session = self.finder.session(data)
            return [self.finder.bound(unpacked(masks, context.targets), session) for masks in kept]

        settings = self._key(point.labels, point.where, point.share)
        bounds = context.part(f"mbti {data.name} dev bound", settings, compute)
        return max(float(b) if np.isfinite(b) else float("inf") for b in bounds)

    def _losses(self, data: Dimension, point: Point, pair: tuple[Masks, Masks]) -> tuple[float, float]:
        """Capability loss of the chosen masks, on text that no search read."""

        def compute() -> list[float]:
            session = self.finder.session(data)
            return [self.finder.loss(masks, session) for masks in pair]

        settings = self._key(point.labels, point.where, point.share)
        first, second = self.finder.context.part(f"mbti {data.name} tuned loss", settings, compute)
        return float(first), float(second)

    def _key(self, labels: str, where: str, share: float) -> dict[str, Any]:
        return {**self.finder.key, "labels": labels, "where": where, "share": share}


def _number(masks: Masks) -> int:
    return sum(m.dropped for m in masks.values())
