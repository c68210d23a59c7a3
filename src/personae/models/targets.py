"""Which weights are targets: Linear, Conv1D and fused expert tensors inside the repeated blocks.

There is no table per architecture. The blocks are the outermost `ModuleList`s that hold matrices;
inside them every Linear and Conv1D weight counts, and every three-dimensional parameter is a stack
of experts. Experts that transformers keeps fused are cut into the matrices of the checkpoint and
carry the checkpoint's names: we run the library's own save-time conversion on tensors that hold
their positions, and read off where each checkpoint matrix lies inside the fused one.
"""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from personae.errors import ModelError, OptionError

Kind = Literal["attention", "mlp", "other"]

_ROUTER_NAMES = {"gate", "router", "shared_expert_gate", "wg"}
_ATTENTION = re.compile(r"attn|attention")
_MLP = re.compile(r"mlp|ffn|feed_forward|fc\d|expert|moe|dense_\w*h")


@dataclass(frozen=True, eq=False)
class Target:
    """One weight matrix W of shape (out, in), seen as a view into the parameter that stores it.

    name: the checkpoint's name, such as 'model.layers.0.mlp.up_proj.weight'. module: who computes with it.
    parameter: the tensor that is stored (Conv1D keeps it transposed, experts keep many in one).
    offset, strides: where element (i, j) lies: offset + i·strides[0] + j·strides[1], in elements.
    block: index of the repeated block. expert: index of the expert, or None.
    kind: 'attention', 'mlp', 'other'.
    """

    name: str
    module_name: str
    module: nn.Module = field(repr=False)
    parameter: nn.Parameter = field(repr=False)
    shape: tuple[int, int]
    strides: tuple[int, int]
    offset: int
    block: int
    kind: Kind
    expert: int | None = None

    @property
    def size(self) -> int:
        """Number of weights, out · in."""
        return self.shape[0] * self.shape[1]

    @property
    def weight(self) -> torch.Tensor:
        """The matrix, (out, in): a view without autograd; writing to it changes the model."""
        return self.view_of(self.parameter.detach())

    def view_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same window, (out, in), on a tensor laid out like `parameter` (its gradient, say)."""
        if not tensor.is_contiguous():
            raise ModelError(f"{self.name}: expected a contiguous tensor.")
        return tensor.as_strided(self.shape, self.strides, tensor.storage_offset() + self.offset)


def find_targets(model: nn.Module, patterns: str | Sequence[str] | None = None) -> list[Target]:
    """All targets in the order of the model. `patterns`: shell-style, on names; any match keeps a target.

    Embeddings, norms, biases, router gates and the output head are never targets.
    Errors: `ModelError` when the model has no repeated blocks with matrices; `OptionError` when a
    pattern matches nothing.
    """
    found: dict[tuple[int, int, tuple[int, int]], Target] = {}
    for block_name, block, index in _blocks(model):
        for target in _block_targets(model, block_name, block, index):
            # Blocks may share a weight (Zamba's do). It is one target, under its first name: gains and saved bits of a
            # second one would be of the same memory.
            found.setdefault((id(target.parameter), target.offset, target.strides), target)
    targets = list(found.values())
    if not targets:
        raise ModelError("no Linear, Conv1D or expert weights inside repeated blocks: not a model personae can mask.")
    if patterns is None:
        return targets
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = {t.name for t in targets if fnmatch.fnmatchcase(t.name, pattern)}
        if not matched:
            raise OptionError(
                f"target pattern {pattern!r} matches no weight; names look like {targets[0].name!r} "
                f"and {targets[-1].name!r}."
            )
        chosen |= matched
    return [t for t in targets if t.name in chosen]


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks, in order. Errors: `ModelError` when there are none with matrices."""
    found = [block for _, block, _ in _blocks(model)]
    if not found:
        raise ModelError("no repeated blocks with Linear, Conv1D or expert weights.")
    return found


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module, int]]:
    """(name, block, index) of the repeated blocks: items of outermost ModuleLists that hold matrices."""
    found: list[tuple[str, nn.Module, int]] = []
    outer: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{o}.") for o in outer):
            continue
        if any(_is_matrix(m) or _fused(m) for m in module.modules()):
            outer.append(name)
            found += [(f"{name}.{i}", block, i) for i, block in enumerate(module)]
    return found


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _is_router(path: str) -> bool:
    parts = path.split(".")
    return parts[-1] in _ROUTER_NAMES or "router" in parts


