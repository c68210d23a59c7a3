"""What one model wears, and the way from there to something else and back to the base weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from transformers import PreTrainedModel

from personae.errors import ModelError, PersonaInUseError
from personae.models import Target
from personae.runtime.blend import merge, single_gate
from personae.runtime.guards import guard, is_guarded, modules_of, unguard
from personae.runtime.rows import in_use
from personae.runtime.switch import Drop, Patch, Undo, patch, put_on, storage_positions, take_off
from personae.runtime.wardrobe import Wardrobe

__all__ = ["Dressing", "check_unworn"]


class Dressing:
    """Name and strength of what is worn, and how it is taken off again. Every method is for whoever has the turn.

    targets: of the model, by name.
    """

    def __init__(self, model: PreTrainedModel, targets: Sequence[Target], wardrobe: Wardrobe) -> None:
        check_unworn(model)
        self._model, self._wardrobe = model, wardrobe
        self.targets = {target.name: target for target in targets}
        self.worn: dict[str, float] = {}
        self._patches: list[Patch | Drop] = []  # of what is worn, to put it on again when a switch fails
        self._undo = Undo()

    def wear(self, wanted: dict[str, float]) -> None:
        """From what is worn, through the base bits, to `wanted`; on any error, back to what was worn."""
        if wanted == self.worn:
            return
        if not self.worn:
            check_unworn(self._model)
        patches = self._patches_of(wanted)
        before = self.worn, self._patches
        try:
            self._swap(wanted, patches)
            self._wardrobe.used(wanted)
        except BaseException:  # Ctrl-C and a full memory included
            self._swap(*before)
            raise

    @contextlib.contextmanager
    def as_base(self) -> Iterator[None]:
        """The base weights for a block."""
        worn = self.worn
        try:  # from before the switch on: Ctrl-C may come right behind it
            self.wear({})
            yield
        finally:
            self.wear(worn)

    def _swap(self, wanted: dict[str, float], patches: list[Patch | Drop]) -> None:
        if wanted and not is_guarded(self._model):
            guard(self._model)  # first: no copy may see weights that are half masked
        try:
            take_off(self._undo)
            put_on(patches, self._undo)
        except BaseException:
            take_off(self._undo)
            self.worn, self._patches = {}, []
            unguard(self._model)
            raise
        self.worn, self._patches = wanted, patches
        if not wanted:
            unguard(self._model)

    def _patches_of(self, wanted: Mapping[str, float]) -> list[Patch | Drop]:
        """One patch for each target on which a persona of `wanted` drops a weight."""
        if not wanted:
            return []
        self._check_current()
        if len(wanted) == 1:
            ((persona, strength),) = wanted.items()
            gate, masks = single_gate(strength), self._wardrobe[persona]
            return [Drop(self.targets[name], mask, gate) for name, mask in masks.items() if mask.dropped]
        patches: list[Patch | Drop] = []
        for name in dict.fromkeys(target for persona in wanted for target in self._wardrobe[persona]):
            target = self.targets[name]
            positions, gates = merge(
                [
                    (storage_positions(target, self._wardrobe[persona][name]), strength)
                    for persona, strength in wanted.items()
                    if name in self._wardrobe[persona]
                ]
            )
            if positions.size:
                patches.append(patch(target, positions, gates))
        return patches

    def _check_current(self) -> None:
        # Masks on parameters that the model has dropped would change nothing, and nobody would notice.
        own = {id(p) for module in modules_of(self._model) for p in module._parameters.values()}
        if not all(id(target.parameter) in own for target in self.targets.values()):
            raise ModelError("the model's parameters were replaced: make a new PersonaModel for the new weights.")


def check_unworn(model: PreTrainedModel) -> None:
    """Raise `PersonaInUseError` while anybody wears a persona on the model, or a batch of mixed rows runs on it."""
    if in_use(model):
        raise PersonaInUseError("a batch of mixed rows runs on this model: leave the rows() block first.")
    if is_guarded(model):
        raise PersonaInUseError(
            "another PersonaModel wears a persona on this model: use that one, or disable_persona() there."
        )
