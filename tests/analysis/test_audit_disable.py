"""The search for the mask that disables, on a stand-in whose alignment and loss are known functions of the size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from personae.analysis.audit_disable import find_disabling
from personae.analysis.audit_model import count_dropped, unpack
from personae.analysis.audit_settings import AuditSettings
from personae.discovery import Family
from personae.subnetwork import Mask

SIDE = 400  # of the one target
ITEMS = 40
BUDGET = 0.05


class Model:
    """Stands for the audited model. Rows are ranked from 0: a mask of the first round starts at weight 0, one of the
    second at weight 1, which is how the stand-in tells them apart."""

    def __init__(self, won: Callable[[int], float], loss: Callable[[int], float], **options: Any) -> None:
        self.settings = AuditSettings(target=0.15, max_capability_loss=BUDGET, resamples=300, **options).checked()
        self.size = SIDE * SIDE
        self.won, self.loss = won, loss
        self.read: list[int] = []  # sizes whose dev items were read
        self.costed: list[int] = []
        self.gain_of_second = 0.0
        self.refined_from: list[int] = []

    def margins(self, title: str, items: Any, masks: Mapping[str, Mask] | None = None) -> list[float]:
        number = count_dropped(masks or {})
        self.read.append(number)
        second = bool(number) and 0 not in masks["w"].positions()  # type: ignore[index]
        share = self.won(number) - (self.gain_of_second if second else 0.0)
        return [1.0 if k < round(share * ITEMS) else -1.0 for k in range(ITEMS)]

    def loss_bound(self, masks: Mapping[str, Mask], budget: float) -> float:
        self.costed.append(count_dropped(masks))
        return self.loss(self.costed[-1])

    def family(self, settings: Any, pole: int, cheap_share: float, first: int = 0) -> Family:
        assert pole == 1  # the harmless one

        def at(number: int) -> dict[str, torch.Tensor]:
            dropped = torch.zeros(self.size, dtype=torch.bool)
            dropped[first : first + number] = True
            return {"w": dropped.view(SIDE, SIDE)}

        return Family(at, self.size // 2, self.size)

    def refined(self, settings: Any, pole: int, cheap_share: float, worn: Mapping[str, torch.Tensor]) -> Family:
        self.refined_from.append(int(worn["w"].sum()))
        return self.family(settings, pole, cheap_share, first=1)


def search(model: Model) -> dict[str, Any]:
    found = find_disabling(model, model, SimpleNamespace())  # type: ignore[arg-type]
    masks = unpack(found["mask"], {"w": (SIDE, SIDE)})
    assert count_dropped(masks) == found["dropped"]
    return found


def linear(per_weight: float) -> Callable[[int], float]:
    return lambda number: per_weight * number


def test_the_smallest_mask_that_is_low_enough_is_taken_where_the_budget_leaves_room() -> None:
    """The alignment is zero from 1,000 weights on, and the budget allows for 20,000."""
    model = Model(lambda n: 0.0 if n >= 1_000 else 0.6, linear(BUDGET / 20_000))
    found = search(model)
    assert 1_000 <= found["dropped"] < 1_000 * 1.8  # a step of 10^(1/4) above at most
    assert found["rounds"] == 1
    assert not model.refined_from
    assert found["bound"] == pytest.approx(found["dropped"] * BUDGET / 20_000)
    assert found["dev"] == [-1.0] * ITEMS


def test_the_budget_binds_where_the_target_is_out_of_reach() -> None:
    model = Model(lambda n: 0.5, linear(BUDGET / 4_000))
    found = search(model)
    assert 0.9 * 4_000 <= found["dropped"] <= 4_000
    assert found["bound"] <= BUDGET
    assert model.refined_from == [found["dropped"]]
    assert found["rounds"] == 1  # the second round gained nothing


def test_a_low_alignment_on_too_few_items_is_not_taken_for_the_target() -> None:
    """5 of 40 items: 0.125 is under the target of 0.15, the interval's upper end is not."""
    model = Model(lambda n: 5 / 40 if n < 3_000 else 0.2, linear(BUDGET / 4_000))
    assert search(model)["dropped"] > 3_000


def test_the_second_round_is_taken_if_dev_gains_by_it() -> None:
    model = Model(lambda n: 0.5, linear(BUDGET / 4_000))
    model.gain_of_second = 0.1
    found = search(model)
    assert found["rounds"] == 2
    assert np.mean(np.array(found["dev"]) > 0) == pytest.approx(0.4)


def test_one_round_where_one_was_asked_for() -> None:
    model = Model(lambda n: 0.5, linear(BUDGET / 4_000), rounds=1)
    search(model)
    assert not model.refined_from


def test_nothing_is_dropped_where_nothing_keeps_the_budget() -> None:
    model = Model(lambda n: 0.5, lambda n: 1.0)
    found = search(model)
    assert found["dropped"] == 0
    assert len(found["dev"]) == ITEMS
    assert found["probes"] == len(model.costed) <= 5


def test_everything_may_be_within_the_budget() -> None:
    model = Model(lambda n: 0.5, lambda n: 0.0, rounds=1)
    assert search(model)["dropped"] == SIDE * SIDE // 2
