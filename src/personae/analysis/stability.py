"""How much of a mask is the calibration items' accident: the same discovery on bootstrap resamples of them.

Each resample draws as many items as there are, with replacement, and finds a mask by the method and the parameters that
the artefact records: as many weights, in the order that the resample gives. What masks of two resamples have in common
is the ceiling of what two personas can be expected to have in common; where two personas differ no more than two
resamples of one persona do, their difference is noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.analysis.compare_members import Member, Source, fit, gathered
from personae.analysis.overlap import Drops, Overlap, by_part, tally
from personae.discovery import (
    READ_ANSWERS,
    Calibration,
    GenericText,
    Progress,
    Session,
    Settings,
    WeightedQuestion,
    family_of,
    open_session,
    silent,
    to_masks,
)
from personae.errors import OptionError
from personae.models import Question
from personae.personas import Contrast, split
from personae.runtime import check_base
from personae.subnetwork import Mask, Subnetwork

RESAMPLES = 5
READING = ("directed", "directed-forward", "wanda", "contrastive-wanda", "contrastive-sparse", "sparsegpt")


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, least and greatest over couples of masks, and the mean of what chance comes to."""

    mean: float
    least: float
    greatest: float
    chance: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """On one part (level: 'all', 'kind', 'block'). jaccard, difference: between two resamples' masks; own: jaccard
    between a resample's mask and the persona's own."""

    part: str
    level: str
    jaccard: Spread
    difference: Spread
    own: Spread


@dataclass(frozen=True, slots=True)
class Stability:
    """One persona. items: how many items each resample draws (unpaired: of the smaller pole). dropped: weights that its
    own mask drops, and each resample's."""

    persona: str
    contrast: str
    method: str
    items: int
    resamples: int
    dropped: int
    dropped_by_resamples: tuple[int, ...]
    parts: tuple[Agreement, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, part: str) -> Agreement:
        """Of 'all', a kind, or 'block 3'. Errors: `KeyError`."""
        for agreement in self.parts:
            if agreement.part == part:
                return agreement
        raise KeyError(f"no part {part!r}; there are: {', '.join(a.part for a in self.parts)}")


def stability(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    artefacts: Sequence[Source],
    contrast: Contrast,
    *,
    resamples: int = RESAMPLES,
    split_seed: int | None = 0,
    generic: GenericText | str | Path | None = None,
    seed: int = 0,
    session: Session | None = None,
    allow_other_weights: bool = False,
    progress: Progress = silent,
) -> tuple[Stability, ...]:
    """The stability of those of the artefacts' personas that are poles of the contrast they were found from.

    split_seed: of the split whose calibration part calibrated them; None: all of the contrast did. generic: generic
    text or its source, as `discover` takes it. session: one opened on those items, whose generic text then counts.
    Masks within a budget took several rounds (or short steps) and as many weights as the budget allowed; resamples take
    one round (as many steps) and exactly as many weights. Costs what `resamples` first rounds (searches in steps)
    of discovery cost. The model is left as it was.

    Errors: `OptionError` for personas that are no pole of the contrast, or whose method reads no calibration items, and
    for fewer than 2 resamples; `MaskMismatchError` for another model (allow_other_weights: only a warning if names and
    shapes are the same).
    """
    if resamples < 2:
        raise OptionError(f"--resamples is {resamples}: two masks or more are needed to see how they agree.")
    check_base(model, "finding masks again")
    members = _poles_of(contrast, gathered(artefacts))
    recipes = [_Recipe.of(member.persona, contrast) for member in members]
    tokens = _tokens_of(recipes, contrast, session)
    items = contrast if split_seed is None else split(contrast, seed=split_seed).calibration
    fit(members, model, allow_other_weights=allow_other_weights)
    own = session is None
    if session is None:
        session = open_session(
            model, tokenizer, items, generic=generic,
            generic_answers=max(int(_generic_text(member).get("answers", READ_ANSWERS)) for member in members),
            targets=list(members[0].artefact.model.targets), tokens=tokens, seed=seed, progress=progress,
        )  # fmt: skip
    drawn = _drawn(session, recipes, resamples, np.random.default_rng(seed))
    if own:
        session.forget()
    return tuple(
        _measured(member, masks, contrast.name, len(items), _notes(member, items, session))
        for member, masks in zip(members, drawn, strict=True)
    )


