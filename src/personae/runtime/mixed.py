"""What a look changes in one target, in the form in which the rows of a mixed batch can be given it.

A look multiplies some weights of W by a gate G. Its output is that of the base weights minus what they lost:

    y = x·Wᵀ − x·Δᵀ,  Δ = W ⊙ (1 − G)

Weights that a look drops in whole rows or whole columns of W (FFN channels, heads) need no product: of a column the
input of one channel is multiplied by G, of a row the output of one. The rest of Δ is sparse, and the looks of all rows
of a batch are one sparse matrix with a block for each look on its diagonal, times the rows under each other.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from personae.models import Target
from personae.runtime.blend import Gates, Positions

__all__ = ["Change", "Joined", "Split", "change", "csr", "join", "split"]


@dataclass(frozen=True, eq=False)
class Split:
    """A gate of one target, taken apart: G = row's · column's on whole rows and columns, and the rest.

    rows: G of each output channel, (out,) float32, 1 where the row is not whole; None where no row is. columns: the
    same of each input channel, (in,). positions: of the rest, sorted and row-major, (n,) int64. gates: its G, (n,).
    """

    rows: Gates | None
    columns: Gates | None
    positions: Positions
    gates: Gates


def split(positions: Positions, gates: Gates | float, shape: tuple[int, int]) -> Split:
    """Take whole rows and whole columns out of a gate.

    positions: sorted row-major positions (i·in + j) whose gate is not 1, (n,). gates: G of each, (n,) float32, or one
    for all. shape: (out, in). A row or column is whole if all its weights are there with the same G. A column may count
    as whole beside whole rows only if those have G = 0: G of a weight in both would be the product.
    """
    each = np.broadcast_to(np.asarray(gates, np.float32), positions.shape)
    by_row, positions, each = _whole(positions // shape[1], positions, each, shape[0], shape[1])
    if by_row is not None and bool(np.any(by_row[by_row != 1])):
        return Split(by_row, None, positions, each)
    left = shape[0] if by_row is None else int(np.count_nonzero(by_row == 1))
    by_column, positions, each = _whole(positions % shape[1], positions, each, shape[1], left)
    return Split(by_row, by_column, positions, each)


def _whole(
    lines: Positions, positions: Positions, gates: Gates, number: int, length: int
) -> tuple[Gates | None, Positions, Gates]:
    """G of each of `number` lines of `length` weights, or None; and the positions and gates not in a whole line."""
    if not length or positions.size < length:
        return None, positions, gates
    full = np.bincount(lines, minlength=number) == length
    if not full.any():
        return None, positions, gates
    low, high = np.full(number, np.inf, np.float32), np.full(number, -np.inf, np.float32)
    np.minimum.at(low, lines, gates)
    np.maximum.at(high, lines, gates)
    full &= low == high
    if not full.any():
        return None, positions, gates
    rest = ~full[lines]
    return np.where(full, low, np.float32(1)), positions[rest], gates[rest]


@dataclass(frozen=True, eq=False)
class Change:
    """What one look changes in one target.

    rows, columns: as of `Split`, float32 or wider. counts: nonzeros of each row of the sparse Δ, (out,) int32. inputs:
    the columns of the nonzeros, (n,) int32, row by row; values: (n,) float32 or wider.
    """

    rows: torch.Tensor | None
    columns: torch.Tensor | None
    counts: torch.Tensor
    inputs: torch.Tensor
    values: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it holds."""
        return _bytes([self.rows, self.columns, self.counts, self.inputs, self.values])


@torch.inference_mode(False)
@torch.no_grad()
def change(target: Target, parts: Split) -> Change:
    """The weights that a gate takes away, read from the base weights of a target: Δ = w − w·G.

    w·G is rounded to the dtype of the weights, as it is when the persona is put on in place.
    """
    weights = target.parameter.detach()
    wide = torch.promote_types(weights.dtype, torch.float32)
    rows, columns = np.divmod(parts.positions, target.shape[1])
    places = torch.from_numpy(target.offset + rows * target.strides[0] + columns * target.strides[1])
    values = weights.view(-1).index_select(0, places.to(weights.device)).to(wide)
    gates = torch.from_numpy(parts.gates.copy()).to(weights.device, wide)
    kept = torch.where(gates == 0, torch.zeros_like(values), (values * gates).to(weights.dtype).to(wide))
    counts = np.bincount(rows, minlength=target.shape[0]).astype(np.int32)
    return Change(
        None if parts.rows is None else torch.from_numpy(parts.rows).to(weights.device, wide),
        None if parts.columns is None else torch.from_numpy(parts.columns).to(weights.device, wide),
        torch.from_numpy(counts).to(weights.device),
        torch.from_numpy(columns.astype(np.int32)).to(weights.device),
        values - kept,
    )


@dataclass(frozen=True, eq=False)
class Joined:
    """What P looks change in one target.

    product: Δ of all looks, (P·out, P·in) CSR, look p in the p-th block on the diagonal; None where all are empty.
    rows: (P + 1, out), G of each look's output channels; the last row is the base model's. offsets: (P + 1, out), what
    must be added behind it so that the bias is not gated: b·(1 − G). columns: (P + 1, in). None: nothing to do.
    """

    product: torch.Tensor | None
    rows: torch.Tensor | None
    offsets: torch.Tensor | None
    columns: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it holds."""
        parts = [self.rows, self.offsets, self.columns]
        if self.product is not None:
            parts += [self.product.crow_indices(), self.product.col_indices(), self.product.values()]
        return _bytes(parts)


@torch.inference_mode(False)
@torch.no_grad()
def join(target: Target, changes: Sequence[Change | None]) -> Joined:
    """One operator for P looks; None for a look that leaves the target alone. At least one does not."""
    some = next(each for each in changes if each is not None)
    device, wide = some.values.device, some.values.dtype
    height, width = target.shape
    product = None
    if any(each is not None and each.values.numel() for each in changes):
        none = torch.zeros(height, dtype=torch.int32, device=device)
        counts = torch.cat([none if each is None else each.counts for each in changes])
        starts = torch.zeros(counts.numel() + 1, dtype=torch.int32, device=device)
        torch.cumsum(counts, 0, dtype=torch.int32, out=starts[1:])
        inputs = torch.cat([each.inputs + p * width for p, each in enumerate(changes) if each is not None])
        values = torch.cat([each.values for each in changes if each is not None])
        product = csr(starts, inputs, values, (len(changes) * height, len(changes) * width))
    rows = _table([None if each is None else each.rows for each in changes], height, device, wide)
    columns = _table([None if each is None else each.columns for each in changes], width, device, wide)
    bias = getattr(target.module, "bias", None)
    offsets = None if rows is None or bias is None else bias.detach().to(wide) * (1 - rows)
    return Joined(product, rows, offsets, columns)


def _table(
    gates: Sequence[torch.Tensor | None], number: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor | None:
    if all(each is None for each in gates):
        return None
    ones = torch.ones(number, device=device, dtype=dtype)
    return torch.stack([*(ones if each is None else each for each in gates), ones])


def csr(starts: torch.Tensor, inputs: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A sparse matrix. starts: (rows + 1,) int32. inputs: the columns, (n,) int32, sorted within each row."""
    _hear_warning()
    return torch.sparse_csr_tensor(starts, inputs, values, shape, check_invariants=False)


@functools.cache
def _hear_warning() -> None:
    """PyTorch warns once in a process that CSR tensors are in beta; what is used of them is tested here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        torch.eye(1).to_sparse_csr()


def _bytes(tensors: Sequence[torch.Tensor | None]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors if each is not None)
