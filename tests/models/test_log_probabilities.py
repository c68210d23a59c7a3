"""Log-probabilities against a slow oracle: one unpadded forward an answer, full logits, log_softmax."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BloomConfig, FalconConfig, GPTNeoConfig, MambaConfig

from personae.models import (
    Batch,
    Encoded,
    Question,
    answer_nll,
    continuation_batches,
    find_targets,
    score_continuations,
    score_sequences,
    sequence_batches,
    text_nll,
)
from personae.models import log_probabilities as module

TOLERANCE = 1e-4
BATCHES = (1, 37, 2048)


def oracle(model: nn.Module, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([prompt + answer])
    logs = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    return torch.stack([logs[len(prompt) + k - 1, token] for k, token in enumerate(answer)])


def make_questions(shared: int, *, seed: int = 0, longest: int = 12) -> list[Question]:
    """Prompts of 1 to `longest` tokens after `shared` common ones, with 1 to 3 answers of 1 to 7 tokens."""
    draw = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(4, 384) for _ in range(count))

    common = tokens(shared)
    lengths = [1, longest, *(draw.randint(1, longest) for _ in range(4))]
    return [
        Question(common + tokens(length), tuple(tokens(draw.choice((1, 2, 7))) for _ in range(1 + number % 3)))
        for number, length in enumerate(lengths)
    ]


def assert_equal_to_oracle(
    model: nn.Module, questions: list[Question], *, batch_tokens: int, share: bool = True
) -> None:
    scores = score_continuations(model, questions, batch_tokens=batch_tokens, share_prompt=share)
    assert [len(s) for s in scores] == [len(q.answers) for q in questions]
    with torch.no_grad():
        for question, answers in zip(questions, scores, strict=True):
            for answer, values in zip(question.answers, answers, strict=True):
                assert values.dtype == torch.float32
                assert values.shape == (len(answer),)
                assert torch.allclose(values, oracle(model, question.prompt, answer), atol=TOLERANCE, rtol=0)


def test_shared_prompts_equal_the_oracle(tiny_model: Any, architecture: str) -> None:
    model, _ = tiny_model(architecture)
    for shared in (0, 9):
        questions = make_questions(shared, seed=shared)
        assert module._can_share(model, questions), "else this test would compare nothing"
        for batch_tokens in BATCHES:
            assert_equal_to_oracle(model, questions, batch_tokens=batch_tokens)


def test_answers_one_by_one_equal_the_oracle(tiny_model: Any, architecture: str) -> None:
    model, _ = tiny_model(architecture)
    for batch_tokens in BATCHES:
        assert_equal_to_oracle(model, make_questions(3), batch_tokens=batch_tokens, share=False)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_the_smallest_question_and_equal_prompts(tiny_model: Any, name: str) -> None:
    model, _ = tiny_model(name)
    assert_equal_to_oracle(model, [Question((5,), ((6,),))], batch_tokens=100)
    twins = [Question((5, 6, 7), ((8,), (9, 10))), Question((5, 6, 7), ((11, 12),))]
    assert_equal_to_oracle(model, twins, batch_tokens=100)


@pytest.mark.parametrize("share", [True, False])
def test_gradients_equal_the_oracles(tiny_model: Any, architecture: str, share: bool) -> None:
    model, _ = tiny_model(architecture)
    questions = make_questions(4)
    targets = find_targets(model)

    for question in questions:
        for answer in question.answers:
            oracle(model, question.prompt, answer).sum().backward()
    expected = {t.name: t.view_of(t.parameter.grad).clone() for t in targets}
    model.zero_grad()

    seen: list[int] = []
    for items, scores in continuation_batches(model, questions, batch_tokens=60, share_prompt=share):
        seen += items
        torch.stack([values.sum() for answers in scores for values in answers]).sum().backward()
    assert sorted(seen) == list(range(len(questions)))
    for target in targets:
        found = target.view_of(target.parameter.grad)
        scale = float(expected[target.name].abs().max())
        assert torch.allclose(found, expected[target.name], atol=1e-4 * max(scale, 1.0), rtol=1e-3), target.name


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
@pytest.mark.parametrize("longest", [3, 30])
def test_short_sliding_windows_equal_the_oracle(tiny_model: Any, name: str, longest: int) -> None:
    model, _ = tiny_model(name, sliding_window=8)
    for shared in (0, 12):
        for batch_tokens in BATCHES:
            assert_equal_to_oracle(model, make_questions(shared, longest=longest), batch_tokens=batch_tokens)


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_prompts_are_shared_up_to_the_window_and_no_further(tiny_model: Any, name: str) -> None:
    questions = [Question((5, 6, 7, 8), ((9, 10), (11, 12))), Question((5, 6, 9), ((9,),))]
    exact, _ = tiny_model(name, sliding_window=8)
    assert module._can_share(exact, questions)
    assert_equal_to_oracle(exact, questions, batch_tokens=100)
    short, _ = tiny_model(name, sliding_window=7)
    assert not module._can_share(short, questions)
    assert_equal_to_oracle(short, questions, batch_tokens=100)


ODD = {
    "bloom": BloomConfig(vocab_size=384, hidden_size=32, n_layer=2, n_head=4),
    "falcon-alibi": FalconConfig(
        vocab_size=384, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
    ),
    "gpt-neo": GPTNeoConfig(
        vocab_size=384,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=512,
    ),
    "mamba": MambaConfig(vocab_size=384, hidden_size=32, num_hidden_layers=2, state_size=4),
}


@pytest.mark.parametrize("name", ODD)
def test_models_that_cannot_share_fall_back_and_equal_the_oracle(name: str) -> None:
    """ALiBi, local windows by index, and recurrent state: a tree-shaped mask means nothing to them."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ODD[name]).eval()
    with torch.no_grad():  # the usual 0.02 is too flat to show a wrong mask
        for linear in (m for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)):
            linear.weight.normal_(0.0, 0.25)
    assert not module._can_share(model, make_questions(4))
    assert_equal_to_oracle(model, make_questions(4), batch_tokens=50)


