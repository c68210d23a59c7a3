"""Splits by hash of the question: disjoint, stable, independent of order and company."""

from __future__ import annotations

import hashlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae.errors import DataError, OptionError
from personae.personas import Contrast, Pair, Persona, Sample, cross_fit, split
from personae.personas.split import normalised

seeds = st.integers(0, 1000)


def numbered(numbers: range) -> Contrast:
    return Contrast("n", "p", "m", tuple(Pair(f"Question {i}?", f"yes {i}", f"no {i}") for i in numbers))


def part_by_question(contrast: Contrast, seed: int) -> dict[str, str]:
    parts = split(contrast, seed=seed)
    return {q: name for name, part in zip(parts._fields, parts, strict=True) for q in part.prompts}


@given(seeds)
def test_every_pair_is_in_exactly_one_part(seed: int) -> None:
    contrast = numbered(range(80))
    parts = split(contrast, seed=seed)
    assert sorted(p.prompt for part in parts for p in part.pairs) == sorted(contrast.prompts)


@given(seeds)
def test_the_part_depends_on_the_question_alone(seed: int) -> None:
    contrast, larger = numbered(range(80)), numbered(range(79, -60, -1))
    parts, others = part_by_question(contrast, seed), part_by_question(larger, seed)
    assert all(others[question] == part for question, part in parts.items())


@given(seeds, st.text(alphabet=" \t\nabcDEß?", max_size=20))
def test_case_and_white_space_do_not_change_the_part(seed: int, question: str) -> None:
    spaced = "  " + question.replace(" ", "\n ").upper() + "\t"
    filler = numbered(range(60)).pairs
    contrast = Contrast("n", "p", "m", (*filler, Pair(question, "a", "b"), Pair(spaced, "c", "d")))
    parts = part_by_question(contrast, seed)
    assert parts[question] == parts[spaced]


def test_sizes_follow_the_fractions_and_another_seed_splits_otherwise() -> None:
    contrast = numbered(range(2000))
    sizes = [len(part) for part in split(contrast)]
    assert sizes == pytest.approx([1200, 400, 400], abs=90)  # about 4 standard deviations
    assert split(contrast) != split(contrast, seed=1)
    assert [len(p) for p in split(contrast, fractions=(0.1, 0.1, 0.8))] == pytest.approx([200, 200, 1600], abs=75)


def test_the_split_of_a_seed_never_drifts() -> None:
    """Published tables rest on it: a change of the hash must break this test."""

    def part(question: str) -> str:
        digest = hashlib.blake2b(f"7\0{question.lower()}".encode(), digest_size=8).digest()
        share = int.from_bytes(digest, "big") / 2**64
        return "calibration" if share < 0.6 else "dev" if share < 0.8 else "test"

    contrast = numbered(range(100))
    assert part_by_question(contrast, 7) == {question: part(question) for question in contrast.prompts}
    assert [len(p) for p in split(contrast)] == [60, 21, 19]


def test_poles_of_an_unpaired_set_share_the_part_of_a_question() -> None:
    answers = tuple(Sample(f"Question {i}?", "a") for i in range(60))
    contrast = Contrast("n", "p", "m", positive_samples=answers, negative_samples=answers[::-1])
    for part in split(contrast):
        assert {s.prompt for s in part.positive_samples} == {s.prompt for s in part.negative_samples}


def test_a_persona_splits_too() -> None:
    parts = split(Persona("pirate", tuple(Sample(f"Question {i}?", "arr") for i in range(60))))
    assert sum(len(part) for part in parts) == 60
    assert parts.test.name == "pirate"


def test_an_empty_part_points_to_cross_fit() -> None:
    with pytest.raises(DataError, match=r"part of 'n' has no items .*--cross-fit"):
        split(numbered(range(2)))


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.6, 0.4, 0.0), (0.6, 0.3, 0.3), (1.2, -0.1, -0.1)])
def test_fractions_must_be_three_positive_shares_of_one(fractions: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match="three numbers above 0 that sum to 1"):
        split(numbered(range(50)), fractions=fractions)


@given(st.integers(2, 7), st.integers(7, 40), seeds)
def test_cross_fit_tests_each_question_once_in_even_folds(folds: int, n: int, seed: int) -> None:
    contrast = numbered(range(n))
    couples = cross_fit(contrast, folds, seed=seed)
    assert sorted(q for _, test in couples for q in test.prompts) == sorted(contrast.prompts)
    sizes = [len(test) for _, test in couples]
    assert max(sizes) - min(sizes) <= 1
    for calibration, test in couples:
        assert set(calibration.prompts) == set(contrast.prompts) - set(test.prompts)


def test_cross_fit_keeps_equal_questions_together() -> None:
    rows = tuple(Pair(q, f"{q}a{i}", "b") for q in ("One?", "one? ", "Two?", "Three?") for i in range(3))
    for calibration, test in cross_fit(Contrast("n", "p", "m", rows), 3):
        asked = {normalised(q) for q in test.prompts}
        assert asked.isdisjoint(normalised(q) for q in calibration.prompts)


def test_cross_fit_refuses_too_few_questions_or_folds() -> None:
    with pytest.raises(OptionError, match="at least 2 folds, found 1"):
        cross_fit(numbered(range(9)), 1)
    with pytest.raises(DataError, match="3 distinct questions, too few for 5 folds"):
        cross_fit(numbered(range(3)))
    sides = Contrast(
        "n",
        "p",
        "m",
        positive_samples=tuple(Sample(str(i), "a") for i in range(5)),
        negative_samples=(Sample("only one", "b"),),
    )
    with pytest.raises(DataError, match="of at least one pole"):
        cross_fit(sides, 3)


def test_a_letter_with_its_accent_apart_is_the_same_question() -> None:
    whole, apart = "Où est le café ?", unicodedata.normalize("NFD", "Où est le café ?")
    assert whole != apart
    assert normalised(whole) == normalised(apart)
