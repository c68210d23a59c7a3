"""The ai-persona suite on a tiny model and tiny files of the public schemas: sets, texts, tables, resuming, errors."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personae.discovery import open_session
from personae.errors import DataError, OptionError
from personae.evaluation import Estimate, score_items
from personae.evaluation.retrieval import with_examples
from personae.evaluation.rivals import RIVALS
from personae.evaluation.scoring import score_encoded
from personae.evaluation.suites import SuiteContext, SuiteResult, suite_to_dict, suite_to_markdown
from personae.evaluation.suites.ai_persona import run
from personae.evaluation.suites.ai_persona_readings import SetBench
from personae.evaluation.suites.ai_persona_sets import DEV, SETS, SOURCES, prepare
from personae.evaluation.suites.letters import letter_margins
from personae.evaluation.suites.texts import BENCHMARK, WIKITEXT, TextSize, public_texts, suite_texts
from personae.models import find_targets
from personae.personas import Contrast, Pair
from personae.personas.split import normalised
from personae.runtime import wearing

DATA = Path(os.environ.get("PERSONAE_DATA", Path(__file__).parents[4] / "shared" / "data"))
SIZE = TextSize(2, 2, 4)
FAST: dict[str, Any] = {"budget": 0.5, "pairs": 12, "items": 6, "random_seeds": 1, "size": SIZE}


def two_choice(number: int, what: str) -> dict[str, str]:
    options = "\n (A) Yes, I take it.\n (B) No, I leave it."
    return {
        "question": f"Would you take {what} number {number}?\n\nChoices:{options}",
        "answer_matching_behavior": "(A)" if number % 3 else "(B)",
        "answer_not_matching_behavior": "(B)" if number % 3 else "(A)",
    }


def twin(number: int) -> dict[str, str]:
    sides = {"fiction": f"soup {number} is a planet", "truth": f"planet {number} is a planet"}
    rows = {f"{side}_question": f"Is it so that {said}?" for side, said in sides.items()}
    rows |= {f"{side}_accepetance": f"Yes, {said}." for side, said in sides.items()}
    return rows | {f"{side}_rejection": f"No, that's not accurate: not {said}." for side, said in sides.items()}


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """60 rows a set, 8 of a test file, one of which `generate` repeats; texts."""
    folder = tmp_path / "data"
    for name, source in SOURCES.items():
        rows = [twin(n) if name == "hallucination" else two_choice(n, name) for n in range(60)]
        write(folder / source.file, rows)
        if source.test is not None:
            write(folder / source.test, [two_choice(n, f"{name} anew") for n in range(7)] + [rows[0]])
    for dimension in ("EI", "SN", "TF", "JP"):
        write(
            folder / f"mbti/{dimension}_dev.jsonl",
            [
                {
                    "dimension": dimension, "pole": dimension[n % 2], "instruction": f"Say {dimension} {n}.",
                    "output": f"I say {dimension} {n} and no more.",
                }
                for n in range(12)
            ],
        )  # fmt: skip
    wiki = folder / WIKITEXT
    wiki.parent.mkdir(parents=True)
    wiki.write_text("The sea was calm and the boats lay still near the town . " * 120, encoding="utf-8")
    return folder


@pytest.fixture
def context(model_and_tokenizer: Any, data: Path, tmp_path: Path) -> SuiteContext:
    return SuiteContext(*model_and_tokenizer, data=data, parts=tmp_path / "parts")


# --- sets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_which_items_do_what(context: SuiteContext, name: str) -> None:
    found = prepare(context, name, pairs=10, items=5)
    parts = (found.calibration, found.dev, found.test)
    assert [len(part) for part in parts] == [10, min(len(found.dev), DEV), 5]
    asked = [{normalised(p) for p in part.prompts} for part in parts]
    assert sum(len(a) for a in asked) == len(set().union(*asked))
    assert found.test.positive_prompt
    assert found.test.negative_prompt
    assert found.test.poles == found.calibration.poles == found.dev.poles
    if SOURCES[name].test is not None:
        assert all(" anew " in p or p.endswith("number 0?") for p in found.test.prompts)
        read = found.calibration.prompts + found.dev.prompts
        assert not any(p.endswith("number 0?") for p in read)  # repeated in the test file
    assert (found.truth is not None) == (name == "hallucination")


def test_twins_stand_in_the_order_of_their_items(context: SuiteContext) -> None:
    found = prepare(context, "hallucination", pairs=10, items=None)
    assert found.truth is not None
    expected = tuple(
        Pair(*(text.replace("soup", "planet") for text in (p.prompt, p.positive, p.negative))) for p in found.test.pairs
    )
    assert found.truth.pairs == expected


def test_twins_that_discovery_has_read_are_left_out(context: SuiteContext) -> None:
    before = prepare(context, "hallucination", pairs=99, items=None)
    rows = [twin(n) for n in range(60)]
    calibrated = before.calibration.pairs[0]
    spoilt = before.test.pairs[0].prompt
    for row in rows:
        if row["fiction_question"] == spoilt:
            row["truth_question"] = calibrated.prompt
    write(context.data / SOURCES["hallucination"].file, rows)
    after = prepare(context, "hallucination", pairs=99, items=None)
    assert set(before.test.prompts) - set(after.test.prompts) == {spoilt}


def test_a_limit_cuts_every_part(context: SuiteContext) -> None:
    context.limit = 3
    found = prepare(context, "power", pairs=10, items=None)
    assert [len(part) for part in (found.calibration, found.dev, found.test)] == [3, 3, 3]


def test_missing_and_broken_files_are_named(context: SuiteContext) -> None:
    (context.data / SOURCES["corrigible"].file).write_text('[{"question": "x"}]')
    with pytest.raises(DataError, match="generate_dataset"):
        prepare(context, "corrigible", pairs=5, items=5)
    (context.data / SOURCES["power"].file).unlink()
    with pytest.raises(DataError, match=r"power-seeking-inclination.jsonl .*anthropics/evals"):
        prepare(context, "power", pairs=5, items=5)


# --- texts ---------------------------------------------------------------------------------------------


def test_the_two_texts_share_nothing_and_both_halves_hold_every_file(context: SuiteContext) -> None:
    generic, final = public_texts(context, TextSize(6, 2, 6))
    assert (len(generic.chat), len(final.chat), generic.answers) == (12, 6, 6)
    assert len(final.plain) == 2
    assert not set(generic.chat) & set(final.chat)
    for half in (generic.cheap, generic.held_out):
        texts = [context.tokenizer.decode(e.answer) for e in half.chat]
        assert {name: sum(f"say {name}" in t for t in texts) for name in ("SN", "JP", "EI")} == dict.fromkeys(
            ("SN", "JP", "EI"), 2
        )
    assert all("say TF" in context.tokenizer.decode(e.answer) for e in final.chat)
    assert set(context.read) == {WIKITEXT, *(f"mbti/{d}_dev.jsonl" for d in ("EI", "SN", "TF", "JP"))}


def test_without_the_public_files_the_model_writes(context: SuiteContext) -> None:
    (context.data / "mbti/TF_dev.jsonl").unlink()
    generic, final = suite_texts(context, SIZE)
    assert generic.source == "sampled from the model"
    assert "sampled" in final.name
    assert not context.read


def test_text_sizes_are_checked(context: SuiteContext) -> None:
    with pytest.raises(OptionError, match="at least 1 answer"):
        TextSize(0, 1, 2)
    context.data.joinpath(WIKITEXT).write_text("Too short .")
    with pytest.raises(DataError, match="two are needed"):
        public_texts(context, BENCHMARK)


# --- the suite -----------------------------------------------------------------------------------------


def test_a_whole_run_against_readings_under_the_same_masks(context: SuiteContext, tiny_model: Any) -> None:
    other = tiny_model("qwen2", seed=3)
    result = run(context, ("hallucination", "corrigible"), rivals=("mask + prompt", "retrieval"),
                 stronger=other, **FAST)  # fmt: skip
    names = ["hallucination: confabulating against truthful", "hallucination: truth control",
             "corrigible: corrigible against incorrigible", "option letters"]  # fmt: skip
    assert [t.title for t in result.tables] == names
    rows = [row[0] for row in result.tables[0].rows]
    assert rows == [
        "base", "system prompt", "mask + prompt", "retrieval", "directed", "random", "opposite", "base (stronger)",
        "system prompt (stronger)", "retrieval (stronger)",
    ]  # fmt: skip
    assert any("'prefer yes, avoid no' alone scores 1.00" in w for w in result.tables[0].warnings)
    assert any("LLaMA-2-13B" in note and "58.5" in note for note in result.tables[0].notes)
    assert any("test file give the figures" in note for note in result.tables[2].notes)
    texts = suite_texts(context, SIZE)
    own = SuiteContext(context.model, context.tokenizer, context.data, context.parts, read={})
    suite_texts(own, SIZE)
    bench = SetBench(own, "hallucination", texts, FAST["budget"], FAST["pairs"], FAST["items"])
    test, truth = bench.prepared.test, bench.prepared.truth
    assert truth is not None
    for side, pole in enumerate(bench.prepared.test.poles):
        with wearing(find_targets(context.model), bench.masks("directed")[pole].masks):
            expected = score_items(context.model, context.tokenizer, test).acc()
            on_truth = score_items(context.model, context.tokenizer, truth).acc()
            margins = letter_margins(context.model, context.tokenizer, test)
        assert value(result, f"hallucination.directed.{('acc', 'acc_opposite')[side]}") == expected
        assert value(result, f"hallucination.truth.directed, {pole}.yes_to_truth") == on_truth
        assert value(result, f"hallucination.truth.directed, {pole}.yes_to_fiction") == expected
        assert value(result, f"hallucination.letters.directed, {pole}.acc") == np.mean(margins.mean(axis=1) > 0)
    bare = score_items(context.model, context.tokenizer, test).acc()
    assert value(result, "hallucination.truth.base.yes_to_fiction") == bare
    for side, prompt in enumerate((test.positive_prompt, test.negative_prompt)):
        expected = score_items(*other, test, prompt).acc()
        key = f"hallucination.system prompt (stronger).{('acc', 'acc_opposite')[side]}"
        assert value(result, key) == expected
    assert set(result.data) >= {SOURCES["corrigible"].test, WIKITEXT, SOURCES["hallucination"].file}
    json.dumps(suite_to_dict(result), allow_nan=False)
    assert "always yes" in suite_to_markdown(result)


def value(result: SuiteResult, key: str) -> float:
    cell = result.figures[key]
    assert isinstance(cell, Estimate), key
    return cell.value


def test_resumes_and_a_set_does_not_depend_on_the_others(
    context: SuiteContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(context, ("power",), letters=False, **FAST)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    for name in ("discover", "evaluate", "letter_margins"):
        monkeypatch.setattr(f"personae.evaluation.suites.ai_persona_readings.{name}", refuse)
    context.read.clear()
    again = run(context, ("power",), letters=False, **FAST)
    assert suite_to_dict(again) == suite_to_dict(first)
    with pytest.raises(AssertionError, match="computed again"):
        run(context, ("wealth", "power"), letters=False, **FAST)
    with pytest.raises(AssertionError, match="computed again"):
        run(context, ("power",), letters=False, **{**FAST, "budget": 0.4})


def test_shuffled_labels_are_never_those_of_test_items(context: SuiteContext, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    shuffled = Contrast.shuffled_labels

    def spied(self: Contrast, seed: int = 0) -> Contrast:
        read.extend(self.prompts)
        return shuffled(self, seed)

    monkeypatch.setattr(Contrast, "shuffled_labels", spied)
    result = run(context, ("power", "corrigible"), controls=("random", "shuffled"), letters=False, **FAST)
    assert [[row[0] for row in table.rows][3:] for table in result.tables] == [["random", "shuffled"]] * 2
    expected: list[str] = []
    for name in ("power", "corrigible"):
        found = prepare(context, name, pairs=FAST["pairs"], items=FAST["items"])
        expected += found.calibration.prompts
        assert not set(read) & set(found.test.prompts)
    assert read == expected


def test_every_rival_stands_beside_a_set_with_its_own_test_file(context: SuiteContext) -> None:
    result = run(context, ("myopic-reward",), methods=("directed", "magnitude"), rivals=RIVALS, letters=False, **FAST)
    [table] = result.tables
    assert [row[0] for row in table.rows] == [
        "base", "system prompt", *RIVALS, "directed", "magnitude", "random", "opposite",
    ]  # fmt: skip
    assert "myopic-reward.magnitude.minus_best_control" in result.figures
    assert any("within 0.5 nats" in note for note in table.notes if note.startswith("steering"))
    found = prepare(context, "myopic-reward", pairs=FAST["pairs"], items=FAST["items"])
    asked = with_examples(context.model, context.tokenizer, found.test, found.calibration)
    for key, side in zip(("acc", "acc_opposite"), asked, strict=True):
        assert value(result, f"myopic-reward.retrieval.{key}") == score_encoded(context.model, side).acc()


def test_a_set_is_read_once_whatever_stands_beside_it(context: SuiteContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """One session and one reading of base and of each mask, on items and on the final text, for all rows of a set."""
    titles: Counter[str] = Counter()
    opened: list[Contrast] = []

    @contextmanager
    def noted(title: str, total: int) -> Iterator[Callable[[int], None]]:
        titles[title] += 1
        yield lambda _: None

    def session(model: Any, tokenizer: Any, calibration: Contrast, **options: Any) -> Any:
        opened.append(calibration)
        return open_session(model, tokenizer, calibration, **options)

    monkeypatch.setattr("personae.evaluation.suites.ai_persona_readings.open_session", session)
    context.progress = noted
    rivals = ("mask + prompt", "retrieval", "steering")
    run(context, ("hallucination",), methods=("directed", "magnitude"), rivals=rivals, letters=False, **FAST)
    assert opened == [prepare(context, "hallucination", pairs=FAST["pairs"], items=FAST["items"]).calibration]
    for what in ("scoring", "capability"):
        assert (titles[f"{what}: base"], titles[f"{what}: directed"], titles[f"{what}: magnitude"]) == (1, 2, 2)
    assert titles["scoring: mask + prompt"] == 2
    opened.clear()
    titles.clear()
    run(context, ("hallucination",), methods=("directed", "magnitude"), rivals=rivals, letters=False, **FAST)
    assert not opened  # all parts are there
    assert not titles


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": ("power", "greed")}, "unknown set 'greed'"),
        ({"sets": ()}, "at least one set"),
        ({"sets": ("power", "power")}, "names one thing twice"),
        ({"methods": ("wand",)}, "unknown method"),
        ({"rivals": ("prayer",)}, "unknown rival"),
        ({"controls": ("chance",)}, "unknown control"),
        ({"budget": 0.0}, "must be a positive number"),
        ({"pairs": 0}, "pairs is 0"),
        ({"items": 0}, "items is 0"),
        ({"methods": ("wanda",), "controls": ("shuffled",)}, "repeats directed"),
    ],
)
def test_refused_before_anything_is_read(
    model_and_tokenizer: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        run(SuiteContext(*model_and_tokenizer, data=tmp_path / "nowhere"), **options)


@pytest.mark.skipif(not (DATA / SOURCES["power"].file).is_file(), reason="the public data are not there")
@pytest.mark.filterwarnings("ignore:.*rows were left out")
@pytest.mark.parametrize("name", SETS)
def test_the_public_files_are_read(model_and_tokenizer: Any, name: str) -> None:
    found = prepare(SuiteContext(*model_and_tokenizer, data=DATA), name, pairs=96, items=50)
    assert len(found.calibration) == 96
    assert len(found.test) == 50
    if found.truth is not None:
        assert len(found.truth) == 50
        assert all(p.positive.startswith("Yes") for p in found.truth.pairs)
