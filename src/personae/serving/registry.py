"""Which personas are in memory and who uses them, and how personas come to the folder and go.

In memory a persona has a name of its own with a running number ('calm #3'), so that one whose file was replaced never
meets masks or caches of the old one: requests that run keep the old one, new ones get the new one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from personae.errors import BusyError, OptionError, PersonaeError, PersonaInUseError, UnknownPersonaError
from personae.runtime import PersonaModel
from personae.runtime.look import Look
from personae.serving.catalogue import Catalogue, Entry, disk_errors
from personae.serving.folder import Folder, signature
from personae.serving.refusals import Refusal
from personae.serving.settings import RESERVED
from personae.subnetwork import Artefact, inspect, load, remove_persona

__all__ = ["Lease", "Registry"]

MOST_UPLOADED = 64  # personas in one upload
_ATTEMPTS = 5  # to load a file that others replace again and again


@dataclass(eq=False, slots=True)
class _Loaded:
    """A persona in memory. uses: requests that still need it."""

    entry: Entry
    worn: str
    uses: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """A look whose personas stay in memory until it is released. look: as asked; worn: as the model knows it."""

    look: Look
    worn: Look
    parts: tuple[_Loaded, ...]


class Registry:
    """The personas of a server. Every method may be called from any thread, and may wait for the model: not on a loop.

    files: `.persona` files that must be good. folder: where more of them lie and uploads go. most: personas in memory,
    the `max_personas` of the `PersonaModel`.

    Errors: `PersonaeError` for a file of `files` that cannot be served, or a name that two of them hold.
    """

    def __init__(
        self,
        actor: PersonaModel,
        files: Sequence[Path] = (),
        folder: Folder | None = None,
        *,
        most: int | None = None,
        allow_other_weights: bool = False,
    ) -> None:
        self._actor, self._folder, self._most = actor, folder, most
        self._other_weights = allow_other_weights
        self._lock = threading.RLock()  # taken inside the folder's lock, never around it
        self._loaded: dict[str, _Loaded] = {}
        self._retired: list[_Loaded] = []  # replaced or deleted, but perhaps still in use
        self._made = 0
        self.catalogue = Catalogue(self._check_model, files, folder)
        self._stock = self.catalogue.version

    @property
    def has_folder(self) -> bool:
        """Whether personas can be uploaded and deleted at all."""
        return self._folder is not None

    def is_loaded(self, name: str) -> bool:
        """Whether its masks are in memory now."""
        loaded = self._loaded.get(name)
        return loaded is not None and loaded.worn in self._actor.personas

    def uses(self, name: str) -> int:
        """How many requests need it now."""
        loaded = self._loaded.get(name)
        return 0 if loaded is None else loaded.uses

    # ------------------------------------------------------------------- in use

    def acquire(self, look: Look) -> Lease:
        """Load what a look needs and keep it in memory until `release`.

        Errors: `UnknownPersonaError`; `OptionError` for a blend of more personas than may be in memory; `BusyError`
        when other requests use all that could make room.
        """
        if self._most is not None and len(look) > self._most:
            raise OptionError(f"a blend of {len(look)} personas, but only {self._most} may be in memory here.")
        parts: list[_Loaded] = []
        with self._lock:
            try:
                for name, _ in look:
                    part = self._in_memory(name)
                    self._actor.pin(((part.worn, 1.0),))
                    part.uses += 1
                    parts.append(part)
            except BaseException:
                self._let_go(parts)
                raise
        worn = tuple(sorted((part.worn, strength) for part, (_, strength) in zip(parts, look, strict=True)))
        return Lease(look, worn, tuple(parts))

    def release(self, lease: Lease) -> None:
        """The request is over. Once for each `acquire`."""
        with self._lock:
            self._let_go(lease.parts)

    # ----------------------------------------------------------- coming and going

    def upload(self, content: BinaryIO) -> list[Entry]:
        """Add the personas of an uploaded file to the folder, all or none.

        Errors: `PersonaeError` when it is no `.persona` file, is damaged or of another model; `Refusal` when a name is
        taken, there is no folder or it cannot be used.
        """
        folder = self._writable()
        names: list[str] = []

        def check(staged: Path) -> None:
            try:
                names.extend(self._checked(staged))
            except PersonaeError as error:
                raise type(error)(str(error).replace(os.fspath(staged), "the uploaded file")) from error

        with disk_errors(), folder.locked():
            folder.publish(content, check)
            return [self.catalogue.entry(name) for name in names]

    def delete(self, name: str) -> None:
        """Remove a persona from the folder.

        Errors: `UnknownPersonaError`; `PersonaInUseError` while a request of this server needs it; `Refusal` for one
        that was named at the start.
        """
        folder = self._writable()
        with disk_errors(), folder.locked(), self._lock:
            entry = self.catalogue.entry(name)
            self._retire()
            if entry.fixed:
                raise Refusal(403, f"persona {name!r} was given when the server was started: it stays.")
            if self.uses(name):
                raise PersonaInUseError(f"persona {name!r} answers requests now: try again when they are over.")
            if len(inspect(entry.path).names) > 1:
                remove_persona(entry.path, name)
            else:
                entry.path.unlink(missing_ok=True)
            self.catalogue.scan()
            self._retire()

    # ----------------------------------------------------------------- inside

    def _writable(self) -> Folder:
        if self._folder is None:
            raise Refusal(403, "this server has no folder for personas: start it with --folder.")
        return self._folder

    def _checked(self, staged: Path) -> tuple[str, ...]:
        """Names of an upload's personas after everything about it was verified."""
        names = inspect(staged).names
        if not 1 <= len(names) <= MOST_UPLOADED:
            raise OptionError(f"the file holds {len(names)} personas: upload 1 to {MOST_UPLOADED} at a time.")
        taken = {entry.name for entry in self.catalogue.entries()}
        for name in names:
            if name in RESERVED:
                raise OptionError(f"a persona cannot be called {name!r} here: rename it.")
            if name in taken:
                raise Refusal(409, f"there is a persona {name!r} already: delete or rename one.", code="persona_exists")
        # First whether its targets are the model's: from then on their shapes bound what a payload can grow to.
        self._check_model(staged)
        for name in names:
            load(staged, personas=[name])  # one at a time, and forgotten at once
        return names

    def _check_model(self, path: Path) -> None:
        self._actor.add_personas(path, names=(), allow_other_weights=self._other_weights)  # adds none

    def _in_memory(self, name: str) -> _Loaded:
        for _ in range(_ATTEMPTS):
            entry = self.catalogue.entry(name)
            self._retire()
            if self.is_loaded(name):
                return self._loaded[name]
            try:
                artefact = load(entry.path, personas=[name])
            except PersonaeError as error:
                if signature(entry.path) == entry.signature:
                    raise UnknownPersonaError(f"persona {name!r} cannot be read: its file is damaged.") from error
                continue
            if signature(entry.path) != entry.signature:
                continue
            self._made += 1
            worn = f"{name[:80]} #{self._made}"
            renamed = Artefact(artefact.model, {worn: artefact[name].renamed(worn)})
            try:
                self._actor.add_personas(renamed, allow_other_weights=self._other_weights)
            except PersonaInUseError as error:
                raise BusyError("all personas that may be in memory are in use: try again later.") from error
            self._loaded[name] = _Loaded(entry, worn)
            return self._loaded[name]
        raise BusyError(f"the file of persona {name!r} keeps changing: try again later.")

    def _let_go(self, parts: Sequence[_Loaded]) -> None:
        for part in parts:
            self._actor.unpin(((part.worn, 1.0),))
            part.uses -= 1
        self._retire()

    def _retire(self) -> None:
        """Forget what the files do not hold any more, as soon as nobody uses it."""
        if self._stock != self.catalogue.version:
            self._stock = self.catalogue.version
            current = {entry.name: entry for entry in self.catalogue.known()}
            for name, loaded in list(self._loaded.items()):
                if name not in current or current[name].source != loaded.entry.source:
                    self._retired.append(self._loaded.pop(name))
        for loaded in [each for each in self._retired if not each.uses]:
            # A step of the engine may not be quite over; then the next release tries again.
            with contextlib.suppress(PersonaInUseError):
                if loaded.worn in self._actor.personas:  # it may have been evicted
                    self._actor.remove_persona(loaded.worn)
                self._retired.remove(loaded)
