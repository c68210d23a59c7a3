"""Writes golden.persona, the file whose bytes fix format version 1. Run from anywhere; needs only personae.

The masks follow a stated rule instead of a random generator, so that any language can rebuild them:
weight i of a target is dropped if (i · 2654435761 mod 2^32) < share · 2^32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from personae.subnetwork import Artefact, CalibrationIdentity, Mask, ModelIdentity, Provenance, Subnetwork

SHAPES = {"model.layers.0.mlp.up_proj.weight": (30, 41), "model.layers.0.self_attn.q_proj.weight": (16, 16)}


def golden_mask(shape: tuple[int, int], share: float) -> Mask:
    hashed = np.arange(shape[0] * shape[1], dtype=np.uint64) * np.uint64(2654435761) % np.uint64(2**32)
    return Mask.from_dropped((hashed < share * 2**32).reshape(shape))


def golden_artefact() -> Artefact:
    """Three personas: sparse, dense, and nearly everything dropped; one with non-ASCII text."""
    model = ModelIdentity(
        id="golden/model",
        revision="0123abc",
        fingerprint="feed",
        architecture="LlamaForCausalLM",
        dtype="float32",
        targets=SHAPES,
    )
    calibration = CalibrationIdentity(name="golden", sha256="ab" * 32, items=4, licence="Apache-2.0")
    personas = {}
    for name, share, prompt in [("rêveur", 0.02, None), ("dense", 0.5, 'Be "dense"\n'), ("bare", 0.99, "")]:
        provenance = Provenance(
            method="directed",
            parameters={"cheap_share": 0.1, "rounds": 1, "signs": ["+", None]},
            calibration=calibration,
            seed=7,
            sparsity=share,
            measured={"acc": 0.84, "capability_loss": 1e-05},
            versions={"personae": "0.1.0"},
            licence="Apache-2.0",
        )
        masks = {target: golden_mask(shape, share) for target, shape in SHAPES.items()}
        personas[name] = Subnetwork(name, masks, provenance, f"the {name} one", prompt)
    return Artefact(model, personas, {"purpose": "golden"})


if __name__ == "__main__":
    golden_artefact().save(Path(__file__).with_name("golden.persona"))
