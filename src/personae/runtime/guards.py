"""While a persona is worn, whatever would copy or move the masked weights unnoticed is refused.

The refusals stand in the instance dictionaries of the model and of all modules inside it (`model.model`
is a way to the weights too), where Python and PyTorch look before the class. They are gone, without a
trace, as soon as the base weights are back.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NoReturn

from torch import nn
from transformers import PreTrainedConfig

from personae.errors import ModelError, PersonaInUseError

__all__ = ["guard", "is_guarded", "modules_of", "unguard"]

# attribute -> what the user did. `_apply` is behind to(), half(), cuda() and their kind; `__reduce_ex__`
# behind pickle and torch.save(model); `__getstate__` behind copy.copy.
_REFUSED = {
    "state_dict": "state_dict()",
    "load_state_dict": "load_state_dict()",
    "save_pretrained": "save_pretrained()",
    "_apply": "to(), half(), cuda() or another conversion",
    "__deepcopy__": "copy.deepcopy()",
    "__reduce_ex__": "pickling or torch.save()",
    "__getstate__": "copy.copy()",
}


_GUARDED = "_personae_guarded"  # in the model's own dictionary: the modules with refusals


@dataclass(frozen=True)
class _Refusal:
    """Stands in for one method of one module, and remembers what the instance had under that name."""

    operation: str
    hidden: tuple[object, ...]  # the instance's own attribute, or ()

    def __call__(self, *arguments: object, **options: object) -> NoReturn:
        raise PersonaInUseError(
            f"{self.operation} while a persona is worn would take masked weights for the model's own: call "
            "disable_persona() first (PersonaModel.to() and .save_pretrained() do so themselves)."
        )


def modules_of(model: nn.Module) -> list[nn.Module]:
    """A model and every module in it, each once, as `modules()` gives them.

    That makes up every module's full name on its way, which takes longer than to put a sparse persona on.
    """
    found, seen = [model], {model}
    for module in found:  # grows on the way
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)
    return found


def guard(model: nn.Module) -> None:
    """Refuse the operations of `_REFUSED` on a model and on all modules in it."""
    modules = modules_of(model)
    model.__dict__[_GUARDED] = modules  # first: an interruption below leaves no refusal behind that `unguard` misses
    for module in modules:
        own = module.__dict__
        refused = _refusals(type(module))  # type: ignore[arg-type]  # a class is hashable, whatever mypy says
        if not _REFUSED.keys().isdisjoint(own):
            refused = refused | {name: _Refusal(_REFUSED[name], (own[name],)) for name in _REFUSED.keys() & own.keys()}
        own.update(refused)


@functools.cache
def _refusals(kind: type[nn.Module]) -> dict[str, _Refusal]:
    """What modules of a class are given; it is made once, since a model has hundreds."""
    named = {name: _Refusal(operation, ()) for name, operation in _REFUSED.items()}
    return {name: refusal for name, refusal in named.items() if name.startswith("__") or hasattr(kind, name)}


def unguard(model: nn.Module) -> None:
    """Take every refusal away again."""
    for module in model.__dict__.get(_GUARDED, ()):
        own = module.__dict__
        for name in _REFUSED:
            refusal = own.get(name)
            if isinstance(refusal, _Refusal):
                del own[name]
                if refusal.hidden:
                    own[name] = refusal.hidden[0]
    model.__dict__.pop(_GUARDED, None)


def check_base(model: nn.Module, operation: str, *, reads: bool = True) -> None:
    """Raise `PersonaInUseError` if the model wears a persona: masked weights would be taken for the model's own.

    reads: it also runs the model, whose answers must not turn on chance: `ModelError` for one in training mode that
    drops out activations.
    """
    if is_guarded(model):
        raise PersonaInUseError(
            f"{operation} needs the base weights, but a persona is worn: call disable_persona() first."
        )
    if reads and model.training and (chances := _dropout(model)):
        raise ModelError(
            f"{operation} reads the model, but it is in training mode, where it drops out activations by chance "
            f"({', '.join(chances)}): call model.eval() first."
        )


def _dropout(model: nn.Module) -> list[str]:
    """The probabilities of dropout in its configuration that are not zero."""
    told = getattr(model, "config", None)
    numbers = told.get_text_config().to_dict() if isinstance(told, PreTrainedConfig) else {}
    return [
        f"{name} {value}"
        for name, value in sorted(numbers.items())
        if "drop" in name and not name.startswith(("classifier", "summary")) and isinstance(value, float) and value > 0
    ]


def is_guarded(model: nn.Module) -> bool:
    """Whether some PersonaModel wears a persona on this model."""
    return _GUARDED in model.__dict__
