"""One JSON line for each request: who was asked for what, how it went, how long it took; never what was said.

It is the outermost layer, so it also sees what the others refuse, and it turns a defect into a plain 500.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from personae.serving.refusals import refusal_of, response_of

__all__ = ["AccessLog", "note"]

Sink = Callable[[str], None]
Count = Callable[[str, int], None]
_NOTES = "personae.notes"
_LONGEST_PATH = 200


def note(scope: Scope, **facts: Any) -> None:
    """Add facts to the line of this request, such as persona and tokens. Never prompts or answers."""
    scope.get(_NOTES, {}).update(facts)


class AccessLog:
    """Gives each request an id (header X-Request-Id), and a line to `sink` (None: no lines) when it is over.

    count: told the method and status of each response. status 499: the client was gone before the response began.
    """

    def __init__(self, app: ASGIApp, sink: Sink | None, count: Count) -> None:
        self._app, self._sink, self._count = app, sink, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on and write the line."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name, began, status, size = secrets.token_hex(8), time.monotonic(), 499, 0
        notes: dict[str, Any] = {}
        scope[_NOTES] = notes

        async def watched(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", name.encode())]}
            size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if status != 499:  # too late to say so in words: the connection ends before the response does
                refusal_of(error)
                raise
            await response_of(refusal_of(error))(scope, receive, watched)
        finally:
            self._count(scope["method"], status)
            if self._sink is not None:
                client = (scope.get("client") or ("",))[0]
                line = {
                    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "id": name, "client": client,
                    "method": scope["method"], "path": scope["path"][:_LONGEST_PATH], "status": status,
                    "bytes": size, "seconds": round(time.monotonic() - began, 6), **notes,
                }  # fmt: skip
                self._sink(json.dumps(line))
