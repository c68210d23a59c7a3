from __future__ import annotations

import pytest

from personae.errors import OptionError
from personae.runtime import Conversation

FIRST, SECOND = "What would you do on a free Saturday?", "And why is that?"
SHORT = {"max_new_tokens": 10}


def test_the_history_is_asked_with(actor) -> None:
    talk = Conversation(actor, system="Be kind.")
    first = talk.ask(FIRST, **SHORT)
    second = talk.ask(SECOND, **SHORT)
    history = [
        {"role": "user", "content": FIRST}, {"role": "assistant", "content": first},
        {"role": "user", "content": SECOND},
    ]  # fmt: skip
    assert first == actor.chat(FIRST, system="Be kind.", **SHORT)
    assert second == actor.chat(history, system="Be kind.", **SHORT)
    assert talk.messages == [*history, {"role": "assistant", "content": second}]


def test_a_change_of_persona_midway_re_reads_the_history(actor) -> None:
    talk = Conversation(actor)
    actor.set_persona("a")
    first = talk.ask(FIRST, **SHORT)
    actor.set_persona("b")
    second = talk.ask(SECOND, **SHORT)

    # A fresh conversation of 'b' with the same words and nothing computed before.
    fresh = Conversation(actor)
    fresh._messages = [{"role": "user", "content": FIRST}, {"role": "assistant", "content": first}]
    assert fresh.ask(SECOND, **SHORT) == second
    actor.set_persona("a")
    fresh._messages = fresh._messages[:2]
    assert fresh.ask(SECOND, **SHORT) != second, "the personas must answer differently for this test to mean anything"


def test_streaming_remembers_what_asking_remembers(actor) -> None:
    asked, streamed = Conversation(actor), Conversation(actor)
    for text in (FIRST, SECOND):
        answer = asked.ask(text, temperature=1.0, seed=3, **SHORT)
        assert "".join(streamed.stream(text, temperature=1.0, seed=3, **SHORT)).strip() == answer
    assert streamed.messages == asked.messages


def test_a_stream_closed_early_remembers_what_was_read(actor) -> None:
    talk = Conversation(actor)
    stream = talk.stream(FIRST, max_new_tokens=100)
    piece = next(stream)
    stream.close()
    assert talk.messages == [
        {"role": "user", "content": FIRST},
        {"role": "assistant", "content": piece.strip()},
    ]
    actor.set_persona("a")  # the worker is gone


def test_a_stream_never_read_says_nothing(actor) -> None:
    talk = Conversation(actor)
    stream = talk.stream(FIRST, max_new_tokens=100)
    del stream
    assert talk.messages == []
    actor.set_persona("a")


def test_an_error_changes_no_history(actor, monkeypatch) -> None:
    talk = Conversation(actor)
    talk.ask(FIRST, **SHORT)
    before = talk.messages
    with pytest.raises(OptionError):
        talk.ask(SECOND, temperature=-1)
    with monkeypatch.context() as patched:
        patched.setattr(actor.model, "generate", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(talk.stream(SECOND))
    assert talk.messages == before


def test_messages_are_a_copy(actor) -> None:
    talk = Conversation(actor)
    talk.ask(FIRST, **SHORT)
    talk.messages[0]["content"] = "changed"
    talk.messages.clear()
    assert talk.messages[0]["content"] == FIRST
