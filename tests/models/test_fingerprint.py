"""One hash for one set of target weights, whatever precision they were loaded in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from personae.models import find_targets, fingerprint


def test_bfloat16_and_float32_of_one_checkpoint_are_the_same_model(tiny_model: Any, architecture: str) -> None:
    half, _ = tiny_model(architecture, dtype=torch.bfloat16)
    full, _ = tiny_model(architecture)
    assert fingerprint(find_targets(half)) == fingerprint(find_targets(full))
    again = half.to(torch.float32)  # a bfloat16 checkpoint read in float32
    assert fingerprint(find_targets(again)) == fingerprint(find_targets(full))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_one_changed_weight_is_another_model(tiny_model: Any, name: str) -> None:
    model, _ = tiny_model(name)
    targets = find_targets(model)
    before = fingerprint(targets)
    assert before.startswith("sha256:")
    assert len(before) == 7 + 64
    targets[-1].weight[1, 2] += 0.5
    changed = fingerprint(targets)
    assert changed != before
    targets[-1].weight[1, 2] -= 0.5
    assert fingerprint(targets) == before


def test_seed_name_and_shape_count_but_order_does_not(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    targets = find_targets(model)
    whole = fingerprint(targets)
    assert fingerprint(targets[::-1]) == whole
    assert fingerprint(targets[:-1]) != whole
    other, _ = tiny_model("llama", seed=1)
    assert fingerprint(find_targets(other)) != whole


def test_weights_outside_the_targets_do_not_count(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    before = fingerprint(find_targets(model))
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    assert fingerprint(find_targets(model)) == before
