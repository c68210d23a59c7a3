"""Provenance records refuse what a file could not hold."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from personae.subnetwork import CalibrationIdentity, ModelIdentity, Provenance


def test_json_round_trip() -> None:
    provenance = Provenance(
        method="wanda",
        parameters={"sparsity": 0.3, "layers": [1, None, {"a": True}]},
        calibration=CalibrationIdentity(name="n", sha256="00", items=2, licence="MIT"),
        seed=2**70,
        sparsity=0.3,
        versions={"personae": "0.1"},
    )
    assert Provenance.model_validate_json(provenance.model_dump_json()) == provenance
    assert provenance.created is None


@pytest.mark.parametrize(
    "bad",
    [{"sparsity": 1.5}, {"sparsity": float("nan")}, {"measured": {"x": [float("inf")]}}, {"extra": 1}],
)
def test_bad_values(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Provenance.model_validate({"method": "m", "sparsity": 0.1, **bad})


def test_records_are_frozen() -> None:
    model = ModelIdentity(id="a", fingerprint="f", architecture="L", dtype="float32", targets={"t": (2, 3)})
    with pytest.raises(ValidationError):
        model.id = "b"
