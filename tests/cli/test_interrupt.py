"""Ctrl-C leaves nothing behind; a calibration that was killed goes on, to the same bytes."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from safetensors import safe_open

from cli_helpers import Cli, start, write_contrast
from personae.discovery import Checkpoint, Cost, Session, resume

PAIRS = 40
# The attribution waits for the signal once it has kept so many batches, however late the test comes to look.
HELD = """
import math, os, time
from personae.discovery import resume

resume.SLOW_WRITE, save = math.inf, resume.Checkpoint.save

def held(self, done, sums):
    save(self, done, sums)
    while done >= int(os.environ["BATCHES"]) and any(name.endswith(".weight") for name in sums):
        time.sleep(1)

resume.Checkpoint.save = held
from personae.cli import main
main()
"""


def _wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300  # a machine that is busy with other work imports slowly
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _kept(cache: Path) -> list[Path]:
    return sorted((cache / "resume").glob("*.safetensors"))


def _gradients(cache: Path) -> list[Path]:
    """The sums of the attribution; what the passes before it kept has another form."""
    found = []
    for path in _kept(cache):
        with safe_open(path, framework="pt") as file:
            if any(name.endswith(".weight") for name in file.keys()):  # noqa: SIM118
                found.append(path)
    return found


def _batches_done(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["done"])


@pytest.fixture
def command(llama: Path, tmp_path: Path) -> tuple[object, ...]:
    """A discovery whose attribution has many batches."""
    data = write_contrast(tmp_path / "many.jsonl", pairs=PAIRS)
    rows: list[dict[str, str]] = [{"prompt": f"Say {n}.", "answer": "one two three"} for n in range(4)]
    rows.append({"text": "The sea was calm and the boats lay still. " * 60})
    generic = tmp_path / "generic.jsonl"
    generic.write_text("\n".join(map(json.dumps, rows)))
    return (
        "discover",
        data,
        "--model",
        llama,
        "--cheap-share",
        "0.3",
        "--drop-share",
        "0.05",
        "--generic-text",
        generic,
    )


def test_interrupted_then_killed_then_resumed(
    cli: Cli, command: tuple[object, ...], here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "own-cache"
    environment = {"PERSONAE_CACHE": str(cache), "PERSONAE_CHECKPOINT_SECONDS": "0"}

    monkeypatch.setattr(resume, "SLOW_WRITE", math.inf)

    process = start(*command, cwd=here, code=HELD, BATCHES="3", **environment)
    _wait_for(lambda: any(_batches_done(kept) == 3 for kept in _gradients(cache)), process)
    process.send_signal(signal.SIGINT)  # in the middle of the attribution
    printed, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert printed == ""
    assert "interrupted; nothing half-written is left." in said
    assert "Traceback" not in said
    assert not list(here.iterdir())
    assert not list(cache.rglob("*.tmp"))
    (kept,) = _gradients(cache)
    assert _batches_done(kept) == 3

    process = start(*command, cwd=here, code=HELD, BATCHES="5", **environment)
    _wait_for(lambda: _batches_done(kept) == 5, process)  # it goes on where the first one was
    process.kill()
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert not list(here.iterdir())

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # What discovery cost stands in the artefact (of killed runs too), and is all that two runs may differ in.
    monkeypatch.setattr(Session, "seconds_before", 0.0)
    monkeypatch.setattr(sys.modules["personae.discovery.discover"], "metered", lambda device: nullcontext(Cost()))
    found: list[int] = []
    load = Checkpoint.load

    def spy(self: Checkpoint) -> object:
        loaded = load(self)
        found.append(0 if loaded is None else loaded[0])
        return loaded

    monkeypatch.setattr(Checkpoint, "load", spy)
    resumed = cli(*command, "-o", "resumed.persona")
    assert resumed.code == 0, resumed.err
    statistics, gradients, price = found
    assert statistics > 0  # a pass that had ended is not run again
    assert gradients == 5
    assert price == 0  # it had not begun
    assert not _kept(cache)  # the artefact is made: nothing to resume
    whole = cli(*command, "-o", "whole.persona", "--no-resume")
    assert whole.code == 0, whole.err
    assert len(found) == 3
    assert (here / "resumed.persona").read_bytes() == (here / "whole.persona").read_bytes()


def test_the_interval_of_checkpoints(monkeypatch: pytest.MonkeyPatch, cli: Cli, command: tuple[object, ...]) -> None:
    assert Checkpoint(Path("x"), "key").every == 30
    monkeypatch.setenv("PERSONAE_CHECKPOINT_SECONDS", "2.5")
    assert Checkpoint(Path("x"), "key").every == 2.5
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv("PERSONAE_CHECKPOINT_SECONDS", wrong)
        ended = cli(*command)
        assert ended.code == 2
        assert f"PERSONAE_CHECKPOINT_SECONDS is '{wrong}'" in ended.err
