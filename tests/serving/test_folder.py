"""Files that come and go whole, and names that are never paths."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from personae.errors import DataError, OptionError
from personae.serving.folder import Folder, read_prompts, signature

# Another process that holds the lock, without the seconds that importing personae takes.
HELD = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1] + "/.lock", os.O_RDWR)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


def put(folder: Folder, content: bytes) -> Path:
    with folder.locked():
        return folder.publish(io.BytesIO(content), lambda path: None)


def names(folder: Folder) -> list[str]:
    return [path.name for path in folder.files()]


def test_an_upload_appears_whole_under_its_hash(shelf: Folder) -> None:
    path = put(shelf, b"abc")
    assert path.name == "ba7816bf8f01cfea414140de5dae2223.persona"
    assert path.read_bytes() == b"abc"
    assert names(shelf) == [path.name]
    assert put(shelf, b"abc") == path
    assert sorted(os.listdir(shelf.path)) == [".incoming", ".lock", path.name]
    assert not list((shelf.path / ".incoming").iterdir())


def test_a_refused_upload_leaves_nothing(shelf: Folder) -> None:
    seen: list[bytes] = []

    def check(path: Path) -> None:
        seen.append(path.read_bytes())
        raise DataError("no")

    with pytest.raises(DataError), shelf.locked():
        shelf.publish(io.BytesIO(b"abc"), check)
    assert seen == [b"abc"]
    assert names(shelf) == []
    assert not list((shelf.path / ".incoming").iterdir())


def test_what_a_killed_server_left_is_gone(shelf: Folder) -> None:
    old = put(shelf, b"abc")
    half = shelf.path / ".incoming" / "0123.persona"
    half.write_bytes(b"ab")
    abandoned = shelf.path / ".89ab.persona.tmp"
    abandoned.write_bytes(b"ab")
    os.utime(abandoned, (time.time() - 7200,) * 2)
    young = shelf.path / ".cdef.persona.tmp"  # another program may be writing it now
    young.write_bytes(b"ab")
    Folder(shelf.path)
    assert not half.exists()
    assert not abandoned.exists()
    assert young.exists()
    assert names(shelf) == [old.name]


def test_only_regular_files_of_the_two_kinds_are_seen(shelf: Folder) -> None:
    (shelf.path / "a.persona").write_bytes(b"x")
    (shelf.path / "a.prompts.jsonl").write_bytes(b"x")
    (shelf.path / ".b.persona").write_bytes(b"x")
    (shelf.path / "notes.txt").write_bytes(b"x")
    (shelf.path / "d.persona").mkdir()
    os.mkfifo(shelf.path / "e.persona")  # opening it would wait for ever
    (shelf.path / "f.persona").symlink_to(shelf.path / "nowhere")
    assert names(shelf) == ["a.persona", "a.prompts.jsonl"]


def test_signatures_tell_a_change(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert signature(path) is None
    path.write_bytes(b"1")
    before = signature(path)
    assert before == signature(path)
    path.write_bytes(b"22")
    assert signature(path) != before
    (tmp_path / "y").write_bytes(b"22")
    before = signature(path)
    os.replace(tmp_path / "y", path)
    assert signature(path) != before


def test_one_writer_at_a_time_over_processes_and_threads(shelf: Folder, eventually: Callable[..., None]) -> None:
    command = [sys.executable, "-c", HELD, str(shelf.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        done = threading.Event()
        thread = threading.Thread(target=lambda: (put(shelf, b"abc"), done.set()))
        thread.start()
        assert not done.wait(0.3)
        other.kill()  # the lock of a process that dies is free
        assert done.wait(60)
        thread.join()


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for wrong in (tmp_path / "file", tmp_path / "no" / "parent"):
        with pytest.raises(OptionError, match="--folder"):
            Folder(wrong)


def test_prompts_of_a_persona(tmp_path: Path) -> None:
    path = tmp_path / "calm.prompts.jsonl"
    path.write_text('"One?"\n\n{"prompt": "Two?", "answer": "x"}\n')
    assert read_prompts(path) == ("One?", "Two?")
    for bad in ("{", "3", '{"text": "x"}', "[" * 5000):
        path.write_text(f'"fine"\n{bad}\n')
        with pytest.raises(DataError, match=r"calm\.prompts\.jsonl, line 2"):
            read_prompts(path)
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(path)
