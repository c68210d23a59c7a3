"""Targets of the eleven architectures: names, shapes, and what their windows hold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from personae.errors import ModelError, OptionError
from personae.models import find_targets
from personae.models import targets as targets_module
from personae.runtime import wearing
from personae.subnetwork import Mask

GROUPED_ATTENTION = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
}
GATED_MLP = {"mlp.gate_proj": (48, 32), "mlp.up_proj": (48, 32), "mlp.down_proj": (32, 48)}
LLAMA_LIKE = ("model.layers", {**GROUPED_ATTENTION, **GATED_MLP})

# Where the blocks are, and the (out, in) of every target of a block, by the checkpoint's names.
EXPECTED: dict[str, tuple[str, dict[str, tuple[int, int]]]] = {
    "llama": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "gemma2": LLAMA_LIKE,
    "phi3": (
        "model.layers",
        {
            "self_attn.qkv_proj": (64, 32),
            "self_attn.o_proj": (32, 32),
            "mlp.gate_up_proj": (96, 32),
            "mlp.down_proj": (32, 48),
        },
    ),
    "gpt2": (
        "transformer.h",
        {
            "attn.c_attn": (96, 32),
            "attn.c_proj": (32, 32),
            "mlp.c_fc": (128, 32),
            "mlp.c_proj": (32, 128),
        },
    ),
    "gptneox": (
        "gpt_neox.layers",
        {
            "attention.query_key_value": (96, 32),
            "attention.dense": (32, 32),
            "mlp.dense_h_to_4h": (48, 32),
            "mlp.dense_4h_to_h": (32, 48),
        },
    ),
    "opt": (
        "model.decoder.layers",
        {
            "self_attn.q_proj": (32, 32),
            "self_attn.k_proj": (32, 32),
            "self_attn.v_proj": (32, 32),
            "self_attn.out_proj": (32, 32),
            "fc1": (48, 32),
            "fc2": (32, 48),
        },
    ),
    "mixtral": (
        "model.layers",
        {
            **GROUPED_ATTENTION,
            **{f"block_sparse_moe.experts.{e}.{w}": (48, 32) for e in range(4) for w in ("w1", "w3")},
            **{f"block_sparse_moe.experts.{e}.w2": (32, 48) for e in range(4)},
        },
    ),
    "qwen3moe": (
        "model.layers",
        {
            **GROUPED_ATTENTION,
            **{f"mlp.experts.{e}.{w}_proj": (24, 32) for e in range(4) for w in ("gate", "up")},
            **{f"mlp.experts.{e}.down_proj": (32, 24) for e in range(4)},
        },
    ),
}


def test_names_shapes_and_kinds_are_those_of_the_checkpoint(tiny_model: Any, architecture: str) -> None:
    model, _ = tiny_model(architecture)
    where, expected = EXPECTED[architecture]
    found = find_targets(model)
    layers = model.config.num_hidden_layers
    assert {t.name: t.shape for t in found} == {
        f"{where}.{layer}.{name}.weight": shape for layer in range(layers) for name, shape in expected.items()
    }
    assert len({t.name for t in found}) == len(found)
    for target in found:
        assert target.block == int(target.name.removeprefix(f"{where}.").split(".")[0])
        assert target.kind == ("attention" if "att" in target.name else "mlp")
        assert target.size == target.weight.numel()
        assert (target.expert is not None) == ("experts" in target.name)
        if target.expert is not None:
            assert f"experts.{target.expert}." in target.name


def test_every_window_holds_what_save_pretrained_writes_under_its_name(
    tiny_model: Any, architecture: str, tmp_path: Path
) -> None:
    model, _ = tiny_model(architecture)
    model.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    for target in find_targets(model):
        stored = written[target.name]
        if isinstance(target.module, Conv1D):
            stored = stored.T
        assert torch.equal(target.weight, stored), target.name


def test_windows_cover_each_block_matrix_exactly_once(tiny_model: Any, architecture: str) -> None:
    model, _ = tiny_model(architecture)
    counts = {id(p): torch.zeros(p.shape, dtype=torch.int32) for p in model.parameters()}
    for target in find_targets(model):
        target.view_of(counts[id(target.parameter)]).add_(1)
    seen = {name: int(counts[id(p)].max()) for name, p in model.named_parameters()}
    assert set(seen.values()) == {0, 1}
    for name, parameter in model.named_parameters():
        touched = counts[id(parameter)]
        assert int(touched.min()) == int(touched.max()), f"{name} is only partly a target"
        apart = ("embed", "wte", "wpe", "lm_head", "embed_out", "norm", "ln_", "bias", "gate.weight")
        assert seen[name] == int(not any(word in name for word in apart)), name


def test_writing_through_a_window_changes_what_the_module_computes(tiny_model: Any, architecture: str) -> None:
    model, tokenizer = tiny_model(architecture)
    ids = torch.tensor([tokenizer("Would you like to lead?")["input_ids"]])
    for target in find_targets(model, "*.1.*down*") if architecture == "llama" else find_targets(model)[:1]:
        with torch.no_grad():
            before = model(input_ids=ids).logits
            target.weight.zero_()
            assert not torch.equal(before, model(input_ids=ids).logits)
        assert int((target.view_of(target.parameter.detach()) != 0).sum()) == 0


def test_conv1d_is_seen_as_out_by_in(tiny_model: Any) -> None:
    model, _ = tiny_model("gpt2")
    target = next(t for t in find_targets(model) if t.name.endswith("c_fc.weight"))
    hidden = torch.randn(5, 32)
    by_window = hidden @ target.weight.T + target.module.bias
    assert torch.allclose(by_window, target.module(hidden), atol=1e-5)


def test_patterns_keep_any_match_in_the_models_order(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    everything = [t.name for t in find_targets(model)]
    assert [t.name for t in find_targets(model, "*.0.self_attn.*")] == everything[:4]
    chosen = [t.name for t in find_targets(model, ["*.down_proj.weight", "*.q_proj.weight"])]
    assert Counter(chosen) == Counter(n for n in everything if "down_proj" in n or "q_proj" in n)
    assert chosen == [n for n in everything if n in set(chosen)]


def test_a_pattern_without_a_match_is_named(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    with pytest.raises(OptionError, match=r"'\*nothing\*'.*model\.layers\.0\.self_attn\.q_proj\.weight"):
        find_targets(model, ["*q_proj*", "*nothing*"])


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(3, 3),
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)),
        nn.ModuleDict({"blocks": nn.ModuleList([nn.LayerNorm(3)])}),
    ],
    ids=["linear", "sequential", "blocks without matrices"],
)
def test_a_model_without_repeated_blocks_of_matrices_is_refused(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="not a model personae can mask"):
        find_targets(model)


class Experts(nn.Module):
    """Three experts in one tensor that transformers knows nothing about."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed
        self.up = nn.Parameter(torch.randn(3, 4, 5))


