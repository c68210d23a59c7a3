"""Free answers judged without an API: does what a model writes under a mask lean towards the mask's pole?

Both poles of one contrast answer open questions of two kinds: `test`, prompts of the contrast's test part, and
`neutral`, requests of the package that have nothing to do with it. Conditions: the base model, either system prompt,
either mask, random masks of the same size, either mask with its prompt. Two judges (`generation_judges`) score every
answer; above zero, it leans towards p⁺. A judge that does not tell the contrast's own reference answers apart makes no
claim, and length, repetition and the share of empty answers stand beside every score.

Cost on the default model (0.21 GFLOP a token, 0.06 more where it is predicted), 48 + 24 questions and 13 conditions of
64 tokens each: writing 27,000 GFLOP, `ratio` 40,000 and 4,000 for its AUC, `similarity` 1,000, generic text for the
random masks' candidates 5,000. In all 77,000, 22 minutes of a core of 60 GFLOP/s; a built-in contrast, with about 23
test questions, takes two thirds. Steps of writing are bound by memory rather than arithmetic: add a quarter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from personae.discovery import Session
from personae.discovery.generic import generate, neutral_prompts
from personae.errors import OptionError
from personae.evaluation.controls import random_masks
from personae.evaluation.kept import hash_of
from personae.evaluation.poles import Poles, check_artefact, dropped, from_artefact, read_before
from personae.evaluation.shared import Shared
from personae.evaluation.suites.capability_tasks import chosen
from personae.evaluation.suites.capability_text import ANSWER_TOKENS, GRAM, left_padded, stops_of, until
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.embedding import judge_installed, load_judge
from personae.evaluation.suites.generation_figures import Answers, Judged, Reading, figures_of, tables_of
from personae.evaluation.suites.generation_judges import (
    prompt_ids,
    ratio_judge,
    references,
    similarity_judge,
    text_of,
)
from personae.evaluation.suites.report import SuiteResult
from personae.evaluation.suites.texts import identity
from personae.evaluation.suites.worn import Condition
from personae.personas import Contrast, split
from personae.runtime import check_base, wearing
from personae.subnetwork import Artefact, Mask

REFERENCES = 64  # reference answers a pole and part, at most
BATCH = 48  # answers that are written at once


def run(
    context: SuiteContext,
    artefact: Artefact,
    contrast: Contrast,
    *,
    questions: int = 48,
    neutral: int = 24,
    answers: int | None = None,
    draws: int = 3,
    judge: bool | None = None,
    split_seed: int = 0,
    session: Session | None = None,
) -> SuiteResult:
    """Free answers under both poles' masks and system prompts, beside base and random masks, and what judges say.

    questions, neutral: of each kind at most, chosen by a hash with the context's seed. answers: None takes the greedy
    answer; a number samples so many a question at temperature 1, and a question's figures are their means. draws:
    random masks a pole, as large as its mask and among the same candidates where its method has any; averaged. judge:
    True demands the extra `judge`, False leaves `similarity` out, None takes it where it is installed. split_seed: as
    in `evaluate`. session: whose candidates the random masks are drawn from; one is opened where none is given.

    Figures: 'JUDGE.auc'; 'JUDGE.SET.CONDITION' with JUDGE `ratio` or `similarity`, SET `test` or `neutral`, CONDITION
    base, or prompt, mask, random or both (mask and prompt) with _positive or _negative; 'JUDGE.SET.KIND_separation'; of
    a judge that is heard 'JUDGE.SET.CLAIM' and '….p_holm' with CLAIM mask_separation, SIDE_over_base, SIDE_over_random
    (`generation_figures.CLAIMS`); 'tokens.CONDITION', 'repetition.CONDITION', 'empty.CONDITION',
    'same_as_base.CONDITION'. Errors: `OptionError` for a number below 1, a missing extra, or no judge at all;
    `UnknownPersonaError` and `MaskMismatchError` for an artefact of another contrast or model; `DataError` for a
    contrast too small to split; `ModelError` for log-probabilities that are no finite numbers.
    """
    numbers = {"questions": questions, "neutral": neutral, "draws": draws, "references": REFERENCES}
    for option, number in {**numbers, "answers": 1 if answers is None else answers}.items():
        if number < 1:
            raise OptionError(f"{option} is {number}: it must be at least 1.")
    if context.limit is not None:
        numbers = {option: min(number, context.limit) for option, number in numbers.items()}
    systems = (contrast.positive_prompt or "", contrast.negative_prompt or "")
    embedder = load_judge() if judge or (judge is None and judge_installed()) else None
    if not all(systems) and embedder is None:
        raise OptionError(
            f"nobody could judge the answers: '{contrast.name}' has no system prompts for both poles, and the extra "
            '`judge` is left out. Give the contrast prompts, or pip install "personae[judge]".'
        )
    check_base(context.model, "the generation suite")
    check_artefact(artefact, contrast, context.model, context.targets, allow_other_weights=False)
    parts = split(contrast, seed=split_seed)
    own = chosen(list(dict.fromkeys(parts.test.prompts)), str, numbers["questions"], context.seed)
    asked = [*own, *chosen(neutral_prompts(), str, numbers["neutral"], context.seed)]
    poles = from_artefact(artefact, contrast)
    shared = Shared(context.model, context.tokenizer, contrast, artefact, split_seed, context.progress, session)

    found = ways(context, contrast, poles, shared, numbers["draws"])
    written: dict[str, Answers] = {}  # by condition, of every question the answers of all draws
    for way in found:
        new = _answers(context, way, asked, answers)
        before = written.get(way.group, [[] for _ in asked])
        written[way.group] = [a + b for a, b in zip(before, new, strict=True)]
    known = references(context, parts.test, numbers["references"])
    judges = [ratio_judge(context, systems, known, asked, written)] if all(systems) else []
    if embedder is not None:
        anchors = references(context, parts.calibration, numbers["references"])
        judges.append(similarity_judge(context, embedder, anchors, known, written))
    cautions = (
        *dict.fromkeys(read_before(artefact, contrast, parts.test, split_seed)),
        _other_text(context, poles, shared),
    )
    if session is None and "session" in shared.__dict__:
        shared.session.forget()

    kinds = np.arange(len(asked)) >= len(own)
    reading = Reading(asked, kinds, written, partial(text_of, context), contrast.poles)
    figures, claims = figures_of(reading, judges, seed=context.seed)
    return SuiteResult(
        suite="generation", model=context.record(), data={**context.read, contrast.name: contrast.sha256},
        settings={
            **numbers, "questions": len(own), "neutral": len(asked) - len(own), "answers": answers,
            "split_seed": split_seed, "asked": hash_of(asked), "systems": list(systems), "limit": context.limit,
            "answer_tokens": ANSWER_TOKENS, "gram": GRAM, "conditions": {way.name: way.identity for way in found},
            "judge": None if embedder is None else embedder.name,
        },
        figures=figures, tables=tables_of(reading, judges, claims, tuple(c for c in cautions if c), seed=context.seed),
        notes=_notes(contrast, poles, answers, numbers["draws"], judges, context.limit),
        seed=context.seed, versions=context.versions(),
    )  # fmt: skip


# --- conditions: what is worn, and what the model is told ------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Way:
    """One condition: masks, made only when an answer has to be written, and a system prompt.

    group: the condition's name; the draws of a random mask share one. identity: all that decides the masks.
    """

    group: str
    masks: Callable[[], Mapping[str, Mask]] = dict
    identity: str = ""
    system: str | None = None
    draw: int = 0

    @property
    def name(self) -> str:
        """The group, with the number of the draw where it is not the first."""
        return f"{self.group}_{self.draw}" if self.draw else self.group


def ways(context: SuiteContext, contrast: Contrast, poles: Poles, shared: Shared, draws: int) -> list[Way]:
    """base, system prompts, masks, random masks, masks with prompts; the positive pole first.

    Without both system prompts there are no conditions that need them.
    """
    targets = shared.targets(context.targets)
    names = [t.name for t in targets]
    systems = (contrast.positive_prompt, contrast.negative_prompt)
    prompts, masks, chance, both = [], [], [], []
    for pole, (side, worn, cheap) in enumerate(
        zip(("positive", "negative"), poles.masks, poles.cheap_shares, strict=True)
    ):
        made = Condition(side, worn).sha256
        masks.append(Way(f"mask_{side}", partial(_same, worn), made))
        if all(systems):
            prompts.append(Way(f"prompt_{side}", system=systems[pole]))
            both.append(Way(f"both_{side}", partial(_same, worn), made, systems[pole]))
        for draw in range(draws):
            seed = 2 * (1009 * context.seed + draw) + pole

            def drawn(number: int = dropped(worn), seed: int = seed, cheap: float | None = cheap) -> dict[str, Mask]:
                return random_masks(targets, number, seed, shared.candidates(cheap))

            decided = hash_of([dropped(worn), seed, cheap, None if cheap is None else _candidate_text(shared), names])
            chance.append(Way(f"random_{side}", drawn, decided, draw=draw))
    return [Way("base"), *prompts, *masks, *chance, *both]


def _same(masks: Mapping[str, Mask]) -> Mapping[str, Mask]:
    return masks


def _candidate_text(shared: Shared) -> list[Any]:
    """What decides the generic text that candidates rest on; nothing is opened for it."""
    if shared.given is not None:
        return [identity(shared.given.generic)]
    assert shared.artefact is not None
    made = shared.artefact[shared.contrast.positive].provenance.parameters
    return [identity(None), shared.artefact.metadata.get("generic_text"), made.get("seed")]


def _other_text(context: SuiteContext, poles: Poles, shared: Shared) -> str | None:
    """A sentence if random masks were drawn by another generic text than the artefact's; kept, as the text is not."""
    if poles.cheap_shares == (None, None):
        return None
    note: str | None = context.part("generation candidates", {"text": _candidate_text(shared)}, shared.other_text)
    return note


