"""What the page asks and shows: modes, conversations, and answers that end, fail or are left in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae.errors import OptionError
from personae.runtime.requests import End
from personae.serving.page_answers import BLEND, Shown, answers, conversation, mode_of, name_of, said, wanted
from personae.serving.schemas import ChatRequest
from personae.serving.service import Service

ENDED = End("length", 5, 3, 0, 0.0, 0.1, 1.25)


# --------------------------------------------------------------------- asking


@given(st.text())
def test_no_persona_is_another_mode(name: str) -> None:
    assert name_of(mode_of(name)) == name
    assert wanted(mode_of(name), 0.5, ["other"], [1]) == {"persona": name, "strength": 0.5}


@pytest.mark.parametrize("mode", [None, "base", "auto", BLEND])
def test_modes_that_are_no_persona(mode: str | None) -> None:
    assert name_of(mode) is None


def test_what_is_chosen_becomes_fields_of_the_api() -> None:
    common = {"model": "tiny", "messages": [said("Hello?")]}
    for arguments, expected in (
        ((None, 1, [], []), ("base", None)),
        (("base", 0.3, ["calm"], [1]), ("base", None)),
        (("auto", 1, [], []), ("auto", None)),
        ((mode_of("calm"), 2, [], []), ("calm", 2.0)),
        ((BLEND, 1, ["calm", "loud"], [1, 0.25, 0.9]), ({"calm": 1.0, "loud": 0.25}, None)),
    ):
        asked = ChatRequest(**common, **wanted(*arguments))  # type: ignore[arg-type]
        assert (asked.persona, asked.strength) == expected
    with pytest.raises(OptionError, match="nobody is in the blend"):
        wanted(BLEND, 1, [], [0.5])


def test_a_question_is_needed() -> None:
    for nothing in (None, "", " \n"):
        with pytest.raises(OptionError, match="no question"):
            said(nothing)
    assert said("    two\n    lines") == {"role": "user", "content": "two\nlines"}


def test_a_conversation_has_no_labels_and_no_question_without_an_answer() -> None:
    history = [
        {"role": "user", "content": "Stopped at once?"},
        {"role": "user", "content": [{"type": "text", "text": "One?"}]},
        {"role": "assistant", "content": Shown("calm", "First.", ENDED).parts()},
        {"role": "user", "content": "Refused?"},
        {"role": "assistant", "content": Shown(problem="the queue is full").parts()},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": Shown("loud", "Sec", problem="the server is shutting down").parts()},
        {"role": "user", "content": "The last?"},
    ]
    assert conversation(history) == [
        {"role": "user", "content": "One?"}, {"role": "assistant", "content": "First."},
        {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Sec"},
    ]  # fmt: skip
    assert conversation([]) == conversation(history[-1:]) == conversation(history[2:3]) == []


# ---------------------------------------------------------------------- shown


def test_labels_say_how_it_went_and_escape_what_they_quote() -> None:
    assert Shown().label == '<span class="worn">…</span>'
    assert Shown("<calm>").label == '<span class="worn"><b>&lt;calm&gt;</b> · …</span>'
    assert Shown("calm", "Hello").label == '<span class="worn"><b>calm</b></span>'
    ended = Shown("calm", "Hello", ENDED).label
    assert "3 tokens in 1.2 s · cut at the longest answer" in ended
    assert "cut" not in Shown("calm", "Hello", End("stop", 5, 3, 0, 0.0, 0.1, 1.25)).label
    assert Shown(problem="no <persona>").label == '<span class="problem">Not answered: no &lt;persona&gt;</span>'
    assert "Cut: gone" in Shown("calm", "Hel", problem="gone").label
    assert [part["text"] for part in Shown("calm", "<b>", ENDED).parts()][1:] == ["<b>"]


# -------------------------------------------------------------------- answers


@pytest.fixture
def service(make_service: Callable[..., Service], persona_file: Callable[..., Path]) -> Service:
    return make_service([persona_file("calm", "loud")], max_tokens=20)


def ask(**fields: Any) -> dict[str, Any]:
    return {"messages": [said("Hello?")], "max_completion_tokens": 3, **fields}


def last(service: Service, *requests: Callable[[], dict[str, Any]]) -> list[Shown]:
    """What is shown in the end; every state continues the one before."""

    async def use() -> list[Shown]:
        shown = [Shown() for _ in requests]
        async for state in answers(service, requests):
            for new, old in zip(state, shown, strict=True):
                assert new.text.startswith(old.text)
            shown = state
        return shown

    return asyncio.run(use())


def test_three_at_once_to_their_ends(service: Service, engine: Any) -> None:
    engine.pause = 0.06  # several states
    shown = last(service, partial(ask, persona="base"), partial(ask, persona="calm"), partial(ask, persona="loud"))
    assert [each.persona for each in shown] == ["base", "calm", "loud"]
    assert all(each.text.endswith(" 1 2") and each.end and not each.problem for each in shown)
    assert engine.running == 0
    assert service.registry.uses("calm") == 0


def refuse() -> dict[str, Any]:
    raise OptionError("there is no question: write one.")


def test_problems_are_words(service: Service, engine: Any) -> None:
    shown = last(
        service, refuse, partial(ask, persona="nobody"), partial(ask, max_completion_tokens=21),
        partial(ask, temperature=7.0), partial(ask, messages=[said("x" * 5000)]), ask,
    )  # fmt: skip
    problems = [each.problem for each in shown]
    for problem, words in zip(
        problems, ["no question", "there are: calm, loud", "at most 20", "less than or equal to 2", "context"],
        strict=False,
    ):  # fmt: skip
        assert words in problem
    assert problems[-1] == ""  # one that fails does not take the others with it
    engine.room = 0
    assert "queue is full" in last(service, ask)[0].problem
    assert service.registry.uses("calm") == 0


def test_a_failure_in_the_middle_keeps_the_text(service: Service, engine: Any) -> None:
    engine.failure = ZeroDivisionError("secret")
    (shown,) = last(service, partial(ask, persona="calm"))
    assert shown.text.startswith("calm")
    assert "its log says why" in shown.problem
    assert "secret" not in shown.problem


# Gradio ends an answer that nobody wants in two ways: it closes the generator, or cancels the task that waits for it.


@pytest.mark.parametrize("way", ["close", "cancel"])
def test_nobody_waits_any_more(service: Service, engine: Any, eventually: Callable[..., None], way: str) -> None:
    async def use() -> None:
        stream = answers(service, [partial(ask, persona="calm"), partial(ask, persona="loud")])
        await anext(stream)
        while engine.running < 2:
            await asyncio.sleep(0.01)
        if way == "close":
            await stream.aclose()  # type: ignore[attr-defined]
        else:
            waiting = asyncio.ensure_future(drained(stream))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        while engine.running or service.registry.uses("calm"):
            await asyncio.sleep(0.01)

    engine.gate.clear()
    asyncio.run(asyncio.wait_for(use(), 60))
    assert engine.ends == ["cancelled"] * 2


async def drained(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


def test_a_cancel_while_the_persona_is_loaded_keeps_nobody_in_memory(
    service: Service, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`begin` is in a thread then, and only its end can tell what is to be given back."""
    acquire, held = service.registry.acquire, asyncio.Event()

    async def use() -> None:
        loop = asyncio.get_running_loop()

        def slow(look: Any) -> Any:
            lease = acquire(look)
            loop.call_soon_threadsafe(held.set)
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), loop).result()
            return lease

        monkeypatch.setattr(service.registry, "acquire", slow)
        waiting = asyncio.ensure_future(drained(answers(service, [partial(ask, persona="calm")])))
        await held.wait()
        assert service.registry.uses("calm") == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        while service.registry.uses("calm"):
            await asyncio.sleep(0.01)

    engine.gate.clear()
    asyncio.run(asyncio.wait_for(use(), 60))


def test_silence_is_shown_too(service: Service, engine: Any) -> None:
    """A page that was closed is noticed when it is told something."""

    async def use() -> None:
        stream = answers(service, [ask])
        while not (await anext(stream))[0].persona:  # not begun yet
            pass
        states = [await anext(stream) for _ in range(2)]
        assert states[0] == states[1]
        await stream.aclose()  # type: ignore[attr-defined]

    engine.gate.clear()
    asyncio.run(asyncio.wait_for(use(), 60))
