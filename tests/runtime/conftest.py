"""Random subnetworks for the tiny models, snapshots of every bit of a model, and one small actor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from personae.models import Target, find_targets, fingerprint
from personae.runtime import PersonaModel
from personae.subnetwork import Artefact, Mask, ModelIdentity, Provenance, Subnetwork

Bits = dict[str, torch.Tensor]


@pytest.fixture
def make_subnetwork() -> Callable[..., Subnetwork]:
    """`make(targets, name, share, seed)`: drops about `share` of the weights of two thirds of the targets."""

    def make(targets: Sequence[Target], name: str, share: float = 0.2, seed: int = 0) -> Subnetwork:
        random = np.random.default_rng([seed, *name.encode()])
        masks = {t.name: Mask.from_dropped(random.random(t.shape) < share) for t in targets if random.random() < 0.67}
        return Subnetwork(
            name,
            masks or {targets[0].name: Mask.full(targets[0].shape)},
            Provenance(method="random", sparsity=share),
        )

    return make


@pytest.fixture
def make_artefact(make_subnetwork: Callable[..., Subnetwork]) -> Callable[..., Artefact]:
    """`make(model, *names, share=…)`: an artefact that belongs to the model."""

    def make(model: PreTrainedModel, *names: str, share: float = 0.2) -> Artefact:
        targets = find_targets(model)
        identity = ModelIdentity(
            id="tiny", fingerprint=fingerprint(targets), architecture=type(model).__name__, dtype="float32",
            targets={t.name: t.shape for t in targets},
        )  # fmt: skip
        return Artefact(identity, {name: make_subnetwork(targets, name, share) for name in names})

    return make


@pytest.fixture
def snapshot() -> Callable[[PreTrainedModel], Bits]:
    """All parameters and buffers as integers, read without `state_dict`, which a worn persona refuses."""

    def read(model: PreTrainedModel) -> Bits:
        named = [*model.named_parameters(), *model.named_buffers()]
        return {name: tensor.detach().contiguous().view(torch.uint8).clone() for name, tensor in named if tensor.ndim}

    return read


@pytest.fixture
def same() -> Callable[[Bits, Bits], bool]:
    """Whether two snapshots agree in every bit."""

    def agree(one: Bits, other: Bits) -> bool:
        return one.keys() == other.keys() and all(torch.equal(bits, other[name]) for name, bits in one.items())

    return agree


@pytest.fixture
def dense_gate() -> Callable[[Target, Mapping[str, tuple[Subnetwork, float]]], torch.Tensor]:
    """The oracle: G of one target, (out, in) float32, straight from the formula of METHODS.md."""

    def gate(target: Target, worn: Mapping[str, tuple[Subnetwork, float]]) -> torch.Tensor:
        total = torch.zeros(target.shape, dtype=torch.float64)
        for subnetwork, strength in worn.values():
            if target.name in subnetwork.masks:
                dropped = subnetwork.masks[target.name].dropped_bool()
                total += strength * torch.from_numpy(dropped).double()
        total = total.float() if len(worn) == 1 else total.float().clamp(max=1)
        return torch.ones(target.shape) - total

    return gate


@pytest.fixture
def actor(
    tiny_model: Callable[..., tuple[PreTrainedModel, object]], make_artefact: Callable[..., Artefact]
) -> PersonaModel:
    """A tiny Llama with the personas a, b and c."""
    model, tokenizer = tiny_model("llama")
    made = PersonaModel(model, tokenizer)
    made.add_personas(make_artefact(model, "a", "b", "c"))
    return made
