from __future__ import annotations

import math
import threading
import time

import pytest
import torch

from personae.errors import DataError, OptionError, PersonaInUseError
from personae.models import render_prompt
from personae.runtime.generation import Options, TextStream, fitted, prompt_tokens

QUESTION = "What would you do?"


def greedy_by_hand(model, tokens: list[int], count: int, ends: set[int]) -> list[int]:
    """The oracle: whole sequences, no cache, argmax."""
    written: list[int] = []
    while len(written) < count:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens + written]), use_cache=False).logits[0, -1]
        written.append(int(logits.argmax()))
        if written[-1] in ends:
            break
    return written


# -------------------------------------------------------------------- prompts


def test_a_history_of_one_is_the_single_message(tokenizer, plain_tokenizer) -> None:
    for each in (tokenizer, plain_tokenizer):
        history = [{"role": "user", "content": QUESTION}]
        assert prompt_tokens(each, history, "Be kind.") == prompt_tokens(each, QUESTION, "Be kind.")
        with_system = [{"role": "system", "content": "Be kind."}, *history]
        assert prompt_tokens(each, with_system) == prompt_tokens(each, QUESTION, "Be kind.")


HISTORY = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]


def test_histories_through_the_template_and_without(tokenizer, plain_tokenizer) -> None:
    templated = tokenizer.decode(prompt_tokens(tokenizer, HISTORY, "Be kind."))
    assert templated == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
        "<|im_start|>assistant\nTwo.<|im_end|>\n<|im_start|>user\nThree?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert plain_tokenizer.decode(prompt_tokens(plain_tokenizer, HISTORY)) == "Q: One?\nA: Two.\nQ: Three?\nA:"
    assert render_prompt(plain_tokenizer, "Three?", "Be kind.").startswith("Be kind.\n\nQ:")
    assert plain_tokenizer.decode(prompt_tokens(plain_tokenizer, HISTORY, "Be kind.")).startswith("Be kind.\n\nQ: One?")


def with_template(tokenizer, template: str):
    changed = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    changed.chat_template = template
    return changed


def test_a_template_without_system_role_gets_it_in_front(tokenizer) -> None:
    refusing = with_template(
        tokenizer,
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + tokenizer.chat_template,
    )
    text = refusing.decode(prompt_tokens(refusing, HISTORY, "Be kind."))
    assert text.startswith("<|im_start|>user\nBe kind.\n\nOne?<|im_end|>")


def test_a_template_that_refuses_says_why(tokenizer) -> None:
    refusing = with_template(tokenizer, "{{ raise_exception('Roles must alternate') }}")
    with pytest.raises(DataError, match="Roles must alternate"):
        prompt_tokens(refusing, HISTORY)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "must end with one of the user"),
        (HISTORY[:2], "must end with one of the user"),
        ([{"role": "robot", "content": "x"}], "message 0 must be"),
        ([*HISTORY, {"role": "system", "content": "x"}], "message 3 must be"),
        ([{"role": "user"}], "message 0 must be"),
        ([{"role": "user", "content": 5}], "message 0 must be"),
    ],
)
def test_broken_histories(tokenizer, messages, message) -> None:
    with pytest.raises(DataError, match=message):
        prompt_tokens(tokenizer, messages)


def test_two_system_prompts_exclude_each_other(tokenizer) -> None:
    with pytest.raises(OptionError, match="not both"):
        prompt_tokens(tokenizer, [{"role": "system", "content": "x"}, *HISTORY], "y")


def test_fitted_cuts_from_the_left_with_a_warning() -> None:
    assert fitted([1, 2, 3], None, 99) == [1, 2, 3]
    assert fitted([1, 2, 3], 5, 2) == [1, 2, 3]
    with pytest.warns(UserWarning, match="prompt of 3 tokens was cut from the left to 2"):
        assert fitted([1, 2, 3], 5, 3) == [2, 3]
    with pytest.raises(OptionError, match="max_new_tokens is 5, but the model's context is 5"):
        fitted([1, 2, 3], 5, 5)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": math.nan}, {"temperature": math.inf},
        {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": math.nan}, {"stop": "" "x", "max_new_tokens": -1}, {"stop": [""]},
    ],
)  # fmt: skip
def test_options_out_of_range(actor, bad) -> None:
    for ask in (actor.chat, actor.stream_chat):
        with pytest.raises(OptionError):
            ask(QUESTION, **bad)


def test_stop_as_one_string_or_several() -> None:
    assert Options.of(5, 0, 1, None, "ab").stop == ("ab",)
    assert Options.of(5, 0, 1, None, ["ab", "c"]).stop == ("ab", "c")
    assert Options.of(5, 0, 1, None, None).stop == ()


