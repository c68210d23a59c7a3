"""Personas as text: what a contrast is, readers of public formats, splits by question, polarity."""

from __future__ import annotations

from personae.personas.formats import FIELDS
from personae.personas.load import load_contrast, load_persona
from personae.personas.polarity import Polarity, is_tied, polarity, yes_baseline
from personae.personas.sources import list_contrasts
from personae.personas.split import Split, cross_fit, split
from personae.personas.trait import Trait, read_trait
from personae.personas.types import Contrast, Pair, Persona, Sample

FORMATS = tuple(FIELDS)

__all__ = [
    "FORMATS",
    "Contrast",
    "Pair",
    "Persona",
    "Polarity",
    "Sample",
    "Split",
    "Trait",
    "cross_fit",
    "is_tied",
    "list_contrasts",
    "load_contrast",
    "load_persona",
    "polarity",
    "read_trait",
    "split",
    "yes_baseline",
]
