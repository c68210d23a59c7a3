"""Which part of a target's output comes through the weights that one persona alone drops.

D_p ∈ {0,1}^{out×in} is 1 where persona p drops a weight and no other persona of the artefact does. With x_t a target's
input at token t, W its weights, and the sums over all targets of one kind (attention, MLP) in one block b,

    share_{p,b,kind,t} = sqrt( Σ_W ‖(W ⊙ D_p) x_t‖² / Σ_W ‖W x_t‖² )

(a bias belongs to neither). Everything is read in one forward of the base model, for all personas at once: hooks on the
targets multiply the inputs of the tokens in question by one sparse matrix, the personas' weights under each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from personae.errors import ModelError
from personae.models import Target
from personae.runtime.mixed import Split, change, csr
from personae.subnetwork import Mask
from personae.subnetwork.mask import differing, is_sparse

__all__ = ["Flow", "Squares", "exclusive", "layers_of", "shares"]

Floats = NDArray[np.float64]
Layer = tuple[int, str]  # block, kind
Masks = Mapping[str, Mask]


def exclusive(personas: Sequence[Masks]) -> list[dict[str, Mask]]:
    """D_p of every persona as masks that drop the weights which p alone drops; targets with none are left out.

    personas: each one's masks by target. Errors: `MaskMismatchError` for two shapes of one target.
    """
    once: dict[str, Mask] = {}  # dropped by at least one
    twice: dict[str, Mask] = {}  # by at least two
    for own in personas:
        for name, mask in own.items():
            if name in once:
                again = once[name] | mask  # dropped in both
                twice[name] = twice[name] & again if name in twice else again
                once[name] = once[name] & mask
            else:
                once[name] = mask
    found = []
    for own in personas:
        alone = {name: differing(own[name], own[name] | twice[name]) if name in twice else own[name] for name in own}
        found.append({name: alone[name] for name in sorted(alone) if alone[name].dropped})
    return found


def layers_of(targets: Sequence[Target]) -> list[Layer]:
    """The (block, kind) of the targets, sorted."""
    return sorted({(target.block, target.kind) for target in targets})


@dataclass(frozen=True, eq=False)
class Squares:
    """Sums of squares over the targets of each layer, for N tokens.

    lost: ‖(W ⊙ D_p) x‖², (personas, layers, N) float64. whole: ‖W x‖², (layers, N).
    """

    lost: Floats
    whole: Floats


def shares(squares: Squares) -> Floats:
    """share_{p,layer,t}, (personas, layers, N); nan where the layer's whole output is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = squares.lost / squares.whole[None]
    result: Floats = np.where(squares.whole[None] > 0, np.sqrt(ratio), np.nan)
    return result


