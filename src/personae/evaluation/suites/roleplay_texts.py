"""Characters as text: who speaks, what was asked, and which answers of others stand against a character's own."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException  # type: ignore[import-untyped]
from defusedxml.ElementTree import parse  # type: ignore[import-untyped]
from numpy.typing import NDArray

from personae.errors import DataError
from personae.evaluation.retrieval import nearest
from personae.personas import Persona, Sample, split
from personae.personas.formats import read_content
from personae.personas.rows import read_rows

FRACTIONS = (0.6, 0.1, 0.3)  # dev serves only the search of a budget, so test gets more of a small set
DEV_ITEMS = 8
PLAY_SPEAKERS = 5
FEWEST_WORDS = 4  # of a speech and of the speech before it: 'Ay, sir.' is nobody's voice
MOST_PROMPT_WORDS = 60  # of the speech before: its end is what is answered

Cast = dict[str, Persona]


def rolebench_cast(path: Path) -> Cast:
    """Every character of a RoleBench file by name, sorted. The name is taken out where a question opens with it.

    Nearly every question does ('Jack Sparrow, how did you …'); a mask that only hears its name would then look like a
    mask that plays the part. Errors: `DataError` for fewer than two characters or rows of another form.
    """
    voices = read_content(read_rows(path), format="rolebench").voices
    cast = {
        role: Persona(role, tuple(Sample(unaddressed(s.prompt, role), s.answer) for s in voices[role]))
        for role in sorted(voices)
    }
    if len(cast) < 2:
        raise DataError(f"{path} holds one character; role play compares at least two.")
    return cast


def unaddressed(question: str, role: str) -> str:
    """The question without the address it opens with: words of the role's name up to the first comma."""
    address, comma, rest = question.partition(",")
    name = _words(role)
    if comma and rest.strip() and 0 < len(_words(address)) <= len(name) and set(_words(address)) <= set(name):
        rest = rest.strip()
        return rest[0].upper() + rest[1:]
    return question


def play_cast(path: Path, speakers: int = PLAY_SPEAKERS) -> Cast:
    """The speakers of a play with most lines (equal: by name), by name: the speech before, and the speech.

    path: XML with SCENE / SPEECH / SPEAKER and LINE (Bosak's Shakespeare). Stage directions are left out, also those
    inside a line; so is a speech that opens a scene, follows one of the same speaker, is spoken by several at once, or
    has, like the one before it, fewer than `FEWEST_WORDS` words. Errors: `DataError` for a file of another form.
    """
    try:
        root: Element = parse(path).getroot()
    except (ParseError, OSError, DefusedXmlException) as error:
        raise DataError(f"{path} cannot be read as XML ({error!r}); give a speaker-tagged play.") from error
    lines: Counter[str] = Counter()
    spoken: dict[str, list[Sample]] = {}
    for scene in root.iter("SCENE"):
        before, asked = "", ""
        for speech in scene.iter("SPEECH"):
            names = [" ".join((s.text or "").split()) for s in speech.findall("SPEAKER")]
            said = " ".join(" ".join(_spoken(line).split()) for line in speech.findall("LINE")).strip()
            name = names[0] if len(names) == 1 else ""
            if name:
                lines[name] += len(speech.findall("LINE"))
            if name and before and name != before and min(len(asked.split()), len(said.split())) >= FEWEST_WORDS:
                spoken.setdefault(name, []).append(Sample(asked_by(asked), said))
            before, asked = " and ".join(names), said
    first = sorted((n for n in lines if n in spoken), key=lambda n: (-lines[n], n))[:speakers]
    if len(first) < 2:
        raise DataError(f"{path} has {len(first)} speakers who answer anybody; role play compares at least two.")
    return {name: Persona(name, tuple(spoken[name])) for name in sorted(first)}


def asked_by(speech: str) -> str:
    """A speech as the next speaker's prompt: its end."""
    return " ".join(speech.split()[-MOST_PROMPT_WORDS:])


