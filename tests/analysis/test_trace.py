from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from discovery_data import bits, same_bits, small_contrast
from personae.analysis.trace import Tracer, pieces, trace
from personae.analysis.trace_flow import exclusive
from personae.analysis.trace_verdict import gains, relative, verdict
from personae.discovery import encode_contrast
from personae.errors import (
    DataError,
    MaskMismatchError,
    ModelError,
    OptionError,
    PersonaInUseError,
    UnknownPersonaError,
)
from personae.models import Encoded, encode, find_targets
from personae.runtime import PersonaModel
from personae.subnetwork import Artefact
from trace_data import ANSWER, QUESTION, random_artefact, slow_log_p

Made = tuple[Any, Any, Artefact]


@pytest.fixture
def made(tiny_model: Callable[..., Any]) -> Made:
    """A tiny Llama and the personas lead and follow."""
    model, tokenizer = tiny_model("llama")
    return model, tokenizer, random_artefact(model, "lead", "follow")


@pytest.mark.parametrize("question", [QUESTION, None], ids=["answer", "plain"])
@pytest.mark.parametrize("template", [True, False], ids=["template", "no template"])
def test_log_probabilities_are_those_of_a_model_with_zeros_in_it(
    tiny_model: Callable[..., Any], question: str | None, template: bool
) -> None:
    model, tokenizer = tiny_model("llama", template=template)
    artefact = random_artefact(model, "a", "b", "c", share=0.1)
    found = trace(model, tokenizer, artefact, ANSWER, question=question)
    plain = Encoded((), tuple(tokenizer(ANSWER)["input_ids"]))
    encoded = encode(tokenizer, question, ANSWER) if question is not None else plain
    assert found.personas == ("a", "b", "c")
    np.testing.assert_allclose(found.base, slow_log_p(model, {}, encoded), atol=1e-4)
    for p, name in enumerate(found.personas):
        np.testing.assert_allclose(found.worn[p], slow_log_p(model, artefact[name].masks, encoded), atol=1e-4)
    assert found.gain.shape == (3, len(found.tokens)) == found.worn.shape
    assert np.abs(found.gain).max() > 0.1
    assert found.verdict == verdict(found.personas, relative(gains(found.base, found.worn)))
    assert found.ids == encoded.answer[len(encoded.answer) - len(found.base) :]
    whole = tokenizer.decode(encoded.answer, skip_special_tokens=False)
    assert found.opening + "".join(found.tokens) == whole
    assert bool(found.opening) == (question is None), "of an answer every token is scored"


def test_shares_are_read_where_the_token_is_predicted(made: Made) -> None:
    """A dense product with the inputs at the position before each token, gathered by a forward of our own."""
    model, tokenizer, artefact = made
    found = Tracer(model, tokenizer, artefact).trace(ANSWER, question=QUESTION)
    encoded = encode(tokenizer, QUESTION, ANSWER)
    alone = exclusive([artefact[name].masks for name in artefact])
    inputs: dict[str, torch.Tensor] = {}
    targets = find_targets(model)
    handles = [
        t.module.register_forward_hook(lambda m, a, o, name=t.name: inputs.__setitem__(name, a[0][0].detach()))
        for t in targets
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([encoded.prompt + encoded.answer]), use_cache=False)
    for handle in handles:
        handle.remove()
    first = len(encoded.prompt) - 1
    for at, layer in enumerate(found.layers):
        lost, whole = np.zeros((2, len(found.tokens))), np.zeros(len(found.tokens))
        for t in (t for t in targets if (t.block, t.kind) == layer):
            x = inputs[t.name][first:-1]
            whole += (x @ t.weight.T).square().sum(1).numpy()
            for p, own in enumerate(alone):
                if t.name in own:
                    d = torch.from_numpy(own[t.name].dropped_bool())
                    lost[p] += (x @ (t.weight * d).T).square().sum(1).numpy()
        np.testing.assert_allclose(found.share[:, at], np.sqrt(lost / whole), rtol=1e-3)
        np.testing.assert_allclose(found.overall[:, at], np.sqrt(lost.sum(1) / whole.sum()), rtol=1e-3)


def test_the_end_of_the_turn_is_traced_only_of_an_answer_that_came_to_it(made: Made) -> None:
    tracer = Tracer(*made, flow=False)
    closed, cut = (tracer.trace(ANSWER, question=QUESTION, closed=closed) for closed in (True, False))
    assert closed.tokens[:-1] == cut.tokens
    assert closed.tokens[-1] == "<|im_end|>"
    np.testing.assert_allclose(closed.base[:-1], cut.base, atol=1e-5)
    assert closed.share is None
    assert closed.overall is None


def test_a_system_prompt_changes_what_is_likely(made: Made) -> None:
    tracer = Tracer(*made, flow=False)
    bare, led = (tracer.trace(ANSWER, question=QUESTION, system=system) for system in (None, "Be bold."))
    assert bare.tokens == led.tokens
    assert not np.allclose(bare.base, led.base)


