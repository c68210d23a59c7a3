"""The measuring steps of an audit. Each returns JSON-able numbers, margins of items above all, for a part on disk.

What they mean (alignments, areas, intervals, verdicts) is arithmetic on these, done anew every time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from personae.analysis.audit_attacks import Prompted
from personae.analysis.audit_model import Masks, Subject, count_dropped, pack
from personae.discovery import Session, Settings, to_masks
from personae.evaluation.controls import random_masks
from personae.evaluation.scoring import Items, encode_items, wins
from personae.models import Target
from personae.personas import Contrast

HAZARDOUS = 0  # the positive pole


def timed(compute: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The same, with the seconds it took: those of the run that did it, also when it is read from disk."""

    def run() -> dict[str, Any]:
        started = time.perf_counter()
        found = compute()
        return {**found, "seconds": time.perf_counter() - started}

    return run


def read_curve(subject: Subject, session: Session, items: Items, base: Sequence[float], *, control: bool) -> Any:
    """The hazardous pole's curve on whatever the model wears now, from one discovery.

    base: margins with nothing dropped. Returns shares; dropped, margins and control by point; the mask (packed) at the
    point that takes the alignment past the threshold, or else at the last; which point that is; and the loss there
    (None: no point does).
    """
    settings = subject.settings
    family = session.family(Settings(seed=settings.seed).checked(), HAZARDOUS, settings.cheap_share)
    numbers = sorted({max(1, round(share * subject.size)) for share in settings.shares})
    dropped, margins, random = [], [], []
    past = wins(np.array(base)).mean() >= settings.threshold  # then no point is the one that takes it there
    reached: int | None = None
    chosen: Masks = {}
    for k, number in enumerate(numbers):
        masks = to_masks(family.at(number))
        dropped.append(count_dropped(masks))
        margins.append(subject.margins(f"curve, point {k + 1} of {len(numbers)}", items, masks))
        if reached is None:
            chosen = masks
            if not past and wins(np.array(margins[-1])).mean() >= settings.threshold:
                reached = k
        if control:
            other = random_masks(
                subject.targets, dropped[-1], settings.seed * 1009 + k, session.candidates(settings.cheap_share)
            )
            random.append(subject.margins(f"random masks, point {k + 1} of {len(numbers)}", items, other))
    loss = None
    if reached is not None:
        loss = subject.searched(chosen).loss(subject.base_searched)
    return {
        "shares": [number / subject.size for number in numbers], "dropped": dropped, "margins": margins,
        "control": random or None, "mask": pack(chosen), "at": len(numbers) - 1 if reached is None else reached,
        "loss": loss,
    }  # fmt: skip


def read_restored(subject: Subject, masks: Masks, items: Items, groups: int) -> dict[str, Any]:
    """Margins under the masks, and under the masks with each group of neighbouring blocks put back."""
    found: dict[str, Any] = {"all": subject.margins("all blocks", items, masks), "groups": []}
    for number, blocks in enumerate(grouped(subject.targets, groups), 1):
        inside = {t.name for t in subject.targets if t.block in blocks}
        without = {name: mask for name, mask in masks.items() if name not in inside}
        if count_dropped(without) == count_dropped(masks):
            continue
        margins = subject.margins(f"blocks put back, group {number}", items, without)
        found["groups"].append({"blocks": list(blocks), "margins": margins})
    return found


def grouped(targets: Sequence[Target], groups: int) -> list[tuple[int, ...]]:
    """The blocks of the model in at most so many runs of neighbours, as equal as whole numbers allow."""
    blocks = sorted({target.block for target in targets})
    return [tuple(int(b) for b in run) for run in np.array_split(blocks, min(groups, len(blocks))) if len(run)]


def read_attacks(subject: Subject, attacks: Sequence[Prompted], masks: Masks | None, where: str) -> dict[str, Any]:
    """Margins under each prompt attack by name."""
    return {each.name: subject.margins(f"{each.name} on {where}", each.items, masks) for each in attacks}


def read_kept(subject: Subject, kept: Sequence[Contrast], masks: Masks | None, where: str) -> dict[str, Any]:
    """Margins of each harmless contrast's test items by name."""
    found = {}
    for contrast in kept:
        items = encode_items(subject.model, subject.tokenizer, subject.settings.parts(contrast).test)
        found[contrast.name] = subject.margins(f"{contrast.name} on {where}", items, masks)
    return found


def kept_on_base(subject: Subject, kept: Sequence[Contrast]) -> Any:
    """The same on the base model, read once for all hazards."""
    settings = subject.settings
    decided = {"kept": sha256s(kept), "items": settings.items, "split_seed": settings.split_seed}
    return subject.part("kept", decided, lambda: read_kept(subject, kept, None, "the base model"))


def columns(margins: Sequence[Sequence[float]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Readings by point as (items, points)."""
    return np.array(margins, dtype=np.float64).T


def sha256s(contrasts: Sequence[Contrast]) -> Mapping[str, str]:
    """Hash of the content by name, for the key of a part."""
    return {contrast.name: contrast.sha256 for contrast in contrasts}
