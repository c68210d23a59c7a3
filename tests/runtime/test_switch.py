from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personae.errors import MaskMismatchError, ModelError, OptionError
from personae.models import find_targets
from personae.runtime import Patch, put_on, switch, take_off, wearing
from personae.runtime.switch import Drop, undo_bytes
from personae.subnetwork import Mask

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
INTEGERS = {
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float64: torch.int64,
}


def odd_weights(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    """Random bit patterns: NaNs with payloads, infinities, subnormals and -0.0 among them."""
    random = np.random.default_rng(seed)
    size = torch.empty(0, dtype=dtype).element_size()
    bits = torch.from_numpy(random.integers(0, 256, count * size, dtype=np.uint8)).view(INTEGERS[dtype]).clone()
    weights = bits.view(dtype)
    weights[0] = -0.0
    if count > 3:
        weights[1:4] = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype)
    return weights


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(INTEGERS[tensor.dtype]).clone()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 40), gate=st.sampled_from([0.0, 0.3, 0.75, -0.5]))
@settings(max_examples=40, deadline=None)
def test_every_bit_comes_back(dtype: torch.dtype, seed: int, count: int, gate: float) -> None:
    parameter = torch.nn.Parameter(odd_weights(dtype, count, seed))
    before = bits_of(parameter)
    chosen = torch.from_numpy(np.flatnonzero(np.random.default_rng(seed).random(count) < 0.5)).int()

    undo = put_on([Patch(parameter, chosen, gate)])
    worn = parameter.detach().clone()
    take_off(undo)

    assert torch.equal(bits_of(parameter), before)
    untouched = torch.ones(count, dtype=torch.bool)
    untouched[chosen.long()] = False
    assert torch.equal(bits_of(worn)[untouched], before[untouched])
    if gate == 0:
        assert not bits_of(worn)[~untouched].any(), "an exact +0.0, even where NaN stood"
    else:
        wide = before.view(dtype).to(torch.float64 if dtype == torch.float64 else torch.float32)
        expected = (wide * torch.tensor(gate, dtype=wide.dtype)).to(dtype)
        torch.testing.assert_close(worn[~untouched], expected[~untouched], rtol=0, atol=0, equal_nan=True)


def test_gates_of_their_own_and_exact_zero() -> None:
    weights = torch.nn.Parameter(torch.tensor([1.0, float("nan"), -2.0, 4.0, 8.0]))
    put_on([Patch(weights, torch.tensor([1, 2, 4]), torch.tensor([0.0, 0.5, 0.25]))])
    assert weights.tolist() == [1.0, 0.0, -1.0, 4.0, 2.0]


def test_overlapping_patches_come_off_in_reverse() -> None:
    weights = torch.nn.Parameter(torch.tensor([8.0, 8.0]))
    undo = put_on([Patch(weights, torch.tensor([0]), 0.5), Patch(weights, torch.tensor([0, 1]), 0.5)])
    assert weights.tolist() == [2.0, 4.0]
    take_off(undo)
    assert weights.tolist() == [8.0, 8.0]
    weights.data.fill_(1.0)
    take_off(undo)
    assert weights.tolist() == [1.0, 1.0], "taking off twice writes nothing the second time"


def test_a_failure_halfway_takes_back_what_was_put_on(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(4))
    real, calls = switch._put_on, []

    def failing(patch: Patch, room: np.ndarray, undo: switch.Undo) -> None:
        real(patch, room, undo)
        calls.append(patch)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(switch, "_put_on", failing)
    with pytest.raises(KeyboardInterrupt):
        put_on([Patch(first, torch.tensor([0])), Patch(second, torch.tensor([1]))])
    assert len(calls) == 2
    assert first.tolist() == second.tolist() == [1.0] * 4