@pytest.mark.parametrize("transposed", [False, True])
def test_unknown_fused_experts_become_one_target_each(transposed: bool) -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"mlp": Experts(transposed)})])})
    found = find_targets(model)
    assert [t.name for t in found] == [f"layers.0.mlp.up.{e}" for e in range(3)]
    assert [t.expert for t in found] == [0, 1, 2]
    stack = found[0].parameter.detach()
    for target in found:
        matrix = stack[target.expert]
        assert torch.equal(target.weight, matrix.T if transposed else matrix)


def test_without_the_librarys_conversion_experts_keep_their_names_in_memory(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*arguments: object) -> None:
        raise RuntimeError("moved elsewhere")

    monkeypatch.setattr("transformers.core_model_loading.revert_weight_conversion", gone)
    model, _ = tiny_model("mixtral")
    with pytest.warns(UserWarning, match="moved elsewhere"):
        found = find_targets(model, "model.layers.1.*")
    assert [(t.name, t.shape) for t in found[4:]] == [
        *((f"model.layers.1.mlp.experts.gate_up_proj.{e}", (96, 32)) for e in range(4)),
        *((f"model.layers.1.mlp.experts.down_proj.{e}", (32, 48)) for e in range(4)),
    ]


def test_a_nested_module_list_does_not_make_blocks_of_its_own() -> None:
    inner = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"heads": inner})])})
    found = find_targets(model)
    assert [(t.name, t.block, t.kind) for t in found] == [
        ("layers.0.heads.0.weight", 0, "other"),
        ("layers.0.heads.1.weight", 0, "other"),
    ]


def test_a_window_needs_a_contiguous_tensor(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    target = find_targets(model)[1]
    with pytest.raises(ModelError, match=r"k_proj.*contiguous"):
        target.view_of(torch.zeros(32, 16).T)


def test_positions_that_are_no_regular_window_are_not_read_as_one() -> None:
    regular = torch.arange(12).view(3, 4)[:, 1:3]
    assert targets_module._read_window("w", regular) == ("w", (3, 2), (4, 1), 1)
    assert targets_module._read_window("w", regular[[0, 2, 1]]) is None


class _Mixed(nn.Module):
    """A block of a recurrent hybrid: a depthwise convolution, a router of two parts, one real matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, groups=4)
        self.router = nn.ModuleDict({"layer": nn.Linear(4, 2)})
        self.up_proj = nn.Linear(4, 6)


def test_convolutions_and_routers_are_no_targets() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([_Mixed(), _Mixed()])
    assert [t.name for t in find_targets(model)] == ["layers.0.up_proj.weight", "layers.1.up_proj.weight"]


def test_a_weight_that_blocks_share_is_one_target(tiny_model: Any) -> None:
    """As in Zamba: a second target would be the same memory, and what it saved the first one's zeros."""
    model, _ = tiny_model("llama")
    alone = [t.name for t in find_targets(model)]
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    found = find_targets(model)
    assert [t.name for t in found] == [n for n in alone if n != "model.layers.1.mlp.up_proj.weight"]
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    dropped = {t.name: Mask.from_dropped(np.ones(t.shape, dtype=bool)) for t in found}
    with wearing(found, dropped):
        assert not model.model.layers[1].mlp.up_proj.weight.any()
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, before)
