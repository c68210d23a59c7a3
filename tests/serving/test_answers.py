"""OpenAI's objects, whole and streamed, byte by byte where it matters; and clients that go away."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from personae.runtime.requests import TokenScore
from personae.serving import Service, answers
from personae.serving.objects import ChatAnswer, CompletionAnswer

HELLO = [{"role": "user", "content": "Hello?"}]
CHAT = {"model": "tiny:calm", "messages": HELLO, "max_tokens": 3}


@pytest.fixture
def service(make_service: Callable[..., Service], persona_file: Callable[..., Path]) -> Service:
    return make_service([persona_file("calm", "tōn + 1%")])


@pytest.fixture
def client(service: Service, served: Callable[..., Any]) -> Any:
    with served(service) as url, httpx.Client(base_url=url, timeout=60) as made:
        yield made


def events(response: httpx.Response) -> list[Any]:
    """The objects of a stream; the last one has to be [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\n")
    lines = response.text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def written(found: list[Any], index: int = 0) -> str:
    """The text of one choice of a stream."""
    choices = [choice for event in found for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices)


# ---------------------------------------------------------------------- objects


def test_a_whole_chat(client: httpx.Client) -> None:
    response = client.post("/v1/chat/completions", json=CHAT | {"n": 2})
    answer = ChatAnswer.model_validate_json(response.text)
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "tiny:calm"
    assert answer.persona == "calm"
    assert response.headers["x-persona"] == "calm"
    assert answer.routing is None
    message = {"role": "assistant", "content": "calm #1 1 2", "refusal": None}
    choices = [{"index": n, "message": message, "logprobs": None, "finish_reason": "length"} for n in (0, 1)]
    assert answer.choices == choices
    usage = answer.usage
    assert usage.completion_tokens == 6
    assert usage.total_tokens == usage.prompt_tokens + 6
    assert usage.prompt_tokens_details == {"cached_tokens": 3}  # the prompt counts once


def test_a_streamed_chat_says_the_same(client: httpx.Client) -> None:
    found = events(client.post("/v1/chat/completions", json=CHAT | {"n": 2, "stream": True}))
    assert {event["object"] for event in found} == {"chat.completion.chunk"}
    assert len({event["id"] for event in found}) == 1
    assert {event["persona"] for event in found} == {"calm"}
    assert not any("usage" in event for event in found)
    for index in (0, 1):
        deltas = [c for event in found for c in event["choices"] if c["index"] == index]
        assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
        assert deltas[-1]["delta"] == {}
        assert [c["finish_reason"] for c in deltas] == [None] * 4 + ["length"]
        assert written(found, index) == "calm #1 1 2"


def test_usage_at_the_end_of_a_stream(client: httpx.Client) -> None:
    asked = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    *before, last = events(client.post("/v1/chat/completions", json=asked))
    assert all(event["usage"] is None for event in before)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    whole = client.post("/v1/chat/completions", json=CHAT).json()["usage"]
    assert last["usage"] == whole


def test_whole_and_streamed_completions(client: httpx.Client) -> None:
    asked = {"model": "tiny", "prompt": ["a", "b"], "n": 2, "max_tokens": 2}
    answer = CompletionAnswer.model_validate_json(client.post("/v1/completions", json=asked).text)
    assert answer.id.startswith("cmpl-")
    choice = {"text": "base 1", "logprobs": None, "finish_reason": "length"}
    assert answer.choices == [{"index": index, **choice} for index in range(4)]
    assert answer.usage.prompt_tokens == 2  # of two prompts, one token each
    assert answer.usage.completion_tokens == 8
    found = events(client.post("/v1/completions", json=asked | {"stream": True}))
    assert {event["object"] for event in found} == {"text_completion"}
    assert [written(found, index) for index in range(4)] == ["base 1"] * 4


def test_log_probabilities_of_a_chat(client: httpx.Client) -> None:
    asked = CHAT | {"logprobs": True, "top_logprobs": 2}
    (choice,) = client.post("/v1/chat/completions", json=asked).json()["choices"]
    content = choice["logprobs"]["content"]
    assert [score["token"] for score in content] == ["calm #1", " 1", " 2"]
    assert content[0]["bytes"] == list(b"calm #1")
    assert [score["logprob"] for score in content] == [-0.5, -9999.0, -0.5]  # JSON has no infinity
    assert [top["logprob"] for top in content[0]["top_logprobs"]] == [-1.0, -2.0]
    found = events(client.post("/v1/chat/completions", json=asked | {"stream": True}))
    streamed = [c["logprobs"]["content"] for event in found for c in event["choices"] if c["logprobs"]]
    assert [score for scores in streamed for score in scores] == content
    (choice,) = client.post("/v1/chat/completions", json=CHAT | {"logprobs": True}).json()["choices"]
    assert [score["top_logprobs"] for score in choice["logprobs"]["content"]] == [[], [], []]


def test_log_probabilities_of_a_completion(client: httpx.Client) -> None:
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 3, "logprobs": 1}
    (choice,) = client.post("/v1/completions", json=asked).json()["choices"]
    expected = {
        "tokens": ["base", " 1", " 2"], "token_logprobs": [-0.5, -9999.0, -0.5], "text_offset": [0, 4, 6],
        "top_logprobs": [{"t0": -1.0, "base": -0.5}, {"t0": -1.0, " 1": -9999.0}, {"t0": -1.0, " 2": -0.5}],
    }  # fmt: skip
    assert choice["logprobs"] == expected
    found = events(client.post("/v1/completions", json=asked | {"stream": True}))
    parts = [c["logprobs"] for event in found for c in event["choices"] if c["logprobs"]]
    assert {name: [value for part in parts for value in part[name]] for name in expected} == expected


