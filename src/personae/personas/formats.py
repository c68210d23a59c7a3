"""What each public format means: rows in, pairs or voices (answers under one name) out.

| format | fields of a row | gives |
|---|---|---|
| `personae` | prompt, positive, negative (or prompt, answer), after an optional header | pairs (one voice) |
| `csv` | question, matching, not_matching | pairs |
| `csv-ab` | question, A, B, matching ('A' or '(A)') | pairs |
| `anthropic` | question with '(A) … (B) …', answer_matching_behavior, answer_not_matching_behavior | pairs |
| `caa-mmlu` | prompt with '(A) … (B) …', correct, incorrect | pairs |
| `hallucination` | fiction_question, fiction_accepetance (sic), fiction_rejection, or truth_… | pairs |
| `machine-mindset` | instruction, output; perhaps input, dimension, pole | one voice for each pole |
| `rolebench` | role, question, generated (a list) | one voice for each role |
| `persona-vectors` | instruction, questions, eval_prompt | no answers: `read_trait` only |

Field names are compared without case, and the container (CSV, JSON lines, JSON array, Hub) does not
matter.

Odd rows: repeated rows are kept (a split keeps equal questions together); of three and more options
only the matching and the not matching one are read; a two-choice row that is nothing but options (8 of
the 2,000 public power- and wealth-seeking rows) has no question to ask, is left out and counted in a
warning. Everything else that is odd raises.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from personae.errors import DataError, OptionError
from personae.personas.rows import Row, each
from personae.personas.two_choice import checked_pair, letter_of, two_choice_pair
from personae.personas.types import Pair, Sample

# The order matters only for `personae`, whose two forms share 'prompt'.
FIELDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "personae": (("prompt", "positive", "negative"), ("prompt", "answer")),
    "csv": (("question", "matching", "not_matching"),),
    "csv-ab": (("question", "a", "b", "matching"),),
    "anthropic": (("question", "answer_matching_behavior", "answer_not_matching_behavior"),),
    "caa-mmlu": (("prompt", "correct", "incorrect"),),
    "hallucination": tuple(
        (f"{kind}_question", f"{kind}_accepetance", f"{kind}_rejection") for kind in ("fiction", "truth")
    ),
    "machine-mindset": (("instruction", "output"),),
    "rolebench": (("role", "question", "generated"),),
    "persona-vectors": (("instruction", "questions", "eval_prompt"),),
}
POLE_NAMES = {
    "E": "extravert",
    "I": "introvert",
    "S": "sensing",
    "N": "intuitive",
    "T": "thinking",
    "F": "feeling",
    "J": "judging",
    "P": "perceiving",
}
HEADER_FIELDS = (
    *("contrast", "persona", "prompt", "positive", "negative"),
    *("description", "positive_prompt", "negative_prompt", "licence"),
)


@dataclass(frozen=True, slots=True)
class Content:
    """What rows say: `pairs`, or `voices` (samples by pole or role; '' if unnamed), and the header."""

    format: str
    pairs: tuple[Pair, ...] = ()
    voices: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)
    header: Mapping[str, str] = field(default_factory=dict)


def read_content(
    rows: Sequence[Row],
    *,
    format: str | None = None,
    variant: Literal["fiction", "truth"] | None = None,
    strict: bool = True,
) -> Content:
    """The meaning of `rows` in `format`, by default the first whose fields the first row has.

    `variant` belongs to `hallucination`: 'fiction' (default) or 'truth', its control.

    Raises `OptionError` for an unknown format or variant, `DataError` for rows of no known format,
    for a broken row (`strict`; otherwise it is left out and counted in a warning), and for
    `persona-vectors`, which has no answers.
    """
    header: dict[str, str] = {}
    first = rows[0]
    if _is_header(first, rows[1:]):
        header = {key: first.text(key) for key in HEADER_FIELDS if key in first.fields}
        rows = rows[1:]
        if not rows:
            raise DataError(f"{first.where}: there is nothing after the header; add at least one row.")
    readable = (row for row in rows if not strict and _forms_of(row, format))
    form = _chosen_format(next(readable, rows[0]), format)
    if variant is not None and form != "hallucination":
        raise OptionError(f"variant '{variant}' belongs to the format hallucination; this is {form}.")
    if form == "persona-vectors":
        raise DataError(
            f"{rows[0].where}: a persona-vectors trait holds instructions and questions but no answers: "
            "read it with read_trait and generate answers first."
        )
    if form in ("machine-mindset", "rolebench") or (form == "personae" and "positive" not in rows[0].fields):
        voices: dict[str, list[Sample]] = {}
        for name, samples in each(rows, _VOICE_PARSERS[form], strict=strict):
            voices.setdefault(name, []).extend(samples)
        if form == "machine-mindset" and "" in voices and len(voices) > 1:
            missing = next(row for row in rows if not row.fields.get("pole"))
            raise DataError(f"{missing.where}: there is no 'pole', as other rows have; fill it in or remove the row.")
        content = Content(form, voices={k: tuple(v) for k, v in voices.items()}, header=header)
    else:
        parse = _twin_parser(variant or "fiction") if form == "hallucination" else _PAIR_PARSERS[form]
        content = Content(form, pairs=tuple(each(rows, parse, strict=strict)), header=header)
    if not content.pairs and not content.voices:
        raise DataError(f"{rows[0].where} and after: no row could be used; mend them.")
    return content


def _is_header(row: Row, others: Sequence[Row]) -> bool:
    # Data may have a column of that name too: a header does not look like data, and no other row has its field.
    named = {"contrast", "persona"} & row.fields.keys()
    return bool(named) and not _forms_of(row, None) and not any(named & other.fields.keys() for other in others)


def _forms_of(row: Row, format: str | None) -> list[str]:
    """The formats whose fields a row has; of one format: that one or none."""
    asked = FIELDS if format is None else {format: FIELDS.get(format, ())}
    return [name for name, forms in asked.items() if any(row.fields.keys() >= set(form) for form in forms)]


def _chosen_format(row: Row, format: str | None) -> str:
    if format is None:
        for name in _forms_of(row, None):
            return name
        raise DataError(f"{row.where}: {_nearest_form(row, FIELDS)}")
    if format not in FIELDS:
        raise OptionError(f"unknown format '{format}': choose one of {', '.join(FIELDS)}.")
    if not _forms_of(row, format):
        raise DataError(f"{row.where}: {_nearest_form(row, {format: FIELDS[format]})}")
    return format


def _nearest_form(row: Row, formats: Mapping[str, tuple[tuple[str, ...], ...]]) -> str:
    candidates = [(name, form) for name, forms in formats.items() for form in forms]
    name, form = max(candidates, key=lambda c: len(row.fields.keys() & set(c[1])) / len(c[1]))
    missing = ", ".join(key for key in form if key not in row.fields)
    return (
        f"no known format has the fields {', '.join(row.fields) or '(none)'}; '{name}' lacks {missing} "
        f"(it needs {', '.join(form)}). Rename the fields; formats: {', '.join(FIELDS)}."
    )


def _own_pair(row: Row) -> Pair:
    return checked_pair(row, row.text("prompt"), row.text("positive"), row.text("negative"))


def _matching_pair(row: Row) -> Pair:
    return checked_pair(row, row.text("question"), row.text("matching"), row.text("not_matching"))


def _ab_pair(row: Row) -> Pair:
    letter = letter_of(row.text("matching").upper())
    if letter not in ("A", "B"):
        raise DataError(f"{row.where}: 'matching' must be A or B, found '{row.text('matching')}'.")
    answers = row.text("a"), row.text("b")
    return checked_pair(row, row.text("question"), *(answers if letter == "A" else answers[::-1]))


def _anthropic_pair(row: Row) -> Pair | None:
    return two_choice_pair(row, "question", "answer_matching_behavior", "answer_not_matching_behavior")


def _mmlu_pair(row: Row) -> Pair | None:
    return two_choice_pair(row, "prompt", "correct", "incorrect")


def _twin_parser(variant: str) -> Callable[[Row], Pair]:
    if variant not in ("fiction", "truth"):
        raise OptionError(f"unknown variant '{variant}': choose fiction or truth.")

    def parse(row: Row) -> Pair:
        accepted, rejected = row.text(f"{variant}_accepetance"), row.text(f"{variant}_rejection")
        return checked_pair(row, row.text(f"{variant}_question"), accepted, rejected)

    return parse


def _own_voice(row: Row) -> tuple[str, list[Sample]]:
    return "", [Sample(row.text("prompt"), row.text("answer"))]


def _pole_voice(row: Row) -> tuple[str, list[Sample]]:
    prompt = row.text("instruction")
    extra = row.fields.get("input")
    if isinstance(extra, str) and not extra.strip():
        extra = None  # Alpaca-style files write an empty input where there is none
    if extra is not None:
        prompt += "\n" + row.checked("input", extra)
    pole = row.text("pole") if "pole" in row.fields else ""
    return POLE_NAMES.get(pole, pole), [Sample(prompt, row.text("output"))]


def _role_voice(row: Row) -> tuple[str, list[Sample]]:
    question = row.text("question")
    return row.text("role"), [Sample(question, answer) for answer in _listed(row, "generated").texts("generated")]


def _listed(row: Row, key: str) -> Row:
    """The row with the list that a cell of a CSV spells out, as JSON or as pandas writes one; else the row as it is."""
    cell = row.fields.get(key)
    if not isinstance(cell, str) or not cell.strip().startswith("["):
        return row
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(cell.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list):
            return replace(row, fields={**row.fields, key: found})
    return row


_PAIR_PARSERS: Mapping[str, Callable[[Row], Pair | None]] = {
    "personae": _own_pair,
    "csv": _matching_pair,
    "csv-ab": _ab_pair,
    "anthropic": _anthropic_pair,
    "caa-mmlu": _mmlu_pair,
}
_VOICE_PARSERS: Mapping[str, Callable[[Row], tuple[str, list[Sample]]]] = {
    "personae": _own_voice,
    "machine-mindset": _pole_voice,
    "rolebench": _role_voice,
}
