"""Resamples, the methods repeated on them, and what makes masks agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compare_data import artefact_for, random_masks, subnetwork
from discovery_data import bits, same_bits, small_contrast, small_generic
from personae.analysis.stability import resampled, stability
from personae.discovery import Calibration, attribute, discover, encode_contrast, open_session
from personae.errors import MaskMismatchError, OptionError, PersonaInUseError
from personae.models import find_targets
from personae.personas import Contrast
from personae.runtime import PersonaModel
from personae.subnetwork import Artefact

module = import_module("personae.analysis.stability")  # the room exports a function of the same name

SHARES = {"cheap_share": 0.5, "drop_share": 0.05}
METHODS: dict[str, dict[str, Any]] = {
    "directed": SHARES,
    "directed, by gain": {**SHARES, "rank_by": "gain"},
    "directed, log-sigmoid": {**SHARES, "objective": "log-sigmoid"},
    "directed, short steps": {"steps": 3, "max_capability_loss": 0.5},
    "isolated": {"isolated": True, "sparsity": 0.4},
    "directed-forward": {"method": "directed-forward", "cheap_share": 0.5, "drop_share": 0.02},
    "wanda": {"method": "wanda", "sparsity": 0.5},
    "wanda, all tokens, l2": {"method": "wanda", "sparsity": 0.5, "tokens": "all", "statistic": "l2"},
    "wanda, 2:4": {"method": "wanda", "n_m": (2, 4)},
    "contrastive-wanda": {"method": "contrastive-wanda", "sparsity": 0.3, "phi": "softplus"},
    "contrastive-sparse": {"method": "contrastive-sparse", "sparsity": 0.3},
    "sparsegpt": {"method": "sparsegpt", "sparsity": 0.3},
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAE_CACHE", str(tmp_path_factory.getbasetemp() / "personae-cache"))


@pytest.fixture
def llama(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("llama")


def found_on(llama: Any, contrast: Contrast, **options: Any) -> Artefact:
    return discover(*llama, contrast, generic=small_generic(), split_seed=None, resume=False, **options)


# --- resamples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [True, False])
def test_a_resample_draws_as_many_items_with_replacement(llama: Any, paired: bool) -> None:
    whole = encode_contrast(*llama, small_contrast(40, paired=paired))
    chance = np.random.default_rng(0)
    shares = []
    for _ in range(30):
        drawn = resampled(whole, chance)
        assert (len(drawn.positive), len(drawn.negative)) == (len(whole.positive), len(whole.negative))
        assert set(drawn.positive) <= set(whole.positive)
        assert set(drawn.negative) <= set(whole.negative)
        if paired:  # question and both answers stay together
            assert [(q.prompt, *q.answers) for q in drawn.paired] == [
                (p.prompt, p.answer, n.answer) for p, n in zip(drawn.positive, drawn.negative, strict=True)
            ]
        shares.append(len(set(drawn.positive)) / len(whole.positive))
    assert np.mean(shares) == pytest.approx(1 - (1 - 1 / 40) ** 40, abs=0.03)


@pytest.mark.parametrize("paired", [True, False])
def test_gradients_of_a_resample_are_those_of_its_items_one_by_one(llama: Any, paired: bool) -> None:
    model, _ = llama
    drawn = resampled(encode_contrast(*llama, small_contrast(6, paired=paired)), np.random.default_rng(3))
    plain = Calibration(drawn.paired, drawn.positive, drawn.negative)
    assert len(drawn.objective()) < len(plain.objective())
    targets = find_targets(model)
    once, each = (attribute(model, targets, items.objective()) for items in (drawn, plain))
    for name, gradient in each.items():
        torch.testing.assert_close(once[name], gradient, rtol=1e-4, atol=1e-6)


# --- the method again -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_on_the_items_themselves_every_method_finds_its_own_mask_again(
    llama: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    contrast = small_contrast(8)
    made = found_on(llama, contrast, **METHODS[name])
    assert made["lead"].masks != made["follow"].masks
    monkeypatch.setattr(module, "resampled", lambda calibration, _: calibration)
    before = bits(llama[0])
    both = stability(*llama, [made], contrast, resamples=2, split_seed=None, generic=small_generic())
    assert same_bits(llama[0], before)
    assert [found.persona for found in both] == ["lead", "follow"]
    for found in both:
        assert found["all"].own.mean == 1.0
        assert found["all"].jaccard.mean == 1.0
        assert found["all"].difference.greatest == 0.0
        assert found.dropped_by_resamples == (found.dropped,) * 2
        assert found.notes == ()
        assert found.items == 8


def test_figures_are_those_of_the_masks(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    contrast = small_contrast(12)
    made = found_on(llama, contrast, **SHARES)
    kept: list[Any] = []
    measured = module._measured

    def keep(member: Any, masks: Any, *rest: Any) -> Any:
        kept.append(masks)
        return measured(member, masks, *rest)

    monkeypatch.setattr(module, "_measured", keep)
    both = stability(*llama, [made], contrast, resamples=3, split_seed=None, generic=small_generic())
    for found, masks in zip(both, kept, strict=True):
        flat = [np.concatenate([m[n].dropped_bool().ravel() for n in sorted(m)]) for m in masks]
        own = np.concatenate([m.dropped_bool().ravel() for m in made[found.persona].masks.values()])
        between = [(a & b).sum() / (a | b).sum() for a, b in combinations(flat, 2)]
        whole = found["all"]
        assert (whole.jaccard.mean, whole.jaccard.least, whole.jaccard.greatest) == pytest.approx(
            (np.mean(between), min(between), max(between))
        )
        assert whole.difference.mean == pytest.approx(np.mean([(a != b).mean() for a, b in combinations(flat, 2)]))
        assert whole.own.mean == pytest.approx(np.mean([(own & b).sum() / (own | b).sum() for b in flat]))
        assert whole.jaccard.chance < whole.jaccard.least < 1  # related, and not the same
        assert found.dropped_by_resamples == tuple(int(f.sum()) for f in flat)
        assert [p.level for p in found.parts] == ["all", "kind", "kind", "block", "block", "block"]
        with pytest.raises(KeyError, match="no part 'block 7'"):
            _ = found["block 7"]


def test_the_seed_decides_and_poles_share_resamples(llama: Any) -> None:
    contrast = small_contrast(10)
    made = found_on(llama, contrast, method="wanda", sparsity=0.5)
    options: dict[str, Any] = {"resamples": 2, "split_seed": None, "generic": small_generic()}
    first, again, other = (stability(*llama, [made], contrast, seed=s, **options) for s in (0, 0, 1))
    assert first == again
    assert first != other
    alone = stability(*llama, [made.without("lead")], contrast, **options)
    assert alone == first[1:]


def test_steps_say_which_resample_they_belong_to(llama: Any) -> None:
    titles: list[str] = []

    def progress(title: str, total: int) -> Any:
        from personae.discovery import silent

        titles.append(title)
        return silent(title, total)

    contrast = small_contrast(8)
    made = found_on(llama, contrast, **SHARES)
    stability(*llama, [made], contrast, resamples=2, split_seed=None, generic=small_generic(), progress=progress)
    assert [t for t in titles if t.startswith("resample")] == [
        f"resample {n} of 2: attribution (margin)" for n in (1, 2)
    ]  # what generic text gives is not computed again


def test_labels_are_those_of_the_comparison(llama: Any, tmp_path: Path) -> None:
    contrast = small_contrast(8)
    paths = [tmp_path / "x.persona", tmp_path / "y.persona"]
    for path, share in zip(paths, (0.3, 0.5), strict=True):
        found_on(llama, contrast, method="wanda", sparsity=share).save(path)
    found = stability(*llama, paths, contrast, resamples=2, split_seed=None, generic=small_generic())
    assert [f.persona for f in found] == ["x/lead", "x/follow", "y/lead", "y/follow"]
    assert found[2].dropped > found[0].dropped


# --- notes and refusals ---------------------------------------------------------------------------------------


def test_what_differs_beside_the_items_is_noted(llama: Any) -> None:
    contrast = small_contrast(10)
    made = found_on(llama, contrast, method="wanda", sparsity=0.5)
    record = made["lead"].provenance
    rounds = record.model_copy(update={"parameters": {**record.parameters, "round": 2}})
    made = replace(made, personas={"lead": replace(made["lead"], provenance=rounds)})
    other: dict[str, Any] = {"split_seed": None, "generic": small_generic(seed=8)}
    [found] = stability(*llama, [made], contrast.take(7), resamples=2, **other)
    starts = ("lead: other items are resampled", "lead: found with another generic text", "lead: found in 2 rounds")
    assert len(found.notes) == 3
    assert all(note.startswith(start) for note, start in zip(found.notes, starts, strict=True))
    assert "7 of 'lead-follow'" in found.notes[0]
    assert "10 of 'lead-follow'" in found.notes[0]


def test_the_calibration_part_of_the_split_is_resampled(llama: Any) -> None:
    contrast = small_contrast(30)
    made = discover(*llama, contrast, generic=small_generic(), resume=False, method="wanda", sparsity=0.5)
    found = stability(*llama, [made], contrast, resamples=2, generic=small_generic())
    assert found[0].notes == ()
    calibration = made["lead"].provenance.calibration
    assert calibration is not None
    assert found[0].items == calibration.items < 30


def test_refusals(llama: Any, tiny_model: Callable[..., Any]) -> None:
    contrast = small_contrast(8)
    model, _ = llama
    shapes = {t.name: t.shape for t in find_targets(model)}
    random = artefact_for(model, subnetwork("lead", random_masks(shapes, 0.1, 0)))
    with pytest.raises(OptionError, match=r"'lead' was made by 'random'.*directed"):
        stability(*llama, [random], contrast)
    with pytest.raises(OptionError, match="--resamples is 1"):
        stability(*llama, [random], contrast, resamples=1)
    stranger = artefact_for(model, subnetwork("bold", random_masks(shapes, 0.1, 0)))
    with pytest.raises(OptionError, match=r"lead and follow.*bold.*--positive"):
        stability(*llama, [stranger], contrast)
    made = found_on(llama, contrast, method="wanda", sparsity=0.5)
    other = tiny_model("llama", seed=1)
    options: dict[str, Any] = {"resamples": 2, "split_seed": None, "generic": small_generic()}
    with pytest.raises(MaskMismatchError, match="other weights"):
        stability(*other, [made], contrast, **options)
    with pytest.warns(UserWarning, match="other weights"):
        found = stability(*other, [made], contrast, allow_other_weights=True, **options)
    assert found[0]["all"].own.mean < 1
    record = made["follow"].provenance
    tokens = record.model_copy(update={"parameters": {**record.parameters, "tokens": "all"}})
    mixed = replace(made, personas={**made.personas, "follow": replace(made["follow"], provenance=tokens)})
    with pytest.raises(OptionError, match="tokens=all and answer"):
        stability(*llama, [mixed], contrast, **options)
    bare = record.model_copy(update={"method": "directed", "parameters": {}})
    without = replace(made, personas={"follow": replace(made["follow"], provenance=bare)})
    with pytest.raises(OptionError, match="'follow' has no cheap_share"):
        stability(*llama, [without], contrast, **options)
    actor = PersonaModel(*llama)
    actor.add_personas(made)
    with actor.persona("lead"), pytest.raises(PersonaInUseError, match="finding masks again"):
        stability(*llama, [made], contrast, **options)


def test_a_session_of_the_callers(llama: Any) -> None:
    contrast = small_contrast(8)
    made = found_on(llama, contrast, method="wanda", sparsity=0.5)
    options: dict[str, Any] = {"resamples": 2, "split_seed": None}
    session = open_session(*llama, contrast, generic=small_generic(), resume=False)
    mine = stability(*llama, [made], contrast, session=session, **options)
    assert mine == stability(*llama, [made], contrast, generic=small_generic(), **options)
    session.tokens = "all"
    with pytest.raises(OptionError, match="the session reads 'all'"):
        stability(*llama, [made], contrast, session=session, **options)
