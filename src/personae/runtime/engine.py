"""Many requests at once, each under its own persona, from one resident model: continuous batching.

Transformers' own `ContinuousBatchingManager` packs the tokens of all requests into one row over a paged cache, so a
forward no longer shows which token belongs to which request, and that is what a mask for each row needs. It shares
the blocks of equal prompts whoever wears what, and so would carry one persona's keys and values into another's
answer. So the scheduler here works on plain forwards of the whole model, over rows that are padded on the left.

Answers under looks that may share a batch (`PersonaModel.mixable`; the base model is one) form one cohort. Every other
look has a cohort of its own, for which the persona is put on for some steps at a time; the cohorts take turns.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from personae.errors import BusyError, OptionError
from personae.runtime.answer import Answer, Ending
from personae.runtime.cohort import Cohort
from personae.runtime.counts import Counts, Stats
from personae.runtime.kv import check_rows, row_context
from personae.runtime.look import BASE, Look
from personae.runtime.persona_model import PersonaModel
from personae.runtime.prefixes import Prefixes
from personae.runtime.requests import End, Listener, Piece, Request

__all__ = ["Engine", "Stats", "Ticket"]

_log = logging.getLogger(__name__)

_QUANTUM = 16  # steps of one cohort before the next has its turn


class Ticket:
    """A request that was accepted."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def cancel(self) -> None:
        """Nobody wants the rest: its row is free before the next step, and its listener hears an End 'cancelled'.

        From any thread, any number of times; after the end it does nothing.
        """
        # A flag is enough: while a request is not over, the engine's thread does not sleep. No lock is taken, since
        # the garbage collector may call this from anywhere.
        self._answer.cancelled = True


