"""Which questions calibrate, which choose (dev), and which are touched once (test).

The part of a question is a hash of the question itself. So it is the same whatever else is in the
file, in whatever order, and the same question never stands on both sides, not even when the two
poles of an unpaired set both answer it.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from personae.errors import DataError, OptionError
from personae.personas.types import Contrast, Persona

T = TypeVar("T", Contrast, Persona)
PARTS = ("calibration", "dev", "test")


class Split(NamedTuple, Generic[T]):
    """Three parts without a question in common: to find masks, to choose settings, to report."""

    calibration: T
    dev: T
    test: T


def normalised(question: str) -> str:
    """The question as compared: composed (NFC), white space collapsed, case folded.

    One 'é' may be written as a letter or as a letter and an accent; the same question must not fall into two parts.
    """
    return " ".join(unicodedata.normalize("NFC", question).split()).casefold()


def split(data: T, *, seed: int = 0, fractions: Sequence[float] = (0.6, 0.2, 0.2)) -> Split[T]:
    """Split by hash of the question into calibration, dev and test.

    With u = blake2b(seed, normalised question) / 2^64 in [0, 1), a question is calibration if
    u < f1, dev if u < f1 + f2, test otherwise. The sizes are therefore near the fractions, not
    exactly them.

    Raises `OptionError` unless there are three fractions above 0 that sum to 1, and `DataError` if a
    part (or a pole in it) is left without items.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise OptionError(f"fractions must be three numbers above 0 that sum to 1, found {tuple(fractions)}.")
    first, second = fractions[0], fractions[0] + fractions[1]

    def part_of(question: str) -> str:
        share = _hash(question, seed) / 2**64
        return PARTS[0] if share < first else PARTS[1] if share < second else PARTS[2]

    def part(name: str) -> T:
        advice = f"the {name} part of '{data.name}' has no items of at least one pole"
        return _subset(data, lambda question: part_of(question) == name, advice)

    return Split(*(part(name) for name in PARTS))


def cross_fit(data: T, folds: int = 5, *, seed: int = 0) -> list[tuple[T, T]]:
    """For small sets: `folds` couples (calibration, test), each question in exactly one test.

    The distinct questions are ranked by their hash and dealt in turn, so the folds differ by at most
    one question; rows with the same question stay together.

    Raises `OptionError` if `folds` < 2, and `DataError` if there are fewer questions than folds or a
    fold lacks a pole.
    """
    if folds < 2:
        raise OptionError(f"cross-fit needs at least 2 folds, found {folds}.")
    questions = sorted({normalised(p) for p in data.prompts}, key=lambda q: (_hash(q, seed), q))
    if len(questions) < folds:
        raise DataError(
            f"'{data.name}' has {len(questions)} distinct questions, too few for {folds} folds: "
            "ask for fewer folds or give more data."
        )
    fold_of = {question: rank % folds for rank, question in enumerate(questions)}

    def couple(fold: int) -> tuple[T, T]:
        advice = f"fold {fold + 1} of {folds} of '{data.name}' has no items of at least one pole"
        calibration = _subset(data, lambda question: fold_of[normalised(question)] != fold, advice)
        return calibration, _subset(data, lambda question: fold_of[normalised(question)] == fold, advice)

    return [couple(fold) for fold in range(folds)]


def _subset(data: T, keep: Callable[[str], bool], problem: str) -> T:
    try:
        return data.subset(keep)
    except DataError as error:
        raise DataError(
            f"{problem} (of {len(data)}): use cross-fit (--cross-fit 5), fewer folds, or more data."
        ) from error


def _hash(question: str, seed: int) -> int:
    # Surrogates cannot be encoded strictly; the readers refuse them, hand-made pairs may hold them.
    content = f"{seed}\0{normalised(question)}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
