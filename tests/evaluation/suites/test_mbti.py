"""The MBTI suite on tiny random models and small files: data, masks, readings, the whole, what it refuses."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from discovery_data import bits, same_bits
from personae.discovery import GenericText, Settings, encode_contrast, open_session, stepped, steps, to_masks
from personae.errors import DataError, OptionError
from personae.evaluation.bootstrap import Difference, Estimate
from personae.evaluation.finetune import Recipe
from personae.evaluation.suites import SuiteContext, suite_to_dict, suite_to_markdown
from personae.evaluation.suites.mbti import run
from personae.evaluation.suites.mbti_data import Sizes, flat, items, read_dimension
from personae.evaluation.suites.mbti_masks import Finder, Finding, packed, union, unpacked
from personae.evaluation.suites.mbti_questionnaire import FILE, aligned, few
from personae.evaluation.suites.mbti_readings import Reader, mean_log_p, read_all
from personae.evaluation.suites.mbti_report import TYPES, Draws, dimension_figures
from personae.evaluation.suites.questionnaires import Inventory, InventoryItem
from personae.models import answer_nll, encode, find_targets
from personae.personas import Contrast, Pair, split
from personae.personas.split import normalised
from personae.runtime import PersonaModel, wearing

DATA = Path(os.environ.get("PERSONAE_DATA", Path(__file__).parents[4] / "shared" / "data"))
SIZES = Sizes(calibration=12, dev=4, test=6, tokens=24)
SMALL: dict[str, Any] = {
    "rows": 8, "test": 6, "others": 2, "blends": 2, "tokens": 16, "drop_share": 0.01, "resamples": 50,
}  # fmt: skip


def write(folder: Path, name: str, *, number: int = 60, poles: str | None = None, shared: bool = True) -> Path:
    """A file of the public schema; the poles differ in their words, and share their instructions if `shared`."""
    said = ("we dance and sing, friends", "a quiet book at home")
    rows = [
        {
            "dimension": name, "pole": pole,
            "instruction": f"{name} say something about topic {n}" + ("" if shared else f" for pole {pole}"),
            "output": f"{said[side]} {n} " * (1 + (n + side) % 3),
        }
        for side, pole in enumerate(poles or name) for n in range(number)
    ]  # fmt: skip
    path = folder / "mbti" / f"{name}_dev.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_questionnaire(folder: Path) -> None:
    questions = {
        str(n): {"origin_en": f"You like thing {n}.", "dimension": d, "category": d[2 * (n % 2)]}
        for n, d in enumerate(["E/I", "E/I", "S/N", "S/N", "T/F", "T/F", "P/J", "P/J"])
    }
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"questions": questions}), encoding="utf-8")


@pytest.fixture
def context(model_and_tokenizer: Any, tmp_path: Path) -> SuiteContext:
    model, tokenizer = model_and_tokenizer
    for name in ("EI", "SN", "TF", "JP"):
        write(tmp_path, name, shared=name in ("EI", "TF"))
    write_questionnaire(tmp_path)
    return SuiteContext(model, tokenizer, tmp_path, tmp_path / "parts")


# ------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("name", ["EI", "SN"])
def test_parts_are_those_of_the_split_and_share_no_instruction(context: SuiteContext, name: str) -> None:
    path = context.data / f"mbti/{name}_dev.jsonl"
    data = read_dimension(context.model, context.tokenizer, path, name, SIZES)
    assert data.paired == (name == "EI")
    parts = {"calibration": data.calibration, "dev": data.dev, "test": data.test}
    asked = {part: {a.instruction for a in flat(couples)} for part, couples in parts.items()}
    assert not asked["calibration"] & asked["test"]
    assert not asked["calibration"] & asked["dev"]
    contrast = Contrast(
        "c",
        "p",
        "n",
        pairs=tuple(Pair(json.loads(row)["instruction"], "y", "n") for row in path.read_text().splitlines()),
    )
    for part, couples in parts.items():
        allowed = {normalised(p) for p in getattr(split(contrast), part).prompts}
        assert asked[part] <= allowed
        assert couples
    assert len(data.calibration) == 12
    for own, rival in data.calibration:
        assert "dance" in own.text or len(own.encoded.answer) == 24
        assert "dance" not in rival.text
        assert (own.instruction == rival.instruction) == data.paired


def test_answers_are_cut_and_their_whole_length_kept(context: SuiteContext) -> None:
    path = context.data / "mbti/EI_dev.jsonl"
    data = read_dimension(context.model, context.tokenizer, path, "EI", replace(SIZES, tokens=5))
    rows = {
        (r["instruction"].casefold(), r["pole"]): r["output"] for r in map(json.loads, path.read_text().splitlines())
    }
    for couple in data.test:
        for pole, answer in zip("EI", couple, strict=True):
            whole = encode(context.tokenizer, "x", rows[answer.instruction, pole].strip()).answer
            assert answer.encoded.answer == whole[:5]
            assert answer.length == len(whole)


def test_matched_partners_answer_the_same_or_the_nearest_instruction(context: SuiteContext, tmp_path: Path) -> None:
    path = write(tmp_path, "SN", shared=False)
    same = [
        {"pole": pole, "instruction": f"the very same question {n}", "output": f"answer of {pole}"}
        for n in range(10) for pole in "SN"
    ]  # fmt: skip
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in same))
    data = read_dimension(context.model, context.tokenizer, path, "SN", SIZES, instructions="matched")
    assert not data.paired
    equal = [p.instruction == n.instruction for p, n in data.calibration]
    assert any(equal)
    assert equal == sorted(equal, reverse=True)  # the same instruction first
    rivals = [n.encoded for _, n in data.calibration]
    assert len(set(rivals)) == len(rivals)  # nobody is a partner twice
    shared_number = sum(
        p.instruction.split()[5] == n.instruction.split()[5]
        for (p, n), even in zip(data.calibration, equal, strict=True) if not even
    )  # fmt: skip
    plain = read_dimension(context.model, context.tokenizer, path, "SN", SIZES)
    assert sum(p.instruction == n.instruction for p, n in plain.calibration) < sum(equal)
    assert shared_number > 0  # 'topic 7 … pole s' beside 'topic 7 … pole n'
    with pytest.raises(OptionError, match="unknown instructions"):
        read_dimension(context.model, context.tokenizer, path, "SN", SIZES, instructions="near")


# ------------------------------------------------------------------------------------------------------ masks


def finder_of(context: SuiteContext, generic: GenericText, **finding: Any) -> Finder:
    return Finder(context, Finding(**{"drop_share": 0.01, **finding}), {"rows": 12}, generic)


@pytest.mark.parametrize("name", ["EI", "SN"])
def test_masks_are_those_of_directed_and_the_control_those_of_exchanged_labels(
    context: SuiteContext, generic: GenericText, name: str
) -> None:
    data = read_dimension(context.model, context.tokenizer, context.data / f"mbti/{name}_dev.jsonl", name, SIZES)
    found = finder_of(context, generic).find(data)
    exchanged = tuple((n, p) if place % 2 else (p, n) for place, (p, n) in enumerate(data.calibration))
    for couples, masks in ((data.calibration, found.persona), (exchanged, found.shuffled)):
        session = open_session(context.model, context.tokenizer, data.contrast, generic=generic, resume=False)
        session = session.with_calibration(items(couples, data.paired))  # one pass over all of them
        for pole in (0, 1):
            whole = session.family(Settings(cheap_share=0.6, drop_share=0.01), pole, 0.6).at(found.dropped[pole])
            theirs = to_masks(whole)
            common = sum((~theirs[n] & ~masks[pole][n]).kept for n in theirs)
            assert common > 0.98 * found.dropped[pole]  # float sums in another order may exchange a near tie
    size = sum(t.size for t in context.targets)
    assert found.dropped == (round(0.01 * size), round(0.01 * size))


def test_random_masks_are_of_the_same_candidates(context: SuiteContext, generic: GenericText) -> None:
    data = read_dimension(context.model, context.tokenizer, context.data / "mbti/EI_dev.jsonl", "EI", SIZES)
    finder = finder_of(context, generic)
    found = finder.find(data)
    allowed = finder.session(data).candidates(0.6)
    drawn = [finder.random(data, found, seed) for seed in (0, 1)]
    for sides in drawn:
        for pole, masks in enumerate(sides):
            assert sum(m.dropped for m in masks.values()) == found.dropped[pole]
            assert all(allowed[n].flatten()[m.positions()].all() for n, m in masks.items())
    assert len({tuple(sorted((n, hash(m)) for n, m in s.items())) for sides in drawn for s in sides}) == 4


def test_a_budget_instead_of_shares(context: SuiteContext, generic: GenericText) -> None:
    data = read_dimension(context.model, context.tokenizer, context.data / "mbti/EI_dev.jsonl", "EI", SIZES)
    finder = finder_of(context, generic, cheap_share=None, drop_share=None, max_capability_loss=0.1)
    found = finder.find(data)
    assert min(found.dropped) > 0
    for own, control in zip(found.persona, found.shuffled, strict=True):
        assert sum(m.dropped for m in own.values()) == sum(m.dropped for m in control.values())
    with pytest.raises(OptionError, match="excludes"):
        Finding(max_capability_loss=0.1).settings(0)
    with pytest.raises(OptionError, match="or --max-capability-loss"):
        Finding(drop_share=None).settings(0)
    with pytest.raises(OptionError, match="candidates"):
        finder_of(context, generic, drop_share=0.9).find(data)


@pytest.mark.parametrize(("name", "own_weight"), [("EI", 0.0), ("EI", 1.0), ("SN", 1.0)])
def test_short_steps_for_the_persona_and_for_exchanged_labels(
    context: SuiteContext, generic: GenericText, monkeypatch: pytest.MonkeyPatch, name: str, own_weight: float
) -> None:
    monkeypatch.setattr(steps, "SHARE", 0.01)
    data = read_dimension(context.model, context.tokenizer, context.data / f"mbti/{name}_dev.jsonl", name, SIZES)
    within: dict[str, Any] = {"max_capability_loss": 0.5, "steps": 4, "own_weight": own_weight}
    finder = finder_of(context, generic, cheap_share=None, drop_share=None, **within)
    found = finder.find(data)
    exchanged = tuple((n, p) if place % 2 else (p, n) for place, (p, n) in enumerate(data.calibration))
    settings = Settings(**within).checked()
    for couples, masks in ((data.calibration, found.persona), (exchanged, found.shuffled)):
        session = open_session(context.model, context.tokenizer, data.contrast, generic=generic, resume=False)
        session = session.with_calibration(items(couples, data.paired))
        for pole in (0, 1):
            assert found.dropped[pole] > 0
            theirs = to_masks(stepped(session, settings, pole, 0.6).at(found.dropped[pole]))
            assert all(theirs[n] == masks[pole][n] for n in theirs)
    assert any(found.persona[0][n] != found.shuffled[0][n] for n in found.persona[0])
    if own_weight:
        alone = finder_of(context, generic, cheap_share=None, drop_share=None, **{**within, "own_weight": 0.0}).find(
            data
        )
        assert any(found.persona[0][n] != alone.persona[0][n] for n in alone.persona[0])
    assert not {"steps", "own_weight"} & set(Finding().key)  # parts of runs without them stay what they were
    assert finder.key["steps"] == 4
    assert finder.key.get("own_weight", 0.0) == own_weight
    with pytest.raises(OptionError, match="--steps"):
        Finding(steps=4).settings(0)
    with pytest.raises(OptionError, match="own_weight"):
        Finding(own_weight=1.0).settings(0)


def test_masks_survive_their_file_and_a_union_is_a_blend(
    context: SuiteContext, generic: GenericText, artefact_of: Any, contrast: Contrast
) -> None:
    artefact = artefact_of(context.model, contrast, share=0.05)
    masks = [artefact[p].masks for p in contrast.poles]
    assert unpacked(json.loads(json.dumps(packed(masks[0]))), context.targets) == masks[0]
    encoded = encode_contrast(context.model, context.tokenizer, contrast).positive[:6]
    with wearing(context.targets, union(masks)):
        ours = answer_nll(context.model, encoded)
    actor = PersonaModel(context.model, context.tokenizer)
    actor.add_personas(artefact)
    actor.set_persona(dict.fromkeys(contrast.poles, 1.0))
    assert torch.equal(answer_nll(context.model, encoded), ours)
    actor.disable_persona()


# --------------------------------------------------------------------------------------------------- readings


def test_readings_are_mean_log_probabilities(context: SuiteContext, generic: GenericText) -> None:
    data = read_dimension(context.model, context.tokenizer, context.data / "mbti/EI_dev.jsonl", "EI", SIZES)
    finder = finder_of(context, generic)
    readings = read_all(Reader(context, finder.key), finder, data, random_seeds=1, recipe=None)
    answers = flat(data.test)

    def slow() -> list[float]:
        """One answer a batch, prompt and answer in one row."""
        read = [answer_nll(context.model, [a.encoded])[0] for a in answers]
        return [float(-row[0] / row[1]) for row in read]

    assert np.allclose(readings.base, slow(), atol=1e-4)
    with wearing(context.targets, readings.found.persona[1]):
        assert np.allclose(readings.persona[1], slow(), atol=1e-4)
    assert np.allclose(mean_log_p(context, answers, "again"), readings.base)


def test_planted_readings_give_the_known_figures(context: SuiteContext, generic: GenericText) -> None:
    """Readings written by hand: the masks know the poles, the controls do not, the pole's answers rise by a tenth."""
    data = read_dimension(context.model, context.tokenizer, context.data / "mbti/EI_dev.jsonl", "EI", SIZES)
    finder = finder_of(context, generic)
    readings = read_all(Reader(context, finder.key), finder, data, random_seeds=1, recipe=None)
    n = len(readings.base)
    sign = np.where(np.arange(n) % 2 == 0, 0.1, -0.1)
    base, flat_side = np.zeros(n), (np.zeros(n), np.zeros(n))
    planted = replace(
        readings, base=base, persona=(sign, -2 * sign), shuffled=flat_side, random=(flat_side,),
        ceiling=(-sign, sign), length=np.arange(n) % 2 * -1.0,
    )  # fmt: skip
    figures, warnings = dimension_figures(planted, Draws(100, 0))
    assert figures["auc"] == figures["auc_length"] == Estimate(1.0, 1.0, 1.0)
    assert figures["auc_shuffled"] == figures["auc_random"] == Estimate(0.5, 0.5, 0.5)
    assert figures["auc_ceiling"] == Estimate(0.0, 0.0, 0.0)
    assert figures["auc_gain_over_ceiling"] is None  # what is below chance is no ceiling
    trained, _ = dimension_figures(replace(planted, ceiling=(sign, -sign), persona=flat_side), Draws(100, 0))
    assert trained["auc_over_ceiling"] == Estimate(0.5, 0.5, 0.5)
    assert trained["auc_gain_over_ceiling"] == Estimate(0.0, 0.0, 0.0)
    gap = figures["auc_minus_best_control"]
    assert isinstance(gap, Difference)
    assert (gap.value, gap.low) == (0.5, 0.5)
    own, opposite = figures["own_answers"], figures["own_answers_opposite"]
    assert isinstance(own, Estimate)
    assert isinstance(opposite, Estimate)
    assert (own.value, opposite.value) == pytest.approx((0.1, 0.2))
    told = " ".join(warnings)
    assert "bag of words alone reaches an AUC of 1.00" in told  # the two poles of the file share no word
    assert "length alone reaches an AUC of 1.00" in told
    assert "no ceiling" in told
    assert "no better than its controls" not in told
    even = tuple((replace(p, length=9), replace(q, length=9)) for p, q in data.test)
    _, equal = dimension_figures(replace(planted, data=replace(data, test=even)), Draws(100, 0))
    assert "all answers have 9 tokens" in " ".join(equal)
    assert "all answers have" not in told
    worse, warned = dimension_figures(replace(planted, persona=flat_side), Draws(100, 0))
    assert worse["auc"] == Estimate(0.5, 0.5, 0.5)
    assert "no better than its controls" in " ".join(warned)


