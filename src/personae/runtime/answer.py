"""One answer that is being written: which token comes next, its text, its scores, and when it ends."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.errors import ModelError
from personae.models import end_of_turn
from personae.runtime.counts import Outcome
from personae.runtime.decoding import Reader, Sampler
from personae.runtime.generation import _end_tokens
from personae.runtime.kv import Kept
from personae.runtime.requests import End, Listener, Piece, Request, TokenScore
from personae.runtime.spelling import speller

__all__ = ["Answer", "Ending", "next_tokens", "penalised", "token_scores"]

_log = logging.getLogger(__name__)
_NONE = torch.empty(0, dtype=torch.int64)

# What else in a generation_config changes logits in a greedy `generate`, and would be left out here without a word;
# with the values that change nothing.
_NOT_SERVED: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("encoder_repetition_penalty", "guidance_scale"), (None, 1.0)),
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size"), (None, 0)),
    **dict.fromkeys(("bad_words_ids", "begin_suppress_tokens", "sequence_bias", "suppress_tokens"), (None, [])),
    **dict.fromkeys(("exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id"), (None,)),
    "watermarking_config": (None,),
}


class Ending:
    """What ends an answer of a model beside the request's own stop strings, and the model's repetition penalty.

    As in `PersonaModel.chat`: the end tokens of model, tokenizer and chat template, and the end of the turn as text.

    Errors: `ModelError` when the model's generation_config asks for more than a repetition penalty.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        templated = getattr(tokenizer, "chat_template", None) is not None
        turn = end_of_turn(tokenizer) if templated else "\nQ:"
        self.stops = (turn,) if turn else ()
        self.tokens = frozenset(_end_tokens(model, tokenizer, turn))
        config = model.generation_config
        self.penalty = float(getattr(config, "repetition_penalty", None) or 1.0)
        asked = sorted(name for name, harmless in _NOT_SERVED.items() if getattr(config, name, None) not in harmless)
        if asked:
            raise ModelError(
                f"the model's generation_config sets {', '.join(asked)}, which batches of changing rows do not serve: "
                f"set model.generation_config.{asked[0]} = None if answers may do without."
            )


class Answer:
    """A request from the moment it is accepted. Only the engine's thread uses it, but for `cancelled`.

    release: called once, right before the last word, when nothing is needed for the answer any more.
    edition, mixed, kept: what the engine finds out before the prompt is read (see `Prefixes`, `Cohort`).
    outcome: how it ended; None while it is not over.
    """

    def __init__(
        self,
        request: Request,
        listener: Listener,
        release: Callable[[Answer], None],
        tokenizer: PreTrainedTokenizerBase,
        ending: Ending,
    ) -> None:
        options = request.options
        self.request, self.cancelled = request, False
        self.outcome: Outcome | None = None
        self.tokens: list[int] = []
        self.edition: Hashable = None
        self.mixed = True
        self.kept: Kept | None = None
        self.reused = 0
        self.sampler = Sampler(options.temperature, options.top_p, options.seed) if options.temperature > 0 else None
        self.seen: torch.Tensor | None = None  # tokens of prompt and answer, (vocabulary,) bool; only with a penalty
        self._listener, self._release, self._ending = listener, release, ending
        self._reader = Reader(tokenizer, [*options.stop, *ending.stops], self._collect)
        self._reader.put(_NONE)  # it takes the first call for the prompt
        self._text = ""
        self._scores: list[TokenScore] = []
        self._submitted = time.monotonic()
        self._admitted: float | None = None
        self._first: float | None = None

    @property
    def over(self) -> bool:
        """Whether its listener has heard the last word, or wants to hear no more."""
        return self.outcome is not None

    def admit(self) -> None:
        """It leaves the queue."""
        self._admitted = time.monotonic()

    def write(self, token: int, score: TokenScore | None) -> None:
        """Add a token; its text goes out once it can no longer change, and the answer ends if this ends it."""
        self._first = self._first or time.monotonic()
        self.tokens.append(token)
        if self.seen is not None:
            self.seen[token] = True
        self._reader.put(torch.tensor([token]))
        ended = token in self._ending.tokens
        if score is not None and not ended:
            self._scores.append(score)
        if ended or self._reader.stopped:
            self.end("stop")
        elif len(self.tokens) >= self.request.options.max_new_tokens:
            self.end("length")
        elif self._text:
            self._flush()

    def end(self, reason: Literal["stop", "length", "cancelled"]) -> None:
        """The last word. What was held back goes out before it, unless nobody wants it."""
        if reason != "cancelled":
            self._reader.end()
            if self._text or self._scores:
                self._flush()
        now = time.monotonic()
        self._last(
            reason,
            End(
                reason, len(self.request.tokens), len(self.tokens), self.reused,
                queued=(self._admitted or now) - self._submitted,
                first_token=None if self._first is None else self._first - self._submitted,
                total=now - self._submitted,
            ),
        )  # fmt: skip

    def fail(self, error: BaseException) -> None:
        """The last word is an exception."""
        self._last("failed", error)

    def _collect(self, text: str) -> None:
        self._text += text

    def _flush(self) -> None:
        piece = Piece(self._text, tuple(self._scores))
        self._text, self._scores = "", []
        if not self._told(piece):
            self.outcome = "lost"
            self._release(self)

    def _last(self, outcome: Outcome, word: End | BaseException) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self._release(self)
            self._told(word)

    def _told(self, word: Piece | End | BaseException) -> bool:
        try:
            self._listener(word)
        except BaseException:  # whatever it is, it must not stop the engine's thread or lose another request
            _log.exception("a listener raised; its request is dropped")
            return False
        return True


