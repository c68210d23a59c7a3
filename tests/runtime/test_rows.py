from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from personae.errors import ModelError, OptionError, PersonaInUseError
from personae.models import find_targets
from personae.runtime.look import BASE, Look
from personae.runtime.mixed import change, join, split
from personae.runtime.rows import Batch, Layout, in_use, kinds_of

A, B, C = ((("a", 1.0),), (("b", 1.0),), (("c", 1.0),))
CPU = torch.device("cpu")


@given(st.lists(st.sampled_from([A, B, C, BASE]), min_size=1, max_size=9))
def test_every_row_that_wears_something_is_gathered_once(looks: list[Look]) -> None:
    layout = Layout.of(looks, CPU)
    assert layout.looks == tuple(sorted(set(looks) - {BASE}))
    assert [(*layout.looks, BASE)[number] for number in layout.of_row.tolist()] == looks
    assert layout.gather.numel() == layout.most * len(layout.looks)
    base = [False] * len(looks) if layout.base is None else layout.base.flatten().tolist()
    assert base == [look == BASE for look in looks]
    for row, (look, place) in enumerate(zip(looks, layout.back.tolist(), strict=True)):
        if look != BASE:
            assert layout.gather[place] == row
            assert layout.looks[place % len(layout.looks)] == look
    assert layout.in_order == (layout.gather.tolist() == list(range(len(looks))))


def test_rows_in_turn_are_in_order() -> None:
    assert Layout.of([A, B, A, B], CPU).in_order
    assert Layout.of([A, B], CPU).in_order
    assert not Layout.of([B, A], CPU).in_order
    assert not Layout.of([A, A, B, B], CPU).in_order
    assert not Layout.of([A, B, A], CPU).in_order
    assert not Layout.of([A, B, BASE], CPU).in_order


def test_the_order_of_the_rows_does_not_matter_to_the_looks() -> None:
    assert kinds_of([B, BASE, A, B]) == kinds_of([A, B]) == (A, B)


# ------------------------------------------------------------- one forward


class Model(nn.Module):
    """Blocks of one matrix; `route` makes of the input what the matrix is given."""

    def __init__(self, route=lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.h = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(4, 3)})])
        self.route = route

    def forward(self, input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None) -> torch.Tensor:
        if inputs_embeds is None:
            inputs_embeds = nn.functional.one_hot(input_ids, 4).float()
        return self.h[0]["fc"](self.route(inputs_embeds))


def batch_of(model: Model, looks: list[Look], gates: dict[Look, np.ndarray]) -> Batch:
    (target,) = find_targets(model)
    layout = Layout.of(looks, CPU)
    if not layout.looks:
        return Batch(len(looks), [])
    parts = [split(np.flatnonzero(gates[look] != 1), gates[look][gates[look] != 1], (3, 4)) for look in layout.looks]
    return Batch(len(looks), [(target, layout, join(target, [change(target, each) for each in parts]))])


def some_gates(values: list[float]) -> dict[Look, np.ndarray]:
    random = np.random.default_rng(0)
    gates = {
        look: np.where(random.random((3, 4)) < 0.4, random.choice(values), 1).astype(np.float32) for look in (A, B, C)
    }
    gates[A][1] = gates[B][:, 2] = values[0]
    return gates


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("values", [[0.0], [0.5, 0.25]])
@pytest.mark.parametrize(
    "looks", [[A, B, C], [C, A, B, C, A, B], [A, A, A, B], [A, BASE, C, BASE], [BASE], [B]], ids=len
)
def test_each_row_has_its_own_weights(looks, values, flat, tokens) -> None:
    model = Model((lambda x: x.flatten(0, 1)) if flat else (lambda x: x))
    gates = some_gates(values)
    x = torch.randn(len(looks), tokens, 4, generator=torch.Generator().manual_seed(1))
    linear = model.h[0]["fc"]
    with batch_of(model, looks, gates).block(model):
        got = model(inputs_embeds=x).view(len(looks), tokens, 3)
    for row, look in enumerate(looks):
        weight = linear.weight if look == BASE else linear.weight * torch.from_numpy(gates[look])
        torch.testing.assert_close(got[row], nn.functional.linear(x[row], weight, linear.bias), rtol=0, atol=1e-6)


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_no_hook_is_left_behind(error) -> None:
    model = Model()
    batch = batch_of(model, [A, B], some_gates([0.0]))

    def inside() -> None:
        with batch.block(model):
            assert hooks(model) == 5
            assert in_use(model)
            assert not torch.is_grad_enabled()
            raise error

    with pytest.raises(error):
        inside()
    assert hooks(model) == 0
    assert not in_use(model)
    assert torch.is_grad_enabled()


