from __future__ import annotations

import contextlib
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MambaConfig,
    T5Config,
    T5ForConditionalGeneration,
    cache_utils,
)

from personae.errors import ModelError
from personae.runtime.kv import Kept, Rows, RowsLayer, check_rows, first, forward

WINDOWS = {"mistral": {"sliding_window": 8}, "gemma2": {"sliding_window": 8}}


def alone(model, tokens: list[int]) -> torch.Tensor:
    """The oracle: the whole sequence by itself, no cache, no padding."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].float()


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def read(model, prompts: list[list[int]]) -> tuple[Rows, torch.Tensor]:
    """Prompts read together, padded on the left."""
    rows, columns = Rows(len(prompts)), max(map(len, prompts))
    ids = torch.tensor([[7] * (columns - len(prompt)) + prompt for prompt in prompts])
    return rows, forward(model, rows, ids, [len(prompt) for prompt in prompts])


def act(model, chance: random.Random, texts: list[list[int]], rows: Rows, most: int) -> torch.Tensor | None:
    """One random event in the life of a batch, done to the texts and to the rows alike; logits if it has any."""
    vocabulary = model.config.vocab_size
    event = chance.random()
    if event < 0.3 or not texts:
        prompts = [[chance.randrange(vocabulary) for _ in range(chance.randint(1, most))] for _ in range(2)]
        fresh, _ = read(model, prompts)
        texts += prompts
        rows.join(fresh)
        return None
    if event < 0.5:
        gone = set(chance.sample(range(len(texts)), chance.randint(1, len(texts))))
        order = rows.leave(gone)
        assert sorted(order) == [row for row in range(len(texts)) if row not in gone]
        texts[:] = [texts[row] for row in order]
        return None
    new = chance.choice([1, 1, 1, 3])
    ids = [[chance.randrange(vocabulary) for _ in range(new)] for _ in texts]
    for text, more in zip(texts, ids, strict=True):
        text += more
    return forward(model, rows, torch.tensor(ids))


def test_rows_that_come_and_go_have_the_logits_they_have_alone(tiny_model, architecture) -> None:
    """On every architecture; with windows much shorter than the texts where there are windows."""
    model, _ = tiny_model(architecture, **WINDOWS.get(architecture, {}))
    chance, texts, rows, compared = random.Random(architecture), [], Rows(), 0
    for _ in range(60):
        logits = act(model, chance, texts, rows, most=30)
        assert rows.lengths == list(map(len, texts))
        assert all(layer.end - layer.start == rows.width for layer in rows.layers)
        if logits is not None:
            compared += len(texts)
            assert all(close(row, alone(model, text)) for row, text in zip(logits, texts, strict=True))
    assert compared > 40


def test_a_window_matters_in_that_test(tiny_model) -> None:
    text = list(range(30))
    for name, window in WINDOWS.items():
        wide, narrow = tiny_model(name)[0], tiny_model(name, **window)[0]
        assert not close(alone(wide, text), alone(narrow, text))


@pytest.fixture(scope="module")
def llama(tiny_model):
    return tiny_model("llama")[0]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 9))
def test_prompts_read_together_in_pieces(llama, lengths: list[int], piece: int) -> None:
    prompts = [[(11 * row + 5 * place) % 300 for place in range(length)] for row, length in enumerate(lengths)]
    columns = max(lengths)
    ids = torch.tensor([[0] * (columns - len(prompt)) + prompt for prompt in prompts])
    rows = Rows(len(prompts))
    for start in range(0, columns, piece):
        stop = min(columns, start + piece)
        counts = [max(0, stop - max(start, columns - length)) for length in lengths]
        logits = forward(llama, rows, ids[:, start:stop], counts)
    assert rows.lengths == lengths
    assert all(close(row, alone(llama, prompt)) for row, prompt in zip(logits, prompts, strict=True))


def test_kept_tokens_begin_a_row(llama) -> None:
    texts = [[5, 9, 60, 200, 31, 8], [17, 3], [44, 45, 46]]
    rows, _ = read(llama, texts)
    kept: list[Kept | None] = [first(rows.copied(0), 4), None, rows.copied(2)]
    again = Rows.of(kept)
    assert again.lengths == [4, 0, 3]
    more = [[31, 8, 77], [0, 17, 3], [1, 2, 3]]
    logits = forward(llama, again, torch.tensor(more), [3, 2, 3])
    expected = [[*texts[0][:4], *more[0]], [17, 3], [*texts[2], *more[2]]]
    assert all(close(row, alone(llama, text)) for row, text in zip(logits, expected, strict=True))
    assert Rows.of([None, None]).lengths == [0, 0]


def test_kept_tokens_are_copies(llama) -> None:
    rows, _ = read(llama, [[5, 9, 60], [17, 3, 4]])
    before = rows.copied(1)
    kept = [(keys.clone(), values.clone()) for keys, values in before]
    for layer in rows.layers:
        assert layer.keys is not None
        layer.keys.fill_(3.0)
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(before, kept, strict=True))
    assert before[0][0].shape == (2, 3, 8)  # heads, tokens, width
    assert len(before) == 3


def test_padding_behind_tokens_is_refused(llama) -> None:
    rows, _ = read(llama, [[5, 9], [17, 3]])
    with pytest.raises(ValueError, match="a row that has begun"):
        forward(llama, rows, torch.tensor([[1, 2], [0, 2]]), [2, 1])


@pytest.mark.parametrize("lengths", [(8, 2, 4), (8, 2, 6), (8, 2, 12), (2, 8, 4), (2, 8, 1), (2, 8, 12)])
def test_what_left_is_gone(llama, lengths) -> None:
    """Nothing of a row that left stays in a slot that a later row sees, not even masked: 0 · NaN is NaN."""
    texts = [[5 + place for place in range(length)] for length in lengths]
    gone = lengths.index(8)
    rows, _ = read(llama, texts[:2])
    for layer in rows.layers:
        for buffer in layer._buffers:
            buffer[gone, :, layer.start : layer.end] = float("nan")  # of a persona whose weights blew up
    rows.leave({gone})
    fresh, _ = read(llama, texts[2:])
    rows.join(fresh)
    logits = forward(llama, rows, torch.tensor([[1], [2]]))
    assert close(logits[0], alone(llama, [*texts[1 - gone], 1]))
    assert close(logits[1], alone(llama, [*texts[2], 2]))


def test_a_step_copies_nothing_and_memory_shrinks_again(llama) -> None:
    rows, _ = read(llama, [[1] * 300, [2] * 5])
    buffers = rows.layers[0]._buffers[0].data_ptr()
    for _ in range(20):
        forward(llama, rows, torch.tensor([[1], [2]]))
    assert rows.layers[0]._buffers[0].data_ptr() == buffers
    rows.leave({0})
    assert rows.width == 25
    for _ in range(150):
        forward(llama, rows, torch.tensor([[2]]))
    assert rows.layers[0]._buffers[0].shape[2] < 300
    rows.leave({0})
    assert rows.layers == []
    assert rows.width == 0


def test_the_layer_grows_by_more_than_it_needs() -> None:
    layer, grown = RowsLayer(), 0
    for _ in range(1000):
        pointer = layer._buffers[0].data_ptr() if layer._buffers else 0
        layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 3))
        grown += layer._buffers[0].data_ptr() != pointer
    assert grown < 12
    assert layer.get_seq_length() == 1000
    assert torch.equal(layer.values, torch.ones(1, 1, 1000, 3))


# ---------------------------------------------------------------- what is refused


def anyhow(rows: int) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def test_all_tiny_models_can_be_served(tiny_model, architecture) -> None:
    check_rows(tiny_model(architecture, **WINDOWS.get(architecture, {}))[0], anyhow)


def test_half_precision_is_no_reason_to_refuse(tiny_model) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        check_rows(tiny_model("llama", dtype=dtype)[0], anyhow)


def test_models_with_another_state_are_refused() -> None:
    mamba = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(ModelError, match=r"MambaForCausalLM cannot be served .* not only keys and values"):
        check_rows(mamba, anyhow)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    with pytest.raises(ModelError, match="T5ForConditionalGeneration cannot be served"):
        check_rows(T5ForConditionalGeneration(T5Config(vocab_size=64, **sizes)), anyhow)


def test_a_configuration_without_a_cache_is_refused(tiny_model, monkeypatch) -> None:
    model, _ = tiny_model("llama")
    monkeypatch.delitem(cache_utils.DYNAMIC_LAYER_TYPE_MAPPING, "full_attention")
    with pytest.raises(ModelError, match=r"LlamaForCausalLM cannot be served .* keeps no cache of keys and values"):
        check_rows(model, anyhow)


class SlotsForPositions(LlamaForCausalLM):
    """A model that counts positions from the first slot, padding or not."""

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None):  # type: ignore[override]
        return super().forward(input_ids, attention_mask, past_key_values=past_key_values, use_cache=use_cache)


class Refusing(LlamaForCausalLM):
    """A model that wants no cache made elsewhere."""

    def forward(self, input_ids, past_key_values=None):  # type: ignore[override]
        if past_key_values is not None:
            raise ValueError("only a cache of my own")
        return super().forward(input_ids)


def test_models_whose_rows_depend_on_padding_are_refused(tiny_model) -> None:
    model, _ = tiny_model("llama")
    for kind, message in ((SlotsForPositions, "other logits than alone"), (Refusing, "only a cache of my own")):
        model.__class__ = kind
        with pytest.raises(ModelError, match=message):
            check_rows(model, anyhow)


def test_the_check_runs_its_forwards_where_it_may(llama) -> None:
    asked, inside = [], []

    @contextlib.contextmanager
    def wearing(rows: int):
        asked.append(rows)
        inside.append(True)
        yield
        inside.pop()

    handle = llama.register_forward_pre_hook(lambda *_: None if inside else pytest.fail("a forward outside"))
    try:
        check_rows(llama, wearing)
    finally:
        handle.remove()
    assert asked == [1, 2]