# ------------------------------------------------------------------ next tokens


def penalised(scores: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits of seen tokens divided by the penalty where positive, multiplied where negative; (rows, vocabulary).

    Source: Keskar et al. 2019, arXiv 1909.05858, in the form of `generate`.
    """
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def next_tokens(logits: torch.Tensor, answers: Sequence[Answer], penalty: float) -> list[int | None]:
    """The next token of each answer, from logits (rows, vocabulary) float32.

    None for an answer whose draw failed (logits that are no numbers, say); it has then ended with the exception.
    """
    scores = logits
    if penalty != 1.0:
        for answer in answers:
            if answer.seen is None:
                answer.seen = torch.zeros(logits.shape[1], dtype=torch.bool)
                answer.seen[list(answer.request.tokens)] = True
        seen = torch.stack([answer.seen for answer in answers if answer.seen is not None])
        scores = penalised(logits, seen.to(logits.device), penalty)
    tokens: list[int | None] = list(scores.argmax(dim=-1).tolist())
    for row, answer in enumerate(answers):
        if answer.sampler is None:
            continue
        try:
            tokens[row] = int(answer.sampler(_NONE, scores[row : row + 1]).argmax())
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            tokens[row] = None
            answer.fail(error)
    return tokens


def token_scores(
    logits: torch.Tensor, answers: Sequence[Answer], tokens: Sequence[int | None], tokenizer: PreTrainedTokenizerBase
) -> list[TokenScore | None]:
    """For the answers that ask for it, the log-probability of their token and of the likeliest in its place."""
    scores: list[TokenScore | None] = [None] * len(answers)
    asked = [
        row for row, answer in enumerate(answers) if answer.request.logprobs is not None and tokens[row] is not None
    ]
    if not asked:
        return scores
    log_probabilities, spell = logits[asked].log_softmax(dim=-1).cpu(), speller(tokenizer)
    for place, row in enumerate(asked):
        token, number = tokens[row], answers[row].request.logprobs
        assert token is not None
        assert number is not None
        own = log_probabilities[place]
        values, likeliest = own.topk(min(number, own.numel()))
        top = tuple(
            (other, spell(other), value) for other, value in zip(likeliest.tolist(), values.tolist(), strict=True)
        )
        scores[row] = TokenScore(token, spell(token), float(own[token]), top)
    return scores
