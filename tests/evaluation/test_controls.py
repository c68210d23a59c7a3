from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personae.discovery import GenericText, discover, encode_contrast, open_session, steps
from personae.errors import OptionError
from personae.evaluation import controls, evaluate
from personae.evaluation.bench import Bench
from personae.evaluation.controls import random_masks, scored_masks
from personae.evaluation.poles import dropped
from personae.models import find_targets
from personae.personas import Contrast, split
from personae.subnetwork import Mask


class Shape:
    """Stands in for a target: only its name, shape and size are read."""

    def __init__(self, name: str, shape: tuple[int, int]) -> None:
        self.name, self.shape, self.size = name, shape, shape[0] * shape[1]


SHAPES: Any = [Shape("a", (3, 5)), Shape("b", (4, 2)), Shape("c", (1, 7))]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 5), st.floats(0, 1))
def test_as_many_candidates_as_asked_and_no_other_weight(number: int, seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    candidates = {t.name: torch.rand(t.shape, generator=generator) < share for t in SHAPES}
    masks = random_masks(SHAPES, number, seed, candidates)
    assert dropped(masks) == min(number, sum(int(c.sum()) for c in candidates.values()))
    for target in SHAPES:
        assert masks[target.name].shape == target.shape
        assert not (masks[target.name].dropped_bool() & ~candidates[target.name].numpy()).any()
    assert dropped(random_masks(SHAPES, number, seed)) == min(number, 30)


def test_every_weight_is_as_likely_and_seeds_differ() -> None:
    drawn = np.zeros(30)
    for seed in range(2000):
        masks = random_masks(SHAPES, 6, seed)
        drawn += np.concatenate([masks[t.name].dropped_bool().ravel() for t in SHAPES])
    assert np.abs(drawn / 2000 - 0.2).max() < 0.04  # four and a half standard errors
    assert random_masks(SHAPES, 6, 1) == random_masks(SHAPES, 6, 1)
    assert random_masks(SHAPES, 6, 1) != random_masks(SHAPES, 6, 2)


@pytest.mark.parametrize("number", [3, 15, 27])
def test_models_larger_than_numpy_draws_from_get_random_masks_too(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Every set of weights is as likely: so is how many fall to each target, beside numpy's own draws."""
    pools, seeds = np.array([15, 8, 7]), 4000
    monkeypatch.setattr(controls, "_MOST", 0)
    found = np.array([controls._shared_out(np.random.default_rng(seed), pools, number) for seed in range(seeds)])
    assert (found.sum(axis=1) == number).all()
    assert ((found >= 0) & (found <= pools)).all()
    expected = np.random.default_rng(0).multivariate_hypergeometric(pools, number, size=100_000)
    error = expected.std(axis=0) / seeds**0.5
    assert (np.abs(found.mean(axis=0) - number * pools / 30) < 4.5 * error).all()
    assert np.abs(found.var(axis=0) / expected.var(axis=0) - 1).max() < 0.15
    assert dropped(random_masks(SHAPES, number, 0)) == number


def test_more_weights_than_numpy_draws_from() -> None:
    pools = np.array([3 * 10**9, 10**9, 0])
    counts = controls._shared_out(np.random.default_rng(0), pools, 2_000_000)
    assert counts.sum() == 2_000_000
    assert abs(counts[0] - 1_500_000) < 4.5 * (2_000_000 * 0.75 * 0.25) ** 0.5
    assert counts[2] == 0


@pytest.mark.parametrize("method", ["magnitude", "generic"])
def test_scored_masks_drop_the_lowest_scores(
    model_and_tokenizer: Any, contrast: Contrast, generic: GenericText, method: str
) -> None:
    model, tokenizer = model_and_tokenizer
    session = open_session(model, tokenizer, contrast, generic=generic, resume=False)
    masks = scored_masks(session, method, round(0.25 * session.size))
    assert abs(dropped(masks) - 0.25 * session.size) <= len(session.targets) / 2
    for target in find_targets(model):
        scores = target.weight.abs() if method == "magnitude" else session.generic_wanda[target.name]
        gone = torch.from_numpy(masks[target.name].dropped_bool())
        assert int(gone.sum(1).min()) == int(gone.sum(1).max()) == round(0.25 * target.shape[1])
        worst_kept = torch.where(gone, torch.inf, scores).min(dim=1).values
        best_dropped = torch.where(gone, scores, -torch.inf).max(dim=1).values
        assert (best_dropped <= worst_kept).all()


def test_a_share_below_one_weight_a_row_keeps_its_number(
    model_and_tokenizer: Any, contrast: Contrast, generic: GenericText
) -> None:
    session = open_session(*model_and_tokenizer, contrast, generic=generic, resume=False)
    number = round(0.01 * session.size)  # rows of 32 and 48 weights: 0.32 of a weight
    masks = scored_masks(session, "magnitude", number)
    assert abs(dropped(masks) - number) <= len(session.targets) / 2
    assert dropped(scored_masks(session, "magnitude", 0)) == 0


def test_random_and_shuffled_masks_lie_among_the_personas_candidates(
    model_and_tokenizer: Any, contrast: Contrast, generic: GenericText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control that every claim leans on: weights as cheap as those of the persona, and no others."""
    model, tokenizer = model_and_tokenizer
    artefact = discover(model, tokenizer, contrast, generic=generic, cheap_share=0.3, drop_share=0.01, resume=False)
    session = open_session(model, tokenizer, split(contrast).calibration, generic=generic, resume=False)
    worn: dict[str, list[Any]] = {}
    both = Bench.both
    monkeypatch.setattr(
        Bench,
        "both",
        lambda self, name, masks, **o: worn.setdefault(name, []).extend(masks) or both(self, name, masks, **o),
    )
    evaluate(model, tokenizer, contrast, artefact, controls=("random", "shuffled"), random_seeds=2, session=session,
             resamples=50)  # fmt: skip
    candidates = session.candidates(0.3)
    assert 0.2 < sum(int(c.sum()) for c in candidates.values()) / session.size < 0.4
    drawn = [masks for name, found in worn.items() if name.startswith(("random", "shuffled")) for masks in found]
    assert len(drawn) == 6  # two seeds and one shuffling, of two poles
    for masks in drawn:
        for name, mask in masks.items():
            gone = torch.from_numpy(mask.dropped_bool())
            assert not (gone & ~candidates[name]).any()
        assert sum(mask.dropped for mask in masks.values()) > 0


def test_random_weights_beside_a_score_are_not_of_experts_that_it_spared(
    tiny_model: Any, contrast: Contrast, generic: GenericText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No text reached them: dropping them changes nothing, and a draw from them would be no control."""
    model, tokenizer = tiny_model("mixtral")
    found = discover(model, tokenizer, contrast, method="wanda", sparsity=0.1, generic=generic, resume=False)
    spared = next(t.name for t in find_targets(model) if t.expert is not None)
    poles = {
        name: replace(
            part,
            masks={**part.masks, spared: Mask.from_positions(np.array([], dtype=np.int64), part.masks[spared].shape)},
        )
        for name, part in found.personas.items()
    }
    worn: list[Any] = []
    both = Bench.both
    monkeypatch.setattr(
        Bench,
        "both",
        lambda self, name, masks, **o: (
            (worn.extend(masks) if "random" in name else None) or both(self, name, masks, **o)
        ),
    )
    artefact = replace(found, personas=poles)
    session = open_session(model, tokenizer, split(contrast).calibration, generic=generic, resume=False)
    result = evaluate(
        model, tokenizer, contrast, artefact, controls=("random",), random_seeds=2, session=session, resamples=50
    )
    assert "among all weights but those of experts that the masks leave whole" in result["random"].note
    assert len(worn) == 4
    for masks in worn:
        assert spared not in masks or not masks[spared].dropped
        assert dropped(masks) == dropped(poles[contrast.positive].masks)


def test_shuffled_labels_find_a_mask_of_the_same_size(
    model_and_tokenizer: Any, contrast: Contrast, generic: GenericText
) -> None:
    model, tokenizer = model_and_tokenizer
    artefact = discover(model, tokenizer, contrast, generic=generic, cheap_share=0.3, drop_share=0.01, resume=False)
    session = open_session(model, tokenizer, split(contrast).calibration, generic=generic, resume=False)
    result = evaluate(model, tokenizer, contrast, artefact, controls=("shuffled",), session=session, resamples=50)
    row, own = result["shuffled"], result["directed"]
    assert row.kind == "control"
    assert row.loss is not None
    assert (row.sparsity_positive, row.sparsity_negative) == (own.sparsity_positive, own.sparsity_negative)
    assert row.readings[0].difference != own.readings[0].difference
    # what it learned from shuffled pairs moves real ones less than what the persona learned from real pairs
    assert row.margin.value - row.margin_opposite.value < own.margin.value - own.margin_opposite.value


def test_shuffled_labels_weigh_own_answers_where_the_persona_did(
    model_and_tokenizer: Any, contrast: Contrast, generic: GenericText, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = model_and_tokenizer
    how = {"objective": "log-sigmoid", "own_weight": 0.5, "rank_by": "gain"}
    artefact = discover(model, tokenizer, contrast, generic=generic, max_capability_loss=0.5, resume=False, **how)
    session = open_session(model, tokenizer, split(contrast).calibration, generic=generic, resume=False)
    seen: list[Any] = []
    real = controls.family_of
    monkeypatch.setattr(controls, "family_of", lambda s, given, *rest: seen.append(given) or real(s, given, *rest))
    result = evaluate(model, tokenizer, contrast, artefact, controls=("shuffled",), session=session, resamples=50)
    assert {(s.objective, s.own_weight, s.rank_by, s.rounds) for s in seen} == {("log-sigmoid", 0.5, "gain", 1)}
    assert "in one round" in result["shuffled"].note


def test_shuffled_labels_take_short_steps_where_the_persona_did(
    model_and_tokenizer: Any, contrast: Contrast, generic: GenericText, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = model_and_tokenizer
    how: dict[str, Any] = {"steps": 3, "max_capability_loss": 0.5, "generic": generic, "resume": False}
    apart = {
        pole: discover(model, tokenizer, contrast, pole=pole, step_share=share, **how)
        for pole, share in (("loud", 0.01), ("quiet", 0.02))
    }
    artefact = replace(apart["loud"], personas={pole: made[pole] for pole, made in apart.items()})
    session = open_session(model, tokenizer, split(contrast).calibration, generic=generic, resume=False)
    seen: list[Any] = []
    real = steps.stepped
    monkeypatch.setattr(steps, "stepped", lambda s, *rest: seen.append((s.calibration, *rest)) or real(s, *rest))
    result = evaluate(model, tokenizer, contrast, artefact, controls=("shuffled",), session=session, resamples=50)
    row, own = result["shuffled"], result["directed"]
    assert (row.sparsity_positive, row.sparsity_negative) == (own.sparsity_positive, own.sparsity_negative)
    assert row.cost == own.cost == "3 backwards of 8 pairs"
    assert [pole for _, _, pole, _ in seen] == [0, 1]
    assert [(settings.steps, settings.step_share) for _, settings, _, _ in seen] == [(3, 0.01), (3, 0.02)]
    assert all(calibration != session.calibration for calibration, *_ in seen)


def test_shuffled_labels_need_candidates(
    model_and_tokenizer: Any, contrast: Contrast, artefact_of: Any, generic: GenericText
) -> None:
    model, tokenizer = model_and_tokenizer
    session = open_session(model, tokenizer, split(contrast).calibration, generic=generic, resume=False)
    artefact = artefact_of(model, contrast, method="wanda")
    with pytest.raises(OptionError, match="this persona was found by neither"):
        evaluate(model, tokenizer, contrast, artefact, controls=("shuffled",), session=session)
    with pytest.raises(OptionError, match="this persona was found by neither"):
        evaluate(model, tokenizer, contrast, methods=("wanda",), controls=("shuffled",), session=session)


def test_shuffled_labels_repeat_the_method_without_gradients_too(
    model_and_tokenizer: Any, contrast: Contrast, generic: GenericText, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = model_and_tokenizer
    how: dict[str, Any] = {"method": "directed-forward", "cheap_share": 0.3, "drop_share": 0.01}
    artefact = discover(model, tokenizer, contrast, generic=generic, resume=False, **how)
    session = open_session(model, tokenizer, split(contrast).calibration, generic=generic, resume=False)
    monkeypatch.setattr(type(session), "signed_gains", None)  # no backward pass
    result = evaluate(model, tokenizer, contrast, artefact, controls=("shuffled",), session=session, resamples=50)
    row, own = result["shuffled"], result["directed-forward"]
    assert (row.sparsity_positive, row.sparsity_negative) == (own.sparsity_positive, own.sparsity_negative)
    assert row.cost == own.cost == "forward-only"
    assert row.readings[0].difference != own.readings[0].difference


def test_another_personas_masks_are_controls(
    model_and_tokenizer: Any, contrast: Contrast, artefact_of: Any, generic: GenericText
) -> None:
    model, tokenizer = model_and_tokenizer
    session = open_session(model, tokenizer, split(contrast).calibration, generic=generic, resume=False)
    other = artefact_of(
        model, replace(contrast, name="high-low", positive="high", negative="low"), share=0.01, steps=75
    )
    artefact = artefact_of(model, contrast)
    result = evaluate(model, tokenizer, contrast, artefact, controls=(), other=other, session=session, resamples=50)
    for name in ("high", "low"):
        row = result[f"other: {name}"]
        assert row.kind == "control"
        assert row.sparsity == pytest.approx(other[name].sparsity)
        assert row.acc == row.acc_opposite
        assert row.cost == "75 backwards of 8 pairs"  # as its own mask was found
    assert len(result["directed"].claims) == 3


def test_a_session_on_other_items_shares_what_does_not_depend_on_them(
    model_and_tokenizer: Any, contrast: Contrast, generic: GenericText
) -> None:
    model, tokenizer = model_and_tokenizer
    part = split(contrast).calibration
    session = open_session(model, tokenizer, part, generic=generic, resume=False)
    statistics, gains = session.generic_statistics, session.gains
    other = session.with_calibration(encode_contrast(model, tokenizer, part.swapped()))
    assert other.generic_statistics is statistics
    assert all(torch.allclose(other.gains[n], -h, atol=1e-6) for n, h in gains.items())
    assert session.gains is gains
