"""Two answers a question, scored as continuations of one prompt: what every figure of the table is made of.

Each item is read once; `mean`, `sum` and `byte` are three ways to read the same log-probabilities.
docs/methods.md section 6, names of section 7.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery import encode_contrast
from personae.errors import DataError, ModelError, OptionError
from personae.models import Question, score_continuations
from personae.personas import Contrast, is_tied, polarity, yes_baseline
from personae.personas.split import normalised

Kind = Literal["mean", "sum", "byte"]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TRIVIAL = 0.9  # a rule without meaning that scores more than this makes a set worthless as proof
FEW = 30  # items below which resampling them says little


@dataclass(frozen=True, eq=False)
class ItemScores:
    """What a model says of every item's two answers; column 0 is the positive pole's answer.

    log_p: summed log-probability of the answer with its end-of-turn token, nats, (n, 2) float64.
    tokens: scored tokens, (n, 2). bytes: UTF-8 bytes of the answer's text, (n, 2). tied: True where both
    answers open with the same polarity, (n,). ids: a hash of each question (the same in every set and order).
    """

    log_p: Floats
    tokens: Floats
    bytes: Floats
    tied: Bools
    ids: tuple[str, ...]

    def __len__(self) -> int:
        """Number of items, n."""
        return len(self.ids)

    def normalised(self, kind: Kind = "mean") -> Floats:
        """log p over its number of tokens ('mean'), as it is ('sum'), or over its bytes ('byte'), (n, 2)."""
        if kind not in get_args(Kind):
            raise OptionError(f"unknown kind {kind!r} of score: choose {', '.join(get_args(Kind))}.")
        if kind == "sum":
            return self.log_p
        result: Floats = self.log_p / (self.tokens if kind == "mean" else self.bytes)
        return result

    def difference(self, kind: Kind = "mean") -> Floats:
        """The margin of each item, positive answer minus negative answer, (n,)."""
        scores = self.normalised(kind)
        result: Floats = scores[:, 0] - scores[:, 1]
        return result

    def outcomes(self, kind: Kind = "mean") -> Floats:
        """1 where the positive answer scores higher, 0 where lower, one half on an exact tie, (n,)."""
        return wins(self.difference(kind))

    def acc(self, kind: Kind = "mean") -> float:
        """Share of items on which the positive answer scores higher; exact ties count one half."""
        return float(self.outcomes(kind).mean())


def wins(difference: Floats) -> Floats:
    """1 for a positive number, 0 for a negative one, one half for zero."""
    return (np.sign(difference) + 1) / 2


@dataclass(frozen=True, eq=False)
class Items:
    """The test items as token ids, with what does not depend on the model's state."""

    questions: tuple[Question, ...]
    bytes: Floats
    tied: Bools
    ids: tuple[str, ...]

    def __len__(self) -> int:
        """Number of items."""
        return len(self.questions)


@dataclass(frozen=True, slots=True)
class Baselines:
    """Accuracy of rules that read no meaning; one half where a rule cannot say.

    shorter: 'take the answer with fewer bytes'. yes: 'prefer yes, avoid no' (one half on every tied item, by
    construction). majority: the more frequent of the labels; a pair has no order and no letter, so a constant
    choice wins one half by construction. Tied figures are None where no item is tied.
    """

    shorter: float
    shorter_tied: float | None
    yes: float
    yes_tied: float | None
    majority: float = 0.5


def encode_items(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, contrast: Contrast, system: str | None = None
) -> Items:
    """Items of a paired contrast, in the model's chat template. Errors: `DataError` on an unpaired contrast."""
    if not contrast.paired:
        raise DataError(
            f"contrast '{contrast.name}' is not paired: `personae eval` scores two answers to each question. Give "
            "pairs (load_contrast(…, paired=True) joins two sets that share their questions)."
        )
    answers = [(p.positive, p.negative) for p in contrast.pairs]
    return Items(
        questions=encode_contrast(model, tokenizer, contrast, system).paired,
        bytes=np.array([[max(len(a.encode()), 1) for a in pair] for pair in answers], dtype=np.float64),
        tied=np.array([is_tied(*pair) for pair in answers]),
        ids=tuple(item_id(p.prompt) for p in contrast.pairs),
    )


def item_id(question: str) -> str:
    """blake2b of the question, white space and case aside; 16 hexadecimal digits."""
    return hashlib.blake2b(normalised(question).encode(), digest_size=8).hexdigest()


