from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from personae.discovery import Capability, GenericText, Session, open_session
from personae.errors import DataError, MaskMismatchError, ModelError, OptionError
from personae.evaluation import CapabilityText, Evaluation, evaluate, score_items, unread_text
from personae.evaluation.bench import Bench
from personae.models import answer_nll, find_targets, fingerprint
from personae.personas import Contrast, Pair, split
from personae.subnetwork import Artefact, Mask

ArtefactOf = Callable[..., Artefact]
pytestmark = pytest.mark.filterwarnings("ignore:the artefact's generic text")


@pytest.fixture
def session(model_and_tokenizer: Any, contrast: Contrast, generic: GenericText) -> Session:
    return open_session(*model_and_tokenizer, split(contrast, seed=0).calibration, generic=generic, resume=False)


def masked_copy(model: Any, masks: Any) -> Any:
    """An oracle: another model, its weights multiplied by the masks."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for target in find_targets(other):
            target.weight.mul_(torch.from_numpy(masks[target.name].keep_bool()))
    return other


def bits(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone().view(torch.int32) for p in model.parameters()]


def loss_of(model: Any, base: Any, part: Any) -> float:
    worn, bare = answer_nll(model, part).sum(0), answer_nll(base, part).sum(0)
    return float(worn[0] / worn[1] - bare[0] / bare[1])


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_rows_of_an_artefact_against_a_masked_copy(
    tiny_model: Callable[..., Any], contrast: Contrast, generic: GenericText, artefact_of: ArtefactOf, name: str
) -> None:
    model, tokenizer = tiny_model(name)
    artefact = artefact_of(model, contrast, cheap_share=0.5, max_capability_loss=0.5)
    session = open_session(model, tokenizer, split(contrast, seed=0).calibration, generic=generic, resume=False)
    before = bits(model)
    result = evaluate(model, tokenizer, contrast, artefact, session=session, random_seeds=2, resamples=200)
    assert all(torch.equal(a, b) for a, b in zip(before, bits(model), strict=True))
    test, text = split(contrast, seed=0).test, unread_text(generic)
    assert [r.name for r in result.rows] == [
        "base", "system prompt", "directed", "random", "magnitude", "generic", "opposite",
    ]  # fmt: skip
    row = result["directed"]
    masked = [masked_copy(model, artefact[pole].masks) for pole in contrast.poles]
    plus, minus = (score_items(m, tokenizer, test) for m in masked)
    bare = score_items(model, tokenizer, test)
    assert row.readings[0].difference == pytest.approx(plus.difference().tolist(), abs=1e-4)
    assert row.readings[0].difference_opposite == pytest.approx(minus.difference().tolist(), abs=1e-4)
    assert row.acc.value == pytest.approx(sum(d > 0 for d in plus.difference()) / len(test))
    assert row.acc_opposite.value == pytest.approx(sum(d > 0 for d in minus.difference()) / len(test))
    assert row.acc_sum.value == plus.acc("sum")
    assert row.acc_byte_opposite.value == minus.acc("byte")
    tied = plus.difference()[plus.tied]
    assert row.acc_tied is not None
    assert row.acc_tied.value == pytest.approx(sum(d > 0 for d in tied) / len(tied))
    own = plus.normalised()[:, 0] - bare.normalised()[:, 0]
    assert row.own_answers.value == pytest.approx(own.mean(), abs=1e-4)
    own = minus.normalised()[:, 1] - bare.normalised()[:, 1]
    assert row.own_answers_opposite.value == pytest.approx(own.mean(), abs=1e-4)
    assert row.loss is not None
    assert row.loss.plain == pytest.approx(loss_of(masked[0], model, text.plain), abs=1e-4)
    assert row.loss.chat_opposite == pytest.approx(loss_of(masked[1], model, text.chat), abs=1e-4)
    size = sum(t.size for t in find_targets(model))
    assert row.sparsity_positive == artefact["loud"].dropped / size
    assert row.sparsity_negative == artefact["quiet"].dropped / size
    assert (row.seconds, row.cost) == (3.5, "one backward")
    check_controls(result, size)


def check_controls(result: Evaluation, size: int) -> None:
    row, random, opposite = result["directed"], result["random"], result["opposite"]
    assert (random.sparsity_positive, random.sparsity_negative) == (row.sparsity_positive, row.sparsity_negative)
    assert [r.seed for r in random.readings] == [0, 1]
    assert random.acc.value == pytest.approx(sum(r.acc for r in random.readings) / 2)
    assert "seed 0" in random.note
    assert "same candidates" in random.note
    assert (opposite.acc, opposite.acc_opposite) == (row.acc_opposite, row.acc)
    assert opposite.loss == (row.loss.exchanged() if row.loss else None)
    assert opposite.readings[0].difference == row.readings[0].difference_opposite
    for name in ("magnitude", "generic"):
        assert result[name].sparsity == pytest.approx(row.sparsity, rel=0.1)
        assert result[name].acc == result[name].acc_opposite
        assert result[name].readings[0].log_p == result[name].readings[0].log_p_opposite
    assert result["base"].capability_loss == 0
    assert result["base"].sparsity == 0
    assert result["system prompt"].loss is None
    assert result["system prompt"].extra_prompt_tokens > 3
    assert len(row.claims) == 3


def test_the_prompt_row_puts_each_pole_under_its_own_prompt(
    model_and_tokenizer: Any, contrast: Contrast, session: Session
) -> None:
    model, tokenizer = model_and_tokenizer
    result = evaluate(model, tokenizer, contrast, session=session, resamples=50)
    row, test = result["system prompt"], split(contrast, seed=0).test
    for differences, prompt in (
        (row.readings[0].difference, contrast.positive_prompt),
        (row.readings[0].difference_opposite, contrast.negative_prompt),
    ):
        expected = score_items(model, tokenizer, test, prompt).difference()
        assert differences == pytest.approx(expected.tolist(), abs=1e-5)
    assert [r.name for r in result.rows] == ["base", "system prompt"]
    assert any(n.startswith("no controls") for n in result.notes)
    silent = evaluate(
        model, tokenizer, replace(contrast, negative_prompt=None), session=session, controls=(), resamples=50
    )
    assert [r.name for r in silent.rows] == ["base"]
    assert silent.notes == ("no row for the system prompt: 'loud-quiet' has none for both of its poles.",)


def test_an_empty_mask_is_the_base_model(
    model_and_tokenizer: Any, contrast: Contrast, session: Session, artefact_of: ArtefactOf
) -> None:
    model, tokenizer = model_and_tokenizer
    artefact = artefact_of(model, contrast, share=0.0, cheap_share=0.5)
    result = evaluate(model, tokenizer, contrast, artefact, session=session, random_seeds=1, resamples=50)
    for name in ("directed", "random", "magnitude", "generic", "opposite"):
        assert result[name].acc == result["base"].acc
        assert result[name].capability_loss == 0
        assert result[name].sparsity == 0
    assert all(claim.value <= 0 and claim.p == 1.0 for claim in result["directed"].claims)


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    runs: list[int] = []
    handle = model.register_forward_hook(lambda *_: runs.append(1))
    try:
        yield runs
    finally:
        handle.remove()


def test_each_mask_is_read_once(
    model_and_tokenizer: Any, contrast: Contrast, session: Session, artefact_of: ArtefactOf
) -> None:
    model, tokenizer = model_and_tokenizer
    artefact = artefact_of(model, contrast)
    _ = session.generic_statistics  # whatever the session computes is not counted
    small = CapabilityText(session.generic.plain[:1], session.generic.chat[:1], "two")
    options: Any = {"session": session, "system_prompt": False, "resamples": 20, "capability_text": small}

    def runs(controls: tuple[str, ...], given: Artefact | None) -> int:
        with counted(model) as seen:
            evaluate(model, tokenizer, contrast, given, controls=controls, random_seeds=2, **options)
        return len(seen)

    with counted(model) as seen:
        score_items(model, tokenizer, split(contrast, seed=0).test)
    items = len(seen)
    assert runs((), None) == items + 2  # base, and two texts
    assert runs((), artefact) == 3 * (items + 2)
    assert runs(("opposite",), artefact) == 3 * (items + 2)
    assert runs(("generic",), artefact) == 4 * (items + 2)
    assert runs(("random",), artefact) == 3 * (items + 2) + 4 * items + 4


def test_methods_are_discovered_and_controls_follow_the_first(
    model_and_tokenizer: Any, contrast: Contrast, session: Session
) -> None:
    model, tokenizer = model_and_tokenizer
    before = bits(model)
    result = evaluate(
        model, tokenizer, contrast, methods=("directed", "wanda"), controls=("random", "generic"), session=session,
        match=("sparsity", "loss"), random_seeds=1, resamples=100,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(before, bits(model), strict=True))
    assert [r.name for r in result.rows[2:]] == ["directed", "wanda", "random", "generic", "generic (equal loss)"]
    directed = result["directed"]
    assert directed.seconds is not None
    assert directed.seconds > 0
    assert directed.margin.value > result["base"].margin.value  # on unseen items of the same toy contrast
    assert directed.margin_opposite.value < result["base"].margin_opposite.value
    assert result["random"].sparsity_positive == directed.sparsity_positive
    assert "0.05 nats" in result["generic (equal loss)"].note
    assert all(len(row.claims) == 3 for row in result.of_kind("method"))
    assert not result.of_kind("nothing")


def test_a_method_beside_an_artefact_of_that_method(
    model_and_tokenizer: Any, contrast: Contrast, session: Session, artefact_of: ArtefactOf
) -> None:
    artefact = artefact_of(model_and_tokenizer[0], contrast, method="magnitude", sparsity=0.05)
    result = evaluate(
        *model_and_tokenizer, contrast, artefact, methods=("magnitude",), controls=("random",), random_seeds=1,
        session=session, resamples=50, system_prompt=False,
    )  # fmt: skip
    assert [r.name for r in result.rows] == ["base", "magnitude", "magnitude (found anew)", "random"]
    assert "among all weights" in result["random"].note


def test_a_session_is_opened_where_none_is_given(
    model_and_tokenizer: Any, contrast: Contrast, generic: GenericText, artefact_of: ArtefactOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[Any] = []

    def text(model: Any, tokenizer: Any, targets: Any, *, seed: int, **_: Any) -> GenericText:
        asked.append(([t.name for t in targets], seed))
        return generic

    monkeypatch.setattr(sys.modules[open_session.__module__], "generic_text", text)
    model, tokenizer = model_and_tokenizer
    artefact = artefact_of(model, contrast, seed=7, tokens="all")
    kept = [n for n in artefact.model.targets if "mlp" in n]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no artefact, no doubt
        evaluate(model, tokenizer, contrast, controls=(), resamples=20)
    assert asked.pop() == ([t.name for t in find_targets(model)], 0)
    with pytest.warns(UserWarning, match=r"generic text \(elsewhere\) is not that of the controls \(four of each\)"):
        result = evaluate(model, tokenizer, contrast, artefact, controls=("generic",), resamples=20)
    assert asked.pop() == (list(artefact.model.targets), 7)
    assert len(result.notes) == 1
    part = only(artefact, kept, model)
    result = evaluate(model, tokenizer, contrast, part, controls=(), resamples=20)
    assert asked.pop()[0] == kept
    assert result.model.weights == sum(t.size for t in find_targets(model) if t.name in kept)
    assert result["directed"].sparsity_positive == part["loud"].sparsity


def only(artefact: Artefact, names: list[str], model: Any) -> Artefact:
    """The artefact as it were discovered on these targets."""
    identity = artefact.model.model_copy(
        update={
            "targets": {n: artefact.model.targets[n] for n in names},
            "fingerprint": fingerprint(find_targets(model, names)),
        }
    )
    personas = {
        n: replace(artefact[n], masks={t: m for t, m in artefact[n].masks.items() if t in names}) for n in artefact
    }
    return Artefact(identity, personas, {})


def test_a_session_on_fewer_targets_is_refused(
    model_and_tokenizer: Any, contrast: Contrast, generic: GenericText, artefact_of: ArtefactOf
) -> None:
    model, tokenizer = model_and_tokenizer
    narrow = open_session(model, tokenizer, contrast, generic=generic, targets="*mlp*", resume=False)
    with pytest.raises(MaskMismatchError, match=r"12 targets that the session leaves out"):
        evaluate(model, tokenizer, contrast, artefact_of(model, contrast), session=narrow)


def test_a_session_on_tested_questions_finds_nothing(
    model_and_tokenizer: Any, contrast: Contrast, generic: GenericText, artefact_of: ArtefactOf
) -> None:
    """Its statistics and gradients would be of the answers that are scored."""
    model, tokenizer = model_and_tokenizer
    every = open_session(model, tokenizer, contrast, generic=generic, resume=False)
    test = split(contrast).test
    for fitted in ({"methods": ("wanda",)}, {"rivals": ("steering",)}, {"controls": ("shuffled",)}):
        with pytest.raises(OptionError, match=f"on {len(test)} of the {len(test)} questions that are tested"):
            evaluate(model, tokenizer, contrast, artefact_of(model, contrast), session=every, **fitted)
    result = evaluate(model, tokenizer, contrast, session=every, controls=(), resamples=20)  # nothing is found in it
    assert result.data.items == len(test)


def test_each_pole_is_asked_what_it_has_read(
    model_and_tokenizer: Any, contrast: Contrast, artefact_of: Any, generic: GenericText
) -> None:
    """Poles may be found apart: one by the split's part, the other on everything, or by set algebra."""
    model, tokenizer = model_and_tokenizer
    session = open_session(model, tokenizer, split(contrast).calibration, generic=generic, resume=False)
    artefact = artefact_of(model, contrast)
    own = artefact["quiet"].provenance
    everything = own.calibration.model_copy(update={"sha256": contrast.sha256, "items": len(contrast), "split": None})
    for changed, message in (
        ({"calibration": everything}, "was calibrated on all 60 items"),
        ({"calibration": None, "method": "union"}, r"what 'quiet' was calibrated on is not recorded \(union\)"),
    ):
        quiet = replace(artefact["quiet"], provenance=own.model_copy(update=changed))
        apart = replace(artefact, personas={"loud": artefact["loud"], "quiet": quiet})
        with pytest.warns(UserWarning, match=message):
            result = evaluate(model, tokenizer, contrast, apart, controls=(), session=session, resamples=50)
        assert len([note for note in result.notes if "calibrated" in note]) == 1


