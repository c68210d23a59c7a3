"""What a suite lets the model wear, one after the other: nothing, then every persona it was given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from personae.evaluation.suites.context import SuiteContext
from personae.runtime import PersonaModel
from personae.subnetwork import Artefact, Mask


@dataclass(frozen=True, eq=False)
class Condition:
    """What the model wears: a persona's masks, or none for the base model."""

    name: str
    masks: Mapping[str, Mask]

    @property
    def sha256(self) -> str:
        """Hash of names, shapes and dropped positions; what a kept part depends on."""
        digest = hashlib.sha256()
        for name in sorted(self.masks):
            digest.update(f"{name} {self.masks[name].shape}\n".encode())
            digest.update(self.masks[name].packed().tobytes())
        return digest.hexdigest()


def conditions(context: SuiteContext, artefacts: Sequence[Artefact]) -> list[Condition]:
    """The base model, then every persona of every artefact in their order; a name that is taken gets a number.

    Errors: `MaskMismatchError` for masks that were made for another model.
    """
    found = {"base": Condition("base", {})}
    for artefact in artefacts:
        PersonaModel(context.model, targets=context.targets).add_personas(artefact)  # only to be checked
        for persona in artefact.names:
            names = (persona, *(f"{persona} ({n})" for n in range(2, len(found) + 3)))
            name = next(n for n in names if n not in found)
            found[name] = Condition(name, artefact[persona].masks)
    return list(found.values())


def under_each(
    context: SuiteContext,
    part: str,
    settings: Mapping[str, Any],
    worn: Sequence[Condition],
    compute: Callable[[Condition], Any],
) -> dict[str, Any]:
    """What `compute` returns for each condition, by name; every one is a part of its own.

    `compute` puts the masks on itself: the part's hash is of the base weights.
    """
    return {c.name: context.part(part, {**settings, "masks": c.sha256}, partial(compute, c)) for c in worn}