class Engine:
    """A thread that answers requests with a `PersonaModel`, many at a time.

    An answer is what the model writes alone under its look, up to float rounding: which of two tokens that are all but
    equally likely comes first may depend on the rows beside it.

    Every step takes the model's turn, so others may go on using the PersonaModel; they wait for each other. Do not
    wait for an answer, or close the engine, inside a `with actor.persona(…)` block; do not leave a persona on with
    `set_persona` (requests then get `PersonaInUseError`); and do not move the model to another device or dtype.

    actor: with a tokenizer. max_batch: answers written at once. max_queue: requests that wait. max_slots: slots of
    the cache that running rows may fill, padding included; while it is full others wait, but one request alone is
    always taken. prefix_tokens: kept for prompts that begin alike, see `Prefixes`. A slot or token takes
    2 · layers · key-value heads · head width · bytes of a number. prefill_tokens: read of prompts in one step.

    As a context manager it is closed at the end of the block: it answers what was asked, or cancels it when the block
    ends with an exception.

    Errors: `OptionError` for a limit out of range or an actor without a tokenizer; `ModelError` for a model whose
    cache is not of keys and values alone, or whose generation_config asks for what is not served;
    `PersonaInUseError` while a persona is worn.
    """

    def __init__(
        self,
        actor: PersonaModel,
        *,
        max_batch: int = 32,
        max_queue: int = 256,
        max_slots: int = 32_768,
        prefix_tokens: int = 8_192,
        prefill_tokens: int = 256,
    ) -> None:
        for name, value in {
            "max_batch": max_batch, "max_queue": max_queue, "max_slots": max_slots, "prefill_tokens": prefill_tokens
        }.items():  # fmt: skip
            if value < 1:
                raise OptionError(f"{name} is {value}: give at least 1.")
        if actor.tokenizer is None:
            raise OptionError("this PersonaModel was made without a tokenizer: give it one, to turn tokens into text.")
        self._actor, self._tokenizer = actor, actor.tokenizer
        self._max_batch, self._max_queue, self._max_slots = max_batch, max_queue, max_slots
        self._prefill_tokens = prefill_tokens
        self._context = row_context(actor.model)
        self._vocabulary = int(actor.model.config.get_text_config().vocab_size)
        self._prefixes = Prefixes(prefix_tokens)
        self._ending = Ending(actor.model, actor.tokenizer)
        check_rows(actor.model, lambda rows: actor.rows([BASE] * rows))
        self._counts = Counts()
        self._changed = threading.Condition()  # of the arrivals, and of whether it closes
        self._arrivals: deque[Answer] = deque()
        self._closing = self._abandoning = False
        self._waiting: deque[Answer] = deque()  # from here on only the engine's thread writes
        self._running: dict[Answer, Cohort] = {}
        self._cohorts: dict[Look | None, Cohort] = {}  # in the order of their turns; None is the mixed one
        self._thread = threading.Thread(target=self._serve, name="personae-engine", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ from any thread

    def submit(self, request: Request, listener: Listener) -> Ticket:
        """Queue a request. Its listener hears pieces and then one End or one exception, in the engine's thread.

        Its personas are pinned until right before the last word. Any thread may call this; it waits for nobody.

        Errors: `BusyError` when the queue is full or the engine is closing; `UnknownPersonaError`; `OptionError` for a
        token the model does not know, or an answer that may outgrow the context.
        """
        low, high = min(request.tokens), max(request.tokens)
        if low < 0 or high >= self._vocabulary:
            raise OptionError(f"token {low if low < 0 else high} is not one of the model's {self._vocabulary}.")
        longest = _longest(request)
        if self._context is not None and longest > self._context:
            raise OptionError(
                f"a prompt of {len(request.tokens)} tokens and an answer of {request.options.max_new_tokens} do not "
                f"fit the {self._context} that a row may have: shorten the prompt, or ask for fewer tokens."
            )
        answer = Answer(request, listener, self._release, self._tokenizer, self._ending)
        self._actor.pin(request.look)  # so that the look means the same until the answer is over
        try:
            answer.edition = self._actor.edition(request.look)
            with self._changed:
                if self._closing:
                    raise BusyError("the engine is shutting down and takes no more requests.")
                if len(self._arrivals) + len(self._waiting) >= self._max_queue:
                    raise BusyError(f"{self._max_queue} requests are waiting already: try again later.")
                self._arrivals.append(answer)
                self._counts.accepted += 1
                self._changed.notify()
        except BaseException:
            self._actor.unpin(request.look)
            raise
        return Ticket(answer)

    def ask(self, request: Request) -> Iterator[Piece | End]:
        """Queue a request at once; its pieces as they come, then its End. An exception is raised at the reader.

        Closing or dropping the iterator cancels the request. Errors: as `submit`.
        """
        words: queue.SimpleQueue[Piece | End | BaseException] = queue.SimpleQueue()
        ticket = self.submit(request, words.put)
        reading = _reading(words, ticket)
        weakref.finalize(reading, ticket.cancel).atexit = False  # also if it is dropped before it was begun
        return reading

    def stats(self) -> Stats:
        """A snapshot of its counters."""
        with self._changed:
            return Stats.of(
                self._counts, queued=len(self._arrivals) + len(self._waiting), running=len(self._running),
                cohorts=len(self._cohorts), kept_tokens=self._prefixes.tokens,
            )  # fmt: skip

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests, answer those there are, or cancel them, and end the thread.

        drain: answer them. timeout: seconds to do so, after which the rest is cancelled; None: as long as it takes.
        Closing again is allowed, also to cancel what an earlier call still waits for.
        """
        with self._changed:
            self._closing = True
            self._abandoning = self._abandoning or not drain
            self._changed.notify()
        if threading.current_thread() is self._thread:  # a listener closes it: the thread ends by itself
            return
        self._thread.join(timeout)
        self._abandoning = True
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)

    # ------------------------------------------------------------ the thread

    def _serve(self) -> None:
        while self._work_to_do():
            try:
                self._take_in()
                if self._cohorts:
                    look = next(iter(self._cohorts))
                    self._take_turn(look, self._cohorts[look])
                    if look in self._cohorts:  # to the end, after whoever came meanwhile
                        self._cohorts[look] = self._cohorts.pop(look)
            except BaseException as error:
                # Nothing above lets a request's own failure through, so what is running cannot be trusted any more.
                _log.exception("the engine failed; all its requests get the exception")
                for answer in [*self._running, *self._waiting]:
                    answer.fail(error)
                self._running, self._cohorts = {}, {}
                self._waiting.clear()

    def _work_to_do(self) -> bool:
        """Sleep until there is; False when it is time to end."""
        with self._changed:
            while not (self._arrivals or self._waiting or self._running):
                if self._closing:
                    return False
                self._changed.wait()
            return True

    def _take_in(self) -> None:
        """Between steps: take arrivals over, drop who is cancelled, and fill free rows from the queue, in order."""
        with self._changed:
            arrivals = list(self._arrivals)
            self._waiting.extend(arrivals)
            self._arrivals.clear()
        for answer in arrivals:
            try:
                answer.mixed = answer.request.look == BASE or self._actor.mixable(answer.request.look)
            except Exception as error:
                answer.fail(error)
        for answer in [*self._waiting, *self._running]:
            if answer.cancelled or self._abandoning:
                answer.end("cancelled")
        if any(answer.over for answer in self._waiting):
            self._waiting = deque(answer for answer in self._waiting if not answer.over)
        for look, cohort in list(self._cohorts.items()):
            cohort.drop_over()
            if not cohort.answers:
                del self._cohorts[look]
        while self._waiting and self._fits(self._waiting[0]):
            answer = self._waiting.popleft()
            look = None if answer.mixed else answer.request.look
            if look not in self._cohorts:
                self._cohorts[look] = Cohort(
                    self._actor.model, self._tokenizer, self._prefixes, self._ending.penalty, self._counts,
                    self._rows if look is None else lambda looks: contextlib.nullcontext(),
                )  # fmt: skip
            answer.admit()
            self._cohorts[look].newcomers.append(answer)
            self._running[answer] = self._cohorts[look]

    def _release(self, answer: Answer) -> None:
        self._running.pop(answer, None)
        assert answer.outcome is not None
        self._counts.outcomes[answer.outcome] += 1
        self._actor.unpin(answer.request.look)

    def _fits(self, answer: Answer) -> bool:
        """Whether a row is free for it, and slots, when all have grown to their longest."""
        if not self._running:
            return True
        if len(self._running) >= self._max_batch:
            return False
        lengths: dict[Look | None, list[int]] = {}
        for each in (*self._running, answer):
            lengths.setdefault(None if each.mixed else each.request.look, []).append(_longest(each.request))
        return sum(len(rows) * max(rows) for rows in lengths.values()) <= self._max_slots

    def _take_turn(self, look: Look | None, cohort: Cohort) -> None:
        """Some steps of one cohort."""
        try:
            with contextlib.nullcontext() if look is None else self._worn(look):
                for _ in range(_QUANTUM):
                    cohort.step(self._prefill_tokens)
                    self._take_in()
                    if not cohort.answers:
                        break
        except BaseException as error:
            _log.exception("a persona could not be put on or taken off; its requests get the exception")
            for answer in cohort.answers:
                answer.fail(error)

    @contextlib.contextmanager
    def _worn(self, look: Look) -> Iterator[None]:
        started = time.perf_counter()
        with self._actor.persona(dict(look)):
            self._counts.switches += 1
            self._counts.switch_seconds += time.perf_counter() - started
            yield
            started = time.perf_counter()
        self._counts.switch_seconds += time.perf_counter() - started

    @contextlib.contextmanager
    def _rows(self, looks: Sequence[Look]) -> Iterator[None]:
        started = time.perf_counter()
        with self._actor.rows(looks):
            self._counts.row_seconds += time.perf_counter() - started
            yield


def _longest(request: Request) -> int:
    return len(request.tokens) + request.options.max_new_tokens


def _reading(words: queue.SimpleQueue[Piece | End | BaseException], ticket: Ticket) -> Iterator[Piece | End]:
    try:
        while True:
            word = words.get()
            if isinstance(word, BaseException):
                raise word
            yield word
            if isinstance(word, End):
                return
    finally:
        ticket.cancel()
