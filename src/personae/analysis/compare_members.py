"""The personas of several artefacts under labels that tell them apart, all of one model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from personae.errors import MaskMismatchError, OptionError
from personae.runtime import PersonaModel
from personae.subnetwork import Artefact, Subnetwork, load

Source = Artefact | str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Member:
    """One persona. label: its name, with its file in front where several have it. source: name of the file."""

    label: str
    persona: Subnetwork
    source: str
    artefact: Artefact


def gathered(sources: Sequence[Source]) -> list[Member]:
    """Every persona of the artefacts, or of their files, in their order.

    Errors: `MaskMismatchError` for artefacts of different models, or found on different targets; `OptionError` for
    no persona at all; `ArtefactError` for a file that cannot be read.
    """
    read = [source if isinstance(source, Artefact) else load(source) for source in sources]
    names = [f"artefact {n}" if isinstance(s, Artefact) else Path(s).name for n, s in enumerate(sources, 1)]
    found = [
        (persona, name, artefact)
        for artefact, name in zip(read, names, strict=True)
        for persona in artefact.personas.values()
    ]
    if not found:
        raise OptionError("there is no persona in what was given: give .persona files that hold some.")
    for other in found[1:]:
        _check_same_model(found[0], other)
    shared = Counter(persona.name for persona, _, _ in found)
    wanted = [
        persona.name if shared[persona.name] == 1 else f"{Path(name).stem}/{persona.name}" for persona, name, _ in found
    ]
    return [
        Member(label, persona, name, artefact)
        for label, (persona, name, artefact) in zip(_distinct(wanted), found, strict=True)
    ]


def fit(members: Sequence[Member], model: PreTrainedModel, *, allow_other_weights: bool = False) -> None:
    """Raise `MaskMismatchError` unless the personas were made for this model; see `PersonaModel.add_personas`."""
    PersonaModel(model).add_personas(members[0].artefact, allow_other_weights=allow_other_weights)


def _distinct(labels: Sequence[str]) -> list[str]:
    """The labels; one that is taken gets a number: the same file twice, or two of one name in different folders."""
    taken: list[str] = []
    for label in labels:
        choices = (label, *(f"{label} ({n})" for n in range(2, len(labels) + 2)))
        taken.append(next(choice for choice in choices if choice not in taken))
    return taken


def _check_same_model(first: tuple[Subnetwork, str, Artefact], second: tuple[Subnetwork, str, Artefact]) -> None:
    one, two = first[2].model, second[2].model
    if one.fingerprint == two.fingerprint and one.targets == two.targets:
        return
    (a, b) = (
        f"'{persona.name}' ({name}) belongs to {artefact.model.id} ({artefact.model.fingerprint[:19]}…, "
        f"{len(artefact.model.targets)} targets)"
        for persona, name, artefact in (first, second)
    )
    raise MaskMismatchError(
        f"{a}, but {b}: masks of different weights have nothing in common that could be counted; discover both on one "
        "model, with the same --target."
    )
