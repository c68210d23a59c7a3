from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from personae.discovery import METHODS
from personae.errors import MaskMismatchError, OptionError, UnknownPersonaError
from personae.evaluation.poles import (
    Poles,
    budget_of,
    check_artefact,
    cost_of,
    from_artefact,
    overlap_warning,
    settings_for,
)
from personae.models import find_targets
from personae.personas import Contrast, split
from personae.subnetwork import Artefact, CalibrationIdentity, Subnetwork

ArtefactOf = Callable[..., Artefact]


def test_what_each_method_costs() -> None:
    assert cost_of("directed") == "one backward"
    assert cost_of("directed", 75) == "75 backwards of 8 pairs"
    assert cost_of("magnitude") == cost_of("random") == "none"
    assert {cost_of(m) for m in ("wanda", "sparsegpt", "contrastive-sparse", "generic")} == {"forward-only"}
    assert cost_of("union") == "unknown"


def test_poles_follow_the_contrast_and_not_the_file(
    model_and_tokenizer: Any, contrast: Contrast, artefact_of: ArtefactOf
) -> None:
    artefact = artefact_of(model_and_tokenizer[0], contrast, cheap_share=0.2, max_capability_loss=0.1)
    forward, backward = from_artefact(artefact, contrast), from_artefact(artefact, contrast.swapped())
    assert forward.masks[0] == artefact["loud"].masks == backward.masks[1]
    assert forward.name == "directed"
    assert forward.cheap_shares == (0.2, 0.2)
    assert (forward.budget, forward.seconds, forward.cost) == (0.1, 3.5, "one backward")


def test_settings_take_over_the_budget_or_the_share(
    model_and_tokenizer: Any, contrast: Contrast, artefact_of: ArtefactOf
) -> None:
    model, _ = model_and_tokenizer
    assert settings_for("wanda", None, contrast).max_capability_loss == 0.05
    budgeted = artefact_of(model, contrast, max_capability_loss=0.2, seed=3, statistic="l2", cheap_share=0.1)
    found = settings_for("wanda", budgeted, contrast)
    assert (found.method, found.max_capability_loss, found.seed, found.statistic) == ("wanda", 0.2, 3, "l2")
    assert found.sparsity is None
    assert settings_for("wanda", None, contrast, 0.03).max_capability_loss == 0.03
    own = settings_for("wanda", budgeted, contrast, 0.03)
    assert (own.max_capability_loss, own.seed) == (0.03, 3)
    fixed = artefact_of(model, contrast, cheap_share=0.1, drop_share=0.01)
    again = settings_for("directed", fixed, contrast)
    assert (again.cheap_share, again.drop_share, again.max_capability_loss) == (0.1, 0.01, None)
    stepped = artefact_of(model, contrast, max_capability_loss=0.2, cheap_share=0.6, steps=5)
    assert from_artefact(stepped, contrast).cost == "5 backwards of 8 pairs"
    once_more = settings_for("directed", stepped, contrast)
    assert from_artefact(stepped, contrast).found_by == (once_more, once_more)
    assert (once_more.steps, once_more.rounds) == (5, None)
    assert settings_for("wanda", stepped, contrast).steps is None
    assert settings_for("wanda", fixed, contrast).sparsity == fixed["loud"].provenance.sparsity
    isolated = artefact_of(model, contrast, share=0.3, isolated=True, sparsity=0.3)
    assert settings_for("directed", isolated, contrast).isolated
    scored = artefact_of(model, contrast, method="wanda", sparsity=0.02)
    assert settings_for("directed", scored, contrast).max_capability_loss == 0.05
    with pytest.raises(OptionError, match="unknown method"):
        settings_for("astrology", None, contrast)


def test_settings_leave_out_what_another_method_does_not_read(
    model_and_tokenizer: Any, contrast: Contrast, artefact_of: ArtefactOf
) -> None:
    model, _ = model_and_tokenizer
    budget = {"max_capability_loss": 0.2}
    forward = artefact_of(model, contrast, method="directed-forward", forward="separation", rank_by="gain", **budget)
    again = settings_for("directed-forward", forward, contrast)
    assert (again.forward, again.rank_by) == ("separation", "gain")
    directed = settings_for("directed", forward, contrast)
    assert (directed.forward, directed.rank_by) == ("lean", "gain")
    assert settings_for("wanda", forward, contrast).unread == ()
    scored = artefact_of(model, contrast, method="contrastive-wanda", phi="softplus", statistic="l2", **budget)
    assert settings_for("contrastive-wanda", scored, contrast).phi == "softplus"
    wanda = settings_for("wanda", scored, contrast)
    assert (wanda.phi, wanda.statistic) == ("relu", "l2")
    for method in METHODS:
        assert settings_for(method, scored, contrast).unread == ()
    isolated = artefact_of(model, contrast, share=0.3, isolated=True, sparsity=0.3, rank_by="gain", phi="softplus")
    both = from_artefact(isolated, contrast).found_by  # a file from before such options were refused
    assert both is not None
    found = both[0]
    assert (found.isolated, found.rank_by, found.phi) == (True, "gain-per-price", "relu")


