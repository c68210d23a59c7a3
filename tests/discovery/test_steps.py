"""Short steps: the whole search against a slow oracle, what it reads, what it keeps, planted truth."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discovery_data import bits, same_bits, small_contrast, small_generic
from personae.discovery import GenericText, Session, Settings, discover, mean_log_probabilities, open_session, to_masks
from personae.discovery import steps as module
from personae.discovery.selection import Dropped
from personae.discovery.steps import _Couples, _highest, _next_price, _number, _texts, stepped
from personae.runtime import wearing
from planted import Planted

TinyModel = Callable[..., tuple[Any, Any]]
BUDGET = 0.5  # a model at random loses that much to a few hundred weights
SETTINGS = Settings(max_capability_loss=BUDGET, steps=5).checked()
SHARE = 0.6


@pytest.fixture(autouse=True)
def larger_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARE", 0.02)  # of models of some ten thousand weights
    monkeypatch.setattr(module, "STEP_PAIRS", 4)  # of six: steps differ


def session_on(tiny_model: TinyModel, *, paired: bool = True, resume: bool = False) -> Session:
    model, tokenizer = tiny_model("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        contrast = small_contrast(6, paired=paired)
        return open_session(model, tokenizer, contrast, generic=small_generic(), resume=resume)


def watched_prices(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The price after every step, as they come."""
    real = module._next_price
    seen: list[float] = []

    def watched(*arguments: float) -> float:
        seen.append(real(*arguments))
        return seen[-1]

    monkeypatch.setattr(module, "_next_price", watched)
    return seen


def slow_log_p(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *answer]])
    scores = torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
    at = torch.arange(max(len(prompt), 1), ids.shape[1])
    return scores[at - 1, ids[0, at]].mean()


def slow_margins(session: Session, couples: _Couples, some: list[int]) -> torch.Tensor:
    found = []
    for i in some:
        answers = [(q.prompt, a) for q in couples.couples[i] for a in q.answers]
        own, rival = (slow_log_p(session.model, *each) for each in answers)
        found.append(own - rival - couples.base[i])
    return torch.stack(found)


def slow_divergence(session: Session, worn: Dropped, texts: Any) -> tuple[torch.Tensor, list[float]]:
    """K of all texts, and (rise, tokens) summed over them."""
    total, rise, tokens = torch.zeros((), dtype=torch.float64), 0.0, 0
    for text in texts:
        ids = torch.tensor([[*text.prompt, *text.answer]])
        first = max(len(text.prompt), 1) - 1
        with torch.no_grad():
            base = torch.log_softmax(session.model(input_ids=ids).logits[0, first:-1].double(), dim=-1)
        with wearing(session.targets, to_masks(worn)):
            now = torch.log_softmax(session.model(input_ids=ids).logits[0, first:-1].double(), dim=-1)
        total, tokens = total + (base.exp() * (base - now)).sum(), tokens + len(base)
        rise += sum(float(base[i, t] - now.detach()[i, t]) for i, t in enumerate(ids[0, first + 1 :]))
    return total / max(tokens, 1), [rise, tokens]


