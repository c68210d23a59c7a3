"""Casts, plans, rivals and the guess by words, on small texts of the public schemas."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from personae.errors import DataError
from personae.evaluation.suites.roleplay_texts import (
    Plan,
    asked_by,
    guessed_by_words,
    plans,
    play_cast,
    rivals,
    rolebench_cast,
    share_named,
    unaddressed,
)
from personae.personas import Persona, Sample
from personae.personas.split import normalised

PLAY = """<?xml version="1.0"?>
<PLAY><ACT><SCENE>
<STAGEDIR>Enter all</STAGEDIR>
<SPEECH><SPEAKER>ANN</SPEAKER><LINE>The first speech answers nobody here.</LINE></SPEECH>
<SPEECH><SPEAKER>BOB</SPEAKER><LINE>Then I answer it,</LINE><STAGEDIR>Aside</STAGEDIR><LINE>in two lines.</LINE></SPEECH>
<SPEECH><SPEAKER>ANN</SPEAKER><LINE><STAGEDIR>Reads</STAGEDIR>All that <STAGEDIR>Weeps</STAGEDIR>glisters is not gold.</LINE></SPEECH>
<SPEECH><SPEAKER>BOB</SPEAKER><LINE>No.</LINE></SPEECH>
<SPEECH><SPEAKER>ANN</SPEAKER><LINE>That was too short to answer.</LINE></SPEECH>
<SPEECH><SPEAKER>ANN</SPEAKER><LINE>And here I follow myself again.</LINE></SPEECH>
<SPEECH><SPEAKER>CAT</SPEAKER><LINE>I have one line with five words.</LINE></SPEECH>
<SPEECH><SPEAKER>ANN</SPEAKER><SPEAKER>BOB</SPEAKER><LINE>We both say this together now.</LINE></SPEECH>
</SCENE><SCENE>
<SPEECH><SPEAKER>BOB</SPEAKER><LINE>A new scene begins with me.</LINE></SPEECH>
</SCENE></ACT></PLAY>
"""  # noqa: E501


def test_a_play_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "play.xml"
    path.write_text(PLAY, encoding="utf-8")
    cast = play_cast(path)
    assert list(cast) == ["ANN", "BOB", "CAT"]
    assert cast["BOB"].samples == (Sample("The first speech answers nobody here.", "Then I answer it, in two lines."),)
    assert cast["ANN"].samples == (Sample("Then I answer it, in two lines.", "All that glisters is not gold."),)
    assert cast["CAT"].samples == (Sample("And here I follow myself again.", "I have one line with five words."),)
    assert list(play_cast(path, speakers=2)) == ["ANN", "BOB"]  # 4 lines each, CAT 1


def test_only_the_end_of_a_long_speech_is_the_question(tmp_path: Path) -> None:
    path = tmp_path / "play.xml"
    long = " ".join(f"word{n}" for n in range(100))
    path.write_text(PLAY.replace("The first speech answers nobody here.", long), encoding="utf-8")
    assert play_cast(path)["BOB"].samples[0].prompt.split() == [f"word{n}" for n in range(40, 100)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<PLAY><SCENE>", "cannot be read as XML"),
        ('<!DOCTYPE x [<!ENTITY a "aaaa">]><PLAY>&a;</PLAY>', "cannot be read as XML"),
        ("<PLAY></PLAY>", "has 0 speakers"),
    ],
)
def test_what_is_no_play(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "play.xml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        play_cast(tmp_path / "play.xml")


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Jack Sparrow, how did you escape?", "How did you escape?"),
        ("jack, why?", "Why?"),
        ("Captain Jack Sparrow, why?", "Captain Jack Sparrow, why?"),  # not only words of the name
        ("Well, Jack Sparrow, why?", "Well, Jack Sparrow, why?"),
        ("How did Jack Sparrow escape?", "How did Jack Sparrow escape?"),
        ("Jack Sparrow,", "Jack Sparrow,"),
    ],
)
def test_the_address_is_taken_out(question: str, expected: str) -> None:
    assert unaddressed(question, "Jack Sparrow") == expected


def test_names_with_initials() -> None:
    assert unaddressed("Professor G.H. Dorr, what is this?", "Professor G.H. Dorr") == "What is this?"
    assert unaddressed("Professor Dorr, what is this?", "Professor G.H. Dorr") == "What is this?"


def test_rolebench_file(tmp_path: Path) -> None:
    rows = [
        {"role": "Bob", "question": " Bob, why? ", "generated": ["Because.", "So."], "type": "script_based"},
        {"role": "Ann", "question": "Ann, who?", "generated": ["Me."], "type": ["script_agnostic"]},
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    cast = rolebench_cast(path)
    assert list(cast) == ["Ann", "Bob"]
    assert cast["Bob"].samples == (Sample("Why?", "Because."), Sample("Why?", "So."))
    path.write_text(json.dumps(rows[0]), encoding="utf-8")
    with pytest.raises(DataError, match="one character"):
        rolebench_cast(path)


def make_cast(number: int = 60) -> dict[str, Persona]:
    return {
        role: Persona(role, tuple(Sample(f"Question {n} about {role}?", f"{role} says {n}.") for n in range(number)))
        for role in ("Ann", "Bob", "Cat")
    }


def test_plans_keep_parts_and_characters_apart() -> None:
    made = plans(make_cast(), calibration=10, test=7)
    calibrating = {normalised(s.prompt) for p in made.values() for s in p.own + p.rivals}
    tested = {normalised(s.prompt) for p in made.values() for s in p.test}
    choosing = {normalised(s.prompt) for p in made.values() for s in p.dev_own + p.dev_rivals}
    assert not calibrating & tested
    assert not choosing & (calibrating | tested)
    for role, plan in made.items():
        assert (len(plan.own), len(plan.rivals), len(plan.test)) == (10, 10, 7)
        assert all(s.answer.startswith(role) for s in plan.own + plan.test + plan.dev_own)
        assert not any(s.answer.startswith(role) for s in plan.rivals + plan.dev_rivals)
        assert len(set(plan.rivals)) == 10
    assert plans(make_cast(), calibration=10, test=7) == made
    assert plans(make_cast(), calibration=10, test=7, seed=1) != made


def test_what_a_play_tests_as_an_answer_is_no_prompt_of_its_calibration() -> None:
    """Ann and Bob speak in turn for long: each speech is an answer and, its end, the next one's prompt."""
    speeches = [f"Speech {n} " + "of many words " * 30 + f"that ends in {n}." for n in range(200)]
    turns = [Sample(asked_by(before), said) for before, said in itertools.pairwise(speeches)]
    cast = {"Ann": Persona("Ann", tuple(turns[0::2])), "Bob": Persona("Bob", tuple(turns[1::2]))}
    made = plans(cast, calibration=40, test=20)
    tested = {asked_by(s.answer) for p in made.values() for s in p.test}
    used = [s for p in made.values() for s in p.own + p.rivals + p.dev_own + p.dev_rivals]
    assert len(tested) == 40
    assert len(used) > 100
    assert not tested & {s.prompt for s in used}