def test_rows_that_cannot_be_made_are_refused_before_anything_is_read(
    tiny_model: Any, model_and_tokenizer: Any, contrast: Contrast, artefact_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = model_and_tokenizer
    monkeypatch.setattr(Bench, "__init__", lambda *_: 1 / 0)
    artefact = artefact_of(model, contrast)
    with pytest.raises(DataError, match="'mask \\+ prompt' needs a persona"):
        evaluate(model, tokenizer, contrast, rivals=("mask + prompt",))
    with pytest.raises(DataError, match="has no system prompts"):
        evaluate(model, tokenizer, replace(contrast, positive_prompt=""), artefact, rivals=("mask + prompt",))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "peft", None)
        with pytest.raises(OptionError, match="pip install"):
            evaluate(model, tokenizer, contrast, artefact, rivals=("lora-sft",))
    other, _ = tiny_model("llama", seed=1)
    with pytest.raises(MaskMismatchError):
        evaluate(model, tokenizer, contrast, artefact, other=artefact_of(other, contrast))


def test_calibrated_test_items_are_warned_of_and_noted(
    model_and_tokenizer: Any, contrast: Contrast, session: Session, artefact_of: ArtefactOf
) -> None:
    artefact = artefact_of(model_and_tokenizer[0], contrast)
    with pytest.warns(UserWarning, match="made with split seed 0"):
        result = evaluate(
            *model_and_tokenizer, contrast, artefact, session=session, split_seed=None, controls=(), resamples=20
        )
    assert result.data.items == 60
    assert result.data.split_seed is None
    assert result.data.sha256 == result.data.test_sha256 == contrast.sha256
    assert any("made with split seed 0" in note for note in result.notes)


