"""What the subcommands share: where text goes, progress bars, errors as messages, common options."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from personae.errors import PersonaeError

out = Console(soft_wrap=False)  # results
err = Console(stderr=True)  # progress, warnings, errors: `--json` keeps stdout clean

ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Hub id, folder or .gguf file. Default: SmolLM2-135M-Instruct."),
]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else on stdout.")]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]


@contextlib.contextmanager
def errors_exit_with_2() -> Iterator[None]:
    """Errors a user can mend are printed without a stack trace."""
    try:
        yield
    except PersonaeError as error:
        err.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted; nothing half-written is left.")
        sys.exit(130)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@contextlib.contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """One progress bar on stderr; a plain line before and after where there is no terminal."""
    if not err.is_terminal:
        err.print(f"{title} …", highlight=False)
        yield lambda done: None
        return
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=err, transient=False,
    ) as shown:  # fmt: skip
        task = shown.add_task(title, total=total)
        yield lambda done: shown.advance(task, done)


@contextlib.contextmanager
def short_warnings() -> Iterator[None]:
    """Warnings as one line on stderr, each once."""
    seen: set[str] = set()

    def show(message: Any, *args: Any, **kwargs: Any) -> None:
        if str(message) not in seen:
            seen.add(str(message))
            err.print(f"[yellow]warning:[/] {_escape(str(message))}", highlight=False)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield


def load(model: str | None, dtype: str, device: str) -> tuple[Any, Any]:
    """Load a model with a spinner on stderr."""
    from personae.models import load_model

    with err.status(f"loading {model or 'the default model'}") as status:
        return load_model(model, dtype=dtype, device=device, progress=lambda line: status.update(line))


def print_json(value: Any) -> None:
    """A result for machines, on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically; the old one survives any failure."""
    import os
    import tempfile

    from personae.errors import ArtefactError

    temporary: str | None = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            temporary = file.name
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise ArtefactError(
            f"cannot write {path}: {error.strerror}. Free some space or name another --output."
        ) from error


def check_writable(path: Path, option: str) -> None:
    """Refuse before hours of work what could not be saved after them."""
    import os

    from personae.errors import OptionError

    parent = path.expanduser().resolve().parent
    if path.is_dir():
        raise OptionError(f"{option} {path} is a directory; name a file.")
    if not parent.is_dir():
        raise OptionError(f"{option} {path}: there is no directory {parent}.")
    if not os.access(parent, os.W_OK):
        raise OptionError(f"{option} {path}: {parent} is not writable.")
