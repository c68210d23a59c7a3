"""Writes golden.persona and shared.persona, whose bytes fix format versions 1 and 2. Run from anywhere.

The masks follow a stated rule instead of a random generator, so that any language can rebuild them:
weight i of a target is dropped if (i · 2654435761 mod 2^32) < share · 2^32. Masks that share are changed on the
weights for which ((i + 1000 · j) · 2246822519 mod 2^32) < 0.01 · 2^32, j the number of the persona.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from personae.subnetwork import Artefact, CalibrationIdentity, Mask, ModelIdentity, Provenance, Subnetwork

Shapes = dict[str, tuple[int, int]]

SHAPES: Shapes = {"model.layers.0.mlp.up_proj.weight": (30, 41), "model.layers.0.self_attn.q_proj.weight": (16, 16)}


def golden_mask(shape: tuple[int, int], share: float, changed: int | None = None) -> Mask:
    i = np.arange(shape[0] * shape[1], dtype=np.uint64)
    dropped = i * np.uint64(2654435761) % np.uint64(2**32) < share * 2**32
    if changed is not None:
        dropped ^= (i + np.uint64(1000 * changed)) * np.uint64(2246822519) % np.uint64(2**32) < 0.01 * 2**32
    return Mask.from_dropped(dropped.reshape(shape))


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


def shared_artefact() -> Artefact:
    """Three personas that are alike on one target of two, and one that is like none; each kind of payload occurs."""
    small, large = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"
    shapes: Shapes = {small: (16, 16), large: (96, 128)}
    model = ModelIdentity(id="golden/model", fingerprint="feed", architecture="L", dtype="float32", targets=shapes)
    personas = {}
    for j, name in enumerate(["eins", "zwei", "drei", "fremd"]):
        masks = {small: golden_mask(shapes[small], 0.3, j)}
        masks[large] = golden_mask(shapes[large], 0.5, j) if name != "fremd" else golden_mask(shapes[large], 0.02)
        personas[name] = Subnetwork(name, masks, Provenance(method="directed", sparsity=0.5))
    return Artefact(model, personas)


if __name__ == "__main__":
    golden_artefact().save(Path(__file__).with_name("golden.persona"))
    shared_artefact().save(Path(__file__).with_name("shared.persona"))
