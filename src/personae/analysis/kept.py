"""Finished parts of a long analysis, so that one that was killed goes on with the next part.

Each part is one file, written whole or not at all, under the hash of everything that decides it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery import versions
from personae.errors import ArtefactError
from personae.files import replacing
from personae.models import encode, find_targets, fingerprint

__all__ = ["Kept", "weights_hash", "writing"]


@dataclass(frozen=True)
class Kept:
    """The folder of finished parts; None keeps none. frame: what decides every part, JSON-able."""

    folder: Path | None
    frame: Any = None

    def path(self, name: str, decided: Any, suffix: str = ".json") -> Path | None:
        """Where a part lies, or would. name: for people; decided: what decides this part beside the frame."""
        if self.folder is None:
            return None
        key = json.dumps([name, decided, self.frame, versions()], sort_keys=True)
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
                f"cannot keep {path}: {error.strerror}. Free some space, or name another folder with --resume."
            ) from error

    def make(self) -> None:
        """Make the folder. Errors: `ArtefactError`."""
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ArtefactError(
                    f"cannot make the folder {self.folder}: {error.strerror}. Name another with --resume."
                ) from error


def weights_hash(model: PreTrainedModel) -> str:
    """Of all weights, embeddings and norms too, which the fingerprint of the targets leaves out."""
    targets = find_targets(model)
    covered = {id(target.parameter) for target in targets}
    total = hashlib.sha256(fingerprint(targets).encode())
    for name, parameter in sorted(model.named_parameters()):
        if id(parameter) not in covered:
            total.update(f"{name}\0{tuple(parameter.shape)}\0".encode())
            values = parameter.detach().to(torch.bfloat16).contiguous().cpu().flatten()
            total.update(values.view(torch.uint8).numpy().data)
    return total.hexdigest()


def writing(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of how text becomes token ids: the vocabulary, the template, and a question with its answer written so."""
    probe = encode(tokenizer, "What is 1 + 1?", "Two, I think.")
    said = [
        sorted(tokenizer.get_vocab().items()),
        getattr(tokenizer, "chat_template", None),
        probe.prompt,
        probe.answer,
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
