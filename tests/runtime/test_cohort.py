from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from personae.runtime.answer import Answer, Ending
from personae.runtime.cohort import Cohort, together
from personae.runtime.counts import Counts
from personae.runtime.generation import Options
from personae.runtime.prefixes import Prefixes
from personae.runtime.requests import End, Piece, Request

lengths_of_newcomers = st.lists(st.integers(1, 400), min_size=1, max_size=12)


@given(lengths_of_newcomers, st.integers(1, 600))
def test_newcomers_that_are_read_together(lengths: list[int], budget: int) -> None:
    chosen = together(lengths, budget)
    picked = [lengths[number] for number in chosen]
    assert chosen[0] == 0  # who came first is never passed over
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 1 or len(chosen) * max(picked) <= budget
    assert max(picked) <= 1.5 * min(picked) + 8


def test_near_in_length_and_in_order() -> None:
    assert together([10, 100, 12, 9], 1000) == [0, 2, 3]
    assert together([10, 10, 10, 10], 30) == [0, 1, 2]
    assert together([500, 10], 30) == [0]


class Scene:
    """A cohort of the base model, and what happens to it in order."""

    def __init__(self, model, tokenizer, prefix_tokens: int = 0) -> None:
        self.ending, self.tokenizer, self.counts = Ending(model, tokenizer), tokenizer, Counts()
        self.events: list[object] = []
        self.prefixes = Prefixes(prefix_tokens)
        self.cohort = Cohort(model, tokenizer, self.prefixes, 1.0, self.counts, self.wearing)

    @contextlib.contextmanager
    def wearing(self, looks):
        self.events.append(len(looks))
        yield

    def come(self, name: str, prompt, **options) -> Answer:
        answer = Answer(
            Request(tuple(prompt), (), Options(**options)), lambda word: self.events.append((name, word)),
            lambda answer: None, self.tokenizer, self.ending,
        )  # fmt: skip
        self.cohort.newcomers.append(answer)
        return answer

    def run(self, budget: int = 64) -> None:
        for _ in range(500):
            self.cohort.step(budget)
            self.cohort.drop_over()
            if not self.cohort.answers:
                return
        pytest.fail("the answers do not end")

    def ends(self) -> list[str]:
        return [event[0] for event in self.events if isinstance(event, tuple) and isinstance(event[1], End)]


@pytest.fixture
def scene(tiny_model) -> Scene:
    return Scene(*tiny_model("llama"))


def unending(scene: Scene) -> None:
    """No token ends an answer any more, so that answers are as long as they may be."""
    scene.ending.tokens = frozenset()


def test_a_long_prompt_holds_up_nobody(scene) -> None:
    """It is read in pieces, between which the others go on and short newcomers pass."""
    unending(scene)
    first = scene.come("first", [5, 6, 7], max_new_tokens=60)
    scene.cohort.step(16)
    scene.come("long", range(4, 304), max_new_tokens=2)
    scene.cohort.step(16)
    scene.come("short", [8, 9], max_new_tokens=2)
    written = []
    while "long" not in scene.ends():
        before = len(first.tokens)
        scene.cohort.step(16)
        written.append(len(first.tokens) - before)
    assert set(written) == {1}
    assert len(written) >= 300 // 16
    assert scene.ends()[0] == "short"


def test_a_long_prompt_is_not_held_up_by_short_ones(scene) -> None:
    unending(scene)
    scene.come("long", range(4, 100), max_new_tokens=1)
    for number in range(40):
        scene.come(f"short {number}", [number + 4] * 5, max_new_tokens=1)
        scene.cohort.step(16)
    assert "long" in scene.ends()


def test_no_step_reads_more_than_its_budget(tiny_model) -> None:
    model, tokenizer = tiny_model("llama")
    scene, read = Scene(model, tokenizer), []
    handle = model.register_forward_pre_hook(
        lambda module, arguments, options: read.append(options["input_ids"].numel()), with_kwargs=True
    )
    for number in range(12):
        scene.come(str(number), range(4, 10 + 9 * number), max_new_tokens=1)
    steps = []
    try:
        while scene.cohort.answers:
            scene.cohort.step(32)
            steps.append(sum(read))
            read.clear()
    finally:
        handle.remove()
    assert max(steps) == 32
    assert sum(steps) < 1.3 * scene.counts.prompt_tokens  # padding
    assert scene.counts.prompt_tokens == sum(6 + 9 * number for number in range(12))


def test_rows_of_answers_that_are_over_are_not_computed(scene) -> None:
    unending(scene)
    answers = [scene.come(str(number), [4 + number, 5], max_new_tokens=30) for number in range(4)]
    for _ in range(3):
        scene.cohort.step(64)
    answers[1].end("cancelled")
    answers[3].fail(ValueError())
    scene.events.clear()
    scene.cohort.step(64)
    assert [event for event in scene.events if isinstance(event, int)] == [2]


def test_answers_cancelled_before_while_and_after_their_prompt_is_read(scene) -> None:
    unending(scene)
    gone = scene.come("gone", range(4, 104), max_new_tokens=30)
    stays = scene.come("stays", range(5, 105), max_new_tokens=30)
    scene.cohort.step(400)  # both at once, to the end
    reading = scene.come("reading", range(6, 106), max_new_tokens=30)
    scene.cohort.step(20)
    waiting = scene.come("waiting", range(7, 107), max_new_tokens=30)
    for answer in (gone, reading, waiting):
        answer.end("cancelled")
    scene.events.clear()
    scene.run(20)
    assert scene.ends() == ["stays"]
    assert len(stays.tokens) == 30
    assert {event for event in scene.events if isinstance(event, int)} == {1}


