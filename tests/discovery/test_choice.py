"""Which mask of a family is taken: by number, within a budget, by rounds, and what dev says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from discovery_data import run, small_contrast, small_generic
from personae.discovery import (
    GenericText,
    Settings,
    capability,
    choose,
    encode_contrast,
    margin,
    mean_log_probabilities,
    measure,
    open_session,
    to_masks,
)
from personae.discovery.settings import DEFAULT_CHEAP_SHARES
from personae.errors import OptionError
from personae.models import find_targets
from personae.runtime import wearing

TinyModel = Callable[..., tuple[Any, Any]]


def test_more_than_the_candidates_is_refused_in_words(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    with pytest.raises(OptionError, match=r"--drop-share 0\.2 asks for .* \(--cheap-share 0\.1\)"):
        run(model, tokenizer, cheap_share=0.1, drop_share=0.2)


def test_all_that_help_are_dropped_without_a_drop_share(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    artefact = run(model, tokenizer, cheap_share=0.1)
    lead, follow = artefact.personas.values()
    assert 0.07 < lead.sparsity + follow.sparsity < 0.13  # each candidate helps one pole
    assert lead.provenance.parameters["cheap_share"] == 0.1


@pytest.mark.parametrize(("method", "budget"), [("directed", 0.03), ("wanda", 0.05), ("contrastive-wanda", 0.05)])
def test_the_budget_is_kept(tiny_model: TinyModel, method: str, budget: float) -> None:
    model, tokenizer = tiny_model("llama")
    generic = small_generic()
    artefact = run(model, tokenizer, method=method, max_capability_loss=budget, generic=generic)
    text = generic.held_out.read
    base = capability(model, text)
    for subnetwork in artefact.personas.values():
        searched = subnetwork.provenance.measured["capability_loss_searched"]
        with wearing(find_targets(model), subnetwork.masks):
            assert capability(model, text).loss(base) == pytest.approx(searched, abs=1e-6)
            assert capability(model, text).loss_bound(base) <= budget
        assert searched <= subnetwork.provenance.measured["capability_loss_bound"] <= budget
        assert subnetwork.dropped > 0
        assert ("cheap_share" in subnetwork.provenance.parameters) == (method == "directed")


@pytest.mark.parametrize("better", [False, True])
def test_a_round_is_kept_where_dev_gains_by_it(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    model, tokenizer = tiny_model("llama")
    measured: list[float] = []

    def measure(*arguments: Any) -> dict[str, Any]:
        measured.append(float(len(measured)) * (1 if better else -1))
        return {"dev_log_sigmoid": measured[-1], "dev_items": 1}

    monkeypatch.setattr("personae.discovery.choice.measure", measure)
    artefact = run(model, tokenizer, max_capability_loss=0.03, rounds=3)
    shares = len(DEFAULT_CHEAP_SHARES)
    for subnetwork in artefact.personas.values():
        assert subnetwork.provenance.parameters.get("round") == (3 if better else None)
        assert subnetwork.provenance.measured["capability_loss_searched"] <= 0.03
        assert subnetwork.dropped > 0
    assert len(measured) == 2 * (shares + 2 if better else shares + 1)


def test_one_round_takes_no_divergence(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr("personae.discovery.session.divergence_gradient", never)
    model, tokenizer = tiny_model("llama")
    artefact = run(model, tokenizer, max_capability_loss=0.03, rounds=1)
    assert all(s.dropped for s in artefact.personas.values())


def test_a_budget_that_nothing_keeps_drops_nothing(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("llama")
    monkeypatch.setattr("personae.discovery.budget.Capability.loss_bound", lambda self, base: 9.0)
    for method in ("directed", "magnitude"):
        told = rf"no mask of {method} keeps 0\.01 nats a token \(pole [12].*may cost 9\.000.*the mask is empty"
        with pytest.warns(UserWarning, match=told):
            artefact = run(model, tokenizer, method=method, max_capability_loss=0.01)
        assert [s.dropped for s in artefact.personas.values()] == [0, 0]
        assert [s.provenance.measured["dev_margin_gain"] for s in artefact.personas.values()] == [0.0, 0.0]


def test_the_budget_reads_held_out_text_only() -> None:
    texts = small_generic()
    many = GenericText(texts.plain * 20, texts.chat * 20, "many")
    assert (len(many.held_out.read.plain), len(many.held_out.read.chat)) == (8, 24)
    more = replace(many, answers=30).held_out.read
    assert (len(more.plain), len(more.chat)) == (10, 30)
    assert texts.held_out.read == texts.held_out


def test_what_dev_says(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    session = open_session(model, tokenizer, small_contrast(4), generic=small_generic(), resume=False)
    dev = encode_contrast(model, tokenizer, small_contrast(9))
    (choice,) = choose(session, Settings(cheap_share=0.3, drop_share=0.01), dev, poles=(1,))
    base = mean_log_probabilities(model, dev)
    with wearing(session.targets, to_masks(choice.dropped)):
        worn = mean_log_probabilities(model, dev)
    acc, mean = margin(worn)
    assert choice.measured == {
        "dev_items": 9,
        "dev_acc": 1 - acc,
        "dev_margin": pytest.approx(-mean),
        "dev_margin_gain": pytest.approx(margin(base)[1] - mean),
        "dev_log_sigmoid": pytest.approx(float((worn[:, 1] - worn[:, 0]).sigmoid().log().mean())),
        "dev_own_answers": pytest.approx(float((worn - base)[:, 1].mean())),
    }
    unpaired = encode_contrast(model, tokenizer, small_contrast(4, paired=False))
    assert measure(session, choice.dropped, unpaired, 1)["dev_items"] == 7
