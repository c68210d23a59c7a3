"""Two judges of free answers that need no API; above zero, an answer leans towards p⁺.

    ratio       r(y) = [log p(y | x, system prompt of p⁺) − log p(y | x, system prompt of p⁻)] / |y|, nats a token,
                by the base model, which wears no mask while it judges;
    similarity  s(y) = mean cos(y, reference answers of p⁺) − mean cos(y, those of p⁻), by `embedding`.

An empty answer scores 0. Whether a judge is worth hearing shows on the contrast's own reference answers: AUC = P(score
of an answer of p⁺ > score of one of p⁻) over the test part, for `similarity` with the calibration part's answers as
anchors, so that no answer is compared with itself. Free answers are then compared with the test part's.

Two cautions. Under a system prompt `ratio` is circular: the answer was made likely by the prompt that judges it. And
neither judge reads fluency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from personae.errors import ModelError
from personae.evaluation.kept import hash_of
from personae.evaluation.suites.capability_tasks import chosen
from personae.evaluation.suites.capability_text import ANSWER_TOKENS
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.embedding import Floats, Judge, embed, nearer_to_own
from personae.evaluation.suites.generation_figures import Answers, Judged
from personae.evaluation.suites.mbti_statistics import auc, weights_of
from personae.models import (
    Question,
    answer_lead,
    context_length,
    encode_prompt,
    end_of_turn,
    render_answer,
    score_continuations,
)
from personae.personas import Contrast

Scores = list[list[float]]  # of every question, of every answer to it


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference answer, cut at `ANSWER_TOKENS` tokens as free answers are, without its end of turn."""

    prompt: str
    tokens: tuple[int, ...]
    positive: bool


def references(context: SuiteContext, part: Contrast, number: int) -> list[Reference]:
    """At most `number` answers a pole, to the same questions where the contrast is paired; p⁺'s first."""
    end = end_of_turn(context.tokenizer)
    result = []
    for pole in part.poles:
        for sample in chosen(part.samples(pole), lambda s: s.prompt, number, context.seed):
            text = render_answer(context.tokenizer, sample.answer).removesuffix(end)
            tokens = context.tokenizer(text, add_special_tokens=False)["input_ids"][:ANSWER_TOKENS]
            result.append(Reference(sample.prompt, tuple(tokens), pole == part.positive))
    return result


def ratio_judge(
    context: SuiteContext,
    systems: tuple[str, str],
    test: Sequence[Reference],
    asked: Sequence[str],
    written: Mapping[str, Answers],
) -> Judged:
    """`ratio` of reference answers and of what was written under every condition, a part each."""

    lead = answer_lead(context.tokenizer)  # which the model writes itself where it answers freely

    def scores(name: str, questions: Sequence[str], answers: Answers, *, written: bool = True) -> Scores:
        settings = {"systems": list(systems), "questions": list(questions), "answers": hash_of(answers)}
        if lead and not written:
            settings["lead"] = lead
        compute = partial(leanings, context, f"ratio, {name}", systems, questions, answers, written=written)
        kept: Scores = context.part(f"generation ratio {name}", settings, compute)
        return kept

    known = scores("references", [r.prompt for r in test], [[list(r.tokens)] for r in test], written=False)
    return _judged("ratio", test, known, {n: scores(n, asked, a) for n, a in written.items()}, context.seed)


def leanings(
    context: SuiteContext,
    title: str,
    systems: tuple[str, str],
    questions: Sequence[str],
    answers: Answers,
    *,
    written: bool = True,
) -> Scores:
    """r of every answer, 0 of an empty one, by whatever the model wears now; it should wear nothing.

    written: the model wrote them, with whatever its template puts before an answer (`answer_lead`); others lack it.
    Errors: `ModelError` where a log-probability is no finite number.
    """
    some = [q for q, given in enumerate(answers) if any(given)]
    means = []
    with context.progress(title, 2 * len(some)) as tick:
        for system in systems:
            read = [
                Question(
                    prompt_ids(context, questions[q], system, lead=not written),
                    tuple(tuple(a) for a in answers[q] if a),
                )
                for q in some
            ]
            scored = score_continuations(context.model, read, tick=tick)
            means.append([[float(a.double().mean()) for a in row] for row in scored])
    if not np.isfinite([mean for side in means for row in side for mean in row]).all():
        raise ModelError(f"{title}: a log-probability is no finite number; load the model in float32.")
    result = [[0.0] * len(given) for given in answers]
    for q, own, rival in zip(some, *means, strict=True):
        places = [i for i, answer in enumerate(answers[q]) if answer]
        for place, high, low in zip(places, own, rival, strict=True):
            result[q][place] = high - low
    return result


def similarity_judge(
    context: SuiteContext,
    judge: Judge,
    anchors: Sequence[Reference],
    test: Sequence[Reference],
    written: Mapping[str, Answers],
) -> Judged:
    """`similarity` of the test part's references to the anchors, and of what was written to the test part's."""
    lines = {
        name: [[text_of(context, r.tokens) for r in part if r.positive == side] for side in (True, False)]
        for name, part in (("calibration", anchors), ("test", test))
    }

    @cache
    def vectors(part: str) -> list[Floats]:
        return [embed(judge, side) for side in lines[part]]

    def scores(name: str, part: str, answers: Answers) -> Scores:
        texts = [[text_of(context, a) for a in given] for given in answers]
        settings = {"judge": judge.name, "references": hash_of(lines[part]), "texts": hash_of(texts)}
        kept: Scores = context.part(
            f"generation similarity {name}", settings, lambda: nearness(judge, vectors(part), texts)
        )
        return kept

    known = scores("references", "calibration", [[list(r.tokens)] for r in test])
    return _judged("similarity", test, known, {n: scores(n, "test", a) for n, a in written.items()}, context.seed)


def nearness(judge: Judge, near: Sequence[Floats], texts: Sequence[Sequence[str]]) -> Scores:
    """s of every text, 0 of an empty one. near: vectors of p⁺'s references and of p⁻'s, rows of length 1."""
    own, rival = near
    flat = [text for given in texts for text in given if text]
    gaps = iter(nearer_to_own(embed(judge, flat), own, rival).tolist() if flat else [])
    return [[next(gaps) if text else 0.0 for text in given] for given in texts]


def _judged(name: str, test: Sequence[Reference], known: Scores, rows: Mapping[str, Scores], seed: int) -> Judged:
    """Means over the answers to a question, and the AUC; its bootstrap draws questions with all their answers."""
    positive = np.array([r.positive for r in test])
    told = auc([np.array([row[0] for row in known])], positive, weights_of([r.prompt for r in test], seed=seed))
    means = {n: np.array([np.mean(given) for given in scores], dtype=np.float64) for n, scores in rows.items()}
    return Judged(name, told.estimate(), (int(positive.sum()), int((~positive).sum())), means)


def prompt_ids(context: SuiteContext, question: str, system: str | None, *, lead: bool = False) -> tuple[int, ...]:
    """Token ids of a prompt; one that leaves no room for `ANSWER_TOKENS` loses its beginning."""
    room = max((context_length(context.model) or 1 << 30) - ANSWER_TOKENS, 1)
    return tuple(encode_prompt(context.tokenizer, question, system, lead=lead)[-room:])


def text_of(context: SuiteContext, tokens: Sequence[int]) -> str:
    """What a reader sees of an answer."""
    return str(context.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
