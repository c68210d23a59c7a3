"""Gradients against plain autograd on one text at a time, and what is left of a pass that was killed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from discovery_data import bits, random_questions, random_texts, same_bits
from personae.discovery import Checkpoint, WeightedQuestion, attribute
from personae.discovery.attribution import gradients_on, squared_gradients
from personae.errors import DataError
from personae.models import Encoded, Question, Target, find_targets

TinyModel = Callable[..., tuple[Any, Any]]


def weighted(number: int, seed: int = 0) -> list[WeightedQuestion]:
    chance = torch.Generator().manual_seed(seed)
    return [
        WeightedQuestion(q, tuple(torch.randn(2, generator=chance).tolist())) for q in random_questions(number, seed)
    ]


def mean_log_probability(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    """(1/|y|) log p(y | x) by a plain forward of one sequence, in the model's dtype."""
    ids = torch.tensor([prompt + answer])
    logs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0], dim=-1)
    return torch.stack([logs[len(prompt) - 1 + k, token] for k, token in enumerate(answer)]).mean()


def objective(model: Any, questions: list[WeightedQuestion]) -> torch.Tensor:
    terms = [
        weight * mean_log_probability(model, q.question.prompt, answer)
        for q in questions
        for weight, answer in zip(q.weights, q.question.answers, strict=True)
    ]
    return torch.stack(terms).sum()


def in_double(model: nn.Module) -> Any:
    slow: Any = copy.deepcopy(model).double()
    if hasattr(slow, "set_experts_implementation") and any(t.expert is not None for t in find_targets(slow)):
        slow.set_experts_implementation("eager")
    return slow


def slow_gradients(model: nn.Module, questions: list[WeightedQuestion]) -> dict[str, torch.Tensor]:
    slow = in_double(model)
    objective(slow, questions).backward()  # type: ignore[no-untyped-call]
    found = {}
    for target in find_targets(slow):
        assert target.parameter.grad is not None
        found[target.name] = target.view_of(target.parameter.grad)
    return found


def check(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-3) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(
            gradient.double(), expected[name], rtol=tolerance, atol=tolerance * largest, msg=name
        )


@pytest.mark.parametrize("share_prompt", [True, False])
def test_equal_plain_autograd(tiny_model: TinyModel, architecture: str, share_prompt: bool) -> None:
    model, _ = tiny_model(architecture)
    questions = weighted(4)
    targets = find_targets(model)
    found = attribute(model, targets, questions, batch_tokens=60, share_prompt=share_prompt)
    check(found, slow_gradients(model, questions))


