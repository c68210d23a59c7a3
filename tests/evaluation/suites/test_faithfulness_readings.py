"""Shares of a whole, readings against plain forwards, and parts that are not read twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from discovery_data import bits, same_bits
from faithfulness_data import planted, planted_readings, slow_margins
from personae.discovery import to_masks
from personae.errors import ModelError
from personae.evaluation.suites.faithfulness_readings import NEGATIVE, POSITIVE, Reading, share_of


def test_reading() -> None:
    reading = Reading(np.array([[-1.0, -2.0], [-3.0, -3.0], [-4.0, -1.0]]))
    assert reading.margin.tolist() == [1.0, 0.0, -3.0]
    assert reading.wins.tolist() == [1.0, 0.5, 0.0]
    assert reading.own.tolist() == [-1.0, -3.0, -4.0]
    assert reading.first(2).margin.tolist() == [1.0, 0.0]


def test_share_of_is_the_ratio_of_the_means_resampled_together() -> None:
    chance = np.random.default_rng(0)
    whole = chance.normal(2.0, 1.0, 40)
    part = 0.25 * whole + chance.normal(0.0, 0.2, 40)
    found = share_of(part, whole, seed=5)
    assert found is not None
    assert found.value == pytest.approx(part.mean() / whole.mean())
    # the same resamples, one at a time
    counts = np.random.default_rng(5).multinomial(40, np.full(40, 1 / 40), size=2000)
    shares = [float((row @ part) / (row @ whole)) for row in counts]
    low, high = np.quantile(shares, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high))
    assert share_of(whole, whole) == pytest.approx(share_of(3 * whole, 3 * whole))


def test_there_is_no_share_of_nothing() -> None:
    whole = np.array([1.0, -1.0, 2.0, -2.0, 0.1])
    assert share_of(np.ones(5), whole) is None
    assert share_of(np.ones(5), np.zeros(5)) is None
    below = share_of(np.ones(5), -np.ones(5))
    assert below is not None
    assert below.value == -1.0


def test_a_reading_equals_plain_forwards_with_weights_zeroed_by_hand() -> None:
    readings, truth = planted_readings(), planted()
    before = bits(truth.model)
    dropped = {n: torch.from_numpy(m.dropped_bool()) for n, m in readings.directed(POSITIVE).items()}
    found = readings.under("mask", readings.wearing(lambda: readings.directed(POSITIVE)))
    expected = slow_margins(truth.model, truth.targets, dropped, truth.held_out)
    assert found.margin == pytest.approx(expected, abs=1e-4)
    assert readings.base().margin == pytest.approx(
        slow_margins(truth.model, truth.targets, {}, truth.held_out), abs=1e-4
    )
    assert same_bits(truth.model, before)


def test_kept_parts_are_not_read_again(tmp_path: Path) -> None:
    first = planted_readings(tmp_path)
    mask = first.wearing(lambda: to_masks(planted().plant))
    before = first.under("plant", mask)

    def never() -> None:
        pytest.fail("read again")

    assert first.under("plant", never) is before  # type: ignore[arg-type]
    second = planted_readings(tmp_path)
    assert second.under("plant", never).log_p.tolist() == before.log_p.tolist()  # type: ignore[arg-type]
    # another frame, another part
    other = planted_readings(tmp_path, frame={"contrast": "another"})
    assert other.under("plant", other.wearing(dict)).log_p.tolist() != before.log_p.tolist()


def test_masks_of_the_drop_share() -> None:
    readings, truth = planted_readings(), planted()
    size = sum(t.size for t in truth.targets)
    assert readings.number(NEGATIVE) == int(0.01 * size + 0.5)
    for masks in (readings.directed(NEGATIVE), readings.random(NEGATIVE, 3)):
        assert sum(m.dropped for m in masks.values()) == readings.number(NEGATIVE)
        assert all(not (m.dropped_bool() & ~readings.candidates[n].numpy()).any() for n, m in masks.items())
    assert sum(m.dropped for m in readings.random(NEGATIVE, 3, tenths=1).values()) == readings.number(NEGATIVE) // 10
    assert readings.random(NEGATIVE, 3) != readings.random(NEGATIVE, 4)


def test_numbers_that_are_none_are_refused() -> None:
    readings, truth = planted_readings(), planted()
    weight = truth.targets[-1].weight
    kept = weight.clone()
    try:
        weight.fill_(float("nan"))
        with pytest.raises(ModelError, match="float32"):
            readings.base()
    finally:
        weight.copy_(kept)
