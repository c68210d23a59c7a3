"""The four Machine-Mindset dimensions: which answers calibrate, choose and test, as token ids.

E/I and T/F answer every instruction at both poles and are paired. S/N and J/P are not: there, either each pole brings
its own instructions, or (`instructions='matched'`) each answer of the first pole gets the second pole's answer to the
same, else to the most similar, instruction of the same part as its partner, so that the poles differ less in what was
asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery import Calibration
from personae.errors import DataError, OptionError
from personae.evaluation.retrieval import nearest
from personae.models import Encoded, Question, context_length, encode
from personae.personas import Contrast, Sample, load_contrast, split
from personae.personas.formats import read_content
from personae.personas.sources import open_source
from personae.personas.split import normalised

DIMENSIONS = ("EI", "SN", "TF", "JP")  # the letter of the positive pole first
INSTRUCTIONS = ("as-is", "matched")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as the suite reads it.

    instruction: as compared (white space collapsed, case folded). encoded: the answer cut to the suite's tokens. text:
    what the cut left of it. length: tokens of the whole answer, end of turn included.
    """

    instruction: str
    encoded: Encoded
    text: str
    length: int


Couple = tuple[Answer, Answer]  # of p⁺ and of p⁻; one prompt if paired


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension. poles: letters, positive first. contrast: the calibration part as text."""

    name: str
    poles: tuple[str, str]
    paired: bool
    contrast: Contrast
    calibration: tuple[Couple, ...]
    dev: tuple[Couple, ...]
    test: tuple[Couple, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """At most so many answers a pole of each part, and tokens an answer."""

    calibration: int
    dev: int
    test: int
    tokens: int


def flat(couples: Sequence[Couple]) -> list[Answer]:
    """p⁺'s and p⁻'s answers in turn: the first 2k are those of the first k couples."""
    return [answer for couple in couples for answer in couple]


def items(couples: Sequence[Couple], paired: bool) -> Calibration:
    """Couples as what gradients and margins are taken on."""
    positive, negative = (tuple(couple[side].encoded for couple in couples) for side in (0, 1))
    questions: tuple[Question, ...] = ()
    if paired:
        # A prompt cut from the left may be cut differently for the two answers; the shorter one serves both.
        questions = tuple(
            Question(min(p.prompt, n.prompt, key=len), (p.answer, n.answer))
            for p, n in zip(positive, negative, strict=True)
        )
    return Calibration(questions, positive, negative)


def only_pole(path: Path) -> str | None:
    """The name of the pole if a file holds one only, else None."""
    voices = sorted(read_content(open_source(path).rows).voices)
    return voices[0] if len(voices) == 1 else None


def read_dimension(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    name: str,
    sizes: Sizes,
    *,
    instructions: str = "as-is",
    seed: int = 0,
) -> Dimension:
    """One file, split by instruction (60/20/20) and drawn in the order of a seeded hash, equally many a pole.

    Errors: `DataError` for broken or one-sided files and for fewer than two calibration answers a pole; `OptionError`
    for unknown `instructions`.
    """
    if instructions not in INSTRUCTIONS:
        raise OptionError(f"unknown instructions {instructions!r}: choose {', '.join(INSTRUCTIONS)}.")
    contrast = load_contrast(path, format="machine-mindset", positive=name[0], negative=name[1])
    asked = [{normalised(s.prompt) for s in contrast.samples(pole)} for pole in contrast.poles]
    paired = asked[0] == asked[1]
    parts = split(contrast, seed=seed)
    drawn = [
        _couples(part, number, paired or instructions == "matched", paired, seed)
        for part, number in zip(parts, (sizes.calibration, sizes.dev, sizes.test), strict=True)
    ]
    if len(drawn[0]) < 2:
        raise DataError(f"{path.name}: the calibration part needs two answers a pole or more; give more rows.")
    context = context_length(model)

    def answer(sample: Sample) -> Answer:
        whole = encode(tokenizer, sample.prompt, sample.answer, context=context)
        cut = whole.answer[: sizes.tokens]
        text = str(tokenizer.decode(list(cut), skip_special_tokens=True))
        return Answer(normalised(sample.prompt), Encoded(whole.prompt, cut), text, len(whole.answer))

    calibration, dev, test = (tuple((answer(p), answer(n)) for p, n in part) for part in drawn)
    return Dimension(name, (name[0], name[1]), paired, parts.calibration, calibration, dev, test)


def _couples(part: Contrast, number: int, match: bool, same_only: bool, seed: int) -> list[tuple[Sample, Sample]]:
    """At most `number` couples of a part, each sample in at most one.

    match: partners answer the same instruction as far as there are such, then (unless same_only) the most similar by
    BM25. Otherwise the two poles are drawn independently.
    """
    own, rival = (sorted(part.samples(pole), key=lambda s: _order(s, seed)) for pole in part.poles)
    if not match:
        return list(zip(own, rival, strict=False))[:number]
    free = dict(enumerate(rival))
    by_instruction: dict[str, list[int]] = {}
    for place, sample in free.items():
        by_instruction.setdefault(normalised(sample.prompt), []).append(place)
    couples: list[tuple[Sample, Sample]] = []
    alone: list[Sample] = []
    for sample in own:
        same = by_instruction.get(normalised(sample.prompt))
        if same:
            couples.append((sample, free.pop(same.pop(0))))
        else:
            alone.append(sample)
    wanted = 0 if same_only else number - len(couples)
    if wanted > 0 and free and alone:
        alone = alone[:wanted]
        ranked = nearest([s.prompt for s in rival], [s.prompt for s in alone], len(rival))
        for sample, order in zip(alone, ranked, strict=True):
            partner = next((p for p in order if p in free), None)
            if partner is not None:
                couples.append((sample, free.pop(partner)))
    return couples[:number]


def _order(sample: Sample, seed: int) -> tuple[bytes, str]:
    # Another seed than that of the split: within a part the split's own hash is not uniform.
    content = f"draw {seed}\0{normalised(sample.prompt)}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=8).digest(), sample.answer
