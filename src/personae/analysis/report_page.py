"""The page: Jinja2's template and style sheet of this room's folder `page`, with Plotly's script within, once.

Everything that comes from a file is escaped by the template, or, where a script reads it, is JSON without '<', '>' or
'&'. A policy in the page's head forbids every address, so that nothing a file says can make the page fetch anything.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from personae.analysis.report_pieces import COLOURS, Part
from personae.analysis.report_plotly import spec
from personae.discovery import versions
from personae.errors import OptionError

__all__ = ["to_html"]

_KINDS = {
    "artefact": "masks", "audit": "audit", "causal-map": "causal map", "compare": "overlap", "dynamics": "checkpoints",
    "evaluation": "evaluation", "frontier": "frontier", "suite": "suite", "together": "several files", "trace": "trace",
}  # fmt: skip


def to_html(title: str, parts: Sequence[Part]) -> str:
    """The whole page. Errors: `OptionError` without Jinja2 or Plotly."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
        from plotly.offline.offline import get_plotlyjs
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise OptionError(f"a report needs {package}: pip install 'personae[analysis]'.") from error
    specs = [spec(figure) for part in parts for figure in part.figures]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string(_page("report.html"))
    return template.render(
        title=title, parts=parts, kinds=_KINDS, colours=COLOURS, summary=_summary(parts), versions=_versions(),
        style=Markup(_page("report.css")), script=Markup(_page("report.js")), data=Markup(as_data(specs)),
        plotly=Markup(get_plotlyjs()) if specs else "",  # type: ignore[no-untyped-call]
    )  # fmt: skip


def as_data(value: Any) -> str:
    """JSON for a script element: nothing in it can end the element or begin another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _summary(parts: Sequence[Part]) -> str:
    """'3 files: 2 evaluations, 1 masks; 12 figures, 7 tables.'"""
    own = [part for part in parts if part.kind != "together"]
    counted = Counter(_KINDS[part.kind] for part in own)
    kinds = ", ".join(f"{name} ({number})" if number > 1 else name for name, number in counted.items())
    figures, tables = sum(len(p.figures) for p in parts), sum(len(p.tables) for p in parts)
    return f"{len(own)} file{'s' if len(own) != 1 else ''}: {kinds}. {figures} figures, {tables} tables."


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {**versions(), **{name: version(name) for name in ("plotly", "jinja2")}}


def _page(name: str) -> str:
    return files("personae.analysis").joinpath("page", name).read_text(encoding="utf-8")
