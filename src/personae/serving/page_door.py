"""What stands in front of the page: the API key, foreign web pages, and all of gradio that the page does not need.

Gradio brings uploads, a proxy, file serving, an editor and more. Only the routes that the page itself uses are open,
and only text goes in: no request of the page can name a file, an address or a component. The browser is told to fetch
from this server alone, whatever an answer or a description contains.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Collection, Sequence
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from personae.serving.refusals import Refusal, response_of
from personae.serving.security import digest, is_foreign, is_key, misnamed
from personae.serving.settings import LOOPBACK

__all__ = ["Door", "only_text"]

COOKIE = "personae-page"
LASTS = 24 * 3600  # seconds until a browser is asked for the key again
_LONGEST_FORM = 4096  # bytes of the form with the key

_READ = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/gradio_api/info", "/gradio_api/queue/data",
         "/gradio_api/app_id"}  # fmt: skip
_READ_BELOW = ("/assets/", "/static/", "/gradio_api/heartbeat/")
_WRITE = {"/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/cancel", "/gradio_api/reset"}

_FIELDS = {
    # of a call, and of the event behind it
    "data", "event_data", "event_id", "fn_index", "session_hash", "trigger_id", "batched", "simple_format", "index",
    "value", "liked", "selected",
    # of a message
    "role", "content", "metadata", "options", "type", "text", "title",
}  # fmt: skip

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class Door:
    """Lets through to the page what belongs to it. keys: of the API; none: everybody may see the page.

    hosts: as of `Settings`; a key makes up for a name that is not among them.

    A browser shows a key once, in a form, and gets a cookie for it: a time and its HMAC under the key. Nothing is kept
    here, so servers with the same keys know each other's cookies, and a key that is removed ends its cookies.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], hosts: Collection[str] | None = LOOPBACK) -> None:
        self._app, self._hosts = app, None if keys else hosts
        self._keys = tuple(digest(key) for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, ask for the key, or refuse with 400, 401, 403 or 404."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            response = await self._instead(scope, receive)
            if response is None and scope["method"] == "POST":
                body = await Request(scope, receive).body()
                receive = _again(body, receive)
                if not only_text(body):
                    response = response_of(Refusal(400, "the page takes text and nothing else.", code="invalid_value"))
        except ClientDisconnect:
            return
        await (self._app if response is None else response)(scope, receive, hardened)

    async def _instead(self, scope: Scope, receive: Receive) -> Response | None:
        """The response to what does not go through."""
        path, method, headers = scope["path"], scope["method"], Headers(scope=scope)
        if refusal := misnamed(headers, self._hosts):
            return response_of(refusal)
        if is_foreign(headers):
            return response_of(Refusal(403, "other web pages may not use the page of this server."))
        if self._keys and (path, method) == ("/login", "POST"):
            return await self._enter(Request(scope, receive))
        if self._keys and not self._knows(Request(scope).cookies.get(COOKIE, "")):
            if (path, method) == ("/", "GET"):
                return self._form("")
            return response_of(Refusal(401, "load the page again and show the API key.", code="invalid_api_key"))
        reading = method in {"GET", "HEAD"} and (path in _READ or path.startswith(_READ_BELOW))
        if reading or (method == "POST" and path in _WRITE):
            return None
        return response_of(Refusal(404, "Not Found", code="not_found"))

    # ------------------------------------------------------------------- key

    async def _enter(self, request: Request) -> Response:
        """A cookie for a key."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LONGEST_FORM:
                return self._form("This is no key.")
        shown = parse_qs(body.decode("utf-8", "replace")).get("key", [""])[0].strip()
        if not is_key(shown, self._keys):
            return self._form("This key is not known here.")
        until = str(int(time.time()) + LASTS)
        secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto", "") == "https"
        response = Response(status_code=303, headers={"Location": "./", "Cache-Control": "no-store"})
        response.set_cookie(
            COOKIE, f"{until}.{_signed(until, digest(shown))}", httponly=True, samesite="lax", secure=secure
        )
        return response

    def _knows(self, cookie: str) -> bool:
        """Whether a browser has shown one of the keys, not too long ago."""
        until, _, signed = cookie.partition(".")
        if not (until.isascii() and until.isdecimal() and len(until) < 12 and int(until) > time.time()):
            return False
        matches = [hmac.compare_digest(_signed(until, key).encode(), signed.encode()) for key in self._keys]
        return any(matches)

    def _form(self, problem: str) -> Response:
        told = f'<p class="problem" role="alert">{problem}</p>' if problem else ""
        return HTMLResponse(
            _FORM.replace("PROBLEM", told), 401, {"WWW-Authenticate": "Bearer", "Cache-Control": "no-store"}
        )


def _signed(until: str, key: bytes) -> str:
    return hmac.new(key, f"personae page until {until}".encode(), hashlib.sha256).hexdigest()


_FORM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>personae</title>
<style>
:root { color-scheme: light dark; --accent: #6d5bd0; }
body { font: 16px/1.5 system-ui, sans-serif; display: grid; place-items: center; min-height: 90vh; margin: 0; }
form { width: min(22rem, 86vw); display: grid; gap: .8rem; }
h1 { margin: 0; letter-spacing: -.02em; } p { margin: 0; opacity: .75; }
input, button { font: inherit; padding: .6rem .8rem; border-radius: .6rem; border: 1px solid #8886; }
button { background: var(--accent); border-color: var(--accent); color: #fff; cursor: pointer; }
.problem { color: #d1435b; opacity: 1; }
</style></head>
<body><form method="post" action="login">
<h1>personae</h1><p>This server asks for an API key.</p>
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Open</button>PROBLEM
</form></body></html>
"""

# ------------------------------------------------------------------- text only


def only_text(body: bytes) -> bool:
    """Whether a call of the page is made of text: no object in it has a field beyond those of calls and messages.

    Gradio would fetch an address or read a file where an object describes one, and make any component that an object
    names.
    """
    try:
        todo: list[Any] = [json.loads(body)]
    except (ValueError, RecursionError):
        return False
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if not _FIELDS.issuperset(value) or value.get("type", "text") != "text":
                return False
            todo += value.values()
        elif isinstance(value, list):
            todo += value
    return True


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, once more, and then what follows it."""
    waiting = [body]

    async def first_the_body() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return first_the_body
