from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from personae.errors import ModelError
from personae.runtime.answer import Answer, Ending, next_tokens, penalised, token_scores
from personae.runtime.decoding import Sampler
from personae.runtime.generation import Options
from personae.runtime.requests import End, Piece, Request
from personae.runtime.spelling import speller


@pytest.fixture
def ending(tiny_model) -> Ending:
    return Ending(*tiny_model("llama"))


@pytest.fixture
def make(tokenizer, ending):
    """`make(logprobs=…, **options)` -> (answer, what its listener hears, how often it was released)."""

    def made(prompt=(5, 6, 7), logprobs=None, listener=None, **options):
        heard, released = [], []
        request = Request(prompt, (), Options(**options), logprobs)
        return Answer(request, listener or heard.append, released.append, tokenizer, ending), heard, released

    return made


def spelled(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# ------------------------------------------------------------------- its words


def test_pieces_then_one_end(make, tokenizer) -> None:
    answer, heard, released = make()
    for token in spelled(tokenizer, "I would stay ☂ home"):
        answer.write(token, None)
    assert not answer.over
    assert released == []
    answer.write(tokenizer.eos_token_id, None)
    *pieces, end = heard
    assert "".join(piece.text for piece in pieces) == "I would stay ☂ home"
    assert all(piece.text and "\N{REPLACEMENT CHARACTER}" not in piece.text for piece in pieces)
    assert (end.reason, end.prompt_tokens, end.completion_tokens) == ("stop", 3, len(answer.tokens))
    assert (answer.outcome, released) == ("stop", [answer])


def test_a_stop_string_is_held_back_and_never_said(make, tokenizer) -> None:
    answer, heard, _ = make(stop=("o clock",))
    for token in spelled(tokenizer, "At five o clock"):
        assert not answer.over
        answer.write(token, None)
    assert "".join(piece.text for piece in heard[:-1]) == "At five "
    assert heard[-1].reason == "stop"


def test_the_end_of_the_turn_stops_it_too(make, tokenizer) -> None:
    answer, heard, _ = make()
    answer.write(spelled(tokenizer, "I")[0], None)
    answer.write(tokenizer.convert_tokens_to_ids("<|im_end|>"), None)
    assert [piece.text for piece in heard[:-1]] == ["I"]
    assert heard[-1].reason == "stop"


def test_the_longest_answer(make, tokenizer) -> None:
    answer, heard, _ = make(max_new_tokens=2, stop=("would not",))
    for token in spelled(tokenizer, " would"):
        answer.write(token, None)
    if not answer.over:
        answer.write(spelled(tokenizer, "I")[0], None)
    assert (heard[-1].reason, heard[-1].completion_tokens) == ("length", 2)
    assert "".join(piece.text for piece in heard[:-1]).startswith(" would")  # what was held back goes out


def test_cancelled_and_failed(make) -> None:
    for last in (lambda answer: answer.end("cancelled"), lambda answer: answer.fail(KeyError("x"))):
        answer, heard, released = make()
        last(answer)
        answer.end("stop")
        answer.fail(ValueError())
        assert len(heard) == 1
        assert released == [answer]
        assert isinstance(heard[0], End) == (answer.outcome == "cancelled")


def test_times_are_in_order(make) -> None:
    answer, heard, _ = make(max_new_tokens=1)
    answer.admit()
    answer.write(70, None)
    end = heard[-1]
    assert 0 <= end.queued <= end.first_token <= end.total
    waiting, heard, _ = make()
    waiting.end("cancelled")
    assert heard[0].first_token is None
    assert heard[0].queued == heard[0].total


@pytest.mark.parametrize("bad", [Piece, End, Exception])
def test_a_listener_that_raises_hears_no_more(make, bad, caplog) -> None:
    calls = []

    def listener(word: object) -> None:
        calls.append(word)
        if isinstance(word, bad):
            raise SystemExit("a listener's own trouble")

    answer, _, released = make(listener=listener, max_new_tokens=3)
    answer.write(70, None)
    if bad is Piece:
        assert answer.outcome == "lost"
        answer.end("stop")
    elif bad is End:
        answer.end("cancelled")
    else:
        answer.fail(ValueError())
    assert isinstance(calls[-1], bad)
    assert released == [answer]
    assert "a listener raised" in caplog.text


def test_it_is_released_before_its_last_word(tokenizer, ending) -> None:
    order = []
    answer = Answer(
        Request((1,)), lambda word: order.append("word"), lambda _: order.append("release"), tokenizer, ending
    )  # fmt: skip
    answer.end("cancelled")
    assert order == ["release", "word"]


# ------------------------------------------------------------------ next tokens


def test_greedy_rows_and_drawn_rows(make) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 300, generator=random)
    settings = [{}, {"temperature": 0.7, "seed": 5}, {}, {"temperature": 1.3, "top_p": 0.6, "seed": 6}, {}, {}]
    answers = [make(**each)[0] for each in settings]
    tokens = next_tokens(logits, answers, 1.0)
    for row, each in enumerate(settings):
        expected = int(logits[row].argmax())
        if each:
            sampler = Sampler(each["temperature"], each.get("top_p", 1.0), each["seed"])
            expected = int(sampler(torch.empty(0), logits[row : row + 1]).argmax())
        assert tokens[row] == expected


