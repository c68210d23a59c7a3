"""`personae trace`: which persona is speaking, token by token and layer by layer."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from personae.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    SeedOption,
    bar,
    check_writable,
    load,
    out,
    print_json,
    short_warnings,
    tell,
    typed,
    write_text,
)
from personae.cli.discover import read_data
from personae.errors import ArtefactError, DataError, OptionError


def trace(
    context: typer.Context,
    artefact: Annotated[Path, typer.Argument(help="A .persona file with any number of personas.")],
    text: Annotated[str | None, typer.Option(help="The text to trace.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="The same, read from a UTF-8 file.")] = None,
    ask: Annotated[str | None, typer.Option("--ask", help="Ask this, and trace the answer.")] = None,
    question: Annotated[str | None, typer.Option(help="What --text or --file answers. Default: it is read as plain text.")] = None,
    persona: Annotated[str | None, typer.Option("--persona", "-p", help="Who answers --ask. Default: the base model.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt before the question.")] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Compare only this persona of the file; may be repeated.")] = None,
    calibrate: Annotated[str | None, typer.Option(help="Contrast whose dev part says at which score two poles are even: built-in name, file, or hub:owner/name.")] = None,
    items: Annotated[int, typer.Option(min=2, help="At most so many items of --calibrate.")] = 60,
    split_seed: Annotated[int, typer.Option(help="Seed of the split that --calibrate takes the dev part of.")] = 0,
    flow: Annotated[bool, typer.Option("--flow/--no-flow", help="Read the share of every layer's output.")] = True,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer to --ask, in tokens.")] = 200,
    temperature: Annotated[float, typer.Option(help="Of the answer to --ask; 0 is greedy.")] = 0.0,
    html: Annotated[Path | None, typer.Option("--html", help="Write the trace as one web page here.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result as JSON here.")] = None,
    allow_other_weights: Annotated[bool, typer.Option(help="Same names and shapes, other weights.")] = False,
    model: ModelOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Name the persona that a text, or a live answer, speaks for, and show the tokens and layers that tell."""
    from personae.analysis.results import Record, said, write_result
    from personae.analysis.trace import Tracer
    from personae.analysis.trace_html import to_html
    from personae.analysis.trace_verdict import NOISE
    from personae.analysis.trace_view import to_rich
    from personae.evaluation.suites import SuiteContext
    from personae.subnetwork import load as load_artefact

    _check(text, file, ask, question, persona, system)
    _check_unused(context, ask, calibrate)
    given = _text(text, file)
    read = [path for path in (artefact, file) if path is not None]
    html, output = (path.expanduser() if path is not None else None for path in (html, output))
    for option, path in (("--html", html), ("--output", output)):
        if path is not None:
            check_writable(path, option, *read, calibrate)
    if html is not None and output is not None and html.resolve() == output.resolve():
        raise OptionError(f"--html and --output both name {html}; name two files.")
    with short_warnings():
        dev = _dev(calibrate, items, split_seed, seed) if calibrate is not None else None
        inputs = {path.name: _digest(path) for path in read}
        made = load_artefact(artefact)  # a broken file before the model is loaded
        lm, tokenizer = load(model, dtype, device)
        tracer = Tracer(lm, tokenizer, made, personas=only, flow=flow, allow_other_weights=allow_other_weights)
        offsets = tracer.calibrate(dev, progress=bar) if dev is not None else None
        closed = True
        if ask is not None:
            question = _clean(ask)
            given, closed = tracer.answer(
                question, persona=persona, system=system, max_new_tokens=max_new_tokens, temperature=temperature,
                seed=seed,
            )  # fmt: skip
        found = tracer.trace(given, question=question, system=system, closed=closed, offsets=offsets)
    record = Record(
        kind="trace",
        command=_command(
            artefact, {
                "--text": text, "--file": file, "--ask": ask, "--question": None if ask is not None else question,
                "--persona": persona, "--system": system, "--calibrate": calibrate, "--items": calibrate and items,
                "--split-seed": calibrate and split_seed, "--max-new-tokens": ask and max_new_tokens,
                "--temperature": ask and temperature, "--model": model, "--dtype": dtype, "--seed": seed,
            },
            [*(word for name in only or () for word in ("--only", name)), *([] if flow else ["--no-flow"])],
        ),
        model=SuiteContext(lm, tokenizer, Path()).record(),
        inputs=inputs | ({} if dev is None else {f"dev part of {dev.name}": dev.sha256}),
        settings={
            "personas": tracer.personas, "asked": ask is not None, "answered_by": persona, "system": system,
            "closed": closed, "max_new_tokens": ask and max_new_tokens, "temperature": ask and temperature,
            "noise": NOISE, "calibrated_on": calibrate, "calibration_items": None if dev is None else len(dev),
            "offsets": None if offsets is None else dict(zip(tracer.personas, offsets, strict=True)), "flow": flow,
        },
        seed=seed,
        notes=found.notes,
    )  # fmt: skip
    if html is not None:
        write_text(html, to_html(found))
    if output is not None:
        write_result(output, record, found.to_dict())
    if as_json:
        print_json(said(record, found.to_dict()))
        return
    out.print(to_rich(found))
    for written in (html, output):
        if written is not None:
            tell(f"written: {escape(str(written))}")


