"""Whose turn it is to use the one resident model.

A re-entrant lock would nearly do. It does not, because a streamed answer is written by a worker thread
for the thread that asked: the worker must be able to run inside that thread's `with actor.persona(…)`
block, and the thread that asked must be refused, not blocked for ever, when it switches while it reads.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from personae.errors import PersonaInUseError

__all__ = ["Turn"]


class Turn:
    """Held by one thread at a time, any number of times over; and at most one generation runs.

    A thread waits while another one holds the turn or while a generation asked for by another one runs.
    A thread whose own generation runs is refused with `PersonaInUseError`, since it would wait for itself.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._owner: int | None = None  # the thread that holds the turn, and how many times
        self._depth = 0
        self._asker: int | None = None  # the thread that asked for the running generation

    def acquire(self, action: str) -> None:
        """Take the turn, waiting for it; `action` is named in the error."""
        with self._changed:
            self._owner = self._wait(action)
            self._depth += 1

    def release(self) -> None:
        """Give it back. Any thread may: a block can be left in another thread than it was entered."""
        with self._changed:
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self._changed.notify_all()

    @contextlib.contextmanager
    def held(self, action: str) -> Iterator[None]:
        """The turn for the length of a block."""
        self.acquire(action)
        try:
            yield
        finally:
            self.release()

    def begin(self, action: str) -> None:
        """Start a generation for the calling thread, waiting for the turn; any thread may `end` it."""
        with self._changed:
            self._asker = self._wait(action)

    def end(self) -> None:
        """The generation is over."""
        with self._changed:
            self._asker = None
            self._changed.notify_all()

    @contextlib.contextmanager
    def generating(self, action: str) -> Iterator[None]:
        """A generation for the length of a block."""
        self.begin(action)
        try:
            yield
        finally:
            self.end()

    def wait_for_generation(self) -> None:
        """Return once no generation runs."""
        with self._changed:
            self._changed.wait_for(lambda: self._asker is None)

    def _wait(self, action: str) -> int:
        """Wait, inside the condition, until the calling thread may go on; its identity."""
        me = threading.get_ident()
        while True:
            if self._asker == me:
                raise PersonaInUseError(
                    f"{action} while an answer is still being generated for this thread: read the stream "
                    "to its end or close() it first."
                )
            if self._asker is None and self._owner in (None, me):
                return me
            self._changed.wait()
