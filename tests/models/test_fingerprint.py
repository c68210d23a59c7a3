"""One hash for one set of target weights, whatever precision they were loaded in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from personae.models import find_targets, fingerprint, surroundings


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


def test_what_stands_beside_the_targets_is_hashed_apart(tiny_model: Any, architecture: str) -> None:
    """A copy tuned in its norms, biases or embeddings has the same targets and answers otherwise."""
    model, _ = tiny_model(architecture)
    targets = find_targets(model)
    before = surroundings(model, targets)
    targets[0].weight[0, 0] += 0.5  # a target counts in the fingerprint, not here
    assert surroundings(model, targets) == before
    own = {t.weight.untyped_storage().data_ptr() for t in targets}
    beside = {n: p for n, p in model.named_parameters() if p.untyped_storage().data_ptr() not in own}
    assert beside
    seen = {before}
    for parameter in beside.values():
        with torch.no_grad():
            parameter.view(-1)[0] += 0.5
        seen.add(surroundings(model, targets))
    assert len(seen) == 1 + len(beside)


def test_configuration_and_precision_count_but_not_where_a_model_came_from(tiny_model: Any, tmp_path: Path) -> None:
    model, _ = tiny_model("llama")
    targets = find_targets(model)
    before = surroundings(model, targets)
    model.config._name_or_path = "elsewhere"
    assert surroundings(model, targets) == before
    model.save_pretrained(tmp_path)  # which writes the class and the dtype into the configuration
    assert surroundings(model, targets) == before
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 500.0}
    assert surroundings(model, targets) != before
    half, _ = tiny_model("llama", dtype=torch.bfloat16)
    assert surroundings(half, find_targets(half)) != before


def test_experts_that_are_no_targets_count_beside_the_others(tiny_model: Any) -> None:
    """They lie in one tensor with those that are: neither hash may leave them out."""
    model, _ = tiny_model("mixtral")
    some = find_targets(model, "*experts.0.*")
    before = fingerprint(some), surroundings(model, some)
    other = next(t for t in find_targets(model) if t.expert == 1)
    other.weight[0, 0] += 0.5
    assert fingerprint(some) == before[0]
    assert surroundings(model, some) != before[1]
