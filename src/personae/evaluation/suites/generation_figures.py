"""What is read off judged free answers: levels, claims with Holm, the form of the answers, examples, and warnings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.evaluation.bootstrap import Difference, Estimate, difference, holm, interval
from personae.evaluation.suites.capability_text import ANSWER_TOKENS, GRAM, repetition
from personae.evaluation.suites.report import Cell, Table

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Answers = list[list[list[int]]]  # of every question, of every answer to it, the token ids

KINDS = {"prompt": "system prompt", "mask": "mask", "random": "random mask", "both": "mask and prompt"}
# what is claimed: mean score of the first condition minus that of the second; larger is better for the masks
CLAIMS = {
    "mask_separation": ("mask_positive", "mask_negative"),
    "positive_over_base": ("mask_positive", "base"),
    "negative_over_base": ("base", "mask_negative"),
    "positive_over_random": ("mask_positive", "random_positive"),
    "negative_over_random": ("random_negative", "mask_negative"),
}
CHANCE = 0.5  # AUC of a judge that reads nothing
LEVEL = 0.05  # of a claim, after Holm
FEW = 10  # below so many questions a mean says little
SHORT = 0.5  # of base's length: below it an answer has lost more than its tone
EXAMPLES = 3
EXAMPLE_LENGTH = 200  # characters


@dataclass(frozen=True, eq=False)
class Judged:
    """What one judge says. auc: on reference answers, of which references are p⁺'s and p⁻'s number.

    scores: by condition, of every question the mean over its answers, (questions,).
    """

    name: str
    auc: Estimate
    references: tuple[int, int]
    scores: Mapping[str, Floats]

    @property
    def heard(self) -> bool:
        """Whether it tells the reference answers apart: its AUC is above one half with its whole interval."""
        return self.auc.low > CHANCE


@dataclass(frozen=True, eq=False)
class Reading:
    """What was asked and written. neutral: which questions have nothing to do with the contrast, (questions,).

    answers: by condition. text: of token ids. poles: names, p⁺ first.
    """

    questions: Sequence[str]
    neutral: Bools
    answers: Mapping[str, Answers]
    text: Callable[[Sequence[int]], str]
    poles: tuple[str, str]

    @property
    def sets(self) -> dict[str, Bools]:
        """Which questions are of either kind."""
        return {"test": ~self.neutral, "neutral": self.neutral}

    def form(self) -> dict[str, dict[str, Floats]]:
        """By figure and condition, of every question the mean over its answers, (questions,)."""
        base = self.answers["base"]

        def each(measure: Callable[[list[int], int], float]) -> dict[str, Floats]:
            return {
                name: np.array([np.mean([measure(a, q) for a in given]) for q, given in enumerate(answers)])
                for name, answers in self.answers.items()
            }

        return {
            "tokens": each(lambda answer, _: len(answer)),
            "repetition": each(lambda answer, _: repetition(answer)),
            "empty": each(lambda answer, _: not answer),
            "same_as_base": each(lambda answer, q: answer in base[q]),
        }


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of one judge on one kind of questions, p after Holm over all claims."""

    judge: str
    kind: str
    name: str
    found: Difference
    p_holm: float

    @property
    def verdict(self) -> str:
        """What it says, in words."""
        if self.p_holm >= LEVEL:
            return "not shown"
        return "yes" if self.found.value > 0 else "the other way"


def claims_of(reading: Reading, judges: Sequence[Judged], *, seed: int) -> list[Claim]:
    """CLAIMS of every judge that is heard, paired over questions; Holm over all of them."""
    drafts = [
        (judge.name, kind, name, difference(judge.scores[first][of], judge.scores[second][of], seed=seed))
        for judge in judges
        if judge.heard
        for kind, of in reading.sets.items()
        for name, (first, second) in CLAIMS.items()
    ]
    adjusted = holm([found.p for *_, found in drafts])
    return [Claim(*draft, p) for draft, p in zip(drafts, adjusted, strict=True)]


def figures_of(reading: Reading, judges: Sequence[Judged], *, seed: int) -> tuple[dict[str, Cell], list[Claim]]:
    """All figures by name, and the claims among them."""
    figures: dict[str, Cell] = {}
    for judge in judges:
        figures[f"{judge.name}.auc"] = judge.auc
        for kind, of in reading.sets.items():
            frame = f"{judge.name}.{kind}"
            figures |= {f"{frame}.{name}": interval(s[of], seed=seed) for name, s in judge.scores.items()}
            figures |= {f"{frame}.{k}_separation": _separation(judge, k, of, seed) for k in _kinds(judge.scores)}
    claims = claims_of(reading, judges, seed=seed)
    for claim in claims:
        figures[f"{claim.judge}.{claim.kind}.{claim.name}"] = claim.found
        figures[f"{claim.judge}.{claim.kind}.{claim.name}.p_holm"] = claim.p_holm
    for figure, values in reading.form().items():
        figures |= {f"{figure}.{name}": interval(of, seed=seed) for name, of in values.items()}
    return figures, claims


def _kinds(conditions: Mapping[str, object]) -> list[str]:
    return [kind for kind in KINDS if f"{kind}_positive" in conditions]


def _separation(judge: Judged, kind: str, of: Bools, seed: int) -> Difference:
    """Mean score on p⁺'s side minus that on p⁻'s, paired over questions."""
    return difference(judge.scores[f"{kind}_positive"][of], judge.scores[f"{kind}_negative"][of], seed=seed)


# --- tables ----------------------------------------------------------------------------------------------------


