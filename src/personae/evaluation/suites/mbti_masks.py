"""The masks of a dimension's two poles, those of exchanged labels, and random ones among the same candidates.

Two backward passes over half of the calibration answers each serve both the method and its control: the mean margin is
linear in the answers, so with H₁, H₂ the gains of the two halves, n₁H₁ + n₂H₂ are the gains of all answers, and
n₁H₁ − n₂H₂ those of the same answers with the labels of one half exchanged. Short steps are not linear in the answers:
there the exchanged labels take steps of their own.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from glob import escape
from pathlib import Path
from typing import Any

import torch

from personae.discovery import (
    Capability,
    GenericText,
    Session,
    Settings,
    capability,
    choose,
    family_of,
    open_session,
    to_masks,
)
from personae.discovery.selection import count
from personae.errors import DataError, OptionError
from personae.evaluation.capability_texts import unread_text
from personae.evaluation.controls import random_masks
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.mbti_blocks import spans
from personae.evaluation.suites.mbti_data import DIMENSIONS, Dimension, items
from personae.evaluation.suites.texts import identity
from personae.models import Target
from personae.runtime import wearing
from personae.subnetwork import Mask, decode, encode

Masks = dict[str, Mask]


@dataclass(frozen=True, slots=True)
class Finding:
    """How masks are found. A budget (max_capability_loss, nats a token) excludes the shares; steps go with one.

    own_weight: β, in steps alone, as gains without them are split in halves that know no β. step_share: the largest
    mask that steps wear. blocks: of RANGES, the blocks that masks are confined to; all shares are of their weights.
    """

    cheap_share: float | None = 0.6
    drop_share: float | None = 0.002
    max_capability_loss: float | None = None
    steps: int | None = None
    own_weight: float = 0.0
    step_share: float | None = None
    blocks: str = "all"

    @property
    def key(self) -> dict[str, Any]:
        """What decides masks; without what was not asked for, as in parts kept before it could be."""
        later = {"steps": None, "own_weight": 0.0, "step_share": None, "blocks": "all"}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}

    def settings(self, seed: int) -> Settings:
        """As `directed` takes them. Errors: `OptionError` for a share out of range, missing, or beside a budget."""
        if self.max_capability_loss is None and None in (self.cheap_share, self.drop_share):
            raise OptionError("masks need --cheap-share and --drop-share, or --max-capability-loss.")
        if self.own_weight and self.steps is None:
            raise OptionError(f"own_weight is {self.own_weight}: in this suite it needs steps.")
        in_rounds = self.max_capability_loss is not None and self.steps is None
        rounds = 1 if in_rounds else None  # as many as the masks of exchanged labels get
        asked = {name: value for name, value in asdict(self).items() if name != "blocks"}
        return Settings(method="directed", seed=seed, rounds=rounds, **asked).checked()


@dataclass(frozen=True, eq=False)
class Found:
    """Of one dimension, p⁺ first: masks, masks of exchanged labels (as many weights, the same candidates), capability
    loss (nats a token, on generic text that no search read), number of weights dropped, cheap share.

    inside: names of the targets that masks were confined to; None: all of them. Tuned
    masks (`mbti_tuning`) and those of exchanged labels choose apart: they may differ in size and place.
    """

    persona: tuple[Masks, Masks]
    shuffled: tuple[Masks, Masks]
    losses: tuple[float, float]
    dropped: tuple[int, int]
    cheap: tuple[float, float]
    inside: frozenset[str] | None = None


@dataclass
class Finder:
    """Finds masks, or takes them from an earlier run's parts. settings: of the calibration data, to know parts by.

    generic: generic text, or its source; None samples it from the model, when first needed. keep_gains: hold the gains
    of the dimension read last (two float32 copies of the targets) until `release`, for more masks than `find` makes.
    """

    context: SuiteContext
    finding: Finding
    settings: Mapping[str, Any]
    generic: GenericText | str | Path | None = None
    keep_gains: bool = False
    _opened: Session | None = None
    _last: tuple[str, Session, Session] | None = None

    def session(self, data: Dimension) -> Session:
        """A session on one dimension; what depends on generic text alone is computed once for all of them."""
        if self._opened is None:
            context, blocks = self.context, self.finding.blocks
            opened = partial(
                open_session, context.model, context.tokenizer, data.contrast, seed=context.seed,
                progress=context.progress,
            )  # fmt: skip
            self._opened = opened(generic=self.generic)
            if blocks != "all":  # the same generic text, which is kept under all targets
                inside = spans(context.model, context.targets, (blocks,))[blocks].targets
                self._opened = opened(generic=self._opened.generic, targets=[escape(n) for n in sorted(inside)])
            _ = self._opened.generic_statistics, self._opened.fisher  # before copies are made of it
        return self._opened.with_calibration(items(data.calibration, data.paired))

    @cached_property
    def key(self) -> dict[str, Any]:
        """Everything but the dimension that decides its masks."""
        return {**self.settings, **self.finding.key, "generic": identity(self.generic)}

    def find(self, data: Dimension) -> Found:
        """Masks of both poles and of exchanged labels; a resumable part."""
        kept = self.context.part(f"mbti {data.name} masks", self.key, lambda: self._find(data))
        targets = self.context.targets
        persona, shuffled = (tuple(unpacked(m, targets) for m in kept[name]) for name in ("persona", "shuffled"))
        return Found(
            (persona[0], persona[1]), (shuffled[0], shuffled[1]), tuple(kept["losses"]), tuple(kept["dropped"]),
            tuple(kept["cheap"]),
        )  # fmt: skip

    def random(self, data: Dimension, found: Found, seed: int) -> tuple[Masks, Masks]:
        """As many weights for each pole, drawn from its candidates inside `found.inside`; a resumable part."""
        settings = {**self.key, "number": seed}
        if found.inside is not None:  # tuned: the finding no longer says how many and where
            settings |= {"inside": sorted(found.inside), "dropped": list(found.dropped)}
        kept = self.context.part(f"mbti {data.name} random masks", settings, lambda: self._random(data, found, seed))
        first, second = (unpacked(m, self.context.targets) for m in kept)
        return first, second

    def _find(self, data: Dimension) -> dict[str, Any]:
        settings = self.finding.settings(self.context.seed)
        whole, exchanged = self.both(data) if settings.steps is None else self.labelled(data)
        if settings.max_capability_loss is not None and not data.dev:
            raise DataError(f"{data.name}: a budget is chosen on the dev part, which has no answers; give more rows.")
        # With fixed shares nothing is chosen on dev, so it is not read.
        if settings.max_capability_loss is None:
            number = count(settings.drop_share or 0.0, whole.size)  # both shares are there: `Finding.settings`
            cheap = [settings.cheap_share or 0.0] * 2
            families = [whole.family(settings, pole, cheap[pole]) for pole in (0, 1)]
            least = min(f.most for f in families)
            if number > least:
                raise OptionError(
                    f"{data.name}: --drop-share {settings.drop_share} asks for {number:,} weights, but only {least:,} "
                    f"candidates (--cheap-share {settings.cheap_share}) help a pole; raise the one or lower the other."
                )
            dropped = [f.at(number) for f in families]
        else:
            chosen = choose(whole, settings, items(data.dev, data.paired))
            cheap = [float(c.parameters["cheap_share"]) for c in chosen]
            dropped = [c.dropped for c in chosen]
        persona = [to_masks(d) for d in dropped]
        numbers = [sum(m.dropped for m in masks.values()) for masks in persona]
        shuffled = [to_masks(family_of(exchanged, settings, pole, cheap[pole]).at(numbers[pole])) for pole in (0, 1)]
        losses = [self.loss(masks, whole) for masks in persona]
        whole.forget()
        return {
            "persona": [packed(m) for m in persona], "shuffled": [packed(m) for m in shuffled], "losses": losses,
            "dropped": numbers, "cheap": cheap,
        }  # fmt: skip

    def labelled(self, data: Dimension) -> tuple[Session, Session]:
        """Sessions with the true labels, and with those of every second couple exchanged."""
        couples = tuple(couple[::-1] if number % 2 else couple for number, couple in enumerate(data.calibration))
        whole = self.session(data)
        return whole, whole.with_calibration(items(couples, data.paired))

    def both(self, data: Dimension) -> tuple[Session, Session]:
        """Sessions with the gains of the true labels, and with those of every second couple's labels exchanged."""
        if self._last is None or self._last[0] != data.name:
            self.release()  # before the next ones are made: they are large
            read = (data.name, *self._both(data))
            if not self.keep_gains:
                return read[1:]
            self._last = read
        return self._last[1:]

    def release(self) -> None:
        """Hold no gains any longer."""
        self._last = None

    def _both(self, data: Dimension) -> tuple[Session, Session]:
        halves = data.calibration[0::2], data.calibration[1::2]
        whole, exchanged = self.session(data), self.session(data)
        first, second = (whole.with_calibration(items(half, data.paired)).gains for half in halves)
        share = len(halves[0]) / len(data.calibration)
        for name, gain in first.items():  # in place: each is a float32 copy of all targets
            other = second[name].mul_(1 - share)
            gain.mul_(share).add_(other)  # all answers
            other.mul_(-2).add_(gain)  # the labels of the second half exchanged
        whole.gains, exchanged.gains = first, second
        return whole, exchanged

    def _random(self, data: Dimension, found: Found, seed: int) -> list[dict[str, Any]]:
        session = self.session(data)
        place = 2 * (seed * len(DIMENSIONS) + DIMENSIONS.index(data.name))
        candidates = {cheap: confined(session.candidates(cheap), found.inside) for cheap in sorted(set(found.cheap))}
        return [
            packed(random_masks(session.targets, found.dropped[pole], place + pole, candidates[found.cheap[pole]]))
            for pole in (0, 1)
        ]

    @cached_property
    def _base(self) -> Capability:
        assert self._opened is not None
        return capability(self.context.model, unread_text(self._opened.generic).generic)

    def loss(self, masks: Masks, session: Session) -> float:
        """Capability loss on generic text that no search read, nats a token."""
        base = self._base
        with wearing(session.targets, masks):
            return capability(self.context.model, unread_text(session.generic).generic).loss(base)

    @cached_property
    def _searched_base(self) -> Capability:
        assert self._opened is not None
        return capability(self.context.model, self._opened.generic.held_out.read)

    def bound(self, masks: Masks, session: Session) -> float:
        """95 % upper bound of capability loss on the text that a search reads, nats a token."""
        base = self._searched_base
        with wearing(session.targets, masks):
            return capability(self.context.model, session.generic.held_out.read).loss_bound(base)


