"""Subnetwork: one persona's masks with their provenance. Artefact: several of them for one model."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike

from pydantic import JsonValue

from personae.errors import MaskMismatchError, OptionError, UnknownPersonaError
from personae.subnetwork.mask import Mask, difference_count
from personae.subnetwork.provenance import ModelIdentity, Provenance

__all__ = ["Artefact", "Subnetwork", "check_persona_name", "check_target_name", "unknown_persona"]

_LONGEST_NAME = 100


@dataclass(frozen=True)
class Subnetwork:
    """The masks of one persona over targets of a model.

    The operators combine the **kept** weights of every target, as `Mask` does: & | ^ - and ~. Both sides
    must have the same targets; the result's provenance names the operation and its operands.

    Attributes:
        name: name of the persona: no '/', no control characters, at most 100 characters.
        masks: target name → mask, sorted by name. A target without a mask is kept whole; give untouched
            targets a full mask where `sparsity` shall count their weights.
        provenance: how the masks were made.
        description: the persona in words, for people.
        system_prompt: text for those who want to combine mask and prompt; never applied by itself.

    Raises:
        OptionError: a bad name of the persona or of a target, or no mask at all.
    """

    name: str
    masks: Mapping[str, Mask]
    provenance: Provenance
    description: str = ""
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        check_persona_name(self.name)
        if not self.masks:
            raise OptionError(f"subnetwork '{self.name}' has no masks: give one mask for each target")
        for target in self.masks:
            check_target_name(target)
        object.__setattr__(self, "masks", {target: self.masks[target] for target in sorted(self.masks)})

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets, sorted."""
        return tuple(self.masks)

    @property
    def size(self) -> int:
        """Number of weights of all its targets."""
        return sum(mask.size for mask in self.masks.values())

    @property
    def dropped(self) -> int:
        """Number of dropped weights over all targets."""
        return sum(mask.dropped for mask in self.masks.values())

    @property
    def sparsity(self) -> float:
        """Share of zeros over all weights of its targets, in [0, 1]."""
        return self.dropped / self.size

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the masks hold."""
        return sum(mask.nbytes for mask in self.masks.values())

    def renamed(self, name: str) -> Subnetwork:
        """The same subnetwork under another name."""
        return replace(self, name=name)

    def difference_rate(self, other: Subnetwork) -> float:
        """Share of target weights on which two subnetworks differ, in [0, 1].

        Raises:
            MaskMismatchError: other targets or other shapes.
        """
        self._check_same_targets(other)
        differing = sum(difference_count(mask, other.masks[target]) for target, mask in self.masks.items())
        return differing / self.size

    def __and__(self, other: Subnetwork) -> Subnetwork:
        """Weights kept in both."""
        return self._combined("intersection", "&", Mask.__and__, other)

    def __or__(self, other: Subnetwork) -> Subnetwork:
        """Weights kept in either."""
        return self._combined("union", "|", Mask.__or__, other)

    def __xor__(self, other: Subnetwork) -> Subnetwork:
        """Weights kept in exactly one."""
        return self._combined("symmetric-difference", "^", Mask.__xor__, other)

    def __sub__(self, other: Subnetwork) -> Subnetwork:
        """Weights kept in the first and not in the second."""
        return self._combined("difference", "-", Mask.__sub__, other)

    def __invert__(self) -> Subnetwork:
        """Weights that this subnetwork drops."""
        masks = {target: ~mask for target, mask in self.masks.items()}
        return _derived("complement", f"~{self.name}", masks, (self,))

    def _combined(
        self, operation: str, sign: str, combine: Callable[[Mask, Mask], Mask], other: Subnetwork
    ) -> Subnetwork:
        self._check_same_targets(other)
        masks = {target: combine(mask, other.masks[target]) for target, mask in self.masks.items()}
        return _derived(operation, f"{self.name}{sign}{other.name}", masks, (self, other))

    def _check_same_targets(self, other: Subnetwork) -> None:
        if self.targets != other.targets:
            unmatched = sorted(set(self.targets) ^ set(other.targets))
            raise MaskMismatchError(
                f"'{self.name}' and '{other.name}' have different targets ({len(unmatched)} unmatched, "
                f"such as {unmatched[0]}): combine subnetworks of the same model and target pattern"
            )


@dataclass(frozen=True)
class Artefact:
    """Subnetworks of one model, in order, as one `.persona` file holds them.

    Attributes:
        model: the model that all masks belong to.
        personas: persona name → subnetwork; the order is kept.
        metadata: free JSON about the whole file.

    Raises:
        MaskMismatchError: a mask's target is not one of the model's, or its shape differs.
        OptionError: a key is not its subnetwork's name.
    """

    model: ModelIdentity
    personas: Mapping[str, Subnetwork]
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, subnetwork in self.personas.items():
            if name != subnetwork.name:
                raise OptionError(f"subnetwork '{subnetwork.name}' stands under the name '{name}': rename one")
            check_fits(subnetwork, self.model)
        object.__setattr__(self, "personas", dict(self.personas))
        object.__setattr__(self, "metadata", dict(self.metadata))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the personas in their order."""
        return tuple(self.personas)

    def __getitem__(self, name: str) -> Subnetwork:
        if name not in self.personas:
            raise unknown_persona(name, self.names)
        return self.personas[name]

    def __contains__(self, name: object) -> bool:
        return name in self.personas

    def __iter__(self) -> Iterator[str]:
        return iter(self.personas)

    def __len__(self) -> int:
        return len(self.personas)

    def add(self, subnetwork: Subnetwork, *, overwrite: bool = False) -> Artefact:
        """A new artefact with one more persona.

        Raises:
            OptionError: the name is taken and `overwrite` is False.
            MaskMismatchError: a mask does not fit the model.
        """
        check_free(subnetwork.name, self.names, overwrite=overwrite)
        return replace(self, personas={**self.personas, subnetwork.name: subnetwork})

    def without(self, name: str) -> Artefact:
        """A new artefact without one persona; UnknownPersonaError if it is not there."""
        removed = self[name]
        return replace(self, personas={n: s for n, s in self.personas.items() if s is not removed})

    def save(self, path: str | PathLike[str], *, overwrite: bool = True) -> None:
        """Write one `.persona` file atomically; see `personae.subnetwork.save`."""
        from personae.subnetwork import storage  # storage is written in terms of this module

        storage.save(self, path, overwrite=overwrite)

    @staticmethod
    def load(path: str | PathLike[str]) -> Artefact:
        """Read a `.persona` file; see `personae.subnetwork.load`."""
        from personae.subnetwork import storage

        return storage.load(path)