def test_the_same_question_is_the_first_rival_and_none_is_taken_twice() -> None:
    own = [Sample("How do you like boats?", "a"), Sample("How do you like boats?", "b"), Sample("Any bread left?", "c")]
    pool = [
        Sample("Is there bread?", "B1"),
        Sample("How do you like trees?", "T"),
        Sample("How do you like boats?", "S"),
    ]
    assert [s.answer for s in rivals(own, pool)] == ["S", "T", "B1"]
    assert [s.answer for s in rivals(own, pool[:1])] == ["B1"]


def test_guess_by_words_equals_bayes_by_hand() -> None:
    def plan(own: str, test: tuple[str, ...]) -> Plan:
        some = (Sample("?", own),)
        return Plan(some, some, some, some, tuple(Sample("?", t) for t in test))

    made = {"Ann": plan("sea sea boat", ("Sea!",)), "Bob": plan("bread boat boat", ("boat, sea", "unheard of"))}
    # V = {sea, boat, bread}: Ann sea 3/6, boat 2/6; Bob sea 1/6, boat 3/6
    assert math.log(3 / 6) + math.log(2 / 6) > math.log(1 / 6) + math.log(3 / 6)
    assert guessed_by_words(made).tolist() == [0, 0, 0]  # no known word: the first
    made["Ann"] = plan("sea boat", ("boat",))
    assert guessed_by_words(made).tolist() == [1, 0, 0]  # boat: Ann 2/5, Bob 3/6; with sea: 4/25 against 3/36


def test_share_named() -> None:
    some = (Sample("?", "."),)
    test = (Sample("What does Jack think?", "?"), Sample("What?", "I am SPARROW."), Sample("What?", "Jackdaws."))
    assert share_named({"Jack Sparrow": Plan(some, some, some, some, test)}) == pytest.approx(2 / 3)
