"""The text that masks must leave alone: public WikiText-2 and Machine-Mindset answers, else the model's own samples.

Two texts with nothing in common: one that discovery reads (cheapness, price, budget) and one on which the final
capability loss is measured (docs/methods.md sections 6.6 and 7).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from personae.discovery import GenericText, generic_text, windows
from personae.errors import DataError, OptionError
from personae.evaluation.capability_texts import CapabilityText, unread_text
from personae.evaluation.suites.context import SuiteContext
from personae.models import Encoded, context_length, encode
from personae.personas.rows import read_rows

WIKITEXT = "wikitext2_tokenised/wikitext-2/valid.txt"
WIKITEXT_SOURCE = "the validation part of WikiText-2 (pytorch/examples; Salesforce/wikitext on the Hub)"
MIND_SOURCE = "Machine-Mindset (GitHub PKU-YuanGroup/Machine-Mindset; FarReelAILab/Machine_Mindset on the Hub)"
GENERIC_FILES = ("SN", "JP", "EI")
FINAL_FILE = "TF"
CONTEXT = 1024  # tokens of an answer with its prompt; a longer prompt loses its beginning


@dataclass(frozen=True, slots=True)
class TextSize:
    """How much text: answers that the price and each probe of the budget read (twice as many are gathered, and two
    thirds of it plain windows); windows and answers of the final text."""

    answers: int
    final_windows: int
    final_answers: int

    def __post_init__(self) -> None:
        if min(self.answers, self.final_windows) < 1 or self.final_answers < 2:
            raise OptionError(f"{self}: at least 1 answer, 1 window and 2 final answers (one of each pole) are needed.")


BENCHMARK = TextSize(64, 24, 200)  # the definition of section 7
QUICK = TextSize(16, 6, 24)  # about an eighth of the time


def suite_texts(context: SuiteContext, size: TextSize = BENCHMARK) -> tuple[GenericText, CapabilityText]:
    """(generic text of discovery, text of the final figures): public where all files are there, else sampled.

    A text that was sampled says so in its name. Errors: `DataError` for a file that cannot be read.
    """
    names = [WIKITEXT, *(_mind_file(d) for d in (*GENERIC_FILES, FINAL_FILE))]
    if all((context.data / name).is_file() for name in names):
        return public_texts(context, size)
    generic = generic_text(context.model, context.tokenizer, context.targets, answers=size.answers, seed=context.seed)
    return generic, unread_text(generic)


def identity(generic: GenericText | str | Path | None) -> str:
    """What tells generic text, or its source, from another, for the settings of a part.

    How many answers are read of a text decides masks as much as its words; a file may change under its name.
    """
    if isinstance(generic, GenericText):
        return f"{generic.sha256}, {generic.answers} answers read"
    if generic is None:
        return "sampled from the model"
    if not Path(generic).is_file():
        return str(generic)
    with Path(generic).open("rb") as content:
        return f"{generic}, {hashlib.file_digest(content, 'sha256').hexdigest()}"


def public_texts(
    context: SuiteContext, size: TextSize = BENCHMARK, files: Sequence[str] = GENERIC_FILES
) -> tuple[GenericText, CapabilityText]:
    """Generic: first half of WikiText-2 validation, and answers of the Machine-Mindset `files` in turn. Final: second
    half, and answers of TF. A contrast made from one of the files leaves it out; they share no instruction."""
    text = context.file(WIKITEXT, WIKITEXT_SOURCE).read_text("utf-8")
    wiki = windows(context.tokenizer, text)
    half = len(wiki) // 2
    if not half:
        raise DataError(f"{WIKITEXT} holds {len(wiki)} windows of text: two are needed, one for each of its halves.")
    number, plain = 2 * size.answers, 2 * math.ceil(size.answers / 3)
    answers = [mind_answers(context, name, 2 * math.ceil(number / (2 * len(files)))) for name in files]
    generic = GenericText(
        _spread(wiki[:half], plain),
        in_turn(answers, number),
        "WikiText-2 validation (1st half), mbti/{" + ",".join(files) + "}_dev",
        answers=size.answers,
    )
    plain_final = _spread(wiki[half:], size.final_windows, half)
    chat_final = mind_answers(context, FINAL_FILE, size.final_answers)
    name = (
        f"WikiText-2 validation (2nd half, {len(plain_final)} windows of 256 tokens), {len(chat_final)} answers of "
        f"mbti/{FINAL_FILE}_dev"
    )
    return generic, CapabilityText(plain_final, chat_final, name)


def mind_answers(context: SuiteContext, dimension: str, number: int, seed: int = 0) -> tuple[Encoded, ...]:
    """`number` reference answers of one Machine-Mindset file, both poles equally, in the order of a seeded hash."""
    rows = [
        (row.text("pole"), row.text("instruction"), row.text("output"))
        for row in read_rows(context.file(_mind_file(dimension), MIND_SOURCE))
    ]
    limit = min(CONTEXT, context_length(context.model) or CONTEXT)
    chosen: list[Encoded] = []
    for pole in sorted({pole for pole, _, _ in rows}):
        own = [(instruction, output) for found, instruction, output in rows if found == pole]
        own.sort(key=lambda row: hashlib.sha256(f"{seed}\0{row[0]}\0{row[1]}".encode()).digest())
        chosen += [encode(context.tokenizer, *row, context=limit) for row in own[: number // 2]]
    return tuple(chosen)


def in_turn(files: Sequence[tuple[Encoded, ...]], number: int) -> tuple[Encoded, ...]:
    """`number` answers of several files, each half one pole and half the other, dealt in turn.

    Every second text calibrates (`GenericText`): rows of the deal are turned by one from row to row, so that both
    halves hold each file and each pole equally often.
    """
    poles = [part for file in files for part in (file[: len(file) // 2], file[len(file) // 2 :])]
    short = min(len(part) for part in poles)
    rows = list(zip(*(part[:short] for part in poles), strict=True))
    width = len(poles)
    return tuple(row[(place + i) % width] for i, row in enumerate(rows) for place in range(width))[:number]


def _mind_file(dimension: str) -> str:
    return f"mbti/{dimension}_dev.jsonl"


def _spread(items: Sequence[Encoded], number: int, half: int | None = None) -> tuple[Encoded, ...]:
    """`number` windows at even distances from the first on."""
    return tuple(items[:: max((half or len(items)) // number, 1)][:number])
