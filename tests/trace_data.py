"""What the tests of `personae trace` share: random personas of a tiny model, and the slow way to a log-probability."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from personae.models import Encoded, find_targets, fingerprint
from personae.subnetwork import Artefact, Mask, ModelIdentity, Provenance, Subnetwork

QUESTION, ANSWER = "Would you lead the whole team?", "Yes, I would like that very much."


def random_artefact(model: Any, *names: str, share: float = 0.03, seed: int = 0) -> Artefact:
    """Personas that drop about `share` of most targets; the first target is masked by none of them."""
    targets = find_targets(model)
    identity = ModelIdentity(
        id="tiny", fingerprint=fingerprint(targets), architecture=type(model).__name__, dtype="float32",
        targets={t.name: t.shape for t in targets},
    )  # fmt: skip
    personas = {}
    for name in names:
        random = np.random.default_rng([seed, *name.encode()])
        masks = {
            t.name: Mask.from_dropped(random.random(t.shape) < share) for t in targets[1:] if random.random() < 0.8
        }
        personas[name] = Subnetwork(name, masks, Provenance(method="random", sparsity=share))
    return Artefact(identity, personas)


def slow_log_p(model: Any, masks: Any, encoded: Encoded) -> np.ndarray:
    """log p of every answer token that something stands before: a copy of the model with zeros written into it."""
    other = copy.deepcopy(model)
    for target in find_targets(other):
        if target.name in masks:
            target.weight[torch.from_numpy(masks[target.name].dropped_bool())] = 0
    ids = torch.tensor([encoded.prompt + encoded.answer])
    with torch.no_grad():
        log_p = other(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    places = range(max(len(encoded.prompt), 1), ids.shape[1])
    return np.array([float(log_p[at - 1, ids[0, at]]) for at in places])


def dropped(shape: tuple[int, int], positions: Sequence[int]) -> Mask:
    """A mask that drops these."""
    return Mask.from_positions(np.array(positions, dtype=np.int64), shape)
