"""One line a request, with figures and without a word of what was said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from personae.errors import OptionError
from personae.serving.access_log import AccessLog, note

SECRET = "xyzzy"
CHAT = {"model": "tiny:calm", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 3, "user": SECRET}


@pytest.fixture
def lines(
    make_service: Callable[..., Any], served: Callable[..., Any], persona_file: Callable[..., Any]
) -> Callable[..., list[dict[str, Any]]]:
    """`lines(function)`: what is logged while the function uses a client."""

    def during(use: Callable[[httpx.Client], None], **settings: Any) -> list[dict[str, Any]]:
        written: list[str] = []
        service = make_service([persona_file("calm")], **settings)
        with served(service, sink=written.append) as url, httpx.Client(base_url=url, timeout=60) as client:
            use(client)
        assert not any(SECRET in line for line in written)
        assert all("\n" not in line for line in written)
        return [json.loads(line) for line in written]

    return during


def test_figures_of_an_answer(lines: Callable[..., Any]) -> None:
    ids: list[str] = []

    def use(client: httpx.Client) -> None:
        for stream in (False, True):
            ids.append(client.post("/v1/chat/completions", json=CHAT | {"stream": stream}).headers["x-request-id"])

    whole, streamed = lines(use)
    for line, stream, name in ((whole, False, ids[0]), (streamed, True, ids[1])):
        assert line["id"] == name
        assert line["method"] == "POST"
        assert line["path"] == "/v1/chat/completions"
        assert line["status"] == 200
        assert line["persona"] == "calm"
        assert line["stream"] is stream
        assert line["completion_tokens"] == 3
        assert line["prompt_tokens"] > 5
        assert line["bytes"] > 100
        assert line["seconds"] >= 0
        assert line["client"] == "127.0.0.1"
    assert ids[0] != ids[1]


def test_refusals_have_a_line_too(lines: Callable[..., Any]) -> None:
    def use(client: httpx.Client) -> None:
        client.get("/v1/models")
        client.post(
            "/v1/chat/completions", json=CHAT, headers={"Authorization": "Bearer sk-right-key"}, params={"q": SECRET}
        )
        client.get("/nowhere/" + "x" * 500)

    statuses = [(line["status"], len(line["path"])) for line in lines(use, keys=("sk-right-key",))]
    assert statuses == [(401, 10), (200, 20), (404, 200)]


def run(app: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[tuple[str, int]]]:
    """(lines, what was sent, what was counted) of a bare application under the log."""
    written: list[str] = []
    sent: list[dict[str, Any]] = []
    counted: list[tuple[str, int]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}
    asyncio.run(AccessLog(app, written.append, lambda *what: counted.append(what))(scope, None, send))  # type: ignore[arg-type]
    return [json.loads(line) for line in written], sent, counted


def test_a_defect_is_a_plain_500(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        note(scope, persona="calm")
        raise RuntimeError(SECRET)

    (line,), sent, counted = run(broken)
    assert line["status"] == 500
    assert line["persona"] == "calm"
    assert counted == [("GET", 500)]
    assert SECRET not in sent[1]["body"].decode()
    assert json.loads(sent[1]["body"])["error"]["code"] == "internal_error"
    assert SECRET in caplog.text  # the log of errors says what happened


def test_an_error_of_the_user_that_nobody_caught() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise OptionError("give another number")

    (line,), sent, _ = run(app)
    assert line["status"] == 400
    assert "another number" in sent[1]["body"].decode()


def test_a_defect_in_the_middle_of_a_response_ends_the_connection() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("late")

    with pytest.raises(RuntimeError, match="late"):
        run(broken)


def test_nobody_there_is_499() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        return

    (line,), sent, counted = run(silent)
    assert line["status"] == 499
    assert sent == []
    assert counted == [("GET", 499)]


def test_notes_outside_a_logged_request_are_harmless() -> None:
    note({"type": "http"}, persona="calm")
