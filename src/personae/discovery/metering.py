"""What a step costs: seconds, and the most memory it needed on top of what was there before."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


@dataclass
class Cost:
    """seconds: wall clock. peak_bytes: the peak over the start, of the device (CUDA) or of this process's resident
    memory (Linux), other threads included; None elsewhere."""

    seconds: float = 0.0
    peak_bytes: int | None = None


@contextlib.contextmanager
def metered(device: torch.device | str = "cpu") -> Iterator[Cost]:
    """Fills the `Cost` it yields when the block ends, also when it fails."""
    cost, cuda = Cost(), torch.device(device).type == "cuda"
    before = _cuda_start(device) if cuda else _resident_start()
    started = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated(device) if cuda else _status("VmHWM")
        if before is not None and peak is not None:
            cost.peak_bytes = max(peak - before, 0)


def _cuda_start(device: torch.device | str) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _resident_start() -> int | None:
    """Resident bytes now, with the kernel's record of the peak begun anew; None where it keeps none."""
    try:
        (_PROCESS / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> int | None:
    try:
        lines = (_PROCESS / "status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
