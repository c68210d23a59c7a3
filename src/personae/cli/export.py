"""`personae export`: a persona as a checkpoint of its own, which needs this package no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from personae.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    load,
    out,
    print_json,
    short_warnings,
)
from personae.errors import OptionError, UnknownPersonaError


def export(
    file: Annotated[Path, typer.Argument(help="A .persona file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the checkpoint; a checkpoint that is there is replaced as a whole.")],
    persona: Annotated[str | None, typer.Option("--persona", "-p", help="Which persona. Default: the only one of the file.")] = None,
    model: ModelOption = None,
    allow_other_weights: Annotated[bool, typer.Option(help="Same names and shapes, other weights.")] = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Write the model with a persona's mask baked in: an ordinary Hugging Face folder, dropped weights are zeros."""
    from personae.export import check_folder, save_masked
    from personae.runtime import PersonaModel
    from personae.subnetwork import load as load_artefact

    with short_warnings():
        artefact = load_artefact(file)  # before the model is loaded
        name = _which(persona, list(artefact.personas), file)
        check_folder(output, option="--output")
        lm, tokenizer = load(model, dtype, device)
        PersonaModel(lm, tokenizer).add_personas(artefact, allow_other_weights=allow_other_weights)  # does it fit?
        subnetwork = artefact.personas[name]
        folder = save_masked(lm, tokenizer, subnetwork.masks, output)
    dropped = sum(mask.dropped for mask in subnetwork.masks.values())
    size = sum(path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file())
    if as_json:
        print_json({"persona": name, "folder": str(folder), "dropped": dropped, "bytes": size})
    else:
        out.print(escape(f"{name}: {dropped:,} weights are zero; {size / 1e6:,.0f} MB in {folder}"), soft_wrap=True)


def _which(persona: str | None, names: list[str], file: Path) -> str:
    if persona is None:
        if len(names) != 1:
            raise OptionError(f"{file} holds {len(names)} personas ({', '.join(names)}): choose one by --persona.")
        return names[0]
    if persona not in names:
        raise UnknownPersonaError(f"{file} has no persona '{persona}'; there are: {', '.join(names)}.")
    return persona
