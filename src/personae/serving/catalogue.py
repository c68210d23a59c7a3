"""Which personas there are: what the files say, read anew whenever a file has changed.

Files are the truth, so that several servers can share a folder: a known persona's file is looked at once more before
it is used, and a name that is not known, as well as every list, reads the folder anew.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from personae.errors import OptionError, PersonaeError, UnknownPersonaError
from personae.serving.folder import PROMPTS, Folder, Signature, read_prompts, signature
from personae.serving.refusals import Refusal
from personae.serving.settings import RESERVED
from personae.subnetwork import Provenance, inspect

__all__ = ["Catalogue", "Entry", "disk_errors"]

_NAMED = 50  # names in an error message


@dataclass(frozen=True, slots=True)
class Entry:
    """A persona as its file describes it. fixed: named when the server was started, and not to be deleted by it."""

    name: str
    path: Path
    signature: Signature
    fixed: bool
    description: str
    system_prompt: str | None
    provenance: Provenance
    prompts: tuple[str, ...]

    @property
    def source(self) -> tuple[Path, Signature]:
        """Where its masks come from: another file, or one that has changed, is another source."""
        return self.path, self.signature

    @property
    def texts(self) -> tuple[str, ...]:
        """What 'auto' compares a request with: its prompts, or else what describes it."""
        return self.prompts or (" ".join(filter(None, (self.name, self.description, self.system_prompt))),)


@dataclass(frozen=True, slots=True)
class _File:
    signature: Signature
    entries: tuple[Entry, ...] = ()
    problem: str = ""


class Catalogue:
    """The personas of fixed files and of a folder. Any thread may use it; reading a new file may wait for the model.

    check: raises `PersonaeError` for a file that is not made for the model. files: must be good. folder: others.

    Errors: `PersonaeError` for a file of `files` that cannot be served, a name that two of them hold, or a folder that
    cannot be read.
    """

    def __init__(self, check: Callable[[Path], None], files: Sequence[Path], folder: Folder | None) -> None:
        self._check, self._fixed, self._folder = check, tuple(dict.fromkeys(path.resolve() for path in files)), folder
        self._lock = threading.RLock()
        self._seen: dict[Path, Signature] | None = None
        self._files: dict[Path, _File] = {}
        self._entries: dict[str, Entry] = {}
        self.version = 0  # changes whenever the entries may have
        self.unreadable: Mapping[str, str] = {}  # name of a file -> why it, or part of it, is not served
        taken: set[str] = set(RESERVED)
        for path in self._fixed:
            for entry in self._described(path):
                if entry.name in taken:
                    raise OptionError(f"{path}: the name {entry.name!r} is taken or reserved: rename the persona.")
                taken.add(entry.name)
        try:
            self.scan()
        except Refusal as refusal:  # nobody has asked yet: it is for the operator
            raise OptionError(refusal.message) from refusal

    def scan(self) -> None:
        """Look at all files; only those that changed are read. Errors: `Refusal` for a folder that cannot be read."""
        with self._lock:
            found = {path: sign for path in self._fixed if (sign := signature(path)) is not None}
            if self._folder is not None:
                with disk_errors():
                    found |= {path: sign for path, sign in self._folder.files().items() if path not in found}
            if found == self._seen:
                return
            kept = {path: file for path, file in self._files.items() if found.get(path) == file.signature}
            self._files = {
                path: kept[path] if path in kept else self._read(path, sign)
                for path, sign in found.items()
                if not path.name.endswith(PROMPTS)
            }
            self._take_stock([path for path in found if path.name.endswith(PROMPTS)])
            self._seen = found

    def entries(self) -> list[Entry]:
        """Every persona that can be asked for, sorted by name, as the files are now."""
        with self._lock:
            self.scan()
            return self.known()

    def known(self) -> list[Entry]:
        """The same as they were at the last look."""
        with self._lock:
            return [self._entries[name] for name in sorted(self._entries)]

    def entry(self, name: str) -> Entry:
        """One persona. Errors: `UnknownPersonaError`, which lists the names there are."""
        with self._lock:
            known = self._entries.get(name)
            if known is None or signature(known.path) != known.signature:
                self.scan()
            if name not in self._entries:
                names = sorted(self._entries)
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                listed = ", ".join(names[:_NAMED]) or "none"
                raise UnknownPersonaError(f"there is no persona {name[:100]!r}; there are: {listed}{more}.")
            return self._entries[name]

    # ------------------------------------------------------------------ inside

    def _described(self, path: Path) -> tuple[Entry, ...]:
        sign = signature(path) or (0, 0, 0)  # before reading: one that changes meanwhile is read again
        header = inspect(path)
        self._check(path)
        free = header.metadata.get("prompts")
        return tuple(
            Entry(
                each.name, path, sign, path in self._fixed, each.description, each.system_prompt, each.provenance,
                _prompts_for(each.name, free),
            )
            for each in header.personas
        )  # fmt: skip

    def _read(self, path: Path, sign: Signature) -> _File:
        try:
            return _File(sign, self._described(path))
        except PersonaeError as error:
            return _File(sign, problem=str(error).replace(os.fspath(path), path.name))

    def _take_stock(self, prompt_files: Sequence[Path]) -> None:
        """Names from files: the first file that holds a name keeps it, those given at the start before the folder."""
        entries: dict[str, Entry] = {}
        problems = {path.name: file.problem for path, file in self._files.items() if file.problem}
        for path, file in self._files.items():
            for entry in file.entries:
                if entry.name in RESERVED or entry.name in entries:
                    taken = "reserved" if entry.name in RESERVED else f"taken by {entries[entry.name].path.name}"
                    problems[path.name] = f"the name {entry.name!r} is {taken}: rename the persona."
                else:
                    entries[entry.name] = entry
        for path in prompt_files:
            name = path.name.removesuffix(PROMPTS)
            if name in entries:
                try:
                    entries[name] = replace(entries[name], prompts=read_prompts(path))
                except PersonaeError as error:
                    problems[path.name] = str(error)
        self._entries, self.unreadable = entries, problems
        self.version += 1


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """What the system says of the folder, as a refusal."""
    try:
        yield
    except OSError as error:
        raise Refusal(
            507, f"the folder of personas cannot be used: {error.strerror or error}.", code="folder_unusable"
        ) from error


def _prompts_for(name: str, found: object) -> tuple[str, ...]:
    """The prompts that an artefact's free metadata hold for a persona: a list for all, or {name: list}."""
    mine = found.get(name) if isinstance(found, dict) else found
    return tuple(text for text in mine if isinstance(text, str)) if isinstance(mine, list) else ()
