"""Where a subnetwork comes from: the model, the text, the method and what was measured.

Plain frozen records that go into the file as JSON. None of them holds a time unless the caller gives one,
so the same discovery writes the same bytes, but for the seconds it took (`measured`).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue

__all__ = ["CalibrationIdentity", "ModelIdentity", "Provenance"]


class _Record(BaseModel):
    # inf and nan have no JSON form; refuse them here and not when the file is written.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelIdentity(_Record):
    """The model that masks belong to.

    Attributes:
        id: Hub id, folder name or the name of the default model.
        revision: commit on the Hub, where there is one.
        fingerprint: hash of the target weights; masks fit weights with this fingerprint only.
        architecture: class name of the model, such as 'LlamaForCausalLM'.
        dtype: the dtype in which discovery ran, such as 'float32'.
        targets: name of every target weight in the checkpoint → (out, in).
    """

    id: str
    revision: str | None = None
    fingerprint: str
    architecture: str
    dtype: str
    targets: dict[str, tuple[int, int]]


class CalibrationIdentity(_Record):
    """The text that statistics or gradients were taken on.

    Attributes:
        name: name of the contrast or persona.
        sha256: hash of its items in their order, hexadecimal.
        items: number of pairs or answers used.
        licence: licence of the text, 'unknown' if its source does not say.
        split: which part was used, such as 'calibration'; None for all of it.
    """

    name: str
    sha256: str
    items: int = Field(ge=0)
    licence: str
    split: str | None = None


class Provenance(_Record):
    """How a subnetwork was made.

    Attributes:
        method: name of the score or method (METHODS: 'directed', 'wanda', …) or of a set operation.
        parameters: every parameter of the method.
        calibration: the text, or None for methods that read none (magnitude, random).
        seed: seed of everything random, or None.
        sparsity: share of dropped weights over all target weights, in [0, 1].
        sparsity_per_target: the same for each target.
        measured: what evaluation found (accuracy, capability loss in nats a token, …), free JSON.
        versions: package → version.
        created: time of making, only if the caller wants one; None keeps artefacts deterministic.
        licence: licence of the subnetwork, an SPDX expression where possible.
    """

    method: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    calibration: CalibrationIdentity | None = None
    seed: int | None = None
    sparsity: float = Field(ge=0, le=1)
    sparsity_per_target: dict[str, float] = Field(default_factory=dict)
    measured: dict[str, JsonValue] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    created: str | None = None
    licence: str | None = None
