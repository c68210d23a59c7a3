"""Mean ablation against biases written by hand, and a model that is left as it was."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from discovery_data import bits, random_texts, same_bits
from personae.discovery import collect_statistics, site
from personae.errors import ModelError
from personae.evaluation.suites.ablation import mean_ablated, mean_shift
from personae.models import Encoded, find_targets
from personae.subnetwork import Mask

IDS = torch.tensor([[5, 6, 7, 8, 9, 20, 31]])


def random_drop(targets: list[Any], share: float = 0.3) -> dict[str, Mask]:
    generator = np.random.default_rng(3)
    return {t.name: Mask.from_dropped(generator.random(t.shape) < share) for t in targets}


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


def test_mean_shift_is_the_sum_over_dropped_weights() -> None:
    w = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 4.0]])
    dropped = torch.tensor([[True, False, True], [False, True, False]])
    mean = torch.tensor([10.0, 100.0, -1.0], dtype=torch.float64)
    assert mean_shift(w, dropped, mean).tolist() == [1 * 10 - 3.0, 0.5 * 100]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "opt"])
def test_equals_masked_weights_with_a_changed_bias(tiny_model: Any, architecture: str) -> None:
    model, _ = tiny_model(architecture)
    targets = find_targets(model)
    statistics = collect_statistics(model, targets, random_texts(6))
    masks = random_drop(targets)
    other = copy.deepcopy(model)
    for target in find_targets(other):
        gone = masks[target.name].dropped_bool()
        mean = statistics[site(target)].mean
        shift = [
            sum(float(target.weight[i, j]) * float(mean[j]) for j in np.flatnonzero(gone[i]))
            for i in range(target.shape[0])
        ]
        added = torch.tensor(shift, dtype=torch.float32)
        bias = getattr(target.module, "bias", None)
        target.module.bias = torch.nn.Parameter(added if bias is None else bias.detach() + added)
        target.weight[torch.from_numpy(gone)] = 0.0
    with mean_ablated(targets, masks, statistics):
        found = logits(model)
    assert torch.allclose(found, logits(other), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, logits(model), rtol=1e-2, atol=1e-2)


def test_nothing_is_lost_where_every_input_is_the_mean(tiny_model: Any) -> None:
    """A text of one token is its own mean: dropping everything leaves what every module gives for it."""
    model, _ = tiny_model("llama")
    targets = find_targets(model)
    statistics = collect_statistics(model, targets, [Encoded((), (17,))])
    everything = {t.name: ~Mask.full(t.shape) for t in targets}
    before = logits(model, torch.tensor([[17]]))
    with mean_ablated(targets, everything, statistics):
        assert torch.allclose(logits(model, torch.tensor([[17]])), before, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(logits(model), before, rtol=1e-2, atol=1e-2)


def test_the_model_is_left_as_it_was_also_after_an_error(tiny_model: Any) -> None:
    model, _ = tiny_model("gpt2")
    targets = find_targets(model)
    statistics = collect_statistics(model, targets, random_texts(4))
    before = bits(model)
    with pytest.raises(KeyboardInterrupt), mean_ablated(targets, random_drop(targets), statistics):
        raise KeyboardInterrupt
    assert same_bits(model, before)
    assert not any(m._forward_hooks for m in model.modules())


def test_experts_have_no_bias_for_it(tiny_model: Any) -> None:
    model, _ = tiny_model("mixtral")
    targets = find_targets(model)
    statistics = collect_statistics(model, targets, random_texts(4))
    before = bits(model)
    with pytest.raises(ModelError, match="zero ablation"), mean_ablated(targets, random_drop(targets), statistics):
        pytest.fail("not reached")
    attention = {n: m for n, m in random_drop(targets).items() if "self_attn" in n}
    with mean_ablated(targets, attention, statistics):  # what is not an expert can still be ablated
        assert logits(model).isfinite().all()
    assert same_bits(model, before)