# ------------------------------------------------------------------------------------------------------ whole


def test_the_whole_suite_and_its_second_run(context: SuiteContext, generic: GenericText) -> None:
    before = bits(context.model)
    recipe = Recipe(rank=2, epochs=1, pairs=4)
    result = run(context, **SMALL, generic=generic, ceiling=True, recipe=recipe)
    assert same_bits(context.model, before)
    for name in ("EI", "SN", "TF", "JP"):
        for figure in (
            "auc", "auc_shuffled", "auc_random", "auc_bag_of_words", "auc_ceiling", "auc_over_ceiling", "own_answers",
            "questionnaire",
        ):  # fmt: skip
            cell = result.figures[f"{name}.{figure}"]
            assert isinstance(cell, Estimate | Difference)
            assert cell.low <= cell.value <= cell.high or figure == "auc_over_ceiling"
    right = result.figures["types.right"]
    assert isinstance(right, int)
    assert 0 <= right <= 16
    titles = [table.title for table in result.tables]
    assert len(titles) == 6
    specific = result.tables[2]
    assert [row[0] for row in specific.rows] == list("EISNTFJP")
    assert [row[0] for row in result.tables[3].rows] == list(TYPES)
    assert len(set(TYPES)) == 16
    markdown = suite_to_markdown(result)
    assert "**Warning**" in markdown
    json.dumps(suite_to_dict(result), allow_nan=False)
    assert len(result.data) == 5
    assert not context.model.training

    parts = sorted(p.name for p in context.parts.iterdir()) if context.parts else []
    stamps = {p: (context.parts / p).stat().st_mtime_ns for p in parts} if context.parts else {}
    again = SuiteContext(context.model, context.tokenizer, context.data, context.parts)
    assert suite_to_dict(run(again, **SMALL, generic=generic, ceiling=True, recipe=recipe)) == suite_to_dict(result)
    assert context.parts is not None
    assert {p.name: p.stat().st_mtime_ns for p in context.parts.iterdir()} == stamps  # nothing was computed again


