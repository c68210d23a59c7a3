"""What a causal map reads: both answers to every question under parts of one mask; each part once, kept if asked."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from personae.analysis.causal_parts import Part
from personae.evaluation.kept import Kept
from personae.evaluation.scoring import Items, score_encoded
from personae.models import Target
from personae.runtime import wearing
from personae.subnetwork import Mask

__all__ = ["Key", "Plan", "Readings", "masks_hash"]

Floats = NDArray[np.float64]
Masks = Mapping[str, Mask]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a map will take. readings: passes over the items, the first two (base, whole mask) among them; kept: how
    many of these an earlier run has left. items, tokens: of one reading, both answers counted. seconds: what the
    readings that are left will take at the pace of the first two, None where both were kept."""

    readings: int
    kept: int
    items: int
    tokens: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Key:
    """What is dropped in one reading: the mask's weights in these targets, or (random) as many others there."""

    targets: frozenset[str]
    random: int | None = None


@dataclass
class Readings:
    """Margins of the persona's answer over its rival's, nats a token, (items,), under parts of one mask."""

    model: PreTrainedModel
    targets: Sequence[Target]
    items: Items
    masks: Masks
    sign: float  # -1 where the persona is the negative pole
    seed: int
    kept: Kept
    _margins: dict[Key, Floats] = field(default_factory=dict)
    _seconds: list[float] = field(default_factory=list)

    @property
    def whole(self) -> Key:
        """Of the whole mask."""
        return Key(frozenset(self.masks))

    def alone(self, part: Part, seed: int | None = None) -> Key:
        """Of a part's mask alone, or of random weights in its place."""
        names = self.whole.targets & part.names
        return Key(names, seed if names else None)

    def restored(self, part: Part) -> Key:
        """Of the whole mask without a part."""
        return Key(self.whole.targets - part.names)

    def needed(self, parts: Sequence[Part], random_seeds: int) -> list[Key]:
        """Every reading of a map once, base and whole mask first."""
        keys = [Key(frozenset()), self.whole]
        for part in parts:
            keys += [self.restored(part), self.alone(part)]
            keys += [self.alone(part, seed) for seed in range(random_seeds)]
        return list(dict.fromkeys(keys))

    def first_two(self, needed: Sequence[Key]) -> tuple[Floats, Floats]:
        """Under the bare model and under the whole mask."""
        return self.read(needed[0]), self.read(needed[1])

    def plan(self, needed: Sequence[Key]) -> Plan:
        """What the rest takes, at the pace of what was read so far."""
        left = [key for key in needed if key not in self._margins]
        kept = [key for key in left if self.kept.read("reading", self._decided(key)) is not None]
        tokens = sum(len(q.prompt) + sum(map(len, q.answers)) for q in self.items.questions)
        pace = float(np.mean(self._seconds)) if self._seconds else None
        before = len(needed) - len(left) - len(self._seconds)
        return Plan(
            len(needed), before + len(kept), len(self.items), tokens,
            None if pace is None else pace * (len(left) - len(kept)),
        )  # fmt: skip

    def read(self, key: Key) -> Floats:
        """The margins of one reading; each is taken once."""
        if key not in self._margins:
            said = self.kept.read("reading", self._decided(key))
            found = None if said is None else np.array(said.get("margin", ()), dtype=np.float64)
            if found is None or found.shape != (len(self.items),):
                found = self._taken(key)
                self.kept.write("reading", self._decided(key), {"margin": found.tolist()})
            self._margins[key] = found
        return self._margins[key]

    def _decided(self, key: Key) -> list[object]:
        return [sorted(key.targets), key.random, self.seed if key.random is not None else None]

    def _taken(self, key: Key) -> Floats:
        started = time.monotonic()
        with wearing(self.targets, self._worn(key)):
            margins: Floats = self.sign * score_encoded(self.model, self.items).difference()
        self._seconds.append(time.monotonic() - started)
        return margins

    def _worn(self, key: Key) -> Masks:
        own = {name: self.masks[name] for name in sorted(key.targets)}
        if key.random is None:
            return own
        drawn = {}
        for name, mask in own.items():
            number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")
            chance = np.random.default_rng((self.seed, key.random, number))
            positions = chance.choice(mask.size, size=mask.dropped, replace=False, shuffle=False)
            drawn[name] = Mask.from_positions(positions, mask.shape)
        return drawn


def masks_hash(masks: Masks) -> str:
    """Of names, shapes and dropped weights."""
    total = hashlib.sha256()
    for name in sorted(masks):
        total.update(f"{name}\0{masks[name].shape}\0".encode() + masks[name].packed().tobytes())
    return total.hexdigest()
