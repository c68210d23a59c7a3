"""OpenAI's objects from what the engine writes: a whole answer, or a stream of server-sent events."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import math
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from personae.runtime.requests import End, Piece, TokenScore
from personae.serving.access_log import note
from personae.serving.refusals import body_of, refusal_of
from personae.serving.schemas import ChatRequest, CompletionRequest
from personae.serving.service import Answering, Service

__all__ = ["respond"]

SILENCE = 15.0  # seconds after which a stream says that it is alive, for proxies that would close it
_LEAST = -9999.0  # OpenAI's value for a probability of 0, which JSON cannot write
JsonObject = dict[str, Any]


async def respond(service: Service, asked: ChatRequest | CompletionRequest, http: Request) -> Response:
    """The response to a request for an answer. Errors: as of `Service.begin`, before anything is sent."""
    answering = await service.begin(asked)
    note(http.scope, persona=answering.persona, stream=bool(asked.stream))
    form = _Form(asked, answering)
    headers = {"X-Persona": quote(answering.persona, safe=" =+.")}
    if asked.stream:
        headers |= {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return _EventStream(_events(form, answering, asked.with_usage, http), answering.writing.cancel, headers)
    return await _whole(form, answering, http, headers)


async def _whole(form: _Form, answering: Answering, http: Request, headers: dict[str, str]) -> Response:
    """All of it, unless the client goes away before."""
    collecting = asyncio.ensure_future(_collected(answering))
    leaving = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=499)  # nobody reads it; the access log does
        pieces, ends = collecting.result()
        usage = _usage(ends, answering.choices)
        note(http.scope, **_counts(usage))
        return JSONResponse({**form.whole(pieces, ends), "usage": usage}, headers=headers)
    finally:
        answering.writing.cancel()
        for task in (collecting, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _collected(answering: Answering) -> tuple[list[Piece], list[End]]:
    """Of every choice one piece with all of its text, and its end."""
    number = answering.writing.number
    texts: list[list[str]] = [[] for _ in range(number)]
    scores: list[list[TokenScore]] = [[] for _ in range(number)]
    ends: dict[int, End] = {}
    async for found in answering.writing.events():
        assert found is not None
        index, event = found
        if isinstance(event, End):
            ends[index] = event
        else:
            texts[index].append(event.text)
            scores[index] += event.scores
    pieces = [Piece("".join(text), tuple(own)) for text, own in zip(texts, scores, strict=True)]
    return pieces, [ends[index] for index in range(number)]


async def _gone(http: Request) -> None:
    """Returns when the client has closed the connection; its body has been read before."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _events(form: _Form, answering: Answering, with_usage: bool, http: Request) -> AsyncIterator[bytes]:
    """The lines of a stream. What goes wrong on the way is its last event."""
    ends: dict[int, End] = {}
    nothing: JsonObject = {"usage": None} if with_usage else {}
    for index in range(answering.writing.number):
        for chunk in form.opening(index):
            yield _event(chunk | nothing)
    try:
        async for found in answering.writing.events(SILENCE):
            if found is None:
                yield b": waiting\n\n"
                continue
            index, event = found
            if isinstance(event, End):
                ends[index] = event
                yield _event(form.ending(index, event) | nothing)
            elif event.text or event.scores:
                yield _event(form.piece(index, event) | nothing)
    except Exception as error:
        refusal = refusal_of(error)
        note(http.scope, error=refusal.code)
        yield _event(body_of(refusal))
        return
    usage = _usage([ends[index] for index in sorted(ends)], answering.choices)
    note(http.scope, **_counts(usage))
    if with_usage:
        yield _event(form.frame([]) | {"usage": usage})
    yield b"data: [DONE]\n\n"


def _event(content: JsonObject) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"