def test_specificity_is_the_shift_written_out(context: SuiteContext, generic: GenericText) -> None:
    result = run(context, **SMALL, generic=generic, dimensions=("EI", "SN"), questionnaire=False)
    assert "types.right" not in result.figures
    assert any("sixteen types" in note for note in result.notes)
    finder = Finder(context, Finding(drop_share=0.01), {"rows": 8, "tokens": 16, "instructions": "as-is"}, generic)
    sizes = Sizes(8, 8, 6, 16)
    ei, sn = (
        read_dimension(context.model, context.tokenizer, context.data / f"mbti/{n}_dev.jsonl", n, sizes)
        for n in ("EI", "SN")
    )
    answers = flat(sn.test[:2])
    before = np.array(mean_log_p(context, answers, "base"))
    with wearing(find_targets(context.model), finder.find(ei).persona[1]):
        change = np.array(mean_log_p(context, answers, "I")) - before
    row = next(row for row in result.tables[2].rows if row[0] == "I")
    cell = row[2]
    assert isinstance(cell, Estimate)
    assert cell.value == pytest.approx((change[0] + change[2]) / 2 - (change[1] + change[3]) / 2, abs=1e-6)


def test_a_file_with_one_pole_is_told_of_in_the_table(context: SuiteContext, generic: GenericText) -> None:
    write(context.data, "JP", poles="J")
    result = run(context, **SMALL, generic=generic, dimensions=("EI", "JP"), questionnaire=False)
    table = result.tables[0]
    assert any(w.startswith("JP: the file holds answers of one pole only (judging)") for w in table.warnings)
    assert [row[0] for row in table.rows] == ["EI", "JP"]
    assert set(table.rows[1][1:]) == {None}
    assert not any(name.startswith("JP.") for name in result.figures)