def test_an_interruption_while_hooks_go_on_leaves_none(monkeypatch) -> None:
    model = Model()
    batch = batch_of(model, [A, B], some_gates([0.0]))

    class Interrupted(dict):
        def __setitem__(self, key, value) -> None:
            super().__setitem__(key, value)
            raise KeyboardInterrupt

    monkeypatch.setattr(model.h[0]["fc"], "_forward_hooks", Interrupted())
    with pytest.raises(KeyboardInterrupt), batch.block(model):
        pass
    assert hooks(model) == 0


def test_other_hooks_stay_and_are_called() -> None:
    model, calls = Model(), []
    handles = [
        model.register_forward_hook(lambda *x: calls.append("model")),
        model.h[0]["fc"].register_forward_hook(lambda *x: calls.append("target")),
    ]
    batch = batch_of(model, [A, B], some_gates([0.0]))
    with batch.block(model):
        model(input_ids=torch.tensor([[1], [2]]))
    model(input_ids=torch.tensor([[1]]))
    assert calls == ["target", "model"] * 2
    for handle in handles:
        handle.remove()
    assert hooks(model) == 0


def test_blocks_do_not_nest() -> None:
    model = Model()
    batch = batch_of(model, [A, B], some_gates([0.0]))
    with batch.block(model):
        with pytest.raises(PersonaInUseError, match="inside rows"), batch.block(model):
            pass
        assert in_use(model)
        model(input_ids=torch.tensor([[1], [2]]))


def test_a_forward_of_another_batch_is_refused() -> None:
    model = Model()
    with batch_of(model, [A, B], some_gates([0.0])).block(model):
        with pytest.raises(OptionError, match=r"a forward of 3 rows inside rows\(\) of 2 looks"):
            model(input_ids=torch.tensor([[1], [2], [3]]))
        with pytest.raises(OptionError, match="3 rows"):
            model(torch.tensor([[1], [2], [3]]))
        with pytest.raises(OptionError, match="needs input_ids"):
            model(input_ids=torch.tensor([1, 2]))
        model(torch.tensor([[1], [2]]))


@pytest.mark.parametrize(
    "route",
    [lambda x: x[:1], lambda x: x.flatten(0, 1)[:3], lambda x: x.unsqueeze(0), lambda x: x.transpose(0, 1)],
    ids=["a row", "some tokens", "packed", "tokens first"],
)
def test_inputs_in_which_rows_cannot_be_told_apart_are_refused(route) -> None:
    model = Model(route)
    with (
        batch_of(model, [A, B], some_gates([0.5, 0.25])).block(model),
        pytest.raises(ModelError, match=r"fc\.weight meets a tensor of shape.*cannot be told apart"),
    ):
        model(inputs_embeds=torch.ones(2, 3, 4))


def test_a_weight_used_behind_its_modules_back_is_noticed() -> None:
    model = Model()
    model.forward = lambda input_ids: nn.functional.one_hot(input_ids, 4).float() @ model.h[0]["fc"].weight.T
    with (
        batch_of(model, [A, B], some_gates([0.0])).block(model),
        pytest.raises(ModelError, match=r"used h\.0\.fc\.weight without calling its module"),
    ):
        model(input_ids=torch.tensor([[1], [2]]))


def test_half_precision_rounds_once() -> None:
    """Each output is within the rounding of one bfloat16 of the exact one."""
    model = Model()
    gates, looks = some_gates([0.5, 0.25]), [A, B, C, BASE]
    model.to(torch.bfloat16)
    linear = model.h[0]["fc"]
    x = torch.randn(4, 1, 4, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    with batch_of(model, looks, gates).block(model):
        got = model(inputs_embeds=x)
    for row, look in enumerate(looks):
        weight = linear.weight if look == BASE else (linear.weight * torch.from_numpy(gates[look])).to(torch.bfloat16)
        exact = nn.functional.linear(x[row].double(), weight.double(), linear.bias.double())
        base = nn.functional.linear(x[row].double(), linear.weight.double(), linear.bias.double())
        allowed = 2**-8 * (exact.abs() + 2 * base.abs())
        assert bool(((got[row].double() - exact).abs() <= allowed).all()), look
