"""Few-shot retrieval: the rival that shows the model how the persona answered the most similar questions.

For each test question the nearest calibration questions by BM25 (bm25s; Robertson's ranking with the defaults of the
library), with the pole's own answers, stand as earlier turns of the conversation; the nearest one last.
"""

from __future__ import annotations

from collections.abc import Sequence

import bm25s  # type: ignore[import-untyped]
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.errors import DataError
from personae.evaluation.scoring import Items, encode_items
from personae.models import Encoded, Question, context_length, encode
from personae.personas import Contrast

SHOTS = 4


def nearest(questions: Sequence[str], asked: Sequence[str], number: int = SHOTS) -> list[list[int]]:
    """For each asked question the indices of its nearest `questions`, the nearest first; equal scores by index.

    Errors: `DataError` without questions.
    """
    if not questions:
        raise DataError("retrieval needs calibration questions.")
    index = bm25s.BM25()
    index.index(_words(questions), show_progress=False)
    found = []
    for words in _words(asked):
        scores = index.get_scores(words) if words else [0.0] * len(questions)
        order = sorted(range(len(questions)), key=lambda i: (-float(scores[i]), i))
        found.append(order[:number])
    return found


def _words(texts: Sequence[str]) -> list[list[str]]:
    tokens: list[list[str]] = bm25s.tokenize(list(texts), return_ids=False, show_progress=False)
    return tokens


def with_examples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test: Contrast,
    calibration: Contrast,
    *,
    shots: int = SHOTS,
) -> tuple[Items, Items]:
    """The test items after examples of the positive pole, and after examples of the negative pole."""
    plain = encode_items(model, tokenizer, test)
    chosen = nearest([p.prompt for p in calibration.pairs], [p.prompt for p in test.pairs], shots)
    context = context_length(model)

    def side(pole: int) -> Items:
        questions = []
        for pair, examples in zip(test.pairs, chosen, strict=True):
            turns = [
                (calibration.pairs[i].prompt, (calibration.pairs[i].positive, calibration.pairs[i].negative)[pole])
                for i in reversed(examples)
            ]
            both: list[Encoded] = [
                encode(tokenizer, pair.prompt, answer, history=turns, context=context)
                for answer in (pair.positive, pair.negative)
            ]
            # A prompt cut from the left may be cut differently for the two answers; the shorter one serves both.
            prompt = min((e.prompt for e in both), key=len)
            questions.append(Question(prompt, (both[0].answer, both[1].answer)))
        return Items(tuple(questions), plain.bytes, plain.tied, plain.ids)

    return side(0), side(1)