def test_the_record_names_model_data_and_text(model_and_tokenizer: Any, contrast: Contrast, session: Session) -> None:
    model, tokenizer = model_and_tokenizer
    result = evaluate(model, tokenizer, contrast, session=session, resamples=20, seed=5, system_prompt=False)
    test = split(contrast, seed=0).test
    assert (result.data.items, result.data.test_sha256) == (len(test), test.sha256)
    assert result.data.tied_items == sum(result.data.tied)
    assert test.pairs[0].prompt in result.data.rendered_prompt
    assert result.data.rendered_prompt.endswith("assistant\n")
    assert (result.model.dtype, result.model.device, result.model.architecture) == (
        "float32",
        "cpu",
        "LlamaForCausalLM",
    )
    assert result.model.fingerprint.startswith("sha256:")
    assert result.text.sha256 == unread_text(session.generic).sha256
    assert result.text.base_chat > 0
    assert (result.resamples, result.seed) == (20, 5)
    assert {"personae", "torch", "transformers", "numpy"} <= result.versions.keys()
    with pytest.raises(KeyError, match="no condition 'wanda'; there are: base"):
        result["wanda"]


def test_bad_options_are_named_before_anything_runs(model_and_tokenizer: Any, contrast: Contrast) -> None:
    for options, message in (
        ({"methods": ("astrology",)}, "unknown --method 'astrology'"),
        ({"methods": "wanda"}, "--method takes a sequence"),
        ({"methods": ("wanda", "wanda")}, "names one thing twice"),
        ({"controls": ("placebo",)}, "unknown --control 'placebo': choose random"),
        ({"match": ("size",)}, "unknown --match 'size'"),
        ({"random_seeds": 0}, "--random-seeds is 0"),
        ({"resamples": 0}, "--resamples is 0"),
        ({"methods": ("wanda",), "split_seed": None}, "needs a split"),
    ):
        with pytest.raises(OptionError, match=message), counted(model_and_tokenizer[0]) as seen:
            evaluate(*model_and_tokenizer, contrast, **options)  # type: ignore[arg-type]
        assert not seen
    apart = replace(
        contrast, pairs=(), positive_samples=contrast.samples("loud"), negative_samples=contrast.samples("quiet")
    )
    with pytest.raises(DataError, match="not paired"):
        evaluate(*model_and_tokenizer, apart)