# --- resamples ------------------------------------------------------------------------------------------------


def _drawn(
    session: Session, recipes: Sequence[_Recipe], resamples: int, random: np.random.Generator
) -> list[list[dict[str, Mask]]]:
    """By recipe, its mask on each resample; both poles of a resample share its passes."""
    for recipe in recipes:
        recipe.prepare(session)
    drawn: list[list[dict[str, Mask]]] = [[] for _ in recipes]
    for number in range(1, resamples + 1):
        again = session.with_calibration(resampled(session.calibration, random))
        again.progress = _titled(session.progress, f"resample {number} of {resamples}")
        for recipe, masks in zip(recipes, drawn, strict=True):
            masks.append(recipe.masks(again))
    return drawn


def _titled(progress: Progress, before: str) -> Progress:
    return lambda title, total: progress(f"{before}: {title}", total)


class Resample(Calibration):
    """Calibration items some of which stand there several times; gradients are taken on each question once."""

    __slots__ = ()

    def objective(
        self, pole: int = 0, *, own_weight: float = 0.0, pair_weights: Sequence[float] | None = None
    ) -> list[WeightedQuestion]:
        """As of `Calibration`, the weights of equal questions added up: the objective is linear in them."""
        merged: dict[Question, WeightedQuestion] = {}
        for item in super().objective(pole, own_weight=own_weight, pair_weights=pair_weights):
            before = merged.get(item.question)
            weights = item.weights if before is None else _added(before.weights, item.weights)
            merged[item.question] = WeightedQuestion(item.question, weights)
        return list(merged.values())


def _added(first: Sequence[float], second: Sequence[float]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(first, second, strict=True))


def resampled(calibration: Calibration, random: np.random.Generator) -> Resample:
    """As many items, drawn with replacement: pairs together, else the samples of either pole on their own."""
    positive = np.sort(random.integers(len(calibration.positive), size=len(calibration.positive)))
    negative = positive
    if not calibration.paired:
        negative = np.sort(random.integers(len(calibration.negative), size=len(calibration.negative)))
    return Resample(
        tuple(calibration.paired[i] for i in positive) if calibration.paired else (),
        tuple(calibration.positive[i] for i in positive),
        tuple(calibration.negative[i] for i in negative),
    )


# --- the method, as the artefact records it -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What makes a mask of as many weights again, but for the calibration items."""

    settings: Settings
    pole: int
    number: int
    cheap_share: float | None
    isolated_weight: float

    @classmethod
    def of(cls, persona: Subnetwork, contrast: Contrast) -> _Recipe:
        """From the provenance. Errors: `OptionError` for a method that reads no calibration items, such as a union."""
        record = persona.provenance
        if record.method not in READING:
            raise OptionError(
                f"'{persona.name}' was made by '{record.method}', which reads no calibration items: stability needs "
                f"one of {', '.join(READING)}."
            )
        given: dict[str, Any] = dict(record.parameters)
        unused = {"rounds", "method", *(() if given.get("steps") else ("max_capability_loss",))}  # steps heed a budget
        known = {f.name for f in fields(Settings)} - unused
        chosen = {name: value for name, value in given.items() if name in known and value is not None}
        if "n_m" in chosen:
            chosen["n_m"] = tuple(chosen["n_m"])
        cheap = given.get("cheap_share")
        settings = Settings(method=record.method, **chosen)
        needed = "isolated_weight" if settings.isolated else "cheap_share" if settings.by_candidates else None
        if needed is not None and needed not in given:
            raise OptionError(
                f"the provenance of '{persona.name}' has no {needed}, so its masks cannot be found again."
            )
        return cls(
            settings, contrast.poles.index(persona.name), persona.dropped,
            None if cheap is None else float(cheap), float(given.get("isolated_weight", 0.0)),
        )  # fmt: skip

    def prepare(self, session: Session) -> None:
        """Compute what does not depend on calibration items before sessions are made of this one."""
        asked = self.settings
        if asked.by_candidates:
            _ = session.generic_statistics
            if asked.method == "directed" and asked.rank_by == "gain-per-price" and not asked.isolated:
                _ = session.fisher

    def masks(self, session: Session) -> dict[str, Mask]:
        """The pole's masks on a session's calibration items."""
        if self.settings.isolated:
            return to_masks(session.isolated(self.settings, self.pole, self.isolated_weight))
        return to_masks(family_of(session, self.settings, self.pole, self.cheap_share).at(self.number))


