"""The frontier against the definition, pair by pair; points of an evaluation; the chart."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

import report_data as data
from personae.analysis.report_pareto import Point, chart, frontier, of_rows
from personae.evaluation.conditions import Loss

COARSE = st.integers(0, 5).map(lambda n: n / 5)  # so that ties are common


@given(st.lists(st.tuples(COARSE, COARSE), max_size=12))
def test_the_frontier_is_what_no_point_beats(pairs: list[tuple[float, float]]) -> None:
    points = [Point(str(i), acc, acc, acc, loss, 0.0, 0.1) for i, (acc, loss) in enumerate(pairs)]

    def beaten(p: Point) -> bool:
        return any(q.loss <= p.loss and q.acc >= p.acc and (q.loss, q.acc) != (p.loss, p.acc) for q in points)

    found = frontier(points)
    assert {(p.loss, p.acc) for p in found} == {(p.loss, p.acc) for p in points if not beaten(p)}
    assert [p.loss for p in found] == sorted({p.loss for p in found})
    assert [p.acc for p in found] == sorted({p.acc for p in found})


def test_points_of_rows_take_the_poles_own_loss_and_turn_the_rivals_accuracy() -> None:
    rows = data.evaluation().rows
    first, second = of_rows(rows, 0), of_rows(rows, 1)
    assert [p.condition for p in first] == ["base", "directed", "random"]  # a prompt has no measured loss
    ours = first[1]
    assert (ours.acc, ours.low, ours.high) == (0.9, 0.85, 0.9500000000000001)
    assert (ours.loss, ours.error, ours.share) == (0.04, 0.002, 0.01)
    theirs = second[1]
    assert abs(theirs.acc - 0.9) < 1e-12
    assert theirs.low < theirs.acc < theirs.high
    assert (theirs.loss, theirs.error, theirs.share) == (0.02, 0.001, 0.02)


def test_the_larger_of_plain_and_chat_counts_with_its_own_error() -> None:
    lost = Loss(0.01, 0.02, 0.05, 0.04, (0.1, 0.2, 0.3, 0.4))
    row = replace(data.row("m", "method", 0.8, 0.01), loss=lost)
    assert [(p.loss, p.error) for p in of_rows([row], 0)] == [(0.05, 0.3)]
    assert [(p.loss, p.error) for p in of_rows([row], 1)] == [(0.04, 0.4)]


def test_the_chart_joins_sizes_of_a_condition_and_draws_the_staircase() -> None:
    points = [
        Point("a", 0.9, 0.8, 1.0, 0.04, 0.01, 0.2), Point("a", 0.7, 0.6, 0.8, 0.01, 0.01, 0.1),
        Point("b", 0.6, 0.5, 0.7, 0.02, 0.0, 0.1),
    ]  # fmt: skip
    made = chart("k", "t", "bold", points, "c", budget=0.05)
    a, b, best = made.series
    assert (a.name, a.x, a.y, a.style) == ("a", (0.01, 0.04), (0.7, 0.9), "both")
    assert a.low == (0.6, 0.8)
    assert a.x_high == (0.01 + 0.0196, 0.04 + 0.0196)
    assert (b.name, b.style) == ("b", "points")
    assert (best.name, best.x, best.y, best.style) == ("frontier", (0.01, 0.04), (0.7, 0.9), "steps")
    assert [(rule.at, rule.upright) for rule in made.rules] == [(0.5, False), (0.05, True)]
