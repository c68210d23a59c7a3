"""Which personas are nearest to each other: average linkage on a matrix of distances, as lists and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from personae.errors import OptionError

WIDTH = 48  # columns of the drawing, without the labels

_LEFT, _RIGHT, _UP, _DOWN = 1, 2, 4, 8  # ends of the strokes that meet in one character
_STROKES = " ───│┘└┴│┐┌┬│┤├┼"


@dataclass(frozen=True, slots=True)
class Tree:
    """A dendrogram. merges: (first, second, distance, leaves) of scipy's linkage in rising distance; a number below
    len(labels) is a label, one above it an earlier merge. order: the labels' numbers from top to bottom."""

    labels: tuple[str, ...]
    merges: tuple[tuple[int, int, float, int], ...]
    order: tuple[int, ...]


def linked(labels: Sequence[str], distances: Sequence[Sequence[float]]) -> Tree:
    """Average linkage (UPGMA): the distance of two groups is the mean over all couples of their members.

    distances: symmetric, (n, n) with zeros on the diagonal, n at least 2. Errors: `OptionError` without scipy.
    """
    try:
        from scipy.cluster.hierarchy import linkage
        from scipy.spatial.distance import squareform
    except ImportError as error:
        raise OptionError("a dendrogram needs scipy: pip install 'personae[analysis]'.") from error
    rows = linkage(squareform(np.asarray(distances, dtype=np.float64), checks=False), method="average")
    merges = tuple((int(a), int(b), float(distance), int(size)) for a, b, distance, size in rows)
    groups: list[tuple[int, ...]] = [(leaf,) for leaf in range(len(labels))]
    for first, second, _, _ in merges:
        groups.append(groups[first] + groups[second])
    return Tree(tuple(labels), merges, groups[-1])


def drawn(tree: Tree, width: int = WIDTH) -> list[str]:
    """The tree in lines of text: labels on the left, distance from 0 to the largest merge to the right."""
    largest = tree.merges[-1][2] or 1.0
    grid = np.zeros((2 * len(tree.labels) - 1, width + 1), dtype=np.int64)
    places = {leaf: (2 * place, 0) for place, leaf in enumerate(tree.order)}  # node -> (line, column)
    for number, (first, second, distance, _) in enumerate(tree.merges, len(tree.labels)):
        (top, begin), (bottom, start) = sorted((places[first], places[second]))
        column = max(1 + round(distance / largest * (width - 1)), begin, start)
        for line, since in ((top, begin), (bottom, start)):
            if since < column:
                grid[line, since] |= _RIGHT
                grid[line, since + 1 : column] |= _LEFT | _RIGHT
                grid[line, column] |= _LEFT
        grid[top, column] |= _DOWN
        grid[top + 1 : bottom, column] |= _UP | _DOWN
        grid[bottom, column] |= _UP
        places[number] = ((top + bottom) // 2, column)
    names = {2 * place: tree.labels[leaf] for place, leaf in enumerate(tree.order)}
    longest = max(map(len, tree.labels))
    lines = [
        f"{names.get(number, ''):<{longest}} " + "".join(_STROKES[stroke] for stroke in line)
        for number, line in enumerate(grid.tolist())
    ]
    scale = f"{largest:.3g}"
    lines.append(f"{'':<{longest}} 0{scale:>{width}}")
    return [line.rstrip() for line in lines]