# --- answers: the only passes under masks ----------------------------------------------------------------------


def _answers(context: SuiteContext, way: Way, asked: Sequence[str], sampled: int | None) -> Answers:
    def compute() -> Answers:
        with wearing(context.targets, way.masks()):
            return write(context, f"free answers, {way.name}", asked, way.system, sampled)

    settings = {"asked": list(asked), "system": way.system, "masks": way.identity, "sampled": sampled}
    made: Answers = context.part(f"generation answers {way.name}", settings, compute)
    return made


def write(
    context: SuiteContext, title: str, questions: Sequence[str], system: str | None, sampled: int | None
) -> Answers:
    """Token ids of the answers to every question, cut before the end of the turn or of text.

    Greedy, one a question; or `sampled` of them at temperature 1 with the context's seed, the same for all conditions.
    An answer without a visible character becomes empty.
    """
    stops = stops_of(context.tokenizer)
    prompts = [list(prompt_ids(context, question, system)) for question in questions]
    options: dict[str, Any] = {"max_new_tokens": ANSWER_TOKENS, "eos_token_id": stops or None, "do_sample": False}
    if sampled is not None:
        options |= {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    device = context.model.device
    result: Answers = [[] for _ in prompts]
    with (
        context.progress(title, len(prompts) * (sampled or 1)) as tick,
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(context.seed)
        for _ in range(sampled or 1):
            for begin in range(0, len(prompts), BATCH):
                part = prompts[begin : begin + BATCH]
                ids, mask = left_padded(part)
                for row, new in enumerate(generate(context.model, ids, mask, **options)[:, ids.shape[1] :].tolist()):
                    answer = until(new, stops)
                    result[begin + row].append(answer if text_of(context, answer) else [])
                tick(len(part))
    return result


def _notes(
    contrast: Contrast, poles: Poles, answers: int | None, draws: int, judges: Sequence[Judged], limit: int | None
) -> tuple[str, ...]:
    how = "the greedy answer" if answers is None else f"{answers} answers sampled at temperature 1"
    where = "all weights" if None in poles.cheap_shares else "candidates by the rule that found the mask's"
    heard = {judge.name for judge in judges}
    found = [
        f"p⁺ is {contrast.positive}, p⁻ {contrast.negative}. To each question {how}, at most {ANSWER_TOKENS} tokens; "
        "95 % intervals over questions, of masks as found once.",
        f"random: as many weights as the pole's mask drops, drawn among {where}; mean of {draws} draws.",
        "neutral: requests of the package. By default discovery has read the model's answers to some of them, and was "
        "made to leave these alone.",
    ]
    if "ratio" not in heard:
        found.append(
            f"'{contrast.name}' has no system prompts for both poles: no conditions with them, and no judge `ratio`."
        )
    if "similarity" not in heard:
        found.append('The judge `similarity` is left out; it needs the extra: pip install "personae[judge]".')
    if limit is not None:
        found.append(f"A quick look: at most {limit} questions of a kind, reference answers and draws.")
    return tuple(found)
