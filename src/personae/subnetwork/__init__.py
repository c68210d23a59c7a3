"""The artefact: masks, their algebra and provenance, and one `.persona` file on disk."""

from __future__ import annotations

from personae.subnetwork.artefact import Artefact, Subnetwork
from personae.subnetwork.codec import decode, encode
from personae.subnetwork.comparison import Comparison, compare
from personae.subnetwork.layout import ArtefactHeader, PayloadEntry, PersonaEntry
from personae.subnetwork.mask import Mask, difference_count, difference_rate
from personae.subnetwork.provenance import CalibrationIdentity, ModelIdentity, Provenance
from personae.subnetwork.storage import add_persona, inspect, load, remove_persona, save

__all__ = [
    "Artefact",
    "ArtefactHeader",
    "CalibrationIdentity",
    "Comparison",
    "Mask",
    "ModelIdentity",
    "PayloadEntry",
    "PersonaEntry",
    "Provenance",
    "Subnetwork",
    "add_persona",
    "compare",
    "decode",
    "difference_count",
    "difference_rate",
    "encode",
    "inspect",
    "load",
    "remove_persona",
    "save",
]