def slow_sums(session: Session, pole: int, settings: Settings, steps: int) -> dict[str, torch.Tensor]:
    """The docstring of the module, line by line, with whole forwards and autograd on log σ and K themselves."""
    couples = _Couples.of(session, pole, settings)
    parameters = {t.name: t.parameter for t in session.targets}
    weights = {t.name: t.weight.detach().clone() for t in session.targets}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    most = round(module.SHARE * session.size)
    price = lowest = module.PRICE * math.log(2) / BUDGET
    sums = {n: torch.zeros_like(w) for n, w in weights.items()}
    losses: list[Any] = []
    for step in range(steps):
        flat = torch.cat([s.flatten() for s in sums.values()])
        number = round(most * min(1.0, 2 * step / steps))
        worn = {n: torch.zeros_like(s, dtype=torch.bool) for n, s in sums.items()}
        if number:
            last = flat.sort(descending=True).values[number - 1]
            worn = {n: (s >= last) & (s > 0) for n, s in sums.items()}
        some = [(step * module.STEP_PAIRS + i) % len(couples.couples) for i in range(module.STEP_PAIRS)]
        with wearing(session.targets, to_masks(worn)):
            value = torch.nn.functional.logsigmoid(slow_margins(session, couples, some)).mean()
            rises = torch.autograd.grad(value, list(parameters.values()))
        chat, plain = _texts(session.generic, step)
        spent, _ = slow_divergence(session, worn, chat + plain)
        falls = torch.autograd.grad(spent, list(parameters.values()))
        losses.append([slow_divergence(session, worn, kind)[1] for kind in (chat, plain)])
        for n, up, down in zip(parameters, rises, falls, strict=True):
            gain, cost = -weights[n] * up, -weights[n] * down
            cost = torch.where(worn[n], cost, cost.clamp(min=0))
            root = (session.fisher[n].sqrt() * weights[n].abs()).clamp(min=1e-9)
            sums[n] += (gain - price * cost) / root * session.candidates(SHARE)[n]
        lately = torch.tensor(losses[-module.WINDOW :]).sum(0)
        loss = max(float(rise / tokens) if tokens else 0.0 for rise, tokens in lately)
        off = loss / (module.AIM * BUDGET) - 1
        price = min(max(price * math.exp(module.RATE * min(max(off, -1), 1)), lowest), lowest * module.DEAREST)
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return sums


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("pole", [0, 1])
def test_the_search_is_that_of_a_slow_oracle(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, pole: int, paired: bool
) -> None:
    monkeypatch.setattr(module, "LEAST_SLOPE", 0.0)
    monkeypatch.setattr(module, "AIM", 0.001)  # so that the price moves
    prices = watched_prices(monkeypatch)
    session = session_on(tiny_model, paired=paired)
    before = bits(session.model)
    family = stepped(session, SETTINGS, pole, SHARE)
    assert same_bits(session.model, before)
    assert len(set(prices)) > 2
    sums = slow_sums(session, pole, SETTINGS, 5)
    order = torch.cat([s.flatten() for s in sums.values()]).argsort(descending=True)
    for number in (50, family.most):
        found = torch.cat([d.flatten() for d in family.at(number).values()])
        assert int(found.sum()) == number
        # sums differ in the last digits, so some that are next to the boundary may change places
        assert int(found[order[:number]].sum()) >= 0.97 * number
    assert family.most == round(module.BEYOND * module.SHARE * session.size)


def test_pairs_that_are_won_by_far_are_left_out(tiny_model: TinyModel) -> None:
    session = session_on(tiny_model)
    couples = _Couples.of(session, 0, SETTINGS)
    slopes = torch.tensor([0.5, 0.01, 0.25])
    found = couples.weighted([0, 1, 2], slopes)
    assert [q.question for q in found] == [couples.couples[0][0], couples.couples[2][0]]
    assert [q.weights for q in found] == [pytest.approx((s / 3, -s / 3)) for s in (0.5, 0.25)]
    own = replace(couples, own_weight=0.5).weighted([0], slopes[:1])
    assert own[0].weights == pytest.approx((0.75, -0.5))
    assert couples.weighted([1], slopes[1:2]) == []
    assert couples.weighted([0], torch.tensor([math.nan])) == []  # the model overflowed under the mask


