"""Mean hidden states against transformers' own, and cosines against plain vectors."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from compare_data import artefact_for, random_masks, subnetwork
from discovery_data import bits, same_bits, small_contrast
from personae.analysis.hidden_states import answer_means, hidden_states
from personae.discovery import encode_contrast
from personae.errors import MaskMismatchError, ModelError, OptionError, PersonaInUseError
from personae.models import find_blocks, find_targets
from personae.personas import split
from personae.runtime import PersonaModel
from personae.subnetwork import Artefact, Mask

module = import_module("personae.analysis.hidden_states")  # the room exports a function of the same name


def masked(model: Any, masks: dict[str, Mask]) -> dict[str, torch.Tensor]:
    """Drop weights by hand; returns what was there."""
    before = {}
    for target in find_targets(model):
        before[target.name] = target.weight.clone()
        target.weight[torch.from_numpy(masks[target.name].dropped_bool())] = 0
    return before


def by_transformers(model: Any, texts: Any) -> np.ndarray:
    """One text at a time, without padding, from `output_hidden_states`, whose last entry is behind the final norm."""
    rows = []
    for text in texts:
        ids = torch.tensor([text.prompt + text.answer])
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        rows.append([s[0, len(text.prompt) :].double().mean(0).numpy() for s in states[1:-1]])
    return np.array(rows)


@pytest.fixture
def three(tiny_model: Callable[..., Any]) -> tuple[Any, Any, Artefact]:
    model, tokenizer = tiny_model("llama")
    shapes = {t.name: t.shape for t in find_targets(model)}
    personas = [subnetwork(n, random_masks(shapes, share, s)) for n, share, s in (("a", 0.1, 1), ("b", 0.2, 2))]
    return model, tokenizer, artefact_for(model, *personas, subnetwork("none", random_masks(shapes, 0.0, 3)))


def test_states_are_those_of_transformers(architecture: str, tiny_model: Callable[..., Any]) -> None:
    model, tokenizer = tiny_model(architecture)
    encoded = encode_contrast(model, tokenizer, small_contrast(5))
    texts = encoded.positive + encoded.negative
    done: list[int] = []
    found = answer_means(model, texts, done.append)
    assert not any(block._forward_hooks for block in find_blocks(model))  # transformers leaves its own, below
    expected = by_transformers(model, texts)
    assert found.shape == (10, len(find_blocks(model)), expected.shape[2])
    np.testing.assert_allclose(found[:, :-1], expected, rtol=1e-3, atol=1e-4)
    assert sum(done) == 10


def test_cosines_and_pushes(three: tuple[Any, Any, Artefact]) -> None:
    model, tokenizer, made = three
    contrast = small_contrast(40)
    before = bits(model)
    found = hidden_states(model, tokenizer, [made], contrast, items=6, resamples=50)
    assert same_bits(model, before)
    part = split(contrast).test.take(6)
    assert (found.sha256, found.answers, found.blocks) == (part.sha256, 12, 3)
    encoded = encode_contrast(model, tokenizer, part)
    texts = encoded.positive + encoded.negative
    means = {"base": answer_means(model, texts).mean(axis=0)}
    for name in made:
        kept = masked(model, dict(made[name].masks))
        means[name] = answer_means(model, texts).mean(axis=0)
        for target in find_targets(model):
            target.weight.copy_(kept[target.name])
    for push in found.pushes:
        moved = means[push.persona] - means["base"]
        expected = np.linalg.norm(moved, axis=1) / np.linalg.norm(means["base"], axis=1)
        assert [e.value for e in push.relative] == pytest.approx(expected, abs=1e-9)
    assert [(p.first, p.second) for p in found.pairs] == [("a", "b"), ("a", "none"), ("b", "none")]
    for pair in found.pairs:
        raw = [_cosine(x, y) for x, y in zip(means[pair.first], means[pair.second], strict=True)]
        assert [e.value for e in pair.raw] == pytest.approx(raw, abs=1e-9)
        if pair.second == "none":  # pushes nothing, so there is no direction
            assert pair.centred == (None,) * 3
            continue
        for block, estimate in enumerate(pair.centred):
            one, two = (means[n][block] - means["base"][block] for n in (pair.first, pair.second))
            assert estimate is not None
            assert estimate.value == pytest.approx(_cosine(one, two), abs=1e-9)
            assert estimate.low <= estimate.value <= estimate.high
            assert estimate.low < estimate.high


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_the_same_mask_pushes_the_same_way(three: tuple[Any, Any, Artefact]) -> None:
    model, tokenizer, made = three
    twin = artefact_for(model, made["a"], made["a"].renamed("twin"))
    [pair] = hidden_states(model, tokenizer, [twin], small_contrast(5), split_seed=None, resamples=20).pairs
    for estimate in (*pair.raw, *pair.centred):
        assert estimate is not None
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((1, 1, 1))


def test_intervals_are_of_a_bootstrap_over_answers(three: tuple[Any, Any, Artefact]) -> None:
    """The same resamples for every persona, drawn as for every other figure of this package."""
    model, tokenizer, made = three
    contrast = small_contrast(5)
    found = hidden_states(model, tokenizer, [made], contrast, split_seed=None, resamples=200, seed=4)
    encoded = encode_contrast(model, tokenizer, contrast)
    base = answer_means(model, encoded.positive + encoded.negative)
    kept = masked(model, dict(made["a"].masks))
    worn = answer_means(model, encoded.positive + encoded.negative)
    for target in find_targets(model):
        target.weight.copy_(kept[target.name])
    counts = np.random.default_rng(4).multinomial(10, np.full(10, 0.1), size=200)
    for block, estimate in enumerate(found.pushes[0].relative):
        moved, start = (counts @ x[:, block] / 10 for x in (worn - base, base))
        ratios = np.linalg.norm(moved, axis=1) / np.linalg.norm(start, axis=1)
        assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))


def test_weights_and_hooks_are_back_after_an_interruption(
    three: tuple[Any, Any, Artefact], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, made = three
    before = bits(model)
    calls: list[int] = []

    def stop(done: int) -> None:
        calls.append(done)
        if len(calls) == 2:  # the first batch under a persona
            raise KeyboardInterrupt

    def progress(title: str, total: int) -> Any:
        from contextlib import nullcontext

        return nullcontext(stop)

    with pytest.raises(KeyboardInterrupt):
        hidden_states(model, tokenizer, [made], small_contrast(5), split_seed=None, progress=progress)
    assert same_bits(model, before)
    assert not any(block._forward_hooks for block in find_blocks(model))


def test_refusals(three: tuple[Any, Any, Artefact], tiny_model: Callable[..., Any]) -> None:
    model, tokenizer, made = three
    contrast = small_contrast(5)
    with pytest.raises(OptionError, match="two personas or more"):
        hidden_states(model, tokenizer, [made.without("a").without("b")], contrast, split_seed=None)
    with pytest.raises(OptionError, match="two answers a pole"):
        hidden_states(model, tokenizer, [made], contrast, items=1, split_seed=None)
    other, _ = tiny_model("llama", seed=1)
    with pytest.raises(MaskMismatchError, match="other weights"):
        hidden_states(other, tokenizer, [made], contrast, split_seed=None)
    with pytest.warns(UserWarning, match="other weights"):
        hidden_states(other, tokenizer, [made], contrast, split_seed=None, allow_other_weights=True, resamples=5)
    actor = PersonaModel(model, tokenizer)
    actor.add_personas(made)
    with actor.persona("a"), pytest.raises(PersonaInUseError, match="comparing hidden states"):
        hidden_states(model, tokenizer, [made], contrast, split_seed=None)


def test_blocks_that_write_other_widths_are_refused(
    three: tuple[Any, Any, Artefact], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, _ = three
    encoded = encode_contrast(model, tokenizer, small_contrast(3))
    blocks = find_blocks(model)
    monkeypatch.setattr(module, "find_blocks", lambda _: [blocks[0], blocks[1].mlp.up_proj])
    with pytest.raises(ModelError, match="one width"):
        answer_means(model, encoded.positive)
