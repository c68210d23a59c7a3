"""The role-play suite on tiny models: its readings against slow ones, resuming, limits, errors."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from discovery_data import bits, same_bits, small_generic
from personae.discovery import Choice, Settings
from personae.errors import DataError, ModelError, OptionError
from personae.evaluation.bootstrap import Difference, Estimate
from personae.evaluation.suites import SuiteContext, capability_text, roleplay, suite_to_dict, suite_to_markdown
from personae.evaluation.suites.embedding import Judge, judge_installed
from personae.evaluation.suites.roleplay_texts import plans, play_cast, rolebench_cast
from personae.models import encode, encode_prompt
from personae.personas import Sample

DATA = Path(os.environ.get("PERSONAE_DATA", Path(__file__).parents[4] / "shared" / "data"))
SMALL = Settings(method="directed", drop_share=0.01, cheap_share=0.6)
VOICES = {"Ann": "Aye, the sea is calm", "Bob": "Bread and more bread", "Cat Lee": "I count my gold"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Both sets in a few lines: three characters with a voice of their own."""
    folder = tmp_path / "data"
    bench = folder / roleplay.SETS["rolebench"][0]
    bench.parent.mkdir(parents=True)
    rows = [
        {"role": role, "question": f"{role}, what of {n}?", "generated": [f"{voice}, {n} times."], "type": "x"}
        for role, voice in VOICES.items()
        for n in range(30)
    ]
    bench.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    speeches = "".join(
        f"<SPEECH><SPEAKER>{role}</SPEAKER><LINE>{voice}, verse number {n}.</LINE></SPEECH>"
        for n in range(30)
        for role, voice in VOICES.items()
    )
    play = folder / roleplay.SETS["merchant"][0]
    play.parent.mkdir(parents=True)
    play.write_text(f"<PLAY><SCENE>{speeches}</SCENE></PLAY>", encoding="utf-8")
    return folder


@pytest.fixture
def context(tiny_model: Any, data: Path, tmp_path: Path) -> SuiteContext:
    model, tokenizer = tiny_model("llama")
    return SuiteContext(model, tokenizer, data, parts=tmp_path / "parts")


def play(context: SuiteContext, **options: Any) -> Any:
    given = {
        "sets": ["rolebench"], "settings": SMALL, "calibration_items": 6, "test_items": 4, "free_answers": 2,
        "generic": small_generic(), "judge": False,
    }  # fmt: skip
    return roleplay.run(context, **{**given, **options})


