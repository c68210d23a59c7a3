"""The bridge from the engine's thread to the loop: order, ends, failures, cancelling, and when a persona is let go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from personae.errors import BusyError
from personae.runtime.generation import Options
from personae.runtime.requests import End, Piece, Request
from personae.serving.refusals import Refusal
from personae.serving.writing import Writing

REQUESTS = [Request((1, 2), (("calm", 1.0),), Options(max_new_tokens=n)) for n in (3, 1, 2)]


class Watched:
    """Counts releases and ends."""

    def __init__(self) -> None:
        self.released = 0
        self.ends: list[object] = []

    def release(self) -> None:
        self.released += 1

    def begin(self, engine: Any, requests: list[Request] = REQUESTS) -> Writing:
        return Writing(engine, requests, self.release, self.ends.append)


async def until(happened: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not happened():
            await asyncio.sleep(0.002)


def test_all_choices_to_their_ends(engine: Any) -> None:
    async def use() -> None:
        watched = Watched()
        texts, ends = ["", "", ""], {}
        async for found in watched.begin(engine).events():
            assert found is not None
            index, event = found
            assert index not in ends  # nothing follows an end
            if isinstance(event, Piece):
                texts[index] += event.text
            else:
                ends[index] = event.completion_tokens
        assert texts == ["calm 1 2", "calm", "calm 1"]
        assert ends == {0: 3, 1: 1, 2: 2}
        assert watched.released == 1
        assert len(watched.ends) == 3

    asyncio.run(use())


def test_cancelling_reaches_the_engine_and_lets_go_only_then(engine: Any) -> None:
    async def use() -> None:
        watched = Watched()
        engine.gate.clear()
        writing = watched.begin(engine)
        assert watched.released == 0
        writing.cancel()
        await until(lambda: watched.released)
        writing.cancel()
        assert engine.ends == ["cancelled"] * 3
        assert watched.released == 1

    asyncio.run(use())


def test_an_answer_that_the_server_cut_is_an_error(engine: Any) -> None:
    async def use() -> None:
        writing = Watched().begin(engine)
        writing.cancel()
        with pytest.raises(Refusal, match="shutting down"):
            async for _ in writing.events():
                pass

    engine.gate.clear()
    asyncio.run(use())


def test_a_failure_of_the_engine_is_raised(engine: Any) -> None:
    async def use() -> None:
        watched = Watched()
        with pytest.raises(ZeroDivisionError):
            async for _ in watched.begin(engine, REQUESTS[:1]).events():
                pass
        assert watched.released == 1
        assert isinstance(watched.ends[0], ZeroDivisionError)

    engine.failure = ZeroDivisionError()
    asyncio.run(use())


@pytest.mark.parametrize("room", [0, 1, 2])
def test_no_room_for_all_is_no_room_for_any(engine: Any, room: int) -> None:
    async def use() -> None:
        watched = Watched()
        engine.gate.clear()
        with pytest.raises(BusyError):
            watched.begin(engine)
        await until(lambda: watched.released)
        assert engine.ends == ["cancelled"] * room
        assert watched.released == 1

    engine.room = room
    asyncio.run(use())


def test_silence_is_told(engine: Any) -> None:
    async def use() -> None:
        engine.gate.clear()
        writing = Watched().begin(engine)
        found = [await anext(writing.events(0.02)) for _ in range(3)]
        assert found == [None] * 3
        engine.gate.set()
        ends = [event async for event in writing.events(60) if event is not None and isinstance(event[1], End)]
        assert len(ends) == 3

    asyncio.run(use())


def test_an_engine_that_speaks_after_the_loop_is_closed(engine: Any) -> None:
    """At the end of a process the engine may outlive the loop: its thread must not be hurt."""
    hurt: list[Any] = []
    engine.gate.clear()

    async def use() -> None:
        Watched().begin(engine)

    before = threading.excepthook
    threading.excepthook = hurt.append
    try:
        asyncio.run(use())
        engine.gate.set()
        while engine.running:
            pass
    finally:
        threading.excepthook = before
    assert not hurt