def _fused(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The three-dimensional parameters (experts, rows, columns) a module itself holds; convolutions are no experts."""
    if isinstance(module, _ConvNd):
        return []
    return [(n, p) for n, p in module.named_parameters(recurse=False) if p.ndim == 3]


def _block_targets(model: nn.Module, block_name: str, block: nn.Module, index: int) -> list[Target]:
    found: list[Target] = []
    names = _checkpoint_windows(model, block_name, block)
    for path, module in block.named_modules():
        full = f"{block_name}.{path}" if path else block_name
        if _is_matrix(module) and not _is_router(path):
            parameter = module.weight
            assert isinstance(parameter, nn.Parameter)
            rows, columns = parameter.shape
            conv = isinstance(module, Conv1D)  # stored (in, out)
            windows = names.get(f"{full}.weight", [])
            name = windows[0][0] if len(windows) == 1 else f"{full}.weight"
            found.append(
                Target(
                    name, full, module, parameter,
                    (columns, rows) if conv else (rows, columns),
                    (1, columns) if conv else (columns, 1),
                    0, index, kind_of(path),
                )
            )  # fmt: skip
        for local, parameter in _fused(module):
            stored = f"{full}.{local}"
            for name, shape, strides, offset in names.get(stored) or _plain_windows(stored, module, parameter):
                expert = offset // parameter[0].numel()
                kind = kind_of(path)
                found.append(Target(name, full, module, parameter, shape, strides, offset, index, kind, expert))
    return found


def kind_of(path: str) -> Kind:
    """Attention, MLP or neither, by the name of a module inside its block."""
    if _ATTENTION.search(path):
        return "attention"
    return "mlp" if _MLP.search(path) else "other"


Window = tuple[str, tuple[int, int], tuple[int, int], int]  # checkpoint name, shape, strides, offset


def _plain_windows(stored: str, module: nn.Module, parameter: nn.Parameter) -> list[Window]:
    """One window an expert, named after the fused parameter, where the library knows no other names."""
    experts, rows, columns = parameter.shape
    shape, strides = (rows, columns), (columns, 1)
    if getattr(module, "is_transposed", False):  # kept as (experts, in, out), as in GPT-OSS
        shape, strides = (columns, rows), (1, columns)
    return [(f"{stored}.{e}", shape, strides, e * rows * columns) for e in range(experts)]


def _checkpoint_windows(model: nn.Module, block_name: str, block: nn.Module) -> dict[str, list[Window]]:
    """For each stored parameter of a block: the checkpoint matrices inside it."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import revert_weight_conversion

        library = cast(PreTrainedModel, model)
        if not (getattr(model, "_weight_conversions", None) or get_model_conversion_mapping(library, add_legacy=False)):
            return {}
        # The conversion keeps no record of where a tensor came from, so each parameter goes alone, and only one at a
        # time has its positions in memory.
        windows: dict[str, list[Window]] = {}
        for local, parameter in block.named_parameters():
            full = f"{block_name}.{local}"
            kind = torch.int32 if parameter.numel() < 2**31 else torch.int64
            positions = torch.arange(parameter.numel(), dtype=kind).view(parameter.shape)
            reverted = revert_weight_conversion(library, {full: positions})
            read = [_read_window(name, tensor) for name, tensor in reverted.items() if tensor.ndim == 2]
            if read and all(w is not None for w in read):
                ordered = sorted((w for w in read if w is not None), key=lambda w: w[3])
                if sum(w[1][0] * w[1][1] for w in ordered) == parameter.numel():
                    windows[full] = ordered
        return windows
    except Exception as error:
        warnings.warn(
            f"transformers' checkpoint conversion is not available ({error}); "
            "weights keep the names they have in memory.",
            stacklevel=2,
        )
        return {}


def _read_window(name: str, positions: torch.Tensor) -> Window | None:
    """Where a checkpoint matrix lies, from the positions it holds; None if it is no regular window."""
    rows, columns = positions.shape
    offset = int(positions[0, 0])
    down = int(positions[1, 0]) - offset if rows > 1 else columns
    right = int(positions[0, 1]) - offset if columns > 1 else 1
    expected = offset + torch.arange(rows)[:, None] * down + torch.arange(columns)[None, :] * right
    return (name, (rows, columns), (down, right), offset) if torch.equal(expected, positions.long()) else None
