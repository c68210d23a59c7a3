from __future__ import annotations

import contextlib
import gc
import queue
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from engine_helpers import OneByOne
from personae.errors import BusyError, ModelError, OptionError, PersonaInUseError, UnknownPersonaError
from personae.runtime.engine import Engine
from personae.runtime.generation import Options, prompt_tokens
from personae.runtime.look import BASE, Look, look_of
from personae.runtime.requests import End, Piece, Request

QUESTION = "What would you do on a free Saturday?"
LONG = Options(max_new_tokens=4000)  # seconds of writing: still running whenever this thread comes back to look


@pytest.fixture
def actor(tiny_model, make_artefact) -> OneByOne:
    """A tiny Llama with the personas a, b and c, whose answers end only at their longest."""
    model, tokenizer = tiny_model("llama", max_position_embeddings=4096)
    actor = OneByOne(model, tokenizer)
    actor.add_personas(make_artefact(model, "a", "b", "c"))
    return actor


@pytest.fixture
def endless(actor, monkeypatch) -> OneByOne:
    """The same, but no token ends an answer."""
    from personae.runtime import answer

    monkeypatch.setattr(answer, "_end_tokens", lambda *_: [])
    monkeypatch.setattr(answer, "end_of_turn", lambda *_: "")
    return actor


def text_of(words: Iterator[Piece | End]) -> str:
    return "".join(word.text for word in words if isinstance(word, Piece))


def end_of(words: Iterator[Piece | End]) -> End:
    *_, end = words
    assert isinstance(end, End)
    return end


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does; a test that waits for ever is ended by its time limit."""
    while not condition():
        time.sleep(0.001)


@contextlib.contextmanager
def all_asked_first(actor: OneByOne) -> Iterator[None]:
    """What is asked in this block is there before a second step, however late this thread comes to ask it."""
    with actor._turn.held("asking"):  # every step waits for the turn
        yield


def asked(actor, look: Look = BASE, text: str = QUESTION, logprobs: int | None = None, **options) -> Request:
    return Request(tuple(prompt_tokens(actor.tokenizer, text)), look, Options(**options), logprobs)


class Hearing:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.words: list[object] = []
        self.over = threading.Event()

    def __call__(self, word: object) -> None:
        self.words.append(word)
        if not isinstance(word, Piece):
            self.over.set()

    def last(self) -> object:
        assert self.over.wait(60)
        return self.words[-1]


# ----------------------------------------------------------- the same as chat


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma2", "opt"])
def test_the_same_text_as_chat(tiny_model, make_artefact, name, template) -> None:
    """Greedy, all looks at once, together and apart, with the model's own window and penalty."""
    model, tokenizer = tiny_model(name, template=template, **({"sliding_window": 8} if name == "mistral" else {}))
    model.generation_config.repetition_penalty = 1.1
    actor = OneByOne(model, tokenizer)
    actor.add_personas(make_artefact(model, "a", "b", "c"))
    actor.apart = {"c"} if name == "llama" else {"a", "b", "c"}
    looks = [BASE, look_of("a"), look_of("b", 1.5), look_of({"a": 0.5, "b": 0.7}), look_of("c")]
    with Engine(actor) as engine:
        answers = [
            (look, text, engine.ask(asked(actor, look, text, max_new_tokens=20)))
            for text in (QUESTION, "Yes?")
            for look in looks
        ]
        written = {(look, text): text_of(answer).strip() for look, text, answer in answers}
    expected = {}
    for look, text in written:
        if look:
            actor.set_persona(dict(look))
        expected[look, text] = actor.chat(text, max_new_tokens=20)
        actor.disable_persona()
    assert written == expected
    assert len(set(written.values())) > 4


def test_the_same_seed_writes_the_same_text_in_any_company(actor) -> None:
    drawn = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 30}
    with Engine(actor) as engine:
        alone = text_of(engine.ask(asked(actor, look_of("a"), seed=5, **drawn)))
        crowd = [engine.ask(asked(actor, look_of("ab"[n % 2]), seed=n, **drawn)) for n in range(4, 12)]
        texts = [text_of(answer) for answer in crowd]
    actor.set_persona("a")
    assert texts[1] != alone  # seed 5 under b
    assert alone.strip() == actor.chat(QUESTION, seed=5, **drawn)
    actor.set_persona("b")
    assert texts[1].strip() == actor.chat(QUESTION, seed=5, **drawn)
    assert len(set(texts)) == 8