# ----------------------------------------------------------------------- chat


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_chat_is_greedy_under_what_is_worn(tiny_model, make_artefact, name, template) -> None:
    from personae.runtime import PersonaModel

    model, tokenizer = tiny_model(name, template=template)
    actor = PersonaModel(model, tokenizer)
    actor.add_personas(make_artefact(model, "a"))
    answers = []
    for worn in (False, True):
        if worn:
            actor.set_persona("a")
        ends = {
            tokenizer.eos_token_id,
            *([tokenizer.convert_tokens_to_ids("<|im_end|>")] if template else []),
        }
        tokens = greedy_by_hand(model, prompt_tokens(tokenizer, QUESTION), 12, ends)
        expected = tokenizer.decode(tokens, skip_special_tokens=True).split("\nQ:")[0].strip()
        answers.append(actor.chat(QUESTION, max_new_tokens=12))
        assert answers[-1] == expected
    assert answers[0] != answers[1], "the persona must make a difference for this test to mean anything"


def test_the_end_of_the_turn_ends_the_answer(actor, monkeypatch) -> None:
    end = actor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end != actor.tokenizer.eos_token_id
    seen = {}
    real = actor.model.generate
    monkeypatch.setattr(actor.model, "generate", lambda *a, **k: (seen.update(k), real(*a, **k))[1])
    actor.chat(QUESTION, max_new_tokens=2)
    assert end in seen["eos_token_id"]
    assert actor.tokenizer.eos_token_id in seen["eos_token_id"]


