from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from personae.analysis.trace import trace
from personae.analysis.trace_result import Trace
from personae.analysis.trace_verdict import leading, verdict
from personae.analysis.trace_view import colour, to_rich
from trace_data import ANSWER, QUESTION, random_artefact


@pytest.fixture(scope="module")
def found(tiny_model: Callable[..., Any]) -> Trace:
    model, tokenizer = tiny_model("llama")
    return trace(model, tokenizer, random_artefact(model, "lead", "follow"), ANSWER, question=QUESTION)


def printed(found: Trace, *, colours: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=200, color_system="truecolor" if colours else None, force_terminal=colours
    )
    console.print(to_rich(found))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_verdict_text_scores_and_layers_are_printed(found: Trace) -> None:
    shown = printed(found)
    assert found.verdict.sentence in shown
    assert f"{ANSWER}<|im_end|>" in shown
    for p, name in enumerate(found.personas):
        assert f"{found.verdict.scores[p]:+.3f}" in shown
        assert f"{found.over_base[p]:+.3f}" in shown
        best = int(np.argmax(found.relative[p]))
        assert f"{found.tokens[best].strip()!r} {found.relative[p, best]:+.2f}" in shown
        block, kind = found.layers[int(np.argmax(found.overall[p]))]
        assert f"block {block} {kind} {found.overall[p].max():.1%}" in shown
        assert shown.count(f" {name} ") >= 2


def test_tokens_have_the_colour_of_their_persona(found: Trace) -> None:
    shown = printed(found, colours=True)
    who, much = leading(found.relative)
    strongest = int(np.argmax(much))
    style = colour(int(who[strongest]), min(float(much[strongest]) / 2, 1.0))
    red, green, blue = style.bgcolor.triplet  # type: ignore[union-attr,misc]
    assert f"48;2;{red};{green};{blue}m{found.tokens[strongest]}" in shown
    assert "48;2;" not in printed(replace(found, worn=np.tile(found.base, (2, 1)))).split("persona")[0]


def test_more_strength_is_more_colour() -> None:
    pale, full = (colour(1, strength).bgcolor.triplet for strength in (0.1, 1.0))  # type: ignore[union-attr]
    assert full.hex == "#0072b2"
    assert all(a >= b for a, b in zip(pale, full, strict=True))
    assert colour(6, 1.0) == colour(0, 1.0), "a seventh persona begins again"


def test_nothing_in_a_text_or_a_name_is_markup(found: Trace) -> None:
    names = ("[bold]lead[/]", "[/x]")
    odd = replace(
        found, opening="[red]", tokens=("[/]", *found.tokens[1:]), personas=names,
        verdict=verdict(names, found.relative), notes=("[dim]note",),
    )  # fmt: skip
    shown = printed(odd)
    for text in ("[bold]lead[/]", "[/x]", "[red][/]", "[dim]note"):
        assert text in shown


def test_without_layers_there_is_no_table_of_them(found: Trace) -> None:
    assert "block" in printed(found)
    assert "block" not in printed(replace(found, squares=None, layers=()))
