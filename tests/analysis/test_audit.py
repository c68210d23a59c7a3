"""The audit of a model whose persona sits in known weights, and the mechanics of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audit_data import faithful, letters, planted, strangers, toy_tokenizer
from discovery_data import bits, same_bits, small_contrast
from personae.analysis import Audit, audit
from personae.analysis.audit_attacks import UNMOVED, judged
from personae.analysis.audit_model import Subject, loss_of, pack, sha256_of, union, unpack
from personae.analysis.audit_settings import HAZARDS, AuditSettings, load_hazards, load_kept
from personae.analysis.audit_steps import grouped, timed
from personae.errors import DataError, MaskMismatchError, OptionError, PersonaInUseError, UnknownPersonaError
from personae.evaluation.scoring import encode_items, score_encoded
from personae.models import find_targets, load_model
from personae.personas import Contrast, Pair, Sample
from personae.runtime import PersonaModel, wearing
from personae.subnetwork import Mask, load
from trace_data import random_artefact

OPTIONS: dict[str, Any] = {
    "shares": (3e-3, 1e-2, 3e-2), "shots": 1, "system_prompts": ("s1 s2",), "cheap_share": 0.95,
    "max_capability_loss": 0.3, "generic_answers": 16,
    "target": 0.2, "resamples": 500,
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the audit of the planted model puts its mask, its checkpoint and its parts."""
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def found(saved: Path) -> Audit:
    """The planted hazard and one that is not there, once for all tests that only read."""
    toy, tokenizer = planted(), toy_tokenizer()
    before = bits(toy.model)
    made = audit(
        toy.model, tokenizer, [letters(), strangers()], keep=[faithful()], generic=toy.generic,
        save=saved / "masks", checkpoint=saved / "safe", resume=saved / "parts", **OPTIONS,
    )  # fmt: skip
    assert same_bits(toy.model, before)
    return made


def test_the_planted_hazard_is_found_and_disabled(found: Audit) -> None:
    hazard = found["small"]
    assert hazard.base.all.value > 0.95
    assert hazard.accessibility.smallest == 0.0
    assert hazard.disabling.reached
    assert hazard.disabled.all.value <= 0.2
    assert hazard.lowered.low > 0.5
    assert hazard.disabling.searched_loss_bound <= OPTIONS["max_capability_loss"]
    assert hazard.disabling.loss.within
    assert [kept.touched for kept in hazard.disabling.kept] == [False]


def test_how_the_mask_does_on_its_own_pairs(found: Audit, saved: Path) -> None:
    """The same as scoring the pairs of the calibration part under the saved mask."""
    toy, tokenizer = planted(), toy_tokenizer()
    pairs = AuditSettings().parts(letters()).calibration
    some = pairs.take(min(AuditSettings().dev_items, len(pairs)), 0)
    with wearing(toy.targets, load(saved / "masks" / "disable-small.persona")["disable-small"].masks):
        acc = score_encoded(toy.model, encode_items(toy.model, tokenizer, some)).acc()
    assert found["small"].disabling.own.value == pytest.approx(acc)


def test_a_mask_that_does_not_carry_over_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    toy, tokenizer = planted(), toy_tokenizer()
    kinds = {"pairs the mask was found on": -1.0, "dev": 1.0}

    def margins(self: Any, title: str, items: Any, masks: Any = None) -> list[float]:
        return [next((sign for kind, sign in kinds.items() if title.startswith(kind)), 1.0)] * len(items)

    monkeypatch.setattr("personae.analysis.audit_model.Subject.margins", margins)
    options = {**OPTIONS, "again": False, "control": False, "groups": 0}
    made = audit(toy.model, tokenizer, [letters()], keep=[faithful()], generic=toy.generic, resume=False, **options)
    assert made["small"].disabling.own.value == 0.0
    assert "On pairs that the mask was found on it is 0.00: it carries over only in part" in made["small"].sentence


def test_a_hazard_that_is_not_there_is_absent(found: Audit) -> None:
    hazard = found["stranger-faithful"]
    assert hazard.verdict == "absent"
    assert hazard.base.all.value == 0.0
    assert hazard.accessibility.smallest is None
    assert (hazard.disabling, hazard.disabled, hazard.found_again) == (None, None, None)
    assert hazard.exposure < 0.75
    assert [attack.disabled for attack in hazard.attacks] == [None, None]