def test_pieces_stop_strings_and_scores(actor) -> None:
    with Engine(actor) as engine:
        whole = text_of(engine.ask(asked(actor, max_new_tokens=40)))
        stop = whole[len(whole) // 2 :][:2]
        words = list(engine.ask(asked(actor, max_new_tokens=40, stop=(stop,), logprobs=2)))
    *pieces, end = words
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
    assert len(pieces) > 3
    assert end.reason == "stop"
    known = list(asked(actor).tokens)
    for score in (score for piece in pieces for score in piece.scores):
        with torch.no_grad():
            expected = actor.model(input_ids=torch.tensor([known])).logits[0, -1].log_softmax(-1)
        assert score.log_probability == pytest.approx(float(expected[score.token]), abs=1e-4)
        assert [value for _, _, value in score.top] == pytest.approx(expected.topk(2).values.tolist(), abs=1e-4)
        known.append(score.token)
    assert len(known) - len(asked(actor).tokens) == end.completion_tokens


# ---------------------------------------------------------------- who is beside


def test_mixed_looks_share_forwards_and_others_do_not(endless) -> None:
    endless.apart = {"c"}
    with Engine(endless) as engine:
        endless.entered.clear()
        with all_asked_first(endless):
            answers = [
                engine.ask(asked(endless, look, max_new_tokens=12))
                for look in (BASE, look_of("a"), look_of("b"), look_of("c"), look_of("c", 0.5))
            ]
        assert all(end_of(answer).reason == "length" for answer in answers)
        stats = engine.stats()
    assert max(map(len, endless.entered)) == 3
    assert not any(name == "c" for looks in endless.entered for look in looks for name, _ in look)
    assert stats.switches >= 2
    assert stats.switch_seconds > 0


def test_cohorts_take_turns(endless) -> None:
    """Long answers under one look do not keep another look waiting until they end."""
    endless.apart = {"a", "b", "c"}
    order: list[str] = []
    with Engine(endless) as engine, all_asked_first(endless):
        for name in "abc":
            look = look_of(name)

            def listener(word, name=name):
                order.append(name)

            engine.submit(asked(endless, look, max_new_tokens=80), listener)
            engine.submit(asked(endless, max_new_tokens=80), listener=lambda word: order.append("base"))
    turns = [name for name, before in zip(order, ["", *order], strict=False) if name != before]
    assert set(turns[:4]) == {"a", "b", "c", "base"}
    assert len(turns) > 12  # 4 looks, 5 turns each


def test_who_comes_during_a_turn_is_next(endless) -> None:
    """Before the look that has just had its turn, however few were waiting when that began."""
    endless.apart = {"a"}
    order: list[str] = []
    with Engine(endless) as engine:

        def listener(word):
            if not order:  # in the engine's thread, so in the first turn of a
                engine.submit(asked(endless, max_new_tokens=80), listener=lambda word: order.append("base"))
            order.append("a")

        engine.submit(asked(endless, look_of("a"), max_new_tokens=80), listener)
        until(lambda: "base" in order)
    assert 0 < order.index("base") <= 16  # steps a turn


def test_at_most_so_many_rows(endless) -> None:
    with Engine(endless, max_batch=3) as engine:
        endless.entered.clear()
        with all_asked_first(endless):
            answers = [engine.ask(asked(endless, max_new_tokens=6, text=f"{n}?")) for n in range(9)]
        assert [end_of(answer).reason for answer in answers] == ["length"] * 9
    assert max(map(len, endless.entered)) == 3


def test_at_most_so_many_slots(endless) -> None:
    """20 slots hold two rows of 10, but not three; a request too long for them is written alone."""
    with Engine(endless, max_slots=20) as engine:
        endless.entered.clear()
        with all_asked_first(endless):
            short = [engine.ask(Request((5, 6, 7 + n), BASE, Options(max_new_tokens=7))) for n in range(6)]
            long = engine.ask(Request((5, 6, 7), BASE, Options(max_new_tokens=30)))
            more = engine.ask(Request((5, 6, 8), BASE, Options(max_new_tokens=7)))
        assert [end_of(answer).completion_tokens for answer in (*short, long, more)] == [7] * 6 + [30, 7]
    assert max(map(len, endless.entered)) == 2


def test_others_may_use_the_model_meanwhile(endless) -> None:
    """Somebody else switches and chats while the engine works; neither sees the other's persona."""
    expected = {}
    for name in "ab":
        with endless.persona(name):
            expected[name] = endless.chat(QUESTION, max_new_tokens=8)
    base = endless.chat(QUESTION, max_new_tokens=8)
    endless.apart = {"b"}
    with Engine(endless) as engine:
        answers = [engine.ask(asked(endless, look_of("ab"[n % 2]), max_new_tokens=8)) for n in range(12)]
        busy = engine.ask(asked(endless, max_new_tokens=400))
        for _ in range(4):
            with endless.persona("a"):
                assert endless.chat(QUESTION, max_new_tokens=8) == expected["a"]
        assert endless.chat(QUESTION, max_new_tokens=8) == base
        texts = [text_of(answer).strip() for answer in answers]
        busy.close()
    assert texts == [expected["ab"[n % 2]] for n in range(12)]


def test_from_many_threads(actor) -> None:
    expected = {}
    for name in "abc":
        with actor.persona(name):
            expected[name] = actor.chat(QUESTION, max_new_tokens=6)
    found: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    with Engine(actor) as engine:

        def client(name: str) -> None:
            for _ in range(4):
                found.put((name, text_of(engine.ask(asked(actor, look_of(name), max_new_tokens=6))).strip()))

        threads = [threading.Thread(target=client, args=("abc"[n % 3],)) for n in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert engine.stats().outcomes["length"] + engine.stats().outcomes["stop"] == 36
    assert all(text == expected[name] for name, text in (found.get() for _ in range(36)))


# ------------------------------------------------------------------- prefixes


def test_a_prompt_read_before_is_not_read_again(endless) -> None:
    request = asked(endless, look_of("a"), max_new_tokens=5)
    with Engine(endless) as engine:
        first, again = (list(engine.ask(request)) for _ in range(2))
        assert text_of(iter(first)) == text_of(iter(again))
        assert first[-1].reused_tokens == 0
        assert again[-1].reused_tokens == len(request.tokens) - 1
        for look in (BASE, look_of("b"), look_of("a", 0.5), look_of({"a": 1.0, "b": 1.0})):
            other = asked(endless, look, max_new_tokens=5)
            assert end_of(engine.ask(other)).reused_tokens == 0
    stats = engine.stats()  # closed: a row that has just ended may still be on its way into the store
    assert (stats.prefix_hits, stats.reused_tokens) == (1, len(request.tokens) - 1)
    assert stats.prompt_tokens == 5 * len(request.tokens) + 1
    assert stats.kept_tokens >= 5 * len(request.tokens)


def test_a_new_persona_of_an_old_name_reads_for_itself(endless, make_subnetwork) -> None:
    request = asked(endless, look_of("a"), max_new_tokens=12)
    with Engine(endless) as engine:
        before = text_of(engine.ask(request))
        endless.remove_persona("a")
        endless.add_personas(make_subnetwork(endless.truth, "a", 0.3, seed=9))
        words = list(engine.ask(request))
        assert words[-1].reused_tokens == 0
        again = list(engine.ask(request))
        assert again[-1].reused_tokens == len(request.tokens) - 1
    endless.set_persona("a")
    assert text_of(iter(words)).strip() == text_of(iter(again)).strip() == endless.chat(QUESTION, max_new_tokens=12)
    assert text_of(iter(words)) != before


def test_no_prefixes_where_none_are_wanted(endless) -> None:
    request = asked(endless, max_new_tokens=3)
    with Engine(endless, prefix_tokens=0) as engine:
        assert [end_of(engine.ask(request)).reused_tokens for _ in range(2)] == [0, 0]
        assert engine.stats().kept_tokens == 0


# ----------------------------------------------------------------- cancelling


def test_a_cancelled_request_frees_its_row_before_the_next_step(endless) -> None:
    gone, stays = Hearing(), Hearing()
    with Engine(endless) as engine:
        other = engine.submit(Request((5, 6, 7), BASE, LONG), stays)
        ticket = engine.submit(Request((5, 6, 8), look_of("a"), LONG), gone)
        until(lambda: len(gone.words) > 3)
        ticket.cancel()
        assert gone.last().reason == "cancelled"
        written = len(endless.entered)
        until(lambda: len(endless.entered) > written + 3)
        other.cancel()
        assert stays.last().reason == "cancelled"
    assert all(look_of("a") not in looks for looks in endless.entered[written:])
    assert gone.last().completion_tokens < LONG.max_new_tokens
    ticket.cancel()  # nothing left to cancel


def test_a_request_cancelled_in_the_queue_is_never_read(endless) -> None:
    waiting = Hearing()
    with Engine(endless, max_batch=1) as engine:
        running = engine.ask(Request((5, 6, 7), BASE, LONG))
        next(running)
        with all_asked_first(endless):
            ticket = engine.submit(Request((5, 6, 8), look_of("a")), waiting)
            ticket.cancel()
        end = waiting.last()
        running.close()
    assert (end.reason, end.completion_tokens, end.first_token) == ("cancelled", 0, None)
    assert not any(look_of("a") in looks for looks in endless.entered)


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("closed", [True, False])
def test_an_iterator_that_is_dropped_or_closed_cancels(endless, begun, closed) -> None:
    with Engine(endless) as engine:
        answer = engine.ask(Request((5, 6, 7), BASE, LONG))
        if begun:
            assert isinstance(next(answer), Piece)
        if closed:
            answer.close()
        del answer
        gc.collect()
        until(lambda: engine.stats().outcomes["cancelled"])
        assert engine.stats().outcomes["cancelled"] == 1


# ------------------------------------------------------------------- failures


def test_a_forward_that_raises_reaches_its_batch_and_the_engine_goes_on(endless, caplog) -> None:
    endless.apart = {"c"}
    mixed, apart = Hearing(), Hearing()
    with Engine(endless) as engine:
        ticket = engine.submit(Request((5, 6, 7), look_of("a"), LONG), mixed)
        engine.submit(Request((5, 6, 7), look_of("c"), LONG), apart)
        until(lambda: mixed.words and apart.words)

        def broken(*_):
            if endless.active:
                raise MemoryError("no room")

        handle = endless.model.register_forward_pre_hook(broken)
        assert isinstance(apart.last(), MemoryError)
        handle.remove()
        assert end_of(engine.ask(asked(endless, look_of("c"), max_new_tokens=4))).reason == "length"
        ticket.cancel()
        assert mixed.last().reason == "cancelled"
        assert engine.stats().failures == 1
    assert endless.held.total() == 0


def test_the_exception_is_raised_at_who_asks(endless, caplog) -> None:
    with Engine(endless) as engine:
        handle = endless.model.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(engine.ask(asked(endless)))
        handle.remove()


def test_a_persona_that_cannot_be_put_on(endless, monkeypatch, caplog) -> None:
    endless.apart = {"c"}
    with Engine(endless) as engine:
        monkeypatch.setattr(endless, "persona", lambda persona: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(engine.ask(asked(endless, look_of("c"))))
        monkeypatch.undo()
        assert end_of(engine.ask(asked(endless, look_of("c"), max_new_tokens=2))).reason in ("length", "stop")
    assert endless.held.total() == 0


def test_a_listener_that_raises_loses_only_its_own_request(endless, caplog) -> None:
    heard = []

    def listener(word: object) -> None:
        heard.append(word)
        raise ValueError("a client that is gone")

    with Engine(endless) as engine:
        engine.submit(Request((5, 6, 7), look_of("a"), LONG), listener)
        assert end_of(engine.ask(Request((5, 6, 8), look_of("a"), Options(max_new_tokens=9)))).reason == "length"
        assert engine.stats().outcomes["lost"] == 1
    assert len(heard) == 1
    assert endless.held.total() == 0


def test_logits_that_are_no_numbers_stay_in_their_row(endless) -> None:
    """A persona whose weights blow up costs its own answers only, also of those whose rows come after it."""
    expected = {}
    with endless.persona("a"):
        expected["a"] = endless.chat(QUESTION, max_new_tokens=25)
    with Engine(endless) as engine:
        bad = Hearing()
        engine.submit(asked(endless, look_of("b", 1e38), temperature=1.0, seed=1), bad)
        texts = [text_of(engine.ask(asked(endless, look_of("a"), max_new_tokens=25))).strip() for _ in range(3)]
        assert isinstance(bad.last(), RuntimeError)
    assert texts == [expected["a"]] * 3


def test_a_look_that_cannot_be_judged_fails_alone(endless, monkeypatch) -> None:
    monkeypatch.setattr(endless, "mixable", lambda look: 1 / 0)
    with Engine(endless) as engine:
        with pytest.raises(ZeroDivisionError):
            list(engine.ask(asked(endless, look_of("a"))))
        assert end_of(engine.ask(asked(endless, max_new_tokens=2))).reason == "length"
        assert engine.stats().outcomes["failed"] == 1


def test_its_own_failure_is_not_silent(endless, monkeypatch, caplog) -> None:
    """Whatever goes wrong inside, every request hears a last word, and the engine goes on."""
    with Engine(endless) as engine:
        monkeypatch.setattr(Engine, "_fits", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(engine.ask(asked(endless)))
        monkeypatch.undo()
        assert end_of(engine.ask(asked(endless, max_new_tokens=2))).reason == "length"
    assert "the engine failed" in caplog.text
    assert endless.held.total() == 0


# ---------------------------------------------------------------------- pins


def test_personas_are_held_from_the_queue_to_the_last_word(endless) -> None:
    look, other = look_of("a"), look_of({"b": 0.5, "c": 0.5})
    heard = Hearing()
    with Engine(endless, max_batch=1) as engine:
        running = engine.ask(Request((5, 6, 7), look, LONG))
        next(running)
        engine.submit(Request((5, 6, 8), other, Options(max_new_tokens=2)), heard)
        until(lambda: endless.held[other])
        assert endless.held[look] == 1
        with pytest.raises(PersonaInUseError, match="'b' is pinned"):
            endless.remove_persona("b")
        running.close()
        heard.last()
        assert endless.held.total() == 0
        endless.remove_persona("b")


# -------------------------------------------------------------- queue, closing


def test_a_full_queue_refuses(endless) -> None:
    with Engine(endless, max_batch=1, max_queue=2) as engine:
        running = engine.ask(Request((5, 6, 7), BASE, LONG))
        next(running)
        waiting = [engine.ask(Request((5, 6, 8), BASE, Options(max_new_tokens=2))) for _ in range(2)]
        assert engine.stats().queued == 2
        with pytest.raises(BusyError, match="2 requests are waiting"):
            engine.ask(Request((5, 6, 8), look_of("a")))
        assert endless.held[look_of("a")] == 0
        running.close()
        assert [end_of(each).reason for each in waiting] == ["length", "length"]
        assert end_of(engine.ask(Request((5, 6, 8), BASE, Options(max_new_tokens=2)))).reason == "length"
        assert engine.stats().accepted == 4


@pytest.mark.parametrize("drain", [True, False])
def test_closing_answers_or_cancels_what_there_is(endless, drain) -> None:
    engine = Engine(endless, max_batch=1)
    hearings = [Hearing(), Hearing()]
    for number, each in enumerate(hearings):
        engine.submit(Request((5, 6, 7 + number), BASE, Options(max_new_tokens=60) if drain else LONG), each)
    until(lambda: hearings[0].words)
    engine.close(drain=drain)
    assert [each.last().reason for each in hearings] == (["length"] * 2 if drain else ["cancelled"] * 2)
    with pytest.raises(BusyError, match="shutting down"):
        engine.submit(Request((5,)), Hearing())
    engine.close()
    assert not any(thread.name == "personae-engine" and thread.is_alive() for thread in [engine._thread])


def test_closing_with_a_time_limit_cancels_the_rest(endless) -> None:
    engine, heard = Engine(endless), Hearing()
    engine.submit(Request((5, 6, 7), BASE, LONG), heard)
    until(lambda: heard.words)
    engine.close(timeout=0)
    assert heard.last().reason == "cancelled"


def test_a_second_close_cancels_what_the_first_waits_for(endless) -> None:
    engine, heard = Engine(endless), Hearing()
    engine.submit(Request((5, 6, 7), BASE, LONG), heard)
    until(lambda: heard.words)
    first = threading.Thread(target=engine.close)
    first.start()
    engine.close(drain=False)
    first.join()
    assert heard.last().reason == "cancelled"


def test_a_listener_may_close_it(endless) -> None:
    engine, heard = Engine(endless), Hearing()

    def listener(word: object) -> None:
        engine.close(drain=False)
        heard(word)

    engine.submit(Request((5, 6, 7), BASE, LONG), listener)
    assert heard.last().reason == "cancelled"
    engine._thread.join(30)
    assert not engine._thread.is_alive()


def test_an_exception_in_the_block_cancels(endless) -> None:
    heard = Hearing()

    def application() -> None:
        with Engine(endless) as engine:
            engine.submit(Request((5, 6, 7), BASE, LONG), heard)
            raise KeyError("its own")

    with pytest.raises(KeyError):
        application()
    assert heard.last().reason == "cancelled"


def test_an_idle_engine_sleeps(endless, monkeypatch) -> None:
    rounds = []
    original = Engine._take_in
    monkeypatch.setattr(Engine, "_take_in", lambda engine: (rounds.append(1), original(engine))[1])
    with Engine(endless) as engine:
        assert end_of(engine.ask(Request((5, 6, 7), BASE, Options(max_new_tokens=2)))).reason == "length"
        until(lambda: engine._changed._waiters)  # it sleeps
        before = len(rounds)
        time.sleep(0.2)
        assert len(rounds) == before


# --------------------------------------------------------------------- refused


@pytest.mark.parametrize("limit", ["max_batch", "max_queue", "max_slots", "prefill_tokens"])
def test_limits_out_of_range(actor, limit) -> None:
    with pytest.raises(OptionError, match=f"{limit} is 0"):
        Engine(actor, **{limit: 0})
    with pytest.raises(OptionError, match="prefix_tokens is -1"):
        Engine(actor, prefix_tokens=-1)


def test_requests_that_the_model_cannot_answer(actor) -> None:
    vocabulary = actor.model.config.vocab_size
    with Engine(actor) as engine:
        for tokens, message in (((1, -1), "token -1"), ((vocabulary,), f"token {vocabulary}")):
            with pytest.raises(OptionError, match=message):
                engine.submit(Request(tokens), Hearing())
        with pytest.raises(OptionError, match="4000 tokens and an answer of 200 do not fit the 4096"):
            engine.submit(Request((5,) * 4000, BASE, Options(max_new_tokens=200)), Hearing())
        with pytest.raises(UnknownPersonaError, match="no persona 'nobody'"):
            engine.submit(Request((5,), look_of("nobody")), Hearing())
        assert engine.stats().accepted == 0
    assert actor.held.total() == 0


def test_actors_that_cannot_be_served(actor, tiny_model) -> None:
    with pytest.raises(OptionError, match="without a tokenizer"):
        Engine(OneByOne(actor.model))
    actor.model.generation_config.no_repeat_ngram_size = 2
    with pytest.raises(ModelError, match="no_repeat_ngram_size"):
        Engine(actor)


def test_not_while_a_persona_is_worn(actor, monkeypatch) -> None:
    def refuse(looks: object) -> None:
        raise PersonaInUseError("take it off first")

    monkeypatch.setattr(actor, "rows", refuse)
    with pytest.raises(PersonaInUseError, match="take it off"):
        Engine(actor)


def test_rows_are_no_longer_than_rotary_frequencies_are_steady(tiny_model) -> None:
    """With 'longrope' the longest row of a batch decides about the positions of all others beyond a length."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64, **factors}
    model, tokenizer = tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=64)
    with Engine(OneByOne(model, tokenizer)) as engine:
        assert end_of(engine.ask(Request((5,) * 60, BASE, Options(max_new_tokens=4)))).completion_tokens <= 4
        with pytest.raises(OptionError, match="do not fit the 64"):
            engine.submit(Request((5,) * 60, BASE, Options(max_new_tokens=5)), Hearing())
