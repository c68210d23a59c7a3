"""The suite on a tiny model; planted answerers through the whole of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personae.errors import DataError
from personae.evaluation.bootstrap import difference
from personae.evaluation.suites import SuiteContext, big_five, suite_to_dict, suite_to_markdown
from personae.evaluation.suites.big_five import FILE, run
from personae.evaluation.suites.questionnaires import Answers, answer_items, keyed, read_mpi
from personae.personas import Contrast
from personae.runtime import wearing

LETTERS = ("a", "b", "c", "d", "e")
ROWS = [
    (trait, text, key) for trait in "NEOAC" for text, key in (("Worry a lot", 1), ("Call friends", 1), ("Read", -1))
]


@pytest.fixture
def context(model_and_tokenizer: Any, tmp_path: Path) -> SuiteContext:
    """A tiny model and an inventory of 15 items."""
    path = tmp_path / "data" / FILE
    path.parent.mkdir(parents=True)
    lines = [f"x,{text} about {trait},{trait},{key}" for trait, text, key in ROWS]
    path.write_text("\n".join(["label_raw,text,label_ocean,key", *lines]))
    return SuiteContext(*model_and_tokenizer, data=tmp_path / "data", parts=tmp_path / "parts")


def test_base_and_personas_by_hand(
    context: SuiteContext, contrast: Contrast, artefact_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(big_five, "ACCURATE_5", LETTERS)  # of one length, or random weights care for nothing else
    artefact = artefact_of(context.model, contrast, share=0.1)
    result = run(context, [artefact])
    inventory = read_mpi(context.data / FILE)
    statements = [item.statement for item in inventory.items]
    base = answer_items(context.model, context.tokenizer, statements, LETTERS)
    with wearing(context.targets, artefact["loud"].masks):
        loud = answer_items(context.model, context.tokenizer, statements, LETTERS)
    of = inventory.of("E")
    figures: Any = result.figures
    assert figures["base.E"].value == pytest.approx(float((inventory.keys * base.expected)[of].mean()), abs=1e-5)
    expected = difference(keyed(inventory, loud.expected)[of], keyed(inventory, base.expected)[of])
    assert figures["loud.E_change"].value == pytest.approx(expected.value, abs=1e-5)
    assert figures["loud.E_change"].low == pytest.approx(expected.low, abs=1e-5)
    assert figures["loud.E_change"].value == pytest.approx(figures["loud.E"].value - figures["base.E"].value, abs=1e-6)
    assert abs(figures["loud.E_change"].value) > 1e-4
    assert figures["base.flip_rate"].value == base.flips.mean()
    assert figures["always_agree.E"] == pytest.approx(1 / 3)
    assert "base.E_change" not in figures
    assert [t.title for t in result.tables] == [
        "Big Five", "Big Five, change to base", "Big Five, change to base with mere agreement taken out",
        "Order of the options",
    ]  # fmt: skip
    assert [row[0] for row in result.tables[0].rows] == ["base", "loud", "quiet", "always agree"]
    assert list(result.data) == [FILE]
    json.dumps(suite_to_dict(result), allow_nan=False)
    assert "openness" in suite_to_markdown(result)


def test_without_artefacts_only_base(context: SuiteContext) -> None:
    result = run(context)
    assert [t.title for t in result.tables] == ["Big Five", "Order of the options"]
    assert not [name for name in result.figures if "change" in name]


def planted(monkeypatch: pytest.MonkeyPatch, rule: Callable[[bool, str], int]) -> None:
    """rule(some mask is worn, statement) -> which option is chosen, in both orders."""

    def answer(model: Any, tokenizer: Any, statements: Any, options: Any, progress: Any, title: str) -> Answers:
        log_p = np.full((len(statements), 2, len(options)), -40.0)
        for row, statement in enumerate(statements):
            log_p[row, :, rule("base" not in title, statement)] = 0.0
        return Answers(tuple(options), log_p)

    monkeypatch.setattr(big_five, "answer_items", answer)


def test_who_agrees_with_everything_scores_the_baseline(
    context: SuiteContext, contrast: Contrast, artefact_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, lambda worn, statement: 4 if worn else 2)
    result = run(context, [artefact_of(context.model, contrast)])
    figures: Any = result.figures
    for trait in "OCEAN":
        assert figures[f"loud.{trait}"].value == pytest.approx(figures[f"always_agree.{trait}"])
        assert figures[f"loud.{trait}_change"].value == pytest.approx(1 / 3)
        assert figures[f"loud.{trait}_centred_change"].value == pytest.approx(0, abs=1e-9)
    warned = " ".join(result.tables[0].warnings)
    assert "loud prefers 'Very accurate' on 1.00" in warned
    assert "base prefers 'Neither accurate nor inaccurate' on 1.00" in warned


def test_a_planted_trait_is_found_and_only_it(
    context: SuiteContext, contrast: Contrast, artefact_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rule(worn: bool, statement: str) -> int:
        if worn and "about E" in statement:
            return 0 if "read" in statement else 4
        return 2

    planted(monkeypatch, rule)
    figures: Any = run(context, [artefact_of(context.model, contrast)]).figures
    assert figures["loud.E_change"].value == pytest.approx(1)
    assert {t: figures[f"loud.{t}_change"].value for t in "OCAN"} == pytest.approx(dict.fromkeys("OCAN", 0), abs=1e-9)


def test_changes_are_adjusted_by_holm_over_traits_and_personas(
    context: SuiteContext, contrast: Contrast, artefact_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted answerer whose traits move by more or less; Holm written out over each table."""

    def answer(model: Any, tokenizer: Any, statements: Any, options: Any, progress: Any, title: str) -> Answers:
        chance = np.random.default_rng(len(title))
        log_p = chance.normal(size=(len(statements), 2, len(options)))
        moved = {"MPI, loud": "about E", "MPI, quiet": "about N"}.get(title)
        for row, statement in enumerate(statements):
            if moved and moved in statement:
                log_p[row, :, 0 if "read" in statement else 4] += 6.0
        return Answers(tuple(options), log_p)

    monkeypatch.setattr(big_five, "answer_items", answer)
    result = run(context, [artefact_of(context.model, contrast)])
    figures: Any = result.figures
    for key, table in zip(("change", "centred_change"), result.tables[1:3], strict=True):
        names = [f"{name}.{t}_{key}" for name in ("loud", "quiet") for t in "OCEAN"]
        worst, expected = 0.0, {}
        for place, name in enumerate(sorted(names, key=lambda n: figures[n].p)):
            worst = expected[name] = max(worst, min(1.0, figures[name].p * (10 - place)))
        assert {name: figures[f"{name}.p_holm"] for name in names} == pytest.approx(expected)
        assert any(expected[n] > figures[n].p for n in names)
        assert table.columns[-1] == "p (Holm)"
        for name, *_, told in table.rows:
            assert told == ", ".join(f"{t} {expected[f'{name}.{t}_{key}']:.3f}" for t in "OCEAN")
        assert any("Holm over the 10 changes" in note for note in table.notes)
    assert "base.E_change.p_holm" not in figures


def test_flips_and_absent_options_are_warned_of(context: SuiteContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(model: Any, tokenizer: Any, statements: Any, options: Any, progress: Any, title: str) -> Answers:
        log_p = np.full((len(statements), 2, 5), -20.0)
        log_p[:, 0, 0] = log_p[:, 1, 4] = -10.0
        return Answers(tuple(options), log_p)

    monkeypatch.setattr(big_five, "answer_items", answer)
    result = run(context)
    warned = " ".join(result.tables[0].warnings)
    assert "the order of the options decides 1.00" in warned
    assert "together a probability of 0.000" in warned
    first: Any = result.figures["base.first_minus_last"]
    assert first.value > 0.99


def test_limit_parts_and_missing_files(context: SuiteContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    context.limit = 4
    result = run(context)
    assert "4 items" in result.notes[0]
    monkeypatch.setattr(big_five, "answer_items", None)  # the kept part is enough
    assert run(context).figures == result.figures
    context.data = tmp_path / "nowhere"
    with pytest.raises(DataError, match="jianggy/MPI"):
        run(context)
