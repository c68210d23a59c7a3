"""Statistics against a slow oracle: float64, one text at a time, plain hooks, a loop over tokens."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, GptOssConfig

from discovery_data import random_texts
from personae.discovery import Checkpoint, InputStatistics, collect_statistics, merge, site
from personae.discovery.statistics import Statistics, membership, reduce_rows
from personae.errors import DataError, OptionError
from personae.models import Encoded, Target, find_targets

TinyModel = Callable[..., tuple[Any, Any]]
Rows = dict[str, list[np.ndarray]]  # by site: for each answer its rows, (n, in), n >= 1


def slow_rows(model: nn.Module, targets: list[Target], texts: tuple[Encoded, ...], tokens: str) -> Rows:
    """Every counted input of every site, from a float64 copy of the model."""
    slow = copy.deepcopy(model).double()
    if any(t.expert is not None for t in targets):
        slow.set_experts_implementation("eager")
    found: Rows = defaultdict(list)
    for text in texts:
        begin = 0 if tokens == "all" else len(text.prompt)
        handles, seen = [], defaultdict(list)
        for target in find_targets(slow):
            if site(target) in seen:
                continue
            if target.expert is None:
                seen[site(target)] = []
                handles.append(target.module.register_forward_pre_hook(_see(seen[site(target)], begin)))
        experts = {t.module_name: t.module for t in find_targets(slow) if t.expert is not None}
        for name, module in experts.items():
            handles.append(module.register_forward_pre_hook(_see_experts(seen, name, begin)))
        with torch.no_grad():
            slow(input_ids=torch.tensor([text.prompt + text.answer]), use_cache=False)
        for handle in handles:
            handle.remove()
        for key, rows in seen.items():
            if rows:
                found[key].append(np.stack(rows))
    return found


def _see(rows: list[np.ndarray], begin: int) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        rows.extend(arguments[0].reshape(-1, arguments[0].shape[-1])[begin:].numpy())

    return hook


def _see_experts(seen: dict[str, list[np.ndarray]], name: str, begin: int) -> Callable[..., None]:
    """Routing and the experts' arithmetic, token by token."""

    def hook(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        hidden, chosen = arguments[0], arguments[1]
        for token in range(begin, len(hidden)):
            for expert in chosen[token].tolist():
                x = hidden[token]
                seen[f"{name}.gate_up_proj.{expert}"].append(x.numpy())
                gate, up = (module.gate_up_proj[expert] @ x).chunk(2)
                seen[f"{name}.down_proj.{expert}"].append((module.act_fn(gate) * up).numpy())

    return hook


def check(found: Statistics, expected: Rows) -> None:
    assert {k for k, s in found.items() if s.tokens} == set(expected)
    for key, answers in expected.items():
        got, rows = found[key], np.concatenate(answers)
        samples = np.stack([np.abs(a).mean(0) for a in answers])
        assert got.tokens == len(rows)
        assert got.answers == len(samples)
        for name, value in (
            ("sum_abs", np.abs(rows).sum(0)), ("sum", rows.sum(0)), ("sum_squares", (rows**2).sum(0)),
            ("mean_abs", np.abs(rows).mean(0)), ("mean", rows.mean(0)), ("rms", np.sqrt((rows**2).mean(0))),
            ("answer_mean", samples.mean(0)), ("answer_variance", samples.var(0)),
        ):  # fmt: skip
            scale = np.abs(rows).max() ** (2 if "sq" in name or "var" in name else 1) * (
                len(rows) if "sum" in name else 1
            )
            np.testing.assert_allclose(getattr(got, name), value, rtol=2e-4, atol=2e-5 * scale, err_msg=f"{key} {name}")


@pytest.mark.parametrize("tokens", ["answer", "all"])
def test_equal_the_slow_oracle(tiny_model: TinyModel, architecture: str, tokens: str) -> None:
    model, _ = tiny_model(architecture)
    targets, texts = find_targets(model), random_texts(5)
    found = collect_statistics(model, targets, texts, tokens=tokens, batch_tokens=40)
    check(found, slow_rows(model, targets, texts, tokens))
    assert set(found) == {site(t) for t in targets}


def test_experts_that_multiply_with_at_are_seen(tokenizer: Any) -> None:
    config = GptOssConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=24, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=512, pad_token_id=1, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    targets, texts = find_targets(model), random_texts(4)
    routed: dict[str, list[int]] = defaultdict(list)
    experts = {t.module_name: t.module for t in targets if t.expert is not None}
    handles = [
        m.register_forward_pre_hook(lambda _, a, n=n: routed[n].extend(a[1].flatten().tolist()))
        for n, m in experts.items()
    ]
    found = collect_statistics(model, targets, texts, tokens="all", batch_tokens=1)  # one text a batch: no padding
    for handle in handles:
        handle.remove()
    assert len(experts) == 2
    for target in targets:
        if target.expert is not None:
            assert found[site(target)].tokens == routed[target.module_name].count(target.expert)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_do_not_depend_on_the_batch_size(tiny_model: TinyModel, name: str) -> None:
    model, _ = tiny_model(name)
    targets, texts = find_targets(model), random_texts(8)
    one, many = (collect_statistics(model, targets, texts, batch_tokens=n) for n in (1, 4096))
    for key in one:
        assert (one[key].tokens, one[key].answers) == (many[key].tokens, many[key].answers)
        for part in ("sum_abs", "sum", "sum_squares", "answer_mean", "answer_m2"):
            a, b = getattr(one[key], part), getattr(many[key], part)
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(one[key].sum_squares.max() + 1))


