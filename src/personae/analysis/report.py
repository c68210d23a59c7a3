"""One report of any set of result files and artefacts: a page that needs nothing else, and figures for papers.

1. Read every file; its kind and version are named inside it (`report_read`).
2. Files of different models stand in one report only where that is asked for, and no figure compares across them.
3. Each file becomes a part of tables and figures as plain data; what several files say together comes first
   (`report_parts`).
4. The page draws the figures with Plotly, which it carries within itself (`report_page`); files for papers draw the
   same data with Matplotlib.

Nothing is measured here but the overlap of artefacts that are given together. The same files give the same bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from personae.analysis.report_pieces import Part
from personae.analysis.report_read import Given, read_file
from personae.errors import ArtefactError, MaskMismatchError, OptionError
from personae.files import replacing

__all__ = ["FORMAT", "Report", "report"]

FORMAT = "personae.report/1"
TITLE = "personae report"


@dataclass(frozen=True, slots=True)
class Report:
    """What a set of files says. parts: what they say together, then one a file, in the order given."""

    title: str
    parts: tuple[Part, ...]

    def html(self) -> str:
        """The page: one file, no network. Errors: `OptionError` without Jinja2 or Plotly."""
        from personae.analysis.report_page import to_html

        return to_html(self.title, self.parts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page atomically. Errors: those of `html`; `ArtefactError` for what cannot be written."""
        _write(Path(path), self.html().encode("utf-8"))

    def figures(self, folder: str | os.PathLike[str], form: str = "svg") -> tuple[Path, ...]:
        """Write every figure as a file of its own, 'PART-KEY.FORM', and return the paths in the order of the page.

        form: 'svg', 'png' or 'pdf'. The folder is made if it is not there; other files in it stay. Errors:
        `OptionError` for another form or without Matplotlib; `ArtefactError` for what cannot be written.
        """
        from personae.analysis.report_matplotlib import draw

        drawn = {name: draw(figure, form) for name, figure in self._named()}
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtefactError(f"cannot make {folder}: {error.strerror}. Name another --figures.") from error
        written = []
        for name, content in drawn.items():
            path = folder / f"{name}.{form}"
            _write(path, content)
            written.append(path)
        return tuple(written)

    def to_dict(self) -> dict[str, Any]:
        """What the report holds: format, title, and by part its kind, file, hash, model, findings and figure names."""
        names = [name for name, _ in self._named()]
        parts = []
        for place, part in enumerate(self.parts, 1):
            own = [name for name in names if name.startswith(f"{place:02d}-")]
            parts.append({
                "title": part.title, "kind": part.kind, "source": part.source, "sha256": part.sha256 or None,
                "model": None if part.model is None else part.model.id or None,
                "fingerprint": None if part.model is None else part.model.fingerprint,
                "findings": list(part.findings), "tables": [table.title for table in part.tables], "figures": own,
                "command": part.command,
            })  # fmt: skip
        return {"format": FORMAT, "title": self.title, "parts": parts}

    def _named(self) -> list[tuple[str, Any]]:
        """(name of the file without its ending, figure), names all different and safe on every disk."""
        return [
            (f"{place:02d}-{part.kind}-{number:02d}-{slug(figure.key)}", figure)
            for place, part in enumerate(self.parts, 1)
            for number, figure in enumerate(part.figures, 1)
        ]


def report(
    files: Sequence[str | os.PathLike[str]], *, title: str = TITLE, allow_mixed: bool = False
) -> Report:  # fmt: skip
    """A report of result files (of `eval`, suites and the analyses), frontiers of the benchmarks and `.persona` files.

    allow_mixed: take files of different models; each keeps its own part, and figures that compare are made within one
    model only. Errors: `OptionError` for no file, or one given twice; `DataError` for a file that is no JSON, of a
    format or version this package does not read, or damaged; `ArtefactError` for a broken artefact;
    `MaskMismatchError` for files of different models.
    """
    from personae.analysis.report_parts import parts_of

    paths = [Path(path).expanduser() for path in files]
    if not paths:
        raise OptionError("no file was given: name result files and .persona files.")
    seen: dict[Path, Path] = {}
    for path in paths:
        if path.resolve() in seen:
            raise OptionError(f"{path} is given twice: leave one out.")
        seen[path.resolve()] = path
    given = _named([read_file(path) for path in paths])
    if not allow_mixed:
        _check_one_model(given)
    return Report(title, parts_of(given))


def _check_one_model(files: Sequence[Given]) -> None:
    """Errors: `MaskMismatchError` naming two files and their models."""
    known = [each for each in files if each.model is not None]
    for other in known[1:]:
        first = known[0]
        if first.model is None or other.model is None or first.model.fingerprint == other.model.fingerprint:
            continue
        raise MaskMismatchError(
            f"{first.name} is of {first.model}, but {other.name} of {other.model}: figures of different weights do not "
            "compare. Make one report a model, or give --allow-mixed (allow_mixed=True), which keeps them apart."
        )


def _named(files: Sequence[Given]) -> list[Given]:
    """The same; a model that a file names by its fingerprint alone gets the name that another file has for it."""
    names = {f.model.fingerprint: f.model.id for f in reversed(files) if f.model is not None and f.model.id}
    return [
        f if f.model is None else replace(f, model=replace(f.model, id=names.get(f.model.fingerprint, f.model.id)))
        for f in files
    ]


def slug(text: str) -> str:
    """Small letters, digits and hyphens; 'figure' where nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "figure"


def _write(path: Path, content: bytes) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise ArtefactError(
            f"cannot write {path}: {error.strerror or error}. Free some space or name another file."
        ) from error
