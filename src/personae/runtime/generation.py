"""From a message or a history to text: prompt, options, one generation, and its stream."""

from __future__ import annotations

import math
import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from personae.errors import DataError, OptionError
from personae.models import encode_prompt, end_of_turn
from personae.runtime.decoding import Halt, Reader, Sampler
from personae.runtime.turn import Turn

__all__ = ["Message", "Options", "TextStream", "fitted", "prompt_tokens", "write"]

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Emit = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How to write an answer.

    max_new_tokens: at least 1. temperature: 0 takes the likeliest token each time. top_p: share of the
    probability that sampling draws from, in (0, 1]. seed: same seed, same text; None is random. stop:
    strings that end the answer and are not part of it.

    Errors: `OptionError` for a value out of range.
    """

    max_new_tokens: int = 200
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise OptionError(f"max_new_tokens is {self.max_new_tokens}: give at least 1.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise OptionError(f"temperature is {self.temperature}: give 0 (no sampling) or a positive number.")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top_p is {self.top_p}: give a number above 0, up to 1.")
        if not all(self.stop):
            raise OptionError("a stop string is empty: it would end every answer at once.")

    @classmethod
    def of(
        cls,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int | None,
        stop: str | Sequence[str] | None,
    ) -> Options:
        """Options with `stop` as users give it: one string, several, or None."""
        stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
        return cls(max_new_tokens, temperature, top_p, seed, stops)


# ------------------------------------------------------------------- prompts


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, message: str | Sequence[Message], system: str | None = None
) -> list[int]:
    """Token ids of a single message or of a history that ends with the user's turn.

    Errors: `DataError` for a history that is empty, does not end with the user or has unknown roles, or
    that the chat template refuses; `OptionError` for two system prompts.
    """
    if isinstance(message, str):
        return encode_prompt(tokenizer, message, system)
    history = _checked_history(message, system)
    lead = history[0]["content"] if history[0]["role"] == "system" else None
    turns = history if lead is None else history[1:]
    if len(turns) == 1:
        return encode_prompt(tokenizer, turns[0]["content"], lead)
    templated = getattr(tokenizer, "chat_template", None) is not None
    text = _rendered(tokenizer, lead, turns) if templated else _plain(tokenizer, lead, turns)
    # A template writes its own special tokens; adding more would double the begin-of-text token.
    return list(tokenizer(text, add_special_tokens=not templated)["input_ids"])


def _checked_history(messages: Sequence[Message], system: str | None) -> list[dict[str, str]]:
    for number, message in enumerate(messages):
        known = ("system", "user", "assistant") if number == 0 else ("user", "assistant")
        if message.get("role") not in known or not isinstance(message.get("content"), str):
            raise DataError(
                f"message {number} must be {{'role': …, 'content': text}} with a role of {', '.join(known)}."
            )
    if not messages or messages[-1]["role"] != "user":
        raise DataError("the messages must end with one of the user, to be answered.")
    if system and messages[0]["role"] == "system":
        raise OptionError("the messages hold a system prompt already: give it there or as `system`, not both.")
    lead = [{"role": "system", "content": system}] if system else []
    return [*lead, *({"role": m["role"], "content": m["content"]} for m in messages)]


def _rendered(tokenizer: PreTrainedTokenizerBase, lead: str | None, turns: list[dict[str, str]]) -> str:
    forms = [turns] if lead is None else [[{"role": "system", "content": lead}, *turns], _in_front(lead, turns)]
    refused: Exception | None = None
    for form in forms:  # a template that refuses the system role (Gemma) gets it in front of the first turn
        try:
            return str(tokenizer.apply_chat_template(form, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # jinja's raise_exception, and whatever else a template does
            refused = refused or error
    raise DataError(f"the model's chat template refuses these messages: {refused}") from refused


def _in_front(lead: str, turns: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"role": turns[0]["role"], "content": f"{lead}\n\n{turns[0]['content']}"}, *turns[1:]]


def _plain(tokenizer: PreTrainedTokenizerBase, lead: str | None, turns: list[dict[str, str]]) -> str:
    """'Q: …\\nA: …' for models without a template, as `render_prompt` writes a single question."""
    names = {"user": "Q", "assistant": "A"}
    lines = [f"{names[turn['role']]}: {turn['content']}" for turn in turns]
    return (f"{lead}\n\n" if lead else "") + "\n".join(lines) + "\nA:"


def fitted(tokens: list[int], context: int | None, new: int) -> list[int]:
    """A prompt of at most `context` - `new` tokens: a longer one is cut from the left, with a warning.

    Errors: `OptionError` when the answer alone would fill the context.
    """
    if context is None or len(tokens) + new <= context:
        return tokens
    room = context - new
    if room < 1:
        raise OptionError(f"max_new_tokens is {new}, but the model's context is {context} tokens: give fewer.")
    warnings.warn(
        f"a prompt of {len(tokens)} tokens was cut from the left to {room}: the model's context is {context} and "
        f"the answer may take {new}.", stacklevel=3,
    )  # fmt: skip
    return tokens[len(tokens) - room :]


# ------------------------------------------------------------- one generation


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: list[int],
    options: Options,
    emit: Emit,
    cancelled: threading.Event,
) -> bool:
    """Generate an answer to a prompt, giving its text to `emit` piece by piece, until `cancelled` is set.

    Returns whether an end token or a stop string ended it, and not the number of tokens: the text alone does not tell,
    since stripped and encoded again it can have fewer tokens than were written.

    The prompt is computed anew: no cache outlives a call, since keys and values of another persona
    would be wrong. Sampling is `Sampler`'s; all else (such as a repetition penalty) is as in the model's
    own generation_config.
    """
    templated = getattr(tokenizer, "chat_template", None) is not None
    turn_end = end_of_turn(tokenizer) if templated else "\nQ:"
    reader = Reader(tokenizer, [*options.stop, *([turn_end] if turn_end else [])], emit)
    sampled = options.temperature > 0
    samplers = [Sampler(options.temperature, options.top_p, options.seed)] if sampled else []
    prompt = torch.tensor([tokens], device=model.device)
    ends = _end_tokens(model, tokenizer, turn_end)
    written = model.generate(  # type: ignore[operator]
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=options.max_new_tokens,
        do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None,  # `Sampler` draws
        eos_token_id=ends or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0),
        logits_processor=LogitsProcessorList(samplers),
        stopping_criteria=StoppingCriteriaList([Halt(reader, cancelled)]),
        streamer=reader,
    )  # fmt: skip
    return reader.stopped or int(written[0, -1]) in ends


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, turn_end: str) -> list[int]:
    """Tokens that end an answer: the model's, the tokenizer's, and the end of the turn if it is one token."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
    turn = tokenizer(turn_end, add_special_tokens=False)["input_ids"]
    if len(turn) == 1:
        ends.add(turn[0])
    return sorted(end for end in ends if end is not None)


