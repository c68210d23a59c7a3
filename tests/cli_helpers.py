"""What the tests of this room share besides fixtures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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


def start(*words: object, cwd: Path, code: str | None = None, **environment: str) -> subprocess.Popen[str]:
    """`python -m personae` in a process of its own, which hears Ctrl-C even where a shell runs the tests behind '&'.

    code: Python that runs in its place and calls `personae.cli.main` itself.
    """
    program = ("-m", "personae") if code is None else ("-c", code)
    return subprocess.Popen(
        [sys.executable, *program, *map(str, words)], cwd=cwd, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
