"""Orders of candidates that `benchmarks.orders` tries: what blocks get, what gates average, what is held out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from discovery_data import small_contrast, small_generic
from personae.discovery import Settings, encode_contrast, open_session, to_masks
from personae.evaluation.scoring import encode_items, score_encoded
from personae.evaluation.suites.mbti_blocks import places
from personae.runtime import wearing


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks import orders

    return orders


def trial_of(orders: ModuleType, tiny_model: Callable[..., Any], number: int = 60) -> Any:
    """Plain's mask of `number` weights on a small model, on 30 pairs, beside 10 others."""
    model, tokenizer = tiny_model("llama")
    contrast = small_contrast(40)
    own, held = contrast.take(30), contrast.take(10, seed=1)
    session = open_session(model, tokenizer, own, generic=small_generic(), resume=False)
    settings = Settings(max_capability_loss=0.05).checked()
    plain = session.family(settings, orders.POLE, orders.CHEAP_SHARE).at
    return orders.Trial(session, settings, encode_contrast(model, tokenizer, held), plain(number))


def test_blocks_take_their_shares_each_by_its_own_order(orders: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    order = {n: torch.rand(6, 50, generator=generator) + 0.1 for n in ("0.a", "0.b", "1.a", "2.a")}
    candidates = {n: torch.rand(6, 50, generator=generator) < 0.5 for n in order}
    place = {n: int(n[0]) for n in order}
    keys = orders.shared_out(order, candidates, place, [0.2, 0.8, 0.0])
    for number in (5, 20, 100):
        dropped = orders.rank(keys, candidates).drop(number)
        assert [sum(int(dropped[n].sum()) for n in order if place[n] == b) for b in range(3)] == [
            number // 5,
            number - number // 5,
            0,
        ]
        for block, names in ((0, ("0.a", "0.b")), (1, ("1.a",))):
            values = torch.cat([order[n][dropped[n]] for n in names])
            left = torch.cat([order[n][candidates[n] & ~dropped[n]] for n in names])
            assert values.min() > left.max(), f"the best of block {block} first"
        assert all((candidates[n] | ~dropped[n]).all() for n in order)


def test_gains_averaged_over_gates_sum_to_what_the_mask_does(
    orders: ModuleType, tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Σ H over the mask is the change of the mean margin, by the midpoint rule; at the whole model alone it is not."""
    trial = trial_of(orders, tiny_model, number=3000)
    session, mask = trial.session, trial.mask
    items = encode_items(session.model, session.tokenizer, small_contrast(40).take(30))
    base = score_encoded(session.model, items).difference().mean()
    with wearing(session.targets, to_masks(mask)):
        change = score_encoded(session.model, items).difference().mean() - base
    averaged = orders.averaged_gains(session, mask)
    errors = [
        abs(sum(float(h[mask[n]].sum()) for n, h in gains.items()) - change) for gains in (averaged, session.gains)
    ]
    assert errors[0] < 0.1 * errors[1], (errors, change)
    assert score_encoded(session.model, items).difference().mean() == pytest.approx(base), "nothing is worn any more"
    monkeypatch.setattr(orders, "GATES", (0.0,))
    for name, gain in orders.averaged_gains(session, mask).items():  # no gate: the gains of the whole model
        assert torch.allclose(gain, session.gains[name], atol=1e-6), name


def test_every_order_gives_nested_masks_of_candidates(orders: ModuleType, tiny_model: Callable[..., Any]) -> None:
    trial = trial_of(orders, tiny_model)
    candidates = trial.session.candidates(orders.CHEAP_SHARE)
    separations = trial.separations()
    place = places(trial.session.model, trial.session.targets)
    assert len(separations) == max(place.values()) + 1
    assert np.ptp(separations) > 0
    for name, make in orders.ORDERS.items():
        at = make(trial)
        small, large = at(40), at(200)
        assert sum(int(d.sum()) for d in small.values()) == 40, name
        assert all((large[n] | ~small[n]).all() and (candidates[n] | ~large[n]).all() for n in small), name
    by_block = np.bincount(
        [place[n] for n, d in small.items() for _ in range(int(d.sum()))], minlength=len(separations)
    )
    assert not by_block[separations <= 0].any(), "a block whose part does not help gets nothing"
    even = orders.ORDERS["even blocks"](trial)(200)
    shares = np.bincount([place[n] for n, d in even.items() for _ in range(int(d.sum()))])
    assert np.ptp(shares) <= 1


def test_means_are_put_back_where_they_are_asked_for(orders: ModuleType, tiny_model: Callable[..., Any]) -> None:
    trial = trial_of(orders, tiny_model, number=400)
    session, items = trial.session, encode_items(trial.session.model, trial.session.tokenizer, small_contrast(40))
    assert set(orders.WITH_MEANS) < set(orders.ORDERS)
    target, found = session.targets[0], {}
    for order in (orders.PLAIN, *orders.WITH_MEANS):
        with orders.worn(session, order, trial.mask):
            assert not target.weight[trial.mask[target.name]].any(), "dropped in either way"
            found[order] = score_encoded(session.model, items).difference()
    assert len({round(float(scores.mean()), 6) for scores in found.values()}) == 1 + len(orders.WITH_MEANS)


def test_held_out_pairs_are_others_of_the_calibration_part(orders: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "PAIRS", 12)
    monkeypatch.setattr(orders, "HELD", 5)
    contrast = small_contrast(40)
    own, held = orders.held_out(contrast)
    assert len(own.pairs) == 12
    assert len(held.pairs) == 5
    assert not set(own.pairs) & set(held.pairs)
    assert set(held.pairs) < set(contrast.pairs)


def test_orders_are_compared_with_plain_item_by_item(orders: ModuleType) -> None:
    margins = np.linspace(-2, 2, 40)
    rows = [
        {"order": "plain", "margins": margins.tolist()},
        {"order": "even blocks", "margins": (margins + 1).tolist()},
    ]
    found = orders.against_plain(rows)
    assert list(found) == ["even blocks"]
    gap = np.mean(np.logaddexp(0, -margins) - np.logaddexp(0, -margins - 1))
    assert found["even blocks"]["value"] == pytest.approx(gap)
    assert found["even blocks"]["low"] > 0
