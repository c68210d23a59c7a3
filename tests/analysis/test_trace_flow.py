from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personae.analysis.trace_flow import Flow, Squares, exclusive, layers_of, shares
from personae.errors import ModelError
from personae.models import find_targets
from personae.subnetwork import Mask
from trace_data import random_artefact

SHAPE = (6, 9)


@st.composite
def personas(draw: st.DrawFn) -> list[dict[str, np.ndarray]]:
    """What one to four personas drop of up to three targets; some of it is shared, some targets are whole."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        names = draw(st.sets(st.sampled_from(["a", "b", "c"])))
        random = np.random.default_rng(draw(st.integers(0, 99)))
        share = draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
        found.append({name: random.random(SHAPE) < share for name in names})
    return found


@given(personas())
def test_exclusive_weights_are_those_that_one_persona_alone_drops(dropped: list[dict[str, np.ndarray]]) -> None:
    found = exclusive([{name: Mask.from_dropped(each) for name, each in own.items()} for own in dropped])
    for name in "abc":
        stacked = np.array([own.get(name, np.zeros(SHAPE, bool)) for own in dropped])
        for p, own in enumerate(stacked):
            alone = own & (stacked.sum(axis=0) == 1)
            if alone.any():
                np.testing.assert_array_equal(found[p][name].dropped_bool(), alone)
            else:
                assert name not in found[p]


def test_masks_of_other_shapes_are_refused() -> None:
    with pytest.raises(Exception, match="cannot be combined"):
        exclusive([{"a": Mask.full((2, 3))}, {"a": Mask.full((3, 2))}])


def inputs_and_squares(model: Any, targets: Any, ids: torch.Tensor, mask: torch.Tensor, alone: Any, layers: Any) -> Any:
    """The slow way: keep every input, then multiply by dense matrices, token by token."""
    kept: dict[str, torch.Tensor] = {}
    handles = [
        t.module.register_forward_hook(lambda m, a, o, name=t.name: kept.__setitem__(name, a[0].detach()))
        for t in targets
    ]
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    for handle in handles:
        handle.remove()
    lost = np.zeros((len(alone), len(layers), *ids.shape))
    whole = np.zeros((len(layers), *ids.shape))
    for t in targets:
        at = layers.index((t.block, t.kind))
        x = kept[t.name].reshape(*ids.shape, -1).double()
        whole[at] += (x @ t.weight.double().T).square().sum(-1).numpy()
        for p, own in enumerate(alone):
            if t.name in own:
                d = torch.from_numpy(own[t.name].dropped_bool())
                lost[p, at] += (x @ (t.weight.double() * d).T).square().sum(-1).numpy()
    return lost, whole


@pytest.mark.parametrize("share", [0.01, 0.3], ids=["sparse", "dense"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3", "gpt2", "gptneox", "opt"])
def test_the_squares_are_those_of_dense_products(tiny_model: Callable[..., Any], name: str, share: float) -> None:
    """Also where there are biases (which are no part of it), transposed weights, and two texts of unequal length."""
    model, _ = tiny_model(name)
    artefact = random_artefact(model, "a", "b", "c", share=share)
    targets = find_targets(model)
    alone = exclusive([artefact[p].masks for p in artefact])
    flow = Flow(model, targets, alone)
    ids = torch.randint(4, 300, (2, 7), generator=torch.Generator().manual_seed(0))
    mask, rows = torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    mask[1, 5:] = 0
    rows[0, 2:6] = rows[1, 0:4] = True
    with torch.no_grad(), flow.reading(rows) as read:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    (found,) = read
    lost, whole = inputs_and_squares(model, targets, ids, mask, alone, flow.layers)
    np.testing.assert_allclose(found.lost, lost[:, :, rows.numpy()], rtol=2e-4, atol=1e-8)
    np.testing.assert_allclose(found.whole, whole[:, rows.numpy()], rtol=2e-4)
    assert flow.layers == layers_of(targets) == sorted(set(flow.layers))
    assert flow.unread == 0
    assert (found.lost > 0).any(axis=(1, 2)).all()


def test_a_share_is_one_where_a_persona_alone_drops_everything(tiny_model: Callable[..., Any]) -> None:
    model, _ = tiny_model("llama")
    targets = find_targets(model)
    everything = {t.name: Mask.from_dropped(np.ones(t.shape, bool)) for t in targets if t.block == 1}
    flow = Flow(model, targets, [everything, {}])
    rows = torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad(), flow.reading(rows) as read:
        model(input_ids=torch.arange(5)[None] + 10, use_cache=False)
    found = shares(read[0])
    for at, (block, _) in enumerate(flow.layers):
        np.testing.assert_allclose(found[0, at], float(block == 1), atol=1e-5)
    assert not found[1].any()


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=30)
def test_shares_are_the_root_of_the_share_of_the_squares(p: int, layers: int, tokens: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    squares = Squares(random.random((p, layers, tokens)), random.integers(0, 3, (layers, tokens)).astype(float))
    found = shares(squares)
    for index in np.ndindex(found.shape):
        below = squares.whole[index[1:]]
        if below:
            assert found[index] == pytest.approx(math.sqrt(squares.lost[index] / below))
        else:
            assert math.isnan(found[index])


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
def test_experts_are_left_out_and_counted(tiny_model: Callable[..., Any], name: str) -> None:
    model, _ = tiny_model(name)
    artefact = random_artefact(model, "a", "b")
    targets = find_targets(model)
    alone = exclusive([artefact[p].masks for p in artefact])
    flow = Flow(model, targets, alone)
    experts = {t.name for t in targets if t.expert is not None}
    assert flow.unread == sum(mask.dropped for own in alone for n, mask in own.items() if n in experts) > 0
    assert {kind for _, kind in flow.layers} == {"attention"}
    with torch.no_grad(), flow.reading(torch.ones(1, 4, dtype=torch.bool)) as read:
        model(input_ids=torch.arange(4)[None] + 10, use_cache=False)
    assert (read[0].whole > 0).all()


def hooks_of(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_gone_whatever_happens(tiny_model: Callable[..., Any]) -> None:
    model, _ = tiny_model("llama")
    flow = Flow(model, find_targets(model), [{}])
    rows = torch.ones(1, 4, dtype=torch.bool)
    kept = []

    def interrupted() -> None:
        with flow.reading(rows) as read:
            kept.append(read)
            assert hooks_of(model) > 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert hooks_of(model) == 0
    assert kept == [[]], "half a reading is none"


def test_tokens_that_cannot_be_told_apart_are_an_error(tiny_model: Callable[..., Any]) -> None:
    model, _ = tiny_model("llama")
    flow = Flow(model, find_targets(model), [{}])
    ids = torch.arange(5)[None] + 10
    with (
        pytest.raises(ModelError, match=r"model\.layers\.0.* cannot be told apart: .*--no-flow"),
        torch.no_grad(),
        flow.reading(torch.ones(1, 4, dtype=torch.bool)),
    ):
        model(input_ids=ids, use_cache=False)
    assert hooks_of(model) == 0


def test_quantised_weights_are_refused(tiny_model: Callable[..., Any]) -> None:
    model, _ = tiny_model("llama")
    target = find_targets(model)[0]
    target.module.weight = torch.nn.Parameter(torch.zeros(target.shape, dtype=torch.int8), requires_grad=False)
    targets = find_targets(model)
    mask = Mask.from_dropped(np.ones(target.shape, bool))
    with pytest.raises(ModelError, match="does not hold plain numbers"):
        Flow(model, targets, [{targets[0].name: mask}])