def test_only_some_personas_are_compared_in_the_order_of_the_file(made: Made) -> None:
    model, tokenizer, _ = made
    artefact = random_artefact(model, "a", "b", "c")
    tracer = Tracer(model, tokenizer, artefact, personas=["c", "a"])
    found = tracer.trace(ANSWER, question=QUESTION)
    assert found.personas == tracer.personas == ("a", "c")
    alone = Tracer(model, tokenizer, artefact, personas=["b"]).trace(ANSWER, question=QUESTION)
    assert {alone.verdict.persona, alone.verdict.second} == {"b", None}
    np.testing.assert_array_equal(alone.relative, alone.gain)
    # What counts as 'alone' depends on who is compared.
    all_ = Tracer(model, tokenizer, artefact).trace(ANSWER, question=QUESTION)
    np.testing.assert_array_equal(alone.worn[0], all_.worn[1])
    assert not np.allclose(alone.share[0], all_.share[1], rtol=0.01)


def test_the_base_weights_are_back_bit_for_bit(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, artefact = made
    before = bits(model)
    tracer = Tracer(model, tokenizer, artefact)
    tracer.trace(ANSWER, question=QUESTION)
    assert same_bits(model, before)

    calls = []

    def broken(*_: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:  # the first persona is worn
            raise KeyboardInterrupt
        return torch.zeros(3)

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[Tracer.__module__], "score_sequences", broken)
        with pytest.raises(KeyboardInterrupt):
            tracer.trace(ANSWER, question=QUESTION)
    assert same_bits(model, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert tracer.trace(ANSWER, question=QUESTION).verdict.scores, "and the tracer still works"


def test_several_threads_do_not_read_each_others_personas(made: Made) -> None:
    tracer = Tracer(*made)
    texts = [f"{ANSWER} {n} times." for n in range(4)]
    alone = [tracer.trace(text, question=QUESTION) for text in texts]
    together: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda n=n: together.__setitem__(n, tracer.trace(texts[n], question=QUESTION)))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, expected in enumerate(alone):
        np.testing.assert_array_equal(together[n].base, expected.base)
        np.testing.assert_array_equal(together[n].worn, expected.worn)
        np.testing.assert_array_equal(together[n].squares.lost, expected.squares.lost)


def test_many_answers_are_read_as_each_alone_is(made: Made) -> None:
    model, tokenizer, artefact = made
    tracer = Tracer(model, tokenizer, artefact, flow=False)
    contrast = small_contrast(4)
    told: list[tuple[str, int]] = []

    def progress(title: str, total: int) -> Any:
        told.append((title, total))
        from personae.discovery import silent

        return silent(title, total)

    questions = encode_contrast(model, tokenizer, contrast).paired
    read = tracer.read(questions, progress=progress)
    assert told == [(f"reading answers as {name}", 4) for name in ("base", "lead", "follow")]
    for pair, answers in zip(contrast.pairs, read, strict=True):
        for text, (base, worn) in zip((pair.positive, pair.negative), answers, strict=True):
            single = tracer.trace(text, question=pair.prompt)
            np.testing.assert_allclose(base, single.base, atol=1e-4)
            np.testing.assert_allclose(worn, single.worn, atol=1e-4)


def test_calibration_makes_the_labelled_answers_even(made: Made) -> None:
    model, tokenizer, artefact = made
    tracer = Tracer(model, tokenizer, artefact, flow=False)
    contrast = small_contrast(5)
    offsets = tracer.calibrate(contrast)
    assert offsets[0] == pytest.approx(-offsets[1])
    said = [
        tracer.trace(text, question=pair.prompt, offsets=offsets).verdict
        for pair in contrast.pairs
        for text in (pair.positive, pair.negative)
    ]
    assert sum(v.persona == "lead" for v in said) == 5
    assert tracer.calibrate(contrast.swapped()) == pytest.approx(offsets, abs=1e-5), (
        "the order of the poles is not its business"
    )


def test_what_cannot_be_calibrated(made: Made) -> None:
    model, tokenizer, artefact = made
    with pytest.raises(OptionError, match="poles of 'lead-follow' are lead and follow"):
        Tracer(model, tokenizer, artefact, personas=["lead"]).calibrate(small_contrast(4))
    with pytest.raises(DataError, match="not paired"):
        Tracer(model, tokenizer, artefact).calibrate(small_contrast(4, paired=False))


def test_a_live_answer_is_that_of_the_persona(made: Made) -> None:
    model, tokenizer, artefact = made
    tracer = Tracer(model, tokenizer, artefact)
    actor = PersonaModel(model, tokenizer)
    actor.add_personas(artefact)
    expected = {None: actor.chat(QUESTION, max_new_tokens=8)}
    for name in artefact:
        with actor.persona(name):
            expected[name] = actor.chat(QUESTION, max_new_tokens=8)
    assert len(set(expected.values())) == 3
    for name, said in expected.items():
        assert tracer.answer(QUESTION, persona=name, max_new_tokens=8) == (said, False)
    with pytest.raises(UnknownPersonaError, match="lad"):
        tracer.answer(QUESTION, persona="lad")


def test_an_answer_that_ended_by_itself_is_closed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that was cut is not, though the white space that is stripped leaves fewer tokens than were written."""
    tracer = Tracer(*made, flow=False)
    said = [("Yes.", True), ("Yes. \n\n", False), ("", True)]

    def write(*given: Any) -> bool:
        text, ended = said.pop(0)
        given[4](text)
        return ended

    monkeypatch.setattr("personae.runtime.persona_model.write", write)
    assert tracer.answer(QUESTION, max_new_tokens=20) == ("Yes.", True)
    assert tracer.answer(QUESTION, max_new_tokens=20) == ("Yes.", False)
    with pytest.raises(DataError, match="answered without a word"):
        tracer.answer(QUESTION)


@pytest.mark.parametrize("question", [None, QUESTION])
def test_a_text_without_tokens_is_refused(made: Made, question: str | None) -> None:
    with pytest.raises(DataError, match="without tokens"):
        trace(*made, "", question=question)


def test_other_texts_that_cannot_be_traced(made: Made) -> None:
    model, tokenizer, artefact = made
    tracer = Tracer(model, tokenizer, artefact)
    with pytest.raises(DataError, match="one token has nothing that predicts it"):
        tracer.trace("a")
    assert len(tracer.trace("a", question=QUESTION).tokens) == 2
    with pytest.raises(DataError, match="does not fit the model's context of 512"):
        tracer.trace("words and words " * 400)
    with pytest.raises(DataError, match="does not fit the model's context of 512"):
        tracer.trace("words and words " * 400, question=QUESTION)
    with pytest.raises(OptionError, match="stands before a question"):
        tracer.trace(ANSWER, system="Be bold.")
    with pytest.raises(OptionError, match="as many names and offsets"):
        tracer.trace(ANSWER, offsets=(0.1,))


def test_what_no_tracer_is_made_of(made: Made, tiny_model: Callable[..., Any], tmp_path: Any) -> None:
    model, tokenizer, artefact = made
    with pytest.raises(UnknownPersonaError):
        Tracer(model, tokenizer, artefact, personas=["lad"])
    with pytest.raises(OptionError, match="no persona was chosen"):
        Tracer(model, tokenizer, artefact, personas=[])
    other, _ = tiny_model("llama", seed=1)
    with pytest.raises(MaskMismatchError, match="--allow-other-weights"):
        Tracer(other, tokenizer, artefact)
    with pytest.warns(UserWarning, match="other weights"):
        assert trace(other, tokenizer, artefact, ANSWER, allow_other_weights=True).tokens
    artefact.save(tmp_path / "a.persona")
    assert Tracer(model, tokenizer, tmp_path / "a.persona").personas == ("lead", "follow")


def test_a_worn_persona_is_not_taken_for_the_base_model(made: Made) -> None:
    model, tokenizer, artefact = made
    tracer = Tracer(model, tokenizer, artefact)
    actor = PersonaModel(model, tokenizer)
    actor.add_personas(artefact)
    with actor.persona("lead"):
        for attempt in (
            lambda: tracer.trace(ANSWER),
            lambda: tracer.calibrate(small_contrast(4)),
            lambda: Tracer(model, tokenizer, artefact),
        ):
            with pytest.raises(PersonaInUseError, match="needs the base weights"):
                attempt()


def test_numbers_that_overflow_are_an_error(made: Made) -> None:
    model, tokenizer, artefact = made
    tracer = Tracer(model, tokenizer, artefact, flow=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="no finite numbers"):
        tracer.trace(ANSWER, question=QUESTION)
    with pytest.raises(ModelError, match="no finite numbers"):
        tracer.calibrate(small_contrast(2))


def test_experts_are_traced_without_their_shares(tiny_model: Callable[..., Any]) -> None:
    model, tokenizer = tiny_model("mixtral")
    artefact = random_artefact(model, "a", "b")
    found = trace(model, tokenizer, artefact, ANSWER, question=QUESTION)
    (note,) = found.notes
    assert "lie in experts" in note
    encoded = encode(tokenizer, QUESTION, ANSWER)
    np.testing.assert_allclose(found.worn[0], slow_log_p(model, artefact["a"].masks, encoded), atol=1e-4)
    assert not trace(model, tokenizer, artefact, ANSWER, flow=False).notes


def test_bfloat16_is_read_too(tiny_model: Callable[..., Any]) -> None:
    model, tokenizer = tiny_model("llama", dtype=torch.bfloat16)
    found = trace(model, tokenizer, random_artefact(model, "a", "b"), ANSWER, question=QUESTION)
    assert np.isfinite(found.share).all()
    assert found.base.dtype == np.float64


@given(st.text(max_size=30))
@example("naïve 🙂🙂 日本 \ufffd\ufffd\ufffd x")
@settings(max_examples=60, deadline=None)
def test_pieces_are_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_a_character_of_several_tokens_stands_at_its_last_one(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("a🙂b", add_special_tokens=False)["input_ids"]
    assert len(ids) == 6
    assert pieces(tokenizer, ids) == ("a", "", "", "", "🙂", "b")
