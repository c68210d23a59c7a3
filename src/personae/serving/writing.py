"""From the engine's thread to the event loop: the pieces of the answers that one HTTP request asked for."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from personae.runtime.requests import End, Listener, Piece, Request
from personae.serving.refusals import Refusal

__all__ = ["Engine", "Ticket", "Writing"]

Event = Piece | End | BaseException


class Ticket(Protocol):
    """A request the engine has taken."""

    def cancel(self) -> None:
        """Nobody wants the rest. Harmless when it is over."""


class Engine(Protocol):
    """What is asked of `personae.runtime.engine.Engine`."""

    def submit(self, request: Request, listener: Listener) -> Ticket:
        """Queue a request; `BusyError` when there is no room."""

    def stats(self) -> Any:
        """Counters, a dataclass of numbers and mappings of them."""

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """No more requests; wait for those there are."""


class Writing:
    """Answers while they are written; to be made, read and cancelled on one event loop.

    requests: in the order of the choices. released: called once the engine is through with all of them, however they
    ended, because only then nothing needs their persona any more. observe: told each end.

    Errors: `BusyError` when the queue has no room for all of them; those that had a place are cancelled.
    """

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[Request],
        released: Callable[[], None],
        observe: Callable[[End | BaseException], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._tickets: dict[int, Ticket] = {}  # of those that are not over
        self._released, self._observe = released, observe
        self.number = len(requests)
        try:
            for index, request in enumerate(requests):
                self._tickets[index] = engine.submit(request, functools.partial(self._post, index))
        except BaseException:
            if self._tickets:
                self.cancel()
            else:
                released()
            raise

    def _post(self, index: int, event: Event) -> None:
        """In the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._take, index, event)
        except RuntimeError:  # the loop is closed: the process ends, and nobody waits
            return

    def _take(self, index: int, event: Event) -> None:
        self._events.put_nowait((index, event))
        if isinstance(event, Piece):
            return
        self._observe(event)
        del self._tickets[index]
        if not self._tickets:
            self._released()

    async def events(self, patience: float | None = None) -> AsyncIterator[tuple[int, Piece | End] | None]:
        """(choice, piece or end) as they come, until every choice has ended; None after `patience` seconds of silence.

        Errors: what the engine failed with; `Refusal` when the answer was cut by the server itself.
        """
        left = self.number
        while left:
            try:
                async with asyncio.timeout(patience):
                    index, event = await self._events.get()
            except TimeoutError:
                yield None
                continue
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, End):
                left -= 1
                if event.reason == "cancelled":
                    raise Refusal(503, "the answer was cut: the server is shutting down.", code="cancelled")
            yield index, event

    def cancel(self) -> None:
        """Nobody wants what is not yet written."""
        for ticket in list(self._tickets.values()):
            ticket.cancel()
