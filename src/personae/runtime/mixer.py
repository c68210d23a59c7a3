"""From the looks of a batch's rows to its hooks, keeping what was made for the steps that follow."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Generic, TypeVar

from torch import nn

from personae.errors import ModelError, OptionError
from personae.models import Target
from personae.runtime.blend import merge, single_gate
from personae.runtime.costs import Costs, cheaper, measure
from personae.runtime.look import Look, named
from personae.runtime.mixed import Change, Joined, Split, change, join, split
from personae.runtime.rows import Batch, Layout, kinds_of
from personae.runtime.wardrobe import Wardrobe, Worn

__all__ = ["Mixer", "Recent"]

_SHARE = 0.25  # of the memory of all targets: what is kept of single looks, and again of looks joined
_VERDICTS, _BATCHES = 1024, 16

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
LookKey = tuple[tuple[int, float], ...]  # (edition, strength): a name alone may come to mean other masks


class Recent(Generic[Key, Value]):
    """What was used last, as much as `limit` holds of it; the latest always stays. size: of one value."""

    def __init__(self, limit: float, size: Callable[[Value], float] = lambda value: 1) -> None:
        self._limit, self._size = limit, size
        self._kept: OrderedDict[Key, tuple[Value, float]] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of a key, made if it is not there."""
        if key not in self._kept:
            value = make()
            self._kept[key] = value, self._size(value)
            total = sum(size for _, size in self._kept.values())
            while total > self._limit and len(self._kept) > 1:
                total -= self._kept.popitem(last=False)[1][1]
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def forget(self, stale: Callable[[Key], bool]) -> None:
        """Drop every value whose key is stale."""
        for key in [key for key in self._kept if stale(key)]:
            del self._kept[key]


class _Together:
    """Looks joined on every target that one of them changes, and the batches made of them."""

    def __init__(self, joined: Mapping[str, tuple[Target, Joined]]) -> None:
        self.joined = joined
        self.nbytes = sum(each.nbytes for _, each in joined.values())
        self.batches: Recent[tuple[LookKey, ...], Batch] = Recent(_BATCHES)
        self._places = [(target, target.parameter.data_ptr()) for target, _ in joined.values()]

    @property
    def current(self) -> bool:
        """Whether the weights are still where they were read."""
        return all(target.parameter.data_ptr() == place for target, place in self._places)


