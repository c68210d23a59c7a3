"""Whether masks were made for the model that is here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

from personae.errors import MaskMismatchError
from personae.models import Target
from personae.subnetwork import ModelIdentity

__all__ = ["check_identity"]


def check_identity(
    identity: ModelIdentity,
    targets: Mapping[str, Target],
    fingerprint: Callable[[frozenset[str]], str],
    allow_other_weights: bool,
    stacklevel: int,
) -> None:
    """Raise `MaskMismatchError` unless a model has the targets, shapes and weights that masks were made for.

    fingerprint: of the base weights of the targets that it is given. allow_other_weights: only warn if the weights
    differ. stacklevel: of that warning, seen from here.
    """
    for name, shape in identity.targets.items():
        target = targets.get(name)
        if target is None or target.shape != shape:
            found = "is not a target of this model" if target is None else f"has shape {target.shape} here"
            raise MaskMismatchError(
                f"these personas were made for {identity.id} ({identity.architecture}), whose {name} "
                f"of shape {shape} {found}: load that model, or discover them anew on this one."
            )
    mine = fingerprint(frozenset(identity.targets))
    if mine == identity.fingerprint:
        return
    difference = (
        f"these personas were made for {identity.id} with other weights of the same names and shapes "
        f"({identity.fingerprint[:19]}…, here {mine[:19]}…)"
    )
    if not allow_other_weights:
        raise MaskMismatchError(
            f"{difference}: load that model, or accept that they may not work here with "
            "--allow-other-weights (allow_other_weights=True)."
        )
    warnings.warn(f"{difference}; they may not work here: evaluate them.", stacklevel=stacklevel + 1)
