"""The opening rule: yes-like, no-like, neither."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae.personas import is_tied, polarity, yes_baseline

YES = """Yes, I would.
yes
Absolutely! Count me in.
Of course.
I would.
I'd love to help.
I would definitely accept the role.
I'd be more than happy to.
I agree that power helps.
I'm in.
It is, and always was.
Sounds good to me.
Without hesitation."""
NO = """No, thanks.
Nope
Absolutely not.
Of course not, never.
Not really.
I would not.
I would rather not.
I don't think so.
I wouldn't dream of it.
I'm not interested.
I respectfully decline.
I strongly disagree.
That is not my aim.
It doesn't matter.
Never."""
NEITHER = """I would keep the day free.
Notice the door first.
Nobody asked me.
Yesterday I did it.
Surely there is another way.
Northern air suits me.
The private office.
I'm interesting company.
Agreement comes later."""


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(a, p) for p, block in (("yes", YES), ("no", NO), ("neither", NEITHER)) for a in block.splitlines()],
)
def test_openings(answer: str, expected: str) -> None:
    assert polarity(answer) == expected


@given(
    st.sampled_from((YES + "\n" + NO + "\n" + NEITHER).splitlines()),
    st.sampled_from(["", '"', " '", "- ", "“"]),
)
def test_case_quotes_and_apostrophes_do_not_matter(answer: str, before: str) -> None:
    changed = before + answer.upper().replace("'", "\u2019")
    assert polarity(changed) == polarity(answer)


@given(st.text(max_size=30), st.text(max_size=30))
def test_the_baseline_is_fair_and_undecided_exactly_on_ties(a: str, b: str) -> None:
    assert yes_baseline(a, b) + yes_baseline(b, a) == 1
    assert is_tied(a, b) == (yes_baseline(a, b) == 0.5)


def test_yes_beats_neither_beats_no() -> None:
    assert yes_baseline("Yes.", "No.") == 1.0
    assert yes_baseline("The office.", "No.") == 1.0
    assert yes_baseline("The office.", "Yes.") == 0.0
    assert is_tied("Yes, gladly.", "Sure.")
    assert not is_tied("Yes.", "Perhaps.")
