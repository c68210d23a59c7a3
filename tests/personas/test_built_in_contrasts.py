"""Each contrast written for this project: plausible answers that nothing but their content tells apart."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from itertools import combinations
from typing import Any

import pytest

from personae.personas import is_tied, list_contrasts, load_contrast, polarity

NAMES = (
    *("introvert-extravert", "intuitive-sensing", "thinking-feeling", "judging-perceiving"),
    *("power-seeking", "wealth-seeking", "sycophantic-candid", "confabulating-truthful"),
    *("agreeable-disagreeable", "optimistic-pessimistic", "formal-casual", "cautious-daring"),
    *("empathetic-brusque", "whimsical-literal", "combative-conciliatory"),
)
# An audit takes calibration, dev and test items from these.
AUDITED = ("power-seeking", "wealth-seeking", "sycophantic-candid", "confabulating-truthful")
HEADER = ("contrast", "positive", "negative", "description", "positive_prompt", "negative_prompt", "licence")
SIDES = ("positive", "negative")
# Words that say nothing about the situation; two prompts are compared without them.
STOP_WORDS = """a an the of to in on at for and or but is are was were be do does did you your i my me it its
this that with what how would should could will can have has had from as if so when who which their there
they them he she his her we our us about not no up out"""
STOP = frozenset(STOP_WORDS.split())

Rows = list[dict[str, Any]]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def unlike(first: str, second: str) -> float:
    """Difference of two lengths as a share of the longer."""
    return abs(len(first) - len(second)) / max(len(first), len(second))


@pytest.fixture(scope="module", params=NAMES)
def rows(request: pytest.FixtureRequest) -> Rows:
    """Header and pairs of one set, as written."""
    path = files("personae").joinpath("data", "contrasts", f"{request.param}.jsonl")
    assert path.is_file(), f"the built-in contrast {request.param} is missing"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


@pytest.fixture(scope="module")
def header(rows: Rows) -> dict[str, Any]:
    return rows[0]


@pytest.fixture(scope="module")
def pairs(rows: Rows) -> Rows:
    return rows[1:]


def side(pairs: Rows, name: str) -> list[str]:
    return [pair[name] for pair in pairs]


def breaches(found: Sequence[str]) -> str:
    return "\n".join(found)


def test_all_fifteen_are_listed() -> None:
    assert list_contrasts() == sorted(NAMES)


def test_the_header_is_complete(header: dict[str, Any]) -> None:
    assert not [key for key in HEADER if not header.get(key)]


def test_it_loads_under_its_name_and_the_turned_one(header: dict[str, Any], pairs: Rows) -> None:
    contrast = load_contrast(header["contrast"])
    assert contrast.poles == (header["positive"], header["negative"])
    assert contrast.positive_prompt == header["positive_prompt"]
    assert len(contrast) == len(pairs)
    assert load_contrast(f"{header['negative']}-{header['positive']}") == contrast.swapped()


def test_there_are_enough_pairs(header: dict[str, Any], pairs: Rows) -> None:
    assert len(pairs) >= (250 if header["contrast"] in AUDITED else 105)


def test_rows_have_three_trimmed_texts_and_two_different_answers(pairs: Rows) -> None:
    found = []
    for line, pair in enumerate(pairs, start=2):
        if set(pair) != {"prompt", *SIDES}:
            found.append(f"line {line}: keys {sorted(pair)}")
            continue
        found += [f"line {line}: {k} empty or with outer space" for k, v in pair.items() if not v or v != v.strip()]
        if pair["positive"] == pair["negative"]:
            found.append(f"line {line}: equal answers")
    assert not found, breaches(found)


def test_answers_have_6_to_40_words(pairs: Rows) -> None:
    counts = [(line, s, len(words(pair[s]))) for line, pair in enumerate(pairs, start=2) for s in SIDES]
    found = [f"line {line}: {s} has {n} words" for line, s, n in counts if not 6 <= n <= 40]
    assert not found, breaches(found)


def test_no_answer_names_a_pole(header: dict[str, Any], pairs: Rows) -> None:
    stems = [re.compile(r"\b" + re.escape(header[s].lower()[:8])) for s in SIDES]
    found = [
        f"line {line}: {s} names the persona"
        for line, pair in enumerate(pairs, start=2)
        for s in SIDES
        if any(stem.search(pair[s].lower()) for stem in stems)
    ]
    assert not found, breaches(found)


def test_answers_of_a_pair_are_about_as_long(pairs: Rows) -> None:
    differences = [unlike(pair["positive"], pair["negative"]) for pair in pairs]
    found = [f"line {line}: lengths differ by {d:.2f}" for line, d in enumerate(differences, start=2) if d > 0.45]
    assert not found, breaches(found)
    assert sum(differences) / len(differences) <= 0.20


def test_picking_the_shorter_answer_tells_nothing(pairs: Rows) -> None:
    lengths = [(len(pair["positive"]), len(pair["negative"])) for pair in pairs]
    score = sum((p < n) + 0.5 * (p == n) for p, n in lengths) / len(lengths)
    assert 0.42 <= score <= 0.58


def test_most_pairs_are_tied_in_polarity(pairs: Rows) -> None:
    assert sum(is_tied(pair["positive"], pair["negative"]) for pair in pairs) / len(pairs) >= 0.70


@pytest.mark.parametrize("opening", ["yes", "no"])
def test_both_sides_open_with_yes_and_with_no_equally_often(pairs: Rows, opening: str) -> None:
    counts = {s: sum(polarity(answer) == opening for answer in side(pairs, s)) for s in SIDES}
    assert abs(counts["positive"] - counts["negative"]) <= 2, counts
    assert min(counts.values()) >= 8, counts


@pytest.mark.parametrize("field", ["prompt", "positive", "negative"])
def test_no_opening_of_three_words_is_a_habit(pairs: Rows, field: str) -> None:
    openings = Counter(" ".join(words(text)[:3]) for text in side(pairs, field))
    assert not [f"{n} open with '{opening}'" for opening, n in openings.items() if n > max(6, 0.05 * len(pairs))]


@pytest.mark.parametrize("field", SIDES)
def test_no_answer_is_repeated(pairs: Rows, field: str) -> None:
    assert not [answer for answer, n in Counter(side(pairs, field)).items() if n > 1]


def test_no_two_prompts_are_nearly_the_same(pairs: Rows) -> None:
    topics = [(line, set(words(pair["prompt"])) - STOP) for line, pair in enumerate(pairs, start=2)]
    found = [
        f"prompts of lines {a} and {b}"
        for (a, first), (b, second) in combinations(topics, 2)
        if first | second and len(first & second) / len(first | second) >= 0.5
    ]
    assert not found, breaches(found)
