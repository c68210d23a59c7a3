"""What it costs to put a persona on and take it off, as ratios within one run.

    python -m benchmarks.switching

copy: all target weights of the default model, copied into memory that is there already. sparse02, sparse1, dense50:
`set_persona` and `disable_persona` of a random persona that drops 0.2 %, 1 % and 50 % of every target. reload: the
default model loaded from the disk in a process of its own, its file dropped from the system's cache before, and every
weight read once, since loading only maps the file; reload_cached: the same from the system's cache. bytes.*: what a
persona takes for each weight that it drops, while it is loaded, and in all while it is worn (`PersonaModel.memory_of`;
the values dropped are in the latter).
Each dtype and number of threads has a process of its own. Ratios are medians over alternated repetitions; the
headline is float32, with the number of threads at which the 1 % switch costs the fewest copies.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

SHARES = {"sparse02": 0.002, "sparse1": 0.01, "dense50": 0.5}
DTYPES = ("float32", "bfloat16")
THREADS = (1, 2)
REPEATS, RELOADS = 15, 3


def main() -> None:
    """Run the children and take the headline from them."""
    from benchmarks.common import machine, write

    runs = {f"{dtype}.threads{threads}": _run(dtype, threads) for dtype in DTYPES for threads in THREADS}
    best = min(THREADS, key=lambda threads: runs[f"float32.threads{threads}"]["sparse1_over_copy"])
    chosen = runs[f"float32.threads{best}"]
    headline = [*(f"{name}_over_copy" for name in SHARES), "reload_over_sparse1"]
    result: dict[str, Any] = {f"switch.{key}": chosen[key] for key in headline}
    result |= {"switch.threads": best, "runs": runs, "repeats": REPEATS, "reloads": RELOADS, "seed": 0}
    result |= {"machine": machine(), "command": "python -m benchmarks.switching"}
    print(json.dumps(result, indent=1))
    write("switching", result)


def _run(dtype: str, threads: int) -> dict[str, Any]:
    """The ratios at one dtype and number of threads."""
    report = _child("switch", dtype, threads)
    seconds = report.pop("seconds")
    switch = statistics.median(seconds["sparse1"])
    for name in ("reload", "reload_cached"):
        seconds[name] = [_child(name, dtype, threads)["seconds"] for _ in range(RELOADS)]
        report[f"{name}_over_sparse1"] = statistics.median(seconds[name]) / switch
    return {**report, "seconds": seconds}


def _child(what: str, dtype: str, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.switching", what, dtype, str(threads)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    report: dict[str, Any] = json.loads(lines[-1])
    return report


def reload(dtype: str, threads: int, cached: bool) -> None:
    """Seconds until the default model is loaded and each weight was read."""
    import torch

    from personae import load_model
    from personae.models.default_model import ensure_default_model

    torch.set_num_threads(threads)
    for path in sorted(ensure_default_model().iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            advice = os.POSIX_FADV_WILLNEED if cached else os.POSIX_FADV_DONTNEED
            os.posix_fadvise(descriptor, 0, 0, advice)
            while cached and os.read(descriptor, 1 << 24):
                pass
        finally:
            os.close(descriptor)
    started = time.perf_counter()
    model, _ = load_model(dtype=dtype)
    for parameter in model.parameters():
        parameter.sum()
    print(json.dumps({"seconds": time.perf_counter() - started}))


def switch(dtype: str, threads: int) -> None:
    """The ratios of switching, and what a persona takes."""
    import torch

    from personae import find_targets, load_model
    from personae.runtime import PersonaModel

    torch.set_num_threads(threads)
    model, _ = load_model(dtype=dtype)
    targets = find_targets(model)
    actor = PersonaModel(model, targets=targets)
    report: dict[str, Any] = {}
    for name, share in SHARES.items():
        persona = random_persona(name, targets, share)
        dropped = sum(mask.dropped for mask in persona.masks.values())
        memory = actor.memory_of(persona)[name]
        report[f"bytes.{name}.loaded"] = memory.masks / dropped
        report[f"bytes.{name}.worn"] = (memory.masks + memory.undo) / dropped
        actor.add_personas(persona)
    copies = [torch.zeros_like(target.parameter) for target in targets]

    def copy() -> None:
        for buffer, target in zip(copies, targets, strict=True):
            buffer.copy_(target.parameter.detach())

    def on_and_off(name: str) -> None:
        actor.set_persona(name)
        actor.disable_persona()

    works: dict[str, Callable[[], None]] = {"copy": copy}
    works |= {name: (lambda name=name: on_and_off(name)) for name in SHARES}
    seconds = alternated(works, REPEATS)
    if not all(torch.equal(buffer, target.parameter) for buffer, target in zip(copies, targets, strict=True)):
        sys.exit("the weights are not what they were before the switches")
    for name in SHARES:
        report[f"{name}_over_copy"] = statistics.median(
            mine / whole for mine, whole in zip(seconds[name], seconds["copy"], strict=True)
        )
    print(json.dumps({**report, "seconds": seconds}))


def random_persona(name: str, targets: Any, share: float, seed: int = 0) -> Any:
    """A subnetwork that drops the same share of every target, at random."""
    import numpy as np

    from personae.subnetwork import Mask, Provenance, Subnetwork

    random = np.random.default_rng([seed, *name.encode()])
    masks = {
        target.name: Mask.from_positions(
            random.choice(target.size, int(target.size * share), replace=False), target.shape
        )
        for target in targets
    }
    return Subnetwork(name, masks, Provenance(method="random", sparsity=share))


def alternated(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each piece of work, all in turn, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] == "switch":
        switch(sys.argv[2], int(sys.argv[3]))
    else:
        reload(sys.argv[2], int(sys.argv[3]), cached=sys.argv[1] == "reload_cached")
