"""A persona's card: what it is and what was measured, as HTML. Every text in it comes from a file and is escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from personae.serving.catalogue import Entry

__all__ = ["card", "plain_card"]

NOT_MEASURED = "not measured"
_LONGEST = 600  # characters of a text on a card

# Names and meaning as in docs/methods.md, section 7.
_ALIGNMENT = (
    ("dev_acc", "{:.2f}", "share of {items} won by this persona’s answer"),
    ("dev_margin_gain", "{:+.2f}", "nats a token that the margin of its answers gained over base"),
    ("dev_own_answers", "{:+.2f}", "nats a token by which its own answers became likelier"),
)
_CAPABILITY = (
    ("capability_loss_searched", "{:.3f}", "nats a token lost on the text of the budget search"),
    ("capability_loss_bound", "{:.3f}", "upper bound of it{budget}"),
    ("capability_loss", "{:.3f}", "nats a token, the largest over both masks and texts"),
)


def card(entry: Entry) -> str:
    """What its file says of a persona."""
    provenance = entry.provenance
    measured = provenance.measured
    items = _number(measured.get("dev_items"), "{:g} dev items") or "dev items"
    limit = _number(provenance.parameters.get("max_capability_loss"), "; the budget was {:g}")
    calibration = provenance.calibration
    facts = {
        "sparsity": f"{provenance.sparsity:.2%} of the weights dropped".replace("%", " %"),
        "method": provenance.method,
        "calibration": "" if calibration is None else f"{calibration.name}, {calibration.items} items",
        "licence": provenance.licence or "not stated",
        "file": entry.path.name,
    }
    return (
        f'<article class="card"><h3>{_text(entry.name)}</h3>'
        + (f"<p>{_text(entry.description)}</p>" if entry.description else "")
        + _figures("Alignment", _ALIGNMENT, measured, items=items)
        + _figures("Capability", _CAPABILITY, measured, budget=limit or "")
        + '<dl class="facts">'
        + "".join(f"<dt>{name}</dt><dd>{_text(text)}</dd>" for name, text in facts.items() if text)
        + "</dl>"
        + _details("The same persona as a system prompt (not sent)", entry.system_prompt)
        + "</article>"
    )


def plain_card(title: str, about: str) -> str:
    """A card without figures."""
    return f'<article class="card"><h3>{_text(title)}</h3><p>{_text(about)}</p></article>'


def _figures(title: str, rows: Sequence[tuple[str, str, str]], measured: Mapping[str, JsonValue], **words: str) -> str:
    """A group of figures; a figure that nobody measured is said to be so."""
    lines = []
    for name, form, meaning in rows:
        found = _number(measured.get(name), form)
        mark = "" if found else ' class="absent"'
        lines.append(
            f"<tr{mark}><th>{found or NOT_MEASURED}</th>"
            f"<td><code>{name}</code> {html.escape(meaning.format(**words))}</td></tr>"
        )
    return f"<h4>{title}</h4><table>{''.join(lines)}</table>"


def _number(value: JsonValue, form: str) -> str:
    """A finite number in a form; '' for anything else, since `measured` is free JSON."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    return form.format(value)


def _details(title: str, text: str | None) -> str:
    return f"<details><summary>{title}</summary><p>{_text(text)}</p></details>" if text else ""


def _text(text: str) -> str:
    short = text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
    return html.escape(short)
