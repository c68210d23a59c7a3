"""The model under audit: what it says of items under any mask, what a mask costs, and the parts already done.

Base weights are back after every reading, bit for bit. Every step's outcome is a small JSON part under the hash of all
that decides it (fingerprint, data, texts, settings, versions), so a killed audit goes on with the next step.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.analysis.audit_result import Kept, Loss
from personae.analysis.audit_settings import AuditSettings
from personae.discovery import (
    Capability,
    GenericText,
    Progress,
    Session,
    capability,
    encode_contrast,
    loss_bound_of,
    open_session,
)
from personae.evaluation import Estimate, difference, interval, unread_text
from personae.evaluation.scoring import Items, score_encoded, wins
from personae.evaluation.suites import SuiteContext
from personae.personas import Contrast
from personae.runtime import wearing
from personae.subnetwork import Mask

Floats = NDArray[np.float64]
Masks = Mapping[str, Mask]

_NORMAL = 1.959964  # of a two-sided 95 % interval


class Subject:
    """A model, its tokenizer and generic text, and one session of discovery after the other.

    parts: folder of finished steps; None keeps none. generic: as of `open_session`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: AuditSettings,
        calibration: Contrast,
        *,
        generic: GenericText | str | Path | None,
        parts: Path | None,
        progress: Progress,
    ) -> None:
        self.model, self.tokenizer, self.settings, self.progress = model, tokenizer, settings, progress
        self.context = SuiteContext(model, tokenizer, Path(), parts=parts, seed=settings.seed, progress=progress)
        self.targets = self.context.targets
        self.size = sum(target.size for target in self.targets)
        self._session = open_session(
            model, tokenizer, calibration, generic=generic, generic_answers=settings.generic_answers,
            seed=settings.seed, resume=parts is not None, progress=progress,
        )  # fmt: skip
        self._of = calibration.sha256
        self.generic = self._session.generic
        self.unread = unread_text(self.generic)
        self._base: dict[str, Capability] = {}
        self._done: dict[str, Any] = {}

    def session(self, calibration: Contrast) -> Session:
        """The session of a contrast's calibration items on the base model; that of the one before is let go of."""
        if calibration.sha256 != self._of:
            items = encode_contrast(self.model, self.tokenizer, calibration)
            self._session, self._of = self._session.with_calibration(items), calibration.sha256
        return self._session

    def fresh_session(self, calibration: Contrast) -> Session:
        """A session of whatever the model wears now: nothing that was computed from the base weights is in it."""
        items = encode_contrast(self.model, self.tokenizer, calibration)
        return Session(self.model, self.tokenizer, self.targets, items, self.generic, progress=self.progress)

    def forget(self) -> None:
        """Remove the sums that discovery kept for the case of a kill."""
        self._session.forget()

    def part(self, name: str, settings: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """What a step finds, or what an earlier run kept of it. settings: all that decides it beside model and text."""
        texts = {"generic": self.generic.sha256, "answers": self.generic.answers}
        key = json.dumps([name, settings], sort_keys=True)
        if key not in self._done:
            self._done[key] = self.context.part(f"audit-{name}", {**texts, **settings}, compute)
        return self._done[key]

    # --- readings -----------------------------------------------------------------------------------------

    def margins(self, title: str, items: Items, masks: Masks | None = None) -> list[float]:
        """Margin of every item, positive minus negative answer, nats a token, under masks (None: base)."""
        with wearing(self.targets, masks or {}), self.progress(title, len(items)) as tick:
            return [float(margin) for margin in score_encoded(self.model, items, tick).difference()]

    def searched(self, masks: Masks) -> Capability:
        """Likelihood of the generic text that a search for the budget reads, under masks."""
        return self._likelihood("capability", self.generic.held_out.read, masks)

    def loss_bound(self, masks: Masks, budget: float) -> float:
        """`searched(masks).loss_bound(base_searched)`; less text is read where the loss is clearly over the budget."""
        before, text = self.base_searched, self.generic.held_out.read
        with wearing(self.targets, masks), self.progress("capability", 1) as tick:
            bound = loss_bound_of(self.model, text, before, budget)
            tick(1)
        return bound

    @property
    def base_searched(self) -> Capability:
        """The same of the base model, read once."""
        if "searched" not in self._base:
            self._base["searched"] = self.searched({})
        return self._base["searched"]

    def loss(self, masks: Masks) -> list[list[float]]:
        """[rise, standard error] of plain text and of chat answers that no choice has read, nats a token."""
        if "unread" not in self._base:
            self._base["unread"] = self._likelihood("capability: base", self.unread.generic, {})
        worn = self._likelihood("capability: disabled", self.unread.generic, masks)
        return [list(rise) for rise in worn.rises(self._base["unread"])]

    def _likelihood(self, title: str, text: GenericText, masks: Masks) -> Capability:
        with wearing(self.targets, masks), self.progress(title, len(text.plain) + len(text.chat)) as tick:
            return capability(self.model, text, tick)


def loss_of(rises: Sequence[Sequence[float]], budget: float) -> Loss:
    """Rises and their standard errors as estimates, against a budget."""
    plain, chat = (Estimate(rise, rise - _NORMAL * error, rise + _NORMAL * error) for rise, error in rises)
    worst = max(plain.value, chat.value)
    return Loss(plain, chat, worst, worst <= budget)


def kept_of(contrasts: Sequence[Contrast], read: Mapping[str, Any], resamples: int, seed: int) -> tuple[Kept, ...]:
    """What a mask did to the harmless contrasts, from margins 'before' and 'after' by name."""
    drawn = {"resamples": resamples, "seed": seed}
    found = []
    for contrast in contrasts:
        before, after = (np.array(read[when][contrast.name]) for when in ("before", "after"))
        change = difference(wins(after), wins(before), **drawn)
        found.append(
            Kept(
                contrast.name, contrast.positive, len(before), interval(wins(before), **drawn),
                interval(wins(after), **drawn), change, difference(after, before, **drawn),
                change.low > 0 or change.high < 0,
            )
        )  # fmt: skip
    return tuple(found)


# --- masks in a part ------------------------------------------------------------------------------------------


def pack(masks: Masks) -> dict[str, str]:
    """Masks as text: distances between dropped positions, zlib, base64; empty ones are left out."""
    packed = {}
    for name in sorted(masks):
        positions = masks[name].positions()
        if len(positions):
            gaps = np.diff(positions, prepend=0).astype("<u4")
            packed[name] = base64.b64encode(zlib.compress(gaps.tobytes())).decode("ascii")
    return packed


def unpack(packed: Mapping[str, str], shapes: Mapping[str, tuple[int, int]]) -> dict[str, Mask]:
    """The masks of `pack`, with an empty one for every target that is not there."""
    masks = {}
    for name, shape in shapes.items():
        content = zlib.decompress(base64.b64decode(packed[name])) if name in packed else b""
        masks[name] = Mask.from_positions(np.cumsum(np.frombuffer(content, "<u4"), dtype=np.int64), shape)
    return masks


def sha256_of(masks: Masks) -> str:
    """Hash of what masks drop."""
    return hashlib.sha256(json.dumps(pack(masks)).encode()).hexdigest()


def count_dropped(masks: Masks) -> int:
    """Number of weights that masks drop."""
    return sum(mask.dropped for mask in masks.values())


def union(masks: Sequence[Masks]) -> Masks:
    """Drops every weight that one of them drops; all have the same targets."""
    first, *others = masks
    result = dict(first)
    for other in others:
        result = {name: mask & other[name] for name, mask in result.items()}  # kept in both
    return result
