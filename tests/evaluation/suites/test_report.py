from __future__ import annotations

import math

import pytest

from personae.evaluation.bootstrap import Estimate
from personae.evaluation.suites.report import Cell, shown


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Estimate(0.8349, 0.7651, 0.876), "0.835 [0.765, 0.876]"),
        (0.8349, "0.835"),
        (0.0, "0.000"),
        (0.001, "0.001"),
        (0.0005, "0.0005"),  # a share of weights, or a p: neither 0.001 nor nothing
        (0.00025, "0.00025"),
        (-0.000207, "-0.00021"),
        (192, "192"),
        ("last (20-29)", "last (20-29)"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_a_cell_tells_its_number(cell: Cell, text: str) -> None:
    assert shown(cell) == text
