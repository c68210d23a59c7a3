"""Where a pair of masks comes from: an artefact that exists, or a method that is run now on the same data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from personae.discovery import (
    DEFAULT_BUDGET,
    METHODS,
    STEP_PAIRS,
    Calibration,
    Session,
    Settings,
    choose,
    metered,
    to_masks,
)
from personae.errors import DataError, UnknownPersonaError
from personae.models import Target
from personae.personas import Contrast, split
from personae.personas.split import normalised
from personae.runtime import PersonaModel
from personae.subnetwork import Artefact, CalibrationIdentity, Mask, Provenance

Masks = Mapping[str, Mask]

# What a method of this list may take over from an artefact's own parameters.
_SHARED = (
    "statistic",
    "phi",
    "tokens",
    "rank_by",
    "forward",
    "seed",
    "max_capability_loss",
)
_OF_DIRECTED = ("objective", "own_weight", "steps", "step_share")
_NO_STATISTICS = ("magnitude", "random")


@dataclass(frozen=True, eq=False)
class Poles:
    """Masks of both poles under one name. cheap_shares: c of each pole, None where the method has no candidates.

    budget: the capability loss it was allowed, None where shares were asked for instead. found_by: the settings
    that found the mask of either pole, where `directed` or `directed-forward` did.
    """

    name: str
    masks: tuple[Masks, Masks]
    cheap_shares: tuple[float | None, float | None]
    budget: float | None
    seconds: float | None
    cost: str
    note: str = ""
    peak_bytes: int | None = None
    found_by: tuple[Settings, Settings] | None = None


def dropped(masks: Masks) -> int:
    """Number of weights that masks drop."""
    return sum(mask.dropped for mask in masks.values())


def cost_of(method: str, steps: int | None = None) -> str:
    """'none', 'forward-only', 'one backward', of short steps '75 backwards of 8 pairs'; 'unknown' for what is no method
    of discovery (set algebra)."""
    if method == "directed":
        return f"{steps} backwards of {STEP_PAIRS} pairs" if steps else "one backward"
    if method in _NO_STATISTICS:
        return "none"
    return "forward-only" if method in METHODS else "unknown"


def cost_to_find(record: Provenance) -> str:
    """`cost_of` a mask as its file records it."""
    return cost_of(record.method, _whole(record.parameters, "steps"))


def from_artefact(artefact: Artefact, contrast: Contrast) -> Poles:
    """The artefact's two poles, in the order of the contrast."""
    parts = [artefact[pole] for pole in contrast.poles]
    records = [p.provenance for p in parts]
    seconds = [r.measured.get("seconds_of_discovery") for r in records]
    peaks = [r.measured.get("peak_bytes_of_discovery") for r in records]
    found_by = None
    if all(r.method in METHODS and Settings(method=r.method).by_candidates for r in records):
        first, second = (
            settings_for(r.method, artefact, contrast, pole=pole)
            for r, pole in zip(records, contrast.poles, strict=True)
        )
        found_by = first, second
    found_apart = len({s for s in seconds if s is not None}) > 1  # else both masks tell what one run took
    return Poles(
        name=records[0].method if records[0].method == records[1].method else "artefact",
        masks=(parts[0].masks, parts[1].masks),
        cheap_shares=(_number(records[0].parameters, "cheap_share"), _number(records[1].parameters, "cheap_share")),
        budget=_number(records[0].parameters, "max_capability_loss"),
        seconds=_total([float(s) for s in seconds if isinstance(s, (int, float))], found_apart),
        cost=" and ".join(dict.fromkeys(cost_to_find(r) for r in records)),
        note="from the artefact",
        peak_bytes=max((int(p) for p in peaks if isinstance(p, (int, float))), default=None),
        found_by=found_by,
    )


def discovered(session: Session, settings: Settings, dev: Calibration, name: str) -> Poles:
    """Both poles of a method, found now."""
    before = session.seconds_before
    with metered(session.model.device) as cost:
        first, second = choose(session, settings, dev)
    return Poles(
        name=name,
        masks=(to_masks(first.dropped), to_masks(second.dropped)),
        cheap_shares=(first.parameters.get("cheap_share"), second.parameters.get("cheap_share")),
        budget=settings.max_capability_loss,
        seconds=cost.seconds + session.seconds_before - before,
        cost=cost_of(settings.method, settings.steps),
        note="statistics that methods share are timed with the first that needs them",
        peak_bytes=cost.peak_bytes,
        found_by=(settings, settings) if settings.by_candidates else None,
    )


def _total(seconds: list[float], found_apart: bool) -> float | None:
    """Of runs that found one pole each the sum, of one run for both what either says; None where nothing is told."""
    return (sum(seconds) if found_apart else max(seconds)) if seconds else None


