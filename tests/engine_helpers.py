"""What the tests of the engine share: an actor whose mixed batches are the slow truth."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from personae.models import Target, find_targets
from personae.runtime import PersonaModel
from personae.runtime.look import Look


class OneByOne(PersonaModel):
    """Each row of a mixed batch times its own masked weights, dense, without any of `PersonaModel.rows`' ways.

    apart: personas that shall not be mixed. entered: the looks of each mixed block so far. held: pins by look.
    """

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.truth = find_targets(self.model)
        self.apart: set[str] = set()
        self.entered: list[tuple[Look, ...]] = []
        self.held: Counter[Look] = Counter()

    @contextlib.contextmanager
    def rows(self, looks: Sequence[Look]) -> Iterator[None]:
        self.entered.append(tuple(looks))
        with self._turn.held("rows()"):
            assert not self.active
            handles = []
            try:
                for target in self.truth:
                    weights = [self._gated(target, look) for look in looks]
                    if any(weight is not None for weight in weights):
                        handles.append(target.module.register_forward_hook(_by_row(weights)))
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def mixable(self, look: Look) -> bool:
        return not self.apart.intersection(name for name, _ in look)

    def pin(self, look: Look) -> None:
        super().pin(look)
        self.held[look] += 1

    def unpin(self, look: Look) -> None:
        super().unpin(look)
        self.held[look] -= 1

    def _gated(self, target: Target, look: Look) -> torch.Tensor | None:
        dropped = [
            strength * torch.from_numpy(self._wardrobe[name][target.name].dropped_bool()).double()
            for name, strength in look
            if target.name in self._wardrobe[name]
        ]
        if not dropped:
            return None
        total = torch.stack(dropped).sum(0)
        return target.weight * (1 - (total if len(look) == 1 else total.clamp(max=1))).to(target.weight.dtype)


def _by_row(weights: Sequence[torch.Tensor | None]) -> Callable[..., torch.Tensor]:
    def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        (inputs,) = arguments
        assert inputs.shape[0] == len(weights), "a forward of another batch than was announced"
        return torch.stack(
            [
                own if weight is None else nn.functional.linear(row, weight, module.bias)
                for row, own, weight in zip(inputs, output, weights, strict=True)
            ]
        )

    return hook