def test_a_character_of_several_tokens_can_be_put_together() -> None:
    tokens = [b"a", b"\xf0", b"\x9f\x99", b"\x82", b" b"]
    shown = [answers._chat_score(TokenScore(7, spelled, -1.0, ((7, spelled, -1.0),))) for spelled in tokens]
    assert bytes(byte for each in shown for byte in each["bytes"]).decode() == "a🙂 b"
    assert [each["top_logprobs"][0]["bytes"] for each in shown] == [each["bytes"] for each in shown]
    assert [each["token"] for each in shown] == ["a", "\ufffd", "\ufffd\ufffd", "\ufffd", " b"]
    offset = answers._Offset()
    assert [offset.before(spelled) for spelled in tokens] == [0, 1, 1, 1, 2]  # of the text, in which it is one


def test_the_persona_is_said_in_a_header_that_every_client_can_read(client: httpx.Client) -> None:
    response = client.post(
        "/v1/chat/completions", json=CHAT | {"model": "tiny", "persona": {"calm": 0.3, "tōn + 1%": 0.7}}
    )
    assert response.json()["persona"] == "calm=0.3 + tōn + 1%=0.7"
    assert response.headers["x-persona"] == "calm=0.3 + t%C5%8Dn + 1%25=0.7"


def test_auto_says_what_it_chose(client: httpx.Client) -> None:
    response = client.post(
        "/v1/chat/completions", json=CHAT | {"model": "tiny:auto", "messages": [{"role": "user", "content": "calm"}]}
    )
    assert response.json()["persona"] == response.headers["x-persona"] == "calm"
    assert response.json()["routing"]["score"] > 0
    nothing = client.post("/v1/chat/completions", json=CHAT | {"model": "tiny:auto", "stream": True})
    assert nothing.headers["x-persona"] == "base"
    assert {json.dumps(event["routing"]) for event in events(nothing)} == {'{"score": 0.0, "tied": []}'}


# -------------------------------------------------------------- going wrong


def test_a_failure_in_the_middle(client: httpx.Client, engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    engine.failure = RuntimeError("secret detail")
    response = client.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    streamed = client.post("/v1/chat/completions", json=CHAT | {"stream": True})
    assert streamed.status_code == 200
    last = streamed.text.rstrip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert "secret" not in streamed.text
    assert "secret detail" in caplog.text
    engine.failure = None
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_a_full_queue(client: httpx.Client, engine: Any, eventually: Callable[..., None]) -> None:
    engine.room = 1
    engine.gate.clear()
    for asked in (CHAT | {"n": 2}, CHAT | {"n": 2, "stream": True}):
        response = client.post("/v1/chat/completions", json=asked)
        eventually(lambda: engine.running == 0)
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"] == {
            "message": "the queue is full: try again later.", "type": "rate_limit_error", "param": None,
            "code": "queue_full",
        }  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_vanishes_frees_its_row(
    client: httpx.Client, service: Service, engine: Any, eventually: Callable[..., None], stream: bool
) -> None:
    """The connection is closed without a word while the answer is written."""
    engine.gate.clear()
    body = json.dumps(CHAT | {"stream": stream, "n": 2}).encode()
    with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        eventually(lambda: engine.running == 2)
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert service.registry.uses("calm") == 1
    eventually(lambda: engine.ends == ["cancelled"] * 2)
    eventually(lambda: service.registry.uses("calm") == 0)
    engine.gate.set()
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_a_client_that_vanishes_between_two_tokens(
    client: httpx.Client, engine: Any, eventually: Callable[..., None]
) -> None:
    engine.pause = 0.05
    with client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True, "max_tokens": 400}) as response:
        lines = response.iter_lines()
        while '" 2"' not in next(lines):
            pass
    eventually(lambda: engine.ends == ["cancelled"])


def test_many_clients_that_come_and_go(
    client: httpx.Client, engine: Any, service: Service, eventually: Callable[..., None]
) -> None:
    """Half of them leave in the middle; nobody's answer suffers, and nothing is left behind."""
    wrong: list[object] = []

    def ask(number: int) -> None:
        asked = CHAT | {"stream": True, "max_tokens": 200, "model": "tiny" if number % 3 else "tiny:calm"}
        with client.stream("POST", "/v1/chat/completions", json=asked) as response:
            if number % 2:
                next(response.iter_lines())
                return
            text = "".join(response.iter_text())
            if f'" {199}"' not in text or not text.endswith("[DONE]\n\n"):
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: engine.running == 0)
    eventually(lambda: service.registry.uses("calm") == 0)
    assert not wrong
