"""Inside one generation: picking tokens, turning them into text piece by piece, and stopping."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

__all__ = ["Halt", "Reader", "Sampler", "nucleus"]


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest set of most probable tokens that holds at least `top_p`, renormalised, (vocabulary,).

    Source: Holtzman et al. 2020, arXiv 1904.09751. The most probable token always stays.
    """
    if top_p >= 1:
        return probabilities / probabilities.sum()
    looked, size = 64, probabilities.numel()
    while True:  # nearly always a few tokens hold it: no need to sort them all
        ordered = probabilities.topk(min(looked, size)).values
        inside = int(((ordered.cumsum(0) - ordered) < top_p).sum())
        if inside < len(ordered) or len(ordered) == size:
            break
        looked *= 8
    inside = max(inside, 1)
    kept = probabilities > ordered[inside - 1]
    tied = (probabilities == ordered[inside - 1]).nonzero().flatten()[: inside - int(kept.sum())]
    kept[tied] = True  # of equals, the first ones
    chosen = torch.where(kept, probabilities, 0.0)
    return chosen / chosen.sum()


class Sampler(LogitsProcessor):
    """Draws the next token from softmax(logits / temperature), cut to its nucleus, and leaves only it.

    It has a random generator of its own, on the CPU: the same seed gives the same text on every device,
    whatever other threads draw meanwhile, and nobody's random state changes.
    """

    def __init__(self, temperature: float, top_p: float, seed: int | None) -> None:
        self._temperature, self._top_p = temperature, top_p
        self._random = torch.Generator()
        if seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores, (1, vocabulary), with -inf everywhere but at the drawn token."""
        # The largest logit is moved to 0 first: a very low temperature may not overflow.
        logits = scores[0].double().cpu()
        logits = (logits - logits.max()) / self._temperature
        token = int(torch.multinomial(nucleus(logits.softmax(0), self._top_p), 1, generator=self._random))
        only = torch.full_like(scores, float("-inf"))
        only[0, token] = 0.0
        return only


class Reader(BaseStreamer):
    """Takes tokens from `generate` and emits text that can no longer change.

    All tokens so far are decoded each time: byte-level and sentencepiece tokens have no text of their
    own. Held back are unfinished characters and what may be the beginning of a stop string. Text from
    the first stop string on is never emitted.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], emit: Callable[[str], None]) -> None:
        self._tokenizer, self._stops, self._emit = tokenizer, tuple(stops), emit
        self._prompt_seen = False
        self._tokens: list[int] = []
        self._emitted = 0  # characters
        self.stopped = False

    def put(self, value: torch.Tensor) -> None:
        """The prompt, at the first call, then token after token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._tokens += value.flatten().tolist()
        self._read(final=False)

    def end(self) -> None:
        """No more tokens: what was held back goes out."""
        self._read(final=True)

    def _read(self, *, final: bool) -> None:
        if self.stopped:
            return
        decoded = self._tokenizer.decode(self._tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = str(decoded)
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            text = text[: min(found)]
        elif not final:
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")
            text = text[: len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)]
        if len(text) > self._emitted:
            self._emit(text[self._emitted :])
            self._emitted = len(text)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class Halt(StoppingCriteria):
    """Ends a generation when its reader has met a stop string or nobody wants the rest."""

    def __init__(self, reader: Reader, cancelled: threading.Event) -> None:
        self._reader, self._cancelled = reader, cancelled

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        """Whether each row is done, (rows,) bool."""
        done = self._reader.stopped or self._cancelled.is_set()
        return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)
