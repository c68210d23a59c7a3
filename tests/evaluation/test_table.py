from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from personae.errors import DataError
from personae.evaluation import (
    Baselines,
    DataRecord,
    Estimate,
    Evaluation,
    ItemScores,
    Loss,
    ModelRecord,
    TextRecord,
    from_dict,
    interval,
    to_dict,
    to_markdown,
    to_rich,
)
from personae.evaluation.conditions import Condition, make_row, with_claims
from personae.evaluation.table import HEADINGS, row_cells, shown


@pytest.fixture
def evaluation(scores_of: Callable[..., ItemScores]) -> Evaluation:
    tied = [i % 2 == 0 for i in range(12)]
    generator = np.random.default_rng(0)
    base, good, bad = (scores_of(generator.normal(c, 1, 12), tied) for c in (0, 2, -2))
    conditions = [
        Condition("base", "base", [(base, base)], loss=Loss(0.0, 0.0, 0.0, 0.0)),
        Condition("system prompt", "prompt", [(base, bad)], extra_prompt_tokens=12.5),
        Condition(
            "directed", "method", [(good, bad)], (0.002, 0.004), Loss(0.01, 0.02, 0.0481, 0.03), 61.4, "one backward"
        ),
        Condition("random", "control", [(base, good), (bad, base)], (0.002, 0.004), note="two seeds", seeds=(0, 1)),
    ]  # fmt: skip
    rows = with_claims([make_row(c, base, resamples=50, seed=0) for c in conditions], conditions, resamples=50, seed=0)
    return Evaluation(
        model=ModelRecord("tiny", None, "sha256:0", "LlamaForCausalLM", "float32", "cpu", 123),
        data=DataRecord(
            "a-b", "a", "b", "tests", "Apache-2.0", "1" * 64, "2" * 64, 0, 12, 6, "Q: ?\nA:",
            base.ids, ((1, 1),) * 12, ((2, 2),) * 12, tuple(tied),
        ),
        text=TextRecord("four | of each", "3" * 64, 2, 2, 3.5, 1.9),
        baselines=Baselines(0.5, None, 0.625, 0.5),
        rows=rows, notes=("mind the gap",), resamples=50, seed=0, versions={"personae": "0"},
        warnings=("only 12 test [bold] items", "a rule | alone scores 0.97"),
    )  # fmt: skip


def test_json_and_back_is_the_same(evaluation: Evaluation) -> None:
    content = json.loads(json.dumps(to_dict(evaluation), allow_nan=False))
    assert from_dict(content) == evaluation
    assert content["format"] == "personae.evaluation/1"

    assert content["warnings"] == list(evaluation.warnings)


def test_a_file_from_before_the_warnings_is_still_read(evaluation: Evaluation) -> None:
    content = json.loads(json.dumps(to_dict(evaluation)))
    for part, fields in ((content, ["warnings"]), (content["data"], ["calibration_sha256", "dev_sha256"])):
        for field in fields:
            del part[field]
    assert from_dict(content) == replace(evaluation, warnings=())


def test_others_can_test_again_from_the_json(evaluation: Evaluation) -> None:
    content = json.loads(json.dumps(to_dict(evaluation)))
    row = next(r for r in content["rows"] if r["name"] == "directed")
    assert row["capability_loss"] == 0.0481  # not rounded
    difference = np.array(row["readings"][0]["difference"])
    assert interval((difference > 0).astype(float), resamples=50) == Estimate(**row["acc"])
    log_p, tokens = np.array(row["readings"][0]["log_p"]), np.array(content["data"]["tokens"])
    np.testing.assert_allclose((log_p / tokens)[:, 0] - (log_p / tokens)[:, 1], difference)
    random = next(r for r in content["rows"] if r["name"] == "random")
    assert [r["seed"] for r in random["readings"]] == [0, 1]


