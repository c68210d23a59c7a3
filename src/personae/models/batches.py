"""Token sequences -> padded batches of like length, and a head that runs only on the rows asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from personae.errors import ModelError


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences padded on the right.

    items: index of each row in the caller's list, (B,). ids: token ids, (B, T) int64.
    mask: 1 on tokens, 0 on padding, (B, T) int64. counted: True on the tokens that count, (B, T) bool.
    """

    items: tuple[int, ...]
    ids: torch.Tensor
    mask: torch.Tensor
    counted: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(self.items, self.ids.to(device), self.mask.to(device), self.counted.to(device))


def plan(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices grouped by length so that no group pads to more than `tokens` tokens (one item may exceed it).

    Sorted by (length, index), so the plan depends on nothing but the lengths.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[index] <= tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def make_batch(sequences: Sequence[Sequence[int]], starts: Sequence[int], items: Sequence[int]) -> Batch:
    """One right-padded batch of `sequences[i] for i in items`; tokens from `starts[i]` on are counted."""
    width = max(len(sequences[i]) for i in items)
    ids = torch.zeros(len(items), width, dtype=torch.int64)
    mask = torch.zeros(len(items), width, dtype=torch.int64)
    counted = torch.zeros(len(items), width, dtype=torch.bool)
    for row, item in enumerate(items):
        length = len(sequences[item])
        ids[row, :length] = torch.tensor(sequences[item], dtype=torch.int64)
        mask[row, :length] = 1
        counted[row, starts[item] : length] = True
    return Batch(tuple(items), ids, mask, counted)


@contextlib.contextmanager
def head_on(model: nn.Module, rows: torch.Tensor) -> Iterator[None]:
    """Run the output head only where `rows`, (B, T) bool, is True.

    Inside, a forward of the model returns logits of shape (1, N, vocabulary), N = rows.sum(), in row-major
    order. The head is the largest matrix of a small model; most positions never need it. A hook on the
    head keeps this independent of the architecture (and of whatever the model does to its logits after).
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Module):
        raise ModelError("this model has no language-model head, so it is not a causal language model.")

    def select(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = arguments[0]  # (B, T, hidden)
        return (hidden[rows.to(hidden.device)].unsqueeze(0), *arguments[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