def confined(tensors: Mapping[str, torch.Tensor], names: frozenset[str] | None) -> dict[str, torch.Tensor]:
    """The tensors of these targets as they are, zero (False) everywhere else; None: all as they are.

    A gain of zero drops nothing, so gains that were confined give masks that were.
    """
    if names is None:
        return dict(tensors)
    return {n: t if n in names else t.new_zeros(()).expand(t.shape) for n, t in tensors.items()}  # zeros take no memory


def union(masks: list[Masks]) -> Masks:
    """What several masks worn at full strength drop together: G = 1 − min(1, Σ(1 − M)), so kept where all keep."""
    result = dict(masks[0])
    for other in masks[1:]:
        result = {name: mask & other[name] for name, mask in result.items()}
    return result


def packed(masks: Masks) -> dict[str, Any]:
    """Masks as JSON: the artefact's own encoding by target, in base64."""
    result = {}
    for name, mask in sorted(masks.items()):
        encoding, payload = encode(mask)
        result[name] = [encoding, base64.b64encode(payload).decode("ascii")]
    return result


def unpacked(stored: Mapping[str, Any], targets: list[Target]) -> Masks:
    """Masks of what `packed` wrote."""
    shapes = {t.name: t.shape for t in targets}
    return {
        name: decode(encoding, base64.b64decode(payload), shapes[name]) for name, (encoding, payload) in stored.items()
    }
