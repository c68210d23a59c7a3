"""`personae chat`: talk to a model and change its persona while you do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from personae.cli.console import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    SeedOption,
    err,
    load,
    out,
    short_warnings,
)
from personae.errors import OptionError, PersonaeError

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

    with short_warnings():
        lm, tokenizer = load(model, dtype, device)
        actor = PersonaModel(lm, tokenizer)
        for path in files or []:
            actor.add_personas(path, allow_other_weights=allow_other_weights)
        if persona is not None:
            actor.set_persona(persona)
        conversation = Conversation(actor, system=system)
        options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        if message is not None:
            _answer(conversation, message, options)
            return
        err.print(f"personas: {', '.join(actor.personas) or 'none'}. {HELP}", highlight=False)
        while True:
            try:
                line = out.input(f"[bold]{_worn(actor)}>[/] ") if sys.stdin.isatty() else input()
            except (EOFError, KeyboardInterrupt):
                return
            if line.strip() in {"/quit", "/exit"}:
                return
            try:
                if line.startswith("/"):
                    conversation = _command(line, actor, conversation, system)
                elif line.strip():
                    _answer(conversation, line, options)
            except PersonaeError as error:  # a mistyped name does not end the conversation
                err.print(f"[red]{error}[/]", highlight=False)


def _answer(conversation: Any, text: str, options: dict[str, Any]) -> None:
    try:
        for piece in conversation.stream(text, **options):
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" …")  # the answer is cut, the conversation goes on
    sys.stdout.write("\n")


def _worn(actor: Any) -> str:
    return " + ".join(n if s == 1 else f"{n}={s:g}" for n, s in actor.active.items()) or "base"


def _command(line: str, actor: Any, conversation: Any, system: str | None) -> Any:
    from personae.runtime import Conversation

    word, *rest = line.split()
    if word == "/persona" and len(rest) in {1, 2}:
        actor.set_persona(rest[0], _number(rest[1]) if len(rest) == 2 else 1.0)
    elif word == "/blend" and rest:
        actor.set_persona(dict(_part(part) for part in rest))
    elif word == "/base" and not rest:
        actor.disable_persona()
    elif word == "/list" and not rest:
        out.print(", ".join(actor.personas) or "no personas; start with: personae chat FILE.persona")
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
