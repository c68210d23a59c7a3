"""Mean ablation: a dropped weight hands on what it adds on average, instead of nothing.

Dropping w_ij takes w_ij·x_j away from output i. Of that, w_ij·E[x_j] is the same for every token and says nothing about
the persona: what follows in the model misses it all the same. Mean ablation puts it back,

    b_i += Σ_j (1 − M_ij)·w_ij·E[x_j],    E over the tokens of generic text,

so that only what the dropped weights tell tokens apart by is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from personae.discovery import InputStatistics, site
from personae.errors import ModelError
from personae.models import Target
from personae.runtime import wearing
from personae.subnetwork import Mask


def mean_shift(weight: torch.Tensor, dropped: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Σ_j (1 − M_ij)·w_ij·E[x_j], (out,) float32, from w (out, in), dropped (out, in) bool, E[x] (in,)."""
    return ((weight.double() * dropped) @ mean.double()).float()


@contextlib.contextmanager
def mean_ablated(
    targets: Sequence[Target], masks: Mapping[str, Mask], statistics: Mapping[str, InputStatistics]
) -> Iterator[None]:
    """The model under masks, with the mean of what they drop added to each module's output; then as it was.

    targets: of `find_targets`. statistics: of generic text, by `site`. Errors: `ModelError` where a mask drops weights
    of an expert: which tokens an expert sees depends on them, so no bias stands for their mean.
    """
    shifts: dict[str, tuple[nn.Module, torch.Tensor]] = {}
    for target in targets:  # before anything is dropped: the shift is made of the model's own weights
        if target.name not in masks or not masks[target.name].dropped:
            continue
        if target.expert is not None:
            raise ModelError(
                f"mean ablation adds to a module's output, but the mask drops weights of the expert {target.name}: "
                "use zero ablation for a model with experts."
            )
        dropped = torch.from_numpy(masks[target.name].dropped_bool()).to(target.weight.device)
        mean = statistics[site(target)].mean.to(target.weight.device)
        shifts[target.name] = (target.module, mean_shift(target.weight, dropped, mean))
    handles = []
    try:
        for module, shift in shifts.values():
            handles.append(module.register_forward_hook(_adding(shift)))
        with wearing(targets, masks):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(shift: torch.Tensor) -> Callable[..., torch.Tensor]:
    def add(module: nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output + shift.to(output.dtype)

    return add
