"""The divergence of a masked model and its gradient, against plain autograd and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from discovery_data import bits, random_texts, same_bits
from personae.discovery import Checkpoint
from personae.discovery.divergence import divergence_gradient
from personae.errors import DataError
from personae.models import Encoded, Target, find_targets
from personae.runtime import wearing
from personae.subnetwork import Mask

TinyModel = Callable[..., tuple[Any, Any]]


def random_masks(targets: list[Target], share: float = 0.1) -> dict[str, Mask]:
    generator = torch.Generator().manual_seed(3)
    return {t.name: Mask.from_dropped((torch.rand(t.shape, generator=generator) < share).numpy()) for t in targets}


def slow_divergence(
    model: nn.Module, targets: list[Target], masks: dict[str, Mask], texts: tuple[Encoded, ...]
) -> torch.Tensor:
    """KL(base ‖ masked) a counted token, one text at a time, the whole head."""
    total, tokens = torch.zeros(()), 0
    for text in texts:
        ids = torch.tensor([text.prompt + text.answer])
        first = max(len(text.prompt), 1)
        with torch.no_grad():
            base = model(input_ids=ids).logits[0, first - 1 : -1].float().log_softmax(-1)
        with wearing(targets, masks):
            worn = model(input_ids=ids).logits[0, first - 1 : -1].float().log_softmax(-1)
            part = (base.exp() * (base - worn)).sum()
            if torch.is_grad_enabled():
                part.backward()
        total, tokens = total + part.detach(), tokens + ids.shape[1] - first
    return total / tokens


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_equals_plain_autograd(tiny_model: TinyModel, name: str, batch_tokens: int) -> None:
    model, _ = tiny_model(name)
    targets, texts = find_targets(model), (*random_texts(4), Encoded((), tuple(range(5, 14))))
    masks, before = random_masks(targets), bits(model)
    found = divergence_gradient(model, targets, masks, texts, batch_tokens=batch_tokens)
    assert same_bits(model, before)
    assert not any(p.grad is not None for p in model.parameters())
    model.requires_grad_(True)
    slow_divergence(model, targets, masks, texts)
    tokens = sum(len(t.answer) - (not t.prompt) for t in texts)
    for target in targets:
        grad = target.parameter.grad
        expected = target.view_of(grad) / tokens if grad is not None else torch.zeros(target.shape)
        assert torch.allclose(found[target.name], expected, rtol=1e-3, atol=1e-6)
    assert any(g.any() for g in found.values())


def test_is_what_dropping_one_more_adds(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("gpt2", dtype=torch.float64)
    targets, texts = find_targets(model), random_texts(3)
    masks = random_masks(targets)
    found = divergence_gradient(model, targets, masks, texts)
    step = 1e-4
    for target in targets[:3]:
        dropped = torch.from_numpy(masks[target.name].dropped_bool())
        index = tuple((~dropped).nonzero()[0].tolist())
        cost = -float(target.weight[index] * found[target.name][index])
        values = []
        for gate in (1 - step, 1 + step):
            kept = target.weight[index].clone()
            slow = _at(model, targets, masks, texts, target, index, float(kept) * gate)
            values.append(slow)
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(cost, rel=1e-2, abs=1e-8)


def _at(
    model: Any, targets: list[Target], masks: dict[str, Mask], texts: Any, target: Target, index: Any, value: float
) -> float:
    """The divergence of the masked model with one kept weight at another value, from the untouched base."""
    total, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([text.prompt + text.answer])
        first = max(len(text.prompt), 1)
        with torch.no_grad():
            base = model(input_ids=ids).logits[0, first - 1 : -1].log_softmax(-1)
            with wearing(targets, masks):
                kept = target.weight[index].clone()
                target.weight[index] = value
                worn = model(input_ids=ids).logits[0, first - 1 : -1].log_softmax(-1)
                target.weight[index] = kept
        total, tokens = total + float((base.exp() * (base - worn)).sum()), tokens + ids.shape[1] - first
    return total / tokens


def test_is_zero_where_nothing_is_dropped(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("llama")
    targets = find_targets(model)
    found = divergence_gradient(model, targets, {}, random_texts(3))
    assert max(float(g.abs().max()) for g in found.values()) < 1e-6


def test_a_killed_pass_goes_on_where_it_was(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, _ = tiny_model("llama")
    targets, texts = find_targets(model), random_texts(5)
    masks, ticks = random_masks(targets), []
    before = bits(model)

    def kill(done: int) -> None:
        ticks.append(done)
        if len(ticks) == 3:
            raise KeyboardInterrupt

    def run(checkpoint: Checkpoint | None = None, tick: Any = None) -> Any:
        return divergence_gradient(model, targets, masks, texts, batch_tokens=1, checkpoint=checkpoint, tick=tick)

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(Checkpoint(tmp_path, "key", every=0.0), kill)
    assert same_bits(model, before)
    rest: list[int] = []
    resumed = run(Checkpoint(tmp_path, "key"), rest.append)
    assert rest == [2, 1, 1, 1]
    assert all(torch.equal(resumed[n], whole[n]) for n in whole)


def test_float16_gradients_do_not_vanish(tiny_model: TinyModel) -> None:
    """K is a mean over all tokens: divided by thousands before it is propagated, most of it would be 0 in float16."""
    texts = random_texts(6) * 60
    found = []
    for dtype in (torch.float32, torch.float16):
        model, _ = tiny_model("llama", dtype=dtype)
        model.lm_head.weight.data.mul_(2.0**-6)  # what comes back from the head is as faint as in a large model
        targets = find_targets(model)
        masks = random_masks(targets)
        found.append(divergence_gradient(model, targets, masks, texts))
    exact, half = found
    error = sum(float(((half[n] - g) ** 2).sum()) for n, g in exact.items()) ** 0.5
    assert error < 0.1 * sum(float((g**2).sum()) for g in exact.values()) ** 0.5


def test_no_texts(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("llama")
    with pytest.raises(DataError, match="no texts"):
        divergence_gradient(model, find_targets(model), {}, [])
