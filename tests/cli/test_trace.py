"""`personae trace`: what it names, prints and writes, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from cli_helpers import Cli, Ended, write_contrast
from personae.analysis.results import read_result
from personae.analysis.trace import Tracer
from personae.cli.console import errors_exit_with_2
from personae.cli.trace import trace
from personae.models import load_model

QUESTION, TEXT = "Would you talk about boats?", "Yes, and I would go there at once."


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`run("FILE.persona", "--text", …)`: the command by itself, as the entry point would call it."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(trace)

    def call(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["personae trace", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end, errors_exit_with_2():
            app()
        printed = capsys.readouterr()
        return Ended(int(end.value.code or 0), printed.out, printed.err)

    return call


def test_a_text_is_named_printed_and_written(run: Cli, llama: Path, artefact: Path, here: Path) -> None:
    words = (artefact, "--model", llama, "--text", TEXT, "--question", QUESTION, "--seed", "3")
    ended = run(*words, "--html", "t.html", "-o", "t.json")
    assert ended.code == 0, ended.err
    said = read_result(here / "t.json")
    model, tokenizer = load_model(str(llama))
    expected = Tracer(model, tokenizer, artefact).trace(TEXT, question=QUESTION)
    assert said["kind"] == "trace"
    assert said["result"]["verdict"]["sentence"] == expected.verdict.sentence
    assert said["result"]["log_p"]["quiet"] == pytest.approx(expected.worn[1].tolist(), abs=1e-5)
    assert said["inputs"] == {artefact.name: hashlib.sha256(artefact.read_bytes()).hexdigest()}
    assert said["model"]["dtype"] == "float32"
    assert said["seed"] == 3
    assert shlex.split(said["command"])[:5] == ["personae", "trace", str(artefact), "--text", TEXT]
    assert expected.verdict.sentence in ended.out
    assert f"{TEXT}<|im_end|>" in ended.out
    assert (here / "t.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "written: t.html" in ended.err
    assert "written: t.json" in ended.err
    assert sorted(p.name for p in here.iterdir()) == ["t.html", "t.json"]


def test_json_is_the_record_and_the_command_makes_it_again(run: Cli, llama: Path, artefact: Path, here: Path) -> None:
    (here / "said.txt").write_text(TEXT, encoding="utf-8")
    first = run(artefact, "--model", llama, "--file", "said.txt", "--no-flow", "--only", "quiet", "--json")
    assert first.code == 0, first.err
    assert first.json["format"] == "personae.analysis/1"
    assert first.json["result"]["share"] is None
    assert list(first.json["result"]["log_p"]) == ["quiet"]
    assert first.json["inputs"]["said.txt"] == hashlib.sha256(TEXT.encode()).hexdigest()
    again = run(*shlex.split(first.json["command"])[2:], "--json")
    assert again.json == first.json


def test_a_live_answer_is_traced(run: Cli, llama: Path, artefact: Path) -> None:
    ask = (artefact, "--model", llama, "--ask", QUESTION, "--max-new-tokens", "6", "--json")
    base, loud = run(*ask), run(*ask, "--persona", "loud")
    assert base.code == loud.code == 0, (base.err, loud.err)
    assert base.json["result"]["tokens"] != loud.json["result"]["tokens"]
    assert base.json["settings"]["answered_by"] is None
    assert (loud.json["settings"]["answered_by"], loud.json["settings"]["closed"]) == ("loud", False)
    assert loud.json["result"]["question"] == QUESTION
    assert "<|im_end|>" not in loud.json["result"]["tokens"]
    warm = run(*ask, "--temperature", "1", "--seed", "1")
    assert warm.json["result"]["tokens"] == run(*ask, "--temperature", "1", "--seed", "1").json["result"]["tokens"]


def test_calibration_takes_the_dev_part(run: Cli, llama: Path, artefact: Path, contrast: Path) -> None:
    words = (artefact, "--model", llama, "--text", TEXT, "--question", QUESTION, "--json")
    plain, even = run(*words), run(*words, "--calibrate", contrast, "--items", "3")
    assert even.code == 0, even.err
    assert "reading answers as loud" in even.err
    assert plain.json["settings"]["offsets"] is None
    offsets = even.json["settings"]["offsets"]
    assert offsets == even.json["result"]["verdict"]["offsets"]
    assert offsets["loud"] == pytest.approx(-offsets["quiet"])
    assert even.json["settings"]["calibration_items"] == 3
    assert even.json["result"]["verdict"]["scores"]["loud"] == pytest.approx(
        plain.json["result"]["verdict"]["scores"]["loud"] - offsets["loud"], abs=1e-6
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "say what to trace, in one way"),
        (("--text", "a", "--ask", "b"), "in one way"),
        (("--text", ""), "without tokens"),
        (("--ask", " "), "--ask is empty"),
        (("--ask", "b", "--question", "c"), "--ask is the question already"),
        (("--text", "a b", "--persona", "loud"), "--persona answers a question of --ask"),
        (("--text", "a b", "--system", "s"), "--system stands before a question"),
        (("--text", "a b", "--temperature", "0"), "--temperature goes with --ask"),
        (("--text", "a b", "--max-new-tokens", "9"), "--max-new-tokens goes with --ask"),
        (("--text", "a b", "--items", "9"), "--items goes with --calibrate"),
        (("--ask", "b", "--split-seed", "0"), "--split-seed goes with --calibrate"),
        (("--file", "no.txt"), "--file no.txt cannot be read"),
        (("--file", "latin.txt"), "not UTF-8 text (byte 3)"),
        (("--file", "empty.txt"), "without tokens"),
        (("--text", TEXT, "--only", "lod"), "lod"),
        (("--ask", "b", "--persona", "lod"), "no persona 'lod'"),
        (("--text", TEXT, "--html", "no/t.html"), "--html no/t.html"),
        (("--text", TEXT, "--html", "t", "-o", "t"), "both name t"),
        (("--file", "said.txt", "-o", "said.txt"), "would replace said.txt"),
        (("--text", TEXT, "--calibrate", "other.jsonl"), "the poles of"),
        (("--text", TEXT, "--calibrate", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_end_with_2_and_write_nothing(
    run: Cli, llama: Path, artefact: Path, here: Path, words: tuple[str, ...], says: str
) -> None:
    (here / "latin.txt").write_bytes(b"caf\xe9")
    (here / "empty.txt").write_text("")
    (here / "said.txt").write_text(TEXT)
    write_contrast(here / "other.jsonl", positive="calm", negative="hasty")
    before = {p.name: p.read_bytes() for p in here.iterdir()}
    ended = run(artefact, "--model", llama, *words)
    assert ended.code == 2, ended
    assert ended.out == ""
    assert says in " ".join(ended.err.split())
    assert {p.name: p.read_bytes() for p in here.iterdir()} == before


def test_files_that_are_no_masks_of_this_model(
    run: Cli, llama: Path, other_llama: Path, artefact: Path, here: Path
) -> None:
    assert "no.persona" in run("no.persona", "--model", llama, "--text", TEXT).err
    (here / "broken.persona").write_bytes(b"not a persona")
    assert run("broken.persona", "--model", llama, "--text", TEXT).code == 2
    foreign = run(artefact, "--model", other_llama, "--text", TEXT)
    assert foreign.code == 2
    assert "--allow-other-weights" in foreign.err
    accepted = run(artefact, "--model", other_llama, "--text", TEXT, "--allow-other-weights")
    assert accepted.code == 0
    assert "other weights" in accepted.err


def test_bytes_that_are_no_text(run: Cli, llama: Path, artefact: Path) -> None:
    ended = run(artefact, "--model", llama, "--text", "caf\udce9 and tea", "--json")
    assert ended.code == 0, ended.err
    assert "caf?" in "".join([ended.json["result"]["opening"], *ended.json["result"]["tokens"]])


@pytest.mark.parametrize("option", ["--html", "--output"])
def test_a_full_disk_leaves_the_old_file(
    run: Cli, llama: Path, artefact: Path, here: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    (here / "t.html").write_text("old")
    write: Callable[..., int] = Path.write_text

    def full(path: Path, content: str, **options: object) -> int:
        if path.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return write(path, content, **options)

    monkeypatch.setattr(Path, "write_text", full)
    ended = run(artefact, "--model", llama, "--text", TEXT, option, "t.html")
    assert ended.code == 2
    assert "No space left" in ended.err
    monkeypatch.undo()
    assert [p.name for p in here.iterdir()] == ["t.html"]
    assert (here / "t.html").read_text() == "old"


def test_json_has_no_number_that_json_does_not_know(run: Cli, llama: Path, artefact: Path) -> None:
    ended = run(artefact, "--model", llama, "--text", TEXT, "--json")
    assert json.dumps(ended.json, allow_nan=False)
