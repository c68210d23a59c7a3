"""What discovery costs, as ratios within one run.

    python -m benchmarks.discovery_speed

statistics_over_forward: the statistics pass over a plain forward of the same padded batches.
attribution_over_forward: the attribution pass over a plain forward of the same packed questions. Forward means the
blocks without the head on both sides: the head is replaced by a narrow one (64 outputs) for both.
shared_prompt_speedup: scoring two answers a question with the prompt encoded once, against each answer alone, head
included. memory.*: peak resident memory above the process after imports, over the model's bytes, each in a process
of its own that loads the model, runs the pass on 32 pairs, and ends.
Ratios are medians over alternated repetitions, memory over three processes; the spread is in the file.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAIRS = 32
REPEATS = 5
CHILDREN = 3  # weights are mapped from the file: how much of it the kernel maps at one touch differs from run to run


def main() -> None:
    """Time the passes, then measure memory in children."""
    from benchmarks.common import machine, write

    result: dict[str, Any] = {**timings(), "machine": machine(), "pairs": PAIRS, "repeats": REPEATS, "dtype": "float32"}
    for child in ("statistics", "attribution"):
        result[f"memory.{child}"] = runs = [_run(child) for _ in range(CHILDREN)]
        result[f"memory.{child}_over_model"] = statistics.median(run["over_model"] for run in runs)
    result["command"] = "python -m benchmarks.discovery_speed"
    print(json.dumps(result, indent=1))
    write("discovery_speed", result)


def _run(child: str) -> dict[str, float]:
    """What one child reports."""
    command = [sys.executable, "-m", "benchmarks.discovery_speed", child]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    report: dict[str, float] = json.loads(lines[-1])
    return report


def load() -> tuple[Any, Any, Any]:
    """The default model, its targets, and 32 built-in pairs as token ids."""
    from personae import find_targets, load_contrast, load_model
    from personae.discovery import encode_contrast

    model, tokenizer = load_model(dtype="float32")
    contrast = load_contrast("power-seeking").take(PAIRS)
    return model, find_targets(model), encode_contrast(model, tokenizer, contrast)


def timings() -> dict[str, Any]:
    """The three time ratios."""
    from torch import nn

    from personae.discovery.attribution import ATTRIBUTION_BATCH_TOKENS, attribute
    from personae.discovery.statistics import STATISTICS_BATCH_TOKENS, collect_statistics, run_batch
    from personae.models import Question, score_continuations, sequence_batches

    model, targets, calibration = load()
    texts = calibration.positive
    batches = sequence_batches(texts, batch_tokens=STATISTICS_BATCH_TOKENS)
    result = ratio(
        "statistics_over_forward",
        lambda: collect_statistics(model, targets, texts),
        lambda: [run_batch(model, b) for b in batches],
    )
    questions = list(calibration.paired)
    result |= ratio(
        "shared_prompt_speedup",
        lambda: score_continuations(model, questions, share_prompt=False),
        lambda: score_continuations(model, questions),
    )
    wide = model.get_output_embeddings()
    narrow = nn.Linear(wide.in_features, 64, bias=False)
    model.set_output_embeddings(narrow)
    try:
        few = [
            Question(q.prompt, tuple(tuple(t % 64 for t in a) for a in q.answers)) for q in questions
        ]  # the narrow head knows 64 tokens; what the blocks compute does not depend on it
        weighted = [type(w)(q, w.weights) for w, q in zip(calibration.objective(), few, strict=True)]
        result |= ratio(
            "attribution_over_forward",
            lambda: attribute(model, targets, weighted),
            lambda: score_continuations(model, few, batch_tokens=ATTRIBUTION_BATCH_TOKENS),
        )
    finally:
        model.set_output_embeddings(wide)
    return result


def ratio(name: str, above: Callable[[], Any], below: Callable[[], Any]) -> dict[str, Any]:
    """Median of pairwise ratios of two calls, alternated after one warm-up of each."""
    above(), below()
    ratios, seconds = [], []
    for _ in range(REPEATS):
        first = _time(above)
        second = _time(below)
        ratios.append(first / second)
        seconds.append((first, second))
    return {name: statistics.median(ratios), f"{name}.all": ratios, f"{name}.seconds": seconds}


def _time(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def child(what: str) -> None:
    """Peak memory of one pass, in a process of its own."""
    from transformers.models.llama import modeling_llama  # noqa: F401 - imported before the base line is read

    from personae.discovery.attribution import attribute
    from personae.discovery.statistics import collect_statistics

    before = _peak()
    model, targets, calibration = load()
    loaded = _peak()
    if what == "statistics":
        collect_statistics(model, targets, calibration.positive)
    else:
        attribute(model, targets, calibration.objective())
    peak = _peak() - before
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    report = {"over_model": peak / size, "loading_over_model": (loaded - before) / size, "model_bytes": size}
    print(json.dumps(report))


def _peak() -> int:
    # Not getrusage: a child inherits its parent's ru_maxrss through exec.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 1024


if __name__ == "__main__":
    child(sys.argv[1]) if len(sys.argv) > 1 else main()
