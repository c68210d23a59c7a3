"""`personae serve`: mistakes end it with 2 before a model is loaded; else it says where it is, and serves."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from cli_helpers import start
from personae.cli import console, serve
from personae.errors import OptionError


@pytest.fixture
def never_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> Any:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(serve, "load", load)


def refused(*words: object) -> str:
    """What `personae serve` says before it exits with 2."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(serve.serve)
    result = CliRunner().invoke(app, list(map(str, words)))
    if isinstance(result.exception, OptionError):
        with pytest.raises(SystemExit) as end, console.errors_exit_with_2():
            raise result.exception
        assert end.value.code == 2
        return str(result.exception)
    assert result.exit_code == 2, result.output
    return result.output


@pytest.mark.usefixtures("never_loads")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent.persona"], "no file absent.persona"),
        (["."], "no file ."),
        (["--folder", "no/such/folder"], "--folder no/such/folder cannot be made"),
        (["--api-key-file", "absent"], "--api-key-file absent cannot be read"),
        (["--cors-origin", "*"], "--cors-origin *: write scheme and host"),
        (["--name", "a:b"], "'a:b' cannot name the model"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["--port", "70000"], "--port"),
        (["--max-batch", "0"], "--max-batch"),
        (["--max-queue", "0"], "--max-queue"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--max-body-mb", "0"], "--max-body-mb"),
        (["--max-upload-mb", "-1"], "--max-upload-mb"),
        (["--max-personas", "0"], "--max-personas"),
        (["--drain-seconds", "-1"], "--drain-seconds"),
        (["--workers", "3"], "--workers"),
    ],
)
def test_mistakes(here: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert said in refused(*words)


@pytest.mark.usefixtures("never_loads", "here")
def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "Choose another --port" in refused("--port", taken.getsockname()[1])
    monkeypatch.setenv("PERSONAE_API_KEYS", "short")
    assert "API key number 1" in refused()


@pytest.mark.usefixtures("never_loads")
def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else object())
    assert refused() == 'personae serve needs uvicorn: pip install "personae[serve]".'


def test_what_clients_call_the_model(tmp_path: Path) -> None:
    (tmp_path / "My-Model").mkdir()
    (tmp_path / "small.Q4.gguf").write_bytes(b"")
    for given, name in (
        (None, "Default"), ("default", "Default"), ("owner/model", "owner/model"), (f"{tmp_path}/My-Model", "My-Model"),
        (f"{tmp_path}/small.Q4.gguf", "small.Q4"),
    ):  # fmt: skip
        assert serve._model_id(given, "Default") == name


def test_loopback() -> None:
    assert all(serve._is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1"))
    assert not any(serve._is_loopback(host) for host in ("0.0.0.0", "::", "192.0.2.1", "fe80::1%eth0"))


def test_from_the_command_line_to_an_answer(llama: Path, artefact: Path, here: Path) -> None:
    """One process, with files, a folder that has a broken file in it, keys, and the signal that ends it."""
    (here / "shelf").mkdir()
    (here / "shelf" / "broken.persona").write_bytes(b"x")
    (here / "keys").write_text("sk-right-key\n")
    server = start(
        "serve", artefact, "--model", llama, "--folder", "shelf", "--port", 0, "--api-key-file", "keys", "--no-page",
        "--max-tokens", 9, "--name", "mine", "--host", "0.0.0.0", cwd=here,
    )  # fmt: skip
    try:
        lines: list[str] = []
        assert server.stderr is not None
        assert server.stdout is not None
        for line in server.stderr:
            lines.append(line)
            if "Ctrl-C ends it" in line:
                break
        said = "".join(lines)
        assert "serving mine with 2 personas at http://0.0.0.0:" in said
        assert "broken.persona is not served" in said
        assert "everybody" not in said  # there is a key
        port = int(said.rsplit(":", 1)[1].split("/")[0])
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": "Bearer sk-right-key"}, timeout=60
        ) as client:
            asked = {"model": "mine:loud", "messages": [{"role": "user", "content": "Hello?"}], "temperature": 0}
            answer = client.post("/v1/chat/completions", json=asked).json()
            assert answer["usage"]["completion_tokens"] <= 9
            assert answer["persona"] == "loud"
            assert client.post("/v1/chat/completions", json=asked | {"max_tokens": 10}).status_code == 400
            assert client.post("/v1/personas", files={"file": artefact.read_bytes()}).status_code == 409
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
        logged = [json.loads(line) for line in server.stdout]
        assert [line["status"] for line in logged] == [200, 400, 409]
        assert "Traceback" not in server.stderr.read()
    finally:
        server.kill()
        server.communicate()


def test_a_dry_run_says_what_memory_is_needed_and_serves_nothing(cli, contrast, llama, here) -> None:
    made = cli("discover", contrast, "--model", llama, "--method", "wanda", "--sparsity", "0.3", "-o", "made.persona")
    assert made.code == 0, made.err
    ended = cli("serve", "made.persona", "--model", llama, "--dry-run")
    assert ended.code == 0, ended.err
    assert ended.out.count("made.persona") == 2
    assert "all 2 personas" in ended.out
    assert "serving" not in ended.err
