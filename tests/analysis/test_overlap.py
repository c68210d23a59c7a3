"""Counts and figures against boolean arrays, places against the targets of real architectures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compare_data import SHAPES, dropped_of, random_masks
from personae.analysis.compare_chance import common_by_chance
from personae.analysis.overlap import (
    Common,
    Drops,
    by_part,
    cosine,
    difference,
    expected_jaccard,
    figures,
    jaccard,
    place_of,
    tally,
)
from personae.errors import MaskMismatchError
from personae.models import find_targets
from personae.subnetwork import Mask, compare

SMALL = {"layers.0.attn.q": (3, 5), "layers.0.mlp.up": (4, 6), "layers.1.mlp.up": (2, 9)}
Bools = dict[str, np.ndarray]


@st.composite
def masks(draw: st.DrawFn) -> Bools:
    return {n: draw(arrays.arrays(np.bool_, shape)) for n, shape in SMALL.items()}


def drops(dropped: Bools) -> Drops:
    return Drops.of({n: Mask.from_dropped(d) for n, d in dropped.items()}, SMALL)


def flat(dropped: Bools, keep: Callable[[str], bool]) -> np.ndarray:
    return np.concatenate([dropped[n].ravel() for n in sorted(dropped) if keep(n)])


PARTS: dict[str, Callable[[str], bool]] = {
    "all": lambda n: True,
    "attention": lambda n: "attn" in n,
    "mlp": lambda n: "mlp" in n,
    "block 0": lambda n: ".0." in n,
    "block 1": lambda n: ".1." in n,
    **{name: (lambda n, name=name: n == name) for name in SMALL},
}


@given(masks(), masks())
@settings(deadline=None)
def test_every_part_equals_counting_booleans(first: Bools, second: Bools) -> None:
    found = by_part(tally(drops(first), drops(second)))
    assert [o.part for o in found] == list(PARTS)
    for overlap in found:
        a, b = (flat(side, PARTS[overlap.part]) for side in (first, second))
        assert (overlap.weights, overlap.first, overlap.second) == (a.size, a.sum(), b.sum())
        assert overlap.common == (a & b).sum()
        assert overlap.difference.value == pytest.approx((a != b).mean())
        assert overlap.jaccard.value == pytest.approx((a & b).sum() / (a | b).sum() if (a | b).any() else 1.0)
        if a.any() and b.any():
            u, v = a.astype(float), b.astype(float)
            assert overlap.cosine.value == pytest.approx(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
        assert (overlap.jaccard.low, overlap.jaccard.high) == (None, None)


@given(masks(), masks())
@settings(deadline=None)
def test_it_agrees_with_the_comparison_of_subnetworks_and_is_symmetric(first: Bools, second: Bools) -> None:
    one, two = drops(first), drops(second)
    whole = by_part(tally(one, two))[0]
    known = compare(one.masks, two.masks)
    assert whole.difference.value == pytest.approx(known.difference)
    assert whole.difference.chance == pytest.approx(known.difference_by_chance)
    assert 1 - whole.jaccard.value == pytest.approx(known.among_dropped)
    turned = by_part(tally(two, one))[0]
    assert (turned.common, turned.first, turned.second) == (whole.common, whole.second, whole.first)
    assert turned.expected == pytest.approx(whole.expected)
    assert turned.z == pytest.approx(whole.z)


def test_chance_and_its_interval_by_permuting_positions() -> None:
    """The oracle permutes the positions of one mask within rows and counts everything anew."""
    first, second = (dropped_of(random_masks(SHAPES, 0.3, seed)) for seed in (1, 2))
    chance = np.random.default_rng(0)
    permuted: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(3000):
        turned = {n: chance.permuted(d, axis=1) for n, d in second.items()}
        for part in ("all", "mlp", "block 2"):
            a, b = (flat(side, lambda n, p=part: _within(n, p)) for side in (first, turned))
            both, either = (a & b).sum(), (a | b).sum()
            row = ((a != b).mean(), both / either, both / math.sqrt(a.sum() * b.sum()))
            permuted.setdefault(part, []).append(row)
    one, two = (Drops.of({n: Mask.from_dropped(d) for n, d in side.items()}, SHAPES) for side in (first, second))
    found = {o.part: o for o in by_part(tally(one, two, draws=3000))}
    for part, rows in permuted.items():
        table = np.array(rows)
        for column, figure in enumerate(("difference", "jaccard", "cosine")):
            against = getattr(found[part], figure)
            assert against.chance == pytest.approx(table[:, column].mean(), abs=0.003)
            low, high = np.quantile(table[:, column], [0.025, 0.975])
            assert against.low == pytest.approx(low, abs=0.015)
            assert against.high == pytest.approx(high, abs=0.015)


def _within(name: str, part: str) -> bool:
    return part == "all" or (part == "mlp" and "mlp" in name) or (part == "block 2" and ".2." in name)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_the_expected_jaccard_index_is_right_to_second_order(share: float) -> None:
    rng = np.random.default_rng(5)
    first, second = rng.binomial(200, share, 40), rng.binomial(200, share, 40)
    least, p = common_by_chance(first, second, 200)
    c, sizes = np.arange(least, least + p.size), (int(first.sum()), int(second.sum()))
    exact = sum(float(q) * jaccard(int(x), *sizes) for x, q in zip(c, p, strict=True))
    mean = float((c * p).sum())
    found = expected_jaccard(mean, float(((c - mean) ** 2 * p).sum()), *sizes)
    assert found == pytest.approx(exact, rel=1e-4)
    assert abs(found - exact) < 0.2 * abs(jaccard(mean, *sizes) - exact)  # better than J at the expected count


def test_z_counts_standard_deviations_and_says_nothing_where_chance_has_no_choice() -> None:
    draws = np.zeros(0, dtype=np.int64)
    assert figures("all", "all", Common(100, 20, 30, 10, 6.0, 4.0, draws)).z == pytest.approx(2.0)
    assert figures("all", "all", Common(100, 100, 30, 30, 30.0, 0.0, draws)).z is None
    drawn = np.arange(100)  # 2.5 % of them are 2 or less, and the central 95 % end at 97
    counted = figures("all", "all", Common(1000, 200, 200, 50, 49.5, 1.0, drawn))
    assert (counted.difference.low, counted.difference.high) == (
        difference(97, 200, 200, 1000), difference(2, 200, 200, 1000),
    )  # fmt: skip
    assert (counted.jaccard.low, counted.jaccard.high) == (jaccard(2, 200, 200), jaccard(97, 200, 200))
    assert (counted.cosine.low, counted.cosine.high) == (cosine(2, 200, 200), cosine(97, 200, 200))


def test_empty_masks() -> None:
    assert (jaccard(0, 0, 0), cosine(0, 0, 0), difference(0, 0, 0, 9)) == (1.0, 1.0, 0.0)
    assert (jaccard(0, 0, 4), cosine(0, 0, 4)) == (0.0, 0.0)
    assert expected_jaccard(0.0, 0.0, 0, 0) == 1.0
    assert expected_jaccard(0.0, 0.0, 0, 4) == 0.0


def test_a_target_without_a_mask_is_kept_whole_and_unknown_ones_are_refused() -> None:
    name = "layers.0.mlp.up"
    some = {name: Mask.from_dropped(np.ones(SMALL[name], dtype=bool))}
    found = Drops.of(some, SMALL)
    assert list(found.masks) == sorted(SMALL)
    assert sum(m.dropped for m in found.masks.values()) == 24
    assert found.rows[name].tolist() == [6] * 4
    with pytest.raises(MaskMismatchError, match=r"nothing.*None"):
        Drops.of({"nothing": some[name]}, SMALL)
    with pytest.raises(MaskMismatchError, match=r"\(4, 6\).*\(3, 5\)"):
        Drops.of({"layers.0.attn.q": some[name]}, SMALL)


def test_draws_depend_on_the_seed_alone() -> None:
    one, two = (Drops.of(random_masks(SHAPES, 0.3, seed), SHAPES) for seed in (1, 2))
    found = [by_part(tally(one, two, draws=50, seed=(s,))) for s in (4, 4, 5)]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_places_by_name_are_those_of_the_targets(architecture: str, tiny_model: Callable[..., Any]) -> None:
    model, _ = tiny_model(architecture)
    for target in find_targets(model):
        assert place_of(target.name) == (target.block, target.kind), target.name


def test_names_without_a_number_belong_to_no_block() -> None:
    assert place_of("mlp.up.weight") == (None, "mlp")
    shapes = {"mlp.up.weight": (3, 4)}
    one = Drops.of(random_masks(shapes, 0.5, 0), shapes)
    assert [o.part for o in by_part(tally(one, one))] == ["all", "mlp", "mlp.up.weight"]
