"""Finished parts of a long measurement, so that one that was killed goes on with the next part.

Each part is one file, written whole or not at all, under the hash of everything that decides it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from personae.discovery import versions
from personae.errors import ArtefactError
from personae.files import replacing


@dataclass(frozen=True)
class Kept:
    """The folder of finished parts; None keeps none. frame: what decides every part, JSON-able."""

    folder: Path | None
    frame: Any = None

    def path(self, name: str, decided: Any, suffix: str = ".json") -> Path | None:
        """Where a part lies, or would. name: for people; decided: what decides this part beside the frame."""
        if self.folder is None:
            return None
        key = json.dumps([name, decided, self.frame, versions(), _beside()], sort_keys=True)
        readable = re.sub(r"[^\w.-]+", "-", name)[:60].strip("-.")
        return self.folder / f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:16]}{suffix}"

    def read(self, name: str, decided: Any) -> Mapping[str, Any] | None:
        """The part that an earlier run has kept, or None; a damaged one counts as none."""
        path = self.path(name, decided)
        if path is None:
            return None
        with contextlib.suppress(OSError, ValueError):
            said = json.loads(path.read_text(encoding="utf-8"))
            return said if isinstance(said, dict) else None
        return None

    def write(self, name: str, decided: Any, value: Mapping[str, Any]) -> None:
        """Keep a part. Errors: `ArtefactError` where it cannot be written."""
        path = self.path(name, decided)
        if path is None:
            return
        self.make()
        try:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
        except OSError as error:
            raise ArtefactError(
                f"cannot keep {path}: {error.strerror}. Free some space, or name another folder: --resume where that "
                "option is, or the environment variable PERSONAE_CACHE."
            ) from error

    def make(self) -> None:
        """Make the folder. Errors: `ArtefactError`."""
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ArtefactError(
                    f"cannot make the folder {self.folder}: {error.strerror}. Name another: --resume where that option "
                    "is, or the environment variable PERSONAE_CACHE."
                ) from error


@cache
def _beside() -> dict[str, str]:
    """Versions of what else decides a part: random draws, adapters, retrieval."""
    found = {}
    for package in ("numpy", "peft", "bm25s"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def hash_of(content: object) -> str:
    """SHA-256 of JSON-able content."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