def tables_of(
    reading: Reading, judges: Sequence[Judged], claims: Sequence[Claim], cautions: tuple[str, ...], *, seed: int
) -> tuple[Table, ...]:
    """Who is heard, the claims, each judge's levels, the form of the answers, and examples."""
    doubts = (*cautions, *_few(reading), *_form_warnings(reading, seed))
    return (
        _hearing(judges),
        Table(
            "What the masks do to free answers",
            ("judge", "questions", "claim", "difference", "p (Holm)", "shown"),
            tuple((c.judge, c.kind, c.name, c.found, c.p_holm, c.verdict) for c in claims),
            (
                "mask_separation: mean score under p⁺'s mask minus that under p⁻'s; positive_over_…: p⁺'s mask minus "
                "base, or minus random masks; negative_over_…: base, or random masks, minus p⁻'s mask.",
                "Paired over questions. A judge that does not tell reference answers apart makes no claim.",
            ),
            doubts,
        ),
        *(_levels(reading, judge, seed) for judge in judges),
        _form(reading, seed),
        _examples(reading),
    )


def _hearing(judges: Sequence[Judged]) -> Table:
    rows = tuple((j.name, j.auc, *j.references, "yes" if j.heard else "no") for j in judges)
    notes = (
        "AUC: probability that a test reference answer of p⁺ scores higher than one of p⁻, ties one half; bootstrap "
        "over questions. similarity reads them against the calibration part's answers.",
    )
    return Table(
        "Do the judges tell the reference answers apart?",
        ("judge", "AUC", "answers of p⁺", "answers of p⁻", "heard"), rows, notes, tuple(map(_unheard, _deaf(judges))),
    )  # fmt: skip


def _deaf(judges: Sequence[Judged]) -> list[Judged]:
    return [judge for judge in judges if not judge.heard]


def _unheard(judge: Judged) -> str:
    return (
        f"{judge.name} does not tell the contrast's own reference answers apart (AUC {judge.auc.value:.2f}, from "
        f"{judge.auc.low:.2f}): what it says of free answers is no evidence, and it makes no claim."
    )


def _levels(reading: Reading, judge: Judged, seed: int) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for kind, of in reading.sets.items():
        rows.append((kind, "base", interval(judge.scores["base"][of], seed=seed), None, None))
        for name in _kinds(judge.scores):
            sides = (interval(judge.scores[f"{name}_{side}"][of], seed=seed) for side in ("positive", "negative"))
            rows.append((kind, KINDS[name], *sides, _separation(judge, name, of, seed)))
    notes = {
        "ratio": (
            "log p of the answer under p⁺'s system prompt minus that under p⁻'s, by the base model, nats a token.",
            "With a system prompt this is circular: the answer was made likely by the prompt that judges it.",
        ),
        "similarity": ("Mean cosine with p⁺'s reference answers minus that with p⁻'s; it reads topic before tone.",),
    }
    return Table(
        f"{judge.name}: mean score of free answers", ("questions", "condition", *reading.poles, "p⁺ − p⁻"),
        tuple(rows), (*notes[judge.name], "An empty answer scores 0; base is one condition, shown once."),
        tuple(map(_unheard, _deaf([judge]))),
    )  # fmt: skip


def _form(reading: Reading, seed: int) -> Table:
    form = reading.form()
    rows: list[tuple[Cell, ...]] = [
        (name, *(interval(values[name], seed=seed) for values in form.values())) for name in reading.answers
    ]
    notes = (
        f"Over all questions. Tokens of an answer, at most {ANSWER_TOKENS}; repetition: 1 − distinct/all {GRAM}-grams "
        "of its tokens; shares of answers that are empty, and of those that base gives too.",
    )
    return Table(
        "Form of the answers", ("condition", "tokens", "repetition", "empty", "same as base"), tuple(rows), notes,
        _form_warnings(reading, seed),
    )  # fmt: skip


def _few(reading: Reading) -> tuple[str, ...]:
    numbers = {kind: int(of.sum()) for kind, of in reading.sets.items()}
    return tuple(f"only {n} {kind} questions: at least {FEW} are wanted." for kind, n in numbers.items() if n < FEW)


def _form_warnings(reading: Reading, seed: int) -> tuple[str, ...]:
    """What could make a degenerate answer look like a persona, under the masks that claims are about."""
    form, found = reading.form(), []
    for name in (n for n in reading.answers if n.startswith(("mask_", "both_"))):
        for figure, words in (("repetition", "repeat themselves more"), ("empty", "are empty more often")):
            more = difference(form[figure][name], form[figure]["base"], seed=seed)
            if more.low > 0:
                found.append(
                    f"answers under {name} {words} than base's ({form[figure][name].mean():.2f} against "
                    f"{form[figure]['base'].mean():.2f}): read the examples before a gain is believed."
                )
        tokens, usual = form["tokens"][name].mean(), form["tokens"]["base"].mean()
        if tokens < SHORT * usual:
            found.append(f"answers under {name} have {tokens:.0f} tokens, base's {usual:.0f}.")
    return tuple(found)


def _examples(reading: Reading) -> Table:
    """The first answers to the same questions under every condition, the last of them neutral."""
    own, neutral = (np.flatnonzero(of).tolist() for of in reading.sets.values())
    places = [*own[: EXAMPLES - 1], *neutral][:EXAMPLES]
    rows = tuple(
        (cut(reading.questions[q]), name, cut(reading.text(answers[q][0])))
        for q in places
        for name, answers in reading.answers.items()
    )
    notes = (f"Cut at {EXAMPLE_LENGTH} characters, line breaks as blanks; the first questions, not chosen by answer.",)
    return Table("Examples", ("question", "condition", "answer"), rows, notes)


def cut(text: str) -> str:
    """On one line, of at most `EXAMPLE_LENGTH` characters, the last of them '…' where something is left out."""
    line = " ".join(text.split())
    return line if len(line) <= EXAMPLE_LENGTH else f"{line[: EXAMPLE_LENGTH - 1]}…"