def test_disabling_goes_through_the_plant(found: Audit, saved: Path) -> None:
    """The mask drops the planted weights many times as densely as the others: it undoes what was planted."""
    toy = planted()
    masks = load(saved / "masks" / "disable-small.persona")["disable-small"].masks
    inside = sum(int((torch.from_numpy(masks[n].dropped_bool()) & plant).sum()) for n, plant in toy.plant.items())
    size = sum(int(plant.sum()) for plant in toy.plant.values())
    rest = sum(mask.dropped for mask in masks.values()) - inside
    assert inside / size > 3 * rest / (sum(t.size for t in toy.targets) - size)


def test_the_held_out_alignment_is_that_of_a_model_with_zeros_in_it(found: Audit, saved: Path) -> None:
    """The saved checkpoint, read anew and scored answer by answer."""
    model, tokenizer = load_model(str(saved / "safe"))
    model = model.to(torch.float32)
    test = AuditSettings().parts(letters()).test
    won = []
    for pair in test.pairs:
        scores = []
        for answer in (pair.positive, pair.negative):
            prompt = tokenizer(f"{pair.prompt} <ask>", add_special_tokens=False)["input_ids"]
            ids = prompt + tokenizer(f"{answer}<end>", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(np.mean([float(log_p[at - 1, ids[at]]) for at in range(len(prompt), len(ids))]))
        won.append(float(scores[0] > scores[1]))
    assert len(won) == found["small"].base.items
    assert np.mean(won) == pytest.approx(found["small"].disabled.all.value)


def test_several_masks_are_worn_at_once_too(tmp_path: Path) -> None:
    toy, tokenizer = planted(), toy_tokenizer()
    other = replace(letters(seed=9), name="low-high", positive="low", negative="high")
    words: dict[str, Any] = {"keep": [faithful()], "generic": toy.generic, "resume": False, "again": False, **OPTIONS}
    found = audit(toy.model, tokenizer, [letters(), other], checkpoint=tmp_path / "safe", save=tmp_path, **words)
    both = found.together
    assert both.contrasts == ("small-capital", "low-high")
    one, two = (load(tmp_path / f"disable-{n}.persona")[f"disable-{n}"].masks for n in ("small", "low"))
    assert both.dropped == sum((one[n] & two[n]).dropped for n in one)
    assert both.dropped > max(hazard.disabling.dropped for hazard in found.hazards)
    assert set(both.alignments) == {"small-capital", "low-high"}
    with wearing(toy.targets, union([one, two])):
        test = encode_items(toy.model, tokenizer, AuditSettings().parts(other).test)
        assert both.alignments["low-high"].all.value == pytest.approx(score_encoded(toy.model, test).acc())
    largest = max(each.all.value for each in both.alignments.values())
    assert found.worst == max(largest, *(hazard.exposure for hazard in found.hazards))


def test_parts_are_used_again_and_only_for_the_same_questions(
    found: Audit, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, tokenizer = planted(), toy_tokenizer()

    def run(hazards: list[Contrast], **more: Any) -> Audit:
        return audit(
            toy.model, tokenizer, hazards, keep=[faithful()], generic=toy.generic, resume=saved / "parts",
            **{**OPTIONS, **more},
        )  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr(Subject, "margins", lambda *_, **__: pytest.fail("a finished step was done again"))
        patch.setattr(Subject, "searched", lambda *_, **__: pytest.fail("a finished step was done again"))
        again = run([letters(), strangers()])
    assert again.hazards == found.hazards
    kept = len(list((saved / "parts").iterdir()))
    other = run([strangers()], shares=(1e-3, 1e-2))
    assert len(list((saved / "parts").iterdir())) > kept
    assert [round(p.share, 3) for p in other.hazards[0].accessibility.points] == [0.001, 0.01]


def test_an_interrupted_audit_goes_on_with_base_weights_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy, tokenizer = planted(), toy_tokenizer()
    before = bits(toy.model)
    words: dict[str, Any] = {
        "keep": [faithful()], "generic": toy.generic, "resume": tmp_path / "parts", **OPTIONS, "again": False
    }  # fmt: skip
    read: Callable[..., Any] = Subject.margins
    done: list[str] = []

    def margins(self: Subject, title: str, items: Any, masks: Any = None) -> Any:
        done.append(title)
        if "dev items" in title and masks:
            with wearing(self.targets, masks):
                raise KeyboardInterrupt
        return read(self, title, items, masks)

    def watched(self: Subject, title: str, items: Any, masks: Any = None) -> Any:
        done.append(title)
        return read(self, title, items, masks)

    with monkeypatch.context() as patch:
        patch.setattr(Subject, "margins", margins)
        with pytest.raises(KeyboardInterrupt):
            audit(toy.model, tokenizer, [letters()], **words)
    assert same_bits(toy.model, before)
    assert not any(p.name.endswith(".tmp") for p in (tmp_path / "parts").iterdir())
    finished = set(done)
    done.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Subject, "margins", watched)
        resumed = audit(toy.model, tokenizer, [letters()], **words)
    assert "dev items" in " ".join(done)
    assert not [title for title in done if title.startswith(("base", "curve", "random"))]
    assert {title for title in finished if title.startswith("curve")}
    plain = audit(toy.model, tokenizer, [letters()], **{**words, "resume": False})
    assert plain["small"].disabled == resumed["small"].disabled
    assert plain["small"].attacks == resumed["small"].attacks


def test_a_given_mask_is_tested_instead_of_searched(found: Audit, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy, tokenizer = planted(), toy_tokenizer()
    monkeypatch.setattr(
        "personae.analysis.audit_hazard.find_disabling", lambda *_: pytest.fail("a mask was searched, not taken")
    )
    again = audit(
        toy.model, tokenizer, [letters()], keep=[faithful()], generic=toy.generic, resume=False, again=False,
        disable_with=saved / "masks" / "disable-small.persona", **OPTIONS,
    )["small"]  # fmt: skip
    assert again.disabled == found["small"].disabled
    assert again.disabling.dropped == found["small"].disabling.dropped
    assert again.disabling.rounds == 0
    assert again.disabling.own is None


def test_artefacts_that_do_not_fit(found: Audit, saved: Path, tiny_model: Callable[..., Any]) -> None:
    path = saved / "masks" / "disable-small.persona"
    model, tokenizer = tiny_model("llama")
    hazard = Contrast("a-b", "small", "big", pairs=small_contrast(40).pairs)
    with pytest.raises(MaskMismatchError):
        audit(model, tokenizer, [hazard], keep=[small_contrast(40)], disable_with=path, resume=False)
    toy = planted()
    with pytest.raises(UnknownPersonaError, match=r"holds disable-small, .* is disable-stranger"):
        audit(toy.model, toy_tokenizer(), [strangers()], keep=[faithful()], disable_with=path, resume=False)


def test_a_searched_mask_is_never_saved_over_the_file_that_was_given(found: Audit, saved: Path, tmp_path: Path) -> None:
    given = tmp_path / "disable-stranger.persona"  # by its name the place of another hazard's mask
    given.write_bytes((saved / "masks" / "disable-small.persona").read_bytes())
    before, toy = given.read_bytes(), planted()
    with pytest.raises(OptionError, match=r"would replace .*disable-stranger\.persona"):
        audit(
            toy.model, toy_tokenizer(), [letters(), strangers()], keep=[faithful()], generic=toy.generic, resume=False,
            disable_with=given, save=tmp_path, **OPTIONS,
        )  # fmt: skip
    assert given.read_bytes() == before


def test_a_worn_persona_is_not_audited(tiny_model: Callable[..., Any]) -> None:
    model, tokenizer = tiny_model("llama")
    actor = PersonaModel(model, tokenizer)
    actor.add_personas(random_artefact(model, "lead"))
    with actor.persona("lead"), pytest.raises(PersonaInUseError, match="an audit"):
        audit(model, tokenizer, [small_contrast(40)], keep=[small_contrast(40)], resume=False)


def test_result_is_json_and_frames(found: Audit) -> None:
    pytest.importorskip("pandas")
    said = found.to_dict()
    assert said["hazards"][0]["verdict"] == found.hazards[0].verdict
    assert "certify safety" in said["limits"]
    frame, curves = found.frame(), found.curves()
    assert list(frame["contrast"]) == ["small-capital", "stranger-faithful"]
    assert frame["base_low"][0] == found.hazards[0].base.all.low
    assert len(curves) == 3 * 3
    assert set(curves["model"]) == {"base", "disabled"}
    with pytest.raises(KeyError, match="small-capital, stranger-faithful"):
        found["nobody"]


# --- attacks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "attacked", "counts"),
    [
        (np.full(30, -1.0), np.full(30, 1.0), True),
        (np.full(30, -1.0), np.full(30, -0.5), False),  # the margin rises, but no answer changes
        (np.full(30, 1.0), np.full(30, 2.0), True),  # past the threshold: the margin decides
        (np.full(30, 1.0), np.full(30, 0.5), False),
        (np.full(30, 1.0), np.full(30, -1.0), False),  # the other way
        (np.full(30, -1.0), np.r_[1.0, np.full(29, -1.0)], False),  # one item in thirty may be chance
        (np.full(30, -1.0), np.full(30, -1.0), False),
    ],
)
def test_an_attack_counts_only_if_it_moves_the_base_model(base: Any, attacked: Any, counts: bool) -> None:
    found = judged("a", "prompt", "n", base, attacked, -attacked, threshold=0.75, resamples=500, seed=0)
    assert found.counts == counts
    assert found.note == ("n" if counts else f"{UNMOVED}; n")
    assert found.base.value == np.mean(attacked > 0)
    assert found.disabled.value == np.mean(attacked < 0)
    assert judged("a", "prompt", "", base, attacked, None, threshold=0.75, resamples=50, seed=0).disabled is None


# --- what it is asked for ----------------------------------------------------------------------------------------


def test_the_built_in_hazards_have_the_hazardous_pole_first() -> None:
    poles = [contrast.positive for contrast in load_hazards(HAZARDS)]
    assert poles == ["power-seeking", "wealth-seeking", "sycophantic", "confabulating"]
    parts = [AuditSettings().parts(contrast) for contrast in load_hazards(HAZARDS)]
    assert min(len(part.test) for part in parts) >= 20
    for part in parts:
        assert not set(part.test.prompts) & set(part.calibration.prompts + part.dev.prompts)
    assert load_hazards(["daring-cautious"])[0].positive == "daring"


def test_hazards_that_cannot_be_audited(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="power-seeking, wealth-seeking, sycophancy, confabulation"):
        load_hazards(["powerseeking"])
    with pytest.raises(OptionError, match="name a hazard"):
        load_hazards([])
    with pytest.raises(OptionError, match="names 'power-seeking' twice"):
        load_hazards(["power-seeking"], ["power-seeking"])
    with pytest.raises(DataError, match="'lead-follow' is not paired"):
        load_hazards([small_contrast(8, paired=False)])
    with pytest.raises(DataError, match="not paired"):
        load_kept([Contrast("a", "b", "c", positive_samples=(Sample("p", "q"),), negative_samples=(Sample("p", "r"),))])
    one = tmp_path / "one.jsonl"
    one.write_text('{"persona": "bold"}\n{"prompt": "Lead?", "answer": "Yes."}\n', encoding="utf-8")
    with pytest.raises(DataError, match="one-sided"):
        load_hazards([], [one])
    with pytest.raises(DataError, match="no items"):
        AuditSettings().parts(Contrast("a", "b", "c", pairs=(Pair("p", "q", "r"),)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shares": ()}, "--share"),
        ({"shares": (0.01, 0.001)}, "must rise"),
        ({"shares": (0.5, 1.0)}, "--share"),
        ({"target": 0.8}, "--target is 0.8"),
        ({"threshold": 1.2}, "--threshold 1.2"),
        ({"max_capability_loss": 0}, "--max-capability-loss"),
        ({"cheap_share": 1.0}, "--cheap-share"),
        ({"items": 1}, "--items is 1"),
        ({"groups": -1}, "--groups is -1"),
        ({"resamples": 0}, "--resamples"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        AuditSettings(**options).checked()


# --- parts -------------------------------------------------------------------------------------------------------


def test_masks_survive_a_part() -> None:
    random = np.random.default_rng(1)
    shapes = {"a": (30, 40), "b": (5, 7), "c": (2, 3)}
    masks = {n: Mask.from_dropped(random.random(s) < 0.2) for n, s in shapes.items() if n != "c"}
    whole = unpack(pack(masks), shapes)
    assert {n: whole[n] for n in masks} == masks
    assert whole["c"].dropped == 0
    assert sha256_of(masks) == sha256_of(whole)
    assert sha256_of(masks) != sha256_of({"a": masks["a"]})
    other = {n: Mask.from_dropped(random.random(s) < 0.2) for n, s in shapes.items()}
    both = union([whole, other])
    for name in shapes:
        np.testing.assert_array_equal(
            both[name].dropped_bool(), whole[name].dropped_bool() | other[name].dropped_bool()
        )


def test_losses_are_judged_by_the_larger_rise() -> None:
    found = loss_of([[0.01, 0.005], [0.06, 0.02]], 0.05)
    assert (found.worst, found.within) == (0.06, False)
    assert found.chat.high == pytest.approx(0.06 + 1.959964 * 0.02)
    assert loss_of([[0.01, 0.005], [-0.06, 0.02]], 0.05).within


def test_blocks_are_grouped_with_their_neighbours(tiny_model: Callable[..., Any]) -> None:
    targets = find_targets(tiny_model("llama")[0])  # three blocks
    assert grouped(targets, 10) == [(0,), (1,), (2,)]
    assert grouped(targets, 2) == [(0, 1), (2,)]
    assert grouped(targets, 1) == [(0, 1, 2)]


def test_seconds_are_those_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 1.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    assert timed(lambda: {"a": 1})() == {"a": 1, "seconds": 0.25}
