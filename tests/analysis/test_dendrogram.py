"""Average linkage against merging by hand, and the drawing line by line."""

from __future__ import annotations

import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personae.analysis.dendrogram import Tree, drawn, linked
from personae.errors import OptionError


def by_hand(distances: np.ndarray) -> list[tuple[set[int], float]]:
    """Every merge as (its leaves, its distance): the two groups with the smallest mean distance, again and again."""
    groups = [{leaf} for leaf in range(len(distances))]
    merges = []
    while len(groups) > 1:
        apart = {
            (i, j): np.mean([distances[a, b] for a in groups[i] for b in groups[j]])
            for i, j in combinations(range(len(groups)), 2)
        }
        i, j = min(apart, key=lambda pair: apart[pair])
        merges.append((groups[i] | groups[j], float(apart[i, j])))
        groups = [g for k, g in enumerate(groups) if k not in (i, j)] + [merges[-1][0]]
    return merges


@given(st.integers(2, 7), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_average_linkage(number: int, seed: int) -> None:
    upper = np.triu(np.random.default_rng(seed).random((number, number)), 1)
    distances = upper + upper.T
    tree = linked([f"p{i}" for i in range(number)], distances.tolist())
    leaves = [{leaf} for leaf in range(number)]
    for first, second, _, size in tree.merges:
        leaves.append(leaves[first] | leaves[second])
        assert size == len(leaves[-1])
    expected = by_hand(distances)
    assert leaves[number:] == [group for group, _ in expected]
    assert [merge[2] for merge in tree.merges] == pytest.approx([distance for _, distance in expected])
    assert sorted(tree.order) == list(range(number))
    places = {leaf: place for place, leaf in enumerate(tree.order)}
    for group in leaves:  # no branches cross
        at = sorted(places[leaf] for leaf in group)
        assert at == list(range(at[0], at[0] + len(at)))


def test_the_drawing() -> None:
    tree = Tree(("bold", "shy", "terse"), ((0, 2, 0.5, 2), (1, 3, 1.0, 3)), (1, 0, 2))
    assert drawn(tree, width=10) == [
        "shy   ──────────┐",
        "                │",
        "bold  ─────┐    │",
        "           ├────┘",
        "terse ─────┘",
        "      0         1",
    ]


@given(st.integers(2, 9), st.integers(0, 1000), st.integers(3, 60))
@settings(deadline=None)
def test_a_drawing_has_a_line_a_label_and_no_loose_ends(number: int, seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.integers(0, 4, (number, number)) / 3, 1)  # with ties and zeros
    tree = linked([f"persona {i}" for i in range(number)], (upper + upper.T).tolist())
    lines = drawn(tree, width)
    assert len(lines) == 2 * number
    assert [lines[2 * place].split("─")[0].strip() for place in range(number)] == [
        tree.labels[leaf] for leaf in tree.order
    ]
    body = [line.ljust(width + 12)[len("persona 0") + 1 :] for line in lines[:-1]]
    down, up, left, right = "│┐┤┬├┌┼", "│┘┤┴├└┼", "─┐┘┤┬┴┼", "─├┌└┬┴┼"
    for y, line in enumerate(body):
        for x, sign in enumerate(line):
            if sign in down and sign != " ":
                assert body[y + 1][x] in up
            if sign in up and sign != " ":
                assert body[y - 1][x] in down
            if sign in left and x:
                assert line[x - 1] in right


def test_scipy_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.cluster.hierarchy", None)
    with pytest.raises(OptionError, match=r"personae\[analysis\]"):
        linked(["a", "b"], [[0, 1], [1, 0]])
