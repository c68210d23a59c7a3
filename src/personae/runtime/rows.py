"""Forwards of the whole model in which each row of the batch wears a look of its own.

Hooks on the targets that some look changes give every row what is its own. They take the model's output of a target
and add what the looks change in it, for all rows at once (`mixed`); the base weights are never written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from personae.errors import ModelError, OptionError, PersonaInUseError
from personae.models import Target
from personae.runtime.look import BASE, Look
from personae.runtime.mixed import Joined

__all__ = ["Batch", "Layout", "in_use", "kinds_of"]

_KEY = -1  # of our hooks in a module's dictionaries; PyTorch's own keys count from 0


def in_use(model: nn.Module) -> bool:
    """Whether the block of some batch is open on this model."""
    return _KEY in model._forward_pre_hooks


@dataclass(frozen=True, eq=False)
class Layout:
    """Which row of a batch is of which look.

    looks: those that are not the base model, sorted, so that rows which come and go in any order need no new product as
    long as the looks are the same. of_row: (rows,), the number of each row's look; len(looks) for the base. gather:
    (most · looks,), the first row of each look, the second of each, …, with row 0 where a look has fewer than `most`.
    back: (rows,), where in `gather` each row stands; 0 for the base. base: (rows, 1, 1), whether a row is the base
    model's; None where none is. in_order: whether `gather` is every row, once and in order.
    """

    looks: tuple[Look, ...]
    of_row: torch.Tensor
    most: int
    gather: torch.Tensor
    back: torch.Tensor
    base: torch.Tensor | None
    in_order: bool

    @classmethod
    def of(cls, looks: Sequence[Look], device: torch.device) -> Layout:
        """The layout of a batch whose row i is under looks[i]."""
        kinds = kinds_of(looks)
        mine = [[row for row, look in enumerate(looks) if look == kind] for kind in kinds]
        most = max(map(len, mine), default=0)
        filled = [rows[i] if i < len(rows) else None for i in range(most) for rows in mine]
        place = {row: place for place, row in enumerate(filled) if row is not None}
        base = [look == BASE for look in looks]

        def integers(numbers: Iterable[int]) -> torch.Tensor:
            return torch.tensor(list(numbers), dtype=torch.int64, device=device)

        return cls(
            kinds,
            integers(kinds.index(look) if look != BASE else len(kinds) for look in looks),
            most,
            integers(row or 0 for row in filled),
            integers(place.get(row, 0) for row in range(len(looks))),
            torch.tensor(base, device=device).view(-1, 1, 1) if any(base) else None,
            filled == list(range(len(looks))),
        )


def kinds_of(looks: Iterable[Look]) -> tuple[Look, ...]:
    """The looks of a batch that are not the base model, each once, sorted."""
    return tuple(sorted({look for look in looks if look != BASE}))


class Batch:
    """The hooks of one batch, made once and put on for each `block`.

    size: its rows. steps: each target that some look changes, the layout of the rows (on the target's device), and
    what the looks change, in the order of `layout.looks`.
    """

    def __init__(self, size: int, steps: Sequence[tuple[Target, Layout, Joined]]) -> None:
        self.size = size
        self.tokens: int | None = None  # of a row, in the forward that runs
        self.called: set[str] = set()  # targets that the forward that runs has used
        self._steps = [_Step(self, *step) for step in steps]

    @property
    def targets(self) -> list[Target]:
        """Those that it changes."""
        return [step.target for step in self._steps]

    @contextlib.contextmanager
    def block(self, model: nn.Module) -> Iterator[None]:
        """Forwards of `model` inside are of this batch. They need no gradient, and none is computed."""
        if in_use(model):
            raise PersonaInUseError("rows() inside rows(), or of another PersonaModel on this model: leave that first.")
        # PyTorch's own way costs some microseconds a hook and target at every step, and between the registration and
        # keeping its handle an interruption would leave a hook behind. A key that is known before needs no handle.
        try:
            model._forward_pre_hooks[_KEY] = self._begin
            model._forward_pre_hooks_with_kwargs[_KEY] = True
            model._forward_hooks[_KEY] = self._end
            for step in self._steps:
                module = step.target.module
                if step.columns is not None:
                    module._forward_pre_hooks[_KEY] = step.before
                module._forward_hooks[_KEY] = step.after
            with torch.no_grad():
                yield
        finally:
            for step in self._steps:
                step.target.module._forward_pre_hooks.pop(_KEY, None)
                step.target.module._forward_hooks.pop(_KEY, None)
            model._forward_pre_hooks.pop(_KEY, None)
            model._forward_pre_hooks_with_kwargs.pop(_KEY, None)
            model._forward_hooks.pop(_KEY, None)
            self.tokens = None

    def by_row(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """A target's input or output as (rows, tokens, channels), a view: some models hand it on flattened."""
        if tensor.ndim == 3 and tensor.shape[0] == self.size:
            return tensor
        if tensor.ndim == 2 and self.tokens is not None and tensor.shape[0] == self.size * self.tokens:
            return tensor.view(self.size, self.tokens, -1)
        raise ModelError(
            f"{name} meets a tensor of shape {tuple(tensor.shape)}, in which the {self.size} rows of the batch cannot "
            "be told apart: call the whole model inside rows(), or put these personas on with set_persona()."
        )

    def _begin(self, model: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = [options.get("input_ids"), options.get("inputs_embeds"), *arguments[:1]]
        tokens = next((each for each in given if each is not None), None)
        if tokens is None or tokens.ndim < 2:
            raise OptionError("a forward inside rows() needs input_ids, (rows, tokens), or inputs_embeds.")
        if tokens.shape[0] != self.size:
            raise OptionError(f"a forward of {tokens.shape[0]} rows inside rows() of {self.size} looks: give as many.")
        self.tokens = int(tokens.shape[1])
        self.called.clear()

    def _end(self, model: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
        self.tokens = None
        for step in self._steps:
            if step.target.name not in self.called:
                raise ModelError(
                    f"the model used {step.target.name} without calling its module, so no row wore what it should: "
                    "put these personas on with set_persona() instead."
                )


class _Step:
    """The two hooks of one target."""

    def __init__(self, batch: Batch, target: Target, layout: Layout, joined: Joined) -> None:
        self.target, self.product = target, joined.product
        self._batch, self._layout, self._name = batch, layout, target.name

        def of_rows(table: torch.Tensor | None) -> torch.Tensor | None:
            return None if table is None else table.index_select(0, layout.of_row).unsqueeze(1)  # (rows, 1, channels)

        self.columns, self._gates, self._offsets = map(of_rows, (joined.columns, joined.rows, joined.offsets))

    def before(self, module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The input with each row's channels gated."""
        assert self.columns is not None
        inputs, *others = arguments
        gated = self._batch.by_row(inputs, self._name) * self.columns
        return gated.to(inputs.dtype).view(inputs.shape), *others

    def after(self, module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Each row's output becomes what it is under the row's look, in place."""
        batch, name = self._batch, self._name
        batch.called.add(name)
        outputs = batch.by_row(output, name)
        if self.product is not None:
            self._subtract(batch.by_row(arguments[0], name), outputs)
        if self._gates is not None:
            outputs.mul_(self._gates)
            if self._offsets is not None:
                outputs.add_(self._offsets)

    def _subtract(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """y ← y − x·Δᵀ in place; inputs (rows, tokens, in), outputs (rows, tokens, out)."""
        layout, product = self._layout, self.product
        assert product is not None
        most, tokens, kind = layout.most, inputs.shape[1], product.dtype
        if layout.in_order and tokens == 1 and outputs.dtype == kind and inputs.is_contiguous():
            _add_lost(product, inputs.view(most, -1), outputs.view(most, -1), beta=1)  # nothing has to be moved
            return
        # (most · looks, tokens, in) -> (most · tokens, looks · in)
        moved = inputs.index_select(0, layout.gather).to(kind)
        moved = moved.view(most, -1, tokens, inputs.shape[2]).transpose(1, 2).reshape(most * tokens, -1)
        lost = moved.new_empty(most * tokens, product.shape[0])
        _add_lost(product, moved, lost, beta=0)
        # (most · tokens, looks · out) -> (rows, tokens, out)
        lost = lost.view(most, tokens, -1, outputs.shape[2]).transpose(1, 2).reshape(-1, tokens, outputs.shape[2])
        lost = lost.index_select(0, layout.back)  # index_add_ would take ten times as long: a call for each row
        if layout.base is not None:
            lost.masked_fill_(layout.base, 0)  # not times 0: what another row loses may be no number
        if outputs.dtype == kind:
            outputs.add_(lost)
        else:  # rounded once, not twice
            outputs.copy_(lost.add_(outputs))


def _add_lost(product: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor, beta: int) -> None:
    """y ← β·y − x·Δᵀ in place, β 0 or 1, for Δ = product; inputs (n, looks · in), outputs (n, looks · out)."""
    if len(inputs) == 1:  # twice as fast as a product with a matrix of one column
        torch.addmv(outputs[0], product, inputs[0], beta=beta, alpha=-1, out=outputs[0])
    else:  # transposed views: what is contiguous stays so, and nothing is copied
        torch.addmm(outputs.T, product, inputs.T, beta=beta, alpha=-1, out=outputs.T)
