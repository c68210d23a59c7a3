"""A server as a process: the address, signals, the last answers, and a death in the middle of an upload."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from personae.errors import OptionError
from personae.serving import Folder
from personae.serving.run import bound, url_of

pytestmark = pytest.mark.all  # each starts whole processes

LONG = {"model": "tiny:calm", "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 400, "stream": True}
SLOW = """
import time
from personae.runtime import cohort
old = cohort.forward
cohort.forward = lambda *arguments: (time.sleep(0.01), old(*arguments))[1]
"""


# --------------------------------------------------------------------- address


def test_a_socket_that_is_bound_refuses_until_somebody_listens() -> None:
    with bound("127.0.0.1", 0) as made:
        host, port = made.getsockname()
        assert url_of(made) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), 5)
        made.listen()
        socket.create_connection((host, port), 5).close()


def test_addresses_that_cannot_be_had() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OptionError, match="Choose another --port"):
        bound("127.0.0.1", taken.getsockname()[1])
    for host in ("no.such.host.invalid", "192.0.2.1"):
        with pytest.raises(OptionError, match=r"--host|cannot serve at"):
            bound(host, 0)


@pytest.mark.parametrize(("words", "status"), [((), 403), (("--host", "localhost"), 403), (("--host", "0.0.0.0"), 200)])
def test_loopback_without_keys_answers_to_its_own_names(
    start: Callable[..., Any], words: tuple[str, ...], status: int
) -> None:
    server = start(*words)
    url = server.url.replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{url}/v1/models", timeout=60).status_code == 200
    assert httpx.get(f"{url}/v1/models", headers={"Host": "evil.example"}, timeout=60).status_code == status


def test_brackets_around_ipv6() -> None:
    try:
        made = bound("::1", 0)
    except OptionError:
        pytest.skip("this machine has no IPv6")
    with made:
        assert url_of(made).startswith("http://[::1]:")


# --------------------------------------------------------------------- signals


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_running_answer_is_finished(start: Callable[..., Any], persona_file: Callable[..., Path], sent: int) -> None:
    server = start(persona_file("calm"), "--drain-seconds", 1000, fault=SLOW)
    assert httpx.get(f"{server.url}/v1/models", timeout=60).status_code == 200
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=LONG, timeout=60) as response:
        lines = response.iter_lines()
        while not next(lines):
            pass
        server.process.send_signal(sent)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in {"length", "stop"}
    assert server.process.wait(60) == 0
    assert not any("Traceback" in line for line in server.said), server.said
    logged = [json.loads(line) for line in server.process.stdout]  # nothing but JSON lines
    assert [line["path"] for line in logged] == ["/v1/models", "/v1/chat/completions"]
    assert logged[1]["completion_tokens"] > 0
    assert "Hello?" not in str(logged)


def test_what_takes_too_long_is_cut(start: Callable[..., Any], persona_file: Callable[..., Path]) -> None:
    server = start(persona_file("calm"), "--drain-seconds", 0, fault=SLOW.replace("0.01", "2"))
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=LONG, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    assert server.process.wait(60) == 0


# --------------------------------------------------------------------- kill -9


HANG = """
import os, time
real = os.replace
def hang(*paths):
    if str(paths[1]).endswith(".persona"):
        open(os.environ["REACHED"], "w").close()
        time.sleep(600)
    real(*paths)
os.replace = hang
"""


def test_a_server_killed_in_the_middle_of_an_upload(
    start: Callable[..., Any], shelf: Folder, persona_file: Callable[..., Path], tmp_path: Path,
    eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Old personas are intact, the half upload is gone: bytes of one arrive, another is to be renamed."""
    old = shelf.path / "old.persona"
    persona_file("calm").rename(old)
    before = old.read_bytes()
    content = persona_file("loud", share=0.5).read_bytes()
    monkeypatch.setenv("REACHED", str(tmp_path / "reached"))

    server = start("--folder", shelf.path, fault=HANG)
    host, port = server.url.removeprefix("http://").split(":")
    head = b'--y\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'

    def send_all() -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(f"{server.url}/v1/personas", files={"file": content}, timeout=60)

    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/personas HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=y\r\n"
            b"Content-Length: %d\r\n\r\n%s%s" % (len(content) + 100, head, content[: len(content) // 2])
        )
        sending = threading.Thread(target=send_all)
        sending.start()
        eventually((tmp_path / "reached").exists)
        server.process.kill()
        server.process.wait()
        sending.join()
    assert list(shelf.path.rglob("*.persona.tmp")) or list((shelf.path / ".incoming").iterdir())  # there is a half one
    assert [path.name for path in shelf.files()] == ["old.persona"]

    server = start("--folder", shelf.path)
    ids = [persona["id"] for persona in httpx.get(f"{server.url}/v1/personas", timeout=60).json()["data"]]
    assert ids == ["calm"]
    assert old.read_bytes() == before
    assert list((shelf.path / ".incoming").iterdir()) == []
    assert httpx.post(f"{server.url}/v1/personas", files={"file": content}, timeout=60).status_code == 201
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", json=LONG | {"model": "tiny:loud", "stream": False}, timeout=60
    )
    assert answer.json()["persona"] == "loud"
