"""Progress of long steps, without a display: whoever has a terminal passes something that draws bars."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Tick = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Tick]]  # (title, total) -> tick(done)


def silent(title: str, total: int) -> AbstractContextManager[Tick]:
    """Shows nothing."""
    return nullcontext(lambda done: None)