def test_an_interruption_leaves_the_base_weights(
    model_and_tokenizer: Any, contrast: Contrast, session: Session, artefact_of: ArtefactOf
) -> None:
    model, tokenizer = model_and_tokenizer
    before = bits(model)

    @contextmanager
    def impatient(title: str, total: int) -> Iterator[Callable[[int], None]]:
        def tick(done: int) -> None:
            if title == "scoring: random, seed 0":
                raise KeyboardInterrupt

        yield tick

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tokenizer, contrast, artefact_of(model, contrast), session=session, progress=impatient)
    assert all(torch.equal(a, b) for a, b in zip(before, bits(model), strict=True))


def test_masks_that_follow_the_gradient_beat_every_control(
    tiny_model: Callable[..., Any], generic: GenericText, artefact_of: ArtefactOf
) -> None:
    """On a model of random weights the steepest hundredth of the weights decides between two fixed words."""
    model, tokenizer = tiny_model("llama")
    contrast = Contrast(
        "sides", "left", "right", pairs=tuple(Pair(f"Say {n}?", f"left {n}", f"right {n}") for n in range(120))
    )
    session = open_session(model, tokenizer, split(contrast, seed=0).calibration, generic=generic, resume=False)
    threshold = torch.cat([g.abs().flatten() for g in session.gains.values()]).quantile(0.98)
    artefact = artefact_of(model, contrast, cheap_share=0.9)
    masks = [
        {n: Mask.from_dropped((g * sign > threshold).numpy()) for n, g in session.gains.items()} for sign in (1, -1)
    ]
    planted = {pole: replace(artefact[pole], masks=m) for pole, m in zip(contrast.poles, masks, strict=True)}
    result = evaluate(
        model, tokenizer, contrast, replace(artefact, personas=planted), session=session, random_seeds=2, resamples=400
    )
    row = result["directed"]
    assert row.acc.value > 0.8
    assert row.acc_opposite.value < 0.2
    headline, opposite = row.claims  # 'right' opens like a yes, so no item is tied
    assert headline.value > 0
    assert opposite.low > 0
    assert opposite.p_holm < 0.05


