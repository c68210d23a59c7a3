"""Planted truth: which scores find the weights that are the persona."""

from __future__ import annotations

import pytest
import torch

from discovery_data import bits, same_bits
from personae.discovery import Session, Settings, choose, margin, mean_log_probabilities, to_masks
from personae.discovery.session import row_ranks
from personae.models import answer_nll
from personae.runtime import wearing
from planted import Planted, auc


def session_of(planted: Planted) -> Session:
    return Session(planted.model, None, planted.targets, planted.calibration, planted.generic)  # type: ignore[arg-type]


def number(planted: Planted) -> int:
    return sum(int(p.sum()) for p in planted.plant.values())


def test_the_plant_is_the_persona(planted: Planted) -> None:
    acc, mean = margin(mean_log_probabilities(planted.model, planted.held_out))
    assert acc > 0.9
    assert mean > 0.2
    with wearing(planted.targets, to_masks(planted.plant)):
        _, without = margin(mean_log_probabilities(planted.model, planted.held_out))
        sums = [
            answer_nll(planted.model, side).sum(0) for side in (planted.held_out.positive, planted.held_out.negative)
        ]
    assert abs(without) < 0.15 * mean
    assert max(float(s[0] / s[1]) for s in sums) < 0.4  # without its plant the model still gives either answer
    assert number(planted) / sum(t.size for t in planted.targets) == pytest.approx(0.01, abs=1e-4)


def test_directed_finds_the_plant(planted: Planted, record_property: pytest.RecordProperty) -> None:
    """Zeroing the plant helps the negative pole, so H of that pole ranks it at the top."""
    session = session_of(planted)
    against = session.signed_gains(Settings(), 1)
    found = {"H": auc(against, planted.plant)}
    plant = {w.target.name: planted.plant[w.target.name] for w in session.writers}  # it lies among these alone
    for variant in ("lean", "separation"):
        order = session._forward_order(Settings(method="directed-forward", forward=variant, rank_by="gain"), 1)
        found[f"forward, {variant}"] = auc({n: order[n] for n in plant}, plant)
    found["H/sqrt(D)"] = auc({n: session.by_price(n, h, "gain-per-price") for n, h in against.items()}, planted.plant)
    for method in ("wanda", "contrastive-wanda", "contrastive-sparse", "sparsegpt", "magnitude", "generic", "random"):
        found[method] = auc(session.scores(Settings(method=method), 0)[0], planted.plant)
    for method, value in found.items():
        record_property(f"auc {method}", round(value, 3))
    assert found["H"] >= 0.9
    assert found["H/sqrt(D)"] >= 0.8
    # No score that never compares the poles by gradient comes near; which of them is best is not stable.
    assert max(v for m, v in found.items() if not m.startswith(("H", "forward"))) < found["H"] - 0.2
    # Without a gradient less is found, and only by the form that leans; docs/experiments.md
    assert found["forward, lean"] >= 0.6
    assert abs(found["random"] - 0.5) < 0.1


def test_the_positive_pole_does_not_ask_for_its_own_removal(planted: Planted) -> None:
    assert auc(session_of(planted).signed_gains(Settings(), 0), planted.plant) <= 0.1


def test_the_first_of_directed_hold_many_planted_weights(planted: Planted) -> None:
    session = session_of(planted)
    first = session.family(Settings(rank_by="gain"), 1, 0.999).at(number(planted))
    hit = sum(int((first[n] & planted.plant[n]).sum()) for n in first) / number(planted)
    assert hit > 0.25  # by chance 0.01


@pytest.mark.parametrize("rank_by", ["gain", "gain-per-price"])
@pytest.mark.parametrize("pole", [0, 1])
def test_directed_moves_the_margin_its_own_way(planted: Planted, pole: int, rank_by: str) -> None:
    session = session_of(planted)
    before = bits(planted.model)
    settings = Settings(cheap_share=0.3, drop_share=0.02, rank_by=rank_by).checked()
    (choice,) = choose(session, settings, planted.calibration, poles=(pole,))
    assert choice.measured["dev_margin_gain"] > 0
    (held_out,) = choose(session, settings, planted.held_out, poles=(pole,))
    assert held_out.measured["dev_margin_gain"] > 0
    assert same_bits(planted.model, before)


def test_the_budget_holds_on_the_text_it_was_searched_on(planted: Planted) -> None:
    session = session_of(planted)
    for choice in choose(session, Settings(max_capability_loss=0.02).checked(), planted.calibration):
        assert choice.measured["capability_loss_searched"] <= 0.02
        assert sum(int(d.sum()) for d in choice.dropped.values()) > 0
        assert choice.measured["dev_margin_gain"] > 0


def test_auc() -> None:
    truth = {"a": torch.tensor([[True, False]]), "b": torch.tensor([[False, True]])}
    assert auc({"a": torch.tensor([[3.0, 1.0]]), "b": torch.tensor([[0.0, 2.0]])}, truth) == 1.0
    assert auc({"a": torch.tensor([[0.0, 1.0]]), "b": torch.tensor([[1.0, 0.0]])}, truth) == 0.0
    assert auc({"a": torch.tensor([[1.0, 1.0]]), "b": torch.tensor([[1.0, 1.0]])}, truth) == 0.5
    values = torch.tensor([[0.3, 0.1]]), torch.tensor([[0.2, 0.2]])
    expected = sum(1.0 if p > q else 0.5 * (p == q) for p in (0.3, 0.2) for q in (0.1, 0.2)) / 4
    assert auc({"a": values[0], "b": values[1]}, truth) == pytest.approx(expected)
    assert row_ranks(values[0]).tolist() == [[0.5, 0.0]]
