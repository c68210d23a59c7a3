"""The suite on a tiny model and tiny files of the public schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personae.discovery import silent
from personae.errors import DataError, OptionError
from personae.evaluation.bootstrap import difference, paired_bootstrap
from personae.evaluation.suites import SuiteContext, capability, suite_to_dict, suite_to_markdown
from personae.evaluation.suites.capability import WIKITEXT, mmlu_readings, run, trivial_baselines, worst
from personae.evaluation.suites.capability_tasks import TASKS, Item, credit, gold_of, read_items, score_choices, scores
from personae.personas import Contrast
from personae.runtime import wearing
from personae.subnetwork import Artefact, Mask, Subnetwork

TOPICS = ("boats", "letters", "music", "walls", "bread", "maps", "trees", "roads")


def rows_of(task: str) -> list[dict[str, Any]]:
    choices = ["go at once", "stay", "read a long book", "call friends"]
    made: dict[str, Any] = {
        "hellaswag": lambda n, t: {
            "activity_label": t, "ctx_a": f"The {t} are old.", "ctx_b": "", "endings": choices, "label": str(n % 4),
        },
        "mmlu": lambda n, t: {"question": f"Who has {t}?", "subject": "x", "choices": choices, "answer": n % 4},
        "arc_easy": lambda n, t: {
            "question": f"Where are {t}?", "choices": {"text": choices[:3], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[n % 3],
        },
        "piqa": lambda n, t: {"goal": f"Move {t}", "sol1": "push", "sol2": "pull it hard", "label": n % 2},
        "winogrande": lambda n, t: {
            "sentence": f"The {t} and the sea: _ is calm.", "option1": t, "option2": "the sea",
            "answer": str(n % 2 + 1),
        },
    }  # fmt: skip
    return [made[task](n, t) for n, t in enumerate(TOPICS)]


@pytest.fixture
def context(model_and_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SuiteContext:
    """A tiny model, eight items a task, short windows, three short answers."""
    data = tmp_path / "data"
    for task in TASKS:
        path = data / task.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(task.name)))
    (data / WIKITEXT).parent.mkdir(parents=True)
    (data / WIKITEXT).write_text("The sea was calm and the boats lay still . " * 30)
    monkeypatch.setattr(capability, "WINDOW", 40)
    monkeypatch.setattr(capability, "WINDOWS", 5)
    monkeypatch.setattr(capability, "ANSWERS", 3)
    monkeypatch.setattr("personae.evaluation.suites.capability_text.ANSWER_TOKENS", 12)
    return SuiteContext(*model_and_tokenizer, data=data, parts=tmp_path / "parts")


def test_figures_are_those_of_the_items(context: SuiteContext, contrast: Contrast, artefact_of: Any) -> None:
    artefact = artefact_of(context.model, contrast, share=0.1)
    result = run(context, [artefact], items=6)
    figures: Any = result.figures
    for task in TASKS:
        items = read_items(task, context.data / task.file, 6, 0)
        assert len(items) == 6
        found = {}
        for name in ("base", "loud", "quiet"):
            masks = artefact[name].masks if name != "base" else {}
            with wearing(context.targets, masks):
                scored = score_choices(context.model, context.tokenizer, items, "test", silent)
            found[name] = credit(scores(items, scored, by_bytes=task.by_bytes), gold_of(items))
        assert figures[f"{task.name}_base"].value == found["base"].mean()
        changes = [difference(found[n], found["base"]) for n in ("loud", "quiet")]
        assert figures[f"{task.name}_change"].value == min(c.value for c in changes)
        changed = next(t for t in result.tables if t.title == "Accuracy, change to base")
        kind = "by bytes" if task.by_bytes else "summed"
        column = changed.columns.index(f"{task.title}, {kind}")
        assert [row[column] for row in changed.rows] == changes
    assert figures["wikitext_kl"].value > 0
    assert figures["wikitext_kl"].low > 0
    assert figures["wikitext_nll_base"].value > 0
    assert "wikitext_kl_base" not in figures
    assert {"mmlu_gold_logprob_change", "mmlu_gold_logprob_raw_change", "mmlu_gold_answer_change"} < set(figures)
    assert {"repetition_base", "repetition_change", "answer_tokens_change"} < set(figures)
    assert result.settings["items"] == 6
    assert set(result.data) == {WIKITEXT, *(task.file for task in TASKS)}
    json.dumps(suite_to_dict(result), allow_nan=False)
    assert "WinoGrande" in suite_to_markdown(result)
    assert "not shown to be above chance" in " ".join(result.tables[0].warnings)  # random weights


def test_a_mask_that_drops_nothing_changes_nothing(context: SuiteContext, contrast: Contrast, artefact_of: Any) -> None:
    made = artefact_of(context.model, contrast)
    full = {t.name: Mask.full(t.shape) for t in context.targets}
    result = run(context, [Artefact(made.model, {"idle": Subnetwork("idle", full, made["loud"].provenance)})])
    changes = {n: f for n, f in result.figures.items() if n.endswith("_change") or n == "wikitext_kl"}
    assert len(changes) == 12
    assert all((f.value, f.low, f.high) == (0, 0, 0) for f in changes.values())  # type: ignore[union-attr]


def test_base_alone_limit_and_kept_parts(context: SuiteContext, monkeypatch: pytest.MonkeyPatch) -> None:
    context.limit = 2
    result = run(context)
    assert not [n for n in result.figures if n.endswith("_change") or n == "wikitext_kl"]
    assert len(result.tables) == 4
    assert result.settings["items"] == result.settings["windows"] == result.settings["answers"] == 2
    for name in ("score_choices", "divergence", "greedy_answers"):
        monkeypatch.setattr(capability, name, None)  # the kept parts are enough
    assert run(context).figures == result.figures


def test_what_is_refused(context: SuiteContext) -> None:
    with pytest.raises(OptionError, match="at least 1"):
        run(context, items=0)
    (context.data / WIKITEXT).write_text("Short.")
    with pytest.raises(DataError, match="no window of 40 tokens"):
        run(context, items=1)
    (context.data / TASKS[0].file).unlink()
    with pytest.raises(DataError, match="Rowan/hellaswag"):
        run(context, items=1)


def test_the_worst_is_chosen_again_in_every_resample() -> None:
    generator = np.random.default_rng(3)
    gaps = generator.normal(-0.02, 0.3, (50, 3))
    found = worst(gaps, highest=False, seed=0)
    means = [min(row) for row in paired_bootstrap(gaps, seed=0).tolist()]
    assert found.value == pytest.approx(min(gaps.mean(axis=0)))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert worst(gaps, highest=True, seed=0).value == pytest.approx(max(gaps.mean(axis=0)))
    alone = worst(gaps[:, :1], highest=False, seed=0)
    expected = difference(gaps[:, 0], np.zeros(50))
    assert (alone.value, alone.low, alone.high) == pytest.approx((expected.value, expected.low, expected.high))


def items_of(texts: list[tuple[str, ...]], gold: list[int]) -> list[Item]:
    return [Item(("p",) * len(t), t, t, g) for t, g in zip(texts, gold, strict=True)]


def test_trivial_baselines() -> None:
    items = items_of([("a", "bb", "ccc"), ("dd", "é"), ("x", "yyy", "z")], [2, 0, 0])
    found = trivial_baselines(items)
    assert found["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 3) / 3)
    assert found["most frequent position"] == pytest.approx(2 / 3)
    assert found["shortest"] == pytest.approx((0 + 0.5 + 0.5) / 3)  # 'é' has two bytes
    assert found["longest"] == pytest.approx((1 + 0.5 + 0) / 3)


def test_a_rule_that_solves_a_task_is_warned_of(context: SuiteContext) -> None:
    rows = [{"goal": f"Move {t}", "sol1": "push", "sol2": "pull it hard", "label": 1} for t in TOPICS]
    piqa = next(t for t in TASKS if t.name == "piqa")
    (context.data / piqa.file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    warned = " ".join(run(context).tables[0].warnings)
    assert "PIQA: the rule 'most frequent position' is right on 1.00" in warned
    assert "PIQA: the rule 'longest' is right on 1.00" in warned
    assert "HellaSwag: the rule" not in warned


def test_mmlu_log_probabilities_by_hand() -> None:
    p = [0.1, 0.2, 0.05, 0.05]
    scored = [[[float(np.log(x)), 1.0] for x in p] + [[-6.0, 3.0]]]
    among, alone, written = mmlu_readings(items_of([("a", "b", "c", "d")], [1]), {"base": scored})
    assert among.values["base"] == pytest.approx([np.log(0.5)])
    assert alone.values["base"] == pytest.approx([np.log(0.2)])
    assert written.values["base"] == pytest.approx([-2.0])
