"""`personae demo`: both poles of one contrast, the table, and three answers to one question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from personae.cli.console import bar, check_writable, load, out, short_warnings, tell

# Generic answers read by a probe of the budget: two thirds of the default, to end within minutes.
ANSWERS = 16
QUESTION = "My whole Saturday is free. What should I do with it?"


def demo(
    contrast: Annotated[str, typer.Option(help="A built-in contrast; see `personae list`.")] = "introvert-extravert",
    question: Annotated[str, typer.Option(help="The question that is answered three times.")] = QUESTION,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the artefact goes.")] = None,
) -> None:
    """Discover two opposite personas in the default model, measure them, and let both speak (a few minutes)."""
    from personae.discovery import discover, open_session
    from personae.evaluation import evaluate, to_rich
    from personae.models import fast_dtype
    from personae.personas import load_contrast, split
    from personae.runtime import PersonaModel

    with short_warnings():
        data = load_contrast(contrast)
        path = (output or Path(f"{data.name}.persona")).expanduser()
        check_writable(path, "--output", contrast)
        dtype = fast_dtype()  # recorded in the artefact; float32 where bfloat16 would only be emulated
        model, tokenizer = load(None, dtype, "auto")
        tell(f"{escape(data.name)}: {len(data)} pairs, split 60/20/20 into calibration, dev and test; {dtype}")
        session = open_session(
            model, tokenizer, split(data).calibration, generic_answers=ANSWERS, progress=bar
        )  # fmt: skip
        artefact = discover(model, tokenizer, data, session=session, progress=bar)
        artefact.save(path)
        result = evaluate(model, tokenizer, data, artefact, session=session, progress=bar)
        session.forget()
        out.print(to_rich(result))
        actor = PersonaModel(model, tokenizer)
        actor.add_personas(artefact)
        out.print(f"\n[bold]{escape(question)}[/]")
        _say(actor, question, "base")
        for name in data.poles:
            with actor.persona(name):
                _say(actor, question, name)
    shown = f"[bold]{escape(str(path.resolve()))}[/]; talk to it: personae chat {escape(str(path))}"
    out.print(f"the artefact lies at {shown}", soft_wrap=True)


def _say(actor: Any, question: str, name: str) -> None:
    # Text: what a model writes, such as '[/INST]', is no markup
    out.print(Panel(Text(actor.chat(question, max_new_tokens=80)), title=escape(name), title_align="left"))
