"""From a path to what a file holds: which kind it is, whose model, and fields that must be there.

Formats are named inside the files; a file of another format or version is refused and never guessed at. Only the
frontier of the benchmarks names no format: it is known by its fields, all of which must be there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personae.analysis.report_pieces import ModelName
from personae.analysis.results import FORMAT as ANALYSIS
from personae.analysis.results import KINDS
from personae.errors import ArtefactError, DataError
from personae.evaluation.suites.report import FORMAT as SUITE
from personae.evaluation.table import FORMAT as EVALUATION
from personae.subnetwork import Artefact, load

__all__ = ["Given", "Said", "read_file"]

FORMATS = (ANALYSIS, EVALUATION, SUITE)
FRONTIER = {"points", "budget", "fingerprint", "test_sha256", "text_sha256", "set"}


@dataclass(frozen=True, eq=False)
class Given:
    """One file. kind: 'artefact', 'evaluation', 'suite', 'frontier', or one of `results.KINDS`. said: its JSON.

    frame: of an evaluation that a benchmark has wrapped, what stands around it. model: None where the file belongs to
    no single model.
    """

    path: Path
    sha256: str
    kind: str
    model: ModelName | None
    said: Said
    frame: Mapping[str, Any]
    artefact: Artefact | None = None

    @property
    def name(self) -> str:
        """Name of the file, without folders: reports are passed on."""
        return self.path.name


class Said:
    """A JSON object of a file whose fields are asked for by name and type; what is not there is told with its place.

    Every method raises `DataError` with file and field.
    """

    def __init__(self, content: Any, file: str, place: str = "") -> None:
        self.file, self.place = file, place
        if not isinstance(content, Mapping):
            raise DataError(f"{file}: {place or 'the content'} is no object: make the file again.")
        self.content: Mapping[str, Any] = content

    def _need(self, name: str, what: str, fits: bool, value: Any) -> Any:
        if not fits:
            said = "is missing" if name not in self.content else f"is {str(value)[:60]!r} and not {what}"
            raise DataError(f"{self.file}: {self._at(name)} {said}: the file is damaged or altered; make it again.")
        return value

    def _at(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.content.get(name) is not None

    def text(self, name: str) -> str:
        """A field that holds text."""
        value = self.content.get(name)
        return str(self._need(name, "text", isinstance(value, str), value))

    def number(self, name: str) -> float:
        """A field that holds a finite number."""
        value = self.content.get(name)
        return float(self._need(name, "a number", _is_number(value), value))

    def maybe(self, name: str) -> float | None:
        """A number, or None where the field is null or absent."""
        return self.number(name) if self.has(name) else None

    def whole(self, name: str) -> int:
        """A field that holds a whole number."""
        value = self.content.get(name)
        return int(self._need(name, "a whole number", isinstance(value, int) and not isinstance(value, bool), value))

    def object(self, name: str) -> Said:
        """A field that holds an object."""
        value = self.content.get(name)
        self._need(name, "an object", isinstance(value, Mapping), value)
        return Said(value, self.file, self._at(name))

    def objects(self, name: str) -> list[Said]:
        """A field that holds a list of objects."""
        return [Said(item, self.file, f"{self._at(name)}[{i}]") for i, item in enumerate(self.list(name))]

    def list(self, name: str) -> list[Any]:
        """A field that holds a list."""
        value = self.content.get(name)
        found: list[Any] = self._need(name, "a list", isinstance(value, list), value)
        return found

    def texts(self, name: str, *, optional: bool = False) -> tuple[str, ...]:
        """A list of texts; optional: none where the field is null or absent."""
        if optional and not self.has(name):
            return ()
        value = self.list(name)
        self._need(name, "a list of texts", all(isinstance(item, str) for item in value), value)
        return tuple(value)

    def numbers(self, name: str) -> tuple[float | None, ...]:
        """A list of numbers, or nulls where a number was not finite."""
        value = self.list(name)
        self._need(name, "a list of numbers", all(item is None or _is_number(item) for item in value), value)
        return tuple(None if item is None else float(item) for item in value)

    def estimate(self, name: str) -> tuple[float, float, float]:
        """(value, low, high) of a figure with its interval."""
        inner = self.object(name)
        return inner.number("value"), inner.number("low"), inner.number("high")

    def maybe_estimate(self, name: str) -> tuple[float, float, float] | None:
        """The same, or None where the field is null or absent."""
        return self.estimate(name) if self.has(name) else None


def read_file(path: Path) -> Given:
    """What a file holds. Errors: `DataError` for no JSON, an unknown format or version; `ArtefactError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if path.suffix == ".persona":
        artefact = _artefact(path)
        nothing = Said({}, path.name)
        model = ModelName(artefact.model.id, artefact.model.fingerprint)
        return Given(path, sha256, "artefact", model, nothing, {}, artefact)
    try:
        said = Said(json.loads(content.decode("utf-8"), parse_constant=lambda word: None), path.name)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} is no JSON ({error}): give result files of eval and of the analyses, and .persona files."
        ) from error
    kind, said, frame = _kind(path, said)
    return Given(path, sha256, kind, _model(kind, said), said, frame)


def _artefact(path: Path) -> Artefact:
    artefact = load(path)
    if not artefact.personas:
        raise ArtefactError(f"{path} holds no persona: leave it out.")
    return artefact


def _kind(path: Path, said: Said) -> tuple[str, Said, Mapping[str, Any]]:
    """(kind, the object of that kind, what stands around it)."""
    found = said.content
    if "format" not in found and isinstance(found.get("evaluation"), Mapping):
        frame = {key: value for key, value in found.items() if key not in ("evaluation", "artefact")}
        kind, inner, _ = _kind(path, said.object("evaluation"))
        return kind, inner, frame
    if "format" not in found and set(found) >= FRONTIER:
        return "frontier", said, {}
    named = found.get("format")
    if named == EVALUATION:
        return "evaluation", said, {}
    if named == SUITE:
        return "suite", said, {}
    if named == ANALYSIS:
        if found.get("kind") not in KINDS:
            raise DataError(f"{path} says that it is a {found.get('kind')!r}: known are {', '.join(KINDS)}.")
        return str(found["kind"]), said, {}
    raise DataError(
        f"{path} has the format {named!r}; this version reads {', '.join(FORMATS)}, the frontier of the benchmarks, "
        "and .persona files. Make the file again with this version, or leave it out."
    )


def _model(kind: str, said: Said) -> ModelName | None:
    if kind == "frontier":
        return ModelName("", said.text("fingerprint"))
    if kind == "dynamics":  # a series of checkpoints, each with weights of its own
        return None
    if kind in ("compare", "audit") and said.object("result").has("fingerprint"):
        result = said.object("result")
        return ModelName(result.text("model"), result.text("fingerprint"))
    if not said.has("model"):
        return None
    model = said.object("model")
    return ModelName(model.text("id"), model.text("fingerprint")) if model.text("fingerprint") else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def walked(said: Said, name: str) -> Iterator[tuple[str, Said]]:
    """(key, object) of a field that maps names to objects, in the file's order."""
    inner = said.object(name)
    for key in inner.content:
        yield key, inner.object(key)