class _EventStream(StreamingResponse):
    """A stream that says when nobody reads it any more, however that came about."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], closed: Callable[[], None], headers: dict[str, str]) -> None:
        super().__init__(events, headers=headers)
        self._closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and cancel what is not written if the client is gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._closed()


# ------------------------------------------------------------------- objects


class _Form:
    """The frame of all objects of one response, and the two ways in which OpenAI writes a choice."""

    def __init__(self, asked: ChatRequest | CompletionRequest, answering: Answering) -> None:
        self._is_chat = isinstance(asked, ChatRequest)
        self._with_scores = asked.scores is not None
        self._model, self._answering = asked.model, answering
        self._id = ("chatcmpl-" if self._is_chat else "cmpl-") + secrets.token_hex(12)
        self._created = int(time.time())
        self._written: defaultdict[int, _Offset] = defaultdict(_Offset)  # of each choice

    def frame(self, choices: list[JsonObject], *, whole: bool = False) -> JsonObject:
        """An object around choices."""
        kind = ("chat.completion" if whole else "chat.completion.chunk") if self._is_chat else "text_completion"
        chosen = self._answering.chosen
        routing = {} if chosen is None else {"routing": {"score": chosen.score, "tied": list(chosen.tied)}}
        return {
            "id": self._id, "object": kind, "created": self._created, "model": self._model,
            "persona": self._answering.persona, **routing, "choices": choices,
        }  # fmt: skip

    def opening(self, index: int) -> list[JsonObject]:
        """A chat says first who speaks."""
        return [self._chunk(index, {"role": "assistant", "content": ""})] if self._is_chat else []

    def piece(self, index: int, piece: Piece) -> JsonObject:
        """More text of a choice."""
        if not self._is_chat:
            return self.frame([self._text(index, piece, None)])
        return self._chunk(index, {"content": piece.text}, self._scores(index, piece.scores))

    def ending(self, index: int, end: End) -> JsonObject:
        """Why a choice ended."""
        if not self._is_chat:
            return self.frame([{"index": index, "text": "", "logprobs": None, "finish_reason": end.reason}])
        return self._chunk(index, {}, reason=end.reason)

    def whole(self, pieces: Sequence[Piece], ends: Sequence[End]) -> JsonObject:
        """All choices at once."""
        choices = []
        for index, (piece, end) in enumerate(zip(pieces, ends, strict=True)):
            if self._is_chat:
                message = {"role": "assistant", "content": piece.text, "refusal": None}
                scores = self._scores(index, piece.scores)
                choices.append({"index": index, "message": message, "logprobs": scores, "finish_reason": end.reason})
            else:
                choices.append(self._text(index, piece, end.reason))
        return self.frame(choices, whole=True)

    def _chunk(
        self, index: int, delta: JsonObject, scores: JsonObject | None = None, reason: str | None = None
    ) -> JsonObject:
        return self.frame([{"index": index, "delta": delta, "logprobs": scores, "finish_reason": reason}])

    def _text(self, index: int, piece: Piece, reason: str | None) -> JsonObject:
        scores = self._scores(index, piece.scores)
        return {"index": index, "text": piece.text, "logprobs": scores, "finish_reason": reason}

    def _scores(self, index: int, scores: Sequence[TokenScore]) -> JsonObject | None:
        if not self._with_scores:
            return None
        if self._is_chat:
            return {"content": [_chat_score(score) for score in scores], "refusal": None}
        return {
            "tokens": [_shown(score.spelled) for score in scores],
            "token_logprobs": [_finite(score.log_probability) for score in scores],
            "top_logprobs": [_by_text(score) for score in scores],
            "text_offset": [self._written[index].before(score.spelled) for score in scores],
        }


class _Offset:
    """Counts the characters of a text from the bytes of its tokens, for text_offset."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def before(self, spelled: bytes) -> int:
        """Whole characters before the next token, which this is."""
        offset = self._characters
        self._characters += len(self._decoder.decode(spelled))
        return offset


def _chat_score(score: TokenScore) -> JsonObject:
    top = [_token(spelled, value) for _, spelled, value in score.top]
    return {**_token(score.spelled, score.log_probability), "top_logprobs": top}


def _token(spelled: bytes, log_probability: float) -> JsonObject:
    return {"token": _shown(spelled), "logprob": _finite(log_probability), "bytes": list(spelled)}


def _shown(spelled: bytes) -> str:
    """A token as text; of an unfinished character only its bytes say which."""
    return spelled.decode("utf-8", "replace")


def _by_text(score: TokenScore) -> dict[str, float]:
    """Likeliest texts, and the one that was written; of several tokens with one text the likeliest."""
    found: dict[str, float] = {}
    for spelled, value in [*(each[1:] for each in score.top), (score.spelled, score.log_probability)]:
        text = _shown(spelled)
        found[text] = max(found.get(text, _LEAST), _finite(value))
    return found


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _LEAST


def _usage(ends: Sequence[End], choices: int) -> JsonObject:
    """Tokens of all answers; a prompt counts once, however many choices it has."""
    read = sum(end.prompt_tokens for end in ends[::choices])
    written = sum(end.completion_tokens for end in ends)
    kept = sum(end.reused_tokens for end in ends[::choices])
    return {
        "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": kept},
    }  # fmt: skip


def _counts(usage: JsonObject) -> JsonObject:
    return {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}
