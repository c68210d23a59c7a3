"""`personae serve`: OpenAI's API over one resident model with many personas."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from personae.cli.console import DeviceOption, DtypeOption, ModelOption, load, out, short_warnings, tell
from personae.errors import OptionError

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")  # of the extra `serve`


def serve(
    files: Annotated[list[Path] | None, typer.Argument(help=".persona files to serve; they cannot be deleted through the API.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Folder of more .persona files; uploads go there. Several servers may share it.")] = None,
    model: ModelOption = None,
    name: Annotated[str | None, typer.Option(help="What clients call the base model. Default: from --model.")] = None,
    allow_other_weights: Annotated[bool, typer.Option(help="Same names and shapes, other weights.")] = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(help="File of API keys, one a line; also $PERSONAE_API_KEYS, separated by commas.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers written at the same time.")] = 32,
    max_queue: Annotated[int, typer.Option(min=1, help="Answers waiting; more are refused with 429.")] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 1024,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Largest request, in megabytes.")] = 2,
    max_upload_mb: Annotated[float, typer.Option(min=0.001, help="Largest upload, in megabytes.")] = 256,
    max_personas: Annotated[int, typer.Option(min=1, help="Personas in memory; those used least recently make room.")] = 64,
    cors_origin: Annotated[list[str] | None, typer.Option(help="Web pages of this origin may ask; may be repeated.")] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="The web page at /.")] = True,
    access_log: Annotated[bool, typer.Option("--access-log/--no-access-log", help="One JSON line a request on stdout.")] = True,
    drain_seconds: Annotated[int, typer.Option(min=0, help="At the end, wait so long for running answers.")] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what memory model and personas would take, and serve nothing.")] = False,
) -> None:  # fmt: skip
    """Serve personas through OpenAI's API: every persona is a model, MODEL:PERSONA."""
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        raise OptionError(f'personae serve needs {", ".join(missing)}: pip install "personae[serve]".')
    from personae.models import DEFAULT_MODEL
    from personae.runtime import PersonaModel
    from personae.runtime.engine import Engine
    from personae.serving import Folder, Registry, Service, Settings, create_app
    from personae.serving.run import bound, run
    from personae.serving.security import check_origins, hosts_at, read_keys

    settings = Settings(
        model_id=_model_id(model, DEFAULT_MODEL) if name is None else name,
        max_tokens=max_tokens,
        max_body=round(max_body_mb * 1e6),
        max_upload=round(max_upload_mb * 1e6),
        keys=read_keys(api_key_file, os.environ),
        cors_origins=check_origins(cors_origin or []),
    )
    _check_files(files or [])
    if dry_run:
        with short_warnings():
            _say_memory(
                [*(files or []), *sorted(folder.glob("*.persona") if folder else [])], load(model, dtype, device)
            )
        return
    with short_warnings():
        made = bound(host, port)  # a port that is taken is an error before the model is loaded
        local = _is_loopback(made.getsockname()[0])  # a name given by --host may be one of loopback, too
        settings = replace(settings, hosts=hosts_at(host) if local else None)
        try:
            shelf = None if folder is None else Folder(folder)
            lm, tokenizer = load(model, dtype, device)
            actor = PersonaModel(lm, tokenizer, max_personas=max_personas)
            registry = Registry(actor, files or [], shelf, most=max_personas, allow_other_weights=allow_other_weights)
            with Engine(actor, max_batch=max_batch, max_queue=max_queue) as engine:
                service = Service(actor, engine, registry, settings)
                shown = page and _page_is_there()
                app = create_app(service, page=shown, sink=_line if access_log else None)
                for file, problem in sorted(registry.catalogue.unreadable.items()):
                    tell(f"[yellow]warning:[/] {escape(file)} is not served: {escape(problem)}")
                if not settings.keys and not local:
                    tell(f"[yellow]warning:[/] everybody who reaches {escape(host)} may ask: set --api-key-file.")
                run(app, made, drain=drain_seconds, started=lambda url: _started(url, service, shown))
        finally:
            made.close()


def _say_memory(files: list[Path], loaded: tuple[Any, Any]) -> None:
    """One row a persona: of its file only the header is read."""
    from personae.runtime import PersonaModel

    model, tokenizer = loaded
    actor = PersonaModel(model, tokenizer)
    table = Table(box=SIMPLE)
    for column in ("file", "persona", "in memory", "and while worn"):
        table.add_column(column, justify="left" if column in {"file", "persona"} else "right")
    total = 0
    for file in files:
        for name, memory in actor.memory_of(file).items():
            total += memory.masks
            table.add_row(Text(str(file)), Text(name), f"{memory.masks / 1e6:,.2f} MB", f"{memory.undo / 1e6:,.2f} MB")
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    out.print(table)
    out.print(
        f"model {weights / 1e6:,.0f} MB, all {len(table.rows)} personas {total / 1e6:,.2f} MB; answers need memory of "
        "their own (keys and values of their tokens)",
        soft_wrap=True,
    )


def _model_id(model: str | None, default: str) -> str:
    """A Hub id as it is; of a folder or a file its name, since paths are nobody's business."""
    if model in {None, "default"}:
        return default
    path = Path(str(model)).expanduser()
    return path.resolve().name.removesuffix(".gguf") if path.exists() else str(model)


def _check_files(files: list[Path]) -> None:
    for path in files:
        if not path.is_file():
            raise OptionError(f"there is no file {path}; a folder of files goes to --folder.")


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback  # behind '%' stands the interface, in IPv6


def _page_is_there() -> bool:
    """The page needs more than the API: where that is absent there is none, and the operator is told."""
    try:
        import_module("personae.serving.page")
    except ImportError as error:
        tell(f"no web page: {escape(str(error))}. Without one: --no-page.")
        return False
    return True


def _started(url: str, service: Any, page: bool) -> None:
    names = service.models()
    also = f", a page at [bold]{url}/[/]" if page else ""
    tell(
        f"serving [bold]{escape(names[0])}[/] with {max(len(names) - 2, 0)} personas at [bold]{url}/v1[/]{also}; "
        "Ctrl-C ends it"
    )


def _line(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads the log any more: no reason to fail a request
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