def written(scene: Scene, name: str) -> str:
    words = [event[1] for event in scene.events if isinstance(event, tuple) and event[0] == name]
    return "".join(word.text for word in words if isinstance(word, Piece))


def test_reuse_changes_how_much_is_read_and_not_what_is_written(tiny_model) -> None:
    """Newcomers with different beginnings kept, read together: the one with less kept decides how many columns."""
    model, tokenizer = tiny_model("llama")
    prompts = {"a": [*range(10, 40), 7, 8], "b": [*range(10, 34), 3], "c": [*range(50, 53), 9]}
    fresh = Scene(model, tokenizer)
    for name, prompt in prompts.items():
        fresh.come(name, prompt, max_new_tokens=12)
    fresh.run()
    reusing = Scene(model, tokenizer, prefix_tokens=1000)
    reusing.come("before", range(10, 40), max_new_tokens=1)
    reusing.run()
    before = reusing.counts.prompt_tokens
    answers = {name: reusing.come(name, prompt, max_new_tokens=12) for name, prompt in prompts.items()}
    reusing.run()
    assert {name: written(fresh, name) for name in prompts} == {name: written(reusing, name) for name in prompts}
    assert {name: answer.reused for name, answer in answers.items()} == {"a": 28, "b": 21, "c": 0}
    assert reusing.counts.prompt_tokens - before == 12
    assert (reusing.counts.prefix_hits, reusing.counts.reused_tokens) == (2, 49)


def test_prompt_and_answer_are_kept_for_the_next_turn(tiny_model) -> None:
    model, tokenizer = tiny_model("llama")
    scene = Scene(model, tokenizer, prefix_tokens=1000)
    unending(scene)
    first = scene.come("first", range(10, 30), max_new_tokens=9)
    scene.run()
    again = scene.come("again", [*range(10, 30), *first.tokens, 5, 6], max_new_tokens=1)
    scene.run()
    assert again.reused == 28  # the last token written was never read


def test_a_forward_that_fails_takes_its_batch_and_nobody_else(tiny_model, caplog) -> None:
    model, tokenizer = tiny_model("llama")
    scene = Scene(model, tokenizer)
    unending(scene)
    running = scene.come("running", [4, 5], max_new_tokens=20)
    scene.cohort.step(64)
    wrong = scene.come("wrong", range(4, 40), max_new_tokens=20)

    def full(module, arguments, options):
        if options["input_ids"].shape[1] > 1:
            raise MemoryError("no room")

    handle = model.register_forward_pre_hook(full, with_kwargs=True)
    scene.cohort.step(64)
    handle.remove()
    assert wrong.outcome == "failed"
    assert not running.over
    scene.run()
    assert running.outcome == "length"
    assert scene.counts.failures == 1
    assert "a forward failed" in caplog.text


@pytest.mark.parametrize("layer", [0, 2])
def test_layers_that_a_failure_left_uneven_are_never_used_again(tiny_model, layer) -> None:
    """A decoding step breaks off in the midst of the model: its rows are gone, those that come after are right."""
    model, tokenizer = tiny_model("llama")
    expected = Scene(model, tokenizer)
    expected.come("after", range(4, 20), max_new_tokens=10)
    expected.run()
    scene = Scene(model, tokenizer, prefix_tokens=100)
    unending(scene)
    broken = [scene.come(str(number), [4 + number], max_new_tokens=20) for number in range(2)]
    scene.cohort.step(64)
    handle = model.model.layers[layer].register_forward_hook(lambda *_: 1 / 0)
    scene.cohort.step(64)
    handle.remove()
    assert [answer.outcome for answer in broken] == ["failed", "failed"]
    scene.ending.tokens = expected.ending.tokens
    scene.come("after", range(4, 20), max_new_tokens=10)
    scene.run()
    assert written(scene, "after") == written(expected, "after")


def test_rows_that_cannot_be_joined_are_lost_on_both_sides(scene, monkeypatch) -> None:
    from personae.runtime.kv import RowsLayer

    unending(scene)
    running = scene.come("running", [4, 5], max_new_tokens=20)
    scene.cohort.step(64)
    joining = scene.come("joining", [6, 7], max_new_tokens=20)
    original, calls = RowsLayer.join, []

    def second_layer_fails(layer, other):
        calls.append(layer)
        if len(calls) == 2:
            raise MemoryError
        original(layer, other)

    monkeypatch.setattr(RowsLayer, "join", second_layer_fails)
    scene.cohort.step(64)
    assert (running.outcome, joining.outcome) == ("failed", "failed")
    monkeypatch.undo()
    after = scene.come("after", [8], max_new_tokens=4)
    scene.run()
    assert after.outcome == "length"


def test_no_memory_for_a_prefix_costs_no_answer(tiny_model, monkeypatch, caplog) -> None:
    from personae.runtime.kv import Rows

    def full(rows, row):
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(Rows, "copied", full)
    scene = Scene(*tiny_model("llama"), prefix_tokens=100)
    answer = scene.come("a", [4, 5], max_new_tokens=3)
    scene.run()
    assert answer.outcome in ("length", "stop")
    assert "no memory to keep a prefix" in caplog.text


def test_the_exception_does_not_hold_the_cache(scene, tiny_model) -> None:
    import gc
    import weakref

    unending(scene)
    answer = scene.come("a", [4, 5], max_new_tokens=20)
    scene.cohort.step(64)
    rows = weakref.ref(scene.cohort._rows)
    assert rows() is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "arange", lambda *_: 1 / 0)
        scene.cohort.step(64)
    gc.collect()
    assert answer.outcome == "failed"
    assert any(isinstance(event, tuple) and isinstance(event[1], ZeroDivisionError) for event in scene.events)
    assert rows() is None
