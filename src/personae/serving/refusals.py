"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from personae.errors import BusyError, DataError, OptionError, PersonaeError, PersonaInUseError, UnknownPersonaError
from personae.serving.schemas import UnsupportedField

__all__ = ["Refusal", "body_of", "install", "refusal_of", "response_of"]

RETRY_AFTER = "1"  # seconds; a queue that is full now has usually moved by then
_log = logging.getLogger("personae.serving")


class Refusal(Exception):
    """A request that is not served: HTTP status, message, the field that is to blame, and a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})


_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def body_of(refusal: Refusal) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = _TYPES.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}


def response_of(refusal: Refusal) -> Response:
    """The same as a response."""
    content = json.dumps(body_of(refusal))  # ASCII: a message may quote half a surrogate pair
    return Response(content, refusal.status, refusal.headers, media_type="application/json")


def refusal_of(error: BaseException) -> Refusal:
    """What the client is told of an exception; one that is a defect goes to the log and is not told in detail."""
    match error:
        case Refusal():
            return error
        case BusyError():
            return Refusal(429, str(error), code="queue_full", headers={"Retry-After": RETRY_AFTER})
        case UnknownPersonaError():
            return Refusal(404, str(error), code="model_not_found", param="model")
        case PersonaInUseError():
            return Refusal(409, str(error), code="persona_in_use")
        case OptionError() | DataError():
            return Refusal(400, str(error), code="invalid_value")
        case PersonaeError():
            return Refusal(400, str(error), code="invalid_persona")
    _log.error("a request failed", exc_info=error)
    return Refusal(500, "the server failed on this request; its log says why.", code="internal_error")


def install(app: FastAPI) -> None:
    """Answer every error of the application in this form."""

    @app.exception_handler(Refusal)
    @app.exception_handler(PersonaeError)
    async def refused(_: Request, error: Exception) -> Response:
        return response_of(refusal_of(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return response_of(_of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        return response_of(Refusal(error.status_code, str(error.detail), code=code, headers=error.headers))


def _of_validation(errors: Sequence[Any]) -> Refusal:
    field = errors[0]["loc"][:2]
    # Of a field that may be of several types each type complains; the one that fits best gets furthest.
    first = max((error for error in errors if error["loc"][:2] == field), key=lambda error: len(error["loc"]))
    where = _field(first["loc"])
    if first["type"] == "json_invalid":
        return Refusal(400, f"the body is not valid JSON: {first['ctx']['error']}.", code="invalid_json")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UnsupportedField):
        where = f"{where}.{cause.name}" if where else cause.name
        return Refusal(400, f"{cause}.", param=where, code="unsupported_parameter")
    text = first["msg"].removeprefix("Value error, ")
    message = f"{where}: {text}." if where else f"{text}."
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return Refusal(400, message, param=where or None, code=code)


def _field(location: Sequence[int | str]) -> str:
    """'messages[0].content' of ('body', 'messages', 0, 'content'); names of types inside a union are left out."""
    text = ""
    for part in location[1:]:
        if isinstance(part, int):
            text += f"[{part}]"
        elif "[" not in part and part not in {"str", "int", "float", "bool"}:
            text += f".{part}" if text else part
    return text