def test_foreign_and_broken_dictionaries_are_refused(evaluation: Evaluation) -> None:
    with pytest.raises(DataError, match="'format' is None"):
        from_dict({"rows": []})
    broken = to_dict(evaluation)
    broken["rows"][1]["acc"] = {"value": 0.5}
    with pytest.raises(DataError, match=r"rows\.1\.acc\.low: Field required \(2 problems\)"):
        from_dict(broken)


def test_intervals_are_shown_in_one_way() -> None:
    assert shown(Estimate(0.8349, 0.7651, 0.876)) == "0.83 [0.77, 0.88]"
    assert shown(None) == "–"


def test_a_row_shows_the_larger_loss_of_both_poles(evaluation: Evaluation) -> None:
    cells = dict(zip(HEADINGS, row_cells(evaluation["directed"]), strict=True))
    assert (cells["loss plain"], cells["loss chat"], cells["seconds"]) == ("+0.020", "+0.048", "61")
    assert (cells["sparsity"], cells["cost"]) == ("0.30%", "one backward")
    prompt = dict(zip(HEADINGS, row_cells(evaluation["system prompt"]), strict=True))
    assert (prompt["loss plain"], prompt["seconds"], prompt["sparsity"]) == ("–", "–", "0")
    assert prompt["cost"] == "12 prompt tokens a request"


def test_markdown_is_one_table_with_its_remarks(evaluation: Evaluation) -> None:
    text = to_markdown(evaluation)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(evaluation.rows)
    assert {line.count("|") for line in rows} == {len(HEADINGS) + 1}
    assert "12 items, 6 tied (test part of split seed 0), tiny" in text
    assert "- directed: acc over the best control (" in text
    assert "shorter 0.50, always yes 0.62 (tied 0.50), majority 0.50" in text
    assert "- random: two seeds" in text
    assert "- note: mind the gap" in text
    above = text[: text.index("| condition")]
    assert above.endswith("> **Warning**: only 12 test [bold] items\n\n> **Warning**: a rule | alone scores 0.97\n\n")
    assert "Warning" not in to_markdown(replace(evaluation, warnings=()))
    everything = replace(evaluation, data=replace(evaluation.data, split_seed=None))
    assert "(all items)" in to_markdown(everything)


def test_a_failed_claim_says_so(evaluation: Evaluation) -> None:
    evaluation = replace(evaluation, resamples=2000)
    row = evaluation["directed"]
    lost = replace(row, claims=tuple(replace(c, value=-0.1, p=0.0001) for c in row.claims))
    text = to_markdown(replace(evaluation, rows=(lost,)))
    assert text.count("no better than its controls") == 3
    assert "p < 0.001" in text
    unclear = replace(row, claims=tuple(replace(c, value=0.1, p_holm=0.06) for c in row.claims))
    assert to_markdown(replace(evaluation, rows=(unclear,))).count("not told apart from its controls") == 3
    few = replace(evaluation, rows=(unclear,), resamples=99)  # three claims: the smallest p after Holm is 0.06
    assert to_markdown(few).count("too few resamples to tell") == 3
    clear = replace(row, claims=tuple(replace(c, value=0.1, p_holm=0.04) for c in row.claims))
    assert "its controls" not in to_markdown(replace(evaluation, rows=(clear,)))
    assert "controls have the size of" not in to_markdown(evaluation)
    two = (row, replace(row, name="wanda"))
    assert "controls have the size of directed's masks" in to_markdown(replace(evaluation, rows=two))


def rendered(what: Any, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_terminal_shows_every_figure(evaluation: Evaluation) -> None:
    wide = rendered(to_rich(evaluation), 300)
    for row in evaluation.rows:
        for cell in row_cells(row):
            for line in cell.replace(" [", " / [").split(" / "):
                assert line in wide  # brackets are text, no markup
    assert "note: mind the gap" in wide
    assert wide.index("warning: only 12 test [bold] items") < wide.index("warning: a rule |") < wide.index("condition")
    assert "warning" not in rendered(to_rich(replace(evaluation, warnings=())), 300)
    assert max(len(line) for line in rendered(to_rich(evaluation), 100).splitlines()) <= 100