def _check(
    text: str | None, file: Path | None, ask: str | None, question: str | None, persona: str | None, system: str | None
) -> None:
    """Refuse options that contradict each other. Errors: `OptionError`."""
    if sum(each is not None for each in (text, file, ask)) != 1:
        raise OptionError(
            "say what to trace, in one way: --text TEXT, --file FILE, or --ask QUESTION for a live answer."
        )
    if ask is not None and question is not None:
        raise OptionError("--ask is the question already; --question goes with --text or --file.")
    if ask is None and persona is not None:
        raise OptionError("--persona answers a question of --ask; a given text has been written already.")
    if ask is None and question is None and system is not None:
        raise OptionError("--system stands before a question: give --question or --ask as well.")
    if ask is not None and not ask.strip():
        raise OptionError("--ask is empty: give a question.")


def _check_unused(context: typer.Context, ask: str | None, calibrate: str | None) -> None:
    """Refuse what would change nothing, were it given. Errors: `OptionError`."""
    for name, with_option, given in (
        ("max_new_tokens", "--ask", ask), ("temperature", "--ask", ask),
        ("items", "--calibrate", calibrate), ("split_seed", "--calibrate", calibrate),
    ):  # fmt: skip
        if given is None and typed(context, name):
            raise OptionError(f"--{name.replace('_', '-')} goes with {with_option}.")


def _text(text: str | None, file: Path | None) -> str:
    """What was given; '' for a live answer. Errors: `DataError` for a file that cannot be read or is not UTF-8."""
    if file is None:
        return _clean(text or "")
    try:
        return file.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"--file {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"--file {file} is not UTF-8 text (byte {error.start}): convert it first.") from error


def _clean(text: str) -> str:
    # bytes of a terminal that are no text reach Python as lone surrogates, which no tokenizer takes
    return text.encode("utf-8", "replace").decode()


def _dev(source: str, items: int, split_seed: int, seed: int) -> Any:
    """Items of a contrast that neither calibrated the masks nor belong to its test part. Errors: `DataError`."""
    from personae.personas import Contrast, split

    contrast = read_data(source)
    if not isinstance(contrast, Contrast):
        raise DataError(f"--calibrate {source} is one-sided; give both poles.")
    dev = split(contrast, seed=split_seed).dev
    return dev.take(min(items, len(dev)), seed)


def _digest(path: Path) -> str:
    try:
        with path.expanduser().open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}.") from error


def _command(artefact: Path, options: dict[str, Any], more: list[str]) -> str:
    """What makes the result again, with every option that decides a figure."""
    words = ["personae", "trace", str(artefact)]
    words += [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    return shlex.join([*words, *more])
