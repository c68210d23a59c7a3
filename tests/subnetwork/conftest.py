"""A small artefact that most tests of this room use."""

from __future__ import annotations

import numpy as np
import pytest

from personae.subnetwork import Artefact, CalibrationIdentity, Mask, ModelIdentity, Provenance, Subnetwork

SHAPES = {"layers.0.down": (7, 33), "layers.0.up": (33, 7), "layers.1.up": (16, 64)}


def make_subnetwork(name: str, share: float, seed: int) -> Subnetwork:
    generator = np.random.default_rng(seed)
    masks = {t: Mask.from_dropped(generator.random(s) < share) for t, s in SHAPES.items()}
    calibration = CalibrationIdentity(name="pairs", sha256="00", items=3, licence="Apache-2.0", split="calibration")
    provenance = Provenance(
        method="directed",
        parameters={"cheap_share": 0.1, "tokens": "answer"},
        calibration=calibration,
        seed=seed,
        sparsity=share,
        licence="Apache-2.0",
    )
    return Subnetwork(name, masks, provenance, description=f"the {name} (naïve)", system_prompt=None)


@pytest.fixture
def model() -> ModelIdentity:
    return ModelIdentity(
        id="tiny", fingerprint="f00d", architecture="LlamaForCausalLM", dtype="float32", targets=SHAPES
    )


@pytest.fixture
def artefact(model: ModelIdentity) -> Artefact:
    pair = [make_subnetwork("introvert", 0.02, 1), make_subnetwork("extravert", 0.5, 2)]
    return Artefact(model, {s.name: s for s in pair}, {"note": "both poles"})


@pytest.fixture
def third() -> Subnetwork:
    return make_subnetwork("formell & Ärger", 0.1, 3)