def test_patches_that_cannot_be() -> None:
    weights = torch.nn.Parameter(torch.ones(2, 3))
    with pytest.raises(OptionError, match=r"2\.\.6 do not fit a parameter of 6"):
        Patch(weights, torch.tensor([2, 6]))
    with pytest.raises(OptionError, match=r"-1\.\.2"):
        Patch(weights, torch.tensor([-1, 2]))
    with pytest.raises(OptionError, match="as many gates"):
        Patch(weights, torch.tensor([1, 2]), torch.ones(3))
    with pytest.raises(ModelError, match=r"torch\.int8"):
        Patch(torch.ones(4, dtype=torch.int8), torch.tensor([1]))
    with pytest.raises(ModelError, match="device meta"):
        Patch(torch.ones(4, device="meta"), torch.tensor([1]))
    with pytest.raises(ModelError, match="not contiguous"):
        Patch(torch.ones(2, 3).T, torch.tensor([1]))


def test_storage_positions_are_the_windows_places(tiny_model, architecture) -> None:
    model, _ = tiny_model(architecture)
    for number, target in enumerate(find_targets(model)):
        dropped = np.random.default_rng(number).random(target.shape) < 0.3
        positions = switch.storage_positions(target, Mask.from_dropped(dropped))
        rows, columns = np.nonzero(dropped)
        expected = sorted(
            target.offset + i * target.strides[0] + j * target.strides[1] for i, j in zip(rows, columns, strict=True)
        )
        assert positions.tolist() == expected


def saved_bytes(undo: switch.Undo) -> int:
    return sum(each.values.nbytes for each in undo.saved)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 1.0])
def test_a_worn_mask_takes_six_bytes_a_dropped_weight_and_its_value(tiny_model, architecture, dtype, share) -> None:
    """However dense; and it is the formula, and every bit comes back."""
    model, _ = tiny_model(architecture, dtype=dtype)
    for number, target in enumerate(find_targets(model)):
        dropped = np.random.default_rng(number).random(target.shape) < share
        dropped.flat[0] = True
        mask, before = Mask.from_dropped(dropped), bits_of(target.parameter)

        undo = put_on([Drop(target, mask)])

        assert saved_bytes(undo) == undo_bytes(mask.dropped, mask.size, dtype.itemsize)
        assert saved_bytes(undo) + mask.nbytes <= (6 + dtype.itemsize) * mask.dropped + 1
        assert torch.equal(target.weight == 0, torch.from_numpy(dropped))
        kept = torch.ones(target.parameter.numel(), dtype=torch.bool)
        kept[torch.from_numpy(switch.storage_positions(target, mask))] = False
        assert torch.equal(bits_of(target.parameter).view(-1)[kept], before.view(-1)[kept])
        take_off(undo)
        assert torch.equal(bits_of(target.parameter), before)


def all_but_the_last(shape: tuple[int, int]) -> Mask:
    return ~Mask.from_positions(np.array([shape[0] * shape[1] - 1]), shape)


def test_a_dense_mask_writes_exact_zeros_over_anything() -> None:
    weights = odd_weights(torch.float32, 64, 0)
    module = torch.nn.Linear(8, 8, bias=False)
    module.weight.data.copy_(weights.view(8, 8))
    block = torch.nn.ModuleList([torch.nn.ModuleDict({"fc": module})])
    (target,) = find_targets(torch.nn.ModuleDict({"h": block}))
    before = bits_of(module.weight)
    undo = put_on([Drop(target, all_but_the_last((8, 8)))])
    assert not bits_of(module.weight).view(-1)[:-1].any()
    take_off(undo)
    assert torch.equal(bits_of(module.weight), before)


