"""Where text comes from: a built-in set, a file, or the Hugging Face Hub.

A source given as text is tried in this order: `hub:owner/name[:split][#file]`; the name of a
built-in contrast (write './name' for a file of the same name); a path.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from personae.errors import DataError, OptionError
from personae.personas.rows import Row, read_rows, rows_of_text

_HUB = re.compile(r"hub:(?P<id>[^:#\s]+)(?::(?P<split>[^#\s]+))?(?:#(?P<file>.+))?")


@dataclass(frozen=True, slots=True)
class Source:
    """Rows, the name they suggest for a persona, and where they came from.

    `turned`: a built-in contrast was asked for with its poles in the other order.
    """

    rows: list[Row]
    stem: str
    origin: str
    turned: bool = False


def list_contrasts() -> list[str]:
    """The names of the built-in contrasts, sorted."""
    return sorted(item.name.removesuffix(".jsonl") for item in _folder().iterdir() if _is_set(item))


def open_source(source: str | Path) -> Source:
    """The rows behind `source`.

    Raises `DataError` if a file or Hub data set cannot be read, `OptionError` if `source` is neither
    built in nor a path nor of the form `hub:…`.
    """
    if isinstance(source, str):
        if source.startswith("hub:"):
            return _from_hub(source)
        name, turned = _built_in_name(source)
        if name:
            text = _folder().joinpath(f"{name}.jsonl").read_text(encoding="utf-8")
            origin = f"built-in {name}"
            return Source(rows_of_text(text, origin, ".jsonl"), name, origin, turned)
        looks_like_path = Path(source).suffix or os.sep in source or "/" in source
        if not looks_like_path and not os.path.exists(source):
            raise OptionError(_unknown(source))
    path = Path(source)
    return Source(read_rows(path), path.stem, str(source))


def _folder() -> Traversable:
    return files("personae").joinpath("data", "contrasts")


def _is_set(item: Traversable) -> bool:
    return item.name.endswith(".jsonl")


def _built_in_name(source: str) -> tuple[str | None, bool]:
    """The built-in set that `source` names, by its name or by its two poles; True if they are turned."""
    names = list_contrasts()
    if source in names:
        return source, False
    for name in names:
        with _folder().joinpath(f"{name}.jsonl").open(encoding="utf-8") as lines:
            header = json.loads(lines.readline())
        if source == f"{header['positive']}-{header['negative']}":
            return name, False
        if source == f"{header['negative']}-{header['positive']}":
            return name, True
    return None, False


def _unknown(source: str) -> str:
    names = list_contrasts()
    near = difflib.get_close_matches(source, names, n=3, cutoff=0.4) or names
    return (
        f"'{source}' is no built-in contrast, no file and no hub: id. Did you mean {', '.join(near)}? "
        "Otherwise give a path, or hub:owner/name."
    )


def _from_hub(source: str) -> Source:
    found = _HUB.fullmatch(source)
    if not found:
        raise OptionError(f"'{source}': write hub:owner/name, with :split and #file after it if needed.")
    try:
        # An extra, imported when asked for; by name because it ships no type information.
        datasets = import_module("datasets")
    except ImportError as error:
        raise DataError(f'{source}: the Hub needs datasets: pip install "personae[hub]".') from error
    split = found["split"] or "train"
    data_files = {split: found["file"]} if found["file"] else None
    try:
        data: Iterable[Mapping[str, object]] = datasets.load_dataset(found["id"], data_files=data_files, split=split)
        rows = [_hub_row(fields, f"{source}, row {i}") for i, fields in enumerate(data, start=1)]
    except Exception as error:
        # The Hub client raises errors of four libraries without a common base; all of them mean that
        # this data set could not be had, and the reason is in their text.
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise DataError(f"{source}: cannot be loaded ({reason}); check the id, the split and the network.") from error
    if not rows:
        raise DataError(f"{source}: there are no rows; name another split or file.")
    return Source(rows, Path(found["file"] or found["id"]).stem, source)


def _hub_row(fields: Mapping[str, object], where: str) -> Row:
    # A table fills absent fields with None; a row of JSON lines would not have them at all.
    return Row({key.strip().lower(): value for key, value in fields.items() if value is not None}, where)