def test_padding_is_never_counted(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("llama")
    targets = find_targets(model)
    texts = (Encoded((5, 6), (7,)), Encoded(tuple(range(10, 40)), (8, 9)))
    found = collect_statistics(model, targets, texts, tokens="all", batch_tokens=4096)
    assert {s.tokens for s in found.values()} == {3 + 32}
    answers = collect_statistics(model, targets, texts, tokens="answer", batch_tokens=4096)
    assert {s.tokens for s in answers.values()} == {1 + 2}


def test_bfloat16_activations_are_summed_wider(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("llama", dtype=torch.bfloat16)
    targets, texts = find_targets(model), random_texts(30)
    whole = collect_statistics(model, targets, texts, tokens="all")
    shards = [collect_statistics(model, targets, [t], tokens="all") for t in texts]
    for key, value in merge(shards).items():  # in bfloat16 a sum of 300 values would lose about 1 %
        torch.testing.assert_close(value.sum_abs, whole[key].sum_abs, rtol=3e-3, atol=1e-2)


def test_merged_shards_equal_the_whole_in_any_order(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("qwen3moe")
    targets, texts = find_targets(model), random_texts(9)
    whole = collect_statistics(model, targets, texts)
    shards = [collect_statistics(model, targets, part) for part in (texts[:2], texts[2:5], texts[5:])]
    merged = [merge(order) for order in itertools.permutations(shards)]
    for key, value in merged[0].items():
        assert (value.tokens, value.answers) == (whole[key].tokens, whole[key].answers)
        torch.testing.assert_close(value.answer_m2, whole[key].answer_m2, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(value.sum, whole[key].sum, rtol=1e-3, atol=1e-4)
        for other in merged[1:]:
            for part in ("sum_abs", "sum", "sum_squares", "answer_mean", "answer_m2"):
                assert torch.equal(getattr(value, part), getattr(other[key], part))


def test_a_shard_without_a_site_changes_nothing_there() -> None:
    x = reduce_rows(torch.ones(2, 3), membership(torch.tensor([0, 1]), 2))
    both = merge([{"a": x, "b": x}, {"a": x}])
    assert (both["a"].tokens, both["b"].tokens) == (4, 2)
    with pytest.raises(DataError, match="no statistics"):
        merge([])


@given(
    st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=5), min_size=2, max_size=8),
    st.integers(1, 7),
)
def test_chan_update_equals_numpy(answers: list[list[float]], cut: int) -> None:
    cut = min(cut, len(answers) - 1)

    def part(chosen: list[list[float]]) -> InputStatistics:
        rows = torch.tensor([v for a in chosen for v in a])[:, None]
        owner = torch.tensor([n for n, a in enumerate(chosen) for _ in a])
        return reduce_rows(rows, membership(owner, len(chosen)))

    total = part(answers[:cut])
    total.merge(part(answers[cut:]))
    samples = np.array([np.abs(np.array(a, dtype=np.float64)).mean() for a in answers])
    scale = max(np.abs(samples).max(), 1e-3)
    np.testing.assert_allclose(total.answer_mean.item(), samples.mean(), atol=1e-5 * scale)
    np.testing.assert_allclose(total.answer_variance.item(), samples.var(), atol=1e-5 * scale**2)


def test_an_answer_without_a_row_is_no_sample() -> None:
    part = reduce_rows(torch.tensor([[2.0], [4.0]]), membership(torch.tensor([1, 1]), 3))
    assert (part.answers, part.tokens, part.answer_mean.item(), part.answer_m2.item()) == (1, 2, 3.0, 0.0)
    nothing = reduce_rows(torch.zeros(0, 4), membership(torch.zeros(0, dtype=torch.int64), 3))
    assert (nothing.answers, nothing.tokens) == (0, 0)
    assert torch.equal(nothing.mean_abs, torch.zeros(4, dtype=torch.float64))


def test_second_moments(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("mixtral")
    targets, texts = find_targets(model), random_texts(4)
    found = collect_statistics(model, targets, texts, gram=True, batch_tokens=30)
    for key, answers in slow_rows(model, targets, texts, "answer").items():
        rows = np.concatenate(answers)
        assert found[key].gram is not None
        np.testing.assert_allclose(
            found[key].gram, rows.T @ rows, rtol=1e-3, atol=1e-4 * np.abs(rows).max() ** 2 * len(rows)
        )
    assert all(s.gram is None for s in collect_statistics(model, targets, texts[:1]).values())
    with pytest.raises(DataError, match="second moments"):
        found[site(targets[0])].merge(InputStatistics.zeros(targets[0].shape[1]))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_on_the_model_after_an_error(tiny_model: TinyModel, error: type[BaseException]) -> None:
    model, _ = tiny_model("mixtral")
    before = model.config._experts_implementation_internal
    assert before != "eager"

    def stop(done: int) -> None:
        assert model.config._experts_implementation_internal == "eager"
        raise error

    with pytest.raises(error):
        collect_statistics(model, find_targets(model), random_texts(3), tick=stop)
    assert model.config._experts_implementation_internal == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_bad_calls(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("llama")
    targets = find_targets(model)
    with pytest.raises(OptionError, match=r"tokens='some'.*'answer' or 'all'"):
        collect_statistics(model, targets, random_texts(1), tokens="some")
    with pytest.raises(DataError, match="no texts"):
        collect_statistics(model, targets, [])


def test_rows_that_cannot_be_matched_to_tokens_are_refused(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("llama")
    targets = find_targets(model)
    hook = targets[0].module.register_forward_pre_hook(lambda _, a: (a[0][:, 1:],))
    try:
        with pytest.raises(DataError, match=r"cannot be matched to tokens"):
            collect_statistics(model, targets, random_texts(1))
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@pytest.mark.parametrize("gram", [False, True])
def test_a_killed_pass_goes_on_where_it_was(tiny_model: TinyModel, tmp_path: Path, name: str, gram: bool) -> None:
    model, _ = tiny_model(name)
    targets, texts = find_targets(model), random_texts(6)

    def run(checkpoint: Checkpoint | None, tick: Callable[[int], None] | None = None) -> Statistics:
        return collect_statistics(model, targets, texts, batch_tokens=1, gram=gram, checkpoint=checkpoint, tick=tick)

    ticks: list[int] = []

    def kill(done: int) -> None:
        ticks.append(done)
        if len(ticks) == 4:
            raise KeyboardInterrupt

    whole = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(Checkpoint(tmp_path, "key", every=0.0), kill)
    rest: list[int] = []
    resumed = run(Checkpoint(tmp_path, "key"), rest.append)
    assert rest == [3, 1, 1, 1]  # the batch in which it was killed counts as not done
    assert resumed.keys() == whole.keys()
    for key, one in whole.items():
        for field in dataclasses.fields(one):
            found, expected = getattr(resumed[key], field.name), getattr(one, field.name)
            if isinstance(expected, torch.Tensor):
                assert torch.equal(found, expected)
                assert found.dtype == expected.dtype
            else:
                assert found == expected


def test_experts_that_are_no_targets_are_passed_by(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("mixtral")
    texts = random_texts(4)
    some = collect_statistics(model, find_targets(model, "*experts.0.*"), texts)
    every = collect_statistics(model, find_targets(model), texts)
    for target in find_targets(model, "*experts.0.*"):
        assert some[site(target)].tokens == every[site(target)].tokens
        assert torch.equal(some[site(target)].mean_abs, every[site(target)].mean_abs)