def _spoken(line: Element) -> str:
    """The text of a line without the stage directions inside it."""
    return (line.text or "") + " ".join(child.tail or "" for child in line)


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one character: own answers and as many of others' (rivals), to find the mask and on dev; and test answers."""

    own: tuple[Sample, ...]
    rivals: tuple[Sample, ...]
    dev_own: tuple[Sample, ...]
    dev_rivals: tuple[Sample, ...]
    test: tuple[Sample, ...]


def plans(cast: Mapping[str, Persona], *, calibration: int, test: int, seed: int = 0) -> dict[str, Plan]:
    """The plan of every character, at most so many answers of each part.

    A question lies in the same part for all characters, so no rival's answer of the calibration part is tested on.
    In a play an answer is the next speaker's prompt: where it is tested on, that sample is not calibrated on.
    """
    parts = {name: split(cast[name], seed=seed, fractions=FRACTIONS) for name in sorted(cast)}
    tests = {name: _taken(part.test, test, seed) for name, part in parts.items()}
    tested = {asked_by(s.answer) for samples in tests.values() for s in samples}
    known = {name: _without(part.calibration, tested) for name, part in parts.items()}
    devs = {name: _without(part.dev, tested) for name, part in parts.items()}
    made = {}
    for name in parts:
        own, dev = _taken(known[name], calibration, seed), _taken(devs[name], DEV_ITEMS, seed)
        made[name] = Plan(
            own, rivals(own, [s for other, p in known.items() if other != name for s in p.samples]),
            dev, rivals(dev, [s for other, p in devs.items() if other != name for s in p.samples]),
            tests[name],
        )  # fmt: skip
    return made


def _without(part: Persona, tested: set[str]) -> Persona:
    """The persona without samples that ask what is tested as an answer."""
    return replace(part, samples=tuple(s for s in part.samples if s.prompt not in tested))


def rivals(own: Sequence[Sample], pool: Sequence[Sample]) -> tuple[Sample, ...]:
    """For each sample in turn the one of the pool, not taken yet, whose question is nearest by BM25 (equal: the first).

    Near questions on both sides leave the manner of answering, not the topic, to tell the two apart.
    """
    free = [True] * len(pool)
    chosen = []
    for order in nearest([s.prompt for s in pool], [s.prompt for s in own], len(pool)):
        best = next((i for i in order if free[i]), None)
        if best is None:
            break  # fewer rivals than own answers: the means of the two sides are weighed alike all the same
        free[best] = False
        chosen.append(pool[best])
    return tuple(chosen)


def _taken(part: Persona, number: int, seed: int) -> tuple[Sample, ...]:
    return part.take(min(number, len(part)), seed).samples


def guessed_by_words(plans: Mapping[str, Plan]) -> NDArray[np.int64]:
    """The trivial rival: whose answer is it, by its words alone? Index of the guessed character of every test answer.

    Multinomial naive Bayes, equal priors: argmax_c Σ_w log((n_wc + 1)/(n_c + V)) over the answer's words, n counted in
    the character's calibration answers, V the vocabulary of all of them; words outside it are passed over.
    """
    counts = [Counter(w for s in p.own for w in _words(s.answer)) for p in plans.values()]
    vocabulary = set().union(*counts)
    totals = [sum(c.values()) + len(vocabulary) for c in counts]
    guesses = []
    for sample in (s for p in plans.values() for s in p.test):
        known = [w for w in _words(sample.answer) if w in vocabulary]
        scores = [sum(math.log((c[w] + 1) / n) for w in known) for c, n in zip(counts, totals, strict=True)]
        guesses.append(int(np.argmax(scores)))
    return np.array(guesses, dtype=np.int64)


def share_named(plans: Mapping[str, Plan]) -> float:
    """Share of test items whose question or answer holds a word of its character's name (of three letters or more)."""
    found = []
    for role, plan in plans.items():
        name = {w for w in _words(role) if len(w) > 2}
        found += [bool(name & set(_words(f"{s.prompt} {s.answer}"))) for s in plan.test]
    return float(np.mean(found))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.casefold())
