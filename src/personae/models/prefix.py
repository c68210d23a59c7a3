"""The beginning that all prompts share (system prompt, template), encoded once for many batches.

Forward: its keys and values are computed once and shown to every row of every batch. Backward: the loss of a set
is a sum over its batches, so the gradients that reach those keys and values may be summed first, and carried
through the beginning once, at the end, instead of once a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from personae.models.batches import head_on


def encode_prefix(model: nn.Module, prefix: tuple[int, ...]) -> DynamicCache:
    """Keys and values of the tokens all prompts share, (1, shared); the head is not run."""
    cache = DynamicCache(config=cast(PreTrainedConfig, model.config).get_text_config())
    ids = torch.tensor([prefix], dtype=torch.int64, device=next(model.parameters()).device)
    if prefix:
        with head_on(model, torch.zeros(ids.shape, dtype=torch.bool)):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True)
    return cache


def repeat(cache: DynamicCache, rows: int) -> DynamicCache:
    """The prefix cache for a batch of `rows` (autograd follows); the kept one is left as it is."""
    fresh = _copied(cache)
    for layer in _filled(fresh):
        layer.keys = layer.keys.expand(rows, -1, -1, -1)
        layer.values = layer.values.expand(rows, -1, -1, -1)
    return fresh


class PrefixGradients:
    """Gradients of a sum over batches with respect to the keys and values of their shared beginning.

    `leaves` gives the cache whose tensors end each batch's graph; after each backward pass `collect` adds what
    reached them, in float32; `backward` carries the sums through the beginning, and begins anew.
    """

    def __init__(self) -> None:
        self.prefix: tuple[int, ...] = ()
        self.sums: dict[str, torch.Tensor] = {}
        self._leaves: dict[str, torch.Tensor] = {}

    def leaves(self, cache: DynamicCache) -> DynamicCache:
        """The same keys and values, cut off from the graph that made them, with gradients on."""
        fresh = _copied(cache)
        for number, layer in enumerate(_filled(fresh)):
            layer.keys = layer.keys.detach().requires_grad_()
            layer.values = layer.values.detach().requires_grad_()
            self._leaves |= {f"keys.{number}": layer.keys, f"values.{number}": layer.values}
        return fresh

    def collect(self) -> None:
        """Add what the last backward pass brought."""
        for name, leaf in self._leaves.items():
            if leaf.grad is not None:
                self.sums[name] = self.sums[name] + leaf.grad.float() if name in self.sums else leaf.grad.float()
                leaf.grad = None

    def restore(self, sums: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Go on from sums that were kept."""
        self.sums = {name: value.to(device) for name, value in sums.items()}

    def backward(self, model: nn.Module) -> None:
        """One forward and backward pass over the shared beginning, from the sums collected so far."""
        if self.sums:
            cache = encode_prefix(model, self.prefix)
            tensors: dict[str, torch.Tensor] = {}
            for number, layer in enumerate(_filled(cache)):
                tensors |= {f"keys.{number}": layer.keys, f"values.{number}": layer.values}
            # below the first weight that wants a gradient there is none
            names = [n for n in sorted(self.sums) if tensors[n].requires_grad]
            if names:
                torch.autograd.backward([tensors[n] for n in names], [self.sums[n].to(tensors[n].dtype) for n in names])
            self.sums = {}


def _copied(cache: DynamicCache) -> DynamicCache:
    fresh = copy.copy(cache)
    fresh.layers = [copy.copy(layer) for layer in cache.layers]
    return fresh


def _filled(cache: DynamicCache) -> Iterator[Any]:
    """The layers that hold keys and values; typed Any, since the library declares them as possibly missing."""
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
            yield layer
