"""`personae demo`: both poles of one contrast, the table, and three answers to one question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.panel import Panel

from personae.cli.console import bar, check_writable, err, load, out, short_warnings

QUESTION = "My whole Saturday is free. What should I do with it?"


def demo(
    contrast: Annotated[str, typer.Option(help="A built-in contrast; see `personae list`.")] = "introvert-extravert",
    question: Annotated[str, typer.Option(help="The question that is answered three times.")] = QUESTION,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the artefact goes.")] = None,
) -> None:
    """Discover two opposite personas in the default model, measure them, and let both speak (a few minutes)."""
    from personae.discovery import discover
    from personae.evaluation import evaluate, to_rich
    from personae.personas import load_contrast
    from personae.runtime import PersonaModel

    path = output or Path(f"{contrast}.persona")
    check_writable(path, "--output")
    data = load_contrast(contrast)
    with short_warnings():
        model, tokenizer = load(None, "auto", "auto")
        err.print(f"{data.name}: {len(data)} pairs, split 60/20/20 into calibration, dev and test")
        artefact = discover(model, tokenizer, data, progress=bar)
        artefact.save(path)
        result = evaluate(model, tokenizer, data, artefact, progress=bar)
        out.print(to_rich(result))
        actor = PersonaModel(model, tokenizer)
        actor.add_personas(artefact)
        out.print(f"\n[bold]{question}[/]")
        out.print(Panel(actor.chat(question, max_new_tokens=80), title="base", title_align="left"))
        for name in data.poles:
            with actor.persona(name):
                out.print(Panel(actor.chat(question, max_new_tokens=80), title=name, title_align="left"))
    out.print(f"the artefact lies at [bold]{path.resolve()}[/]; talk to it: personae chat {path}")
