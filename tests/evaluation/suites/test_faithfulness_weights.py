"""Necessity, minimality and restoration where the right answer is known: on the planted model."""

from __future__ import annotations

import pytest
import torch

from discovery_data import bits, same_bits
from faithfulness_data import planted, planted_readings, slow_margins
from personae.discovery import to_masks
from personae.evaluation.bootstrap import Difference, Estimate
from personae.evaluation.suites import faithfulness_weights
from personae.evaluation.suites.faithfulness_readings import NEGATIVE, POSITIVE, Readings
from personae.evaluation.suites.faithfulness_weights import minimality, necessity, parts_of, restoration
from personae.models import find_targets
from personae.subnetwork import Mask


def worn_as(pole: int, masks: dict[str, Mask]) -> Readings:
    readings = planted_readings()
    readings._directed[pole] = masks
    return readings


def test_the_plant_is_necessary_and_random_weights_are_not() -> None:
    truth = planted()
    before = bits(truth.model)
    figures, [table] = necessity(worn_as(NEGATIVE, to_masks(truth.plant)))
    assert same_bits(truth.model, before)
    base = slow_margins(truth.model, truth.targets, {}, truth.held_out)
    without = slow_margins(truth.model, truth.targets, truth.plant, truth.held_out)
    lost, chance, gap = figures["necessity.lost"], figures["necessity.random"], figures["necessity"]
    assert isinstance(lost, Estimate)
    assert isinstance(chance, Estimate)
    assert isinstance(gap, Difference)
    assert lost.value == pytest.approx(base.mean() - without.mean(), abs=1e-4)
    assert lost.value > 0.85 * base.mean()
    assert abs(chance.value) < 0.05 * base.mean()
    assert gap.value == pytest.approx(lost.value - chance.value)
    assert gap.low > 0
    assert figures["necessity.mean"] is not None
    assert [row[0] for row in table.rows] == ["zero", "mean"]


def test_ablating_nothing_loses_nothing() -> None:
    empty = {t.name: Mask.full(t.shape) for t in planted().targets}
    figures, _ = necessity(worn_as(NEGATIVE, empty))
    for name in ("necessity.lost", "necessity.mean.lost"):
        found = figures[name]
        assert isinstance(found, Estimate)
        assert found.value == 0


def test_tenths_are_disjoint_and_make_up_the_mask() -> None:
    readings = planted_readings()
    whole = readings.directed(POSITIVE)
    tenths = [faithfulness_weights._decile(readings, k) for k in range(10)]
    for name, mask in whole.items():
        stacked = sum(t[name].dropped_bool().astype(int) for t in tenths)
        assert (stacked == mask.dropped_bool()).all()
    sizes = [sum(m.dropped for m in t.values()) for t in tenths]
    assert max(sizes) - min(sizes) <= 1
    # the first tenth holds the best ranked: none outside it ranks higher
    best = readings.family(POSITIVE).at(sizes[0])
    assert all((tenths[0][n].dropped_bool() == best[n].numpy()).all() for n in best)


def test_minimality_against_plain_forwards() -> None:
    truth, readings = planted(), planted_readings()
    figures, [table] = minimality(readings)
    base = slow_margins(truth.model, truth.targets, {}, truth.held_out)
    tenth = {n: torch.from_numpy(m.dropped_bool()) for n, m in faithfulness_weights._decile(readings, 3).items()}
    worn = slow_margins(truth.model, truth.targets, tenth, truth.held_out)
    chance = figures["minimality.random"]
    found = figures["minimality.decile_4_minus_random"]
    assert isinstance(chance, Difference)
    assert isinstance(found, Difference)
    assert found.value == pytest.approx(worn.mean() - base.mean() - chance.value, abs=1e-4)
    assert len(table.rows) == 11
    assert sum(f.value for k, f in figures.items() if "decile" in k and isinstance(f, Difference)) > 0


def test_restoration_where_one_block_does_it_all() -> None:
    readings = planted_readings()
    only = {n: m for n, m in readings.directed(POSITIVE).items() if ".layers.1.mlp." in n}
    figures, [table] = restoration(worn_as(POSITIVE, only), 32)
    gain = figures["restore.gain"]
    assert isinstance(gain, Difference)
    assert gain.low > 0
    shares = {row[0]: [cell.value for cell in row[1:3] if isinstance(cell, Estimate)] for row in table.rows}
    assert shares["mlp"] == shares["block 1"] == pytest.approx([1.0, 1.0])
    assert shares["attention"] == shares["block 0"] == pytest.approx([0.0, 0.0], abs=1e-5)
    assert isinstance(figures["alone.mlp"], Estimate)


def test_restoration_against_plain_forwards() -> None:
    truth, readings = planted(), planted_readings()
    figures, [table] = restoration(readings, 8)
    whole = {n: torch.from_numpy(m.dropped_bool()) for n, m in readings.directed(POSITIVE).items()}
    attention = {n: d for n, d in whole.items() if "self_attn" in n}
    rest = {n: d for n, d in whole.items() if "self_attn" not in n}
    base, worn, alone, restored = (
        slow_margins(truth.model, truth.targets, dropped, truth.held_out).mean()
        for dropped in ({}, whole, attention, rest)
    )
    lost, kept = figures["restore.attention"], figures["alone.attention"]
    assert isinstance(lost, Estimate)
    assert isinstance(kept, Estimate)
    assert lost.value == pytest.approx((worn - restored) / (worn - base), abs=2e-3)
    assert kept.value == pytest.approx((alone - base) / (worn - base), abs=2e-3)
    assert [row[3] for row in table.rows] == [32, 32, 8, 8]


def test_there_is_no_share_of_a_gain_that_is_none() -> None:
    empty = {t.name: Mask.full(t.shape) for t in planted().targets}
    figures, [table] = restoration(worn_as(POSITIVE, empty), 8)
    assert figures["restore.mlp"] is None
    assert all(row[1:3] == (None, None) for row in table.rows)
    assert "not clear of zero" in table.warnings[0]


def test_parts_cover_every_target_twice(tiny_model: object, architecture: str) -> None:
    model, _ = tiny_model(architecture)  # type: ignore[operator]
    targets = find_targets(model)
    parts = parts_of(targets)
    blocks = [names for part, names in parts.items() if part.startswith("block")]
    kinds = [names for part, names in parts.items() if not part.startswith("block")]
    for group in (blocks, kinds):
        assert sorted(n for names in group for n in names) == sorted(t.name for t in targets)
    assert list(parts)[-1] == f"block {max(t.block for t in targets)}"
