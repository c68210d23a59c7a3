"""personae: find the subnetwork of a persona inside a frozen language model, keep it as a mask, wear it.

The names below are the Python face; each is imported when first used, so `import personae` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "load_model": "personae.models",
    "find_targets": "personae.models",
    "Contrast": "personae.personas",
    "Pair": "personae.personas",
    "Persona": "personae.personas",
    "list_contrasts": "personae.personas",
    "load_contrast": "personae.personas",
    "load_persona": "personae.personas",
    "Artefact": "personae.subnetwork",
    "Mask": "personae.subnetwork",
    "Subnetwork": "personae.subnetwork",
    "load": "personae.subnetwork",
    "save": "personae.subnetwork",
    "PersonaModel": "personae.runtime",
    "discover": "personae.discovery.discover",
    "evaluate": "personae.evaluation",
}

if TYPE_CHECKING:
    from personae.discovery import discover
    from personae.evaluation import evaluate
    from personae.models import find_targets, load_model
    from personae.personas import Contrast, Pair, Persona, list_contrasts, load_contrast, load_persona
    from personae.runtime import PersonaModel
    from personae.subnetwork import Artefact, Mask, Subnetwork, load, save

__all__ = [
    "Artefact",
    "Contrast",
    "Mask",
    "Pair",
    "Persona",
    "PersonaModel",
    "Subnetwork",
    "__version__",
    "discover",
    "evaluate",
    "find_targets",
    "list_contrasts",
    "load",
    "load_contrast",
    "load_model",
    "load_persona",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'personae' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
