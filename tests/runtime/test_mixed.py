from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from personae.models import Target, find_targets
from personae.runtime.mixed import change, csr, join, split

HEIGHT, WIDTH = 5, 7
Gate = np.ndarray


@st.composite
def gates(draw: st.DrawFn) -> Gate:
    """G of a small target, (5, 7): some whole rows and columns, and single weights, of one or of several gates."""
    values = draw(st.sampled_from([[0.0], [0.25], [-0.5], [0.0, 0.25, 0.5]]))
    value = st.sampled_from(values)
    gate = np.ones((HEIGHT, WIDTH), np.float32)
    for _ in range(draw(st.integers(0, 8))):
        gate[draw(st.integers(0, HEIGHT - 1)), draw(st.integers(0, WIDTH - 1))] = draw(value)
    for row in draw(st.sets(st.integers(0, HEIGHT - 1))):
        gate[row] = draw(value)
    for column in draw(st.sets(st.integers(0, WIDTH - 1))):
        gate[:, column] = draw(value)
    return gate


def taken_apart(gate: Gate):
    positions = np.flatnonzero(gate != 1)
    return split(positions, gate.reshape(-1)[positions], gate.shape)


@given(gates())
def test_the_parts_make_the_gate_again(gate: Gate) -> None:
    parts = taken_apart(gate)
    again = np.ones(gate.size, np.float32)
    again[parts.positions] = parts.gates
    rows = np.ones(HEIGHT, np.float32) if parts.rows is None else parts.rows
    columns = np.ones(WIDTH, np.float32) if parts.columns is None else parts.columns
    np.testing.assert_array_equal(again.reshape(gate.shape) * rows[:, None] * columns[None, :], gate)
    assert (np.diff(parts.positions) > 0).all()


@given(gates())
def test_no_whole_row_is_left(gate: Gate) -> None:
    parts = taken_apart(gate)
    rest = np.zeros(gate.size, bool)
    rest[parts.positions] = True
    for row in np.flatnonzero(rest.reshape(gate.shape).all(axis=1)):
        assert len(set(gate[row].tolist())) > 1, "its gates differ"


def test_channels_need_no_product() -> None:
    gate = np.ones((HEIGHT, WIDTH), np.float32)
    gate[:, 2] = gate[:, 5] = gate[3] = 0
    parts = taken_apart(gate)
    assert parts.rows.tolist() == [1, 1, 1, 0, 1]
    assert parts.columns.tolist() == [1, 1, 0, 1, 1, 0, 1]
    assert parts.positions.size == 0

    everything = taken_apart(np.zeros((HEIGHT, WIDTH), np.float32))
    assert everything.rows.tolist() == [0] * HEIGHT
    assert everything.columns is None
    assert everything.positions.size == 0


def test_one_gate_for_all_is_as_many_equal_ones() -> None:
    positions = np.array([0, 1, 2, 3, 4, 5, 6, 10])
    one, many = (split(positions, gate, (HEIGHT, WIDTH)) for gate in (0.25, np.full(8, 0.25, np.float32)))
    np.testing.assert_array_equal(one.rows, many.rows)
    assert one.positions.tolist() == many.positions.tolist() == [10]
    assert one.gates.tolist() == many.gates.tolist() == [0.25]
    assert split(positions[:0], 0.0, (HEIGHT, WIDTH)).positions.size == 0


def target_of(module: nn.Module) -> Target:
    (target,) = find_targets(nn.ModuleDict({"h": nn.ModuleList([nn.ModuleDict({"fc": module})])}))
    return target


def modules(dtype: torch.dtype = torch.float32) -> list[nn.Module]:
    torch.manual_seed(0)
    found = [nn.Linear(WIDTH, HEIGHT), nn.Linear(WIDTH, HEIGHT, bias=False), Conv1D(HEIGHT, WIDTH)]
    for module in found:
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    return [module.to(dtype) for module in found]


@given(gates())
@settings(max_examples=40, deadline=None)
def test_a_change_is_what_the_weights_lose(gate: Gate) -> None:
    for module in modules():
        target, parts = target_of(module), taken_apart(gate)
        found = change(target, parts)
        lost = torch.zeros(HEIGHT, WIDTH)
        rows = torch.repeat_interleave(torch.arange(HEIGHT), found.counts)
        lost[rows, found.inputs.long()] = found.values
        dense = target.weight - target.weight * torch.from_numpy(gate)
        single = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        single.view(-1)[torch.from_numpy(parts.positions)] = True
        torch.testing.assert_close(lost, torch.where(single, dense, 0.0), rtol=0, atol=1e-7)
        assert found.nbytes >= found.values.numel() * 8


@given(st.lists(gates(), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_joined_looks_do_what_each_does_alone(looks: list[Gate]) -> None:
    for module in modules():
        target = target_of(module)
        changes = [change(target, taken_apart(gate)) if (gate != 1).any() else None for gate in looks]
        if all(each is None for each in changes):
            continue
        joined = join(target, changes)
        x = torch.randn(len(looks), WIDTH, generator=torch.Generator().manual_seed(1))
        gated = x if joined.columns is None else x * joined.columns[:-1]
        y = gated @ target.weight.T
        if joined.product is not None:
            y -= (joined.product @ gated.reshape(-1, 1)).view(len(looks), HEIGHT)
        if module.bias is not None:
            y = y + module.bias
        if joined.rows is not None:
            assert (joined.rows[-1] == 1).all(), "the base model's"
            y = y * joined.rows[:-1]
            if joined.offsets is not None:
                y = y + joined.offsets[:-1]
        expected = torch.stack(
            [row @ (target.weight * torch.from_numpy(gate)).T for row, gate in zip(x, looks, strict=True)]
        )
        expected = expected if module.bias is None else expected + module.bias
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounded_weights_lose_what_they_lose_in_place(dtype: torch.dtype) -> None:
    """Worn in place, w·G is rounded to the dtype: what is taken away makes exactly that of w."""
    gate = np.ones((HEIGHT, WIDTH), np.float32)
    gate[1, 2:6] = [0.3, 0.7, 0.0, -0.4]
    target = target_of(modules(dtype)[0])
    found = change(target, taken_apart(gate))
    assert found.values.dtype == torch.float32
    worn = (target.weight[1, 2:6].float() * torch.from_numpy(gate[1, 2:6])).to(dtype)
    assert torch.equal(target.weight[1, 2:6].float() - found.values, worn.float())


def test_a_double_model_is_changed_in_double() -> None:
    gate = np.zeros((HEIGHT, WIDTH), np.float32)
    gate[0, 0] = 1
    found = change(target_of(modules(torch.float64)[0]), taken_apart(gate))
    assert found.values.dtype == found.rows.dtype == torch.float64


def test_what_is_made_inside_inference_mode_can_be_used_outside() -> None:
    target = target_of(modules()[0])
    gate = np.ones((HEIGHT, WIDTH), np.float32)
    gate[0, 0] = gate[2, 3] = 0
    with torch.inference_mode():
        joined = join(target, [change(target, taken_apart(gate))])
    x = torch.ones(1, WIDTH, requires_grad=True)
    (x @ joined.product.to_dense().T).sum().backward()
    assert x.grad is not None


def test_no_warning_reaches_the_user() -> None:
    starts, inputs = torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([1, 0], dtype=torch.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = csr(starts, inputs, torch.tensor([2.0, 3.0]), (2, 2))
    assert matrix.to_dense().tolist() == [[0, 2], [3, 0]]