def test_a_step_in_which_all_is_won_changes_nothing(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_SLOPE", 1.1)
    family = stepped(session_on(tiny_model), SETTINGS, 0, SHARE)
    assert (family.most, sum(int(d.sum()) for d in family.at(10).values())) == (0, 0)


@pytest.mark.parametrize("paired", [True, False])
def test_every_couple_is_read_once_before_any_is_read_twice(tiny_model: TinyModel, paired: bool) -> None:
    session = session_on(tiny_model, paired=paired)
    positive, negative = (_Couples.of(session, pole, SETTINGS) for pole in (0, 1))
    number = len(positive.couples)
    assert number == 6
    read = [i for step in range(3) for i in positive.at(step)]
    assert sorted(read) == sorted([*range(number)] * 2)
    assert sorted(read[:number]) == [*range(number)]
    margins = positive.margins(session, range(number))
    torch.testing.assert_close(margins, -negative.margins(session, range(number)), rtol=1e-5, atol=1e-6)
    if paired:  # the plain margins of the calibration, in another order
        read_all = mean_log_probabilities(session.model, session.calibration)
        expected = (read_all[:, 0] - read_all[:, 1]).sort().values
        torch.testing.assert_close(margins.sort().values, expected, rtol=1e-5, atol=1e-6)
    else:  # rises over the base model, which it is
        torch.testing.assert_close(margins, torch.zeros_like(margins), rtol=0, atol=1e-6)
        assert {q.prompt for c in positive.couples for q in c[:1]} == {e.prompt for e in session.calibration.positive}
    other = _Couples.of(session, 0, replace(SETTINGS, seed=1))
    assert other.couples != positive.couples


def test_steps_read_other_text_in_turn() -> None:
    few = small_generic()
    text = GenericText(few.plain * 20, few.chat * 20, "many")
    numbered = replace(
        text,
        plain=tuple(replace(e, answer=(i, *e.answer)) for i, e in enumerate(text.plain)),
        chat=tuple(replace(e, answer=(i, *e.answer)) for i, e in enumerate(text.chat)),
    )
    read = [sum(_texts(numbered, step), ()) for step in range(4)]
    assert [len(each) for each in read] == [module.CHAT + 1, module.CHAT] * 2
    flat = [e for each in read for e in each]
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(numbered.cheap.plain) | set(numbered.cheap.chat)  # never what the budget reads


@given(
    values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=400), share=st.floats(0, 1),
    sampled=st.sampled_from([1, 7, 64]),
)  # fmt: skip
def test_the_highest_are_those_of_a_whole_sort(values: list[float], share: float, sampled: int) -> None:
    half = len(values) // 2
    sums = {"a": torch.tensor([values[:half]]), "b": torch.tensor([values[half:]])}
    number = round(share * len(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SAMPLED", sampled)
        found = _highest(sums, number)
    chosen = torch.cat([found[n].flatten() for n in sums])
    flat = torch.tensor(values)
    best = flat.argsort(descending=True, stable=True)[:number]
    expected = torch.zeros(len(values), dtype=torch.bool)
    expected[best] = True
    assert torch.equal(chosen, expected & (flat > 0))


@given(price=st.floats(1.0, 40.0), used=st.floats(0, 100))
def test_the_price_rises_over_the_aim_and_stays_in_its_bounds(price: float, used: float) -> None:
    following = _next_price(price, used, 1.0)
    assert 1.0 <= following <= module.DEAREST
    assert following >= price if used >= 1 else following <= price
    assert abs(math.log(following / price)) <= module.RATE + 1e-9


def test_a_share_of_one_s_own_is_worn_and_given(tiny_model: TinyModel) -> None:
    """With the share of `SHARE` the same masks, with half of it masks that end at half the number."""
    session = session_on(tiny_model)
    plain = stepped(session, SETTINGS, 0, SHARE)
    same, half = (
        stepped(session, Settings(max_capability_loss=BUDGET, steps=5, step_share=share).checked(), 0, SHARE)
        for share in (module.SHARE, module.SHARE / 2)
    )
    assert same.most == plain.most
    assert all(torch.equal(same.at(200)[n], dropped) for n, dropped in plain.at(200).items())
    assert half.most == pytest.approx(plain.most / 2, abs=1)


def test_the_mask_grows_until_half_of_the_steps() -> None:
    assert [_number(step, 8, 100) for step in range(8)] == [0, 25, 50, 75, 100, 100, 100, 100]
    assert _number(0, 1, 100) == 0


@pytest.mark.parametrize("paired", [True, False])
def test_a_killed_search_goes_on_to_the_same_masks(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, paired: bool
) -> None:
    monkeypatch.setenv("PERSONAE_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(module, "AIM", 0.001)
    prices = watched_prices(monkeypatch)
    whole = stepped(session_on(tiny_model, paired=paired), SETTINGS, 1, SHARE).at(200)
    undisturbed = [*prices]
    prices.clear()
    killed, session = (session_on(tiny_model, paired=paired, resume=True) for _ in range(2))
    real, calls = module.divergence_step, 0

    def dying(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "divergence_step", dying)
    with pytest.raises(KeyboardInterrupt):
        stepped(killed, SETTINGS, 1, SHARE)
    again = stepped(session, SETTINGS, 1, SHARE).at(200)
    assert prices == undisturbed
    assert calls == 6  # three steps were kept, two were left
    assert all(torch.equal(whole[n], again[n]) for n in whole)
    finished = stepped(session_on(tiny_model, paired=paired, resume=True), SETTINGS, 1, SHARE).at(200)
    assert calls == 6
    assert all(torch.equal(whole[n], finished[n]) for n in whole)
    assert session.checkpoint is not None
    session.forget()
    assert not list(session.checkpoint.folder.iterdir())


@pytest.mark.parametrize("paired", [True, False])
def test_discover_keeps_the_budget_and_leaves_the_model_as_it_was(tiny_model: TinyModel, paired: bool) -> None:
    model, tokenizer = tiny_model("llama")
    before = bits(model)
    found = discover(
        model, tokenizer, small_contrast(6, paired=paired), generic=small_generic(), split_seed=None, resume=False,
        steps=6, max_capability_loss=BUDGET,
    )  # fmt: skip
    assert same_bits(model, before)
    for subnetwork in found.personas.values():
        provenance = subnetwork.provenance
        assert provenance.parameters["steps"] == 6
        assert "rounds" not in provenance.parameters
        assert provenance.measured["capability_loss_bound"] <= BUDGET
        assert provenance.measured["dev_margin_gain"] > 0
        assert subnetwork.dropped


def test_a_step_that_overflows_is_over_the_budget_and_adds_nothing(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = module.divergence_step, 0

    def overflowing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        costs, rises = real(*arguments)
        if calls == 2:
            costs, rises = {n: c * math.nan for n, c in costs.items()}, rises * math.nan
        return costs, rises

    monkeypatch.setattr(module, "divergence_step", overflowing)
    prices = watched_prices(monkeypatch)
    family = stepped(session_on(tiny_model), SETTINGS, 0, SHARE)
    assert all(math.isfinite(price) for price in prices)
    assert prices[1] > prices[0]
    assert sum(int(d.sum()) for d in family.at(100).values()) == 100


def test_nothing_to_drop_and_budget_left_are_told_of(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("llama")
    options: dict[str, Any] = {"generic": small_generic(), "split_seed": None, "resume": False, "steps": 3}
    with pytest.warns(UserWarning, match="short steps end at .* weights"):
        discover(model, tokenizer, small_contrast(6), max_capability_loss=50.0, **options)
    monkeypatch.setattr(module, "LEAST_SLOPE", 1.1)
    with pytest.warns(UserWarning, match="no weight that it would drop"):
        empty = discover(model, tokenizer, small_contrast(6), max_capability_loss=BUDGET, **options)
    assert {p.dropped for p in empty.personas.values()} == {0}


@pytest.mark.parametrize("architecture", ["mixtral", "gpt2"])
def test_fused_experts_and_transposed_weights_take_steps_too(tiny_model: TinyModel, architecture: str) -> None:
    model, tokenizer = tiny_model(architecture)
    model.to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = open_session(model, tokenizer, small_contrast(6), generic=small_generic(), resume=False)
        before = bits(model)
        family = stepped(session, SETTINGS, 0, SHARE)
    assert same_bits(model, before)
    found = mean_log_probabilities(model, session.calibration)
    with wearing(session.targets, to_masks(family.at(family.most))):
        worn = mean_log_probabilities(model, session.calibration)
    assert float(((worn - found)[:, 0] - (worn - found)[:, 1]).mean()) > 0


def test_steps_find_the_plant(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropping the plant is what helps the negative pole."""
    monkeypatch.setattr(module, "SHARE", 0.01)
    session = Session(planted.model, None, planted.targets, planted.calibration, planted.generic)  # type: ignore[arg-type]
    number = sum(int(p.sum()) for p in planted.plant.values())
    settings = Settings(max_capability_loss=BUDGET, steps=40, rank_by="gain").checked()
    first = stepped(session, settings, 1, 0.999).at(number)
    hit = sum(int((first[n] & planted.plant[n]).sum()) for n in first) / number
    assert hit > 0.25  # by chance 0.01
    before = mean_log_probabilities(planted.model, planted.held_out)
    with wearing(planted.targets, to_masks(first)):
        after = mean_log_probabilities(planted.model, planted.held_out)
    moved = ((before - after)[:, 0] - (before - after)[:, 1]).mean()
    assert float(moved) > 0
