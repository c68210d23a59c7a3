"""The file of one analysis: what was found, and everything that is needed to find it again.

    {"format": "personae.analysis/1", "kind": …, "command": …, "model": {…}, "inputs": {…}, "settings": {…},
     "seed": …, "versions": {…}, "notes": […], "result": {…}}

`result` is the analysis' own dataclass. Numbers are unrounded; those that are not finite become null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from personae.discovery import versions
from personae.errors import ArtefactError, DataError
from personae.evaluation.results import ModelRecord
from personae.files import replacing

__all__ = ["FORMAT", "KINDS", "Record", "plain", "read_result", "said", "write_result"]

FORMAT = "personae.analysis/1"
KINDS = ("audit", "causal-map", "compare", "dynamics", "trace")


@dataclass(frozen=True, slots=True)
class Record:
    """What stands beside every result. kind: one of `KINDS`. command: what makes it again on the command line.

    model: what was measured; None where artefacts alone were read. inputs: SHA-256 by file or data set. settings:
    every option that decides a figure.
    """

    kind: str
    command: str
    model: ModelRecord | None
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    seed: int = 0
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=versions)


def write_result(path: Path, record: Record, result: Any) -> dict[str, Any]:
    """Write the file atomically; returns what it says. result: a dataclass or a mapping of JSON-able values.

    Errors: `ArtefactError` when it cannot be written; then an older file is still whole.
    """
    text = said(record, result)
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(text, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ArtefactError(f"cannot write {path}: {error.strerror}. Free some space or name another.") from error
    return text


def said(record: Record, result: Any) -> dict[str, Any]:
    """What the file says, as plain values: for `write_result`, and for printing without a file."""
    return {"format": FORMAT, **plain(record), "result": plain(result)}


def read_result(path: Path) -> dict[str, Any]:
    """What a file says. Errors: `DataError` for no JSON, another format or version, or a kind that is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}.") from error
    version = found.get("format") if isinstance(found, dict) else None
    if version != FORMAT:
        raise DataError(f"{path} has the format {version!r}, not {FORMAT!r}: make it again with this version.")
    if found.get("kind") not in KINDS or not isinstance(found.get("result"), dict):
        raise DataError(f"{path} says that it is a {found.get('kind')!r}: known are {', '.join(KINDS)}.")
    return dict(found)


def plain(value: Any) -> Any:
    """JSON-able values: dataclasses and mappings become objects, sequences and arrays lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
