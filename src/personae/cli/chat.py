"""`personae chat`: talk to a model and change its persona while you do."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from personae.cli.console import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    SeedOption,
    load,
    out,
    short_warnings,
    tell,
)
from personae.errors import DataError, OptionError, PersonaeError

HELP = "/persona NAME [STRENGTH] · /blend NAME=0.7 NAME=0.3 · /base · /list · /reset · /quit"


def chat(
    files: Annotated[list[Path] | None, typer.Argument(help=".persona files to add.")] = None,
    persona: Annotated[str | None, typer.Option("--persona", "-p", help="Persona worn at the start.")] = None,
    message: Annotated[str | None, typer.Option("--message", help="Answer this once and leave.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    model: ModelOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    allow_other_weights: Annotated[bool, typer.Option(help="Same names and shapes, other weights.")] = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
) -> None:  # fmt: skip
    """Chat; answers stream. /persona NAME changes the persona, the history is re-read under the new one."""
    from personae.runtime import Conversation, PersonaModel
    from personae.subnetwork import load as load_artefact

    with short_warnings():
        artefacts = [load_artefact(path) for path in files or []]  # a broken file before the model is loaded
        lm, tokenizer = load(model, dtype, device)
        actor = PersonaModel(lm, tokenizer)
        for artefact in artefacts:
            actor.add_personas(artefact, allow_other_weights=allow_other_weights)
        if persona is not None:
            actor.set_persona(persona)
        conversation = Conversation(actor, system=system)
        options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        if message is not None:
            _answer(conversation, message, options)
            return
        tell(escape(f"personas: {', '.join(actor.personas) or 'none'}. {HELP}"))
        while True:
            try:
                line = out.input(f"[bold]{escape(_worn(actor))}>[/] ") if sys.stdin.isatty() else input()
            except (EOFError, KeyboardInterrupt):
                return
            except UnicodeDecodeError as error:
                raise DataError("standard input is not UTF-8 text; convert it first.") from error
            if line.strip() in {"/quit", "/exit"}:
                return
            try:
                if line.startswith("/"):
                    conversation = _command(line, actor, conversation, system)
                elif line.strip():
                    with _one_answer():
                        _answer(conversation, line, options)
            except PersonaeError as error:  # a mistyped name does not end the conversation
                tell(f"[red]{escape(str(error))}[/]")


def _answer(conversation: Any, text: str, options: dict[str, Any]) -> None:
    # bytes of a terminal that are no text reach Python as lone surrogates, which no tokenizer takes
    for piece in conversation.stream(text.encode("utf-8", "replace").decode(), **options):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@contextlib.contextmanager
def _one_answer() -> Iterator[None]:
    """Ctrl-C cuts the answer; the conversation goes on."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stdout.write(" …\n")


def _worn(actor: Any) -> str:
    return " + ".join(n if s == 1 else f"{n}={s:g}" for n, s in actor.active.items()) or "base"


def _command(line: str, actor: Any, conversation: Any, system: str | None) -> Any:
    from personae.runtime import Conversation

    try:
        word, *rest = shlex.split(line)  # names with spaces stand in quotes
    except ValueError as error:
        raise OptionError(f"{line}: a quotation mark is not closed.") from error
    if word == "/persona" and len(rest) in {1, 2}:
        actor.set_persona(rest[0], _number(rest[1]) if len(rest) == 2 else 1.0)
    elif word == "/blend" and rest:
        actor.set_persona(dict(_part(part) for part in rest))
    elif word == "/base" and not rest:
        actor.disable_persona()
    elif word == "/list" and not rest:
        out.print(escape(", ".join(actor.personas) or "no personas; start with: personae chat FILE.persona"))
    elif word == "/reset" and not rest:
        return Conversation(actor, system=system)
    else:
        raise OptionError(f"not a command: {line}. Commands: {HELP}")
    return conversation


def _part(text: str) -> tuple[str, float]:
    name, equals, strength = text.rpartition("=")
    if not equals:
        raise OptionError(f"{text}: write NAME=STRENGTH, such as introvert=0.7.")
    return name, _number(strength)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise OptionError(f"{text!r} is not a strength; write a number such as 0.7.") from error
