"""Who may ask, and how much: API keys, foreign web pages, names of the server, and the size of a body, as plain ASGI.

These stand in front of the application, so that nothing of an unwanted request is parsed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from personae.errors import OptionError
from personae.serving.refusals import Refusal, response_of
from personae.serving.settings import LOOPBACK

__all__ = [
    "GUARDED", "BodyLimit", "Gate", "check_origins", "digest", "hosts_at", "is_foreign", "is_guarded", "is_key",
    "misnamed", "read_keys",
]  # fmt: skip

GUARDED = ("/v1", "/metrics", "/openapi.json")
KEYS_VARIABLE = "PERSONAE_API_KEYS"
_SHORTEST_KEY = 8
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_PORT = re.compile(r":\d*$")


def read_keys(path: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The keys of a file (one a line, '#' begins a comment) and of $PERSONAE_API_KEYS (separated by commas).

    Errors: `OptionError` for a file that cannot be read or holds no key, and for a key that is short or no plain
    ASCII without spaces.
    """
    found: list[str] = []
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"--api-key-file {path} cannot be read: {error}.") from error
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise OptionError(f"--api-key-file {path} holds no key: write one a line.")
    found += [key.strip() for key in environment.get(KEYS_VARIABLE, "").split(",") if key.strip()]
    for number, key in enumerate(found, 1):  # never print a key
        if len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise OptionError(
                f"API key number {number} is no key: use {_SHORTEST_KEY} or more ASCII letters and digits."
            )
    return tuple(dict.fromkeys(found))


def check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """Origins as browsers write them. Errors: `OptionError` for anything else, such as '*' or a path behind it."""
    for origin in origins:
        if _host(origin) is None or origin != "://".join(urlsplit(origin)[:2]) or not origin.isascii():
            raise OptionError(f"--cors-origin {origin}: write scheme and host, such as https://chat.example.org.")
    return tuple(dict.fromkeys(origins))


def is_guarded(path: str) -> bool:
    """Whether a path belongs to the API, and not to the page or to the probes of an orchestrator."""
    return any(path == front or path.startswith(f"{front}/") for front in GUARDED)


def digest(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


def is_key(shown: str, known: Sequence[bytes]) -> bool:
    """Whether a text is one of the keys with these digests.

    Every key is compared, in constant time: how long it takes says nothing about any of them.
    """
    return sum(hmac.compare_digest(digest(shown), key) for key in known) > 0


def is_foreign(headers: Headers, permitted: Collection[str] = ()) -> bool:
    """Whether a request comes from a web page of another origin that is not permitted."""
    origin = headers.get("origin")
    return not (origin is None or origin in permitted or _host(origin) == headers.get("host"))


def hosts_at(host: str) -> tuple[str, ...]:
    """The names of a server that listens on loopback: those of loopback, and the one by which it was told to listen."""
    return tuple(dict.fromkeys((*LOOPBACK, f"[{host}]" if ":" in host else host.lower())))


def misnamed(headers: Headers, hosts: Collection[str] | None) -> Refusal | None:
    """What a request hears that calls the server by none of its names; None for `hosts`: it has any.

    A web page can have its own name resolve to loopback once it is loaded (DNS rebinding). To the browser the server
    is then of the page's origin, and the page may read as well: only the name that it calls gives it away.
    """
    host = headers.get("host", "")
    if hosts is None or _PORT.sub("", host.lower()) in hosts:
        return None
    return Refusal(
        403,
        f"without keys this server answers as {', '.join(hosts)}, not as {host[:200]!r}: use one of these in the URL, "
        "or start it with --api-key-file.",
        code="host_not_allowed",
    )


class Gate:
    """Lets a request to the API through if it shows a key, or, where there are no keys, comes from no foreign page.

    Without a key a server on loopback is open to every web page in the browser of the same machine: browsers send
    uploads without asking first, but name the page in 'Origin' and the server in 'Host'. hosts: as of `Settings`.
    """

    def __init__(
        self, app: ASGIApp, keys: Sequence[str], origins: Sequence[str], hosts: Collection[str] | None = LOOPBACK
    ) -> None:
        self._app, self._origins, self._hosts = app, frozenset(origins), hosts
        self._keys = tuple(digest(key) for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse with 401 or 403."""
        if scope["type"] == "http" and is_guarded(scope["path"]):
            headers = Headers(scope=scope)
            refusal = self._without_key(headers) if self._keys else self._foreign(scope["method"], headers)
            if refusal is not None:
                await response_of(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _without_key(self, headers: Headers) -> Refusal | None:
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if is_key(shown.strip(), self._keys) and scheme.lower() == "bearer":
            return None
        return Refusal(
            401,
            "the API key is missing or wrong: send 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _foreign(self, method: str, headers: Headers) -> Refusal | None:
        if refusal := misnamed(headers, self._hosts):
            return refusal
        if method in _SAFE_METHODS or not is_foreign(headers, self._origins):
            return None
        origin = headers["origin"][:200]
        return Refusal(403, f"web pages of {origin} may not use this server: --cors-origin permits one.")


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


class BodyLimit:
    """Refuses bodies above a size with 413: by Content-Length before reading, and counted while reading.

    uploads: another size for POST to /v1/personas.
    """

    def __init__(self, app: ASGIApp, largest: int, uploads: int) -> None:
        self._app, self._largest, self._uploads = app, largest, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer with 413 in place of whatever the application makes of a body that was cut."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["method"] == "POST" and scope["path"].rstrip("/") == "/v1/personas"
        limit = self._uploads if is_upload else self._largest
        refusal = response_of(
            Refusal(413, f"the body is larger than {limit / 1e6:g} MB, the most that is taken here.", code="too_large")
        )
        stated = Headers(scope=scope).get("content-length", "0")
        if stated.isdecimal() and int(stated[:20]) > limit:
            await refusal(scope, receive, send)
            return
        read, started = 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > limit:
                    raise _TooLarge
            return message

        async def guarded(message: Message) -> None:
            nonlocal started
            if read <= limit:
                started = True
                await send(message)
            elif not started:
                started = True
                await refusal(scope, receive, send)

        try:
            await self._app(scope, counted, guarded)
        except _TooLarge:
            if not started:
                await refusal(scope, receive, send)


class _TooLarge(Exception):
    """The body went over the limit while it was read."""
