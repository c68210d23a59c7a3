"""Keys, foreign pages and sizes: what is refused before anything is parsed."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae.errors import OptionError
from personae.serving import create_app
from personae.serving.security import BodyLimit, Gate, check_origins, hosts_at, is_guarded, read_keys

KEY = "sk-one-two-three"


def asked(
    app: Any, path: str = "/v1/models", method: str = "GET", body: Iterable[bytes] = (b"",), **headers: str
) -> tuple[int, int]:
    """Status of the response, and how many bytes of the body were read."""
    read, sent = 0, []
    chunks = list(body)

    async def receive() -> dict[str, Any]:
        nonlocal read
        chunk = chunks.pop(0) if chunks else b""
        read += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "method": method, "headers": raw}
    asyncio.run(app(scope, receive, send))
    starts = [message for message in sent if message["type"] == "http.response.start"]
    assert len(starts) == 1
    assert not sent[-1].get("more_body", False)
    return starts[0]["status"], read


async def reading(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads all of the body, and takes an error there for a broken request."""
    status = 200
    try:
        while (await receive())["more_body"]:
            pass
    except Exception:
        status = 400
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


# ------------------------------------------------------------------------ keys


def test_keys_from_a_file_and_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n\n  {KEY} \nsk-another-one\n")
    assert read_keys(path, {}) == (KEY, "sk-another-one")
    assert read_keys(None, {"PERSONAE_API_KEYS": f" {KEY} ,,sk-another-one"}) == (KEY, "sk-another-one")
    assert read_keys(path, {"PERSONAE_API_KEYS": KEY}) == (KEY, "sk-another-one")
    assert read_keys(None, {}) == ()


@pytest.mark.parametrize(
    "content", [b"", b"# nothing\n", b"short\n", "schlüssel-lang\n".encode(), b"with a space\n", b"\xff"]
)
def test_files_that_hold_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(OptionError, match="key") as caught:
        read_keys(path, {})
    assert "short" not in str(caught.value).replace("api-key", "")  # a key is never printed
    with pytest.raises(OptionError, match="cannot be read"):
        read_keys(tmp_path / "absent", {})