def test_limit_bounds_every_set(context: SuiteContext, generic: GenericText) -> None:
    limited = replace(context, limit=3, parts=None)
    result = run(limited, **SMALL, generic=generic, dimensions=("EI",), questionnaire=False)
    assert result.figures["EI.test_answers"] == 6
    assert "3 calibration and 3 test answers a pole" in result.notes[0]
    assert result.settings["limit"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": ("EI", "XX")}, "choose from"),
        ({"dimensions": ()}, "none"),
        ({"instructions": "near"}, "unknown instructions"),
        ({"strength": 1.5}, "at most 1"),
        ({"rows": 1}, "rows is 1"),
        ({"random_seeds": 0}, "random_seeds is 0"),
        ({"recipe": Recipe()}, "ask for the ceiling"),
        ({"drop_share": 1.5}, "--drop-share"),
        ({"max_capability_loss": 0.1}, "excludes"),
    ],
)
def test_bad_options_are_refused_before_anything_is_read(
    context: SuiteContext, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        run(context, **{**SMALL, **options})
    assert not context.read


def test_missing_files_are_named(context: SuiteContext, tmp_path: Path) -> None:
    (tmp_path / FILE).unlink()
    with pytest.raises(DataError, match="16Personalities"):
        run(context, **SMALL)
    (tmp_path / "mbti" / "TF_dev.jsonl").unlink()
    with pytest.raises(DataError, match="TF_dev"):
        run(context, **SMALL)


def test_the_questionnaire_is_turned_towards_the_first_letters() -> None:
    inventory = Inventory(
        "x", ("E/I", "P/J"),
        (InventoryItem("a", "E/I", 1), InventoryItem("b", "P/J", 1), InventoryItem("c", "P/J", -1)),
    )  # fmt: skip
    turned = aligned(inventory)
    assert turned.traits == ("E/I", "J/P")
    assert [(i.trait, i.key) for i in turned.items] == [("E/I", 1), ("J/P", -1), ("J/P", 1)]
    assert [i.statement for i in few(turned, 1).items] == ["a", "b"]


@pytest.mark.parametrize(("name", "paired"), [("EI", True), ("SN", False), ("TF", True), ("JP", False)])
def test_public_files_have_enough_answers(model_and_tokenizer: Any, name: str, paired: bool) -> None:
    path = DATA / f"mbti/{name}_dev.jsonl"
    if not path.is_file():
        pytest.skip(f"public data {path.name} not found; set PERSONAE_DATA to the folder that holds it")
    model, tokenizer = model_and_tokenizer
    model.config.max_position_embeddings = 1 << 20  # only token ids are made; nothing is run
    data = read_dimension(model, tokenizer, path, name, Sizes(120, 48, 96, 96))
    assert data.paired == paired
    assert (len(data.calibration), len(data.dev), len(data.test)) == (120, 48, 96)
