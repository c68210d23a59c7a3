"""What goes into the engine and what comes out of it: a request, pieces of its answer, and its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from personae.errors import OptionError
from personae.runtime.generation import Options
from personae.runtime.look import BASE, Look

__all__ = ["End", "Listener", "Piece", "Request", "TokenScore"]


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to be written.

    tokens: the prompt, encoded and cut to the context. look: what it is written under. options: as of
    `PersonaModel.chat`. logprobs: None for none; k ≥ 0 for the log-probability of each token written and of the
    k likeliest in its place, of the model's own distribution before temperature and nucleus.

    Errors: `OptionError` for no tokens or `logprobs` below 0.
    """

    tokens: tuple[int, ...]
    look: Look = BASE
    options: Options = field(default_factory=Options)
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if not self.tokens:
            raise OptionError("the prompt is empty: give at least one token.")
        if self.logprobs is not None and self.logprobs < 0:
            raise OptionError(f"logprobs is {self.logprobs}: give 0 or more, or None.")


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token that was written. top: the likeliest tokens in its place as (token, bytes, log-probability in nats).

    spelled: its bytes in UTF-8; a character may be of several tokens.
    """

    token: int
    spelled: bytes
    log_probability: float
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that can no longer change, and the tokens written since the last piece (only with `logprobs`)."""

    text: str
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """The last word on a request.

    reason: 'stop' (end of turn or a stop string), 'length' (max_new_tokens), 'cancelled'. reused_tokens: of the prompt,
    read from a kept prefix of the same look. queued, first_token, total: seconds since it was submitted.
    """

    reason: Literal["stop", "length", "cancelled"]
    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int
    queued: float
    first_token: float | None
    total: float


# Called from the engine's thread: pieces, then one End or one exception. It must return at once.
Listener = Callable[[Piece | End | BaseException], None]