def settings_for(
    method: str,
    artefact: Artefact | None,
    contrast: Contrast,
    budget: float | None = None,
    *,
    pole: str | None = None,
) -> Settings:
    """A method's settings to stand beside an artefact: the same budget, or else the same share of weights.

    budget: nats a token, instead of the artefact's. Without either: the default budget. pole: the one whose record is
    read (None: the positive one); poles may have been found apart, by settings of their own.

    Errors: `OptionError` for an unknown method.
    """
    if artefact is None:
        return Settings(method=method, max_capability_loss=budget).checked()
    record = artefact[pole or contrast.positive].provenance
    taken_over = _SHARED + _OF_DIRECTED if method == "directed" else _SHARED
    shared: dict[str, Any] = {k: record.parameters[k] for k in taken_over if record.parameters.get(k) is not None}
    plain = Settings(method=method)
    candidates = plain.by_candidates
    if not candidates and record.parameters.get("selection"):
        shared["selection"] = record.parameters["selection"]
    if budget is not None:
        shared["max_capability_loss"] = budget
    settings = Settings(method=method, **shared)
    if settings.max_capability_loss is None and candidates and method == record.method:
        own = ("cheap_share", "drop_share", "sparsity", "isolated")
        fixed: dict[str, Any] = {k: record.parameters[k] for k in own if record.parameters.get(k) is not None}
        settings = replace(settings, **fixed)
    elif settings.max_capability_loss is None and not candidates:
        settings = replace(settings, sparsity=record.sparsity)
    # what shaped the artefact's own method and not this one, which would refuse it
    return replace(settings, **{name: getattr(plain, name) for name in settings.unread}).checked()


def budget_of(poles: Poles, measured: float | None) -> float:
    """The loss that controls 'at equal loss' may cost: the budget, else what the masks were measured to cost."""
    if poles.budget is not None:
        return poles.budget
    return measured if measured is not None and measured > 0 else DEFAULT_BUDGET


def check_artefact(
    artefact: Artefact,
    contrast: Contrast,
    model: PreTrainedModel,
    targets: Sequence[Target],
    *,
    allow_other_weights: bool,
) -> None:
    """The artefact holds the contrast's poles, and belongs to this model by the rules of `PersonaModel`.

    Errors: `UnknownPersonaError`, `MaskMismatchError`.
    """
    if not set(contrast.poles) <= set(artefact.names):
        raise UnknownPersonaError(
            f"the artefact holds {', '.join(artefact.names) or 'no persona'}, but the poles of '{contrast.name}' are "
            f"'{contrast.positive}' and '{contrast.negative}': evaluate it with the contrast it was made from, or name "
            "the poles as in the artefact."
        )
    actor = PersonaModel(model, targets=targets)
    actor.add_personas(artefact, names=contrast.poles, allow_other_weights=allow_other_weights)


def read_before(
    artefact: Artefact,
    contrast: Contrast,
    test: Contrast,
    split_seed: int | None,
    calibration: Contrast | None = None,
) -> Iterator[str]:
    """What is to be said of each pole about test items that its discovery may have read; poles may be found apart.

    calibration: what calibrates in place of a split's part: an artefact made from it has read nothing else.
    """
    for pole in contrast.poles:
        record = artefact[pole].provenance
        identity = record.calibration
        if identity is None and record.method not in _NO_STATISTICS and record.method != "generic":
            yield (
                f"what '{pole}' was calibrated on is not recorded ({record.method}): whether test items were among it "
                "is not known."
            )
        elif identity is not None and (calibration is None or identity.sha256 != calibration.sha256):
            told = overlap_warning(identity, contrast, test, split_seed)
            if told is not None:
                yield told


def overlap_warning(
    identity: CalibrationIdentity | None, contrast: Contrast, test: Contrast, split_seed: int | None
) -> str | None:
    """A sentence if discovery has read items that are tested now, or if that cannot be ruled out; else None."""
    if identity is None:
        return None
    for whole in (contrast, contrast.swapped()):
        if identity.sha256 == whole.sha256:
            return (
                f"the artefact was calibrated on all {identity.items} items of this contrast, the {len(test)} test "
                "items among them: these figures say how well it fits, not how well it generalises."
            )
        seed = _seed_of(identity, split_seed)
        if seed is None:
            continue
        try:
            parts = split(whole, seed=seed)
        except DataError:  # too small to split, so it was not split when it calibrated either
            continue
        if identity.sha256 == parts.calibration.sha256:
            unread = {normalised(p) for p in parts.test.prompts}
            read = sum(normalised(p) not in unread for p in test.prompts)
            if not read:
                return None
            return (
                f"the artefact was made with split seed {seed}: its discovery has read {read} of the {len(test)} items "
                f"tested here; evaluate with --split-seed {seed}."
            )
    if identity.name in (contrast.name, contrast.swapped().name):
        return (
            f"the artefact was calibrated on another version or another part of '{identity.name}' (sha256 "
            f"{identity.sha256[:12]}…): whether test items were among it is not known."
        )
    return (
        f"the artefact was calibrated on '{identity.name}' (sha256 {identity.sha256[:12]}…), which is no part of "
        f"'{contrast.name}' as it is here: whether the two share questions is not known."
    )


def _seed_of(identity: CalibrationIdentity, split_seed: int | None) -> int | None:
    """The seed of the artefact's split ('calibration of seed 0'), else the one asked for."""
    found = re.fullmatch(r"calibration of seed (-?\d+)", identity.split or "")
    return int(found[1]) if found else split_seed


def _whole(parameters: Mapping[str, Any], key: str) -> int | None:
    value = parameters.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(parameters: Mapping[str, Any], key: str) -> float | None:
    value = parameters.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
