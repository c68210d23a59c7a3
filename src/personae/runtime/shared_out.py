"""Work on weights that do not overlap, shared out over as many threads as torch itself uses.

numpy lets other threads run while it copies, and each core waits for its own memory. What is gained is limited by the
interpreter's lock, which is passed on at every call: docs/experiments.md has the figures.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

__all__ = ["shared_out"]

Piece = TypeVar("Piece")

_WORTH = 1 << 19  # weights a thread: with fewer, waiting for the interpreter costs more than is gained (measured)


def shared_out(work: Callable[[Piece], None], pieces: Sequence[Piece], weights: int) -> None:
    """Call `work` once on each piece, in any order; at once in as many threads as `torch.get_num_threads()`.

    weights: how many all pieces together touch. Nothing runs any more when this returns or raises, Ctrl-C included; if
    `work` raises, no further piece is begun and the first error is raised here.
    """
    waiting = iter(pieces)
    errors: list[BaseException] = []

    def until_none_is_left() -> None:
        for piece in waiting:  # one iterator for all: no piece is given out twice
            if errors:
                return
            try:
                work(piece)
            except BaseException as error:  # to be raised in the caller's thread
                errors.append(error)

    number = min(torch.get_num_threads(), len(pieces), weights // _WORTH)
    others = [threading.Thread(target=until_none_is_left, daemon=True) for _ in range(number - 1)]
    try:
        for thread in others:
            thread.start()
        until_none_is_left()
    except BaseException as error:  # an interruption between two pieces
        errors.append(error)
    _end(others, errors)
    if errors:
        raise errors[0]


def _end(threads: Sequence[threading.Thread], errors: list[BaseException]) -> None:
    """Wait until all have ended; an interruption is kept for later, since they still write."""
    for thread in threads:
        while thread.ident is not None and thread.is_alive():
            try:
                thread.join()
            except KeyboardInterrupt as error:
                errors.append(error)
