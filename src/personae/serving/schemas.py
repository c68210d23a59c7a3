"""Requests of the API as OpenAI defines them, and the fields we add: `persona` and `strength`.

A field that is not served here is refused by name, unless its value asks for nothing ('tools': [], 'n': null) or could
not change the answer ('user'). So an answer never silently lacks what was asked for.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

MAX_CHOICES = 32  # answers of one request: n times the number of prompts
_STOP_LENGTH = 256  # characters
_MAX_BLENDED = 16

_TEXT_PARTS = {"type": "array", "items": {"type": "object", "properties": {"type": {"const": "text"}, "text": {}}}}
_ANYTHING = object()
_HARMLESS: dict[str, tuple[Any, ...]] = {  # field of OpenAI -> values that ask for nothing we do not do
    "best_of": (1,),
    "metadata": (_ANYTHING,),
    "modalities": (["text"],),
    "parallel_tool_calls": (_ANYTHING,),  # means nothing without tools, which are refused
    "prompt_cache_key": (_ANYTHING,),
    "prompt_cache_retention": (_ANYTHING,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "safety_identifier": (_ANYTHING,),
    "service_tier": ("auto", "default"),
    "store": (_ANYTHING,),  # nothing is ever stored
    "tool_choice": ("none", "auto"),
    "user": (_ANYTHING,),
    "verbosity": ("medium",),
}


def _flattened(content: Any) -> Any:
    """The text of a message: a string, or the joined texts of its parts."""
    if not isinstance(content, list):
        return content
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"part {number} is of type {kind!r}: only text is understood here")
        texts.append(part["text"])
    return "".join(texts)


def _listed(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


def _few(blend: Any) -> Any:
    """Pydantic counts a dict last, when it has collected what is wrong with every entry of it."""
    if isinstance(blend, dict) and len(blend) > _MAX_BLENDED:
        raise ValueError(f"a blend has at most {_MAX_BLENDED} personas, and this one {len(blend)}")
    return blend


# Lists fail at their first wrong item: pydantic would collect an error for each, seconds' worth from a body of 2 MB.
Text = Annotated[
    str, BeforeValidator(_flattened), WithJsonSchema({"anyOf": [{"type": "string"}, _TEXT_PARTS], "title": "Content"})
]
StopString = Annotated[str, Field(min_length=1, max_length=_STOP_LENGTH)]
Stops = Annotated[
    list[StopString],
    Field(max_length=4, fail_fast=True),
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 4}]}),
]
Strength = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Blend = Annotated[dict[str, Strength], Field(max_length=_MAX_BLENDED), BeforeValidator(_few)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Texts = Annotated[list[str], Field(fail_fast=True)]
Tokens = Annotated[list[Token], Field(fail_fast=True)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _Strict(BaseModel):
    """Unknown fields are looked at one by one, and '1' is no number."""

    model_config = ConfigDict(strict=True, extra="allow")

    @model_validator(mode="after")
    def _only_what_is_served(self) -> Self:
        for name, value in sorted((self.model_extra or {}).items()):
            if value and not any(value == fine or fine is _ANYTHING for fine in _HARMLESS.get(name, ())):
                raise UnsupportedField(name)
        return self


class UnsupportedField(ValueError):
    """A field that asks for something this server does not do."""

    def __init__(self, name: str) -> None:
        super().__init__(f"'{name}' is not supported by this server: leave it out")
        self.name = name


class Message(_Strict):
    """One message of a conversation; 'developer' is another name of 'system'."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text


class StreamOptions(_Strict):
    """include_usage: a last chunk says how many tokens there were."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding against traffic analysis: harmless to leave out


class _Asked(_Strict):
    """What both kinds of request have in common.

    persona: a name, a blend {name: strength}, 'base', or 'auto', which picks by the request; it may stand in the model
    id instead (`base:persona`). strength: of one persona, 0 to 1 or above.
    """

    model: Annotated[str, Field(min_length=1)]
    persona: str | Blend | None = None
    strength: Strength | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stops | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, body: Any) -> Any:
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError, TypeError) as error:
            raise ValueError("a string holds half of a surrogate pair, or the nesting is too deep") from error
        return body

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' is for streams: give 'stream': true as well")
        if self.strength is not None and isinstance(self.persona, dict):
            raise ValueError("'strength' is for one persona: a blend holds its own strengths")
        return self

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(_Asked):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("'max_tokens' and 'max_completion_tokens' differ: give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        return self

    usual: ClassVar[int | None] = None  # tokens of an answer where nothing is asked: as many as may be

    @property
    def length(self) -> int | None:
        """The longest answer asked for, in tokens."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def scores(self) -> int | None:
        """How many likeliest tokens are wanted in each place; None for no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Asked):
    """`POST /v1/completions`. prompt: text, texts, token ids, or several lists of them."""

    prompt: str | Texts | Tokens | Annotated[list[Tokens], Field(fail_fast=True)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    usual: ClassVar[int | None] = 16  # as at OpenAI

    @property
    def length(self) -> int | None:
        """As of `ChatRequest`."""
        return self.max_tokens

    @property
    def scores(self) -> int | None:
        """As of `ChatRequest`."""
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One entry for each prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]