@pytest.mark.parametrize(
    "change",
    [{"layer_types": ["full_attention", "conv"]}, {"_attn_implementation": "flash_attention_2"}],
    ids=["layers without attention", "kernels without masks"],
)
def test_configurations_that_cannot_share(
    tiny_model: Any, change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = tiny_model("llama")
    assert module._can_share(model, make_questions(0))
    ((key, value),) = change.items()
    fields = {"layer_types": None, "_attn_implementation": "sdpa", "get_text_config": None, key: value}
    config = type("Config", (), fields)()
    config.get_text_config = lambda: config
    monkeypatch.setattr(module, "_text_config", lambda model: config)
    assert not module._can_share(model, make_questions(0))


def test_ticks_count_every_question_once(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    questions = make_questions(2)
    for share in (True, False):
        ticks: list[int] = []
        score_continuations(model, questions, batch_tokens=30, share_prompt=share, tick=ticks.append)
        assert sum(ticks) == len(questions)
        assert len(ticks) > 1
    ticks = []
    answer_nll(model, [Encoded((5,), (6,)), Encoded((5, 6), (7,))], batch_tokens=2, tick=ticks.append)
    assert ticks == [1, 1]


def test_one_by_one_keeps_to_the_batch_size(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_model("llama")
    questions = make_questions(2)
    sizes: list[int] = []

    def measure(model: nn.Module, batch: Batch) -> torch.Tensor:
        sizes.append(batch.ids.numel())
        return score_sequences(model, batch)

    monkeypatch.setattr(module, "score_sequences", measure)
    score_continuations(model, questions, batch_tokens=130, share_prompt=False)
    assert 1 < len(sizes) < len(questions)
    assert max(sizes) <= 130


@pytest.mark.parametrize("share", [True, False])
def test_skipped_batches_are_told_and_not_computed(tiny_model: Any, share: bool) -> None:
    model, _ = tiny_model("llama")
    questions = make_questions(2)

    def items(skip: int, told: list[int]) -> list[list[int]]:
        batches = continuation_batches(
            model, questions, batch_tokens=50, share_prompt=share, skip=skip, skipped=told.append
        )
        return [indices for indices, _ in batches]

    everything: list[int] = []
    whole = items(0, everything)
    assert len(whole) > 2
    assert everything == []
    told: list[int] = []
    assert items(2, told) == whole[2:]
    assert told == [len(batch) for batch in whole[:2]]


def test_no_questions_no_scores(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    assert score_continuations(model, []) == []
    assert answer_nll(model, []).shape == (0, 2)


def test_a_call_changes_neither_weights_nor_hooks_nor_gradients(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    score_continuations(model, make_questions(3))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_an_empty_prompt_leaves_its_first_token_out(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    scores = score_continuations(model, [Question((), ((5, 6, 7), (8,))), Question((5,), ((6, 7),))])
    with torch.no_grad():
        expected = oracle(model, (5,), (6, 7))
    assert torch.allclose(scores[0][0], expected, atol=TOLERANCE)
    assert scores[0][1].shape == (0,)
    assert torch.allclose(scores[1][0], expected, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_like_the_oracle_within_its_rounding(tiny_model: Any, dtype: torch.dtype) -> None:
    model, _ = tiny_model("llama", dtype=dtype)
    full, _ = tiny_model("llama")
    full.load_state_dict({n: t.float() for n, t in model.state_dict().items()})
    questions = make_questions(5)
    for question, answers in zip(questions, score_continuations(model, questions), strict=True):
        for answer, values in zip(question.answers, answers, strict=True):
            with torch.no_grad():
                expected = oracle(full, question.prompt, answer)
            assert values.dtype == torch.float32
            assert torch.allclose(values, expected, atol=0.3 if dtype is torch.bfloat16 else 0.05)


def test_sums_of_answers_and_of_text_equal_the_oracle(tiny_model: Any, architecture: str) -> None:
    model, _ = tiny_model(architecture)
    encoded = [Encoded(q.prompt, a) for q in make_questions(2) for a in q.answers]
    windows = [e.prompt + e.answer for e in encoded]
    with torch.no_grad():
        answers = [-float(oracle(model, e.prompt, e.answer).double().sum()) for e in encoded]
        texts = [-float(oracle(model, w[:1], w[1:]).double().sum()) for w in windows]
    for batch_tokens in BATCHES:
        by_answer = answer_nll(model, encoded, batch_tokens=batch_tokens)
        assert by_answer.dtype == torch.float64
        assert by_answer[:, 1].tolist() == [len(e.answer) for e in encoded]
        assert by_answer[:, 0].tolist() == pytest.approx(answers, abs=10 * TOLERANCE)
        by_text = text_nll(model, windows, batch_tokens=batch_tokens)
        assert by_text[:, 1].tolist() == [len(w) - 1 for w in windows]
        assert by_text[:, 0].tolist() == pytest.approx(texts, abs=10 * TOLERANCE)


def test_padding_is_never_counted(tiny_model: Any) -> None:
    """A long neighbour in the batch changes nothing, and no value stands for a padded position."""
    model, _ = tiny_model("llama")
    short, long = Encoded((5, 6), (7,)), Encoded(tuple(range(10, 40)), (41, 42))
    alone = answer_nll(model, [short])
    together = answer_nll(model, [short, long], batch_tokens=10_000)
    assert together[0, 1] == 1
    assert torch.allclose(alone[0], together[0], atol=TOLERANCE)
    (batch,) = sequence_batches([short, long], batch_tokens=10_000)
    with torch.no_grad():
        assert score_sequences(model, batch).shape == (3,)
    (everything,) = sequence_batches([short, long], batch_tokens=10_000, all_tokens=True)
    assert everything.counted.sum() == 3 + 32
    with torch.no_grad():
        assert score_sequences(model, everything).shape == (2 + 31,)