# ---------------------------------------------------------------------- checks


def check_persona_name(name: str) -> None:
    """Raise OptionError unless the name is printable, without '/', of 1 to 100 characters."""
    # '/' separates persona and target in the file, where the name also has to be valid UTF-8.
    if not name.strip() or len(name) > _LONGEST_NAME or "/" in name or _has_controls(name):
        raise OptionError(
            f"bad persona name {name[:_LONGEST_NAME]!r}: use 1 to {_LONGEST_NAME} characters, "
            "without '/' and control characters"
        )


def check_target_name(name: str) -> None:
    """Raise OptionError if the name is empty or holds control characters."""
    if not name or _has_controls(name):
        raise OptionError(f"bad target name {name!r}: use the weight's name in the checkpoint")


def check_fits(subnetwork: Subnetwork, model: ModelIdentity) -> None:
    """Raise MaskMismatchError unless every mask is of one of the model's targets and of its shape."""
    for target, mask in subnetwork.masks.items():
        shape = model.targets.get(target)
        if shape != mask.shape:
            found = "has no such target" if shape is None else f"has shape {shape} there"
            raise MaskMismatchError(
                f"persona '{subnetwork.name}' masks {target} of shape {mask.shape}, but {model.id} {found}: "
                "use masks that were made for this model"
            )


def check_free(name: str, taken: tuple[str, ...], *, overwrite: bool) -> None:
    """Raise OptionError if the name is taken and may not be overwritten."""
    if name in taken and not overwrite:
        raise OptionError(f"persona '{name}' is already there: choose another name, or overwrite=True")


def unknown_persona(name: str, names: tuple[str, ...]) -> UnknownPersonaError:
    """The error for a name that is not among the names, which it lists."""
    listed = ", ".join(names) or "none"
    return UnknownPersonaError(f"no persona '{name}' in this artefact; it has: {listed}")


def _has_controls(name: str) -> bool:
    # Cc control characters; Cs lone surrogates, which have no UTF-8 form.
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


def _derived(operation: str, name: str, masks: dict[str, Mask], operands: tuple[Subnetwork, ...]) -> Subnetwork:
    """A subnetwork made by set algebra; what was measured on the operands does not hold for it."""
    dropped, size = sum(m.dropped for m in masks.values()), sum(m.size for m in masks.values())
    described: list[JsonValue] = [
        {"name": o.name, "method": o.provenance.method, "parameters": o.provenance.parameters} for o in operands
    ]
    licences = sorted({o.provenance.licence for o in operands if o.provenance.licence})
    provenance = Provenance(
        method=operation,
        parameters={"operands": described},
        sparsity=dropped / size,
        sparsity_per_target={target: mask.sparsity for target, mask in masks.items()},
        licence=" AND ".join(licences) or None,
    )
    return Subnetwork(name[:_LONGEST_NAME], masks, provenance)
