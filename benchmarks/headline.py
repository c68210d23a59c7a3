"""What the benchmarks beside the headline's masks share: the masks with items and texts, and result files taken up.

A file's `frame` is all that its conditions rest on; an earlier run's conditions are kept where it is the same.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.ai_persona import BUDGET, SETS, STEPS, answers_of, contrast_of, headline, prepared
from benchmarks.common import RESULTS, machine, texts, write
from personae import load_model
from personae.cli.console import bar
from personae.discovery import Session, open_session, versions
from personae.evaluation import CapabilityText
from personae.models import fingerprint
from personae.personas import Contrast, Split, split
from personae.subnetwork import Artefact

SEED = 0  # of splits, resamples and draws: what every function of the package takes where it is told no other


@dataclass(frozen=True)
class Opened:
    """One set with the headline's masks. frame: what every condition on it rests on, beside its text."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    contrast: Contrast
    parts: Split[Contrast]
    final: CapabilityText
    artefact: Artefact
    session: Session
    frame: Mapping[str, Any]


def opened(name: str, dtype: str, steps: int | None = None) -> Opened:
    """Load the model, and find the masks first where they are absent; steps: those of so many short steps."""
    model, tokenizer = load_model(dtype=dtype)
    contrast = prepared(contrast_of(name))
    parts = split(contrast)
    artefact = headline(name, model, tokenizer, steps)
    generic, final = texts(tokenizer, answers=answers_of(artefact))
    session = open_session(model, tokenizer, parts.calibration, generic=generic, progress=bar)
    frame = {
        "set": name, "dtype": dtype, "budget": BUDGET, "fingerprint": fingerprint(session.targets),
        "versions": versions(), "calibration_sha256": parts.calibration.sha256, "test_sha256": parts.test.sha256,
    }  # fmt: skip
    return Opened(model, tokenizer, contrast, parts, final, artefact, session, frame)


def taken_up(stem: str, frame: Mapping[str, Any], key: str) -> Any:
    """What an earlier run kept under `key` of a result file on the same frame; None where there is nothing."""
    path = RESULTS / f"{stem}.json"
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return kept.get(key) if all(kept.get(k) == v for k, v in frame.items()) else None


def write_framed(benchmark: str, name: str, frame: Mapping[str, Any], **found: Any) -> Path:
    """Replace results/<benchmark>_<set>.json by what was found, its frame, the machine and the command."""
    command = f"python -m benchmarks.{benchmark} {shlex.join(sys.argv[1:])}"
    return write(f"{benchmark}_{name}", {**frame, **found, "seed": SEED, "machine": machine(), "command": command})


def run_sets(run: Callable[..., None], description: str, conditions: Sequence[str], *, in_steps: bool = False) -> None:
    """The command line: [SETS… | all] [--only CONDITIONS…] [--dtype DTYPE]; one set after the other.

    run: called with set, dtype and conditions. in_steps: [--steps] too, which calls it with `steps=STEPS`.
    """
    parser = argparse.ArgumentParser(description=description)
    # 'all' and not SETS: argparse looks for the default among the choices, where it would not find a tuple of them.
    parser.add_argument("sets", nargs="*", default="all", choices=(*SETS, "all"))
    parser.add_argument("--only", nargs="+", default=tuple(conditions), choices=tuple(conditions))
    if in_steps:
        parser.add_argument("--steps", action="store_const", const=STEPS, help="the masks found in short steps")
    parser.add_argument("--dtype", help="default: float32, with --steps bfloat16")
    options = vars(parser.parse_args())
    steps = {"steps": options["steps"]} if options.get("steps") else {}
    dtype = options["dtype"] or ("bfloat16" if steps else "float32")
    for name in SETS if "all" in options["sets"] else options["sets"]:
        run(name, dtype, options["only"], **steps)
