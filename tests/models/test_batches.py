"""Padding plans, batches, and a head that runs only where it is asked to."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from personae.errors import ModelError
from personae.models import head_on, make_batch, plan

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


@given(LENGTHS, st.integers(1, 200))
def test_a_plan_holds_every_item_once_within_its_tokens(lengths: list[int], tokens: int) -> None:
    groups = plan(lengths, tokens)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        padded = len(group) * max(lengths[i] for i in group)
        assert padded <= tokens or len(group) == 1
    order = [lengths[i] for group in groups for i in group]
    assert order == sorted(order)


@given(LENGTHS, st.integers(1, 200))
def test_a_plan_is_greedy(lengths: list[int], tokens: int) -> None:
    groups = plan(lengths, tokens)
    for group, following in itertools.pairwise(groups):
        assert (len(group) + 1) * lengths[following[0]] > tokens


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=6), st.data())
def test_a_batch_keeps_the_tokens_and_counts_no_padding(sequences: list[list[int]], data: st.DataObject) -> None:
    starts = [data.draw(st.integers(0, len(s))) for s in sequences]
    items = data.draw(st.permutations(range(len(sequences))))
    batch = make_batch(sequences, starts, items)
    assert batch.items == tuple(items)
    assert batch.ids.shape == batch.mask.shape == batch.counted.shape
    assert not (batch.counted & (batch.mask == 0)).any()
    for row, item in enumerate(items):
        kept = batch.mask[row].bool()
        assert batch.ids[row][kept].tolist() == sequences[item]
        assert kept.tolist() == sorted(kept.tolist(), reverse=True), "padding is only on the right"
        assert batch.ids[row][batch.counted[row]].tolist() == sequences[item][starts[item] :]


def test_a_batch_moves_whole() -> None:
    moved = make_batch([[1, 2], [3]], [1, 0], [1, 0]).to(torch.device("meta"))
    assert moved.items == (1, 0)
    assert {moved.ids.device.type, moved.mask.device.type, moved.counted.device.type} == {"meta"}


def test_the_head_on_chosen_rows_equals_the_full_logits(tiny_model: Any, architecture: str) -> None:
    model, _ = tiny_model(architecture)
    ids = torch.randint(4, 300, (2, 7), generator=torch.Generator().manual_seed(0))
    rows = torch.zeros(2, 7, dtype=torch.bool)
    rows[0, 2] = rows[0, 6] = rows[1, 0] = True
    with torch.no_grad():
        full = model(input_ids=ids).logits
        with head_on(model, rows):
            some = model(input_ids=ids).logits
        after = model(input_ids=ids).logits
    assert some.shape == (1, 3, full.shape[-1])
    assert torch.allclose(some[0], full[rows], atol=1e-5)
    assert torch.equal(after, full), "the hook is gone"


def test_no_rows_at_all_is_allowed(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    with torch.no_grad(), head_on(model, torch.zeros(1, 3, dtype=torch.bool)):
        assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.shape[:2] == (1, 0)


def test_the_hook_goes_even_when_the_forward_fails(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    with pytest.raises(RuntimeError, match="stop"), head_on(model, torch.ones(1, 1, dtype=torch.bool)):
        raise RuntimeError("stop")
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_a_model_without_a_head_is_refused(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    model.get_output_embeddings = lambda: None
    with pytest.raises(ModelError, match="no language-model head"), head_on(model, torch.ones(1, 1)):
        pytest.fail("the context must not be entered")
