"""Putting masks on stored weights in place, and taking them off again bit for bit.

Of every weight that changes, the stored bits are kept as integers, and put back as integers: no float
arithmetic ever touches what is restored. Weights that no mask drops keep their bits throughout.

A worn persona needs no more memory than its mask and the values that it dropped: where they lie is read from the mask
again when they are put back. Of a target that loses nearly half of its weights or more, all bits are kept instead, and
those of the dropped weights cleared with one AND, which is several times faster than going from weight to weight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from personae.errors import MaskMismatchError, ModelError, OptionError
from personae.models import Target
from personae.runtime.blend import Positions, check_strengths, single_gate
from personae.runtime.shared_out import shared_out
from personae.runtime.stored import BITS, Stored, flat_bits, read, rooms, save_and_clear, window, write
from personae.subnetwork import Mask

__all__ = [
    "Drop", "Patch", "Undo", "check_masks", "patch", "put_on", "storage_positions", "take_off", "undo_bytes", "wearing",
]  # fmt: skip

_INT32_LIMIT = 2**31
_MORE = 6  # bytes a dropped weight that mask and undo record may take beyond its value


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
        _check_maskable(self.parameter)

    @property
    def changed(self) -> int:
        """How many weights it writes."""
        return self.positions.numel()

    def index(self) -> Positions:
        """Where in `parameter.view(-1)` it writes, (changed,) int64."""
        return self.positions.cpu().numpy().astype(np.int64, copy=False)


@dataclass(eq=False, slots=True)
class Drop:
    """One persona on one target: G = `gate` wherever `mask` drops a weight. It holds no positions of its own.

    mask: of the target's shape (`check_masks`). Errors: `ModelError` as of `Patch`.
    """

    target: Target
    mask: Mask
    gate: float = 0.0

    def __post_init__(self) -> None:
        _check_maskable(self.target.parameter)

    @property
    def parameter(self) -> torch.Tensor:
        """The tensor that stores the target."""
        return self.target.parameter

    @property
    def changed(self) -> int:
        """How many weights it writes."""
        return self.mask.dropped

    def index(self) -> Positions:
        """Where in `parameter.view(-1)` it writes, (changed,) int64, always in the same order."""
        return _places(self.target, self.mask)


def _check_maskable(parameter: torch.Tensor) -> None:
    if not parameter.is_floating_point() or parameter.is_meta:
        raise ModelError(
            f"a weight of dtype {parameter.dtype} on device {parameter.device} cannot be masked "
            "in place: load the model in float32, bfloat16 or float16, and not offloaded."
        )
    if not parameter.is_contiguous():
        raise ModelError(f"a weight of shape {tuple(parameter.shape)} is not contiguous: call .contiguous() on it.")


@dataclass(eq=False, slots=True)
class _Values:
    """What stood where a patch writes, (changed,)."""

    patch: Patch | Drop
    weights: Stored  # the parameter's own memory, (weights,)
    values: Stored

    def restore(self) -> None:
        write(self.weights, self.patch.index(), self.values)


@dataclass(eq=False, slots=True)
class _Whole:
    """All that stood in a target, (out, in)."""

    patch: Drop
    weights: NDArray[Any]  # the target's own memory
    values: NDArray[Any]
    rows: int = 0  # saved so far

    def restore(self) -> None:
        self.weights[: self.rows] = self.values[: self.rows]


@dataclass(eq=False)
class Undo:
    """What `take_off` needs: the original bits of every weight written. Empty when all is restored."""

    saved: list[_Values | _Whole] = field(default_factory=list)


def put_on(patches: Sequence[Patch | Drop], undo: Undo | None = None) -> Undo:
    """Multiply the weights of all patches by their gates, in place: w ← w·G, computed in float32 or wider.

    Returns what `take_off` needs. A caller that must restore even after an interruption right behind
    this call passes its own empty `undo`. If anything fails halfway, all that was put on is taken back.
    """
    undo = Undo() if undo is None else undo
    try:
        pieces = [
            (e, room) for e, room in zip(patches, rooms([_to_save(e) for e in patches]), strict=True) if e.changed
        ]
        if _apart(patches):
            shared_out(lambda piece: _put_on(*piece, undo), pieces, sum(room.size for _, room in pieces))
        else:
            for piece in pieces:
                _put_on(*piece, undo)
    except BaseException:  # Ctrl-C included
        take_off(undo)
        raise
    return undo


def take_off(undo: Undo) -> None:
    """Write the saved bits back, last patch first. Taking off twice does nothing the second time."""
    if _apart([saved.patch for saved in undo.saved]):
        shared_out(lambda saved: saved.restore(), undo.saved, sum(saved.patch.changed for saved in undo.saved))
        undo.saved.clear()  # only now: after an interruption all is written again, which changes nothing
    while undo.saved:
        undo.saved[-1].restore()
        undo.saved.pop()


def _apart(patches: Sequence[Patch | Drop]) -> bool:
    """Whether no two of them write to one place, so that their order does not matter: each has its own target."""
    targets = {each.target.name for each in patches if isinstance(each, Drop) and each.parameter.is_cpu}
    return len(targets) == len(patches)


def undo_bytes(dropped: int, size: int, bytes_a_value: int) -> int:
    """Bytes of the undo record of one target (on the CPU) while one persona is worn that drops `dropped` of it.

    The values dropped; or all of them, where they and the packed mask take at most 6 bytes a dropped weight more.
    """
    return bytes_a_value * (size if _keeps_all(dropped, size, bytes_a_value) else dropped)


def _keeps_all(dropped: int, size: int, bytes_a_value: int) -> bool:
    return (8 * bytes_a_value + 1) * size <= 8 * (_MORE + bytes_a_value) * dropped


def _to_save(each: Patch | Drop) -> tuple[int, int]:
    """(number, bytes) of the integers that a patch saves on the CPU: more than it changes, if it keeps all."""
    parameter = each.parameter
    if not parameter.is_cpu:
        return 0, 1
    width = parameter.element_size()
    if isinstance(each, Drop) and each.gate == 0 and _keeps_all(each.mask.dropped, each.mask.size, width):
        return each.mask.size, width
    return each.changed, width


def _put_on(patch: Patch | Drop, room: NDArray[Any], undo: Undo) -> None:
    if room.size > patch.changed and isinstance(patch, Drop):
        whole = _Whole(patch, window(patch.target), room.reshape(patch.target.shape))
        undo.saved.append(whole)
        for rows in save_and_clear(whole.weights, patch.mask.packed(), whole.values):
            whole.rows = rows
        return
    weights, index = flat_bits(patch.parameter), patch.index()
    values = read(weights, index, room)
    undo.saved.append(_Values(patch, weights, values))  # before the first write
    write(weights, index, _gated(values, patch.parameter.dtype, patch.gate))


def _gated(bits: Stored, dtype: torch.dtype, gate: torch.Tensor | float) -> Stored | int:
    """The bits of w·G, computed in float32 or wider; +0.0 where G = 0, whatever w is (NaN · 0 would stay NaN)."""
    if not isinstance(gate, torch.Tensor) and gate == 0:
        return 0  # all bits zero
    values = (bits if isinstance(bits, torch.Tensor) else torch.from_numpy(bits)).view(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    factor = torch.as_tensor(gate, dtype=wide, device=values.device)
    product = (values.to(wide) * factor).to(dtype)
    changed = torch.where(factor == 0, torch.zeros_like(product), product).view(BITS[dtype.itemsize])
    return changed if isinstance(bits, torch.Tensor) else changed.numpy()


# -------------------------------------------------------------- masks -> patches


class Shaped(Protocol):
    """A mask, or what a file says of one."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""


def check_masks(targets: Mapping[str, Target], masks: Mapping[str, Shaped], owner: str = "the subnetwork") -> None:
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
    """Where the dropped weights of a target lie in its parameter: sorted positions into `view(-1)`, int64."""
    stored = _places(target, mask)
    if target.strides[1] > target.strides[0]:  # Conv1D and transposed experts: row-major order is not the storage's
        stored.sort()
    return stored


def _places(target: Target, mask: Mask) -> Positions:
    """The same in the mask's own order, row by row: weight (i, j) lies at offset + i·strides[0] + j·strides[1]."""
    positions = mask.positions()  # i·in + j, a new array
    down, right = target.strides
    if (down, right) != (mask.shape[1], 1):
        rows, columns = np.divmod(positions, mask.shape[1])
        positions = rows * down + columns * right
    if target.offset:
        positions += target.offset
    return positions


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
    patches = [] if gate == 1 else [Drop(by_name[name], mask, gate) for name, mask in masks.items()]
    undo = Undo()  # made first, so that an interruption anywhere below still restores
    try:
        put_on(patches, undo)
        yield
    finally:
        take_off(undo)
