"""Role play: one mask a character; whose lines does each mask make likelier?

For every character c of a cast a mask is found from its own answers against other characters' answers to the nearest
questions (calibration part). On the test answers of all characters, i, with log p a token of a reference answer cut at
`ANSWER_TOKENS` tokens:

    gain G_ic = log p(y_i | x_i, mask of c) − log p(y_i | x_i, base),  nats a token.

Three figures are read off it: `own_minus_others`, the mean of G_ic over c's own answers minus its mean over the others'
(the mean over c of the cast); `accuracy`, the share of answers whose own character's mask has the largest gain (k equal
ones: 1/k); and `accuracy_centred`, the same after subtracting each mask's mean gain over all test answers, which takes
out that one mask may be kinder to any text. Beside them stand `accuracy_shuffled` (the same with permuted labels) and
`accuracy_words` (naive Bayes on words, which needs no model). Free greedy answers are judged by `embedding`.
docs/methods.md section 6 describes intervals and Holm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch

from personae.discovery import (
    Calibration,
    Capability,
    GenericText,
    Session,
    Settings,
    capability,
    choose,
    generic_text,
    to_masks,
)
from personae.errors import ModelError, OptionError
from personae.evaluation.capability_texts import CapabilityText, unread_text
from personae.evaluation.kept import hash_of
from personae.evaluation.suites.capability_text import greedy_answers
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.embedding import Judge, embed, judge_installed, load_judge, nearer_to_own
from personae.evaluation.suites.report import Cell, SuiteResult, Table
from personae.evaluation.suites.roleplay_figures import Reading, Similarity, figures_of, tables_of
from personae.evaluation.suites.roleplay_texts import (
    DEV_ITEMS,
    FRACTIONS,
    Plan,
    plans,
    play_cast,
    rolebench_cast,
)
from personae.evaluation.suites.texts import identity
from personae.models import Encoded, Question, context_length, encode, score_continuations
from personae.personas import Sample
from personae.runtime import check_base, wearing

SETS = {
    "rolebench": (
        "rolebench/rolebench-eng/role-generalization/role_specific/test.jsonl",
        "ZenMoore/RoleBench on the Hub",
        rolebench_cast,
    ),
    "merchant": ("shakespeare/merchant.xml", "the NLTK data package 'shakespeare'", play_cast),
}
SETTINGS = Settings(method="directed", drop_share=0.002, cheap_share=0.6)
ANSWER_TOKENS = 64


def run(
    context: SuiteContext,
    *,
    sets: Sequence[str] = tuple(SETS),
    settings: Settings = SETTINGS,
    calibration_items: int = 40,
    test_items: int = 24,
    free_answers: int = 8,
    generic: GenericText | None = None,
    judge: bool | None = None,
) -> SuiteResult:
    """Masks, gains and free answers of every character of the sets.

    sets: of 'rolebench', 'merchant'. settings: how masks are found; `Settings(max_capability_loss=0.05)` takes the
    budget instead of a fixed share. calibration_items, test_items: at most so many answers a character. free_answers:
    test questions a character that are answered freely. generic: generic text (default: sampled from the model).
    judge: True demands the extra `judge`, False leaves the similarity out, None takes it where it is installed.

    Errors: `OptionError` for an unknown set, a number below 1 or a missing extra; `DataError` for data that are not
    there or broken; `ModelError` for log-probabilities that are no finite numbers.
    """
    settings = settings.checked()
    for name in sets:
        if name not in SETS:
            raise OptionError(f"unknown role-play set {name!r}: choose {', '.join(SETS)}.")
    numbers = {"calibration_items": calibration_items, "test_items": test_items, "free_answers": free_answers}
    for option, number in numbers.items():
        if number < 1:
            raise OptionError(f"{option} is {number}: it must be at least 1.")
    if context.limit is not None:
        numbers = {option: min(number, context.limit) for option, number in numbers.items()}
    judging = load_judge() if judge or (judge is None and judge_installed()) else None
    check_base(context.model, "the role-play suite")
    stage = _Stage(context, settings, generic)
    figures: dict[str, Cell] = {}
    tables: list[Table] = []
    for name in sets:
        path, source, reader = SETS[name]
        plan = plans(
            reader(context.file(path, source)), calibration=numbers["calibration_items"], test=numbers["test_items"],
            seed=context.seed,
        )  # fmt: skip
        reading = _read(stage, name, plan, numbers["free_answers"])
        similarity = None if judging is None else _judged(context, judging, name, plan, reading)
        found = figures_of(plan, reading, similarity, seed=context.seed)
        figures |= {f"{name}.{figure}": value for figure, value in found.items()}
        tables += tables_of(name, plan, reading, similarity, found, seed=context.seed)
    notes = [
        f"Masks: {settings.method} at "
        + (f"drop share {settings.drop_share}" if settings.max_capability_loss is None else "the capability budget")
        + (f", own weight {settings.own_weight:g}" if settings.own_weight else "")
        + f", found on at most {numbers['calibration_items']} answers a character and as many of others to the nearest "
        f"questions; questions are split {FRACTIONS} by hash. Answers are cut at {ANSWER_TOKENS} tokens. Intervals: "
        "bootstrap over test answers, of `own minus others` within characters, of the rest over the answers of all "
        "together, of masks as found once.",
        *([] if judging is not None else ["Free answers were not judged: the extra `judge` is left out."]),
    ]
    return SuiteResult(
        suite="roleplay", model=context.record(), data=dict(context.read),
        settings={
            **asdict(settings), **numbers, "sets": list(sets), "fractions": list(FRACTIONS), "dev_items": DEV_ITEMS,
            "answer_tokens": ANSWER_TOKENS, "generic": stage.generic_name,
            "judge": None if judging is None else judging.name,
        },
        figures=figures, tables=tuple(tables), notes=tuple(notes), seed=context.seed, versions=context.versions(),
    )  # fmt: skip


# --- readings: every pass of the model -----------------------------------------------------------------------


class _Stage:
    """The model with what all characters share; generic text and session are made only when a part needs them."""

    def __init__(self, context: SuiteContext, settings: Settings, generic: GenericText | None) -> None:
        self.context, self.settings, self._generic = context, settings, generic
        self.generic_name = identity(generic)
        self._session: Session | None = None

    @property
    def generic(self) -> GenericText:
        if self._generic is None:
            c = self.context
            self._generic = generic_text(c.model, c.tokenizer, c.targets, seed=c.seed)
        return self._generic

    def session(self, calibration: Calibration) -> Session:
        """A session on these answers; what an earlier one computed from generic text goes with it."""
        c = self.context
        if self._session is None:
            self._session = Session(c.model, c.tokenizer, c.targets, calibration, self.generic, progress=c.progress)
        else:
            self._session = self._session.with_calibration(calibration)
        return self._session

    @cached_property
    def final(self) -> CapabilityText:
        """The text of capability loss, which no budget search reads; where there was too little, its name says so."""
        return unread_text(self.generic)

    def base_capability(self) -> Capability:
        def read() -> list[list[list[float]]]:
            found = capability(self.context.model, self.final.generic)
            return [found.plain_texts.tolist(), found.chat_texts.tolist()]

        kept = self.context.part("roleplay base capability", {"text": self.final.sha256}, read)
        return Capability(*(torch.tensor(texts, dtype=torch.float64) for texts in kept))

    def encoded(self, samples: Sequence[Sample]) -> tuple[Encoded, ...]:
        """Prompt and answer in the chat template; a cut answer has no end-of-turn token."""
        c = self.context
        room = context_length(c.model)
        found = (encode(c.tokenizer, s.prompt, s.answer, context=room) for s in samples)
        return tuple(Encoded(e.prompt, e.answer[:ANSWER_TOKENS]) for e in found)


def _read(stage: _Stage, name: str, plan: Mapping[str, Plan], free_answers: int) -> Reading:
    """Base and every mask on all test answers, one part each."""
    context = stage.context
    tests = stage.encoded([s for p in plan.values() for s in p.test])
    questions = [Question(e.prompt, (e.answer,)) for e in tests]
    asked = {role: [s.prompt for s in p.test[:free_answers]] for role, p in plan.items()}

    def part(title: str, more: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        frame = {"test": hash_of([[e.prompt, e.answer] for e in tests]), "asked": asked, **more}
        return context.part(f"roleplay {name} {title}", frame, compute)

    def base() -> Any:
        free = {role: _greedy(context, f"{name}: {role}, base", asked[role]) for role in asked}
        return {"log_p": _log_p(context, f"{name}: base", questions), "free": free}

    before = part("base", {}, base)
    worn = []
    for role, own in plan.items():
        calibration = Calibration((), stage.encoded(own.own), stage.encoded(own.rivals))
        dev = Calibration((), stage.encoded(own.dev_own), stage.encoded(own.dev_rivals))

        def under_mask(role: str = role, calibration: Calibration = calibration, dev: Calibration = dev) -> Any:
            found = choose(stage.session(calibration), stage.settings, dev, poles=(0,))[0]
            unworn = stage.base_capability()
            with wearing(context.targets, to_masks(found.dropped)):
                return {
                    "log_p": _log_p(context, f"{name}: {role}", questions),
                    "free": _greedy(context, f"{name}: {role}", asked[role]),
                    "dropped": sum(int(d.sum()) for d in found.dropped.values()),
                    "loss": capability(context.model, stage.final.generic).loss(unworn),
                    "text": stage.final.name,
                }

        texts = [[[e.prompt, e.answer] for e in side] for c in (calibration, dev) for side in (c.positive, c.negative)]
        more = {"texts": hash_of(texts), "settings": asdict(stage.settings), "generic": stage.generic_name}
        worn.append(part(role, more, under_mask))
    log_p = np.array([w["log_p"] for w in worn], dtype=np.float64).T  # (N, C)
    return Reading(
        gains=log_p - np.array(before["log_p"], dtype=np.float64)[:, None],
        owner=np.repeat(np.arange(len(plan)), [len(p.test) for p in plan.values()]).astype(np.int64),
        free={role: (before["free"][role], w["free"]) for role, w in zip(plan, worn, strict=True)},
        dropped=[w["dropped"] for w in worn],
        losses=[w["loss"] for w in worn],
        text=str(worn[0].get("text", "")),
    )


def _log_p(context: SuiteContext, title: str, questions: Sequence[Question]) -> list[float]:
    """Mean log p a token of each answer under whatever the model wears."""
    with context.progress(title, len(questions)) as tick:
        scored = score_continuations(context.model, questions, tick=tick)
    means = [float(answers[0].double().mean()) for answers in scored]
    if not np.isfinite(means).all():
        raise ModelError(f"{title}: a log-probability is no finite number; load the model in float32.")
    return means


def _greedy(context: SuiteContext, title: str, prompts: Sequence[str]) -> list[str]:
    """The text of greedy answers."""
    answers = greedy_answers(context.model, context.tokenizer, prompts, f"{title}, free answers", context.progress)
    return [str(context.tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in answers]


def _judged(context: SuiteContext, judge: Judge, name: str, plan: Mapping[str, Plan], reading: Reading) -> Similarity:
    """How much nearer each free answer is to the own character's test answers than to the others', base and masked."""
    lines = {role: [s.answer for s in p.test] for role, p in plan.items()}

    def compute() -> Any:
        vectors = {role: embed(judge, lines[role]) for role in lines}
        found = {}
        for role, answers in reading.free.items():
            others = np.concatenate([v for other, v in vectors.items() if other != role])
            found[role] = [nearer_to_own(embed(judge, side), vectors[role], others).tolist() for side in answers]
        return found

    free = {role: list(answers) for role, answers in reading.free.items()}
    kept = context.part(f"roleplay {name} similarity", {"judge": judge.name, "texts": hash_of([lines, free])}, compute)
    return {role: (np.array(kept[role][0]), np.array(kept[role][1])) for role in plan}
