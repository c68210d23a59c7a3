"""Putting masks on stored weights in place, and taking them off again bit for bit.

Of every weight that changes, the stored bits are kept as integers, and put back as integers: no float
arithmetic ever touches what is restored. Weights that no mask drops are never written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from personae.errors import MaskMismatchError, ModelError, OptionError
from personae.models import Target
from personae.runtime.blend import Positions, check_strengths, single_gate
from personae.subnetwork import Mask

__all__ = ["Patch", "Undo", "check_masks", "patch", "put_on", "storage_positions", "take_off", "wearing"]

_INT32_LIMIT = 2**31
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of an element -> its bits


@dataclass(frozen=True, eq=False)
class Patch:
    """What changes in one stored parameter.

    parameter: the tensor. positions: sorted, distinct positions into `parameter.view(-1)`, (n,) int32 or
    int64. gate: G of each position, (n,) float32, or one number for all; 0 writes an exact zero.

    Errors: `OptionError` when positions and gates differ in number or a position is out of range;
    `ModelError` when the parameter holds no plain floating-point numbers (quantised or offloaded weights).
    """

    parameter: torch.Tensor
    positions: torch.Tensor
    gate: torch.Tensor | float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.gate, torch.Tensor) and self.gate.shape != self.positions.shape:
            raise OptionError(
                f"a patch of {self.positions.numel()} positions needs as many gates, not {self.gate.numel()}."
            )
        # Sorted, so the ends tell. A position below 0 would count from the end.
        if self.positions.numel() and (int(self.positions[0]) < 0 or int(self.positions[-1]) >= self.parameter.numel()):
            raise OptionError(
                f"positions {int(self.positions[0])}..{int(self.positions[-1])} do not fit a parameter of "
                f"{self.parameter.numel()} weights."
            )
        if not self.parameter.is_floating_point() or self.parameter.is_meta:
            raise ModelError(
                f"a weight of dtype {self.parameter.dtype} on device {self.parameter.device} cannot be masked "
                "in place: load the model in float32, bfloat16 or float16, and not offloaded."
            )


@dataclass(frozen=True, eq=False)
class _Saved:
    parameter: torch.Tensor
    positions: torch.Tensor
    bits: torch.Tensor


@dataclass(eq=False)
class Undo:
    """What `take_off` needs: the original bits of every weight written. Empty when all is restored."""

    saved: list[_Saved] = field(default_factory=list)


def put_on(patches: Sequence[Patch], undo: Undo | None = None) -> Undo:
    """Multiply the weights of all patches by their gates, in place: w ← w·G, computed in float32 or wider.

    Returns what `take_off` needs. A caller that must restore even after an interruption right behind
    this call passes its own empty `undo`. If anything fails halfway, all that was put on is taken back.
    """
    undo = Undo() if undo is None else undo
    try:
        for each in patches:
            _put_on(each, undo)
    except BaseException:  # Ctrl-C included
        take_off(undo)
        raise
    return undo


@torch.no_grad()
def _put_on(patch: Patch, undo: Undo) -> None:
    if not patch.positions.numel():
        return
    flat = _flat(patch.parameter)
    bits = flat.view(_BITS[flat.element_size()])
    index = patch.positions.to(flat.device)
    saved = bits.index_select(0, index)
    undo.saved.append(_Saved(patch.parameter, index, saved))  # before the first write
    if not isinstance(patch.gate, torch.Tensor) and patch.gate == 0:
        bits.index_fill_(0, index.long(), 0)  # all bits zero: +0.0, whatever stood there (NaN · 0 would stay NaN)
        return
    wide = torch.promote_types(flat.dtype, torch.float32)
    gate = torch.as_tensor(patch.gate, dtype=wide, device=flat.device)
    values = (saved.view(flat.dtype).to(wide) * gate).to(flat.dtype)
    flat.index_copy_(0, index.long(), torch.where(gate == 0, torch.zeros_like(values), values))


@torch.no_grad()
def take_off(undo: Undo) -> None:
    """Write the saved bits back, last patch first. Taking off twice does nothing the second time."""
    while undo.saved:
        last = undo.saved[-1]
        flat = _flat(last.parameter)
        flat.view(_BITS[flat.element_size()]).index_copy_(0, last.positions.long(), last.bits)
        undo.saved.pop()  # only now: an interruption in between leaves it to be written again


def _flat(parameter: torch.Tensor) -> torch.Tensor:
    if not parameter.is_contiguous():
        raise ModelError(f"a weight of shape {tuple(parameter.shape)} is not contiguous: call .contiguous() on it.")
    return parameter.detach().view(-1)


# -------------------------------------------------------------- masks -> patches


def check_masks(targets: Mapping[str, Target], masks: Mapping[str, Mask], owner: str = "the subnetwork") -> None:
    """Raise `MaskMismatchError` unless every mask is of a target of the model and of its shape."""
    for name, mask in masks.items():
        target = targets.get(name)
        if target is None:
            example = next(iter(targets), "none")
            raise MaskMismatchError(
                f"{owner} masks {name}, but the model has no such target (its targets look like {example}): "
                "use masks that were made for this model."
            )
        if target.shape != mask.shape:
            raise MaskMismatchError(
                f"{owner} masks {name} of shape {mask.shape}, but the model's has shape {target.shape}: "
                "use masks that were made for this model."
            )


def storage_positions(target: Target, mask: Mask) -> Positions:
    """Where the dropped weights of a target lie in its parameter: sorted positions into `view(-1)`, int64.

    Weight (i, j) lies at offset + i·strides[0] + j·strides[1].
    """
    positions = mask.positions()  # i·in + j
    down, right = target.strides
    if (down, right) == (mask.shape[1], 1):
        return positions + target.offset
    rows, columns = np.divmod(positions, mask.shape[1])
    stored: Positions = target.offset + rows * down + columns * right
    if right > down:  # Conv1D and transposed experts: row-major order is not the storage's
        stored.sort()
    return stored


def patch(target: Target, positions: Positions, gate: np.ndarray | float) -> Patch:
    """The patch of a target from storage positions, kept as int32 where they fit."""
    parameter = target.parameter
    kind = np.int32 if parameter.numel() < _INT32_LIMIT else np.int64
    gates = torch.from_numpy(gate) if isinstance(gate, np.ndarray) else float(gate)
    return Patch(parameter, torch.from_numpy(positions.astype(kind)), gates)


@contextlib.contextmanager
def wearing(targets: Sequence[Target], masks: Mapping[str, Mask], strength: float = 1.0) -> Iterator[None]:
    """The model under one subnetwork's masks, G = 1 - strength on dropped weights; then restored bit for bit.

    targets: of `find_targets(model)`. masks: by name of the target; a target without a mask is kept whole.
    strength: 0 (nothing) to 1 (dropped) and above. Blocks nest. For one thread: it takes no lock.

    Errors: `MaskMismatchError` for a mask of an unknown target or another shape; `OptionError` for a
    strength that is negative or no number. Then the model is untouched.
    """
    by_name = {target.name: target for target in targets}
    check_masks(by_name, masks)
    worn = check_strengths({"the subnetwork": strength})
    gate = single_gate(strength) if worn else 1.0
    patches = (
        []
        if gate == 1
        else [patch(by_name[name], storage_positions(by_name[name], mask), gate) for name, mask in masks.items()]
    )
    undo = Undo()  # made first, so that an interruption anywhere below still restores
    try:
        put_on(patches, undo)
        yield
    finally:
        take_off(undo)
