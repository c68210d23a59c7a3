"""A tiny model in a folder, small data, and `personae` run in this process or in one of its own."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import Cli, Ended, write_contrast
from personae.cli import main


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
def artefact(llama: Path, contrast: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.persona` file with both poles for the tiny Llama."""
    path = tmp_path_factory.mktemp("artefacts") / "loud-quiet.persona"
    words = ["discover", contrast, "--model", llama, "-o", path, "--cheap-share", "0.3", "--drop-share", "0.05"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONAE_CACHE", str(cache))
        patch.setattr(sys, "argv", ["personae", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 0
    return path