def test_poles_that_were_found_apart_keep_their_own_settings(
    model_and_tokenizer: Any, contrast: Contrast, artefact_of: ArtefactOf
) -> None:
    """`discover(…, pole=…)` finds one pole by settings of its own; what both took is the sum."""
    model, _ = model_and_tokenizer
    how = {"max_capability_loss": 0.2, "cheap_share": 0.6, "steps": 5}
    wide, plain = artefact_of(model, contrast, step_share=0.01, **how), artefact_of(model, contrast, **how)

    def took(artefact: Artefact, pole: str, seconds: float) -> Subnetwork:
        part = artefact[pole]
        measured = {**part.provenance.measured, "seconds_of_discovery": seconds}
        return replace(part, provenance=part.provenance.model_copy(update={"measured": measured}))

    loud, quiet = took(wide, "loud", 30.0), took(plain, "quiet", 12.0)
    found = from_artefact(replace(wide, personas={"loud": loud, "quiet": quiet}), contrast)
    assert found.found_by is not None
    assert [s.step_share for s in found.found_by] == [0.01, None]
    assert found.seconds == 42.0
    together = {"loud": loud, "quiet": took(plain, "quiet", 30.0)}
    assert from_artefact(replace(wide, personas=together), contrast).seconds == 30.0


def test_the_budget_of_controls() -> None:
    poles = Poles("m", ({}, {}), (None, None), 0.3, None, "none")
    assert budget_of(poles, 0.1) == 0.3
    assert budget_of(replace(poles, budget=None), 0.1) == 0.1
    assert budget_of(replace(poles, budget=None), -0.01) == 0.05
    assert budget_of(replace(poles, budget=None), None) == 0.05


def test_other_poles_and_other_models_are_refused(
    tiny_model: Callable[..., Any], contrast: Contrast, artefact_of: ArtefactOf
) -> None:
    model, _ = tiny_model("llama")
    artefact, targets = artefact_of(model, contrast), find_targets(model)
    check_artefact(artefact, contrast, model, targets, allow_other_weights=False)
    other = replace(contrast, positive="tall", negative="short")
    with pytest.raises(UnknownPersonaError, match=r"holds loud, quiet, .* 'tall' and 'short'"):
        check_artefact(artefact, other, model, targets, allow_other_weights=False)
    stranger, _ = tiny_model("llama", seed=1)
    with pytest.raises(MaskMismatchError, match="--allow-other-weights"):
        check_artefact(artefact, contrast, stranger, find_targets(stranger), allow_other_weights=False)
    with pytest.warns(UserWarning, match="other weights"):
        check_artefact(artefact, contrast, stranger, find_targets(stranger), allow_other_weights=True)


def identity(contrast: Contrast, seed: int | None) -> CalibrationIdentity:
    part = contrast if seed is None else split(contrast, seed=seed).calibration
    return CalibrationIdentity(
        name=contrast.name, sha256=part.sha256, items=len(part), licence="x",
        split=None if seed is None else f"calibration of seed {seed}",
    )  # fmt: skip


def test_the_same_split_is_clean_in_either_order_of_the_poles(contrast: Contrast) -> None:
    test = split(contrast, seed=0).test
    assert overlap_warning(identity(contrast, 0), contrast, test, 0) is None
    assert overlap_warning(identity(contrast, 0), contrast.swapped(), test.swapped(), 0) is None
    assert overlap_warning(None, contrast, test, 0) is None


def test_test_items_that_discovery_has_read_are_counted(contrast: Contrast) -> None:
    test, parts = split(contrast, seed=0).test, split(contrast, seed=1)
    read = len(set(test.prompts) - set(parts.test.prompts))
    assert read
    warning = overlap_warning(identity(contrast, 1), contrast, test, 0)
    assert warning is not None
    assert f"read {read} of the {len(test)} items" in warning
    assert "--split-seed 1" in warning
    everything = overlap_warning(identity(contrast, 1), contrast, contrast, None)
    assert everything is not None
    assert f"read {len(contrast) - len(parts.test)} of the {len(contrast)} items" in everything


def test_calibration_on_everything_or_on_something_unknown(contrast: Contrast) -> None:
    test = split(contrast, seed=0).test
    everything = overlap_warning(identity(contrast, None), contrast, test, 0)
    assert everything is not None
    assert "calibrated on all 60 items" in everything
    part = identity(contrast.take(30), None)
    unknown = overlap_warning(part, contrast, test, 0)
    assert unknown is not None
    assert "is not known" in unknown
    renamed = overlap_warning(part.model_copy(update={"name": "else"}), contrast, test, 0)
    assert renamed is not None
    assert "calibrated on 'else'" in renamed
    assert "is not known" in renamed
    assert overlap_warning(part, contrast, contrast, None) is not None
