"""`directed-forward`: who writes to the stream, along which direction, and what a dropped weight does to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from discovery_data import bits, random_texts, same_bits, small_contrast, small_generic
from personae.discovery import (
    collect_statistics,
    directions,
    discover,
    forward_gains,
    open_session,
    residual_writers,
    site,
)
from personae.discovery.settings import Settings
from personae.errors import DataError, ModelError, OptionError
from personae.models import Encoded, find_targets

PROBE = random_texts(1)[0]

# What each architecture's source says: (ends of the writers' names, norm read next by the first block's writers).
WRITERS = {
    "llama": ("o_proj", "down_proj"),
    "qwen2": ("o_proj", "down_proj"),
    "qwen3": ("o_proj", "down_proj"),
    "mistral": ("o_proj", "down_proj"),
    "gemma2": ("o_proj", "down_proj"),
    "phi3": ("o_proj", "down_proj"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gptneox": ("attention.dense", "dense_4h_to_h"),
    "opt": ("out_proj", "fc2"),
    "mixtral": ("o_proj",),  # experts are weighted by a router
    "qwen3moe": ("o_proj",),
}


def test_the_writers_of_every_architecture(tiny_model: Any, architecture: str) -> None:
    model, _ = tiny_model(architecture)
    targets = find_targets(model)
    before = bits(model)
    found = {w.target.name for w in residual_writers(model, targets, PROBE)}
    ends = tuple(f"{end}.weight" for end in WRITERS[architecture])
    assert found == {t.name for t in targets if t.expert is None and t.name.endswith(ends)}
    assert same_bits(model, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_norm_that_reads_next(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    norms = {w.target.name: w.norm_name for w in residual_writers(model, find_targets(model), PROBE)}
    assert norms["model.layers.0.self_attn.o_proj.weight"] == "model.layers.0.post_attention_layernorm"
    assert norms["model.layers.0.mlp.down_proj.weight"] == "model.layers.1.input_layernorm"
    assert norms["model.layers.2.mlp.down_proj.weight"] == "model.norm"


def test_no_writer_among_the_targets(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    with pytest.raises(ModelError, match="no target of this model writes"):
        residual_writers(model, find_targets(model, "*.q_proj.weight"), PROBE)


def test_directions_are_differences_of_mean_outputs(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    writers = residual_writers(model, find_targets(model), PROBE)
    sides = random_texts(5, 1), random_texts(4, 2)
    done: list[int] = []
    found = directions(model, writers, *sides, batch_tokens=40, tick=done.append)
    assert sum(done) == 9
    assert found.keys() == {w.norm_name for w in writers}

    def slow(items: tuple[Encoded, ...], norm: Any) -> torch.Tensor:
        """One text at a time, one token at a time."""
        means = []
        for item in items:
            outputs: list[torch.Tensor] = []
            handle = norm.register_forward_hook(lambda m, a, out, kept=outputs: kept.append(out[0].double()))
            with torch.no_grad():
                model(input_ids=torch.tensor([item.prompt + item.answer]))
            handle.remove()
            rows = [outputs[0][t] for t in range(len(item.prompt), len(item.prompt + item.answer))]
            means.append(sum(rows) / len(rows))
        return torch.as_tensor(sum(means) / len(means))

    for writer in writers:
        expected = slow(sides[0], writer.norm) - slow(sides[1], writer.norm)
        torch.testing.assert_close(
            found[writer.norm_name].double(), expected / expected.norm(), rtol=1e-4, atol=1e-5
        )  # fmt: skip
    with pytest.raises(DataError, match="both poles"):
        directions(model, writers, sides[0], ())


@pytest.mark.parametrize("variant", ["lean", "separation"])
def test_gains_are_what_dropping_does_to_the_stream(tiny_model: Any, variant: str) -> None:
    """−r_i·w_ij·(mean x_j on p⁺ ± on p⁻): the change of the output along r, averaged over answer tokens."""
    model, _ = tiny_model("gpt2")  # Conv1D: stored transposed
    targets = find_targets(model)
    writers = residual_writers(model, targets, PROBE)
    sides = random_texts(5, 1), random_texts(4, 2)
    statistics = [collect_statistics(model, targets, side) for side in sides]
    direction = directions(model, writers, *sides)
    gains = forward_gains(writers, direction, *statistics, variant)
    writer = writers[1]
    r, w = direction[writer.norm_name], writer.target.weight
    means = [s[site(writer.target)].mean for s in statistics]
    for i, j in ((0, 0), (3, 7), (31, 20)):
        change = [-float(w[i, j]) * float(mean[j]) for mean in means]  # of output i when w_ij is dropped
        together = change[0] + change[1] if variant == "lean" else change[0] - change[1]
        assert float(gains[writer.target.name][i, j]) == pytest.approx(float(r[i]) * together, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_discovery_without_a_backward_pass(tiny_model: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a backward pass")

    monkeypatch.setattr("personae.discovery.session.attribute", never)
    monkeypatch.setattr("personae.discovery.session.squared_gradients", never)
    monkeypatch.setattr("personae.discovery.session.divergence_gradient", never)
    model, tokenizer = tiny_model(name)
    before = bits(model)
    artefact = discover(
        model, tokenizer, small_contrast(9), generic=small_generic(), split_seed=None, resume=False,
        method="directed-forward", cheap_share=0.5, drop_share=0.01,
    )  # fmt: skip
    assert same_bits(model, before)
    writers = {w.target.name for w in residual_writers(model, find_targets(model), PROBE)}
    total = sum(t.size for t in find_targets(model))
    for persona in artefact.personas.values():
        assert persona.dropped == round(0.01 * total)
        assert {n for n, m in persona.masks.items() if m.dropped} <= writers
    first, second = artefact.personas.values()
    assert not any(int((~a & ~b).kept) for a, b in zip(first.masks.values(), second.masks.values(), strict=True))


def test_the_two_orders(tiny_model: Any) -> None:
    model, tokenizer = tiny_model("llama")
    session = open_session(model, tokenizer, small_contrast(9), generic=small_generic(), resume=False)
    plain = session._forward_order(Settings(method="directed-forward", rank_by="gain"), 0)
    priced = session._forward_order(Settings(method="directed-forward"), 0)
    against = session._forward_order(Settings(method="directed-forward"), 1)
    name = "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(priced[name] * session.generic_wanda[name], plain[name])
    torch.testing.assert_close(against[name], -priced[name])
    assert not plain["model.layers.1.mlp.up_proj.weight"].any()


def test_options_of_directed_are_refused() -> None:
    for options in ({"objective": "log-sigmoid"}, {"own_weight": 0.5}, {"rounds": 2}, {"isolated": True}):
        with pytest.raises(OptionError):
            Settings(method="directed-forward", **options).checked()  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="--forward"):
        Settings(method="directed-forward", forward="both").checked()
    assert Settings(method="directed-forward").checked().max_capability_loss == 0.05
