"""A trace in the terminal: who speaks, the tokens in colours, the layers with the largest shares."""

from __future__ import annotations

import math

import numpy as np
from rich.box import SIMPLE
from rich.color import Color
from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from personae.analysis.trace_html import COLOURS
from personae.analysis.trace_result import FULL_COLOUR, Trace
from personae.analysis.trace_verdict import leading

__all__ = ["to_rich"]

_FAINT = 0.1  # of the full colour; what is less stays plain
_STRONGEST = 5  # tokens and layers that are listed for each persona


def to_rich(trace: Trace) -> RenderableType:
    """For `rich.print`. Nothing in the text is read as markup."""
    parts: list[RenderableType] = [Text(trace.verdict.sentence, style="bold"), Text(""), _tokens(trace), Text("")]
    parts.append(_personas(trace))
    if trace.share is not None:
        parts.append(_layers(trace))
    return Group(*parts, *(Text(note, style="dim") for note in trace.notes))


def colour(persona: int, strength: float) -> Style:
    """Black on the persona's colour, paler for less, to be read on dark and light screens alike. strength: 0 to 1."""
    red, green, blue = (int(COLOURS[persona % len(COLOURS)][at : at + 2], 16) for at in (1, 3, 5))
    share = 0.25 + 0.75 * strength
    paler = (round(255 - share * (255 - part)) for part in (red, green, blue))
    return Style(
        color="black" if sum((red, green, blue)) > 300 or strength < 0.7 else "white", bgcolor=Color.from_rgb(*paler)
    )


def _tokens(trace: Trace) -> Text:
    who, much = leading(trace.relative)
    shown = Text(trace.opening, style="dim")
    for token, persona, nats in zip(trace.tokens, who.tolist(), much.tolist(), strict=True):
        strength = min(nats / FULL_COLOUR, 1.0)
        shown.append(token, colour(persona, strength) if strength > _FAINT else None)
    return shown


def _personas(trace: Trace) -> Table:
    """score, over base, and the tokens that speak for each persona most."""
    table = Table(box=SIMPLE, padding=(0, 1), pad_edge=False)
    for heading, side in (("persona", "left"), ("score", "right"), ("over base", "right"), ("speaks most in", "left")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]  # rich names the sides in a Literal
    shares = trace.relative
    for p, name in enumerate(trace.personas):
        order = np.argsort(-shares[p], kind="stable")[:_STRONGEST]
        words = Text(", ").join(
            Text(f"{trace.tokens[t].strip()!r} {shares[p, t]:+.2f}") for t in order if shares[p, t] > 0
        )
        table.add_row(
            Text(f" {name} ", style=colour(p, 1.0)),
            f"{trace.verdict.scores[p]:+.3f}",
            f"{trace.over_base[p]:+.3f}",
            words,
        )
    table.caption = f"nats a token, {len(trace.tokens)} tokens"
    table.caption_justify = "left"
    return table


def _layers(trace: Trace) -> Table:
    """The layers with the largest shares of each persona."""
    overall = trace.overall
    assert overall is not None
    table = Table(box=SIMPLE, padding=(0, 1), pad_edge=False)
    table.add_column("persona")
    table.add_column("largest shares of a layer's output through weights that it alone drops")
    for p, name in enumerate(trace.personas):
        order = np.argsort(-np.nan_to_num(overall[p]), kind="stable")[:_STRONGEST]
        named = [
            f"block {block} {kind} {overall[p, at]:.1%}"
            for at, (block, kind) in ((at, trace.layers[at]) for at in order.tolist())
            if math.isfinite(overall[p, at]) and overall[p, at] > 0
        ]
        table.add_row(Text(f" {name} ", style=colour(p, 1.0)), ", ".join(named) or "–")
    return table
