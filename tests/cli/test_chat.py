"""`personae chat`: one answer, a conversation, and what a mistyped command does to it."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_helpers import Cli
from personae.runtime import Conversation

SHORT = ("--max-new-tokens", "6")


@pytest.fixture
def answers(cli: Cli, llama: Path, artefact: Path) -> dict[str, str]:
    """What base and either pole say to 'Hello?'."""
    said = {}
    for name in ("base", "loud", "quiet"):
        worn = () if name == "base" else ("-p", name)
        ended = cli("chat", artefact, "--model", llama, *SHORT, *worn, "--message", "Hello?")
        assert ended.code == 0, ended.err
        assert ended.err == ""
        said[name] = ended.out
    assert len(set(said.values())) == 3
    return said


def test_personas_change_within_a_conversation(cli: Cli, llama: Path, artefact: Path, answers: dict[str, str]) -> None:
    turns = ("Hello?", "/persona loud", "/reset", "Hello?", "/reset", "/persona quiet 1", "Hello?", "")
    lines = "\n".join((*turns, "/base", "/reset", "Hello?", "/quit", "Hello?"))
    ended = cli("chat", artefact, "--model", llama, *SHORT, stdin=lines)
    assert ended.code == 0
    assert ended.out == "".join(answers[name] for name in ("base", "loud", "quiet", "base"))
    assert ended.err.startswith("personas: loud, quiet. /persona NAME")


def test_a_blend_and_a_strength_lie_between(cli: Cli, llama: Path, artefact: Path, answers: dict[str, str]) -> None:
    lines = "/blend loud=1 quiet=0\nHello?\n/reset\n/blend loud=0 quiet=1\nHello?\n/reset\n/persona loud 0\nHello?\n"
    ended = cli("chat", artefact, "--model", llama, *SHORT, stdin=lines)
    assert ended.code == 0, ended.err
    assert ended.out == answers["loud"] + answers["quiet"] + answers["base"]


def test_the_history_is_read_again(cli: Cli, llama: Path, artefact: Path, answers: dict[str, str]) -> None:
    twice = cli("chat", artefact, "--model", llama, *SHORT, stdin="Hello?\nHello?\n").out
    assert twice.startswith(answers["base"])
    assert twice != answers["base"] * 2
    assert (
        cli("chat", artefact, "--model", llama, *SHORT, "--system", "Sing.", "--message", "Hello?").out
        != answers["base"]
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/persona lod", "no persona 'lod' here; there are: loud, quiet"),
        ("/persona loud much", "'much' is not a strength"),
        ("/persona loud -1", "-1"),
        ("/persona", "not a command: /persona. Commands: /persona NAME [STRENGTH]"),
        ("/blend loud", "write NAME=STRENGTH"),
        ("/blend loud=0.5 nobody=0.5", "no persona 'nobody' here"),
        ("/blend", "not a command"),
        ('/persona "loud', "quotation mark is not closed"),
        ("/no[/such] thing", "not a command: /no[/such] thing"),
    ],
)
def test_a_mistake_leaves_the_conversation_and_what_is_worn(
    cli: Cli, llama: Path, artefact: Path, answers: dict[str, str], line: str, said: str
) -> None:
    ended = cli("chat", artefact, "--model", llama, *SHORT, "-p", "loud", stdin=f"{line}\nHello?\n/exit\n")
    assert ended.code == 0
    assert said in ended.err
    assert ended.out == answers["loud"]


def test_list_with_and_without_personas(cli: Cli, llama: Path, artefact: Path) -> None:
    assert cli("chat", artefact, "--model", llama, stdin="/list\n").out == "loud, quiet\n"
    ended = cli("chat", "--model", llama, stdin="/list\n")
    assert ended.out == "no personas; start with: personae chat FILE.persona\n"
    assert "personas: none" in ended.err


def test_an_unknown_persona_at_the_start_exits_with_2(cli: Cli, llama: Path, artefact: Path) -> None:
    ended = cli("chat", artefact, "--model", llama, "--persona", "lod", "--message", "Hello?")
    assert ended.code == 2
    assert ended.out == ""
    assert "no persona 'lod' here; there are: loud, quiet" in ended.err


def test_the_same_file_twice_is_refused(cli: Cli, llama: Path, artefact: Path) -> None:
    ended = cli("chat", artefact, artefact, "--model", llama, "--message", "Hello?")
    assert ended.code == 2
    assert "'loud' has been added already" in ended.err


def test_sampling_is_seeded(cli: Cli, llama: Path) -> None:
    words = ("chat", "--model", llama, *SHORT, "--temperature", "1", "--message", "Hello?")
    assert cli(*words, "--seed", "3").out == cli(*words, "--seed", "3").out != cli(*words, "--seed", "4").out
    assert cli(*words, "--temperature", "nan").code == 2


def test_bytes_that_are_no_text(cli: Cli, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("chat", "--model", llama, *SHORT, "--message", "caf\udce9").code == 0

    class Latin(io.StringIO):
        def readline(self, *_: object) -> str:  # type: ignore[override]
            return b"caf\xe9".decode("utf-8")

    monkeypatch.setattr(io, "StringIO", Latin)
    ended = cli("chat", "--model", llama, *SHORT)
    assert ended.code == 2
    assert "not UTF-8" in ended.err


def test_ctrl_c_cuts_an_answer_but_not_the_conversation(cli: Cli, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(self: Conversation, text: str, **options: object) -> Iterator[str]:
        yield text.upper()
        if text == "long":
            raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "stream", stream)
    ended = cli("chat", "--model", llama, stdin="long\nshort\n")
    assert ended.code == 0
    assert ended.out == "LONG …\nSHORT\n"
    once = cli("chat", "--model", llama, "--message", "long")
    assert once.code == 130
    assert "interrupted" in once.err


def test_a_terminal_shows_what_is_worn(
    cli: Cli, llama: Path, artefact: Path, monkeypatch: pytest.MonkeyPatch, answers: dict[str, str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(io, "StringIO", Terminal)
    ended = cli("chat", artefact, "--model", llama, *SHORT, stdin="/blend loud=0.5 quiet=0.25\n/persona loud\nHello?\n")
    assert ended.code == 0
    assert ended.out == "base> loud=0.5 + quiet=0.25> loud> " + answers["loud"] + "loud> "
    assert sys.stdin.isatty()