def test_a_model_that_overflows_on_the_capability_text_is_refused(
    model_and_tokenizer: Any, contrast: Contrast, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = torch.full((2, 2), float("nan"))
    monkeypatch.setattr("personae.evaluation.bench.capability", lambda *_: Capability(nothing, nothing))
    with pytest.raises(ModelError, match="base: the likelihood of the capability text"):
        evaluate(*model_and_tokenizer, contrast, session=session)


def test_what_the_items_give_to_doubt_stands_in_the_result(
    model_and_tokenizer: Any, contrast: Contrast, session: Session
) -> None:
    """Planted: every answer of 'loud' is a yes and the shorter of the two; 40 items, so their number is none."""
    pairs = tuple(Pair(p.prompt, f"Yes {n}.", f"No, thank you {n}.") for n, p in enumerate(contrast.pairs))
    easy = replace(contrast, pairs=pairs[:40])
    options: Any = {"split_seed": None, "session": session, "system_prompt": False, "controls": (), "resamples": 20}
    found = evaluate(*model_and_tokenizer, easy, **options).warnings
    assert [w.split(":")[0] for w in found] == [
        "'take the shorter answer' alone scores 1.00 here", "'prefer yes, avoid no' alone scores 1.00 here",
        "every answer of loud opens like a 'yes'", "every answer of quiet opens like a 'no'",
    ]  # fmt: skip
    few = evaluate(*model_and_tokenizer, contrast, **{**options, "split_seed": 0})
    assert any(w.startswith(f"only {few.data.items} test items") for w in few.warnings)
    assert not any("only" in w for w in evaluate(*model_and_tokenizer, contrast, **options).warnings)


def test_masks_of_the_callers_calibration_items_are_in_no_doubt(
    model_and_tokenizer: Any, contrast: Contrast, artefact_of: ArtefactOf, session: Session
) -> None:
    parts = split(contrast, seed=0)
    artefact = artefact_of(model_and_tokenizer[0], contrast)  # on the calibration part
    options: Any = {"split_seed": None, "session": session, "controls": (), "resamples": 20, "system_prompt": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate(*model_and_tokenizer, parts.test, artefact, calibration=parts.calibration, **options)
    assert result.notes == ()
    with pytest.warns(UserWarning, match="is not known"):  # without them nobody can tell
        evaluate(*model_and_tokenizer, parts.test, artefact, **options)
