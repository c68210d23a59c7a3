"""The personas a model can wear: their masks, who was used when, and who goes when there are too many."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

from personae.errors import OptionError, PersonaInUseError, UnknownPersonaError
from personae.runtime.look import Look
from personae.runtime.switch import undo_bytes
from personae.subnetwork import Artefact, Mask, ModelIdentity, PayloadEntry, Subnetwork, inspect, load
from personae.subnetwork.mask import is_sparse

__all__ = ["Memory", "Shapes", "Source", "Wardrobe", "Worn", "read_shapes", "read_source"]

Source = str | PathLike[str] | Artefact | Subnetwork
Shapes = Mapping[str, Mask | PayloadEntry]  # by target, what has `shape` and `dropped`


def read_source(source: Source, names: str | Sequence[str] | None) -> tuple[list[Subnetwork], ModelIdentity | None]:
    """The chosen subnetworks of a source (None: all), and the model they were made for if it says so.

    Errors: `UnknownPersonaError` for a name not in the source; `ArtefactError` for an unreadable file.
    """
    chosen = None if names is None else list(dict.fromkeys([names] if isinstance(names, str) else names))
    if isinstance(source, Subnetwork):
        for name in chosen or []:
            if name != source.name:
                raise UnknownPersonaError(f"no persona {name!r} here: this subnetwork is {source.name!r}.")
        return [source], None
    artefact = source if isinstance(source, Artefact) else load(source, personas=chosen)
    return [artefact[name] for name in (artefact.names if chosen is None else chosen)], artefact.model


def read_shapes(source: Source, names: str | Sequence[str] | None) -> dict[str, Shapes]:
    """Shape and number of dropped weights of every mask of the chosen personas; of a file only the header is read.

    Errors: as `read_source`.
    """
    if isinstance(source, Artefact | Subnetwork):
        return {subnetwork.name: subnetwork.masks for subnetwork in read_source(source, names)[0]}
    there = {persona.name: persona.payloads for persona in inspect(source).personas}
    chosen = list(there) if names is None else [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in there:
            raise UnknownPersonaError(f"no persona {name!r} in {source}; there are: {', '.join(there)}.")
    return {name: there[name] for name in chosen}


@dataclass(frozen=True)
class Memory:
    """Bytes of one persona: masks, as long as it is held; undo, besides, while it is worn alone."""

    masks: int
    undo: int

    @classmethod
    def of(cls, shapes: Shapes, bytes_a_value: Mapping[str, int]) -> Memory:
        """From the counts alone. bytes_a_value: of the weights of each target."""
        masks = undo = 0
        for target, mask in shapes.items():
            size = mask.shape[0] * mask.shape[1]
            positions = mask.dropped * (4 if size < 2**31 else 8)
            masks += positions if is_sparse(mask.dropped, size) else (size + 7) // 8
            undo += undo_bytes(mask.dropped, size, bytes_a_value[target])
        return cls(masks, undo)


@dataclass(frozen=True, eq=False)
class Worn:
    """One persona of a look. edition: another number each time a persona is added, also under the same name."""

    edition: int
    masks: Mapping[str, Mask]
    strength: float


class Wardrobe:
    """Masks by persona and target, as compact as `Mask` holds them: positions or bits, the smaller.

    A persona that is pinned is neither evicted nor removed. Every method may be called from any thread.

    limit: at most so many personas, or None. Errors: `OptionError` for a limit below 1.
    """

    def __init__(self, limit: int | None) -> None:
        if limit is not None and limit < 1:
            raise OptionError(f"max_personas is {limit}: give at least 1, or None for no limit.")
        self._limit = limit
        self._lock = threading.RLock()
        self._masks: dict[str, Mapping[str, Mask]] = {}
        self._editions: dict[str, int] = {}
        self._added = 0
        self._order: list[str] = []  # the least recently used first
        self._pins: Counter[str] = Counter()
        self._evicted: set[str] = set()  # only for a better error message

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they were added."""
        with self._lock:
            return tuple(self._masks)

    @property
    def editions(self) -> frozenset[int]:
        """Of all personas that are there."""
        with self._lock:
            return frozenset(self._editions.values())

    def __getitem__(self, name: str) -> Mapping[str, Mask]:
        return self._masks[name]

    def memory(self) -> dict[str, int]:
        """Bytes that the masks of each persona hold."""
        with self._lock:
            return {name: sum(mask.nbytes for mask in masks.values()) for name, masks in self._masks.items()}

    def check_known(self, names: Iterable[str]) -> None:
        """Raise `UnknownPersonaError` for a name that is not here."""
        with self._lock:
            for name in names:
                if name not in self._masks:
                    why = " (it was evicted because of max_personas)" if name in self._evicted else ""
                    listed = ", ".join(self._masks) or "none"
                    raise UnknownPersonaError(
                        f"no persona {name!r} here{why}; there are: {listed}. add_personas() adds one."
                    )

    def check_free(self, names: Iterable[str]) -> None:
        """Raise `OptionError` for a name that is taken."""
        with self._lock:
            for name in names:
                if name in self._masks:
                    raise OptionError(f"persona {name!r} has been added already: remove_persona() it first.")

    def worn(self, look: Look) -> tuple[Worn, ...]:
        """The personas of a look. Errors: `UnknownPersonaError`."""
        with self._lock:
            self.check_known(name for name, _ in look)
            return tuple(Worn(self._editions[name], self._masks[name], strength) for name, strength in look)

    def add(self, subnetworks: Sequence[Subnetwork], needed: set[str]) -> None:
        """Take new personas in; those used least recently and neither `needed` nor pinned make room.

        Errors, before anything changes: `OptionError` for more at once than the limit; `PersonaInUseError`
        when too few can go.
        """
        with self._lock:
            for name in self._surplus(len(subnetworks), needed):
                self.remove(name)
                self._evicted.add(name)
            for subnetwork in subnetworks:
                self._masks[subnetwork.name] = subnetwork.masks
                self._added += 1
                self._editions[subnetwork.name] = self._added
                self._order.append(subnetwork.name)
                self._evicted.discard(subnetwork.name)

    def remove(self, name: str) -> None:
        """Forget one persona. Errors: `PersonaInUseError` while it is pinned."""
        with self._lock:
            if self._pins[name]:
                raise PersonaInUseError(f"persona {name!r} is pinned: whoever did so has to unpin() it first.")
            del self._masks[name], self._editions[name]
            self._order.remove(name)

    def pin(self, look: Look) -> None:
        """Keep the personas of a look, until it is unpinned as often. Errors: `UnknownPersonaError`."""
        with self._lock:
            self.check_known(name for name, _ in look)
            self._pins.update(name for name, _ in look)

    def unpin(self, look: Look) -> None:
        """Errors: `OptionError` for a look with a persona that is not pinned."""
        with self._lock:
            for name, _ in look:
                if not self._pins[name]:
                    raise OptionError(f"persona {name!r} is not pinned.")
            self._pins.subtract(name for name, _ in look)
            self._pins = +self._pins  # without those at 0

    def used(self, names: Iterable[str]) -> None:
        """These are used now."""
        latest = set(names)
        with self._lock:
            self._order.sort(key=lambda name: name in latest)  # stable: they move to the end

    def _surplus(self, more: int, needed: set[str]) -> list[str]:
        """Who must go for `more` personas to come."""
        if self._limit is None:
            return []
        if more > self._limit:
            raise OptionError(f"{more} personas do not fit max_personas={self._limit}: choose with names=[…].")
        surplus = len(self._masks) + more - self._limit
        free = [name for name in self._order if name not in needed and not self._pins[name]]
        if surplus > len(free):
            raise PersonaInUseError(
                f"max_personas={self._limit} leaves no room: the others are worn, pinned by running answers, or an "
                "open persona() block will put them on again."
            )
        return free[: max(surplus, 0)]
