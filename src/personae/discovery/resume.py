"""A calibration that was killed goes on where it was: sums and place are kept on disk now and then.

One safetensors file a pass, replaced by one rename, under the hash of everything the sums depend on. The sums
of a whole pass stay until the artefact is made, so a kill in a later pass loses none of the earlier ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from personae.errors import OptionError
from personae.files import replacing


def _interval() -> float:
    """30 seconds, or $PERSONAE_CHECKPOINT_SECONDS. Errors: `OptionError`."""
    given = os.environ.get("PERSONAE_CHECKPOINT_SECONDS", "30")
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise OptionError(f"PERSONAE_CHECKPOINT_SECONDS is {given!r}: it must be a number of seconds, 0 or more.")
    return seconds


SLOW_WRITE = 1.0  # seconds
STALE = 3 * 24 * 3600.0  # seconds after which nobody comes back for a killed calibration


@dataclass
class Checkpoint:
    """Where partial sums of one calibration are kept. `key` is any JSON value the sums depend on."""

    folder: Path
    key: object
    every: float = field(default_factory=_interval)  # seconds between two writes, at least
    last: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.monotonic)
    loaded: int = 0  # batches that an earlier run had kept here
    before: float = 0.0  # seconds that these took there

    @property
    def path(self) -> Path:
        """The file of this calibration."""
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.safetensors"

    def load(self) -> tuple[int, dict[str, torch.Tensor]] | None:
        """(batches done, sums), or None where there is nothing usable."""
        try:
            with safe_open(self.path, framework="pt") as file:
                told = file.metadata() or {}
                done = int(told["done"])
                sums = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        self.loaded, self.before = done, _seconds(told.get("seconds", ""))
        return done, sums

    def due(self) -> bool:
        """True when it is time to write again."""
        return time.monotonic() - self.last >= self.every

    def save(self, done: int, sums: Mapping[str, torch.Tensor]) -> None:
        """Replace the kept sums; a full disk costs only the chance to resume."""
        started = time.monotonic()
        metadata = {"done": str(done), "seconds": f"{self.before + started - self.started:.1f}"}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as temporary:
                save_file({n: t.contiguous() for n, t in sums.items()}, temporary, metadata=metadata)
        except (OSError, SafetensorError):  # safetensors reports a failed write as its own error
            pass
        finally:
            self.last = time.monotonic()
            if self.last - started > SLOW_WRITE:  # a large model: no more than a tenth of the time goes there
                self.every = max(self.every, 10 * (self.last - started))

    def finish(self, done: int, sums: Mapping[str, torch.Tensor]) -> None:
        """The pass is whole: keep its sums if they took longer than the interval, in this run or an earlier one."""
        if done == self.loaded:
            return  # whole when it was taken up: it is kept for the next kill too
        if self.loaded or time.monotonic() - self.started >= self.every:
            self.save(done, sums)
        else:
            self.clear()

    def clear(self) -> None:
        """Nothing to resume."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def _seconds(told: str) -> float:
    """Seconds as they were told; 0, a lower bound, where nothing usable was: sums are worth more than their timing."""
    try:
        seconds = float(told)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds >= 0 else 0.0


def sweep(folder: Path) -> None:
    """Remove what killed calibrations left and nobody came back for (gradients are as large as the model)."""
    for left in folder.glob("*"):
        if left.suffix in {".tmp", ".safetensors"}:
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > STALE:
                    left.unlink()
