"""Rounds under the mask: gains against a slow oracle, steps that pay and keep the budget, the model left as it was."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discovery_data import bits, same_bits, small_contrast, small_generic
from personae.discovery import (
    Calibration,
    GenericText,
    Session,
    Settings,
    capability,
    discover,
    mean_log_probabilities,
    open_session,
    to_masks,
)
from personae.discovery import rounds as module
from personae.discovery.rounds import _drawn, _Step, _texts, _weighted, count_of, regrow
from personae.discovery.selection import Dropped
from personae.models import Question
from personae.runtime import wearing

TinyModel = Callable[..., tuple[Any, Any]]
BUDGET = 0.5  # a model at random loses that much to a few hundred weights
SETTINGS = Settings(max_capability_loss=BUDGET, regrow=3).checked()
SHARE = 0.6


def session_on(tiny_model: TinyModel, *, paired: bool = True, resume: bool = False) -> Session:
    model, tokenizer = tiny_model("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        contrast = small_contrast(6, paired=paired)
        return open_session(model, tokenizer, contrast, generic=small_generic(), resume=resume)


def first_mask(session: Session, pole: int, number: int = 400) -> Dropped:
    return session.family(SETTINGS, pole, SHARE).at(number)


def rounds_of(session: Session, pole: int) -> tuple[list[module.Round], Any]:
    base = capability(session.model, session.generic.held_out.read)
    return list(regrow(session, SETTINGS, pole, SHARE, first_mask(session, pole), base)), base


def mean_log_sigmoid(session: Session, items: Calibration, pole: int, worn: Dropped) -> float:
    with wearing(session.targets, to_masks(worn)):
        read = mean_log_probabilities(session.model, items)
    margins = (read[:, 0] - read[:, 1]) * (1 if pole == 0 else -1)
    return float(torch.nn.functional.logsigmoid(margins).mean())


@pytest.mark.parametrize("pole", [0, 1])
def test_gains_are_those_of_mean_log_sigmoid_under_the_mask(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, pole: int
) -> None:
    """The oracle: a loop over pairs, whole forwards, autograd on log σ itself."""
    monkeypatch.setattr(module, "LEAST_SLOPE", 0.0)
    session = session_on(tiny_model)
    worn = first_mask(session, pole)
    weights = {t.name: t.weight.detach().clone() for t in session.targets}
    margins = module._margins(session, session.calibration, pole, worn)
    questions = _weighted(session.calibration, pole, torch.sigmoid(-margins), 0.0)
    gains = session.gains_under(worn, questions, "test")
    with wearing(session.targets, to_masks(worn)):
        values = []
        for pair in session.calibration.paired:
            log_p = []
            for answer in pair.answers:
                ids = torch.tensor([[*pair.prompt, *answer]])
                scores = torch.log_softmax(session.model(input_ids=ids).logits[0].double(), dim=-1)
                at = torch.arange(len(pair.prompt), ids.shape[1])
                log_p.append(scores[at - 1, ids[0, at]].mean())
            margin = (log_p[0] - log_p[1]) * (1 if pole == 0 else -1)
            values.append(torch.nn.functional.logsigmoid(margin))
        parameters = {t.name: t.parameter for t in session.targets}
        found = torch.autograd.grad(torch.stack(values).mean(), list(parameters.values()))
    assert len({id(p) for p in parameters.values()}) == len(parameters)
    for (name, parameter), gradient in zip(parameters.items(), found, strict=True):
        assert parameter.shape == weights[name].shape
        torch.testing.assert_close(gains[name], -weights[name] * gradient, rtol=1e-3, atol=1e-7)


def test_pairs_that_are_won_by_far_are_left_out(tiny_model: TinyModel) -> None:
    session = session_on(tiny_model)
    pairs = len(session.calibration.paired)
    slopes = torch.full((pairs,), 0.01, dtype=torch.float64)
    slopes[1], slopes[3] = 0.5, 0.25
    some = _weighted(session.calibration, 0, slopes, 0.0)
    assert [q.question for q in some] == [session.calibration.paired[i] for i in (1, 3)]
    assert [q.weights for q in some] == [pytest.approx((w / pairs, -w / pairs)) for w in (0.5, 0.25)]
    least = torch.full((pairs,), 0.01, dtype=torch.float64)
    least[2] = 0.02
    assert [q.question for q in _weighted(session.calibration, 0, least, 0.0)] == [session.calibration.paired[2]]


@pytest.mark.parametrize("pole", [0, 1])
def test_every_round_keeps_the_budget_and_none_is_worse_than_staying(tiny_model: TinyModel, pole: int) -> None:
    session = session_on(tiny_model)
    before = bits(session.model)
    found, base = rounds_of(session, pole)
    assert same_bits(session.model, before)
    assert any(r.step for r in found)
    price = module.LOSS_PRICE * math.log(2) / BUDGET
    worn = session.family(SETTINGS, pole, SHARE).at(round(module.START * 400))
    text = session.generic.held_out.read
    for number, each in enumerate(found):
        _, drawn = _drawn(session.calibration, number, 0)
        assert each.cost.loss_bound(base) <= BUDGET
        with wearing(session.targets, to_masks(each.dropped)):
            again = capability(session.model, text)
        assert again.loss(base) == pytest.approx(each.cost.loss(base), abs=1e-6)
        assert each.fit == pytest.approx(mean_log_sigmoid(session, drawn, pole, each.dropped), abs=1e-6)
        with wearing(session.targets, to_masks(worn)):
            stay = capability(session.model, text).loss(base)
        now = each.fit - price * max(each.cost.loss(base), 0)
        assert now >= mean_log_sigmoid(session, drawn, pole, worn) - price * max(stay, 0) - 1e-6
        worn = each.dropped
    start = session.family(SETTINGS, pole, SHARE).at(round(module.START * 400))
    items = session.calibration
    assert mean_log_sigmoid(session, items, pole, worn) > mean_log_sigmoid(session, items, pole, start)


def test_the_same_call_gives_the_same_masks(tiny_model: TinyModel) -> None:
    first, second = (rounds_of(session_on(tiny_model), 0)[0] for _ in range(2))
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one.dropped[n], other.dropped[n]) for n in one.dropped)


def test_unpaired_answers_have_one_margin(tiny_model: TinyModel) -> None:
    session = session_on(tiny_model, paired=False)
    assert not session.calibration.paired
    found, base = rounds_of(session, 0)
    assert found
    assert all(r.cost.loss_bound(base) <= BUDGET for r in found)
    start = session.family(SETTINGS, 0, SHARE).at(round(module.START * 400))
    fits = [mean_log_sigmoid(session, session.calibration, 0, mask) for mask in (start, found[-1].dropped)]
    assert fits[1] > fits[0]


def test_it_ends_after_two_rounds_without_a_step(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def at(self: _Step, t: float) -> Dropped:
        tried.append(t)
        return self.worn

    monkeypatch.setattr(_Step, "at", at)
    session = session_on(tiny_model)
    base = capability(session.model, session.generic.held_out.read)
    many = replace(SETTINGS, regrow=9)
    found = list(regrow(session, many, 0, SHARE, first_mask(session, 0), base))
    assert [r.step for r in found] == [0.0] * module.FRUITLESS
    assert tried == [module.FIRST_STEP, *module.SMALLER] * module.FRUITLESS


@given(data=st.data())
def test_a_step_goes_part_of_the_way(data: st.DataObject) -> None:
    shape, number = (4, 6), 24
    values = torch.tensor(data.draw(st.lists(st.integers(-9, 9), min_size=number, max_size=number))).float().view(shape)
    flags = st.lists(st.booleans(), min_size=number, max_size=number)
    worn = torch.tensor(data.draw(flags)).view(shape)
    inside = torch.tensor(data.draw(flags)).view(shape)
    t = data.draw(st.floats(0.01, 1.0))
    step = _Step({"a": worn}, {"a": inside}, {"a": values})
    found = step.at(t)["a"]
    added, given_back = found & ~worn, worn & ~found
    assert not (added & ~inside).any()
    assert (values[added] > 0).all()
    assert (values[given_back] < 0).all()
    assert int(added.sum()) <= round(t * module.GROWTH * int(worn.sum()))
    assert int(given_back.sum()) == round(t * int((worn & (values < 0)).sum()))
    if added.any():  # none is left behind that is better
        assert values[~worn & inside & ~added].le(values[added].min()).all()
    assert count_of({"a": found}) == int(worn.sum()) + int(added.sum()) - int(given_back.sum())


@given(pairs=st.integers(1, 600), number=st.integers(0, 5))
def test_steps_are_judged_on_pairs_that_the_gains_did_not_read(pairs: int, number: int) -> None:
    questions = tuple(Question((1,), ((2,), (i + 3,))) for i in range(pairs))
    read, judges = _drawn(Calibration(questions, (), ()), number, 0)
    assert read.paired
    assert judges.paired
    assert len(read.paired) <= module.PAIRS
    assert len(judges.paired) <= max(pairs / 4, 1)
    if pairs > 1:
        assert not set(read.paired) & set(judges.paired)
        assert read != _drawn(Calibration(questions, (), ()), number + 1, 0)[0] or pairs < 10


def test_rounds_read_other_text_in_turn() -> None:
    few = small_generic()
    many = GenericText(few.plain * 20, few.chat * 20, "many")
    numbered = replace(
        many,
        plain=tuple(replace(e, answer=(i, *e.answer)) for i, e in enumerate(many.plain)),
        chat=tuple(replace(e, answer=(i, *e.answer)) for i, e in enumerate(many.chat)),
        answers=6,
    )
    first, second = _texts(numbered, 0), _texts(numbered, 1)
    assert len(first) == len(second) == len(numbered.cheap.read.plain) + len(numbered.cheap.read.chat)
    assert not set(first) & set(second)
    assert set(second) <= set(numbered.cheap.plain) | set(numbered.cheap.chat)  # never what the budget reads


def test_what_is_kept_of_a_pass_belongs_to_its_mask(tiny_model: TinyModel, tmp_path: Path) -> None:
    session = session_on(tiny_model, resume=True)
    questions = session.calibration.objective(0)
    one, other = (session.gains_under(first_mask(session, 0, n), questions, "test") for n in (100, 3000))
    assert any(not torch.equal(one[n], other[n]) for n in one)
    session.forget()


def test_a_killed_run_takes_up_the_rounds_that_it_had_finished(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONAE_CHECKPOINT_SECONDS", "0")  # quick passes are kept too
    session = session_on(tiny_model, resume=True)
    assert session.checkpoint is not None
    first, _ = rounds_of(session, 0)
    left = len(list(session.checkpoint.folder.iterdir()))
    assert left == session.passes  # sums of a finished round are gone: each is as large as the model

    def never(*arguments: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(module, "_values", never)
    again = session_on(tiny_model, resume=True)
    second, _ = rounds_of(again, 0)
    assert [(r.step, r.fit) for r in first] == [(r.step, r.fit) for r in second]
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one.dropped[n], other.dropped[n]) for n in one.dropped)
        assert torch.equal(one.cost.chat_texts, other.cost.chat_texts)
    with pytest.raises(AssertionError):
        rounds_of(again, 1)
    session.forget()
    again.forget()


def test_discover_takes_the_round_that_is_best_on_dev(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("llama")
    said = iter([0.0, 1.0, 3.0, 2.0] * 2)  # a pole: round one, and three under the mask

    def measure(*arguments: Any) -> dict[str, Any]:
        return {"dev_log_sigmoid": next(said), "dev_items": 1}

    monkeypatch.setattr(sys.modules["personae.discovery.discover"], "measure", measure)
    monkeypatch.setattr(module, "FRUITLESS", 9)
    options: dict[str, Any] = {"generic": small_generic(), "split_seed": None, "resume": False}
    before = bits(model)
    found = discover(model, tokenizer, small_contrast(6), rounds=1, regrow=3, max_capability_loss=BUDGET, **options)
    assert same_bits(model, before)
    for subnetwork in found.personas.values():
        parameters = subnetwork.provenance.parameters
        assert (parameters["regrow"], parameters["regrown"]) == (3, 2)
        assert subnetwork.provenance.measured["capability_loss_bound"] <= BUDGET
        assert subnetwork.dropped