# ------------------------------------------------------------------ streaming


class TextStream(Iterator[str]):
    """The pieces of an answer while a worker thread writes it, under the persona worn when it was asked for.

    The worker never waits for the reader, and the model is free again once it is done. `close()`, the
    end of a `with` block, or dropping the stream cancels what is not yet written. Any thread may read.
    An exception of the worker is raised at the reader.
    """

    def __init__(self, turn: Turn, work: Callable[[Emit, threading.Event], object]) -> None:
        self._pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._over = False
        turn.begin("stream_chat()")
        try:
            # The worker holds no reference to the stream, so that dropping the stream ends the worker.
            arguments = (turn, work, self._pieces, self._cancelled)
            self._worker = threading.Thread(target=_stream, args=arguments, name="personae-stream", daemon=True)
            self._worker.start()
        except BaseException:
            turn.end()
            raise

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        if self._over:
            raise StopIteration
        piece = self._pieces.get()
        if isinstance(piece, str):
            return piece
        self._over = True
        if piece is not None:
            raise piece
        raise StopIteration

    def close(self) -> None:
        """Cancel what is not yet written and wait for the worker, at most the time of one token."""
        self._over = True
        self._cancelled.set()
        if self._worker is not threading.current_thread():  # the garbage collector runs in any thread
            self._worker.join()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_worker") and self._worker.ident is not None:
            self.close()


def _stream(
    turn: Turn,
    work: Callable[[Emit, threading.Event], object],
    pieces: queue.SimpleQueue[str | BaseException | None],
    cancelled: threading.Event,
) -> None:
    failure: BaseException | None = None
    try:
        work(pieces.put, cancelled)
    except BaseException as error:
        failure = error
    turn.end()  # before the last word, so that who has read to the end can switch at once
    pieces.put(failure)
