"""From a file to rows: JSON lines, a JSON array, one JSON object, or CSV, each row with its place.

Strict on purpose: a set that silently loses its broken rows measures something else. Every error
names the file and the line.
"""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from personae.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One record: its fields by lower-case name, and where it stands ('data.csv, line 7')."""

    fields: Mapping[str, object]
    where: str

    def text(self, key: str) -> str:
        """The field `key` without outer white space. Raises `DataError` unless it is non-empty text."""
        if key not in self.fields:
            raise DataError(f"{self.where}: there is no '{key}' (found: {', '.join(self.fields)}); add it.")
        return self.checked(key, self.fields[key])

    def texts(self, key: str) -> tuple[str, ...]:
        """The field `key`, a text or a non-empty list of texts."""
        value = self.fields.get(key)
        if not isinstance(value, list):
            return (self.text(key),)
        if not value:
            raise DataError(f"{self.where}: '{key}' is an empty list; give at least one text.")
        return tuple(self.checked(key, item) for item in value)

    def checked(self, key: str, value: object) -> str:
        """`value` as text, or a `DataError` that names this row and `key`."""
        if not isinstance(value, str):
            raise DataError(f"{self.where}: '{key}' must be text, found {type(value).__name__}.")
        if not value.strip():
            raise DataError(f"{self.where}: '{key}' is empty; fill it or remove the row.")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:  # a lone \ud8xx escape is legal JSON and no tokenizer takes it
            raise DataError(f"{self.where}: '{key}' holds half a character (a lone surrogate).") from error
        return value.strip()


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; see `rows_of_text`. Raises `DataError` if it cannot be read as UTF-8 text."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"{path}: cannot be read ({error}); name a readable file.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8.") from error
    return rows_of_text(text, str(path), path.suffix.lower())


def rows_of_text(text: str, name: str, suffix: str) -> list[Row]:
    """The rows of `text`: CSV by `suffix` or if it opens with neither '{' nor '['; JSON otherwise.

    A JSON array gives a row for each element, one JSON object one row, else each line is an object.
    Raises `DataError` for empty text, broken JSON or CSV, and rows that are not objects.
    """
    start = text.lstrip()[:1]
    if not start:
        raise DataError(f"{name}: the file is empty; it needs at least one row.")
    if suffix == ".csv" or (start not in ("{", "[") and suffix not in (".json", ".jsonl")):
        found = list(_csv_rows(text, name))
    elif start == "[":
        found = list(_array_rows(text, name))
    elif suffix == ".json" and not _first_line_is_whole(text):
        value, end = _decoded(text, 0, name)
        _refuse_rest(text, end, name)
        found = [_row(value, name, 1)]
    else:
        found = list(_line_rows(text, name))
    if not found:
        raise DataError(f"{name}: there are no rows; it needs at least one.")
    return found


def each(rows: Sequence[Row], parse: Callable[[Row], T | None], *, strict: bool) -> list[T]:
    """`parse` of every row.

    A row that raises `DataError` is broken: the error passes on, or, not `strict`, the row is left
    out. A row for which `parse` returns None is whole but holds no item, and is always left out.
    What is left out is counted in a warning.
    """
    parsed: list[T] = []
    refused: list[str] = []
    for row in rows:
        try:
            item = parse(row)
        except DataError as error:
            if strict:
                raise
            refused.append(str(error))
            continue
        if item is None:
            refused.append(f"{row.where}: it has no question.")
        else:
            parsed.append(item)
    if refused:
        warnings.warn(f"{len(refused)} of {len(rows)} rows were left out; the first: {refused[0]}", stacklevel=3)
    return parsed


def _line_rows(text: str, name: str) -> Iterator[Row]:
    # Not splitlines(): U+2028 and its like are legal inside a JSON string and end no line of JSONL.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}, line {number}: broken JSON ({error}); mend it.") from error
        yield _row(value, name, number)


def _array_rows(text: str, name: str) -> Iterator[Row]:
    # Element by element, so that a row knows the line on which it begins.
    position = text.index("[") + 1
    line, counted = 1, 0
    while True:
        position = _after_space(text, position)
        if text[position : position + 1] == "]":
            break
        line, counted = line + text.count("\n", counted, position), position
        value, position = _decoded(text, position, name)
        yield _row(value, name, line)
        position = _after_space(text, position)
        if text[position : position + 1] == ",":
            position += 1
        elif text[position : position + 1] != "]":
            line = text.count("\n", 0, position) + 1
            raise DataError(f"{name}, line {line}: broken JSON (',' or ']' is missing); mend it.")
    _refuse_rest(text, position + 1, name)


def _csv_rows(text: str, name: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    header: list[str] = []
    begins = 1
    try:
        for cells in reader:
            line, begins = begins, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{name}, line {line}: {len(cells)} cells under {len(header)} columns "
                    f"({', '.join(header)}); quote cells that hold commas."
                )
            yield _row(dict(zip(header, cells, strict=True)), name, line, columns=len(header))
    except csv.Error as error:
        raise DataError(f"{name}, line {begins}: broken CSV ({error}); mend the quotes.") from error


def _first_line_is_whole(text: str) -> bool:
    """True for JSON lines in a file named .json: the first line alone is already an object."""
    try:
        json.loads(text.lstrip().split("\n", 1)[0])
    except (ValueError, RecursionError):
        return False
    return True


def _decoded(text: str, position: int, name: str) -> tuple[object, int]:
    try:
        value, end = json.JSONDecoder().raw_decode(text, _after_space(text, position))
    except (ValueError, RecursionError) as error:
        broken_at = error.pos if isinstance(error, json.JSONDecodeError) else position
        line = text.count("\n", 0, broken_at) + 1
        raise DataError(f"{name}, line {line}: broken JSON ({error}); mend it.") from error
    return value, end


def _refuse_rest(text: str, position: int, name: str) -> None:
    position = _after_space(text, position)
    if position < len(text):
        line = text.count("\n", 0, position) + 1
        raise DataError(f"{name}, line {line}: broken JSON (text after the end of the data); remove it.")


def _after_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _row(value: object, name: str, line: int, columns: int | None = None) -> Row:
    where = f"{name}, line {line}"
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row must be a JSON object, found {type(value).__name__}.")
    fields = {str(key).strip().lower(): item for key, item in value.items()}
    if len(fields) != (len(value) if columns is None else columns):
        raise DataError(f"{where}: two fields have the same name (case does not count); rename one.")
    return Row(fields, where)