def test_a_reply_says_whether_it_came_to_its_end(actor, monkeypatch) -> None:
    whole = actor.chat(QUESTION, max_new_tokens=20)
    assert actor.reply(QUESTION, Options(20)) == (whole, False)
    stop = whole[len(whole) // 2 :][:2]
    assert actor.reply(QUESTION, Options(20, stop=(stop,))) == (whole[: whole.index(stop)].strip(), True)
    written = greedy_by_hand(actor.model, prompt_tokens(actor.tokenizer, QUESTION), 3, set())
    monkeypatch.setattr(actor.model.generation_config, "eos_token_id", written[-1])
    assert actor.reply(QUESTION, Options(20))[1]
    assert actor.reply(QUESTION, Options(3))[1], "an end token that is the last one allowed"
    assert not actor.reply(QUESTION, Options(2))[1]


def test_same_seed_same_text(actor) -> None:
    def say(seed: int) -> str:
        return actor.chat(QUESTION, max_new_tokens=12, temperature=1.5, top_p=0.9, seed=seed)

    assert say(1) == say(1)
    assert len({say(seed) for seed in range(4)}) > 1
    streamed = actor.stream_chat(QUESTION, max_new_tokens=12, temperature=1.5, top_p=0.9, seed=1)
    torch.rand(5)  # drawing meanwhile does not change the stream
    assert "".join(streamed).strip() == say(1)


def test_temperature_zero_whatever_the_models_own_settings(actor, recwarn) -> None:
    plain = actor.chat(QUESTION, max_new_tokens=8)
    actor.model.generation_config.do_sample = True
    actor.model.generation_config.temperature = 5.0
    actor.model.generation_config.top_k = 3
    assert [actor.chat(QUESTION, max_new_tokens=8) for _ in range(3)] == [plain] * 3
    assert not [each for each in recwarn.list if not issubclass(each.category, ResourceWarning)]  # of other tests


def test_a_stop_string_ends_the_answer_and_is_not_in_it(actor) -> None:
    whole = actor.chat(QUESTION, max_new_tokens=20)
    stop = whole[len(whole) // 2 :][:2]
    assert actor.chat(QUESTION, max_new_tokens=20, stop=stop) == whole[: whole.index(stop)].strip()
    assert (
        "".join(actor.stream_chat(QUESTION, max_new_tokens=20, stop=[stop])).strip()
        == whole[: whole.index(stop)].strip()
    )


def test_a_prompt_longer_than_the_context_is_cut(actor) -> None:
    with pytest.warns(UserWarning, match="cut from the left"):
        assert isinstance(actor.chat("word " * 600, max_new_tokens=3), str)


def test_without_a_tokenizer(tiny_model) -> None:
    from personae.runtime import PersonaModel

    with pytest.raises(OptionError, match="without a tokenizer"):
        PersonaModel(tiny_model("llama")[0]).chat(QUESTION)


# --------------------------------------------------------------------- stream


@pytest.fixture
def slow(actor, monkeypatch):
    """The actor with 10 ms more a token, and the number of forwards so far."""
    forwards = []
    actor.model.register_forward_pre_hook(lambda *_: (forwards.append(1), time.sleep(0.01))[0])
    return actor, forwards


@pytest.fixture
def held(actor, monkeypatch):
    """The actor, whose 20th forward waits until the stream is closed, and the number of forwards so far."""
    forwards, closed, close = [], threading.Event(), TextStream.close

    def before(*_: object) -> None:
        forwards.append(1)
        if len(forwards) >= 20:
            assert closed.wait(60)

    def closing(stream: TextStream) -> None:
        stream._cancelled.set()
        closed.set()
        close(stream)

    actor.model.register_forward_pre_hook(before)
    monkeypatch.setattr(TextStream, "close", closing)
    return actor, forwards


def test_a_stream_is_the_chat_in_pieces(actor) -> None:
    actor.set_persona("b")
    pieces = list(actor.stream_chat(QUESTION, max_new_tokens=15))
    assert len(pieces) > 3
    assert "".join(pieces).strip() == actor.chat(QUESTION, max_new_tokens=15)


def test_the_reader_who_switches_while_reading_is_refused(held) -> None:
    actor, _ = held
    actor.set_persona("a")
    stream = actor.stream_chat(QUESTION, max_new_tokens=200)
    next(stream)
    for attempt in (
        lambda: actor.set_persona("b"), actor.disable_persona, lambda: actor.chat(QUESTION),
        lambda: actor.persona("b").__enter__(), lambda: actor.to("cpu"),
    ):  # fmt: skip
        with pytest.raises(PersonaInUseError, match="still being generated"):
            attempt()
    assert actor.active == {"a": 1.0}
    stream.close()
    actor.set_persona("b")


def test_other_threads_wait_for_the_end_of_a_stream(slow) -> None:
    actor, forwards = slow
    stream = actor.stream_chat(QUESTION, max_new_tokens=15, stop=None)
    after = []
    thread = threading.Thread(target=lambda: (actor.set_persona("b"), after.append(len(forwards))))
    thread.start()
    pieces = list(stream)
    thread.join(60)
    assert after == [len(forwards)], "no forward may follow the switch"
    assert "".join(pieces).strip() == _as_base(actor)


def _as_base(actor) -> str:
    actor.disable_persona()
    return actor.chat(QUESTION, max_new_tokens=15)


@pytest.mark.parametrize("how", ["close", "with", "drop", "break"])
def test_a_reader_who_stops_cancels(held, how) -> None:
    actor, forwards = held
    if how == "close":
        stream = actor.stream_chat(QUESTION, max_new_tokens=300)
        next(stream)
        stream.close()
        assert list(stream) == []
        stream.close()
    elif how == "with":
        with actor.stream_chat(QUESTION, max_new_tokens=300) as stream:
            next(stream)
    elif how == "drop":
        stream = actor.stream_chat(QUESTION, max_new_tokens=300)
        next(stream)
        del stream
    else:
        for _ in actor.stream_chat(QUESTION, max_new_tokens=300):
            break
    written = len(forwards)
    assert written <= 20
    actor.set_persona("b")  # at once: the worker is gone
    time.sleep(0.05)
    assert len(forwards) == written


def test_an_error_of_the_worker_reaches_the_reader_and_frees_the_model(actor, monkeypatch) -> None:
    def failing(*arguments: object, **options: object) -> None:
        raise MemoryError("no room for the cache")

    with monkeypatch.context() as patched:
        patched.setattr(actor.model, "generate", failing)
        stream = actor.stream_chat(QUESTION)
        with pytest.raises(MemoryError, match="no room"):
            list(stream)
        assert list(stream) == []
    actor.set_persona("a")
    assert actor.chat(QUESTION, max_new_tokens=3) is not None


def test_a_stream_inside_a_block_is_written_by_its_persona(slow) -> None:
    actor, _ = slow
    with actor.persona("a"):
        expected = actor.chat(QUESTION, max_new_tokens=15)
        assert "".join(actor.stream_chat(QUESTION, max_new_tokens=15)).strip() == expected
        unread = actor.stream_chat(QUESTION, max_new_tokens=15)
    # The block waited for the worker before it took the persona off.
    assert actor.active == {}
    assert "".join(unread).strip() == expected


def test_a_worker_that_cannot_start_leaves_the_model_free(actor, monkeypatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            actor.stream_chat(QUESTION)
    actor.set_persona("a")


def test_a_stream_read_by_another_thread(actor) -> None:
    expected = actor.chat(QUESTION, max_new_tokens=10)
    stream, pieces = actor.stream_chat(QUESTION, max_new_tokens=10), []
    thread = threading.Thread(target=lambda: pieces.extend(stream))
    thread.start()
    thread.join(60)
    assert "".join(pieces).strip() == expected