class _Letters:
    """A judge for tests: hidden states are one-hot letters, so the vector is the letters' frequencies."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 64 for c in text] or [0]}


class _OneHot:
    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        class Output:
            last_hidden_state = torch.eye(64)[input_ids]

        return Output()


def test_both_sets_and_every_figure(context: SuiteContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roleplay, "load_judge", lambda: Judge("letters", _OneHot(), _Letters()))
    before = bits(context.model)
    result = play(context, sets=("rolebench", "merchant"), judge=True)
    assert same_bits(context.model, before)
    names = {
        *("accuracy", "accuracy_centred", "accuracy_shuffled", "accuracy_p", "accuracy_words", "chance"),
        *("own_gain", "own_minus_others", "capability_loss"),
        *("similarity_base", "similarity_masked", "similarity_change"),
    }  # fmt: skip
    assert set(result.figures) == {f"{s}.{n}" for s in ("rolebench", "merchant") for n in names}
    assert isinstance(result.figures["merchant.accuracy"], Estimate)
    assert isinstance(result.figures["rolebench.similarity_change"], Difference)
    words = result.figures["rolebench.accuracy_words"]
    assert isinstance(words, Estimate)
    assert words.value == 1.0  # each has words of its own
    assert result.settings["judge"] == "letters"
    assert len(result.data) == 2
    assert [len(t.rows[0]) == len(t.columns) for t in result.tables] == [True] * 6
    assert json.loads(json.dumps(suite_to_dict(result)))["figures"]["rolebench.chance"] == pytest.approx(1 / 3)
    assert "Cat Lee" in suite_to_markdown(result)


def test_masks_lift_their_own_characters_lines(context: SuiteContext) -> None:
    """The planted case: voices differ in every word, so masks found on them must tell unseen lines apart."""
    result = play(context, settings=replace(SMALL, drop_share=0.03), calibration_items=15, test_items=8)
    gap, accuracy = result.figures["rolebench.own_minus_others"], result.figures["rolebench.accuracy_centred"]
    assert isinstance(gap, Difference)
    assert isinstance(accuracy, Estimate)
    assert gap.low > 0
    assert gap.p < 0.01
    assert accuracy.low > 1 / 3


def test_readings_equal_one_answer_at_a_time(context: SuiteContext) -> None:
    """Base log p a token and greedy answers by plain forwards; an answer is cut, and then has no end of turn."""
    long = Sample("What of it?", "bread " * 80)
    stage = roleplay._Stage(context, SMALL, small_generic())
    (found,) = stage.encoded([long])
    whole = encode(context.tokenizer, long.prompt, long.answer)
    assert found.answer == whole.answer[: roleplay.ANSWER_TOKENS]
    assert len(whole.answer) > roleplay.ANSWER_TOKENS
    made = plans(rolebench_cast(context.data / roleplay.SETS["rolebench"][0]), calibration=6, test=4)
    reading = roleplay._read(stage, "rolebench", made, 2)
    kept = json.loads(next(context.parts.glob("roleplay-rolebench-base*")).read_text())["made"]  # type: ignore[union-attr]
    samples = [s for p in made.values() for s in p.test]
    assert reading.gains.shape == (12, 3)
    assert reading.owner.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for sample, log_p in zip(samples, kept["log_p"], strict=True):
        text = encode(context.tokenizer, sample.prompt, sample.answer)
        ids = torch.tensor([text.prompt + text.answer])
        with torch.no_grad():
            logits = context.model(input_ids=ids).logits[0].double().log_softmax(-1)
        slow = [float(logits[len(text.prompt) + k - 1, t]) for k, t in enumerate(text.answer)]
        assert log_p == pytest.approx(np.mean(slow), abs=1e-4)
    end = context.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for role, plan in made.items():
        for sample, written in zip(plan.test[:2], reading.free[role][0], strict=True):
            ids_, new = encode_prompt(context.tokenizer, sample.prompt), []
            while len(new) < roleplay.ANSWER_TOKENS and end not in new:
                with torch.no_grad():
                    new.append(int(context.model(input_ids=torch.tensor([ids_ + new])).logits[0, -1].argmax()))
            body = new[: new.index(end)] if end in new else new
            assert written == context.tokenizer.decode(body, skip_special_tokens=True).strip()


def test_gains_are_those_of_the_masks_that_were_worn(context: SuiteContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that drops nothing leaves every reading as it was; real ones do not, and differ."""
    made = plans(rolebench_cast(context.data / roleplay.SETS["rolebench"][0]), calibration=6, test=4)

    def empty(*_: Any, **__: Any) -> list[Choice]:
        return [Choice({t.name: torch.zeros(t.shape, dtype=torch.bool) for t in context.targets}, {}, {})]

    with monkeypatch.context() as patched:
        patched.setattr(roleplay, "choose", empty)
        nothing = roleplay._read(roleplay._Stage(context, SMALL, small_generic()), "rolebench", made, 1)
    assert nothing.dropped == nothing.losses == [0, 0, 0]
    assert not nothing.gains.any()
    assert all(base == masked for base, masked in nothing.free.values())
    context.parts = None
    worn = roleplay._read(roleplay._Stage(context, SMALL, small_generic()), "rolebench", made, 1)
    assert worn.dropped == [round(0.01 * sum(t.size for t in context.targets))] * 3
    assert (np.abs(worn.gains).max(axis=0) > 1e-4).all()
    assert len({tuple(column) for column in worn.gains.T.tolist()}) == 3


def test_a_finished_part_is_not_made_again(context: SuiteContext, monkeypatch: pytest.MonkeyPatch) -> None:
    first = play(context)
    assert context.parts is not None
    assert len(list(context.parts.iterdir())) == 5  # base, three masks, the base capability

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("made again")

    with monkeypatch.context() as closed:
        for name in ("choose", "score_continuations", "greedy_answers", "capability"):
            closed.setattr(roleplay, name, fail)
        again = play(context)
        with pytest.raises(AssertionError, match="made again"):
            play(context, settings=replace(SMALL, drop_share=0.02))
        with pytest.raises(AssertionError, match="made again"):
            play(context, test_items=3)
    assert again.figures == first.figures
    next(context.parts.glob("*Bob*")).unlink()
    assert play(context).figures == first.figures  # one mask alone, the generic text read anew


def test_another_generic_text_is_another_part(context: SuiteContext) -> None:
    """How much of a text is read decides the budget and the price, so masks of another number are not taken over."""
    assert context.parts is not None
    play(context)
    few = replace(small_generic(), answers=1)
    assert few.sha256 == small_generic().sha256
    kept = len(list(context.parts.iterdir()))
    play(context, generic=few)
    assert len(list(context.parts.iterdir())) == kept + 4  # three masks and what base says of the other final text


