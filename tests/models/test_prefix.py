"""Gradients through a shared beginning: summed over batches and carried on once, or batch by batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from personae.models import PrefixGradients, Question, continuation_batches, find_targets

QUESTIONS = [
    Question((7, 8, 9, 10, 20 + n), tuple(tuple(30 + n + a + k for k in range(3 + a)) for a in range(2)))
    for n in range(6)
]


def gradients(model: Any, prefix: PrefixGradients | None, after: int | None = None) -> dict[str, torch.Tensor]:
    """Of the sum of all log-probabilities; `after`: carry the sums on after so many batches too."""
    model.zero_grad()
    batches = continuation_batches(model, QUESTIONS, batch_tokens=16, prefix_gradients=prefix)
    for number, (_, scores) in enumerate(batches):
        torch.cat([values for answers in scores for values in answers]).sum().backward()
        if prefix is not None:
            prefix.collect()
            if number == after:
                prefix.backward(model)
                assert not prefix.sums
    if prefix is not None:
        assert prefix.prefix == (7, 8, 9, 10)
        prefix.backward(model)
        prefix.backward(model)  # nothing left: adds nothing
    return {t.name: t.view_of(t.parameter.grad).clone() for t in find_targets(model)}


@pytest.mark.parametrize("after", [None, 1])
def test_equal_to_a_graph_of_their_own_for_every_batch(tiny_model: Any, architecture: str, after: int | None) -> None:
    model, _ = tiny_model(architecture)
    expected = gradients(model, None)
    found = gradients(model, PrefixGradients(), after)
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert torch.allclose(found[name], gradient, atol=1e-4 * max(scale, 1.0), rtol=1e-3), name


def test_the_beginning_is_encoded_once_and_once_more(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    widths: list[int] = []

    def note(module: Any, arguments: Any, keywords: Any) -> None:
        widths.append(keywords["input_ids"].shape[1])

    model.register_forward_pre_hook(note, with_kwargs=True)
    gradients(model, PrefixGradients())
    shared = [w for w in widths if w == 4]
    assert len(shared) == 2
    assert len(widths) > 4


def test_kept_sums_are_gone_on_with(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    whole = PrefixGradients()
    for _, scores in continuation_batches(model, QUESTIONS, batch_tokens=16, prefix_gradients=whole):
        torch.cat([values for answers in scores for values in answers]).sum().backward()
        whole.collect()
    again = PrefixGradients()
    again.restore(whole.sums, torch.device("cpu"))
    list(continuation_batches(model, QUESTIONS, batch_tokens=16, prefix_gradients=again, skip=100))
    grads = []
    for one in (whole, again):
        model.zero_grad()
        one.backward(model)
        grads.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    assert torch.equal(*grads)
    assert grads[0].any()


def test_weights_of_late_layers_alone(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    model.requires_grad_(False)
    late = model.model.layers[-1]
    late.requires_grad_(True)
    expected = _of(model, late, None)
    assert torch.allclose(_of(model, late, PrefixGradients()), expected, rtol=1e-3, atol=1e-5)
    model.requires_grad_(False)
    late.mlp.requires_grad_(True)  # after the last keys and values: the beginning gets no gradient at all
    prefix = PrefixGradients()
    for _, scores in continuation_batches(model, QUESTIONS, batch_tokens=16, prefix_gradients=prefix):
        torch.cat([values for answers in scores for values in answers]).sum().backward()
        prefix.collect()
    prefix.backward(model)


def _of(model: Any, layer: Any, prefix: PrefixGradients | None) -> torch.Tensor:
    model.zero_grad()
    for _, scores in continuation_batches(model, QUESTIONS, batch_tokens=16, prefix_gradients=prefix):
        torch.cat([values for answers in scores for values in answers]).sum().backward()
        if prefix is not None:
            prefix.collect()
    if prefix is not None:
        prefix.backward(model)
    found: torch.Tensor = layer.self_attn.k_proj.weight.grad
    return found.clone()
