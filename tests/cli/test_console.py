"""What the subcommands share: JSON, files, bars, messages, and the help of every command."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

import personae.models
from personae.cli import app, console
from personae.errors import ArtefactError, OptionError

COMMANDS = ("demo", "doctor", "list", "discover", "eval", "chat", "serve")

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
nested = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def _without_infinities(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_infinities(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_infinities(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@given(nested)
def test_json_text_is_strict_json_of_the_same_value(value: object) -> None:
    assert json.loads(console.json_text(value), parse_constant=_refuse) == _without_infinities(value)


def test_write_text_replaces_the_file_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    console.write_text(tmp_path / "link.json", "new é")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text(encoding="utf-8") == "new é"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.json", "real.json"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_write_text_leaves_the_old_file_on_any_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def full(*_: object) -> None:
        raise failure

    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises((ArtefactError, KeyboardInterrupt)) as caught:
        console.write_text(tmp_path / "a.json", "new")
    if isinstance(failure, OSError):
        assert "No space left on device. Free some space" in str(caught.value)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.json": "old"}


def test_check_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("x")
    console.check_writable(tmp_path / "new.persona", "--output", data, None, "introvert-extravert")
    for wrong, said in (
        (tmp_path, "is a directory"),
        (data / "new.persona", "there is no directory"),
        (tmp_path / "no" / "new.persona", "there is no directory"),
        (data, "would replace"),
    ):
        with pytest.raises(OptionError, match=said):
            console.check_writable(wrong, "--output", data)
    monkeypatch.setattr(os, "access", lambda *_: False)  # the super-user may write everywhere
    with pytest.raises(OptionError, match="is not writable"):
        console.check_writable(tmp_path / "new.persona", "--output")


def test_a_bar_where_there_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=screen, force_terminal=True, width=80))
    with console.bar("counting", 3) as tick:
        tick(2)
        tick(1)
    assert "counting" in screen.getvalue()
    assert "3/3" in screen.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_steps_of_loading_are_shown_with_and_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=screen, force_terminal=terminal, width=80))

    def load_model(name: str, *, progress: object, **_: object) -> tuple[str, str]:
        progress("fetching [92 MB]")  # type: ignore[operator]
        return "model", "tokenizer"

    monkeypatch.setattr(personae.models, "load_model", load_model)
    assert console.load("[x]", "auto", "auto") == ("model", "tokenizer")
    assert ("fetching [92 MB]" in screen.getvalue()) or terminal


def test_a_warning_is_one_line_and_comes_once(capsys: pytest.CaptureFixture[str]) -> None:
    with console.short_warnings():
        for _ in range(2):
            warnings.warn("cut [from] the left", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    assert capsys.readouterr().err == "warning: cut [from] the left\nwarning: another\n"


@pytest.mark.parametrize(("end", "code"), [(KeyboardInterrupt(), 130), (SystemExit(130), 130), (OptionError("no"), 2)])
def test_how_the_program_ends(end: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, console.errors_exit_with_2():
        raise end
    assert caught.value.code == code
    assert capsys.readouterr().err == ("error: no\n" if code == 2 else "interrupted; nothing half-written is left.\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "-h"], env={"COLUMNS": "300"})
    assert shown.exit_code == 0
    assert f"{command} [OPTIONS]" in shown.output


def test_help_tells_the_defaults() -> None:
    text = " ".join(CliRunner().invoke(app, ["discover", "--help"], env={"COLUMNS": "300"}).output.split())
    for default in (
        "Default: 0.05.",
        "[default: directed]",
        "[default: row]",
        "[default: mean_abs]",
        "[default: relu]",
        "[default: answer]",
        "[default: gain-per-price]",
        "Default: SmolLM2-135M-Instruct.",
        "Default: CONTRAST.persona here.",
        "[default: resume]",
        "[default: auto]",
    ):
        assert default in text
    text = " ".join(CliRunner().invoke(app, ["eval", "--help"], env={"COLUMNS": "300"}).output.split())
    assert "[default: 5]" in text
    assert "[default: 2000]" in text
    assert "(default: the first four)" in text


def test_help_without_a_command_lists_them_all() -> None:
    shown = CliRunner().invoke(app, [])
    assert all(f" {command} " in shown.output for command in COMMANDS)
