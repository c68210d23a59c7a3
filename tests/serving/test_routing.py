"""'auto': the nearest text decides, a tie or no match is the base model."""

from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as st

from personae.serving.routing import Chosen, Router

TEXTS = {
    "cook": ["Which spices go into the soup?", "Bake bread with rye flour"],
    "sailor": ["Hoist the mainsail before the storm", "Which knots hold a boat?"],
}


def bm25(documents: list[list[str]], query: list[str], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """The oracle: Lucene's variant, from its formula."""
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in query:
            holding = sum(word in each for each in documents)
            if word in document:
                rarity = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
                count = document.count(word)
                score += rarity * count / (count + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return scores


def test_the_nearest_text_decides() -> None:
    router = Router(TEXTS)
    assert router.choose("my SOUP is thin").persona == "cook"
    assert router.choose("a knot for the boat, against the storm").persona == "sailor"


WORDS = st.lists(st.sampled_from(["soup", "boat", "storm", "bread", "knot", "zebra"]), min_size=1, max_size=5)


@given(st.dictionaries(st.sampled_from("abc"), st.lists(WORDS, min_size=1, max_size=3), min_size=1), WORDS)
def test_scores_against_the_formula(texts: dict[str, list[list[str]]], asked: list[str]) -> None:
    named = [(name, words) for name in sorted(texts) for words in texts[name]]
    oracle = bm25([words for _, words in named], asked)
    best = max(oracle)
    nearest = {name for (name, _), score in zip(named, oracle, strict=True) if best - score < 1e-6}
    chosen = Router({name: [" ".join(w) for w in rows] for name, rows in texts.items()}).choose(" ".join(asked))
    assert math.isclose(chosen.score, best, rel_tol=1e-5, abs_tol=1e-6)
    if best == 0:
        assert chosen == Chosen(None, 0.0)
    elif len(nearest) == 1:
        assert chosen.persona in nearest
    else:  # equal in the formula, and equal or within rounding in the index
        assert chosen.persona in {None, *nearest}


def test_no_match_and_ties_give_the_base_model() -> None:
    assert Router(TEXTS).choose("xylophone") == Chosen(None, 0.0)
    assert Router(TEXTS).choose("the of and") == Chosen(None, 0.0)  # stop words alone say nothing
    assert Router(TEXTS).choose("") == Chosen(None, 0.0)
    assert Router({}).choose("soup") == Chosen(None, 0.0)
    assert Router({"quiet": ["", "the"]}).choose("soup") == Chosen(None, 0.0)
    tied = Router({"b": ["fresh bread"], "a": ["fresh bread"]}).choose("bread?")
    assert tied.persona is None
    assert tied.tied == ("a", "b")
    assert tied.score > 0
    twice = Router({"a": ["fresh bread", "fresh bread"], "b": ["old boats"]}).choose("bread")
    assert twice.persona == "a"  # two texts of one persona are no tie


@given(st.text())
def test_any_text_is_a_question(text: str) -> None:
    chosen = Router(TEXTS).choose(text)
    known = set(re.findall(r"\b\w\w+\b", text.lower())) & set(re.findall(r"\w\w+", str(TEXTS).lower()))
    assert known or chosen.persona is None