def extra_tokens(plain: Items, asked: Sequence[Items]) -> float:
    """Mean number of prompt tokens that a request costs more."""
    extra = [
        len(longer.prompt) - len(short.prompt)
        for side in asked
        for longer, short in zip(side.questions, plain.questions, strict=True)
    ]
    return sum(extra) / len(extra)


def score_encoded(model: PreTrainedModel, items: Items, tick: Callable[[int], None] | None = None) -> ItemScores:
    """Scores of encoded items under whatever the model wears now. Errors: `ModelError` on nan or infinity."""
    scored = score_continuations(model, items.questions, tick=tick)
    log_p = np.array([[a.double().sum().item() for a in answers] for answers in scored], dtype=np.float64)
    if not np.isfinite(log_p).all():
        broken = int((~np.isfinite(log_p)).any(axis=1).sum())
        raise ModelError(
            f"{broken} of {len(items)} items have log-probabilities that are no finite numbers: the arithmetic "
            f"overflows in {str(model.dtype).removeprefix('torch.')}; load the model in float32."
        )
    tokens = np.array([[a.numel() for a in answers] for answers in scored], dtype=np.float64)
    return ItemScores(log_p, tokens, items.bytes, items.tied, items.ids)


def score_items(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, contrast: Contrast, system: str | None = None
) -> ItemScores:
    """Both answers to every question of a paired contrast, scored under whatever the model wears now.

    The prompt is encoded once for both answers. system: a system prompt. Errors: `DataError` on an unpaired
    contrast, `ModelError` when a log-probability is no finite number.
    """
    return score_encoded(model, encode_items(model, tokenizer, contrast, system))


def baselines(contrast: Contrast) -> Baselines:
    """The trivial baselines on a paired contrast."""
    pairs = contrast.pairs
    tied = np.array([is_tied(p.positive, p.negative) for p in pairs])
    shorter = wins(np.array([len(p.negative.encode()) - len(p.positive.encode()) for p in pairs], dtype=np.float64))
    yes = np.array([yes_baseline(p.positive, p.negative) for p in pairs])
    some = bool(tied.any())
    return Baselines(
        shorter=float(shorter.mean()),
        shorter_tied=float(shorter[tied].mean()) if some else None,
        yes=float(yes.mean()),
        yes_tied=float(yes[tied].mean()) if some else None,
    )


def doubts(contrast: Contrast) -> tuple[str, ...]:
    """What in a paired contrast should make a reader doubt a high acc, a sentence each; empty where there is nothing.

    A rule without meaning above `TRIVIAL`, answers of one pole that all open with the same polarity, answers that do
    not differ in length on any item, fewer than `FEW` items.
    """
    found = trivial_warnings(baselines(contrast))
    for pole in contrast.poles:
        openings = {polarity(sample.answer) for sample in contrast.samples(pole)}
        if len(openings) == 1 and (opening := openings.pop()) != "neither":
            found.append(
                f"every answer of {pole} opens like a '{opening}': saying {opening} to everything is enough for them"
            )
    if all(len(p.positive.encode()) == len(p.negative.encode()) for p in contrast.pairs):
        found.append("both answers are of equal length on every item, so the baseline of length can say nothing here")
    if len(contrast) < FEW:
        found.append(f"only {len(contrast)} test items: intervals from resampling so few are not to be relied on")
    return tuple(found)


def trivial_warnings(trivial: Baselines) -> list[str]:
    """A sentence for every rule without meaning, or its reverse, that scores above `TRIVIAL`, on all or tied items."""
    rules = (
        ("take the shorter answer", "take the longer answer", trivial.shorter, trivial.shorter_tied),
        ("prefer yes, avoid no", "prefer no, avoid yes", trivial.yes, trivial.yes_tied),
        ("take the more frequent label", "take the rarer label", trivial.majority, None),
    )
    found = []
    for rule, reverse, everywhere, tied in rules:
        for score, where in ((everywhere, "here"), (tied, "on the tied items")):
            if score is not None and (best := max(score, 1 - score)) > TRIVIAL:
                found.append(
                    f"'{rule if score > 0.5 else reverse}' alone scores {best:.2f} {where}: a high acc is no proof "
                    "of a persona, it may be that habit"
                )
    return found


def mean_outcomes(scores: Sequence[ItemScores], kind: Kind = "mean") -> Floats:
    """Outcomes averaged over several readings of the same items (seeds of a control), (n,)."""
    result: Floats = np.mean([s.outcomes(kind) for s in scores], axis=0)
    return result
