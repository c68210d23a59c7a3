from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from personae.errors import PersonaInUseError
from personae.runtime.turn import Turn

SOON = 60.0  # seconds that something which must happen may take
NEVER = 0.1  # seconds in which something that must not happen would have happened


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_re_entrant_for_its_thread_and_closed_to_others() -> None:
    turn, reached = Turn(), threading.Event()

    def other() -> None:
        with turn.held("other"):
            reached.set()

    with turn.held("outer"):
        with turn.held("inner"):
            pass
        thread = started(other)
        assert not reached.wait(NEVER), "the inner release must not give the turn away"
    assert reached.wait(SOON)
    thread.join(SOON)


def test_a_generation_keeps_other_threads_waiting_and_refuses_its_own() -> None:
    turn, reached = Turn(), threading.Event()

    def other() -> None:
        with turn.held("other"):
            reached.set()

    with turn.generating("chat()"):
        thread = started(other)
        assert not reached.wait(NEVER)
        with pytest.raises(PersonaInUseError, match=r"set_persona\(\) while an answer"):
            turn.acquire("set_persona()")
        with pytest.raises(PersonaInUseError, match=r"chat\(\) while"):
            turn.begin("chat()")
    assert reached.wait(SOON)
    thread.join(SOON)


def test_a_generation_can_be_ended_by_another_thread() -> None:
    turn = Turn()
    turn.begin("stream")
    started(turn.end).join(SOON)
    turn.wait_for_generation()
    with turn.held("free again"):
        pass


def test_a_generation_inside_a_held_turn() -> None:
    turn = Turn()
    with turn.held("block"), turn.generating("chat()"):
        pass
    turn.begin("stream")  # would wait for ever if something were still held
    turn.end()


def test_released_by_another_thread_than_acquired() -> None:
    turn = Turn()
    turn.acquire("block")
    started(turn.release).join(SOON)
    reached = threading.Event()
    started(lambda: (turn.acquire("other"), reached.set()))
    assert reached.wait(SOON)
