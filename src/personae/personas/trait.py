"""Traits as the persona-vectors project writes them: instructions and questions, answers yet to come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from personae.errors import DataError
from personae.personas.rows import Row, read_rows


@dataclass(frozen=True, slots=True)
class Trait:
    """Material to generate a contrast from: system prompts for and against a trait, and questions.

    `eval_prompt` is the rubric with '{question}' and '{answer}' that a judge model reads.
    Format: Chen et al. 2025, arXiv 2507.21509.
    """

    name: str
    positive_prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    questions: tuple[str, ...]
    eval_prompt: str


def read_trait(path: str | Path) -> Trait:
    """A trait from JSON {"instruction": [{"pos", "neg"}, …], "questions": […], "eval_prompt"}.

    It is named after the file. Raises `DataError` for anything else, naming the file and the field.
    """
    path = Path(path)
    rows = read_rows(path)
    if len(rows) != 1:
        raise DataError(f"{path}: a trait is one JSON object, found {len(rows)} rows.")
    row = rows[0]
    instructions = row.fields.get("instruction")
    if not isinstance(instructions, list) or not instructions:
        raise DataError(f'{row.where}: \'instruction\' must be a non-empty list of {{"pos", "neg"}}.')
    return Trait(
        name=path.stem,
        positive_prompts=tuple(_instruction(row, item, "pos") for item in instructions),
        negative_prompts=tuple(_instruction(row, item, "neg") for item in instructions),
        questions=row.texts("questions"),
        eval_prompt=row.text("eval_prompt"),
    )


def _instruction(row: Row, item: object, side: str) -> str:
    if not isinstance(item, dict):
        raise DataError(f"{row.where}: each 'instruction' must be an object with 'pos' and 'neg'.")
    return row.checked(f"instruction.{side}", item.get(side))
