"""`personae lm-eval`: lm-eval's tasks on the model under a persona."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from personae.cli.console import DeviceOption, DtypeOption, ModelOption, load
from personae.errors import OptionError

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": False}


def lm_eval(
    context: typer.Context,
    artefact: Annotated[Path | None, typer.Argument(help="A .persona file; without it, the base model.")] = None,
    persona: Annotated[str | None, typer.Option("--persona", "-p", help="The persona of the file to wear.")] = None,
    strength: Annotated[float, typer.Option(help="0 to 1, or above for a persona worn alone.")] = 1.0,
    model: ModelOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    allow_other_weights: Annotated[bool, typer.Option(help="Same names and shapes, other weights.")] = False,
) -> None:
    """Run lm-eval on the model under a persona; what follows -- are lm-eval's own options."""
    from personae.evaluation.lm_eval_model import register, run_lm_eval, worn

    register()  # refuses before anything is loaded
    if artefact is not None and str(artefact).startswith("-"):  # what stands first after a bare --
        context.args.insert(0, str(artefact))
        artefact = None
    if not context.args:
        raise OptionError(
            "lm-eval's options are missing: personae lm-eval FILE -p NAME -- --tasks arc_easy --limit 100"
        )
    resident, tokenizer = load(model, dtype, device)  # an unknown persona is an error of ours, before lm-eval starts
    worn(resident, tokenizer, artefact, persona, strength, allow_other_weights).disable_persona()
    del resident, tokenizer
    given = {
        "model": model, "artefact": None if artefact is None else str(artefact), "persona": persona,
        "strength": strength, "dtype": dtype, "on": device, "allow_other_weights": allow_other_weights,
    }  # fmt: skip
    run_lm_eval({key: value for key, value in given.items() if value is not None}, context.args)