def test_the_capability_loss_is_of_text_that_no_search_has_read(
    context: SuiteContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []

    def capability(model: Any, text: Any) -> Any:
        read.append({*text.plain, *text.chat})
        return roleplay.Capability(torch.ones(2, 2), torch.ones(2, 2))

    monkeypatch.setattr(roleplay, "capability", capability)
    generic = replace(small_generic(), answers=1)
    play(context, generic=generic)
    searched = generic.held_out.read
    assert read
    assert not any(
        texts & {*searched.plain, *searched.chat, *generic.cheap.plain, *generic.cheap.chat} for texts in read
    )


def test_a_free_answer_ends_with_the_text_too(context: SuiteContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may close an answer with the end-of-text token although the template has its own end of turn."""
    end, after = context.tokenizer.eos_token_id, context.tokenizer(" book")["input_ids"]

    def generate(model: Any, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
        new = torch.tensor([[*context.tokenizer("tea")["input_ids"], end, *after]])
        return torch.cat([ids, new.expand(len(ids), -1)], dim=1)

    for module in (capability_text, roleplay):
        monkeypatch.setattr(module, "generate", generate, raising=False)
    assert roleplay._greedy(context, "free", ["a", "b"]) == ["tea", "tea"]


def test_limit_caps_every_number(context: SuiteContext) -> None:
    context.limit = 2
    result = play(context)
    assert result.settings["calibration_items"] == result.settings["test_items"] == 2
    assert [row[1:3] for row in result.tables[1].rows] == [(2, 2)] * 3
    assert any("fewer than 10 test answers" in w for w in result.tables[0].warnings)


def test_bad_options_are_refused_before_anything_is_read(
    context: SuiteContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.data = Path("nowhere")
    with pytest.raises(OptionError, match=r"unknown role-play set 'hamlet'.*rolebench, merchant"):
        play(context, sets=["hamlet"])
    with pytest.raises(OptionError, match="test_items is 0"):
        play(context, test_items=0)
    with pytest.raises(OptionError, match="excludes"):
        play(context, settings=replace(SMALL, max_capability_loss=0.05))
    with pytest.raises(DataError, match=r"needs rolebench.*ZenMoore/RoleBench"):
        play(context)
    monkeypatch.setattr("personae.evaluation.suites.embedding.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"personae\[judge\]"):
        play(context, judge=True)


def test_without_the_extra_the_result_says_so(context: SuiteContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roleplay, "judge_installed", lambda: False)
    result = play(context, judge=None)
    assert any("not judged" in note for note in result.notes)
    assert not any("similarity" in name for name in result.figures)


def test_a_model_that_overflows_is_an_error(context: SuiteContext) -> None:
    with torch.no_grad():
        context.targets[0].parameter.fill_(float("nan"))
    with pytest.raises(ModelError, match="rolebench: base: a log-probability is no finite number"):
        play(context)


def test_the_public_files() -> None:
    bench, merchant = (DATA / roleplay.SETS[name][0] for name in ("rolebench", "merchant"))
    if not bench.is_file() or not merchant.is_file():
        pytest.skip("public data not found; set PERSONAE_DATA to the folder that holds rolebench and shakespeare")
    cast = rolebench_cast(bench)
    assert len(cast) == 10
    assert sum(len(p) for p in cast.values()) == 2548
    named = [s for r, p in cast.items() for s in p.samples if s.prompt.startswith(f"{r},")]
    assert not named
    made = plans(cast, calibration=40, test=24)
    assert {(len(p.own), len(p.rivals), len(p.test)) for p in made.values()} == {(40, 40, 24)}
    speakers = play_cast(merchant)
    assert list(speakers) == ["ANTONIO", "BASSANIO", "LORENZO", "PORTIA", "SHYLOCK"]
    texts = [s for p in speakers.values() for s in p.samples]
    assert min(len(s.answer.split()) for s in texts) >= 4
    assert not any("<" in s.answer or "Aside" in s.answer for s in texts)
    assert min(len(p.test) for p in plans(speakers, calibration=40, test=24).values()) >= 8


def test_the_real_judge_reads_what_the_model_wrote(context: SuiteContext) -> None:
    if not judge_installed():
        pytest.skip('the judge is not installed: pip install "personae[judge]"')
    result = play(context, judge=None)
    base = result.figures["rolebench.similarity_base"]
    assert isinstance(base, Estimate)
    assert -1 < base.low <= base.high < 1
