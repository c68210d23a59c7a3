"""The personas a model can wear: their masks, who was used when, and who goes when there are too many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike

from personae.errors import OptionError, PersonaInUseError, UnknownPersonaError
from personae.subnetwork import Artefact, Mask, ModelIdentity, Subnetwork, load

__all__ = ["Source", "Wardrobe", "read_source"]

Source = str | PathLike[str] | Artefact | Subnetwork


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


class Wardrobe:
    """Masks by persona and target, as compact as `Mask` holds them: positions or bits, the smaller.

    limit: at most so many personas, or None. Errors: `OptionError` for a limit below 1.
    """

    def __init__(self, limit: int | None) -> None:
        if limit is not None and limit < 1:
            raise OptionError(f"max_personas is {limit}: give at least 1, or None for no limit.")
        self._limit = limit
        self._masks: dict[str, Mapping[str, Mask]] = {}
        self._order: list[str] = []  # the least recently used first
        self._evicted: set[str] = set()  # only for a better error message

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they were added."""
        return tuple(self._masks)

    def __getitem__(self, name: str) -> Mapping[str, Mask]:
        return self._masks[name]

    def memory(self) -> dict[str, int]:
        """Bytes that the masks of each persona hold."""
        return {name: sum(mask.nbytes for mask in masks.values()) for name, masks in self._masks.items()}

    def check_known(self, names: Iterable[str]) -> None:
        """Raise `UnknownPersonaError` for a name that is not here."""
        for name in names:
            if name not in self._masks:
                why = " (it was evicted because of max_personas)" if name in self._evicted else ""
                listed = ", ".join(self._masks) or "none"
                raise UnknownPersonaError(
                    f"no persona {name!r} here{why}; there are: {listed}. add_personas() adds one."
                )

    def check_free(self, names: Iterable[str]) -> None:
        """Raise `OptionError` for a name that is taken."""
        for name in names:
            if name in self._masks:
                raise OptionError(f"persona {name!r} has been added already: remove_persona() it first.")

    def add(self, subnetworks: Sequence[Subnetwork], needed: set[str]) -> None:
        """Take new personas in; those used least recently and not `needed` make room.

        Errors, before anything changes: `OptionError` for more at once than the limit; `PersonaInUseError`
        when too few can go.
        """
        for name in self._surplus(len(subnetworks), needed):
            self.remove(name)
            self._evicted.add(name)
        for subnetwork in subnetworks:
            self._masks[subnetwork.name] = subnetwork.masks
            self._order.append(subnetwork.name)
            self._evicted.discard(subnetwork.name)

    def remove(self, name: str) -> None:
        """Forget one persona."""
        del self._masks[name]
        self._order.remove(name)

    def used(self, names: Iterable[str]) -> None:
        """These are used now."""
        latest = set(names)
        self._order.sort(key=lambda name: name in latest)  # stable: they move to the end

    def _surplus(self, more: int, needed: set[str]) -> list[str]:
        """Who must go for `more` personas to come."""
        if self._limit is None:
            return []
        if more > self._limit:
            raise OptionError(f"{more} personas do not fit max_personas={self._limit}: choose with names=[…].")
        surplus = len(self._masks) + more - self._limit
        free = [name for name in self._order if name not in needed]
        if surplus > len(free):
            raise PersonaInUseError(
                f"max_personas={self._limit} leaves no room: the others are worn, or an open persona() block "
                "will put them on again."
            )
        return free[: max(surplus, 0)]
