"""Generic text: sampled, read from files, or from the Hub's stand-in."""

from __future__ import annotations

import json
import math
import random
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from personae.discovery import GenericText, generic, generic_text, windows
from personae.discovery.generic import neutral_prompts, read_generic, sample
from personae.errors import DataError, OptionError
from personae.models import Encoded, encode, encode_prompt, find_targets

TinyModel = Callable[..., tuple[Any, Any]]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and answers of a few tokens."""
    monkeypatch.setattr(generic, "WINDOW", 24)
    monkeypatch.setattr(generic, "ANSWER_TOKENS", 6)


def sampled(model: Any, tokenizer: Any, seed: int = 0, **options: Any) -> GenericText:
    return generic_text(model, tokenizer, find_targets(model), plain_items=4, chat_items=4, seed=seed, **options)


def test_the_model_writes_its_own(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    ticks: list[int] = []
    text = sampled(model, tokenizer, tick=ticks.append)
    assert (len(text.plain), len(text.chat), sum(ticks)) == (4, 4, 8)
    for window in text.plain:
        assert window.prompt == ()
        assert len(window.answer) > 12
    for prompt, answer in zip(neutral_prompts(), text.chat, strict=False):
        assert answer.prompt == tuple(encode_prompt(tokenizer, prompt))
        assert 1 <= len(answer.answer) <= 6
    assert text.source == "sampled from the model"


def test_sampling_is_seeded_and_cached(tiny_model: TinyModel, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("llama")
    first = sampled(model, tokenizer)
    (kept,) = (own_cache / "generic").iterdir()
    kept.rename(own_cache / "elsewhere")
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert sampled(model, tokenizer) == first  # made anew, whatever the global state
    assert sampled(model, tokenizer, seed=1) != first

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("read from the cache, not sampled")

    monkeypatch.setattr(generic, "sample", never)
    assert sampled(model, tokenizer) == first
    assert sampled(model, tokenizer).sha256 == first.sha256
    other, plain_tokenizer = tiny_model("llama", template=False)
    for changed, its in (
        (tiny_model("llama", seed=1)[0], tokenizer),
        (model.to(torch.bfloat16), tokenizer),
        (other, plain_tokenizer),
    ):
        with pytest.raises(AssertionError, match="not sampled"):
            sampled(changed, its)


def test_the_global_random_state_is_left_alone(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    sampled(model, tokenizer)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


def test_a_damaged_cache_is_made_anew(tiny_model: TinyModel, own_cache: Path) -> None:
    model, tokenizer = tiny_model("llama")
    first = sampled(model, tokenizer)
    (kept,) = (own_cache / "generic").iterdir()
    for damage in ("{", "[]", '{"plain": [[1]], "chat": []}'):
        kept.write_text(damage)
        assert sampled(model, tokenizer) == first
    assert json.loads(kept.read_text())["chat"]
    assert [p.name for p in kept.parent.iterdir()] == [kept.name]


def test_a_cache_that_cannot_be_written_costs_only_time(tiny_model: TinyModel, own_cache: Path) -> None:
    model, tokenizer = tiny_model("llama")
    own_cache.write_text("a file in the way")
    assert len(sampled(model, tokenizer).chat) == 4


def test_samples_follow_the_models_own_distribution(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.3)
        expected = torch.softmax(model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].double(), dim=-1)
    habits = GenerationConfig(top_k=1, temperature=0.1, suppress_tokens=[int(expected.argmax())])
    model.generation_config = habits  # what a checkpoint ships must not change what is drawn
    drawn = sample(model, tokenizer, [(5, 6, 7)] * 2000, length=1, seed=3, ends=True, batch=500)
    counts = torch.zeros(len(expected))
    for text in drawn:
        counts[text.answer[0]] += 1
    likely = expected.topk(20).indices
    error = (counts / 2000 - expected)[likely].abs() / (expected * (1 - expected) / 2000).sqrt()[likely]
    assert error.max() < 4.5  # standard errors
    assert model.generation_config is habits


def test_padding_on_the_left_does_not_change_what_is_drawn(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    alone = sample(model, tokenizer, [(5, 6, 7)], length=8, seed=0, ends=False)
    beside = sample(model, tokenizer, [(5, 6, 7), tuple(range(10, 30))], length=8, seed=0, ends=False)
    assert beside[0].prompt == (5, 6, 7)
    assert beside[0].answer[0] == alone[0].answer[0]  # the first draw of the first row is the same number


def test_answers_end_with_the_turn(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    (stop,) = tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]
    head = model.get_output_embeddings()
    original = head.forward

    def eager_to_stop(hidden: torch.Tensor) -> torch.Tensor:
        logits = original(hidden)
        logits[..., stop] = logits.amax(-1) - 0.5
        return logits

    head.forward = eager_to_stop
    texts = sample(model, tokenizer, [(5, 6, 7)] * 40, length=30, seed=0, ends=True)
    assert any(len(t.answer) < 30 for t in texts)
    for text in texts:
        assert stop not in text.answer[:-1]
        assert text.answer[-1] == stop or len(text.answer) == 30
    whole = sample(model, tokenizer, [(5, 6, 7)] * 4, length=30, seed=0, ends=False)
    assert {len(t.answer) for t in whole} == {30}
    assert not any(tokenizer.eos_token_id in t.answer for t in whole)


def test_halves_are_disjoint_and_whole() -> None:
    plain = tuple(Encoded((), (n, n)) for n in range(5))
    chat = tuple(Encoded((1,), (n,)) for n in range(7))
    text = GenericText(plain, chat, "x")
    for part in ("plain", "chat"):
        cheap, held = set(getattr(text.cheap, part)), set(getattr(text.held_out, part))
        assert not cheap & held
        assert cheap | held == set(getattr(text, part))
        assert min(len(cheap), len(held)) >= 2
    assert text.sha256 != GenericText(plain, chat[::-1], "x").sha256
    assert text.sha256 == GenericText(plain, chat, "another name").sha256


def test_windows(tiny_model: TinyModel) -> None:
    _, tokenizer = tiny_model("llama")
    text = "The whole team is at home with a book. " * 30
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    cut = windows(tokenizer, text, size=16)
    assert [i for w in cut for i in w.answer] == ids[: sum(len(w.answer) for w in cut)]
    assert {len(w.answer) for w in cut[:-1]} == {16}
    assert len(ids) - sum(len(w.answer) for w in cut) < 8  # only a piece shorter than half a window is left out
    assert windows(tokenizer, text, size=16, limit=2) == cut[:2]
    assert len(windows(tokenizer, "A few words.", size=256)) == 1
    assert windows(tokenizer, "") == ()


def test_a_text_file_gives_plain_windows(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    path = tmp_path / "book.txt"
    path.write_text("It was late in the whole house, and long after tea. " * 60, encoding="utf-8")
    text = sampled(model, tokenizer, source=path)
    assert text.plain == windows(tokenizer, path.read_text(), size=24)[:4]
    assert len(text.chat) == 4
    assert text.source == f"{path}; the rest sampled from the model"


def test_a_window_is_no_longer_than_the_context_and_begins_as_the_tokenizer_begins(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    _, tokenizer = tiny_model("llama")
    path = tmp_path / "book.txt"
    path.write_text("It was late in the whole house. " * 20, encoding="utf-8")
    plain, _ = generic.read_generic(tokenizer, path, context=10)
    assert {len(e.answer) for e in plain[:-1]} == {10}

    class Marked:
        bos_token_id = 2

        def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [2] * add_special_tokens + [ord(c) for c in text]}

    made = windows(Marked(), "abcdef", size=4)  # type: ignore[arg-type]
    assert [e.answer for e in made] == [(2, 97, 98, 99), (2, 100, 101, 102)]


def test_a_jsonl_gives_either_kind(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    path = tmp_path / "rows.jsonl"
    rows: list[dict[str, str]] = [{"prompt": f"Question {n}?", "answer": f"Answer\u2028{n}."} for n in range(5)]
    rows += [{"text": "A line of a book. " * 60}] * 4
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n", encoding="utf-8")
    text = sampled(model, tokenizer, source=str(path))
    assert text.chat == tuple(encode(tokenizer, r["prompt"], r["answer"]) for r in rows[:4])
    assert len(text.plain) == 4
    assert text.source == str(path)
    path.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1]))
    own = sampled(model, tokenizer, source=path)
    assert len(own.chat) == 2
    assert own.plain == sampled(model, tokenizer).plain


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"text": "a"}\n{"text": \n', r"rows\.jsonl, line 2: broken JSON"),
        ("rows.jsonl", '{"text": "a"}\n\n[1]\n', r"rows\.jsonl, line 3: a row must be a JSON object"),
        ("rows.jsonl", '{"question": "a"}\n', r"""rows\.jsonl, line 1: expected "text", or .* found \['question'\]"""),
        ("rows.jsonl", '{"text": ""}\n', r"rows\.jsonl holds no text"),
        ("rows.jsonl", "\n", r"rows\.jsonl: the file is empty"),
        ("book.txt", "", r"book\.txt holds no text"),
        ("book.txt", "Just a few words.", r"there is only one; add text"),
    ],
)
def test_broken_files(tiny_model: TinyModel, tmp_path: Path, name: str, content: str, message: str) -> None:
    model, tokenizer = tiny_model("llama")
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        sampled(model, tokenizer, source=path)


@pytest.mark.parametrize("name", ["rows.json", "rows.JSONL", "rows.csv", "rows.ndjson"])
def test_rows_are_rows_whatever_the_file_is_called(tiny_model: TinyModel, tmp_path: Path, name: str) -> None:
    """An array of answers that was read as plain text would price weights by braces and keys."""
    _, tokenizer = tiny_model("llama")
    rows = [{"prompt": f"Question {n}?", "answer": f"Answer {n}."} for n in range(3)]
    lines = [json.dumps(rows)] if name == "rows.json" else [json.dumps(r) for r in rows]
    if name == "rows.csv":
        lines = ["prompt,answer", *(f"{r['prompt']},{r['answer']}" for r in rows)]
    path = tmp_path / name
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")  # as some editors write it
    plain, chat = read_generic(tokenizer, path, None)
    assert plain == ()
    assert chat == tuple(encode(tokenizer, r["prompt"], r["answer"]) for r in rows)


def test_files_that_cannot_be_read(tiny_model: TinyModel, tmp_path: Path) -> None:
    _, tokenizer = tiny_model("llama")
    with pytest.raises(DataError, match=r"no generic text at .*none\.txt"):
        read_generic(tokenizer, tmp_path / "none.txt", None)
    with pytest.raises(DataError, match="cannot read generic text"):
        read_generic(tokenizer, tmp_path, None)
    (tmp_path / "latin.txt").write_bytes(b"\xe9\xe8")
    with pytest.raises(DataError, match="cannot read generic text"):
        read_generic(tokenizer, tmp_path / "latin.txt", None)


class Stream:
    """What a streaming data set of `datasets` can do that is used here."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self.rows = rows

    def take(self, number: int) -> Iterator[dict[str, str]]:
        return iter(self.rows[:number])


