"""Shares of a gain against a slow oracle, ways whose answer is known, adapters under masks, the whole suite."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer

from discovery_data import bits, same_bits, small_contrast
from faithfulness_data import planted, planted_readings, slow_margins
from personae.discovery import GenericText
from personae.errors import DataError, ModelError, OptionError
from personae.evaluation.bootstrap import Difference, holm
from personae.evaluation.finetune import Recipe, adapters_on
from personae.evaluation.suites import SuiteContext, activation_readings, suite_to_dict, suite_to_markdown
from personae.evaluation.suites.activation import results, run, verdict
from personae.evaluation.suites.activation_readings import CONDITIONS, Bench, Crossed, Way, lost
from personae.evaluation.suites.faithfulness_readings import NEGATIVE, POSITIVE, Masks
from personae.evaluation.suites.planted_models import FIRST, TOPICS
from personae.models import find_targets
from personae.personas import Contrast
from personae.runtime import wearing
from personae.subnetwork import Mask

RECIPE = Recipe(rank=4, rate=0.02, epochs=2, pairs=4)
SMALL: dict[str, Any] = {"pairs": 8, "items": 6, "draws": 2, "lora_pairs": 6, "recipe": RECIPE, "drop_share": 0.02}
ITEMS = 30


def crossed(whole: Any, ablated: Any, random: Any) -> Crossed:
    return Crossed(np.asarray(whole), np.asarray(ablated), np.asarray(random))


@pytest.fixture
def base() -> Crossed:
    """Margins around zero; dropping the carrying weights costs 0.5, random ones 0.1."""
    margins = np.random.default_rng(1).normal(0.0, 0.5, ITEMS)
    return crossed(margins, margins - 0.5, np.stack([margins - 0.05, margins - 0.15]))


def moved(base: Crossed, whole: float, ablated: float, random: float, noise: int = 2) -> Crossed:
    """Base, with these mean gains and a noise of its own in each."""
    chance = np.random.default_rng(noise)
    return crossed(
        base.whole + whole + chance.normal(0, 0.2, ITEMS),
        base.ablated + ablated + chance.normal(0, 0.2, ITEMS),
        base.random + random + chance.normal(0, 0.2, base.random.shape),
    )


# --- statistics -----------------------------------------------------------------------------------------------


def test_lost_against_resamples_one_at_a_time(base: Crossed) -> None:
    under = moved(base, 0.6, 0.2, 0.5)
    found = lost(base, under, seed=3)
    gain = [float(under.whole[i] - base.whole[i]) for i in range(ITEMS)]
    kept = [float(under.ablated[i] - base.ablated[i]) for i in range(ITEMS)]
    chance = [float(sum(under.random[d][i] - base.random[d][i] for d in range(2)) / 2) for i in range(ITEMS)]

    def shares(counts: Any) -> tuple[float, float, float]:
        g, a, r = (sum(c * v for c, v in zip(counts, values, strict=True)) for values in (gain, kept, chance))
        return 1 - a / g, 1 - r / g, (1 - a / g) - (1 - r / g)

    drawn = np.random.default_rng(3).multinomial(ITEMS, np.full(ITEMS, 1 / ITEMS), size=2000)
    every = np.array([shares(row) for row in drawn])
    for number, cell in enumerate((found.share, found.share_random, found.over)):
        assert cell is not None
        assert cell.value == pytest.approx(shares([1] * ITEMS)[number])
        assert (cell.low, cell.high) == pytest.approx(np.quantile(every[:, number], [0.025, 0.975]))
    assert found.over is not None
    assert every[:, 2].min() > 0  # no resample on the other side of zero
    assert found.over.p == pytest.approx(2 / 2001)
    assert [d.value for d in (found.gain, found.ablated, found.random)] == pytest.approx(
        [np.mean(gain), np.mean(kept), np.mean(chance)]
    )


def test_shares_that_are_known(base: Crossed) -> None:
    """One shift everywhere loses nothing, whatever the ablation costs; one that is gone with the weights loses all."""
    same = lost(base, crossed(base.whole + 1, base.ablated + 1, base.random + 1))
    assert same.share is not None
    assert same.over is not None
    assert (same.share.value, same.share.low, same.share.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert (same.over.value, same.gain.value) == pytest.approx((0, 1), abs=1e-12)
    gone = lost(base, crossed(base.whole + 1, base.ablated, base.random + 0.75))
    assert gone.share is not None
    assert gone.share_random is not None
    assert gone.over is not None
    assert (gone.share.value, gone.share_random.value, gone.over.value) == pytest.approx((1, 0.25, 0.75))


@pytest.mark.parametrize(("gain", "words"), [(0.0, "does not move"), (-1.0, "away from the pole")])
def test_what_does_not_move_the_model_claims_nothing(base: Crossed, gain: float, words: str) -> None:
    under = moved(base, gain, 1.0, -1.0)
    found = lost(base, under)
    assert (found.share, found.share_random, found.over) == (None, None, None)
    assert found.ablated.value == pytest.approx(1.0, abs=0.2)  # said, but nothing is made of it
    figures, [table, _] = results({("positive", "base"): base, ("positive", "mask"): under}, {"positive": "loud"}, 0)
    shares = {k: v for k, v in figures.items() if "lost" in k or "p_holm" in k}
    assert {k for k, v in shares.items() if v is not None} == {"positive.base.margin_lost_minus_random"}
    assert len(shares) == 8
    assert words in str(table.rows[0][-1])
    assert "no claim" in str(table.rows[0][-1])


def test_log_sigmoid(base: Crossed) -> None:
    flat = base.log_sigmoid()
    for plain, turned in ((base.whole, flat.whole), (base.random[1], flat.random[1])):
        assert turned == pytest.approx([math.log(1 / (1 + math.exp(-m))) for m in plain])
    # where the margin is far above zero, the same shift is no gain: the share tells scale from mechanism
    high, low = np.full(ITEMS, 8.0), np.full(ITEMS, -8.0)
    start, end = crossed(low, high, [low]), crossed(low + 1, high + 1, [low + 1])
    margin, scaled = lost(start, end), lost(start.log_sigmoid(), end.log_sigmoid())
    assert margin.share is not None
    assert scaled.share is not None
    assert margin.share.value == pytest.approx(0)
    assert scaled.share.value == pytest.approx(1, abs=1e-2)


def test_holm_runs_over_the_claims_of_all_poles(base: Crossed) -> None:
    read = {
        ("positive", "base"): base, ("positive", "mask"): moved(base, 0.6, 0.5, 0.6),
        ("positive", "retrieval"): moved(base, 0.0, 0.0, 0.0), ("negative", "base"): base,
        ("negative", "mask"): moved(base, 0.6, 0.0, 0.6, noise=4),
    }  # fmt: skip
    figures, tables = results(read, {"positive": "loud", "negative": "quiet"}, 0)
    claims = [figures[f"{pole}.mask.lost_minus_random"] for pole in ("positive", "negative")]
    assert all(isinstance(c, Difference) for c in claims)
    expected = holm([c.p for c in claims if isinstance(c, Difference)])
    assert [figures[f"{pole}.mask.p_holm"] for pole in ("positive", "negative")] == expected
    assert figures["positive.retrieval.p_holm"] is None
    assert [t.title.split(":")[0] for t in tables] == ["loud", "loud", "quiet", "quiet"]
    assert tables[2].rows[0][-1] == "goes through these weights"


def test_words_of_a_claim(base: Crossed) -> None:
    through, beside = lost(base, moved(base, 0.6, 0.0, 0.6)), lost(base, moved(base, 0.6, 0.6, 0.0))
    assert verdict(through, 0.01) == "goes through these weights"
    assert verdict(through, 0.2).startswith("no more lost")
    assert verdict(beside, 0.01) == "loses less than by random weights"
    assert verdict(through, 0.01, through) == verdict(through, 0.01)
    assert verdict(beside, 0.01, beside) == verdict(beside, 0.01)
    assert verdict(through, 0.01, beside) == verdict(beside, 0.01, through)
    assert verdict(through, 0.01, beside).endswith("no claim")


def test_weights_that_carry_nothing_are_said_to(base: Crossed) -> None:
    names = {"positive": "loud"}
    for read, warned in ((base, False), (replace(base, ablated=base.random.mean(axis=0)), True)):
        figures, [_, levels] = results({("positive", "base"): read}, names, 0)
        assert any("do not carry" in w for w in levels.warnings) == warned
        costs = figures["positive.base.margin_lost_minus_random"]
        assert isinstance(costs, Difference)
        assert costs.value == pytest.approx(0.0 if warned else 0.4)


# --- readings on a model whose persona is planted ---------------------------------------------------------------


def planted_bench(tokenizer: Any, draws: int = 2) -> Bench:
    """The planted model has no words: the tokenizer only stands in the names of parts."""
    readings, nothing = planted_readings(), None
    readings.context = replace(readings.context, tokenizer=tokenizer)
    return Bench(readings, nothing, nothing, planted().calibration, RECIPE, draws)  # type: ignore[arg-type]


@contextlib.contextmanager
def stronger(bench: Bench, pole: int) -> Iterator[None]:
    """The weights that carry a pole, half as large again: a way that goes through them and nothing else."""
    dropped, kept = bench.readings.directed(1 - pole), {}
    for target in bench.readings.session.targets:
        kept[target.name] = target.weight.clone()
        target.weight[torch.from_numpy(dropped[target.name].dropped_bool())] *= 1.5
    try:
        yield
    finally:
        for target in bench.readings.session.targets:
            target.weight.copy_(kept[target.name])


@contextlib.contextmanager
def nudged(bench: Bench, by: float) -> Iterator[None]:
    """Small letters are likelier by a constant: a way around every target."""
    model: Any = bench.readings.session.model

    def add(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        shift = torch.zeros(output.shape[-1])
        shift[FIRST + TOPICS : FIRST + 2 * TOPICS] = by
        return output + shift

    handle = model.lm_head.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def test_a_way_through_the_weights_and_one_around_them(tokenizer: Any) -> None:
    bench, model = planted_bench(tokenizer), planted().model
    before, items = bits(model), bench.readings.test
    with bench.way("base", POSITIVE) as plain:
        base = bench.crossed(plain, POSITIVE)
    through = lost(base, bench.crossed(Way("stronger", items, partial(stronger, bench, POSITIVE)), POSITIVE))
    around = lost(base, bench.crossed(Way("nudged", items, partial(nudged, bench, 0.5)), POSITIVE))
    assert through.share is not None
    assert through.over is not None
    assert through.share.value == pytest.approx(1, abs=1e-5)
    assert through.over.value > 0.5
    assert around.share is not None
    assert around.over is not None
    assert abs(around.share.value) < 0.2
    assert abs(around.over.value) < 0.2
    assert same_bits(model, before)


@pytest.mark.parametrize("pole", [POSITIVE, NEGATIVE])
def test_mask_and_ablation_are_worn_together(tokenizer: Any, pole: int) -> None:
    bench, truth = planted_bench(tokenizer, draws=1), planted()
    before, sign = bits(truth.model), 1 if pole == POSITIVE else -1
    with bench.way("mask", pole) as way:
        found = bench.crossed(way, pole)
    own, rival, chance = (
        {n: torch.from_numpy(m.dropped_bool()) for n, m in masks.items()}
        for masks in (bench.readings.directed(pole), bench.readings.directed(1 - pole),
                      bench.readings.random(1 - pole, 0))
    )  # fmt: skip
    for other, margins in (({}, found.whole), (rival, found.ablated), (chance, found.random[0])):
        both = {n: own[n] | other.get(n, torch.zeros_like(own[n])) for n in own}
        expected = sign * slow_margins(truth.model, truth.targets, both, truth.held_out)
        assert margins == pytest.approx(expected, abs=1e-4)
    assert same_bits(truth.model, before)


def test_masks_reach_the_same_tensors_under_adapters(tiny_model: Any) -> None:
    for name in ("llama", "gpt2"):
        model, _ = tiny_model(name)
        targets = find_targets(model)
        before = bits(model)
        chance = np.random.default_rng(0)
        masks: Masks = {t.name: Mask.from_dropped(chance.random(t.shape) < 0.1) for t in targets}
        with adapters_on(model, targets, RECIPE, ("one",)) as wrapped, wearing(targets, masks):
            layers = [m for m in wrapped.modules() if isinstance(m, LoraLayer)]
            wrapped_weights = {id(layer.get_base_layer().weight) for layer in layers}
            assert wrapped_weights == {id(t.parameter) for t in targets}
            assert all(not t.weight[torch.from_numpy(masks[t.name].dropped_bool())].any() for t in targets)
        assert same_bits(model, before)


def test_an_adapter_over_dropped_weights_is_added_to_what_is_left(tokenizer: Any) -> None:
    """The same reading with the low-rank update added by hand to weights zeroed by hand."""
    bench, truth = planted_bench(tokenizer, draws=1), planted()
    before = bits(truth.model)
    with bench.way("lora-sft", POSITIVE) as way:
        found = bench.crossed(way, POSITIVE)
        with way.change():  # trained already
            names = {id(t.module): t.name for t in truth.targets}
            updates: dict[str, torch.Tensor] = {}
            for layer in (m for m in truth.model.modules() if isinstance(m, LoraLayer)):
                a, b = layer.lora_A["persona"].weight, layer.lora_B["persona"].weight
                updates[names[id(layer.get_base_layer())]] = (RECIPE.alpha / RECIPE.rank * b @ a).detach().clone()
    assert same_bits(truth.model, before)
    assert updates.keys() == {t.name for t in truth.targets}
    dropped = {n: torch.from_numpy(m.dropped_bool()) for n, m in bench.readings.directed(NEGATIVE).items()}
    for masks, margins in (({}, found.whole), (dropped, found.ablated)):
        kept = {t.name: t.weight.clone() for t in truth.targets}
        try:
            for target in truth.targets:
                if masks:
                    target.weight[masks[target.name]] = 0.0
                target.weight.add_(updates[target.name])
            expected = slow_margins(truth.model, truth.targets, {}, truth.held_out)
        finally:
            for target in truth.targets:
                target.weight.copy_(kept[target.name])
        assert margins == pytest.approx(expected, abs=1e-4)
    assert found.whole.mean() != pytest.approx(found.ablated.mean(), abs=1e-3)


def test_masks_are_found_before_adapters_are_in_place(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = planted_bench(tokenizer)
    order: list[str] = []
    directed = bench.readings.directed
    monkeypatch.setattr(bench.readings, "directed", lambda pole: order.append(f"masks of {pole}") or directed(pole))

    def refused(*arguments: Any) -> None:
        order.append("adapters")
        raise RuntimeError("far enough")

    monkeypatch.setattr(activation_readings, "adapters_on", refused)
    with pytest.raises(RuntimeError, match="far enough"), bench.way("lora-sft", POSITIVE) as way:
        way.change()
    assert order == [f"masks of {NEGATIVE}", "adapters"]


@pytest.mark.parametrize("condition", ["base", "mask", "lora-sft"])
def test_the_model_is_as_it_was_after_an_error(tokenizer: Any, condition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, model = planted_bench(tokenizer, draws=1), planted().model
    before, modules = bits(model), [(n, id(m)) for n, m in model.named_modules()]
    worn: list[bool] = []

    def broken(*arguments: Any, **options: Any) -> torch.Tensor:
        worn.append(not same_bits(model, before))  # a mask is on, or modules have other names
        if len(worn) == 2:  # the first ablation
            raise RuntimeError("mid-reading")
        return torch.zeros(len(bench.readings.test.paired), 2, dtype=torch.float64)

    monkeypatch.setattr(activation_readings, "mean_log_probabilities", broken)
    with pytest.raises(RuntimeError, match="mid-reading"), bench.way(condition, POSITIVE) as way:
        bench.crossed(way, POSITIVE)
    assert worn == [condition != "base", True]
    assert same_bits(model, before)
    assert [(n, id(m)) for n, m in model.named_modules()] == modules


def test_numbers_that_are_none_are_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = planted_bench(tokenizer)
    monkeypatch.setattr(
        activation_readings, "mean_log_probabilities", lambda *_, **__: torch.full((2, 2), float("nan"))
    )
    with pytest.raises(ModelError, match="float32"), bench.way("base", POSITIVE) as way:
        bench.crossed(way, POSITIVE)


# --- the whole suite ------------------------------------------------------------------------------------------


def test_run_resumes_and_leaves_the_model(
    tiny_model: Any, contrast: Contrast, generic: GenericText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_model("llama", max_position_embeddings=2048)
    before = bits(model)
    result = run(SuiteContext(model, tokenizer, tmp_path, parts=tmp_path), contrast, generic=generic, **SMALL)
    assert same_bits(model, before)
    assert (result.suite, result.data) == ("activation", {contrast.name: contrast.sha256})
    assert [result.settings[k] for k in ("pairs", "items", "draws", "lora_pairs")] == [8, 6, 2, 6]
    assert [row[0] for row in result.tables[0].rows] == list(CONDITIONS)
    assert [row[0] for row in result.tables[1].rows] == ["base", *CONDITIONS]
    assert all(isinstance(result.figures[f"positive.{name}.gain"], Difference) for name in CONDITIONS)
    json.dumps(suite_to_dict(result), allow_nan=False)
    assert "loud: gains without" in suite_to_markdown(result)
    # a run that was killed among the readings of the adapter trains it again, to the same end
    again = tmp_path / "again"
    again.mkdir()
    for kept in sorted(tmp_path.glob("*.json")):
        if "lora-sft-random" not in kept.name:
            (again / kept.name).write_bytes(kept.read_bytes())
    killed = run(SuiteContext(model, tokenizer, tmp_path, parts=again), contrast, generic=generic, **SMALL)
    assert (killed.figures, killed.tables) == (result.figures, result.tables)
    assert same_bits(model, before)

    def never(*arguments: Any, **options: Any) -> None:
        pytest.fail("read again")

    for name in ("mean_log_probabilities", "train"):
        monkeypatch.setattr(activation_readings, name, never)
    kept_all = run(SuiteContext(model, tokenizer, tmp_path, parts=tmp_path), contrast, generic=generic, **SMALL)
    assert (kept_all.figures, kept_all.tables) == (result.figures, result.tables)


def test_the_negative_pole_is_the_positive_one_of_the_contrast_turned_round(
    tiny_model: Any, contrast: Contrast, generic: GenericText, tmp_path: Path
) -> None:
    model, tokenizer = tiny_model("llama", max_position_embeddings=2048)
    context = SuiteContext(model, tokenizer, tmp_path)
    here = run(context, contrast, poles=("negative",), generic=generic, **SMALL)
    there = run(context, contrast.swapped(), generic=generic, **SMALL)
    assert here.tables[0].title == there.tables[0].title == "quiet: gains without the weights that carry it"
    for name in CONDITIONS:
        for figure in ("gain", "gain_ablated", "gain_random"):
            one, other = here.figures[f"negative.{name}.{figure}"], there.figures[f"positive.{name}.{figure}"]
            assert isinstance(one, Difference)
            assert isinstance(other, Difference)
            assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_limit_cuts_every_set(
    tiny_model: Any, contrast: Contrast, generic: GenericText, tmp_path: Path, name: str
) -> None:
    model, tokenizer = tiny_model(name)
    before = bits(model)
    context = SuiteContext(model, tokenizer, tmp_path, limit=3)
    conditions = ("mask", "lora-sft")
    result = run(context, contrast, conditions, poles=("positive", "negative"), generic=generic, **SMALL)
    assert [result.settings[k] for k in ("pairs", "items", "lora_pairs", "limit")] == [3, 3, 3, 3]
    assert len(result.tables) == 4
    assert same_bits(model, before)
    kept = run(replace(context, parts=tmp_path), contrast, conditions, poles=("positive", "negative"),
               generic=generic, **SMALL)  # fmt: skip
    assert kept.figures == result.figures  # neither pole reads the other's parts


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"conditions": ()}, "at least one condition"),
        ({"conditions": ("steering",)}, "unknown condition 'steering'"),
        ({"conditions": ("mask", "mask")}, "twice"),
        ({"poles": ()}, "at least one pole"),
        ({"poles": ("loud",)}, "unknown pole 'loud'"),
        ({"draws": 0}, "at least 1"),
        ({"items": 0}, "at least 1"),
        ({"lora_pairs": 0}, "at least 1"),
        ({"drop_share": 0.0}, "--drop-share"),
    ],
)
def test_bad_options(model_and_tokenizer: Any, contrast: Contrast, changed: dict[str, Any], words: str) -> None:
    model, tokenizer = model_and_tokenizer
    with pytest.raises(OptionError, match=words):
        run(SuiteContext(model, tokenizer, Path()), contrast, **{**SMALL, **changed})


def test_lora_without_its_library(
    model_and_tokenizer: Any, contrast: Contrast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = model_and_tokenizer
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "personae.evaluation.suites.activation.find_spec", lambda name: None if name == "peft" else found(name)
    )
    with pytest.raises(OptionError, match="finetune"):
        run(SuiteContext(model, tokenizer, Path()), contrast, **SMALL)


def test_contrasts_that_do_not_serve(model_and_tokenizer: Any, contrast: Contrast) -> None:
    context = SuiteContext(*model_and_tokenizer, Path())
    with pytest.raises(DataError, match="is not paired"):
        run(context, small_contrast(6, paired=False))
    with pytest.raises(DataError, match="no system prompt of its negative pole"):
        run(context, replace(contrast, negative_prompt=None), poles=("negative",))
