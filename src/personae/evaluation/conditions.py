"""One condition of the table: what was read under it, and the figures that follow.

A condition has two sides: what is worn for p⁺ and what is worn for p⁻ (masks, or system prompts). Where there is
one side only (base, magnitude, generic), both figures come from the same reading. Names: docs/methods.md section 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from personae.evaluation.bootstrap import Estimate, holm, interval, margin_over_best_control
from personae.evaluation.scoring import Floats, ItemScores, Kind, mean_outcomes

RowKind = Literal["base", "prompt", "rival", "method", "control"]
CLAIMED = ("acc", "acc_opposite", "tied_separation")

Sides = tuple[ItemScores, ItemScores]  # under p⁺'s side, under p⁻'s side
PerItem = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Loss:
    """Rise of negative log-likelihood over base, nats a token, under p⁺'s mask and under p⁻'s.

    errors: the standard errors of the four over texts, in their order (`Capability.rises`).
    """

    plain: float
    plain_opposite: float
    chat: float
    chat_opposite: float
    errors: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    @property
    def worst(self) -> float:
        """`capability_loss` of the glossary: the largest over both masks and both texts; what is no number stays so."""
        return next((value for value in self.values if not math.isfinite(value)), max(self.values))

    @property
    def values(self) -> tuple[float, float, float, float]:
        """The four rises, in the order of `errors`."""
        return self.plain, self.plain_opposite, self.chat, self.chat_opposite

    @property
    def error(self) -> float:
        """Standard error of the largest of the four."""
        return self.errors[self.values.index(self.worst)]

    def exchanged(self) -> Loss:
        """The two masks in each other's place."""
        plain, plain_opposite, chat, chat_opposite = self.errors
        return Loss(
            self.plain_opposite, self.plain, self.chat_opposite, self.chat,
            (plain_opposite, plain, chat_opposite, chat),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of all items under both sides, item by item, so that others can test again.

    seed: of a random control, else None. log_p: summed log-probability of (positive, negative) answer under p⁺'s
    side; log_p_opposite: under p⁻'s. difference: length-normalised margin of each item; acc follows from it.
    """

    seed: int | None
    acc: float
    acc_opposite: float
    difference: tuple[float, ...]
    difference_opposite: tuple[float, ...]
    log_p: PerItem
    log_p_opposite: PerItem


@dataclass(frozen=True, slots=True)
class Claim:
    """Persona minus the best control in one figure; turned so that larger is better for the persona.

    figure: 'acc'; 'acc_opposite' (the control's minus the persona's); or 'tied_separation' (acc_tied −
    acc_tied_opposite). over: the best control on all items; inside each resample it is chosen again. p_holm: p
    after Holm over all claims of the table.
    """

    figure: str
    over: str
    value: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class Row:
    """A condition's figures; every `Estimate` carries its 95 % interval.

    acc, margin: under p⁺'s mask; …_opposite: under p⁻'s, so small is good. acc_sum, acc_byte: by summed and by
    per-byte log-probability. Tied figures are None where no item is tied. own_answers: change over base of the mean
    log p a token of p⁺'s answers under p⁺'s mask; own_answers_opposite: of p⁻'s answers under p⁻'s. sparsity: of
    both masks, and their mean. loss: None where it was not measured. seconds: of discovery. cost: 'none',
    'forward-only', 'one backward' or, of short steps, how many of how many pairs: passes over calibration pairs (prices
    and later rounds read some generic text backward beside them). extra_prompt_tokens: a request, mean.
    readings: one, or one a seed. peak_bytes: memory that discovery needed on top of the loaded model, at its peak.
    """

    name: str
    kind: RowKind
    acc: Estimate
    acc_opposite: Estimate
    acc_tied: Estimate | None
    acc_tied_opposite: Estimate | None
    tied_separation: Estimate | None
    margin: Estimate
    margin_opposite: Estimate
    acc_sum: Estimate
    acc_sum_opposite: Estimate
    acc_byte: Estimate
    acc_byte_opposite: Estimate
    own_answers: Estimate
    own_answers_opposite: Estimate
    sparsity: float
    sparsity_positive: float
    sparsity_negative: float
    loss: Loss | None
    seconds: float | None
    cost: str
    extra_prompt_tokens: float
    note: str
    readings: tuple[Reading, ...]
    claims: tuple[Claim, ...] = ()
    peak_bytes: int | None = None

    @property
    def capability_loss(self) -> float | None:
        """The largest loss over both masks and both texts, or None where it was not measured."""
        return None if self.loss is None else self.loss.worst

    @property
    def minus_best_control(self) -> Claim | None:
        """The headline: persona minus the best control in `acc`."""
        return next((claim for claim in self.claims if claim.figure == "acc"), None)


@dataclass(frozen=True, eq=False)
class Condition:
    """What was read, before figures are made of it. seeds: those of the readings, () for a single one."""

    name: str
    kind: RowKind
    readings: Sequence[Sides]
    sparsities: tuple[float, float] = (0.0, 0.0)
    loss: Loss | None = None
    seconds: float | None = None
    cost: str = "none"
    extra_prompt_tokens: float = 0.0
    note: str = ""
    seeds: tuple[int, ...] = ()
    peak_bytes: int | None = None

    def outcomes(self, side: int, kind: Kind = "mean") -> Floats:
        """Outcomes under one side, averaged over seeds, (n,)."""
        return mean_outcomes([sides[side] for sides in self.readings], kind)

    def claimed(self, figure: str) -> Floats:
        """The per-item values of a claim's figure, turned so that larger is better for the persona."""
        if figure == "acc":
            return self.outcomes(0)
        if figure == "acc_opposite":
            return 1 - self.outcomes(1)
        tied = self.readings[0][0].tied
        return (self.outcomes(0) - self.outcomes(1))[tied]


def make_row(condition: Condition, base: ItemScores, *, resamples: int, seed: int) -> Row:
    """The figures of a condition; `base` is what the bare model says of the same items."""
    tied = base.tied

    def estimate(values: Floats) -> Estimate:
        return interval(values, resamples=resamples, seed=seed)

    def tied_estimate(values: Floats) -> Estimate | None:
        return estimate(values[tied]) if tied.any() else None

    def margin(side: int) -> Estimate:
        return estimate(np.mean([sides[side].difference() for sides in condition.readings], axis=0))

    def own(side: int) -> Estimate:
        worn = np.mean([sides[side].normalised()[:, side] for sides in condition.readings], axis=0)
        return estimate(worn - base.normalised()[:, side])

    first, second = condition.outcomes(0), condition.outcomes(1)
    seeds: Sequence[int | None] = condition.seeds or (None,)
    return Row(
        name=condition.name,
        kind=condition.kind,
        acc=estimate(first),
        acc_opposite=estimate(second),
        acc_tied=tied_estimate(first),
        acc_tied_opposite=tied_estimate(second),
        tied_separation=tied_estimate(first - second),
        margin=margin(0),
        margin_opposite=margin(1),
        acc_sum=estimate(condition.outcomes(0, "sum")),
        acc_sum_opposite=estimate(condition.outcomes(1, "sum")),
        acc_byte=estimate(condition.outcomes(0, "byte")),
        acc_byte_opposite=estimate(condition.outcomes(1, "byte")),
        own_answers=own(0),
        own_answers_opposite=own(1),
        sparsity=sum(condition.sparsities) / 2,
        sparsity_positive=condition.sparsities[0],
        sparsity_negative=condition.sparsities[1],
        loss=condition.loss,
        seconds=condition.seconds,
        cost=condition.cost,
        extra_prompt_tokens=condition.extra_prompt_tokens,
        note=condition.note,
        peak_bytes=condition.peak_bytes,
        readings=tuple(_reading(s, sides) for s, sides in zip(seeds, condition.readings, strict=True)),
    )


def _reading(seed: int | None, sides: Sides) -> Reading:
    first, second = sides
    return Reading(
        seed=seed,
        acc=first.acc(),
        acc_opposite=second.acc(),
        difference=tuple(first.difference().tolist()),
        difference_opposite=tuple(second.difference().tolist()),
        log_p=_pairs(first),
        log_p_opposite=_pairs(second),
    )


def _pairs(scores: ItemScores) -> PerItem:
    return tuple((float(a), float(b)) for a, b in scores.log_p)


def with_claims(rows: Sequence[Row], conditions: Sequence[Condition], *, resamples: int, seed: int) -> tuple[Row, ...]:
    """The same rows, every method's with its claims over the best control; Holm over all claims.

    The bare model counts as a control: a mask that is no better than no mask claims nothing. Without any control
    (only the base row) nothing is claimed.
    """
    controls = [c for c in conditions if c.kind in ("control", "base")]
    if not any(c.kind == "control" for c in controls):
        return tuple(rows)
    drafts: list[tuple[int, Claim]] = []
    for index, condition in enumerate(conditions):
        if condition.kind != "method":
            continue
        for figure in CLAIMED:
            own = condition.claimed(figure)
            if not len(own):  # no tied items
                continue
            rivals = np.column_stack([c.claimed(figure) for c in controls])
            found = margin_over_best_control(own, rivals, resamples=resamples, seed=seed)
            best = controls[int(rivals.mean(axis=0).argmax())].name
            drafts.append((index, Claim(figure, best, found.value, found.low, found.high, found.p, found.p)))
    adjusted = holm([claim.p for _, claim in drafts])
    claims: dict[int, list[Claim]] = {}
    for (index, claim), p in zip(drafts, adjusted, strict=True):
        claims.setdefault(index, []).append(replace(claim, p_holm=p))
    return tuple(replace(row, claims=tuple(claims.get(i, ()))) for i, row in enumerate(rows))
