"""The search for the strongest mask within a budget, on loss curves that are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discovery_data import random_texts
from personae.discovery import Capability, GenericText, budget, capability, largest_within, loss_bound_of
from personae.errors import DataError
from personae.models import Encoded

BUDGET = 0.05
powers = st.floats(0.5, 2.0)


@given(st.floats(-9, 2), powers, st.integers(1, 10**8), st.integers(0, 10**7))
def test_the_result_keeps_the_budget(scale: float, power: float, most: int, start: int) -> None:
    probed: dict[int, float] = {}

    def loss_at(n: int) -> float:
        assert 1 <= n <= most
        probed[n] = 10**scale * n**power
        return probed[n]

    number, loss = largest_within(loss_at, most, BUDGET, start=start or None)
    assert len(probed) <= 7
    if number:
        assert loss == probed[number] <= BUDGET
    else:
        assert loss == 0.0
        assert min(probed.values()) > BUDGET
    assert number == max((n for n, v in probed.items() if v <= BUDGET), default=0)


@given(powers, st.floats(0.01, 0.9), st.integers(10**5, 10**8))
def test_a_power_law_is_filled_well(power: float, where: float, most: int) -> None:
    best = where * most
    number, loss = largest_within(lambda n: BUDGET * (n / best) ** power, most, BUDGET, start=most // 100)
    assert number <= best
    assert loss >= 0.8 * BUDGET


def test_all_of_it_when_all_of_it_fits() -> None:
    assert largest_within(lambda n: 0.001, 1000, BUDGET) == (1000, 0.001)
    assert largest_within(lambda n: -0.5, 1, BUDGET) == (1, -0.5)
    assert largest_within(lambda n: 1 / 0, 0, BUDGET) == (0, 0.0)


def test_nothing_when_nothing_fits() -> None:
    assert largest_within(lambda n: 9.0, 1000, BUDGET) == (0, 0.0)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_mask_that_breaks_the_model_is_over_the_budget(broken: float) -> None:
    number, loss = largest_within(lambda n: 1e-4 * n if n < 300 else broken, 10_000, BUDGET, start=5_000)
    assert 0 < number < 300
    assert 0 < loss <= BUDGET


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_a_text_that_overflows_is_over_the_budget(monkeypatch: pytest.MonkeyPatch, broken: float, kind: str) -> None:
    """Whichever text it is: `max` passes over what is no number, unless it comes first."""
    base = likelihoods(1.0, 1.0)
    worn = likelihoods(broken if kind == "plain" else 1.0, broken if kind == "chat" else 1.0)
    assert worn.loss(base) == worn.loss_bound(base) == math.inf
    texts = GenericText((Encoded((), (1, 2)),) * 2, (Encoded((1,), (2,)),), "x")

    def read(_: object, some: list[Encoded]) -> torch.Tensor:
        kept = worn.chat_texts if some and some[0].prompt else worn.plain_texts
        return kept[: len(some)]

    monkeypatch.setattr(budget, "answer_nll", read)
    assert loss_bound_of(torch.nn.Identity(), texts, base, BUDGET) == math.inf


def test_a_step_is_bracketed_without_probing_twice() -> None:
    probes: list[int] = []

    def loss_at(n: int) -> float:
        probes.append(n)
        return 0.0 if n < 10 else 1.0

    number, _ = largest_within(loss_at, 20, BUDGET, start=8)
    assert 8 <= number < 10
    assert len(probes) == len(set(probes))


def likelihoods(plain: float, chat: float) -> Capability:
    """Two plain texts and one chat answer of ten tokens each."""
    return Capability(torch.tensor([[10 * plain, 10.0]] * 2), torch.tensor([[10 * chat, 10.0]]))


def test_loss_is_the_larger_rise() -> None:
    base = likelihoods(plain=3.0, chat=2.0)
    assert likelihoods(3.2, 2.1).loss(base) == pytest.approx(0.2)
    assert likelihoods(2.9, 2.1).loss(base) == pytest.approx(0.1)
    assert base.loss(base) == base.loss_bound(base) == 0.0


def test_the_bound_is_the_loss_where_all_texts_agree() -> None:
    assert likelihoods(3.2, 2.1).loss_bound(likelihoods(3.0, 2.0)) == pytest.approx(0.2, abs=1e-6)


def test_the_bound_covers_what_other_text_would_say() -> None:
    # Texts drawn from a known law: the bound lies above the true rise in about 95 of 100 draws.
    generator = torch.Generator().manual_seed(0)
    true, covered, draws = 0.04, 0, 400
    for _ in range(draws):
        tokens = torch.randint(20, 200, (48,), generator=generator).double()
        rises = tokens * (true + 0.08 * torch.randn(48, generator=generator).double())
        base = Capability(torch.tensor([[0.0, 1.0]]), torch.stack([2 * tokens, tokens], 1))
        worn = Capability(base.plain_texts, torch.stack([2 * tokens + rises, tokens], 1))
        covered += worn.loss_bound(base) >= true
    assert 0.92 <= covered / draws <= 0.98


def test_the_standard_error_is_that_of_a_resampled_ratio() -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(20, 200, (60,), generator=generator).double()
    rises = tokens * (0.04 + 0.08 * torch.randn(60, generator=generator).double())
    base = Capability(torch.tensor([[0.0, 1.0]]), torch.stack([2 * tokens, tokens], 1))
    worn = Capability(base.plain_texts, torch.stack([2 * tokens + rises, tokens], 1))
    drawn = torch.randint(60, (4000, 60), generator=generator)
    resampled = (rises[drawn].sum(1) / tokens[drawn].sum(1)).std()
    (_, single), (_, error) = worn.rises(base)
    assert single == 0.0
    assert error == pytest.approx(float(resampled), rel=0.05)


def test_capability_is_the_mean_over_tokens(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    texts = random_texts(7)
    text = GenericText(tuple(type(t)((), t.prompt + t.answer) for t in texts[:3]), texts[3:], "random")
    found = capability(model, text)

    def slow(items: Any) -> float:
        total, tokens = 0.0, 0
        for item in items:
            ids = torch.tensor([item.prompt + item.answer])
            with torch.no_grad():
                logs = torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
            for position in range(max(len(item.prompt), 1), ids.shape[1]):
                total -= float(logs[position - 1, ids[0, position]])
                tokens += 1
        return total / tokens

    assert found.plain == pytest.approx(slow(text.plain), rel=1e-5)
    assert found.chat == pytest.approx(slow(text.chat), rel=1e-5)
    with pytest.raises(DataError, match="lacks one"):
        capability(model, GenericText(text.plain, (), "no chat"))


def _damaged(model: Any, scale: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)


@pytest.mark.parametrize("number", [1, 3, 9])
def test_a_bound_within_the_budget_is_that_of_all_texts(tiny_model: Any, number: int) -> None:
    model, _ = tiny_model("llama")
    text = GenericText(random_texts(number), random_texts(number + 2, seed=1), "random")
    base = capability(model, text)
    _damaged(model, 1.02)
    bound = loss_bound_of(model, text, base, budget=1e3)
    assert bound == pytest.approx(capability(model, text).loss_bound(base), abs=1e-4)


def test_what_is_clearly_over_the_budget_is_read_by_a_quarter(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_model("llama")
    text = GenericText(random_texts(16), random_texts(12, seed=1), "random")
    base = capability(model, text)
    _damaged(model, 3.0)
    over = capability(model, text)
    read: list[int] = []
    nll = budget.answer_nll
    monkeypatch.setattr(budget, "answer_nll", lambda model, texts: (read.append(len(texts)), nll(model, texts))[1])
    limit = over.loss(base) / 4
    assert loss_bound_of(model, text, base, limit) > limit
    assert read == [4, 3]