def test_a_key_opens_the_api_and_nothing_else_does() -> None:
    gate = Gate(reading, ["sk-another-one", KEY], [])
    assert asked(gate, authorization=f"Bearer {KEY}")[0] == 200
    assert asked(gate, authorization=f"bearer  {KEY} ")[0] == 200
    for wrong in ("", "Bearer", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer \xe9"):
        assert asked(gate, authorization=wrong)[0] == 401
    assert asked(gate)[0] == 401
    status, read = asked(gate, method="POST", body=[b"x" * 100])
    assert (status, read) == (401, 0)  # nothing of the body is read
    for path in ("/healthz", "/readyz", "/", "/v1x"):
        assert asked(gate, path)[0] == 200


@given(st.text(max_size=30))
def test_no_text_but_a_key_is_a_key(shown: str) -> None:
    shown = shown.encode("latin-1", "ignore").decode("latin-1")
    status, _ = asked(Gate(reading, [KEY], []), authorization=f"Bearer {shown}")
    assert status == (200 if shown.strip() == KEY else 401)


def test_keys_are_compared_in_constant_time_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    true = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return true(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    asked(Gate(reading, [KEY, "sk-another-one", "sk-a-third-one"], []), authorization=f"Bearer {KEY}")
    assert len(compared) == 3  # also after the first has matched
    assert all(len(one) == len(other) == 32 for one, other in compared)  # hashes: length tells nothing either


def test_every_route_of_the_api_is_behind_the_gate(make_service: Callable[..., Any]) -> None:
    app = create_app(make_service(keys=(KEY,)))
    paths = [*app.openapi()["paths"], "/openapi.json"]
    assert len(paths) > 6
    for path in paths:
        assert is_guarded(path) == (path not in {"/healthz", "/readyz"})
        status, _ = asked(app, path.replace("{", "").replace("}", "").replace(":path", ""))
        assert status == (401 if is_guarded(path) else status), path


# --------------------------------------------------------------- foreign pages


def test_pages_of_others_may_not_write() -> None:
    gate = Gate(reading, [], ["https://chat.example.org"])
    for origin in ("https://evil.example", "null", "http://[", "http://127.0.0.1:9"):
        assert asked(gate, method="POST", origin=origin, host="127.0.0.1:8000")[0] == 403
        assert asked(gate, method="DELETE", origin=origin, host="127.0.0.1:8000")[0] == 403
        assert asked(gate, method="GET", origin=origin, host="127.0.0.1:8000")[0] == 200  # cannot be read there
    assert asked(gate, method="POST", origin="https://chat.example.org", host="127.0.0.1:8000")[0] == 200
    assert asked(gate, method="POST", origin="http://127.0.0.1:8000", host="127.0.0.1:8000")[0] == 200
    assert asked(gate, method="POST", host="127.0.0.1:8000")[0] == 200  # no browser
    assert asked(gate, "/page", method="POST", origin="https://evil.example", host="127.0.0.1:8000")[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example:8000", "x@localhost", "[::2]", ""]
)
def test_a_page_whose_name_was_turned_to_loopback_may_not_even_read(host: str) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "POST", "DELETE"):
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert asked(Gate(reading, [], []), path, method, host=host, origin=f"http://{host}")[0] == 403
            assert asked(Gate(reading, [], []), path, method, host=host)[0] == 403  # a GET names no origin
    assert asked(Gate(reading, [], [], None), host=host)[0] == 200
    assert asked(Gate(reading, [KEY], []), host=host, authorization=f"Bearer {KEY}")[0] == 200
    assert asked(Gate(reading, [], []), "/healthz", host=host)[0] == 200  # tells nothing, and probes ask as they like


def test_names_of_a_server_on_loopback() -> None:
    for told, own in (("127.0.0.1", "LocalHost"), ("My-Machine", "my-machine"), ("::1", "[::1]"), ("::2", "[::2]")):
        for host in (own, f"{own}:8000", "localhost:80", "127.0.0.1:8000", "[::1]:9"):
            assert asked(Gate(reading, [], [], hosts_at(told)), host=host)[0] == 200, (told, host)


def test_origins_as_browsers_write_them() -> None:
    assert check_origins(["https://a.example", "http://b:3000", "https://a.example"]) == (
        "https://a.example",
        "http://b:3000",
    )
    for wrong in ("*", "a.example", "https://a.example/", "https://a.example/x", "https://ä.example", "http://[", ""):
        with pytest.raises(OptionError, match="--cors-origin"):
            check_origins([wrong])


# ----------------------------------------------------------------------- sizes


@pytest.mark.parametrize("sizes", [[10], [5, 5], [1] * 10, [0, 10, 0], []])
def test_bodies_up_to_the_limit_pass(sizes: list[int]) -> None:
    limit = BodyLimit(reading, 10, 99)
    assert asked(limit, method="POST", body=[b"x" * size for size in sizes]) == (200, sum(sizes))
    assert asked(limit, method="POST", body=[b"x" * 10], content_length="10")[0] == 200


def test_a_stated_size_is_refused_unread() -> None:
    assert asked(BodyLimit(reading, 10, 99), method="POST", body=[b"x" * 11], content_length="11") == (413, 0)
    assert asked(BodyLimit(reading, 10, 99), method="POST", body=[b"x"], content_length="9" * 40) == (413, 0)


@pytest.mark.parametrize("headers", [{}, {"content_length": "3"}, {"content_length": "nonsense"}])
def test_what_is_read_counts_whatever_was_stated(headers: dict[str, str]) -> None:
    status, read = asked(BodyLimit(reading, 10, 99), method="POST", body=[b"x" * 4] * 1000, **headers)
    assert status == 413
    assert read == 12  # the chunk that was too much, and no more


def test_an_application_that_lets_the_error_through() -> None:
    async def careless(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass

    assert asked(BodyLimit(careless, 10, 99), method="POST", body=[b"x" * 11])[0] == 413


def test_uploads_have_a_limit_of_their_own() -> None:
    for path in ("/v1/personas", "/v1/personas/"):
        assert asked(BodyLimit(reading, 10, 99), path, method="POST", body=[b"x" * 99])[0] == 200
        assert asked(BodyLimit(reading, 10, 99), path, method="POST", body=[b"x" * 100])[0] == 413
    assert asked(BodyLimit(reading, 10, 99), "/v1/personas", method="PUT", body=[b"x" * 11])[0] == 413


def test_other_kinds_of_connection_pass() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    for layer in (Gate(app, [KEY], []), BodyLimit(app, 1, 1)):
        asyncio.run(layer({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"] * 2
