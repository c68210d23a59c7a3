"""Steering vectors against hidden states read one text at a time, and hooks that leave nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from discovery_data import small_contrast, small_generic
from personae.discovery import Calibration, capability, encode_contrast, mean_log_probabilities
from personae.errors import DataError, OptionError
from personae.evaluation import steering as module
from personae.evaluation.steering import Steering, choose_steering, mean_differences, middle_blocks, steered
from personae.models import find_blocks


def slow_means(model: Any, side: Any) -> torch.Tensor:
    """Mean over answers of the mean over their tokens, of every block's output, by the library's own hidden states."""
    outputs: list[torch.Tensor] = []
    kept: list[torch.Tensor] = []
    handles = [
        b.register_forward_hook(lambda m, a, o: kept.append(o[0] if isinstance(o, tuple) else o))
        for b in find_blocks(model)
    ]
    for text in side:
        kept.clear()
        with torch.no_grad():
            model(input_ids=torch.tensor([text.prompt + text.answer]))
        outputs.append(torch.stack([k[0, len(text.prompt) :].mean(0) for k in kept]))
    for handle in handles:
        handle.remove()
    return torch.stack(outputs).mean(0)


def test_mean_differences_equal_one_text_at_a_time(tiny_model: Any, architecture: str) -> None:
    model, tokenizer = tiny_model(architecture)
    items = encode_contrast(model, tokenizer, small_contrast(5))
    found = mean_differences(model, items)
    expected = slow_means(model, items.positive) - slow_means(model, items.negative)
    assert found.shape == (len(find_blocks(model)), expected.shape[1])
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert not any(m._forward_hooks for m in model.modules())


def test_blocks_that_text_does_not_run_through_are_not_tried(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a vision tower, which may come first."""
    model, tokenizer = tiny_model("llama")
    items = encode_contrast(model, tokenizer, small_contrast(5))
    expected = mean_differences(model, items)
    blocks = [*(torch.nn.Identity() for _ in range(5)), *find_blocks(model)]
    monkeypatch.setattr(module, "find_blocks", lambda _: blocks)
    found = mean_differences(model, items)
    assert not found[:5].any()
    assert torch.equal(found[5:], expected)
    assert middle_blocks(found) == [5 + block for block in middle_blocks(expected)]
    assert middle_blocks(torch.zeros(3, 2)) == [0]  # answers that are equal: nothing tells where text runs


def test_the_middle_blocks_of_a_long_model() -> None:
    assert middle_blocks(torch.ones(30, 1)) == [3, 7, 11, 15, 19, 23]


def test_the_vector_is_added_to_one_block_and_taken_off_again(tiny_model: Any, architecture: str) -> None:
    model, _ = tiny_model(architecture)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    seen: list[torch.Tensor] = []

    def note(module: Any, arguments: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    width = model.config.get_text_config().hidden_size
    steering = Steering(0, -2.5, torch.arange(width) / width)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        handle = find_blocks(model)[0].register_forward_hook(note)
        model(input_ids=ids)
        handle.remove()
        with steered(model, steering):
            handle = find_blocks(model)[0].register_forward_hook(note)  # after the steering hook
            moved = model(input_ids=ids).logits
            handle.remove()
        after = model(input_ids=ids).logits
    assert torch.allclose(seen[1] - seen[0], -2.5 * steering.vector.expand_as(seen[0]), atol=1e-5)
    assert torch.equal(before, after)
    assert not torch.allclose(before, moved)


def test_hooks_go_when_the_block_fails(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    with pytest.raises(KeyboardInterrupt), steered(model, Steering(0, 1.0, torch.zeros(8))):
        raise KeyboardInterrupt
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(OptionError, match="no block 99"), steered(model, Steering(99, 1.0, torch.zeros(8))):
        pass


@pytest.mark.parametrize("sign", [1, -1])
def test_choice_keeps_the_budget_and_moves_toward_the_pole(tiny_model: Any, sign: int) -> None:
    model, tokenizer = tiny_model("llama")
    items = encode_contrast(model, tokenizer, small_contrast(8))
    text = small_generic()
    found = choose_steering(model, mean_differences(model, items), text, items, sign=sign, budget=0.05, blocks=(0, 1))
    base = capability(model, text)
    before = mean_log_probabilities(model, items)
    with steered(model, found):
        assert capability(model, text).loss_bound(base) <= 0.05
        after = mean_log_probabilities(model, items)
    assert found.coefficient * sign > 0
    moved = (after[:, 0] - after[:, 1] - before[:, 0] + before[:, 1]).mean()
    assert moved * sign > 0


def test_both_poles_are_needed(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    with pytest.raises(DataError, match="both poles"):
        mean_differences(model, Calibration((), (), ()))