class Mixer:
    """What mixed batches of one model need. `mixable` may be called from any thread; the rest in the model's turn.

    costs: of this machine; None: measured when first needed.
    """

    def __init__(
        self, model: nn.Module, targets: Mapping[str, Target], wardrobe: Wardrobe, costs: Costs | None
    ) -> None:
        self._model, self._wardrobe, self._given_costs = model, wardrobe, costs
        self._lock = threading.Lock()  # of the verdicts and the costs
        self.moved(targets)

    def moved(self, targets: Mapping[str, Target]) -> None:
        """Begin anew: the model's weights lie elsewhere or have another dtype."""
        with self._lock:
            self._targets = dict(targets)
            self._costs = self._given_costs
            self._weights = sum(target.size for target in targets.values())
            self._bytes = sum(target.size * target.parameter.element_size() for target in targets.values())
            self._mute = _rows_unknown(self._model, targets.values())
            self._verdicts: Recent[LookKey, bool] = Recent(_VERDICTS)
            self._changes: Recent[LookKey, dict[str, Change]] = Recent(
                _SHARE * self._bytes, lambda changes: sum(each.nbytes for each in changes.values())
            )
            self._together: Recent[tuple[LookKey, ...], _Together] = Recent(
                _SHARE * self._bytes, lambda together: together.nbytes
            )

    def forget(self) -> None:
        """Drop what belongs to personas that are gone."""
        there = self._wardrobe.editions

        def gone(key: LookKey) -> bool:
            return any(edition not in there for edition, _ in key)

        with self._lock:
            self._verdicts.forget(gone)
            self._changes.forget(gone)
            self._together.forget(lambda keys: any(map(gone, keys)))

    # -------------------------------------------------------------- deciding

    def mixable(self, look: Look) -> bool:
        """Whether a look can be given to a row of a batch, and is cheaper so. Errors: `UnknownPersonaError`."""
        worn = self._wardrobe.worn(look)
        with self._lock:
            return self._verdicts.get(_key(worn), lambda: self._verdict(worn))

    def _verdict(self, worn: Sequence[Worn]) -> bool:
        touched = self._touched(worn)
        if any(target.name in self._mute for target in touched):
            return False
        if not touched:
            return True
        if self._costs is None:
            self._costs = measure(list(self._targets.values()))
        nonzeros = 0
        for target in touched:
            nonzeros += split_of(worn, target).positions.size
            if not cheaper(nonzeros, len(touched), self._weights, len(self._targets), self._bytes, self._costs):
                return False  # a dense mask need not be read to its end
        return True

    def _touched(self, worn: Sequence[Worn]) -> list[Target]:
        """Targets of which a look drops weights, in the order of the model."""
        names = {name for each in worn for name, mask in each.masks.items() if mask.dropped}
        return [target for name, target in self._targets.items() if name in names]

    # ---------------------------------------------------------------- making

    def block(self, looks: Sequence[Look]) -> AbstractContextManager[None]:
        """The block in which a forward of rows of these looks may run; the base weights must be in place.

        Errors: `OptionError` for no looks or one that is not mixable; `UnknownPersonaError`; `ModelError` when the
        model's parameters were replaced.
        """
        if not looks:
            raise OptionError("a batch needs at least one row: give rows() the look of each.")
        worn = {look: self._wardrobe.worn(look) for look in set(looks)}
        for look in worn:
            if not self.mixable(look):
                raise OptionError(
                    f"{named(look)} cannot share a batch with others, or not more cheaply than in a forward of its "
                    "own (mixable() tells): put it on with set_persona()."
                )
        keys = {look: _key(each) for look, each in worn.items()}
        kinds = kinds_of(looks)
        together = self._together.get(
            tuple(keys[look] for look in kinds), lambda: self._join([worn[look] for look in kinds])
        )
        if not together.current:  # moved behind our back
            self.moved(self._targets)
            return self.block(looks)
        batch = together.batches.get(tuple(keys[look] for look in looks), lambda: self._batch(looks, together))
        if not all(_computes(target) for target in batch.targets):
            raise ModelError("the model's parameters were replaced: make a new PersonaModel for the new weights.")
        self._wardrobe.used(name for look in keys for name, _ in look)
        return batch.block(self._model)

    def _batch(self, looks: Sequence[Look], together: _Together) -> Batch:
        devices = {target.parameter.device for target, _ in together.joined.values()}
        layouts = {device: Layout.of(looks, device) for device in devices}
        return Batch(
            len(looks),
            [(target, layouts[target.parameter.device], joined) for target, joined in together.joined.values()],
        )

    def _join(self, looks: Sequence[Sequence[Worn]]) -> _Together:
        changes = [self._changes.get(_key(worn), partial(self._change, worn)) for worn in looks]
        names = {name for each in changes for name in each}
        return _Together(
            {
                name: (target, join(target, [each.get(name) for each in changes]))
                for name, target in self._targets.items()
                if name in names
            }
        )

    def _change(self, worn: Sequence[Worn]) -> dict[str, Change]:
        return {target.name: change(target, split_of(worn, target)) for target in self._touched(worn)}


def split_of(worn: Sequence[Worn], target: Target) -> Split:
    """The gate of one target under a look, taken apart."""
    parts = [(each.masks[target.name].positions(), each.strength) for each in worn if target.name in each.masks]
    if len(worn) == 1:
        return split(parts[0][0], single_gate(parts[0][1]), target.shape)
    return split(*merge(parts), target.shape)


def _key(worn: Sequence[Worn]) -> LookKey:
    return tuple((each.edition, each.strength) for each in worn)


def _rows_unknown(model: nn.Module, targets: Iterable[Target]) -> set[str]:
    """Targets whose inputs do not show which row of the batch they belong to.

    Experts are given the tokens routed to them: those that are fused into one parameter, and any in a list of modules
    within the list of blocks. Weights that are no plain numbers cannot be read.
    """
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    unknown = set()
    for target in targets:
        inside = sum(target.module_name.startswith(f"{name}.") for name in lists)
        stored = target.parameter
        plain = stored.is_floating_point() and not stored.is_meta and stored.is_contiguous()
        if target.expert is not None or inside > 1 or not plain or not _computes(target):
            unknown.add(target.name)
    return unknown


def _computes(target: Target) -> bool:
    """Whether the module still computes with the parameter that the target names."""
    return getattr(target.module, "weight", None) is target.parameter
