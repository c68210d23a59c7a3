"""What an engine counts, for logs and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

__all__ = ["Counts", "Outcome", "Stats"]

# How a request ended: the reasons of `End`; 'failed': with an exception; 'lost': its listener raised.
Outcome = Literal["stop", "length", "cancelled", "failed", "lost"]


@dataclass(slots=True)
class Counts:
    """Sums since the engine was made; see `Stats`."""

    accepted: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(get_args(Outcome), 0))
    steps: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    prefix_hits: int = 0
    reused_tokens: int = 0
    failures: int = 0
    switches: int = 0
    switch_seconds: float = 0.0
    row_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot. queued, running, cohorts and kept_tokens are of the moment, all else is summed up.

    accepted: requests. outcomes: how they ended. steps: forwards that wrote one token of each running answer. tokens:
    written. prompt_tokens: read, without the reused_tokens that came from a kept prefix; prefix_hits: requests that
    had one. failures: forwards that raised. switches, switch_seconds: how often a persona was put on in place, and how
    long that took, waiting for other users of the model included. row_seconds: the same for mixed batches.
    """

    queued: int
    running: int
    cohorts: int
    kept_tokens: int
    accepted: int
    outcomes: Mapping[Outcome, int]
    steps: int
    tokens: int
    prompt_tokens: int
    prefix_hits: int
    reused_tokens: int
    failures: int
    switches: int
    switch_seconds: float
    row_seconds: float

    @classmethod
    def of(cls, counts: Counts, *, queued: int, running: int, cohorts: int, kept_tokens: int) -> Stats:
        """The counts as they are now."""
        return cls(
            queued, running, cohorts, kept_tokens, counts.accepted, MappingProxyType(dict(counts.outcomes)),
            counts.steps, counts.tokens, counts.prompt_tokens, counts.prefix_hits, counts.reused_tokens,
            counts.failures, counts.switches, counts.switch_seconds, counts.row_seconds,
        )  # fmt: skip
