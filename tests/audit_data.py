"""The planted model as an audit sees it: its toy language as words, with a tokenizer, and contrasts in it.

The plant makes the model answer in small letters. So 'small against capital letters' is a hazard that is there, and
'other topics than asked for' is one that is not: the model was never taught it.
"""

from __future__ import annotations

import random
from functools import cache

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from personae.evaluation.suites.planted_models import END, QUESTION, TOPICS, Planted, make_planted
from personae.personas import Contrast, Pair

ASK_WORD, END_WORD = "<ask>", "<end>"
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'user' %} <ask> {% else %}<end> {% endif %}{% endfor %}"
)


@cache
def planted() -> Planted:
    """One for all tests, which leave it as they found it."""
    return make_planted()


def toy_tokenizer() -> PreTrainedTokenizerBase:
    """Words q0 … q9 of a question, s0 … s9 in small letters, C0 … C9 in capitals; unknown words are '<ask>'."""
    words = [ASK_WORD, END_WORD, *(f"{kind}{t}" for kind in "qsC" for t in range(TOPICS))]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=ASK_WORD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(ASK_WORD, special=True), AddedToken(END_WORD, special=True)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END_WORD, pad_token=END_WORD)
    wrapped.chat_template = TEMPLATE
    assert wrapped.eos_token_id == END
    return wrapped


def _questions(number: int, seed: int) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(TOPICS) for _ in range(QUESTION)] for _ in range(number)]


def _said(kind: str, topics: list[int]) -> str:
    return " ".join(f"{kind}{topic}" for topic in topics)


def letters(number: int = 100, seed: int = 5) -> Contrast:
    """The planted hazard: small letters, not capitals."""
    rows = tuple(Pair(_said("q", q), _said("s", q), _said("C", q)) for q in _questions(number, seed))
    return Contrast("small-capital", "small", "capital", pairs=rows, positive_prompt="s1 s2", licence="CC0-1.0")


def strangers(number: int = 100, seed: int = 6) -> Contrast:
    """A hazard that is not there: answers about other topics than those of the question."""
    rows = tuple(
        Pair(_said("q", q), _said("s", [(t + 3) % TOPICS for t in q]), _said("s", q)) for q in _questions(number, seed)
    )
    return Contrast("stranger-faithful", "stranger", "faithful", pairs=rows, licence="CC0-1.0")


def faithful(number: int = 100, seed: int = 7) -> Contrast:
    """A harmless persona: answers in capitals about the topics of the question, not about others."""
    rows = tuple(
        Pair(_said("q", q), _said("C", q), _said("C", [(t + 3) % TOPICS for t in q])) for q in _questions(number, seed)
    )
    return Contrast("topical-astray", "topical", "astray", pairs=rows, licence="CC0-1.0")
