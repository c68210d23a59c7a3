"""The audit of four hazards on the default model, through the Python API: how long, and how low after disabling.

    python -m benchmarks.audit                           # all four: within 25 minutes on 2 cores
    python -m benchmarks.audit --hazard power-seeking --items 12 --groups 0      # a quick look: printed, not written
    python -m benchmarks.audit --public                  # power and wealth from the public sets: audit_public.json
    python -m benchmarks.audit --budget 0.1              # how low within another budget: audit_budget.json

Power-seeking, wealth-seeking, sycophancy and confabulation, the built-in contrasts, with the defaults of
`personae audit` in float32. Nothing is taken from an earlier run unless --parts names a folder for that. Two processes
with one thread each do the hazards (--processes 1: one, with as many threads as torch takes). The minutes are wall
clock from the loaded model to the last figure; the generic text is in them where it was not in the cache before.

audit.disabled_max_alignment: the largest alignment with the hazardous pole on held-out items over the hazards, under
the mask that disables each; of a hazard that needs or finds no mask, that of the base model. Writes
benchmarks/results/audit.json. With --public the hazards are two sets of a thousand questions that others wrote, given
to the audit as a user gives a file. With --budget only the disabling mask is looked for, without controls, attacks by
a fresh discovery, or putting blocks back.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ai_persona import SETS, contrast_of
from benchmarks.common import machine, write
from personae import load_model
from personae.analysis.audit import audit
from personae.analysis.audit_result import Audit
from personae.analysis.audit_settings import HAZARDS, AuditSettings
from personae.analysis.results import Record, plain, said
from personae.cli.console import bar, out
from personae.discovery import generic_text
from personae.evaluation.suites import SuiteContext
from personae.models import find_targets
from personae.personas import Contrast

PUBLIC = {f"{name}-seeking-inclination": name for name in SETS}


ONLY_DISABLE: dict[str, Any] = {"control": False, "again": False, "together": False, "groups": 0}


def sources(names: Sequence[str]) -> dict[str, list[str | Contrast]]:
    """Hazards and further contrasts of an audit: built-in ones by name, the public sets read."""
    return {
        "hazards": [name for name in names if name not in PUBLIC],
        "contrasts": [contrast_of(PUBLIC[name]) for name in names if name in PUBLIC],
    }


def disabled_max_alignment(found: Audit) -> float:
    """The largest held-out alignment over the hazards, disabled where there is a mask."""
    return max((h.base if h.disabled is None else h.disabled).all.value for h in found.hazards)


def figures(found: Audit, minutes: float) -> dict[str, float]:
    """The flat keys of the result file."""
    return {
        "audit.minutes": minutes,
        "audit.disabled_max_alignment": disabled_max_alignment(found),
        "audit.worst_exposure": found.worst,
        "audit.worst_exposure_to_weights": found.worst_to_weights,
    }


def in_processes(number: int, hazards: Sequence[str], parts: Path, options: Mapping[str, Any]) -> None:
    """The steps of every hazard, done by so many processes at once that keep them in one folder.

    Small matrices make poor use of two threads; two processes of one thread each are faster.
    """
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    running = []
    for worker in range(number):
        own = [word for hazard in hazards[worker::number] for word in ("--hazard", hazard)]
        if own:
            command = [sys.executable, "-m", "benchmarks.audit", "--worker", "--parts", str(parts), *own, *words]
            running.append(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}))
    try:
        if any(process.wait() for process in running):
            sys.exit("a worker failed; the steps it had finished are kept.")
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()


def main() -> None:
    """Audit, print the tables, and write the file."""
    from personae.analysis.audit_view import to_rich

    parser = argparse.ArgumentParser(description="Four hazards on the default model.")
    parser.add_argument("--hazard", action="append", help="only this one; nothing is written")
    parser.add_argument("--public", action="store_true", help="the public sets of power and wealth")
    parser.add_argument("--budget", type=float, help="another one, nats a token; only disables")
    parser.add_argument("--items", type=int, help="at most so many held-out items; nothing is written")
    parser.add_argument("--groups", type=int, help="groups of blocks put back; nothing is written")
    parser.add_argument("--parts", help="folder of finished steps: an interrupted run goes on there")
    parser.add_argument("--processes", type=int, default=2, help="hazards are shared out among so many")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    asked = {name: getattr(given, name) for name in ("items", "groups", "budget")}
    asked = {name: value for name, value in asked.items() if value is not None}
    options: dict[str, Any] = {**asked, "together": not given.worker}
    if given.budget is not None:
        options |= {"max_capability_loss": options.pop("budget"), **ONLY_DISABLE}
    hazards = tuple(given.hazard or (PUBLIC if given.public else HAZARDS))
    command = "python -m benchmarks.audit" + " --public" * given.public
    command += "" if given.budget is None else f" --budget {given.budget:g}"
    with contextlib.ExitStack() as stack:
        parts = Path(given.parts or stack.enter_context(tempfile.TemporaryDirectory()))
        model, tokenizer = load_model(dtype="float32")
        resumed = parts.is_dir() and any(parts.iterdir())
        started = time.perf_counter()
        if given.processes > 1 and len(hazards) > 1 and not given.worker:
            answers = AuditSettings().generic_answers
            with bar("generic text", 0) as tick:  # once, before the processes want it
                generic_text(model, tokenizer, find_targets(model), answers=answers, tick=tick)
            in_processes(given.processes, hazards, parts, asked)
        found = audit(model, tokenizer, **sources(hazards), resume=parts, progress=bar, **options)
        minutes = (time.perf_counter() - started) / 60
    if given.worker:
        return
    if resumed:  # what an earlier run had finished counts with the time it took there, one step after the other
        minutes = max(minutes, found.seconds / 60)
    out.print(to_rich(found))
    name = "audit_public" if given.public else "audit" if given.budget is None else "audit_budget"
    flat = {key.replace("audit.", f"{name}."): value for key, value in figures(found, minutes).items()}
    for key, value in flat.items():
        print(f"{key} {value:.3f}")
    if given.hazard or given.items or given.groups is not None or (given.public and given.budget):
        return
    record = Record(
        kind="audit", command=command,
        model=SuiteContext(model, tokenizer, Path()).record(), inputs={h.contrast: h.sha256 for h in found.hazards},
        settings={**plain(AuditSettings(**options)), "processes": given.processes},
    )  # fmt: skip
    more = {"machine": machine(), "seconds_of_steps": found.seconds}
    print(write(name, {**flat, **said(record, found), **more}))  # `personae report` reads it too


if __name__ == "__main__":
    main()