def test_a_draw_does_not_depend_on_its_neighbours(make) -> None:
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(1))
    drawn = {"temperature": 1.0, "seed": 3}
    alone, crowded = make(**drawn)[0], [make(temperature=1.0)[0], make(**drawn)[0], make()[0]]
    for _ in range(5):
        first = next_tokens(logits[1:2], [alone], 1.0)
        assert next_tokens(logits, crowded, 1.0)[1] == first[0]


def test_logits_that_are_no_numbers_cost_one_answer(make) -> None:
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(2))
    logits[1] = math.nan
    made = [make(temperature=1.0, seed=4) for _ in range(3)]
    tokens = next_tokens(logits, [answer for answer, _, _ in made], 1.0)
    assert tokens[1] is None
    assert made[1][0].outcome == "failed"
    assert isinstance(made[1][1][0], RuntimeError)
    assert not made[0][0].over
    assert None not in (tokens[0], tokens[2])


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=8, max_size=8),
    st.lists(st.integers(0, 7), min_size=1, max_size=9),
    st.floats(0.5, 2),
)
def test_the_penalty_is_that_of_generate(scores, known, penalty) -> None:
    logits, seen = torch.tensor([scores]), torch.zeros(1, 8, dtype=torch.bool)
    seen[0, known] = True
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([known]), logits.clone())
    assert torch.equal(penalised(logits, seen, penalty), expected)


def test_the_penalty_counts_prompt_and_answer(make) -> None:
    first, _, _ = make(prompt=(1, 2))
    other, _, _ = make(prompt=(3,))
    logits = torch.zeros(2, 300)
    logits[:, 1], logits[:, 3], logits[:, 5] = 1.0, 0.9, 0.8
    assert next_tokens(logits, [first, other], 2.0) == [3, 1]
    first.write(3, None)
    other.write(1, None)
    assert next_tokens(logits, [first, other], 2.0) == [5, 5]


# ------------------------------------------------------------------------ scores


def test_scores_of_those_who_ask(make, tokenizer) -> None:
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(3))
    answers = [make()[0], make(logprobs=0)[0], make(logprobs=3)[0]]
    none, bare, three = token_scores(logits, answers, [8, 9, 10], tokenizer)
    expected = logits.double().softmax(-1).log()
    assert none is None
    assert bare is not None
    assert three is not None
    assert (bare.token, bare.spelled.decode(), bare.top) == (9, tokenizer.decode([9]), ())
    assert bare.log_probability == pytest.approx(float(expected[1, 9]), abs=1e-5)
    order = expected[2].argsort(descending=True)[:3].tolist()
    assert [token for token, _, _ in three.top] == order
    assert [value for _, _, value in three.top] == pytest.approx(expected[2, order].tolist(), abs=1e-5)
    assert [spelled for _, spelled, _ in three.top] == [speller(tokenizer)(token) for token in order]
    assert token_scores(logits, answers, [8, None, 10], tokenizer)[1] is None


def test_more_likeliest_than_there_are_tokens(make, tokenizer) -> None:
    (score,) = token_scores(torch.zeros(1, 4), [make(logprobs=20)[0]], [2], tokenizer)
    assert score is not None
    assert len(score.top) == 4


def test_scores_come_with_the_text_and_none_is_lost(make, tokenizer) -> None:
    """An umbrella is several tokens with one text; scores wait for it. The end token is not written, so not scored."""
    answer, heard, _ = make(logprobs=0)
    tokens = [*spelled(tokenizer, "a ☂"), spelled(tokenizer, "☂")[0], tokenizer.eos_token_id]
    for token in tokens:
        (score,) = token_scores(torch.zeros(1, 384), [answer], [token], tokenizer)
        answer.write(token, score)
    scored = [score.token for piece in heard[:-1] for score in piece.scores]
    assert scored == tokens[:-1]
    assert any(len(piece.scores) > 1 for piece in heard[:-1])
    own = b"".join(score.spelled for piece in heard[:-1] for score in piece.scores)
    assert own == "a ☂☂".encode()[: len(own)]  # of the last umbrella one token
    assert len(own) > len("a ☂".encode())


# ------------------------------------------------------------------------ ending


def test_what_ends_an_answer(tiny_model, tokenizer) -> None:
    model, _ = tiny_model("llama")
    ending = Ending(model, tokenizer)
    assert ending.stops == ("<|im_end|>",)
    assert ending.tokens == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert Ending(*tiny_model("llama", template=False)).stops == ("\nQ:",)


def test_settings_that_are_not_served_are_refused(tiny_model, tokenizer) -> None:
    model, _ = tiny_model("llama")
    model.generation_config.repetition_penalty = 1.2
    assert Ending(model, tokenizer).penalty == 1.2
    for name, harmless in {"min_length": 0, "guidance_scale": 1.0, "suppress_tokens": []}.items():
        setattr(model.generation_config, name, harmless)
    assert Ending(model, tokenizer).penalty == 1.2
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.suppress_tokens = [4]
    with pytest.raises(ModelError, match=r"sets no_repeat_ngram_size, suppress_tokens, .*no_repeat_ngram_size = None"):
        Ending(model, tokenizer)
