"""Answers that are decoded together, and how newcomers are brought up to them.

A step of a cohort reads a bounded number of tokens of newcomers' prompts, and then writes the next token of all answers
that are being written, in one forward. So a long prompt never holds up the others for longer than a piece of it.
"""

from __future__ import annotations

import logging
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.runtime.answer import Answer, next_tokens, token_scores
from personae.runtime.counts import Counts
from personae.runtime.kv import Kept, Rows, first, forward
from personae.runtime.look import Look
from personae.runtime.prefixes import Prefixes

__all__ = ["Cohort", "together"]

_log = logging.getLogger(__name__)

# Prompts are read together when the longest is at most so much longer than the shortest.
_NEAR_RATIO, _NEAR_TOKENS = 1.5, 8


def together(lengths: Sequence[int], budget: int) -> list[int]:
    """Which newcomers are read at once: the first, and those after it that are near to it in length.

    lengths: tokens that each has to read, in order of preference. Together, padded, at most `budget`, unless the
    first alone is more.
    """
    chosen = [0]
    shortest = longest = lengths[0]
    for number, length in enumerate(lengths[1:], 1):
        low, high = min(shortest, length), max(longest, length)
        if high <= _NEAR_RATIO * low + _NEAR_TOKENS and (len(chosen) + 1) * high <= budget:
            chosen.append(number)
            shortest, longest = low, high
    return chosen


