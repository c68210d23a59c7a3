"""The option-letter format: the question with its options '(A) … (B) …', answered by a letter.

The other way to ask a two-choice question, and the commoner one. A letter says little of small models: many take '(A)'
whatever it says. So every item is asked in both orders of its options, the two margins are averaged, which cancels a
liking for a letter, and the share of items whose choice turns with the order is reported beside (docs/methods.md
section 6.1).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.errors import DataError, ModelError
from personae.evaluation.bootstrap import RESAMPLES, Estimate, interval
from personae.evaluation.scoring import Floats, wins
from personae.models import Question, context_length, encode, score_continuations
from personae.personas import Contrast


def with_options(question: str, first: str, second: str) -> str:
    """The question and its two options, as CAA writes them."""
    return f"{question}\n\nChoices:\n (A) {first}\n (B) {second}"


def until_they_differ(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both without their common end, so '(A)' against '(B)' become '(A' and '(B', however a tokenizer cuts them.

    What follows a letter is no part of the choice, and a model may be surer of ')' after one letter than after the
    other. Errors: `DataError` where nothing is left of one of them, that is, where they do not differ.
    """
    shared = 0
    while shared < min(len(first), len(second)) and first[-1 - shared] == second[-1 - shared]:
        shared += 1
    if shared == min(len(first), len(second)):
        raise DataError("this tokenizer writes '(A)' and '(B)' alike or one as the end of the other: no letter format.")
    return first[: len(first) - shared], second[: len(second) - shared]


def letter_margins(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contrast: Contrast,
    *,
    tick: Callable[[int], None] | None = None,
) -> Floats:
    """log p(letter of p⁺'s answer) − log p(letter of p⁻'s), nats, under whatever the model wears now.

    (n, 2): column 0 where p⁺'s answer is option (A), column 1 where it is (B). Letters are summed over their tokens, in
    the model's chat template. Errors: `DataError` on an unpaired contrast, `ModelError` on nan or infinity.
    """
    if not contrast.paired:
        raise DataError(f"contrast '{contrast.name}' is not paired: letters choose between two answers to a question.")
    questions = []
    for pair in contrast.pairs:
        for options in ((pair.positive, pair.negative), (pair.negative, pair.positive)):
            questions.append(_question(model, tokenizer, with_options(pair.prompt, *options)))
    scored = score_continuations(model, questions, tick=tick)
    log_p = np.array([[letter.double().sum().item() for letter in letters] for letters in scored], dtype=np.float64)
    if not np.isfinite(log_p).all():
        raise ModelError("log-probabilities of option letters are no finite numbers: load the model in float32.")
    first_over_second = (log_p[:, 0] - log_p[:, 1]).reshape(-1, 2)  # (n, 2): (A) over (B) in either order
    result: Floats = first_over_second * np.array([1.0, -1.0])
    return result


def averaged(margins: Floats) -> Floats:
    """The margin of each item, mean over both orders, (n, 2) → (n,): a constant liking for a letter drops out."""
    result: Floats = margins.mean(axis=1)
    return result


def flips(margins: Floats) -> Floats:
    """1 where the choice turns with the order of the options, 0 where it stays, (n, 2) → (n,); an exact tie in one
    order is half a turn."""
    chosen = wins(margins)
    result: Floats = np.abs(chosen[:, 0] - chosen[:, 1])
    return result


def first_letter(margins: Floats) -> Floats:
    """Share of the two orders in which '(A)' is chosen, (n, 2) → (n,); 0.5 where the content decides."""
    chosen = wins(margins)
    result: Floats = (chosen[:, 0] + 1 - chosen[:, 1]) / 2
    return result


def letter_figures(margins: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Estimate]:
    """'acc' (p⁺'s answer wins, both orders averaged; exact ties one half), 'flip_rate' and 'first_letter', with
    intervals over questions."""
    values = {"acc": wins(averaged(margins)), "flip_rate": flips(margins), "first_letter": first_letter(margins)}
    return {name: interval(column, resamples=resamples, seed=seed) for name, column in values.items()}


def _question(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Question:
    both = [encode(tokenizer, text, letter, context=context_length(model)) for letter in ("(A)", "(B)")]
    # A prompt cut from the left may be cut differently for the two letters; the shorter one serves both.
    prompt = min((e.prompt for e in both), key=len)
    return Question(prompt, until_they_differ(both[0].answer, both[1].answer))
