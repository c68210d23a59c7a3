"""Sums on disk: replaced whole or not at all, never trusted when damaged."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from personae.discovery import Checkpoint, resume
from personae.errors import OptionError

SUMS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4).expand(2, 4)}


def test_round_trip(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "new" / "folder", {"any": ["JSON", 1]})
    assert kept.load() is None
    kept.save(3, SUMS)
    kept.save(4, SUMS)
    loaded = Checkpoint(kept.folder, {"any": ["JSON", 1]}).load()
    assert loaded is not None
    assert loaded[0] == 4
    assert all(torch.equal(loaded[1][n], SUMS[n]) for n in SUMS)
    assert [p.name for p in kept.folder.iterdir()] == [kept.path.name]
    kept.clear()
    kept.clear()
    assert kept.load() is None


def test_seconds_of_killed_runs_add_up(tmp_path: Path) -> None:
    first = Checkpoint(tmp_path, "key")
    first.started -= 100
    first.save(3, SUMS)
    second = Checkpoint(tmp_path, "key")
    assert second.before == 0.0
    second.load()
    assert 100 <= second.before < 110
    second.started -= 50
    second.save(4, SUMS)
    third = Checkpoint(tmp_path, "key")
    third.load()
    assert 150 <= third.before < 170


@pytest.mark.parametrize("told", [{}, {"seconds": "soon"}, {"seconds": "nan"}, {"seconds": "inf"}, {"seconds": "-1"}])
def test_sums_that_tell_no_usable_seconds_are_still_taken_up(tmp_path: Path, told: dict[str, str]) -> None:
    kept = Checkpoint(tmp_path, "key")
    save_file(SUMS_CONTIGUOUS, kept.path, metadata={"done": "3", **told})
    assert kept.load() is not None
    assert (kept.loaded, kept.before) == (3, 0.0)


def test_another_key_is_another_file(tmp_path: Path) -> None:
    Checkpoint(tmp_path, ["model", 1]).save(3, SUMS)
    assert Checkpoint(tmp_path, ["model", 2]).load() is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "no place"])
def test_damaged_sums_are_not_used(tmp_path: Path, damage: str) -> None:
    kept = Checkpoint(tmp_path, "key")
    kept.save(3, SUMS)
    whole = kept.path.read_bytes()
    if damage == "no place":
        save_file(SUMS_CONTIGUOUS, kept.path)
    else:
        kept.path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "foreign": b"x" * 400}[damage])
    assert kept.load() is None


SUMS_CONTIGUOUS = {n: t.contiguous() for n, t in SUMS.items()}


def test_it_is_time_after_the_interval(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path, "key", every=0.0).due()
    kept = Checkpoint(tmp_path, "key", every=60.0)
    assert not kept.due()
    kept.last -= 61
    assert kept.due()
    kept.save(1, SUMS)
    assert not kept.due()


def test_slow_writes_become_rarer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: object, **options: object) -> None:
        time.sleep(0.05)

    monkeypatch.setattr(resume, "save_file", slow)
    kept = Checkpoint(tmp_path, "key", every=0.1)
    kept.save(1, SUMS)
    assert kept.every == 0.1
    monkeypatch.setattr(resume, "SLOW_WRITE", 0.01)
    kept.save(1, SUMS)
    assert kept.every >= 0.5


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error")])
def test_a_full_disk_costs_only_the_chance_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    kept = Checkpoint(tmp_path, "key")
    kept.save(3, SUMS)

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(resume, "save_file", fail)
    kept.save(4, SUMS)
    assert [p.name for p in tmp_path.iterdir()] == [kept.path.name]
    loaded = kept.load()
    assert loaded is not None
    assert loaded[0] == 3


def test_ctrl_c_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(resume, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Checkpoint(tmp_path, "key").save(1, SUMS)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    kept = Checkpoint(tmp_path / "file" / "folder", "key")
    kept.save(1, SUMS)
    kept.clear()
    assert kept.load() is None


def test_a_quick_pass_is_not_kept(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path, "key", every=60.0)
    kept.save(1, SUMS)
    kept.finish(2, SUMS)
    assert list(tmp_path.iterdir()) == []
    kept.started -= 61
    kept.finish(2, SUMS)
    assert kept.load() is not None


def test_a_pass_that_was_taken_up_is_kept_for_the_next_kill_too(tmp_path: Path) -> None:
    Checkpoint(tmp_path, "key").save(2, SUMS)
    whole = Checkpoint(tmp_path, "key", every=60.0)
    assert whole.load() is not None
    whole.finish(2, SUMS)  # at once: there was nothing left to do
    part = Checkpoint(tmp_path, "key", every=60.0)
    found = part.load()
    assert found is not None
    assert found[0] == 2
    part.finish(3, SUMS)  # the rest was quick, what was taken up was not
    last = Checkpoint(tmp_path, "key").load()
    assert last is not None
    assert last[0] == 3


def test_what_nobody_came_back_for_is_swept(tmp_path: Path) -> None:
    old, new, foreign = tmp_path / "old.safetensors", tmp_path / "new.tmp", tmp_path / "notes.txt"
    long_ago = time.time() - resume.STALE - 60
    for path in (old, new, foreign, tmp_path / "old.tmp"):
        path.write_bytes(b"x")
        if path != new:
            os.utime(path, (long_ago, long_ago))
    resume.sweep(tmp_path)
    resume.sweep(tmp_path / "absent")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.tmp", "notes.txt"]


@pytest.mark.parametrize("given", ["soon", "-1", "nan"])
def test_a_bad_interval_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("PERSONAE_CHECKPOINT_SECONDS", given)
    with pytest.raises(OptionError, match=f"PERSONAE_CHECKPOINT_SECONDS is '{given}'"):
        Checkpoint(tmp_path, "key")