class Flow:
    """Reads the squares of all personas in forwards of the base model.

    targets: of the model. personas: D_p of each (`exclusive`). The weights are read now and must not change while this
    is used. layers: those that are read, in the order of `Squares`. unread: how many of the weights in D_p lie in
    experts, whose inputs do not show which token is whose; they are left out.

    Errors: `ModelError` for weights that are no plain numbers.
    """

    def __init__(self, model: nn.Module, targets: Sequence[Target], personas: Sequence[Masks]) -> None:
        routed = _routed(model, targets)
        read = [target for target in targets if target.name not in routed]
        self.layers = layers_of(read)
        self.personas = len(personas)
        self.unread = sum(mask.dropped for each in personas for name, mask in each.items() if name in routed)
        self._sites = [
            _Site(target, self.layers.index((target.block, target.kind)), [each.get(target.name) for each in personas])
            for target in read
        ]

    @contextlib.contextmanager
    def reading(self, rows: torch.Tensor) -> Iterator[list[Squares]]:
        """One forward of the base model inside; then the list holds its squares.

        rows: (B, T) bool, the tokens that are read, row-major. Errors: `ModelError` where a target is not given all
        tokens of the batch. It needs no gradient, and takes none.
        """
        chosen = rows.flatten().nonzero().flatten()
        lost = np.zeros((self.personas, len(self.layers), len(chosen)))
        whole = np.zeros((len(self.layers), len(chosen)))
        found: list[Squares] = []

        def watch(site: _Site) -> Any:
            def see(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
                inputs, outputs = (_tokens(each, rows, site.target.name) for each in (arguments[0], output))
                at = chosen.to(inputs.device)
                with torch.no_grad():
                    own, all_ = site.squares(inputs.index_select(0, at), outputs.index_select(0, at))
                if own is not None:
                    lost[:, site.layer] += own.double().cpu().numpy()
                whole[site.layer] += all_.double().cpu().numpy()

            return see

        handles = []
        try:
            for site in self._sites:
                handles.append(site.target.module.register_forward_hook(watch(site)))
            yield found
        finally:
            for handle in handles:
                handle.remove()
        found.append(Squares(lost, whole))


class _Site:
    """One target: the personas' exclusive weights under each other, sparse, or where they are many only their masks."""

    def __init__(self, target: Target, layer: int, masks: Sequence[Mask | None]) -> None:
        self.target, self.layer = target, layer
        self._masks = [Mask.full(target.shape) if mask is None else mask for mask in masks]
        self._dtype = torch.promote_types(target.parameter.dtype, torch.float32)
        dropped = sum(mask.dropped for mask in self._masks)
        self._empty = dropped == 0
        if not self._empty and not (target.parameter.is_floating_point() and target.parameter.is_contiguous()):
            raise ModelError(f"{target.name} does not hold plain numbers: load the model in float32 or bfloat16.")
        self._product: torch.Tensor | None = None  # (P·out, in)
        if not self._empty and is_sparse(dropped, len(self._masks) * target.size):
            self._product = self._sparse()

    def squares(self, inputs: torch.Tensor, outputs: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """(‖(W ⊙ D_p) x‖², (P, N), None where all D_p are empty; ‖W x‖², (N,)) from x (N, in) and W x + b (N, out)."""
        bias = getattr(self.target.module, "bias", None)
        wide = outputs.to(self._dtype)
        whole = (wide if bias is None else wide - bias.to(self._dtype)).square().sum(1)
        if self._empty:
            return None, whole
        x = inputs.to(self._dtype)
        if self._product is not None:
            lost = (self._product @ x.T).view(len(self._masks), -1, len(x))  # (P, out, N)
            return lost.square().sum(1), whole
        # One dense matrix at a time: a mask of half of the weights would take several times the model as a sparse one.
        return torch.stack([(x @ self._dense(mask).T).square().sum(1) for mask in self._masks]), whole

    def _dense(self, mask: Mask) -> torch.Tensor:
        """W ⊙ D_p, (out, in)."""
        weight = self.target.weight
        return torch.from_numpy(mask.dropped_bool()).to(weight.device) * weight.to(self._dtype)

    def _sparse(self) -> torch.Tensor:
        """All W ⊙ D_p under each other, (P·out, in) CSR."""
        # A gate of 0 on the dropped weights takes away just these: what `change` returns is their values.
        gone = [
            change(self.target, Split(None, None, mask.positions(), np.zeros(mask.dropped, np.float32)))
            for mask in self._masks
        ]
        counts = torch.cat([each.counts for each in gone])
        starts = torch.zeros(counts.numel() + 1, dtype=torch.int32, device=counts.device)
        torch.cumsum(counts, 0, dtype=torch.int32, out=starts[1:])
        inputs, values = (torch.cat([getattr(each, part) for each in gone]) for part in ("inputs", "values"))
        return csr(starts, inputs, values, (len(self._masks) * self.target.shape[0], self.target.shape[1]))


def _tokens(tensor: torch.Tensor, rows: torch.Tensor, name: str) -> torch.Tensor:
    """A target's input or output as (B·T, channels): some models hand it on flattened."""
    flat = tensor.detach().reshape(-1, tensor.shape[-1])
    if len(flat) != rows.numel():
        raise ModelError(
            f"{name} meets a tensor of shape {tuple(tensor.shape)}, in which the {rows.numel()} tokens of the batch "
            "cannot be told apart: trace without the flow (flow=False, --no-flow)."
        )
    return flat


def _routed(model: nn.Module, targets: Sequence[Target]) -> set[str]:
    """Targets that see only the tokens a router sends them: fused experts, and any in a list inside a block."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return {
        target.name
        for target in targets
        if target.expert is not None or sum(target.module_name.startswith(f"{name}.") for name in lists) > 1
    }