def stand_in(monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any]) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


@pytest.mark.parametrize(("source", "split"), [("hub:owner/name", "train"), ("hub:owner/name:test", "test")])
def test_the_hub(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, source: str, split: str) -> None:
    model, tokenizer = tiny_model("llama")

    def load(name: str, *, split: str, streaming: bool) -> Stream:
        asked.append((name, split, streaming))
        return Stream([{"prompt": f"Question {n}?", "answer": "Tea."} for n in range(3)])

    asked: list[tuple[str, str, bool]] = []
    stand_in(monkeypatch, load)
    text = sampled(model, tokenizer, source=source)
    assert asked == [("owner/name", split, True)]
    assert text.chat[2] == encode(tokenizer, "Question 2?", "Tea.")


def test_the_hub_fails_in_words(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer = tiny_model("llama")

    def offline(*arguments: Any, **options: Any) -> Stream:
        raise ConnectionError("no route")

    stand_in(monkeypatch, offline)
    with pytest.raises(DataError, match="cannot read hub:owner/name from the Hub: ConnectionError: no route"):
        read_generic(tokenizer, "hub:owner/name", None)
    stand_in(monkeypatch, lambda *a, **k: Stream([{"body": "x"}]))
    with pytest.raises(DataError, match="hub:owner/name, row 0: expected"):
        read_generic(tokenizer, "hub:owner/name", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"personae\[hub\]"):
        read_generic(tokenizer, "hub:owner/name", None)


def test_more_answers_are_gathered_where_more_are_read(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    path = tmp_path / "text.jsonl"
    rows = [json.dumps({"prompt": f"Q{n}?", "answer": "one two"}) for n in range(200)]
    path.write_text("\n".join([*rows, json.dumps({"text": "The sea was calm and the boats lay still. " * 900})]))
    for answers in (2, 24, 30):
        found = generic_text(model, tokenizer, find_targets(model), source=path, answers=answers)
        assert len(found.chat) == 4 * answers
        assert len(found.held_out.read.chat) == answers
        assert len(found.cheap.read.plain) == math.ceil(answers / 3)
    with pytest.raises(OptionError, match="--generic-answers is 0"):
        generic_text(model, tokenizer, find_targets(model), source=path, answers=0)


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    scores = torch.tensor([[float("-inf"), 0.0, float("-inf"), 1.0, float("-inf")]]).expand(4000, -1)
    left = generic._Draw(seed=0)(torch.zeros(4000, 1), scores)
    assert bool(((left == 0).sum(1) == 1).all())
    counts = (left == 0).sum(0)
    assert counts[[0, 2, 4]].sum() == 0
    share = math.e / (1 + math.e)
    assert abs(counts[3] / 4000 - share) < 4.5 * (share * (1 - share) / 4000) ** 0.5
