"""What the subcommands share: where text goes, progress bars, errors as messages, common options."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from personae.errors import ArtefactError, OptionError, PersonaeError
from personae.files import replacing

PIPED_WIDTH = 200  # columns where stdout is no terminal: rich would assume 80 and cut figures off the table

# emoji=False: a model that writes ':heart:' has written just that
out = Console(emoji=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH)  # results
err = Console(stderr=True, emoji=False)  # progress, warnings, errors: `--json` keeps stdout clean

ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Hub id, folder or .gguf file. Default: SmolLM2-135M-Instruct."),
]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
INTERRUPTED = 128 + 2  # exit code of a program that SIGINT ended

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else on stdout.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]


@contextlib.contextmanager
def errors_exit_with_2() -> Iterator[None]:
    """Errors a user can mend are printed without a stack trace."""
    try:
        yield
    except PersonaeError as error:
        tell(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer makes this of Ctrl-C, without a word
            tell("interrupted; nothing half-written is left.")
        raise
    except KeyboardInterrupt:
        tell("interrupted; nothing half-written is left.")
        sys.exit(INTERRUPTED)


def tell(markup: str) -> None:
    """One message on stderr. Not wrapped: paths and commands in it can be found and copied."""
    err.print(markup, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """One progress bar on stderr; a plain line before and after where there is no terminal."""
    if not err.is_terminal:
        tell(f"{title} …")
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
            tell(f"[yellow]warning:[/] {escape(str(message))}")

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield


def load(model: str | None, dtype: str, device: str) -> tuple[Any, Any]:
    """Load a model with a spinner on stderr; its steps (a first use downloads) also where there is no terminal."""
    from personae.models import is_default_model_ready, load_model

    if model in {None, "default"} and not is_default_model_ready():
        with bar("making the default model", 4) as tick:

            def step(line: str) -> None:
                tell(escape(line))
                tick(1)

            made = load_model(model, dtype=dtype, device=device, progress=step)
            tick(1)
            return made
    with err.status(f"loading {escape(model or 'the default model')}") as status:

        def show(line: str) -> None:
            if err.is_terminal:
                status.update(escape(line))
            else:
                tell(escape(line))

        return load_model(model, dtype=dtype, device=device, progress=show)


def typed(context: typer.Context, name: str) -> bool:
    """Whether an option was given on the command line, be it with its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def check_split(context: typer.Context, all_items: bool) -> None:
    """Errors: `OptionError` for --split-seed beside --all-items, which splits nothing."""
    if all_items and typed(context, "split_seed"):
        raise OptionError("--all-items splits nothing, so --split-seed would change nothing: give one of them.")


def command_line() -> str:
    """What was typed, for the files that keep it; paths are as they were given."""
    return shlex.join(["personae", *sys.argv[1:]])


def json_text(value: Any) -> str:
    """JSON that every reader takes: what is not a finite number becomes null."""
    return json.dumps(_finite(value), indent=2, sort_keys=True, default=str, allow_nan=False) + "\n"


def print_json(value: Any) -> None:
    """A result for machines, on stdout."""
    sys.stdout.write(json_text(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically; the old one survives any failure. Errors: `ArtefactError`."""
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArtefactError(
            f"cannot write {path}: {error.strerror or error}. Free some space or name another --output."
        ) from error


def check_writable(path: Path, option: str, *inputs: Path | str | None) -> None:
    """Refuse before hours of work what could not be saved after them, and what would replace an input.

    Errors: `OptionError`.
    """
    parent = path.resolve().parent
    if path.is_dir():
        raise OptionError(f"{option} {path} is a directory; name a file.")
    if not parent.is_dir():
        raise OptionError(f"{option} {path}: there is no directory {parent}; make it, or name another file.")
    if not os.access(parent, os.W_OK):
        raise OptionError(f"{option} {path}: {parent} is not writable; name a file in another directory.")
    for given in inputs:
        if given is not None and path.exists() and os.path.exists(given) and path.samefile(given):
            raise OptionError(f"{option} {path} would replace {given}, which is read here; name another file.")