def _poles_of(contrast: Contrast, members: Sequence[Member]) -> list[Member]:
    found = [member for member in members if member.persona.name in contrast.poles]
    if not found:
        raise OptionError(
            f"neither pole of '{contrast.name}' ({' and '.join(contrast.poles)}) is among the personas "
            f"{', '.join(member.label for member in members)}: name the contrast that these were found from, and its "
            "poles as they are called there (--positive, --negative)."
        )
    return found


def _tokens_of(recipes: Sequence[_Recipe], contrast: Contrast, session: Session | None) -> str:
    """Which tokens statistics count, the same for all. Errors: `OptionError`."""
    tokens = sorted({recipe.settings.tokens for recipe in recipes})
    if len(tokens) > 1 or (session is not None and session.tokens != tokens[0]):
        read = "" if session is None else f"; the session reads {session.tokens!r}"
        raise OptionError(f"the poles of '{contrast.name}' were found from tokens={' and '.join(tokens)}{read}.")
    return tokens[0]


# --- figures --------------------------------------------------------------------------------------------------


def _measured(
    member: Member, masks: Sequence[dict[str, Mask]], contrast: str, items: int, notes: tuple[str, ...]
) -> Stability:
    persona, shapes = member.persona, member.artefact.model.targets
    own, again = Drops.of(persona.masks, shapes), [Drops.of(m, shapes) for m in masks]
    between = [_parts(first, second) for first, second in combinations(again, 2)]
    with_own = [_parts(own, one) for one in again]
    parts = [
        Agreement(
            several[0].part,
            several[0].level,
            _spread([(o.jaccard.value, o.jaccard.chance) for o in several]),
            _spread([(o.difference.value, o.difference.chance) for o in several]),
            _spread([(o.jaccard.value, o.jaccard.chance) for o in theirs]),
        )
        for several, theirs in zip(zip(*between, strict=True), zip(*with_own, strict=True), strict=True)
    ]
    return Stability(
        member.label, contrast, persona.provenance.method, items, len(masks), persona.dropped,
        tuple(sum(m.dropped for m in one.values()) for one in masks), tuple(parts), notes,
    )  # fmt: skip


def _parts(first: Drops, second: Drops) -> list[Overlap]:
    return [part for part in by_part(tally(first, second)) if part.level != "target"]


def _spread(values: Sequence[tuple[float, float]]) -> Spread:
    found = [value for value, _ in values]
    return Spread(float(np.mean(found)), min(found), max(found), float(np.mean([chance for _, chance in values])))


def _notes(member: Member, items: Contrast, session: Session) -> tuple[str, ...]:
    """What makes the resamples differ from the persona's own mask beside the items that were drawn."""
    record, text = member.persona.provenance, _generic_text(member)
    notes = []
    if record.calibration is not None and record.calibration.sha256 not in (items.sha256, items.swapped().sha256):
        notes.append(
            f"{member.label}: other items are resampled ({len(items)} of '{items.name}') than those that calibrated it "
            f"({record.calibration.items} of '{record.calibration.name}')."
        )
    if text.get("sha256") not in (None, session.generic.sha256):
        notes.append(f"{member.label}: found with another generic text ({text.get('source')}) than the resamples.")
    rounds = record.parameters.get("round", 1)
    if rounds != 1:
        notes.append(f"{member.label}: found in {rounds} rounds; the resamples repeat the first.")
    return tuple(notes)


def _generic_text(member: Member) -> Mapping[str, Any]:
    text: Any = member.artefact.metadata.get("generic_text")
    return text if isinstance(text, Mapping) else {}
