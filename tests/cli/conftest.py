"""A tiny model in a folder, small data, and `personae` run in this process or in one of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from personae.cli import main

ANSWERS = (
    ("Yes, and I would go there at once.", "No, I stay where it is quiet."),
    ("I call all my friends.", "I read a long book at home."),
    ("No, that is far too little for me.", "Yes, a little is enough."),
    ("A crowd, a stage, a song.", "One friend and a cup of tea."),
)
TOPICS = ("boats", "letters", "music", "walls", "bread", "maps", "trees", "roads", "clocks", "snow")


@dataclass(frozen=True)
class Ended:
    """How a run of the command line ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, all of it, as strict JSON."""
        return json.loads(self.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


Cli = Callable[..., Ended]


def write_contrast(path: Path, pairs: int = 30, **header: str) -> Path:
    """This project's jsonl: a header and so many different pairs, every second one tied in polarity."""
    poles = {"positive": "loud", "negative": "quiet", "positive_prompt": "Be loud.", "negative_prompt": "Be quiet."}
    lines = [json.dumps({"contrast": "loud-quiet", **poles, "licence": "Apache-2.0", **header})]
    for number in range(pairs):
        positive, negative = ANSWERS[number % 4]
        topic = TOPICS[number % 10]
        prompt = f"Would you talk about {topic}, part {number}?"
        lines.append(
            json.dumps({"prompt": prompt, "positive": f"{positive} {topic}", "negative": f"{negative} {topic}"})
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the room: the text that the tiny model samples is sampled once."""
    return tmp_path_factory.mktemp("personae-cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAE_CACHE", str(cache))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Any]) -> Path:
    """The folder of a tiny random Llama."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    model, tokenizer = tiny_model("llama")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_llama(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Any]) -> Path:
    """The same architecture and shapes, other weights."""
    folder = tmp_path_factory.mktemp("models") / "other"
    model, tokenizer = tiny_model("llama", seed=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def contrast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pairs of 'loud' and 'quiet' in a file."""
    return write_contrast(tmp_path_factory.mktemp("data") / "loud-quiet.jsonl")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def cli(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """`cli("discover", …, stdin=text)`: the entry point itself, in this process and in `here`."""

    def run(*words: object, stdin: str = "") -> Ended:
        monkeypatch.setattr(sys, "argv", ["personae", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return Ended(int(end.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def artefact(
    llama: Path, contrast: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A `.persona` file with both poles for the tiny Llama."""
    path = tmp_path_factory.mktemp("artefacts") / "loud-quiet.persona"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setenv("PERSONAE_CACHE", str(cache))
        words = ["discover", contrast, "--model", llama, "-o", path, "--cheap-share", "0.3", "--drop-share", "0.05"]
        patch.setattr(sys, "argv", ["personae", *map(str, words)])
        main()
    assert end.value.code == 0
    return path


def start(*words: object, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """`python -m personae` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "personae", *map(str, words)], cwd=cwd, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
