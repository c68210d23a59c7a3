"""A model under a persona as a model of lm-eval (EleutherAI's harness), by the name 'personae'.

lm-eval finds no plug-ins, so the class is registered when it is asked for; from then on lm-eval's own options, tasks
and reports work as they do for any model. It is lm-eval's own Hugging Face model on our resident one, so nothing
of how a task is scored is ours.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from personae.errors import OptionError
from personae.models import load_model
from personae.runtime import PersonaModel

NAME = "personae"


@functools.cache
def register() -> type[Any]:
    """Register the model class with lm-eval and return it. Errors: `OptionError` where lm-eval is not installed."""
    try:
        from lm_eval.api.registry import register_model
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise OptionError('lm-eval is not installed: pip install "personae[lm-eval]".') from error

    @register_model(NAME)  # type: ignore[no-untyped-call]
    class PersonaLM(HFLM):
        """`--model personae --model_args artefact=FILE,persona=NAME[,strength=1][,model=…][,dtype=…][,on=cpu]`."""

        def __init__(
            self,
            artefact: str | None = None,
            persona: str | None = None,
            strength: float = 1.0,
            model: str | None = None,
            dtype: str = "auto",
            on: str = "auto",
            allow_other_weights: bool = False,
            device: object = None,  # lm-eval fills it in with its own default, a GPU
            **options: Any,
        ) -> None:
            resident, tokenizer = load_model(model, dtype=dtype, device=on)
            self.actor = worn(resident, tokenizer, artefact, persona, strength, allow_other_weights)
            super().__init__(pretrained=resident, tokenizer=cast(Any, tokenizer), **options)

    return PersonaLM


def worn(
    model: Any, tokenizer: Any, artefact: str | Path | None, persona: str | None, strength: float, other_weights: bool
) -> PersonaModel:
    """The resident model with the persona on; without an artefact, as it is.

    Errors: `OptionError` for a persona without an artefact or the other way round; those of `PersonaModel`.
    """
    if (artefact is None) != (persona is None):
        raise OptionError("an artefact and a persona in it belong together: give both, or neither for the base model.")
    actor = PersonaModel(model, tokenizer)
    if artefact is not None and persona is not None:
        actor.add_personas(artefact, allow_other_weights=other_weights)
        actor.set_persona({persona: strength})
    return actor


def run_lm_eval(arguments: Mapping[str, object], options: Sequence[str]) -> None:
    """lm-eval's own command line on the registered model. arguments: of the model; options: the user's.

    Errors: `OptionError` for options that say which model, which is what `arguments` are for.
    """
    register()
    from lm_eval.__main__ import cli_evaluate

    for option in options:
        if option.split("=")[0] in {"--model", "-M", "--model_args", "-a", "--device"}:
            raise OptionError(f"{option} belongs to lm-eval alone: the model is what `personae lm-eval` gives it.")
    before = sys.argv
    sys.argv = ["lm-eval", "run", "--model", NAME, "--model_args", json.dumps(arguments), *options]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
