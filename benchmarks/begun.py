"""What a result file that was begun still lacks: rivals, frontiers, gates and orders are written row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.ai_persona import STEPS
from benchmarks.frontier import MULTIPLES, multiples
from benchmarks.gates import WAYS
from benchmarks.orders import ORDERS
from benchmarks.readme import SETS
from benchmarks.rivals import CONDITIONS


def left(name: str, found: dict[str, Any]) -> list[str]:
    """Conditions of a result file that it does not hold yet; nothing of files that are written whole.

    name: of the file. found: what it says.
    """
    benchmark, _, of = name.partition("_")
    contrast, _, form = of.partition("_")
    if benchmark == "rivals":
        return conditions_left(found["made"])
    if benchmark == "frontier":
        return points_left(found["points"], contrast, STEPS if form else None)
    if benchmark == "gates":
        there = {(row["pole"], row["way"]) for row in found["rows"]}
        return [f"{way} of {pole}" for pole in found["masks"] for way in WAYS if (pole, way) not in there]
    if benchmark == "orders":
        return [order for order in ORDERS if all(row["order"] != order for row in found["rows"])]
    return []


def conditions_left(made: dict[str, Any]) -> list[str]:
    """Of a file of rivals."""
    return [which for which in CONDITIONS if which not in made]


def points_left(points: Sequence[dict[str, Any]], name: str, steps: int | None) -> list[str]:
    """Conditions of a frontier, with their pole where both have masks of their own, that lack some of their points."""
    poles = [SETS[name], f"{name}-averse"]
    wanted = {
        (condition, pole): len(multiples(condition, steps))
        for condition in MULTIPLES
        for pole in (poles if condition in ("directed", "random") else poles[:1])
    }
    there = Counter((p["condition"], p["pole"]) for p in points)
    return [f"{condition} of {pole}" for (condition, pole), n in wanted.items() if there[condition, pole] < n]
