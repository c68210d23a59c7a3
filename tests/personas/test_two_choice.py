"""Options leave the question, letters leave the answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae.errors import DataError
from personae.personas import Pair
from personae.personas.rows import Row
from personae.personas.two_choice import letter_of, separate_options, two_choice_pair

HEADINGS = [
    "",
    "Choices:",
    " Choices:\n",
    "**Answer choices**:",
    "_Choices:_",
    "Options:",
    "The choices would be:",
]
plain = st.text(alphabet="abcde ,.?'é", min_size=1, max_size=20).map(str.strip).filter(bool)


def pair(question: str, matching: object, other: object) -> Pair | None:
    row = Row({"q": question, "m": matching, "n": other}, "f, line 9")
    return two_choice_pair(row, "q", "m", "n")


@given(
    plain,
    st.sampled_from(HEADINGS),
    st.lists(plain, min_size=2, max_size=8),
    st.sampled_from([" ", "", "  "]),
)
def test_options_on_lines_come_apart_again(question: str, heading: str, options: list[str], space: str) -> None:
    listed = "\n".join(f"{space}({letter}) {text}" for letter, text in zip("ABCDEFGH", options, strict=False))
    written = f"{question}\n\n{heading}\n{listed}" if heading else f"{question}\n{listed}"
    assert separate_options(written) == (question, dict(zip("ABCDEFGH", options, strict=False)))


@pytest.mark.parametrize(
    ("written", "bare", "options"),
    [
        ("Fine? (A) Yes (B) No", "Fine?", {"A": "Yes", "B": "No"}),
        ("Fine? Choices: (A) Yes\n(B) No", "Fine?", {"A": "Yes", "B": "No"}),
        ("Say (A) or (B).\n (A) Yes\n (B) No", "Say (A) or (B).", {"A": "Yes", "B": "No"}),
        ("Fine?\n(A) Two\nlines\n(B) No", "Fine?", {"A": "Two\nlines", "B": "No"}),
        ("Agree?\n\n(A) Yes\n(B) No\n\nAssistant: I believe", "Agree?", {"A": "Yes", "B": "No"}),
        ("Agree?\n(A) Yes\n(B) No\nAnswer:", "Agree?", {"A": "Yes", "B": "No"}),
        ("What are your options?\n(A) X\n(B) Y", "What are your options?", {"A": "X", "B": "Y"}),
        ("Only one: (A) X", "Only one: (A) X", {}),
        ("Out of order (B) X (A) Y", "Out of order (B) X (A) Y", {}),
        ("Choices:\n(A) X\n(B) Y", "", {"A": "X", "B": "Y"}),
        ("  Plain question? ", "Plain question?", {}),
    ],
)
def test_odd_questions(written: str, bare: str, options: dict[str, str]) -> None:
    assert separate_options(written) == (bare, options)


@pytest.mark.parametrize("letter", ["(B)", " (B)", "B", "B)", "B.", ["(B)", "(C)"]])
def test_letters_in_every_spelling(letter: object) -> None:
    assert pair("Q?\n(A) x\n(B) y\n(C) z", letter, "(C)") == Pair("Q?", "y", "z")


def test_answers_in_words_are_taken_as_they_are() -> None:
    assert pair("Would you say this?", " Yes", " No") == Pair("Would you say this?", "Yes", "No")
    assert pair("Q?\n(A) x\n(B) y", "(A) in words", "(B) others") == Pair("Q?", "in words", "others")


@pytest.mark.parametrize(
    ("question", "answers"),
    [
        ("Lead?\n (a) Yes\n (b) No", ("(a)", "(b)")),
        ("Lead?\n(1) Yes\n(2) No", ("(1)", " (2)")),
        ("Lead?", ("a", "b")),
        ("Lead?\nA. Yes\nB. No", ("A. Yes", "B. No")),
        ("Lead?", ("1) Yes\nalways", "2) No")),
        ("Lead?\n(A) Yes, gladly.\n(B) No.", ("(a)", "(b)")),
        ("Lead?\n(A) Yes, gladly.\n(B) No.", ("A. Yes, gladly.", "B. No.")),
    ],
)
def test_labels_of_other_kinds_are_refused_and_not_scored(question: str, answers: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=r"f, line 9: the answers begin with labels .* that would be scored"):
        pair(question, *answers)


@pytest.mark.parametrize("answers", [("3", "5"), ("A cat", "I do"), ("I. Newton", "Nobody"), ("1.5", "2.5")])
def test_what_is_no_label_is_an_answer(answers: tuple[str, str]) -> None:
    assert pair("Q?", *answers) == Pair("Q?", *answers)


def test_a_row_of_options_alone_is_no_item() -> None:
    assert pair("Choices:\n(A) x\n(B) y", "(A)", "(B)") is None


@pytest.mark.parametrize(
    ("question", "matching", "other", "message"),
    [
        ("Q?\n(A) x\n(B) y", "(C)", "(A)", "'m' is the letter C, but the options are A, B"),
        ("Q?", "(A)", "(B)", r"no '\(A\) … \(B\) …' options"),
        ("Q?\n(A) x\n(B)", "(A)", "(B)", r"option \(B\) is empty"),
        ("Q?\n(A) x\n(B) x", "(A)", "(B)", "both answers are the same"),
        ("Q?\n(A) x\n(B) y", "(A)", "(A)", "both answers are the same"),
        ("Q?\n(A) x\n(B) y", 1, "(A)", "'m' must be text, found int"),
    ],
)
def test_broken_rows_are_named(question: str, matching: object, other: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"f, line 9: .*{message}"):
        pair(question, matching, other)


def test_letter_of() -> None:
    assert [letter_of(t) for t in ("(A)", " B. ", "a", "AB", "")] == ["A", "B", None, None, None]
