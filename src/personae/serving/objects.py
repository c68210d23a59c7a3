"""Responses of the API. Answers are written as plain dictionaries (answers.py), which these document and test."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, JsonValue


class ErrorDetail(BaseModel):
    """What is wrong, and with which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's form of an error."""

    error: ErrorDetail


class Usage(BaseModel):
    """Tokens; `prompt_tokens_details.cached_tokens` of the prompt were read from a kept prefix."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class _Answer(BaseModel):
    id: str
    created: int
    model: str
    persona: str
    routing: dict[str, JsonValue] | None = None
    usage: Usage


class ChatAnswer(_Answer):
    """A whole answer of `/v1/chat/completions`; persona: what it was written under, in words."""

    object: Literal["chat.completion"]
    choices: list[dict[str, JsonValue]]


class CompletionAnswer(_Answer):
    """A whole answer of `/v1/completions`."""

    object: Literal["text_completion"]
    choices: list[dict[str, JsonValue]]


class ModelObject(BaseModel):
    """A model id: the base model, or the base model under a persona."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "personae"


class ModelList(BaseModel):
    """All model ids."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class PersonaObject(BaseModel):
    """A persona: loaded says whether its masks are in memory now, removable whether it can be deleted here."""

    id: str
    object: Literal["persona"] = "persona"
    model: str
    description: str
    system_prompt: str | None
    method: str
    sparsity: float
    measured: dict[str, JsonValue]
    licence: str | None
    loaded: bool
    removable: bool


class PersonaDetail(PersonaObject):
    """The same with its whole provenance."""

    provenance: dict[str, JsonValue]


class PersonaList(BaseModel):
    """All personas; unreadable: files that cannot be served, and why."""

    object: Literal["list"] = "list"
    data: list[PersonaObject]
    unreadable: dict[str, str] = Field(default_factory=dict)


class Deleted(BaseModel):
    """A persona that is gone."""

    id: str
    object: Literal["persona"] = "persona"
    deleted: Literal[True] = True
