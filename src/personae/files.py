"""Files appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".tmp"  # how the name of a file in the making ends


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """A fresh name beside `path` to write to; when the block ends well it takes the place of `path` by one rename.

    The old file survives any failure, Ctrl-C included, and nothing half-written is left. A link stays a link: what
    it points to is replaced. durable: the content is on the disk before the rename, and the rename afterwards, where
    the system can. Errors: those of the block, and `OSError`.
    """
    final = Path(os.path.realpath(path))
    temporary = final.with_name(f".{secrets.token_hex(8)}{final.suffix}{TEMPORARY}")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        os.replace(temporary, final)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        with contextlib.suppress(OSError):  # the file is complete either way
            _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
