"""`persona: "auto"`: the persona whose texts are nearest to the request, by BM25.

Of all texts the one with the highest score decides. Equal best scores of two personas, and no word in common with any
text, give the base model: a guess would be a coin toss that looks like a choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import bm25s  # type: ignore[import-untyped]

__all__ = ["Chosen", "Router"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """persona: None for the base model. score: of the best text, 0 for no match. tied: who shared it."""

    persona: str | None
    score: float
    tied: tuple[str, ...] = ()


class Router:
    """An index over the texts of personas, name -> texts. Scores are bm25s' with its defaults (Lucene's variant)."""

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        named = [(name, words) for name in sorted(texts) for words in _words(list(texts[name])) if words]
        self._names = [name for name, _ in named]
        self._index = bm25s.BM25()
        if named:
            self._index.index([words for _, words in named], show_progress=False)

    def choose(self, request: str) -> Chosen:
        """The nearest persona to a request."""
        (words,) = _words([request])
        if not words or not self._names:
            return Chosen(None, 0.0)
        scores = [float(score) for score in self._index.get_scores(words)]
        best = max(scores)
        if best <= 0:
            return Chosen(None, 0.0)
        nearest = sorted({name for name, score in zip(self._names, scores, strict=True) if score == best})
        return Chosen(nearest[0], best) if len(nearest) == 1 else Chosen(None, best, tuple(nearest))


def _words(texts: list[str]) -> list[list[str]]:
    """Lower-case words without English stop words, as lists."""
    return bm25s.tokenize(texts, return_ids=False, show_progress=False) if texts else []
