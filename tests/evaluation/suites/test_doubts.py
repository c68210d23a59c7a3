"""What in a user's pairs makes a high figure worthless is said in the suites' own tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from personae.discovery import GenericText
from personae.evaluation.suites import SuiteContext, SuiteResult, activation, faithfulness, isolated_grid
from personae.evaluation.suites.report import Table, warned
from personae.personas import Contrast, Pair

SUITES: dict[str, Callable[..., SuiteResult]] = {
    "faithfulness": lambda context, contrast, generic: faithfulness.run(
        context, contrast, (0.3,), 4, 4, block_items=1, drop_share=0.02, generic=generic
    ),
    "activation": lambda context, contrast, generic: activation.run(
        context, contrast, ("mask",), pairs=4, items=4, draws=1, drop_share=0.02, generic=generic
    ),
    "isolated grid": lambda context, contrast, generic: isolated_grid.run(
        context, contrast, methods=("wanda",), controls=(), rhos=(0.3,), pairs=(), pairs_fixed=4, test_items=4,
        generic=generic,
    ),
}  # fmt: skip


@pytest.mark.parametrize("suite", SUITES)
def test_one_class_equal_lengths_and_trivial_baselines_are_warned_of(
    model_and_tokenizer: Any, generic: GenericText, tmp_path: Path, suite: str
) -> None:
    model, tokenizer = model_and_tokenizer
    rows = tuple(Pair(f"Would you lead team {n}?", f"Yes, I lead {n}", f"No, not now {n}") for n in range(60))
    contrast = Contrast("lead-follow", "lead", "follow", pairs=rows)
    result = SUITES[suite](SuiteContext(model, tokenizer, tmp_path), contrast, generic)
    said = "\n".join(result.tables[0].warnings)
    assert "every answer of lead opens like a 'yes'" in said
    assert "'prefer yes, avoid no' alone scores 1.00 here" in said
    assert "both answers are of equal length on every item" in said
    assert "only 4 test items" in said


def test_a_tables_own_warnings_stay() -> None:
    tables = warned((Table("a", (), (), warnings=("own",)), Table("b", (), ())), ("doubt",))
    assert [t.warnings for t in tables] == [("doubt", "own"), ()]