class _Group:
    """Newcomers whose prompts are read together, right-aligned, column by column."""

    def __init__(self, answers: list[Answer]) -> None:
        self.answers = answers
        prompts = [answer.request.tokens for answer in answers]
        kept = [answer.kept[0][0].shape[1] if answer.kept else 0 for answer in answers]
        columns = max(len(prompt) - length for prompt, length in zip(prompts, kept, strict=True))
        beginnings: list[Kept | None] = []
        for answer, prompt in zip(answers, prompts, strict=True):
            # All read the same columns, so what a row has kept beyond their start is read again.
            answer.reused = max(0, len(prompt) - columns)
            beginnings.append(first(answer.kept, answer.reused) if answer.kept and answer.reused else None)
            answer.kept = None
        self.rows = Rows.of(beginnings)
        self._done = 0  # columns read so far
        self._ids = torch.zeros(len(answers), columns, dtype=torch.int64)
        self._padding = [max(0, columns - len(prompt)) for prompt in prompts]
        for row, prompt in enumerate(prompts):
            self._ids[row, self._padding[row] :] = torch.tensor(prompt[-columns:])

    def advance(self, model: PreTrainedModel, budget: int) -> tuple[torch.Tensor, int]:
        """Read at most `budget` tokens more, padding included; logits behind the last, and how many were tokens."""
        start, stop = self._done, min(self._ids.shape[1], self._done + max(1, budget // len(self.answers)))
        counts = [max(0, stop - max(start, padding)) for padding in self._padding]
        logits = forward(model, self.rows, self._ids[:, start:stop], counts)
        self._done = stop
        return logits, sum(counts)

    @property
    def columns(self) -> int:
        """How many are not read yet."""
        return self._ids.shape[1] - self._done

    def drop_over(self) -> None:
        """Forget the rows of answers that have ended."""
        gone = {row for row, answer in enumerate(self.answers) if answer.over}
        if gone:
            order = self.rows.leave(gone)
            self.answers = [self.answers[row] for row in order]
            self._padding = [self._padding[row] for row in order]
            self._ids = self._ids[order]


class Cohort:
    """Newcomers, those whose prompts are being read, and those whose answers are being written.

    wearing(looks): the block in which a forward of rows of these looks may run.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prefixes: Prefixes,
        penalty: float,
        counts: Counts,
        wearing: Callable[[Sequence[Look]], AbstractContextManager[object]],
    ) -> None:
        self._model, self._tokenizer, self._prefixes = model, tokenizer, prefixes
        self._penalty, self._counts, self._wearing = penalty, counts, wearing
        self.newcomers: list[Answer] = []
        self._groups: deque[_Group] = deque()  # prompts begun and not yet read to the end
        self._begun = False  # whether the last step began one
        self._running: list[Answer] = []
        self._rows = Rows()

    @property
    def answers(self) -> list[Answer]:
        """All of them."""
        return [*self.newcomers, *(answer for group in self._groups for answer in group.answers), *self._running]

    def step(self, budget: int) -> None:
        """Read pieces of newcomers' prompts, at most `budget` tokens, then write one token of each answer."""
        self.drop_over()
        while budget > 0 and (group := self._next_group(budget)):
            rows, columns = len(group.answers), group.columns
            if self._guarded(group.answers, partial(self._read, group, budget)):
                if group.columns:
                    self._groups.append(group)
                elif group.answers:
                    self._guarded([*self._running, *group.answers], partial(self._join, group))
            budget -= rows * (columns - group.columns)
        if self._running:
            self._guarded(self._running, self._decode)

    def drop_over(self) -> None:
        """Forget the rows of answers that have ended, so that the next step does not compute them."""
        self.newcomers = [answer for answer in self.newcomers if not answer.over]
        for group in self._groups:
            group.drop_over()
        self._groups = deque(group for group in self._groups if group.answers)
        gone = {row for row, answer in enumerate(self._running) if answer.over}
        if gone:
            for row in sorted(gone):
                self._keep(self._running[row], self._rows, row)
            order = self._rows.leave(gone)
            self._running = [self._running[row] for row in order]

    def _next_group(self, budget: int) -> _Group | None:
        """Newcomers and the prompts begun before take turns, so neither holds up the other."""
        if not self.newcomers or (self._groups and self._begun):
            self._begun = False
            return self._groups.popleft() if self._groups else None
        self._begun = True
        # Look by look: the fewer looks meet in a forward, and the more often the same ones, the cheaper it is to mix
        # them.
        first_look = self.newcomers[0].request.look
        ordered = sorted(self.newcomers, key=lambda a: (a.request.look != first_look, a.request.look))
        for answer in ordered:
            answer.kept = self._prefixes.longest(answer.request.look, answer.edition, answer.request.tokens)
        unread = [len(a.request.tokens) - (a.kept[0][0].shape[1] if a.kept else 0) for a in ordered]
        readers = [ordered[number] for number in together(unread, budget)]
        self.newcomers = [answer for answer in self.newcomers if answer not in readers]
        for answer in self.newcomers:
            answer.kept = None  # looked up again when its time comes; until then it shall hold no memory
        groups: list[_Group] = []
        self._guarded(readers, lambda: groups.append(_Group(readers)))
        return groups[0] if groups else None

    def _read(self, group: _Group, budget: int) -> None:
        with self._wearing([answer.request.look for answer in group.answers]):
            logits, read = group.advance(self._model, budget)
        self._counts.prompt_tokens += read
        if not group.columns:
            for row, answer in enumerate(group.answers):
                self._counts.prefix_hits += answer.reused > 0
                self._counts.reused_tokens += answer.reused
                self._keep(answer, group.rows, row)
            self._write(logits, group.answers)
            group.drop_over()

    def _join(self, group: _Group) -> None:
        self._rows.join(group.rows)
        self._running = self._running + group.answers

    def _decode(self) -> None:
        with self._wearing([answer.request.look for answer in self._running]):
            ids = torch.tensor([answer.tokens[-1:] for answer in self._running])
            logits = forward(self._model, self._rows, ids)
        self._counts.steps += 1
        self._write(logits, self._running)

    def _write(self, logits: torch.Tensor, answers: Sequence[Answer]) -> None:
        tokens = next_tokens(logits, answers, self._penalty)
        scores = token_scores(logits, answers, tokens, self._tokenizer)
        for answer, token, score in zip(answers, tokens, scores, strict=True):
            if token is not None:
                answer.write(token, score)
                self._counts.tokens += 1

    def _keep(self, answer: Answer, rows: Rows, row: int) -> None:
        """Keep what was computed of a row for prompts that begin alike."""
        known = (*answer.request.tokens, *answer.tokens)[: rows.lengths[row]]
        try:
            self._prefixes.keep(answer.request.look, answer.edition, known, lambda: rows.copied(row))
        except (MemoryError, RuntimeError):  # torch raises RuntimeError when memory runs out
            _log.warning("no memory to keep a prefix of %d tokens; all kept prefixes are dropped", len(known))
            self._prefixes.clear()

    def _guarded(self, answers: Sequence[Answer], work: Callable[[], None]) -> bool:
        """Do it; an exception goes to the answers concerned, and the cohort goes on without them."""
        try:
            work()
        except BaseException as error:  # memory that runs out, and whatever a model raises
            _log.exception("a forward failed; the %d requests of its batch get the exception", len(answers))
            self._counts.failures += 1
            self._prefixes.clear()  # its memory may be what was missing
            traceback.clear_frames(error.__traceback__)  # who keeps the exception shall not keep the cache with it
            for answer in answers:
                answer.fail(error)
            if all(answer.over for answer in self._running):  # after a broken forward the layers differ in length
                self._running, self._rows = [], Rows()
            return False
        return True
