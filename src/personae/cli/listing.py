"""`personae list`: the built-in contrasts, or what lies in `.persona` files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from personae.cli.console import JsonOption, out, print_json


def list_personas(
    files: Annotated[list[Path] | None, typer.Argument(help=".persona files; none: the built-in contrasts.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List built-in contrasts, or the personas of `.persona` files."""
    rows = [row for path in files for row in _in_file(path)] if files else _built_in()
    if as_json:
        print_json(rows)
        return
    table = Table(*rows[0]) if rows else Table("nothing")
    for row in rows:
        table.add_row(*(f"{v:.3%}" if isinstance(v, float) else escape(str(v)) for v in row.values()))
    out.print(table)


def _built_in() -> list[dict[str, object]]:
    from personae.personas import list_contrasts, load_contrast

    rows: list[dict[str, object]] = []
    for name in list_contrasts():
        contrast = load_contrast(name)
        rows.append(
            {
                "contrast": name,
                "positive": contrast.positive,
                "negative": contrast.negative,
                "pairs": len(contrast),
                "description": contrast.description,
            }
        )
    return rows


def _in_file(path: Path) -> list[dict[str, object]]:
    from personae.subnetwork import inspect

    header = inspect(path)
    return [
        {
            "file": str(path),
            "persona": persona.name,
            "model": header.model.id,
            "method": persona.provenance.method,
            "sparsity": persona.provenance.sparsity,
            "dev acc": persona.provenance.measured.get("dev_acc", ""),
        }
        for persona in header.personas
    ]