def test_an_interruption_while_a_dense_mask_goes_on_takes_it_back(tiny_model, monkeypatch) -> None:
    model, _ = tiny_model("llama")
    first, second = find_targets(model)[:2]
    before = [bits_of(first.parameter), bits_of(second.parameter)]
    real, chunks = switch.save_and_clear, []

    def interrupted(rows, packed, room):
        for saved in real(rows, packed, room):
            yield saved
            chunks.append(saved)
            if len(chunks) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(switch, "save_and_clear", interrupted)
    with pytest.raises(KeyboardInterrupt):
        put_on([Drop(target, all_but_the_last(target.shape)) for target in (first, second)])
    assert len(chunks) == 2
    assert [torch.equal(bits_of(t.parameter), b) for t, b in zip((first, second), before, strict=True)] == [True, True]


def test_targets_that_cannot_be_masked(tiny_model) -> None:
    model, _ = tiny_model("llama")
    target = find_targets(model)[0]
    target.parameter.data = target.parameter.data.T
    with pytest.raises(ModelError, match="not contiguous"):
        Drop(target, Mask.full(target.shape))


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("strength", [1.0, 0.4, 1.5])
def test_wearing_is_the_dense_formula_on_every_architecture(
    tiny_model, architecture, dtype, strength, make_subnetwork, dense_gate, snapshot, same
) -> None:
    model, _ = tiny_model(architecture, dtype=dtype)
    targets = find_targets(model)
    subnetwork = make_subnetwork(targets, "x")
    before = snapshot(model)
    base = {t.name: t.weight.clone() for t in targets}
    with wearing(targets, subnetwork.masks, strength):
        for target in targets:
            gate = dense_gate(target, {"x": (subnetwork, strength)})
            expected = (base[target.name].float() * gate).to(dtype)
            assert torch.equal(target.weight, expected), target.name
        assert not same(snapshot(model), before)
    assert same(snapshot(model), before)


def test_wearing_nests_and_restores_after_an_error(tiny_model, make_subnetwork, snapshot, same) -> None:
    model, _ = tiny_model("gpt2")
    targets = find_targets(model)
    outer, inner = make_subnetwork(targets, "outer"), make_subnetwork(targets, "inner")
    base = snapshot(model)
    with wearing(targets, outer.masks):
        under_outer = snapshot(model)
        with pytest.raises(RuntimeError, match="inside"), wearing(targets, inner.masks, 0.5):
            raise RuntimeError("inside")
        assert same(snapshot(model), under_outer)
        with wearing(targets, inner.masks, 0.5):
            assert not same(snapshot(model), under_outer)
        assert same(snapshot(model), under_outer)
        assert not same(under_outer, base)
    assert same(snapshot(model), base)


def test_wearing_leaves_autograd_alone(tiny_model, make_subnetwork) -> None:
    model, _ = tiny_model("llama")
    targets = find_targets(model)
    with wearing(targets, make_subnetwork(targets, "x").masks):
        model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    assert all(t.parameter.grad is not None and t.parameter.is_leaf for t in targets)


def test_strength_zero_wears_nothing(tiny_model, make_subnetwork, snapshot, same) -> None:
    model, _ = tiny_model("llama")
    targets = find_targets(model)
    before = snapshot(model)
    with wearing(targets, make_subnetwork(targets, "x").masks, 0.0):
        assert same(snapshot(model), before)


def test_masks_of_another_model_are_refused(tiny_model, snapshot, same) -> None:
    model, _ = tiny_model("llama")
    targets = find_targets(model)
    before = snapshot(model)
    good = {targets[0].name: Mask.from_positions(np.array([0]), targets[0].shape)}
    with (
        pytest.raises(MaskMismatchError, match=r"no\.such\.weight.*no such target"),
        wearing(targets, {**good, "no.such.weight": Mask.full((2, 2))}),
    ):
        pass
    with (
        pytest.raises(MaskMismatchError, match=r"of shape \(2, 2\), but the model's has shape"),
        wearing(targets, {**good, targets[1].name: Mask.full((2, 2))}),
    ):
        pass
    with pytest.raises(OptionError, match="strength"), wearing(targets, good, -1):
        pass
    assert same(snapshot(model), before)
