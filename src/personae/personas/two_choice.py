"""Questions that carry their options as '(A) … (B) …', as in Anthropic's evals and CAA.

The options and their heading ('Choices:') leave the question, the letters leave the answers: what is
scored is the text of an answer, never its letter (docs/methods.md, section 6).
"""

from __future__ import annotations

import re
from string import ascii_uppercase

from personae.errors import DataError
from personae.personas.rows import Row
from personae.personas.types import Pair

# An option normally opens a line; only questions without that are searched for '(A) … (B) …' inline,
# because some questions mention '(A)' in passing.
_AT_LINE_START = re.compile(r"^[ \t]*\(([A-Z])\)[ \t]*", re.MULTILINE)
_ANYWHERE = re.compile(r"[ \t]*\(([A-Z])\)[ \t]*")

# 'Choices:', '**Answer choices**:', '_Choices:_', 'Possible answers:', 'The options are:' …, on a
# line of its own or after a finished sentence.
_HEADING = re.compile(
    r"""(?: ^ | \n | (?<=[.?!])[ ]+ )
        (?:[^\w\n]|_)*
        (?:(?:the|your|possible|potential|available|answer|response|choice)[ ]+)*
        (?:choices?|options?|answers?|responses?|choose(?:[ ]+(?:one|from))?)
        (?:[ ]+(?:are|would[ ]be))?
        (?:\W|_)*$""",
    re.VERBOSE | re.IGNORECASE,
)
# Some files end with a cue for the model after the last option.
_CUE = re.compile(r"\n\s*(?:Answer|Assistant)\s*:.*", re.DOTALL)
_LETTER = re.compile(r"\(([A-Z])\)|([A-Z])[.)]?")
_LEADING_LETTER = re.compile(r"\([A-Z]\)\s*")
# Labels of other kinds, alone ('(a)', 'b', '2.') or before a text ('A. Yes'): scored as they are, they would decide.
_LABEL = re.compile(r"(?:\((\w)\)|([A-Za-z])[.)]?|(\d)[.)])(?:(?<=[.)])\s+\S.*)?", re.DOTALL)


def separate_options(question: str) -> tuple[str, dict[str, str]]:
    """The bare question and its options by letter; no options: the question and {}.

    The options are the last run of '(A)', '(B)', … in alphabetical order, two or more.
    """
    for mark in (_AT_LINE_START, _ANYWHERE):
        marks = list(mark.finditer(question))
        firsts = [i for i, found in enumerate(marks) if found[1] == "A"]
        run = marks[firsts[-1] :] if firsts else []
        letters = "".join(found[1] for found in run)
        if len(run) < 2 or letters != ascii_uppercase[: len(run)]:
            continue
        ends = [found.start() for found in run[1:]] + [len(question)]
        texts = [question[found.end() : end] for found, end in zip(run, ends, strict=True)]
        texts[-1] = _CUE.sub("", texts[-1])
        bare = question[: run[0].start()].rstrip()
        options = {letter: text.strip() for letter, text in zip(letters, texts, strict=True)}
        return _HEADING.sub("", bare).strip(), options
    return question.strip(), {}


def two_choice_pair(row: Row, question: str, matching: str, not_matching: str) -> Pair | None:
    """A `Pair` from a row, or None if the row is nothing but options.

    The arguments after `row` are the names of its three fields.

    An answer is a letter, '(A)', 'A' or ' (A)', that is looked up among the question's options, or
    its own text, with or without a leading '(A)'. Where an answer is a list (several options do not
    match), its first element is taken.

    Raises `DataError` for a letter that is not an option, a letter where the question has no
    options, two answers that both begin with a label of another kind, and equal answers.
    """
    bare, options = separate_options(row.text(question))
    if not bare:
        return None
    keys = (matching, not_matching)
    answers = tuple(_answer(row, key, options) for key in keys)
    if not any(letter_of(row.texts(key)[0]) for key in keys):  # their own text, beside options or without
        labels = [_LABEL.fullmatch(answer.strip()) for answer in answers]
        if all(labels):
            raise DataError(
                f"{row.where}: the answers begin with labels ({', '.join(repr(a[:20]) for a in answers)}) that would "
                "be scored: write the options as '(A) …' and '(B) …' in the question, or answers without labels."
            )
    return checked_pair(row, bare, *answers)


def checked_pair(row: Row, prompt: str, positive: str, negative: str) -> Pair:
    """A `Pair`, or `DataError` if the two answers are the same text and so hold no contrast."""
    if positive == negative:
        raise DataError(f"{row.where}: both answers are the same; mend or remove the row.")
    return Pair(prompt, positive, negative)


def letter_of(text: str) -> str | None:
    """'A' for '(A)', 'A', 'A.' or 'A)'; None for anything else."""
    found = _LETTER.fullmatch(text.strip())
    return (found[1] or found[2]) if found else None


def _answer(row: Row, key: str, options: dict[str, str]) -> str:
    text = row.texts(key)[0]
    letter = letter_of(text)
    if letter is None:
        leading = _LEADING_LETTER.match(text)
        return text[leading.end() :] if leading else text
    if not options:
        raise DataError(f"{row.where}: '{key}' is the letter {letter}, but the question has no '(A) … (B) …' options.")
    if letter not in options:
        raise DataError(f"{row.where}: '{key}' is the letter {letter}, but the options are {', '.join(options)}.")
    if not options[letter]:
        raise DataError(f"{row.where}: option ({letter}) is empty; fill it or remove the row.")
    return options[letter]
