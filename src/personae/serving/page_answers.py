"""What the page asks for and what it shows: conversations, who answers, and answers while they are written.

The page asks as a client of the API would, in the same process: every limit and every refusal of the API holds here.
"""

from __future__ import annotations

import asyncio
import html
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import cleandoc
from typing import Any

from pydantic import ValidationError

from personae.errors import OptionError
from personae.runtime.requests import End
from personae.serving.refusals import refusal_of
from personae.serving.schemas import ChatRequest
from personae.serving.service import Answering, Service
from personae.serving.settings import BASE_NAME

__all__ = ["BLEND", "Asked", "Shown", "answers", "conversation", "mode_of", "name_of", "said", "wanted"]

BLEND = "blend"
_PERSONA = "persona:"  # so that a persona called 'blend' is no mode
_REFRESH = 0.1  # seconds between two states of an answer on the page
_SILENCE = 1.0  # seconds after which an unchanged state is shown again, which is when a closed page is noticed

Message = dict[str, Any]
Asked = dict[str, Any]


# ------------------------------------------------------------------- asking


def mode_of(name: str) -> str:
    """The value of a persona in the list of modes, beside `BASE_NAME`, `AUTO` and `BLEND`."""
    return _PERSONA + name


def name_of(mode: str | None) -> str | None:
    """The persona of a mode; None for the other modes."""
    return mode.removeprefix(_PERSONA) if mode is not None and mode.startswith(_PERSONA) else None


def wanted(mode: str | None, strength: float, names: Sequence[str], strengths: Sequence[float]) -> Asked:
    """The fields `persona` and `strength` of the API for what is chosen on the page.

    names, strengths: of a blend, in the same order; there may be more strengths than names.

    Errors: `OptionError` for a blend of nobody.
    """
    name = name_of(mode)
    if name is not None:
        return {"persona": name, "strength": float(strength)}
    if mode == BLEND:
        if not names:
            raise OptionError("nobody is in the blend: choose personas for it.")
        return {"persona": {name: float(own) for name, own in zip(names, strengths, strict=False)}}
    return {"persona": mode or BASE_NAME}


def said(text: str | None) -> Message:
    """The question as a message, as the conversation on the page will hold it: gradio takes common indentation away.

    Errors: `OptionError` when there is none.
    """
    if text is None or not text.strip():
        raise OptionError("there is no question: write one.")
    return {"role": "user", "content": cleandoc(text)}


def conversation(history: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages of the API from those of the page: questions that have an answer, each with it.

    An answer on the page has its label as first part (`Shown.parts`), which nobody has said. A question without any
    text behind it was stopped or refused; it is left out, since models are made for turns that alternate.
    """
    turns: list[Message] = []
    asked: str | None = None
    for message in history:
        content = message["content"]
        texts = [content] if isinstance(content, str) else [part["text"] for part in content]
        if message["role"] == "user":
            asked = "".join(texts)
        elif asked is not None and (said := "".join(texts[1:])):
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            asked = None
    return turns


# -------------------------------------------------------------------- shown


@dataclass(slots=True)
class Shown:
    """An answer as far as it is written. problem: why there is no more of it, in words."""

    persona: str = ""
    text: str = ""
    end: End | None = None
    problem: str = ""

    @property
    def label(self) -> str:
        """What it is written under, and how it went; HTML."""
        facts = [f"<b>{html.escape(self.persona)}</b>"] if self.persona else []
        if self.end is not None:
            facts.append(f"{self.end.completion_tokens} tokens in {self.end.total:.1f} s")
            if self.end.reason == "length":
                facts.append("cut at the longest answer")
        elif not self.text and not self.problem:
            facts.append("…")
        line = f'<span class="worn">{" · ".join(facts)}</span>' if facts else ""
        trouble = "Cut" if self.text else "Not answered"
        return line + (f'<span class="problem">{trouble}: {html.escape(self.problem)}</span>' if self.problem else "")

    def parts(self) -> list[Message]:
        """Content of a message on the page: the label, and the text where there is some."""
        return [{"type": "text", "text": text} for text in (self.label, self.text) if text]


async def answers(service: Service, requests: Sequence[Callable[[], Asked]]) -> AsyncIterator[list[Shown]]:
    """All answers again and again while they are written at the same time, the last time complete.

    requests: each makes a body of `POST /v1/chat/completions` without the model. What goes wrong with one is its
    `problem`. An answer that nobody waits for any more, however that came about, is cancelled.
    """
    shown = [Shown() for _ in requests]
    tasks = [asyncio.ensure_future(_follow(service, *each)) for each in zip(requests, shown, strict=True)]
    last: list[Shown] = []
    quiet = 0.0
    try:
        pending: set[asyncio.Future[None]] = set(tasks)
        while pending:
            _, pending = await asyncio.wait(pending, timeout=_REFRESH)
            quiet += _REFRESH
            if shown != last or quiet >= _SILENCE:
                last, quiet = [replace(each) for each in shown], 0.0
                yield last
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _follow(service: Service, request: Callable[[], Asked], shown: Shown) -> None:
    """Write an answer into `shown`."""
    try:
        answering = await _begun(service, ChatRequest(model=service.settings.model_id, **request()))
        shown.persona = answering.persona
        try:
            async for found in answering.writing.events():
                assert found is not None
                if isinstance(found[1], End):
                    shown.end = found[1]
                else:
                    shown.text += found[1].text
        finally:
            answering.writing.cancel()
    except ValidationError as error:
        shown.problem = f"{error.errors()[0]['msg'].removeprefix('Value error, ')}."
    except Exception as error:
        shown.problem = refusal_of(error).message


async def _begun(service: Service, asked: ChatRequest) -> Answering:
    """`Service.begin`, which must not be cut in two: it would keep a persona for a request that never was."""
    beginning = asyncio.ensure_future(service.begin(asked))
    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        beginning.add_done_callback(_unwanted)
        raise


def _unwanted(beginning: asyncio.Future[Answering]) -> None:
    if not beginning.cancelled() and beginning.exception() is None:
        beginning.result().writing.cancel()
