"""In front of the page: what passes, who passes, and that only text does."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae.serving import page_door
from personae.serving.page_door import COOKIE, LASTS, Door, only_text

KEY, OTHER = "sk-one-two-three", "sk-another-one"
HOST = "http://localhost:8000"
CALL = {"data": ["Hello?", None, 0.5], "event_data": None, "fn_index": 3, "trigger_id": 7, "session_hash": "abc"}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body it was given."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


def send(door: Door, method: str, path: str, cookies: str = "", **options: Any) -> httpx.Response:
    headers = {**options.pop("headers", {}), **({"Cookie": cookies.encode("latin-1")} if cookies else {})}

    async def use() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url=HOST) as client:
            return await client.request(method, path, headers=headers, **options)

    return asyncio.run(use())


# ---------------------------------------------------------------------- routes


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"), ("HEAD", "/"), ("GET", "/theme.css"), ("GET", "/assets/a.js"), ("GET", "/static/js/b.js"),
        ("GET", "/gradio_api/queue/data?session_hash=a"), ("GET", "/gradio_api/heartbeat/a"),
    ],
)  # fmt: skip
def test_the_page_reads(method: str, path: str) -> None:
    response = send(Door(echo, []), method, path)
    assert response.status_code == 200
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/cancel"])
def test_the_page_writes(path: str) -> None:
    response = send(Door(echo, []), "POST", path, json=CALL)
    assert response.status_code == 200
    assert response.json() == CALL


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/"), ("PUT", "/"), ("POST", "/gradio_api/upload"), ("GET", "/gradio_api/upload_progress"),
        ("GET", "/gradio_api/file=/etc/passwd"), ("GET", "/gradio_api/file/etc/passwd"), ("GET", "/svelte/x"),
        ("GET", "/gradio_api/proxy=http://192.0.2.1/"), ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/call/answer"), ("POST", "/gradio_api/run/answer"), ("POST", "/gradio_api/vibe-edit"),
        ("GET", "/gradio_api/runs"), ("GET", "/monitoring"), ("POST", "/login"), ("GET", "/logout"),
        ("GET", "/gradio_api/queue/join"), ("POST", "/theme.css"), ("GET", "/nothing"), ("GET", "/assets"),
        ("GET", "/gradio_api/deep_link"), ("POST", "/assets/a.js"), ("GET", "/v2/models"),
    ],
)  # fmt: skip
def test_nothing_else_does(method: str, path: str) -> None:
    response = send(Door(echo, []), method, path, content=b"{}" if method == "POST" else None)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_other_kinds_of_connection_pass() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(Door(app, [KEY])({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


def test_a_client_that_leaves_before_its_body_is_there() -> None:
    async def gone() -> Any:
        return {"type": "http.disconnect"}

    async def say(message: Any) -> None:
        raise AssertionError(message)

    for keys, path in (([], "/gradio_api/queue/join"), ([KEY], "/login")):
        own = [(b"host", b"localhost")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": own, "query_string": b""}
        asyncio.run(Door(echo, keys)(scope, gone, say))


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:81", "http://["])
def test_other_pages_may_not_use_it(origin: str) -> None:
    for method, path in (("GET", "/"), ("POST", "/gradio_api/queue/join"), ("POST", "/login")):
        response = send(Door(echo, [KEY]), method, path, headers={"Origin": origin}, json=CALL)
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
    assert send(Door(echo, []), "GET", "/", headers={"Origin": HOST}).status_code == 200


def test_a_page_whose_name_was_turned_to_loopback_may_not_even_read() -> None:
    rebound = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
    for method, path in (("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/queue/join")):
        response = send(Door(echo, []), method, path, headers=rebound, json=CALL)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "host_not_allowed")
        assert send(Door(echo, [], None), method, path, headers=rebound, json=CALL).status_code == 200
    assert send(Door(echo, [KEY]), "GET", "/", headers=rebound).status_code == 401  # with a key any name will do


# ------------------------------------------------------------------------- key


def entered(door: Door, key: str, **headers: str) -> httpx.Response:
    return send(door, "POST", "/login", data={"key": key}, headers=headers)


def cookie(response: httpx.Response) -> str:
    return response.headers["set-cookie"].split(";")[0]  # type: ignore[no-any-return]


def test_without_the_key_there_is_a_form_and_nothing_else() -> None:
    door = Door(echo, [KEY])
    form = send(door, "GET", "/")
    assert form.status_code == 401
    assert 'type="password"' in form.text
    assert "default-src 'self'" in form.headers["content-security-policy"]
    assert form.headers["cache-control"] == "no-store"
    for method, path in (
        ("HEAD", "/"), ("GET", "/config"), ("GET", "/assets/a.js"), ("POST", "/gradio_api/queue/join"),
        ("GET", "/gradio_api/queue/data"), ("GET", "/login"), ("POST", "/gradio_api/upload"),
    ):  # fmt: skip
        response = send(door, method, path, json=CALL if method == "POST" else None)
        assert response.status_code == 401, path


def test_a_key_opens_the_page() -> None:
    door = Door(echo, [OTHER, KEY])
    response = entered(door, f" {KEY} ", Origin=HOST)
    assert response.status_code == 303
    assert response.headers["location"] == "./"
    set_cookie = response.headers["set-cookie"]
    assert "HttpOnly" in set_cookie
    assert "SameSite=lax" in set_cookie
    assert "Secure" not in set_cookie
    assert KEY not in set_cookie
    assert "Secure" in entered(door, KEY, **{"X-Forwarded-Proto": "https"}).headers["set-cookie"]
    shown = cookie(response)
    assert send(door, "GET", "/", shown).status_code == 200
    assert send(door, "GET", "/", f'theirs={{"a": 1}}; {shown}; other="b').status_code == 200
    assert send(door, "POST", "/gradio_api/queue/join", shown, json=CALL).json() == CALL
    assert send(door, "POST", "/gradio_api/upload", shown, json=CALL).status_code == 404
    # Another server with that key knows it too, one without it does not.
    assert send(Door(echo, [KEY]), "GET", "/", shown).status_code == 200
    assert send(Door(echo, [OTHER]), "GET", "/", shown).status_code == 401


@pytest.mark.parametrize("key", ["", "sk-wrong-key", KEY[:-1], KEY + "x", "ä\x00", "x" * 5000])
def test_what_is_no_key_opens_nothing(key: str) -> None:
    response = entered(Door(echo, [KEY]), key)
    assert response.status_code == 401
    assert "set-cookie" not in response.headers
    assert 'role="alert"' in response.text
    assert "x" * 100 not in response.text


def test_cookies_that_were_made_up() -> None:
    door = Door(echo, [KEY])
    _, _, value = cookie(entered(door, KEY)).partition("=")
    until, _, signed = value.partition(".")
    later = str(int(until) + 1)
    for wrong in (
        "", ".", until, signed, f"{later}.{signed}", f"{until}.{signed[:-1]}", f"{until}.{signed}0", f"-1.{signed}",
        f"{until}.", f"{'9' * 40}.{signed}", f"{until}.\xe9", f" {until}.{signed[::-1]}", KEY,
    ):  # fmt: skip
        response = send(door, "GET", "/", f"{COOKIE}={wrong}")
        assert response.status_code == 401, wrong


def test_a_cookie_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(echo, [KEY])
    shown, now = cookie(entered(door, KEY)), time.time()
    for passed, status in ((LASTS - 60, 200), (LASTS + 60, 401)):
        monkeypatch.setattr(page_door.time, "time", lambda passed=passed: now + passed)
        assert send(door, "GET", "/", shown).status_code == status


# ------------------------------------------------------------------- text only

HARMLESS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "title", "value"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(HARMLESS)
def test_text_passes(value: Any) -> None:
    assert only_text(json.dumps({**CALL, "data": [value]}).encode())


@given(HARMLESS, st.sampled_from(["path", "url", "meta", "file", "files", "component", "__type__", "constructor_args"]))
def test_nothing_that_gradio_would_fetch_or_make(value: Any, field: str) -> None:
    hidden = {"content": [{"role": "user", "content": [{field: value}]}]}
    for body in ({**CALL, "data": [value, hidden]}, {**CALL, "event_data": hidden}, [hidden]):
        text = json.dumps(body)
        assert not only_text(text.encode())
        assert not only_text(text.replace(f'"{field}"', f'"\\u{ord(field[0]):04x}{field[1:]}"').encode())
    assert only_text(json.dumps({**CALL, "data": [field]}).encode())  # as text it is nothing special


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"\xff", b"[" * 100_000, b'{"data": 1}x', b'{"data": [' + b"9" * 5000 + b"]}",
        b'{"data": [{"type": "file", "text": "a"}]}', b'{"data": [{"type": ["text"], "text": "a"}]}',
    ],
)  # fmt: skip
def test_what_is_no_call(body: bytes) -> None:
    response = send(Door(echo, []), "POST", "/gradio_api/queue/join", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_value"


def test_a_message_of_the_chat_passes() -> None:
    message = {"role": "assistant", "metadata": None, "content": [{"text": "a", "type": "text"}], "options": None}
    assert only_text(json.dumps({**CALL, "data": [[message]]}).encode())
