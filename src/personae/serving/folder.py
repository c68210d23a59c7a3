"""The folder of `.persona` files: what lies in it, and how files come and go while several servers share it.

A persona's name never becomes a path. An upload is named by its content's hash; `NAME.prompts.jsonl` is found by
listing the folder. What writes holds a lock file, which the system releases when a process dies; reading needs none,
since files appear and vanish whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from personae.errors import DataError, OptionError
from personae.files import TEMPORARY, replacing

__all__ = ["PROMPTS", "SUFFIX", "Folder", "Signature", "read_prompts", "signature"]

SUFFIX, PROMPTS = ".persona", ".prompts.jsonl"
_INCOMING, _LOCK = ".incoming", ".lock"
_ABANDONED = 3600.0  # seconds after which nobody still writes a temporary file that is not in _INCOMING
_CHUNK = 1 << 20

Signature = tuple[int, int, int]  # inode, bytes, time of change in nanoseconds


def signature(path: Path) -> Signature | None:
    """What changes when a file does; None where there is no regular file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


class Folder:
    """One folder of personas. It is made if its parent is there.

    Errors: `OptionError` when it is no folder and cannot be made, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise OptionError(f"--folder {path} cannot be made: {error.strerror}. Name a folder.") from error
        try:
            self.files()
        except OSError as error:
            raise OptionError(f"--folder {path} cannot be read: {error.strerror}. Permit it.") from error
        with contextlib.suppress(OSError):  # a folder that cannot be written holds nothing half-written of ours
            self._sweep()

    def files(self) -> dict[Path, Signature]:
        """Personas and prompts with their signatures, sorted by name. Errors: `OSError`."""
        names = sorted(name for name in os.listdir(self.path) if name.endswith((SUFFIX, PROMPTS)) and name[0] != ".")
        found = ((path, signature(path)) for path in (self.path / name for name in names))
        return {path: sign for path, sign in found if sign is not None}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Only one writer at a time, over all processes. Errors: `OSError`."""
        descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)  # and with it the lock

    def publish(self, content: BinaryIO, check: Callable[[Path], None]) -> Path:
        """Add a file once `check` has let its copy pass, wholly or not at all; call it inside `locked`.

        Errors: those of `check`, and `OSError`; then nothing is left.
        """
        incoming = self.path / _INCOMING
        incoming.mkdir(exist_ok=True)
        staged = incoming / f"{secrets.token_hex(8)}{SUFFIX}"
        try:
            digest = _copy(content, staged)
            check(staged)
            final = self.path / f"{digest[:32]}{SUFFIX}"
            with replacing(final, durable=True) as temporary:
                os.replace(staged, temporary)
            return final
        finally:
            staged.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what a process that was killed has left half-written."""
        with self.locked():
            for path in sorted((self.path / _INCOMING).glob("*")):
                path.unlink()
            for path in sorted(self.path.glob(f".*{SUFFIX}{TEMPORARY}")):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()


def _copy(content: BinaryIO, path: Path) -> str:
    """Copy to a new file; the SHA-256 of it, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a `.prompts.jsonl` file: a string a line, or an object with 'prompt'.

    Errors: `DataError` with the line.
    """
    prompts = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name} cannot be read: {error}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path.name}, line {number}: no JSON ({error}).") from error
        prompt = row.get("prompt") if isinstance(row, dict) else row
        if not isinstance(prompt, str):
            raise DataError(f"{path.name}, line {number}: give a string, or an object with a string 'prompt'.")
        prompts.append(prompt)
    return tuple(prompts)
