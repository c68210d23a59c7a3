"""What every suite is given: a model, a folder of data, and a place where finished parts are kept.

A suite is a sequence of parts; each finished part is one small JSON file under the hash of all that decides it, so a
suite that was killed goes on with the next part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery import Progress, silent, versions
from personae.errors import DataError
from personae.evaluation.kept import Kept
from personae.evaluation.results import ModelRecord
from personae.models import Target, encode, find_targets, fingerprint, surroundings


@dataclass
class SuiteContext:
    """A model and where its data lie.

    data: the folder of the public data. parts: the folder of finished parts; None keeps none. limit: at most so many
    items a set (for a quick look; recorded). read: SHA-256 by file, of every file that `file` handed out.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: Path
    parts: Path | None = None
    seed: int = 0
    limit: int | None = None
    progress: Progress = silent
    read: dict[str, str] = field(default_factory=dict)
    _targets: list[Target] = field(default_factory=list)
    _fingerprint: str = ""
    _surroundings: str = ""

    @property
    def targets(self) -> list[Target]:
        """All targets of the model."""
        if not self._targets:
            self._targets = find_targets(self.model)
        return self._targets

    @property
    def fingerprint(self) -> str:
        """Of the model's weights, computed once."""
        if not self._fingerprint:
            self._fingerprint = fingerprint(self.targets)
        return self._fingerprint

    @property
    def surroundings(self) -> str:
        """Of all that answers beside the targets, computed once."""
        if not self._surroundings:
            self._surroundings = surroundings(self.model, self.targets)
        return self._surroundings

    @property
    def writing(self) -> list[Any]:
        """How text becomes token ids: the chat template, and a question and an answer written by it."""
        probe = encode(self.tokenizer, "What is 1 + 1?", "Two, I think.")
        return [getattr(self.tokenizer, "chat_template", None), list(probe.prompt), list(probe.answer)]

    def file(self, name: str, source: str) -> Path:
        """A file of the data folder. Errors: `DataError` naming what is missing and where it comes from."""
        path = self.data / name
        if not path.is_file():
            raise DataError(f"this suite needs {name} under {self.data}: it comes from {source}.")
        if name not in self.read:
            with path.open("rb") as content:
                self.read[name] = hashlib.file_digest(content, "sha256").hexdigest()
        return path

    def part(self, name: str, settings: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """What `compute` returns (JSON-able), or what an earlier run with the same settings, data and model kept of it.

        settings: everything that decides the part but model, dtype, tokenizer, data files read so far, seed, limit and
        versions.
        """
        frame = [
            self.fingerprint, self.surroundings, str(self.model.dtype), sorted(self.read.items()), self.seed,
            self.limit, self.writing,
        ]  # fmt: skip
        kept = Kept(self.parts, frame)
        found = kept.read(name, settings)
        if found is None or "made" not in found:
            found = {"made": json.loads(json.dumps(compute()))}  # what comes back is the same, kept or not
            kept.write(name, settings, found)
        return found["made"]

    def record(self) -> ModelRecord:
        """Who was measured."""
        return ModelRecord(
            id=str(getattr(self.model.config, "_name_or_path", "") or type(self.model).__name__),
            revision=getattr(self.model.config, "_commit_hash", None),
            fingerprint=self.fingerprint,
            architecture=type(self.model).__name__,
            dtype=str(self.model.dtype).removeprefix("torch."),
            device=str(self.model.device),
            weights=sum(t.size for t in self.targets),
        )

    def versions(self) -> dict[str, str]:
        """Versions of what decides the numbers."""
        return versions()
