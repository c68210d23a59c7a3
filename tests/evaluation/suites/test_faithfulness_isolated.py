"""Isolated subnetworks against masks made by hand, and what is said where F has no meaning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from discovery_data import bits, same_bits
from faithfulness_data import planted, planted_readings, slow_margins
from personae.discovery import Settings, collect_statistics, site
from personae.evaluation.suites.faithfulness_isolated import COMPLEMENTED, METHODS, _doubts, chosen_weight, isolated
from personae.evaluation.suites.faithfulness_readings import POSITIVE, Reading

ABOVE, BELOW, NEAR = np.ones(20) + np.arange(20) / 10, -np.ones(20), np.array([1.0, -1.0] * 10)


def test_sufficiency_of_wanda_equals_masks_made_by_hand() -> None:
    truth, readings = planted(), planted_readings()
    before = bits(truth.model)
    figures, [table] = isolated(readings, (0.5,))
    assert same_bits(truth.model, before)
    own = collect_statistics(truth.model, truth.targets, truth.calibration.positive)
    dropped = {}
    for target in truth.targets:
        scores = target.weight.abs() * own[site(target)].mean_abs.float()
        dropped[target.name] = torch.zeros(target.shape, dtype=torch.bool)
        for row in range(target.shape[0]):
            order = sorted(range(target.shape[1]), key=lambda j: float(scores[row, j]))
            dropped[target.name][row, order[: target.shape[1] // 2]] = True
    items = truth.held_out
    kept = slow_margins(truth.model, truth.targets, dropped, items)
    rest = slow_margins(truth.model, truth.targets, {n: ~d for n, d in dropped.items()}, items)
    base = slow_margins(truth.model, truth.targets, {}, items)
    assert figures["isolated50.wanda.margin"].value == pytest.approx(kept.mean(), abs=1e-4)  # type: ignore[union-attr]
    assert figures["isolated50.wanda.gain"].value == pytest.approx(kept.mean() - base.mean(), abs=1e-4)  # type: ignore[union-attr]
    assert figures["isolated50.wanda.acc"].value == (kept > 0).mean()  # type: ignore[union-attr]
    assert figures["isolated50.wanda.complement.acc"].value == (rest > 0).mean()  # type: ignore[union-attr]
    # and the rest of the table is there
    assert [row[:2] for row in table.rows] == [("base", 0.0), ("none", 1.0), *((m, 0.5) for m in METHODS)]
    assert {m for m in METHODS if f"isolated50{'' if m == 'directed' else '.' + m}.complement.acc" in figures} == set(
        COMPLEMENTED
    )
    assert figures["isolated50.acc_minus_best"].value <= figures["isolated50.acc"].value  # type: ignore[operator,union-attr]
    # 'none' has no target weight at all
    everything = {t.name: torch.ones(t.shape, dtype=torch.bool) for t in truth.targets}
    none = slow_margins(truth.model, truth.targets, everything, items)
    assert figures["none.margin"].value == pytest.approx(none.mean(), abs=1e-4)  # type: ignore[union-attr]
    whole = readings.base().margin - none
    if figures["isolated50.wanda.F"] is None:
        assert _doubts(whole, 0) == table.warnings
        assert len(table.warnings) == 1
    else:
        assert figures["isolated50.wanda.F"].value == pytest.approx(  # type: ignore[union-attr]
            (kept - none).mean() / whole.mean(), abs=1e-3
        )


def test_claims_over_sparsities_are_adjusted_by_holm() -> None:
    """Every resample, the best other method in it, p and Holm written out."""
    readings = planted_readings()
    sparsities = (0.2, 0.4, 0.6)
    isolated(readings, sparsities)
    items = len(readings.test.paired)
    # What a planted model says differs from one processor to another: these answers are drawn, so that p do differ.
    chance = np.random.default_rng(1)
    for rho, lead in zip(sparsities, (0.0, 0.5, 1.5), strict=True):
        for method in METHODS:
            drawn_margins = chance.normal(lead if method == "directed" else 0.0, 1.0, items)
            readings._read[f"isolated/{method}/{rho:g}"] = Reading(np.column_stack([drawn_margins, np.zeros(items)]))
    figures, [table] = isolated(readings, sparsities)
    drawn = np.random.default_rng(0).multinomial(items, [1 / items] * items, size=2000)
    p = []
    for rho in sparsities:
        won = {m: readings._read[f"isolated/{m}/{rho:g}"].wins for m in METHODS}
        own, *others = ([float(row @ w) for row in drawn] for w in won.values())
        gaps = [mine - max(rest) for mine, *rest in zip(own, *others, strict=True)]
        least = min(sum(g <= 0 for g in gaps), sum(g >= 0 for g in gaps))
        p.append(min(1.0, 2 * (1 + least) / 2001))
    assert len(set(p)) > 1
    found = [figures[f"isolated{100 * rho:g}.acc_minus_best"] for rho in sparsities]
    assert [claim.p for claim in found] == pytest.approx(p)  # type: ignore[union-attr]
    expected, worst = {}, 0.0
    for place, (value, rho) in enumerate(sorted(zip(p, sparsities, strict=True))):
        worst = expected[rho] = max(worst, min(1.0, value * (3 - place)))
    adjusted = [figures[f"isolated{100 * rho:g}.acc_minus_best.p_holm"] for rho in sparsities]
    assert adjusted == pytest.approx([expected[rho] for rho in sparsities])
    assert table.columns[-2:] == ("acc minus best", "p (Holm)")
    assert all(len(row) == len(table.columns) for row in table.rows)
    claimed = {row[:2]: row[-2:] for row in table.rows if row[-2:] != (None, None)}
    assert claimed == {("directed", rho): (claim, q) for rho, claim, q in zip(sparsities, found, adjusted, strict=True)}
    assert any("Holm over the 3 sparsities" in note for note in table.notes)


def test_dev_chooses_the_weight_of_the_isolated_form() -> None:
    truth, readings = planted(), planted_readings()
    scores = {}
    for weight in (0.25, 0.5, 1.0):
        dropped = readings.session.isolated(Settings(isolated=True, sparsity=0.3), POSITIVE, weight)
        margins = slow_margins(truth.model, truth.targets, dropped, truth.held_out)
        scores[weight] = float(np.mean(-np.log1p(np.exp(-margins))))
    assert chosen_weight(readings) == max(scores, key=lambda w: scores[w])


def test_what_is_said_where_f_means_little() -> None:
    assert _doubts(ABOVE, 0) == ()
    assert "share of nothing" in _doubts(NEAR, 0)[0]
    assert "leans further away" in _doubts(BELOW, 0)[0]
