"""Random masks for the tests of comparing: artefacts of no real model, and of the tiny ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personae.models import find_targets, fingerprint
from personae.subnetwork import Artefact, Mask, ModelIdentity, Provenance, Subnetwork

SHAPES = {
    f"model.layers.{block}.{place}.weight": shape
    for block in range(3)
    for place, shape in (("self_attn.q_proj", (6, 10)), ("mlp.up_proj", (9, 10)), ("mlp.down_proj", (10, 9)))
}


def random_masks(shapes: Mapping[str, tuple[int, int]], share: float, seed: int) -> dict[str, Mask]:
    """Every weight dropped with probability `share`."""
    chance = np.random.default_rng(seed)
    return {name: Mask.from_dropped(chance.random(shape) < share) for name, shape in sorted(shapes.items())}


def dropped_of(masks: Mapping[str, Mask]) -> dict[str, NDArray[np.bool_]]:
    """The same as boolean arrays."""
    return {name: mask.dropped_bool() for name, mask in masks.items()}


def subnetwork(name: str, masks: Mapping[str, Mask]) -> Subnetwork:
    """Masks with hardly a provenance."""
    return Subnetwork(name, masks, Provenance(method="random", sparsity=0.1))


def artefact(*personas: Subnetwork, shapes: Mapping[str, tuple[int, int]] = SHAPES, model: str = "f00d") -> Artefact:
    """An artefact of a model that there is not; model: its fingerprint."""
    identity = ModelIdentity(
        id=f"tiny-{model}", fingerprint=f"sha256:{model}", architecture="LlamaForCausalLM", dtype="float32",
        targets=dict(shapes),
    )  # fmt: skip
    return Artefact(identity, {p.name: p for p in personas})


def artefact_for(model: Any, *personas: Subnetwork) -> Artefact:
    """An artefact of this model."""
    targets = find_targets(model)
    identity = ModelIdentity(
        id="tiny", fingerprint=fingerprint(targets), architecture=type(model).__name__, dtype="float32",
        targets={t.name: t.shape for t in targets},
    )  # fmt: skip
    return Artefact(identity, {p.name: p for p in personas})