def test_unpaired_answers(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("qwen2")
    texts = random_texts(5)
    questions = [
        WeightedQuestion(Question(t.prompt, (t.answer,)), (w,)) for t, w in zip(texts, (1, -1, 0, 2, 1), strict=True)
    ]
    check(attribute(model, find_targets(model), questions), slow_gradients(model, questions))


def test_do_not_depend_on_the_batch_size(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("llama")
    questions, targets = weighted(6), find_targets(model)
    one = attribute(model, targets, questions, batch_tokens=1)
    many = attribute(model, targets, questions, batch_tokens=10_000)
    check(many, {n: g.double() for n, g in one.items()}, 1e-4)


def test_gain_is_the_change_of_the_margin_for_a_small_gate_step(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("gpt2", dtype=torch.float64)  # Llama's norms compute in float32 even so
    questions, targets = weighted(3), find_targets(model)
    gradients = attribute(model, targets, questions)
    step = 1e-4

    def at(weight: torch.Tensor, index: tuple[int, int], gate: float) -> float:
        kept = weight[index].clone()
        weight[index] *= gate
        with torch.no_grad():
            value = float(objective(model, questions))
        weight[index] = kept
        return value

    for target in targets:
        gain = -target.weight * gradients[target.name]
        largest = int(gain.abs().argmax())
        for flat in (largest, largest // 2):
            index = (flat // target.shape[1], flat % target.shape[1])
            # gate 1 - step, centred: H is the slope toward zero
            change = (at(target.weight, index, 1 - step) - at(target.weight, index, 1 + step)) / (2 * step)
            assert change == pytest.approx(float(gain[index]), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(tiny_model: TinyModel, dtype: torch.dtype) -> None:
    model, _ = tiny_model("llama", dtype=dtype)
    share = 1e-6  # as small as many pairs and long answers make it: unscaled, float16 gradients would vanish
    questions = [WeightedQuestion(q, (share, -share)) for q in random_questions(4)]
    found, expected = attribute(model, find_targets(model), questions), slow_gradients(model, questions)
    error = sum(float(((found[n] - g) ** 2).sum()) for n, g in expected.items()) ** 0.5
    norm = sum(float((g**2).sum()) for g in expected.values()) ** 0.5
    assert error / norm < (0.15 if dtype == torch.bfloat16 else 0.02)
    assert all(g.dtype == torch.float32 for g in found.values())


FAINT = 2.0**-13


def test_float16_prices_do_not_vanish(tiny_model: TinyModel) -> None:
    """Long texts divide what each token gives: unscaled, a good part of the squares would be 0, which is no price."""
    texts = [
        Encoded(tuple(e.prompt), tuple(e.answer) * 30) for e in (Encoded((5, 6), (7, 8, 9)), Encoded((5,), (9, 7)))
    ]
    full, _ = tiny_model("llama")
    half, _ = tiny_model("llama", dtype=torch.float16)
    for model in (full, half):
        model.lm_head.weight.data.mul_(FAINT)  # what comes back from the head is as faint as in a large model
    exact = squared_gradients(full, find_targets(full), texts * 20)
    found = squared_gradients(half, find_targets(half), texts * 20)
    for name, expected in exact.items():
        assert found[name].sum() == pytest.approx(float(expected.sum()), rel=0.1)
        assert int((found[name] == 0).sum()) <= int((expected == 0).sum()) + expected.numel() // 100


def lonely(dtype: torch.dtype) -> tuple[nn.Linear, Target]:
    """One weight in a model of its own."""
    module = nn.Linear(1, 1, bias=False).to(dtype)
    return module, Target("w", "", module, module.weight, (1, 1), (1, 1), 0, 0, "mlp")


def test_bfloat16_gradients_are_summed_in_float32() -> None:
    module, target = lonely(torch.bfloat16)
    with gradients_on(module, [target]) as sums:
        for _ in range(2000):
            (module.weight * 1.0).sum().backward()
    assert sums[id(module.weight)].item() == 2000.0  # in bfloat16 the sum would stop at 256
    assert sums[id(module.weight)].dtype == torch.float32


def test_squares_are_taken_before_the_sum() -> None:
    module, target = lonely(torch.float32)
    with gradients_on(module, [target], squared=True) as sums:
        for factor in (3.0, -4.0):
            (module.weight * factor).sum().backward()
    assert sums[id(module.weight)].item() == 25.0


def test_squared_gradients(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("gpt2")
    chat = random_texts(2)
    plain = Encoded((), (9, 8, 7, 6))
    found = squared_gradients(model, find_targets(model), [*chat, plain])
    expected: dict[str, torch.Tensor] = {}
    for prompt, answer in [*((t.prompt, t.answer) for t in chat), (plain.answer[:1], plain.answer[1:])]:
        one = [WeightedQuestion(Question(prompt, (answer,)), (float(len(answer)),))]  # the sum, not the mean
        for name, g in slow_gradients(model, one).items():
            expected[name] = expected.get(name, 0) + g**2 / len(answer) / 3
    check(found, expected)
    with pytest.raises(DataError, match="no texts"):
        squared_gradients(model, find_targets(model), [])


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_is_left_as_it_was(tiny_model: TinyModel, error: type[BaseException] | None) -> None:
    model, _ = tiny_model("llama")
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
        parameter.grad = torch.full_like(parameter, number) if number % 3 == 0 else None
    before, grads = bits(model), [p.grad for p in model.parameters()]

    def stop(done: int) -> None:
        if error is not None:
            raise error

    try:
        attribute(model, find_targets(model), weighted(2), tick=stop)
        assert error is None
    except (RuntimeError, KeyboardInterrupt):
        assert error is not None
    assert same_bits(model, before)
    assert [p.requires_grad for p in model.parameters()] == [n % 2 == 0 for n in range(len(grads))]
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert all(g is None or bool((g == n).all()) for n, g in enumerate(grads))
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_works_where_gradients_are_off(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("llama")
    questions = weighted(2)
    with torch.no_grad():
        found = attribute(model, find_targets(model), questions)
    check(found, slow_gradients(model, questions))


def test_experts_no_token_reached_have_a_gradient_of_zero(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("mixtral", num_local_experts=16)
    questions = [WeightedQuestion(Question((5, 6), ((7,),)), (1.0,))]
    found = attribute(model, find_targets(model), questions)
    silent = [t.name for t in find_targets(model) if t.expert is not None and not found[t.name].any()]
    assert 0 < len(silent) < sum(t.expert is not None for t in find_targets(model))


def test_weights_of_zero_cost_nothing(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("llama")
    found = attribute(model, find_targets(model), [WeightedQuestion(q, (0.0, 0.0)) for q in random_questions(2)])
    assert all(g.shape == t.shape and not g.any() for g, t in zip(found.values(), find_targets(model), strict=True))
    with pytest.raises(DataError, match="no questions"):
        attribute(model, find_targets(model), [])


class Killed(Exception):
    pass


def forwards(model: nn.Module) -> list[int]:
    """A list that grows by one with every forward of the model."""
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_killed_pass_goes_on_where_it_was(tiny_model: TinyModel, tmp_path: Path, name: str) -> None:
    model, _ = tiny_model(name)
    questions, targets = weighted(6), find_targets(model)

    def run(checkpoint: Checkpoint | None, kill_after: int | None = None) -> tuple[Any, list[int]]:
        ticks: list[int] = []

        def tick(done: int) -> None:
            ticks.append(done)
            if len(ticks) == kill_after:
                raise Killed

        return attribute(
            model, targets, questions, batch_tokens=1, share_prompt=False, tick=tick, checkpoint=checkpoint
        ), ticks

    calls = forwards(model)
    whole, _ = run(None)
    batches = len(calls)
    assert batches == 6
    with pytest.raises(Killed):
        run(Checkpoint(tmp_path, "key", every=0.0), kill_after=4)
    assert Checkpoint(tmp_path, "key").path.is_file()
    calls.clear()
    resumed, ticks = run(Checkpoint(tmp_path, "key"))
    assert len(calls) == batches - 3  # the batch in which it was killed counts as not done
    assert sum(ticks) == len(questions)  # the bar still runs to its end
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[n], whole[n]) for n in whole)
    calls.clear()
    again, _ = run(Checkpoint(tmp_path, "key"))  # a kill in a later pass finds it whole
    assert calls == []
    assert all(torch.equal(again[n], whole[n]) for n in whole)
    Checkpoint(tmp_path, "key").clear()
    run(Checkpoint(tmp_path, "key"))
    assert len(calls) == batches
    assert list(tmp_path.iterdir()) == []  # one that was quick from its beginning is not kept


@pytest.mark.parametrize("squared", [False, True])
def test_a_whole_pass_is_kept_until_its_caller_clears_it(tiny_model: TinyModel, tmp_path: Path, squared: bool) -> None:
    """So that a kill in a later pass does not lose it."""
    model, _ = tiny_model("llama")
    questions, targets = weighted(4), find_targets(model)
    texts = [Encoded(q.question.prompt, q.question.answers[0]) for q in questions]

    def run(tick: Any = None) -> dict[str, torch.Tensor]:
        kept = Checkpoint(tmp_path, "key", every=0.0)
        if squared:
            return squared_gradients(model, targets, texts, checkpoint=kept, tick=tick)
        return attribute(model, targets, questions, checkpoint=kept, tick=tick)

    first = run()
    calls = forwards(model)
    ticks: list[int] = []
    again = run(ticks.append)
    assert calls == []
    assert sum(ticks) == len(questions)
    assert all(torch.equal(again[n], first[n]) for n in first)


def test_a_killed_price_goes_on_where_it_was(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, _ = tiny_model("llama")
    targets = find_targets(model)
    texts = [Encoded(q.question.prompt, q.question.answers[0]) for q in weighted(5)]
    whole = squared_gradients(model, targets, texts)
    ticks: list[int] = []

    def tick(done: int) -> None:
        ticks.append(done)
        if len(ticks) == 3:
            raise Killed

    with pytest.raises(Killed):
        squared_gradients(model, targets, texts, checkpoint=Checkpoint(tmp_path, "key", every=0.0), tick=tick)
    rest: list[int] = []
    kept = Checkpoint(tmp_path, "key")
    resumed = squared_gradients(model, targets, texts, checkpoint=kept, tick=rest.append)
    assert rest == [2, 1, 1, 1]
    assert all(torch.equal(resumed[n], whole[n]) for n in whole)


def test_a_weight_used_twice_and_by_name_counts_both_times() -> None:
    """Products add themselves to the sums; a use that is no product comes through autograd, and none comes twice."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.inner(self.inner(x)) * self.inner.weight.sum()).sum()

    torch.manual_seed(0)
    module, x = Twice(), torch.randn(5, 3)
    (expected,) = torch.autograd.grad(module(x), [module.inner.weight])
    target = Target("w", "inner", module.inner, module.inner.weight, (3, 3), (3, 1), 0, 0, "mlp")
    with gradients_on(module, [target]) as sums:
        module(x).backward()
        module(x).backward()
    assert torch.allclose(sums[id(module.inner.weight)], 2 * expected, rtol=1e-5)


def test_sums_that_lack_a_parameter_are_gone_on_with(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, _ = tiny_model("llama")
    questions, targets = weighted(3), find_targets(model)
    Checkpoint(tmp_path, "key").save(1, {targets[0].name: torch.ones(targets[0].shape)})
    done: list[int] = []
    found = attribute(
        model,
        targets,
        questions,
        batch_tokens=1,
        share_prompt=False,
        checkpoint=Checkpoint(tmp_path, "key"),
        tick=done.append,
    )
    assert done == [1, 1, 1]
    assert found.keys() == {t.name for t in targets}
    assert found[targets[1].name].any()
