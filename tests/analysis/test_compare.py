"""All personas of some artefacts against each other."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from compare_data import SHAPES, artefact, dropped_of, random_masks, subnetwork
from personae.analysis.compare import FIGURES, compare
from personae.analysis.compare_members import gathered
from personae.analysis.results import Record, plain, read_result, write_result
from personae.errors import ArtefactError, MaskMismatchError, OptionError
from personae.subnetwork import Artefact, Mask


@pytest.fixture
def three() -> tuple[Artefact, Artefact]:
    """'a' and 'b' in one artefact, 'c', which is nearly 'a', in another."""
    masks = random_masks(SHAPES, 0.4, 1)
    name = min(masks)
    flipped = masks[name].dropped_bool()
    flipped[0] = ~flipped[0]
    near = {**masks, name: Mask.from_dropped(flipped)}
    return (
        artefact(subnetwork("a", masks), subnetwork("b", random_masks(SHAPES, 0.1, 2))),
        artefact(subnetwork("c", near)),
    )


def test_every_pair_and_every_matrix(three: tuple[Artefact, Artefact]) -> None:
    found = compare(*three)
    assert [p.label for p in found.personas] == ["a", "b", "c"]
    assert [(p.first, p.second) for p in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    masks = {n: s.masks for a in three for n, s in a.personas.items()}
    for pair in found.pairs:
        one, two = (
            np.concatenate([d.ravel() for d in dropped_of(masks[n]).values()]) for n in (pair.first, pair.second)
        )
        assert pair["all"].common == (one & two).sum()
        assert found.pair(pair.second, pair.first) is pair
    labels = ["a", "b", "c"]
    for figure in FIGURES:
        matrix, chance = np.array(found.matrices[figure]), found.matrices[f"{figure}_by_chance"]
        assert np.array_equal(matrix, matrix.T)
        assert matrix.diagonal().tolist() == [0.0 if figure == "difference" else 1.0] * 3
        for i, j in combinations(range(3), 2):
            against = getattr(found.pair(labels[i], labels[j])["all"], figure)
            assert (matrix[i, j], chance[j][i]) == (against.value, against.chance)
        assert chance[1][1] is None
    assert found.tree.merges[0][:2] == (0, 2)
    assert found.tree.merges[0][2] == pytest.approx(1 - found.matrices["jaccard"][0][2])  # type: ignore[operator]
    assert found.personas[1].dropped == sum(m.dropped for m in masks["b"].values())
    assert found.personas[1].sparsity == found.personas[1].dropped / sum(r * c for r, c in SHAPES.values())


def test_parts_are_found_by_name(three: tuple[Artefact, Artefact]) -> None:
    pair = compare(*three, draws=0).pair("a", "b")
    assert list(pair.of_level("kind")) == ["attention", "mlp"]
    assert list(pair.of_level("block")) == ["block 0", "block 1", "block 2"]
    assert list(pair.of_level("target")) == sorted(SHAPES)
    assert pair["block 2"].weights == sum(r * c for n, (r, c) in SHAPES.items() if ".2." in n)
    with pytest.raises(KeyError, match="no part 'block 9'"):
        _ = pair["block 9"]
    with pytest.raises(KeyError, match="no pair"):
        compare(*three, draws=0).pair("a", "z")


def test_the_same_again(three: tuple[Artefact, Artefact]) -> None:
    assert compare(*three) == compare(*three)
    assert compare(*three, seed=1).pairs != compare(*three).pairs
    assert compare(*three, draws=0).pairs[0]["all"].jaccard.low is None


def test_the_result_file(three: tuple[Artefact, Artefact], tmp_path: Path) -> None:
    found = compare(*three, draws=20)
    record = Record(kind="compare", command="personae compare", model=None, inputs={}, settings={})
    write_result(tmp_path / "r.json", record, found)
    said = read_result(tmp_path / "r.json")["result"]
    assert said == json.loads(json.dumps(plain(found)))
    assert said["tree"]["labels"] == ["a", "b", "c"]
    assert said["pairs"][0]["parts"][0]["jaccard"].keys() == {"value", "chance", "low", "high"}


def test_the_frame(three: tuple[Artefact, Artefact]) -> None:
    found = compare(*three)
    frame = found.frame()
    assert len(frame) == 3 * (1 + 2 + 3 + len(SHAPES))
    row = frame[(frame.persona == "a") & (frame.other == "c") & (frame.part == "mlp")].iloc[0]
    mlp = found.pair("a", "c")["mlp"]
    assert (row.jaccard, row.jaccard_chance, row.difference_low) == (
        mlp.jaccard.value, mlp.jaccard.chance, mlp.difference.low,
    )  # fmt: skip
    assert asdict(mlp).keys() <= {*frame.columns}


def test_labels_tell_personas_apart(tmp_path: Path) -> None:
    one = artefact(subnetwork("a", random_masks(SHAPES, 0.4, 1)), subnetwork("b", random_masks(SHAPES, 0.4, 2)))
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "x.persona", tmp_path / "y.persona", tmp_path / "other" / "x.persona"):
        one.save(path)
    paths = [tmp_path / "x.persona", str(tmp_path / "y.persona")]
    assert [m.label for m in gathered(paths)] == ["x/a", "x/b", "y/a", "y/b"]
    assert [m.source for m in gathered(paths)] == ["x.persona"] * 2 + ["y.persona"] * 2
    same = [m.label for m in gathered([tmp_path / "x.persona", tmp_path / "other" / "x.persona"])]
    assert same == ["x/a", "x/b", "x/a (2)", "x/b (2)"]
    assert [m.label for m in gathered([one, one.without("b")])] == ["artefact 1/a", "b", "artefact 2/a"]
    found = compare(tmp_path / "x.persona", tmp_path / "other" / "x.persona", draws=0)
    assert found.pair("x/a", "x/a (2)")["all"].jaccard.value == 1.0


def test_personas_of_different_models_are_refused_by_name(three: tuple[Artefact, Artefact]) -> None:
    other = artefact(subnetwork("z", random_masks(SHAPES, 0.4, 1)), model="beef")
    with pytest.raises(MaskMismatchError, match=r"'a' \(artefact 1\).*tiny-f00d.*'z' \(artefact 2\).*tiny-beef"):
        compare(three[0], other)
    fewer = {n: s for n, s in SHAPES.items() if "mlp" in n}
    part = artefact(subnetwork("z", random_masks(fewer, 0.4, 1)), shapes=fewer)
    with pytest.raises(MaskMismatchError, match=r"9 targets.*6 targets.*--target"):
        compare(three[0], part)


def test_what_there_is_too_little_of(three: tuple[Artefact, Artefact], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="one persona, 'c'"):
        compare(three[1])
    with pytest.raises(OptionError, match="no persona"):
        compare()
    with pytest.raises(OptionError, match="--draws is -1"):
        compare(*three, draws=-1)
    with pytest.raises(ArtefactError):
        compare(tmp_path / "nothing.persona")


def test_a_persona_that_masks_some_targets_only(three: tuple[Artefact, Artefact]) -> None:
    name = min(SHAPES)
    few = artefact(subnetwork("few", {name: three[0]["a"].masks[name]}))
    found = compare(three[0], few)
    pair = found.pair("a", "few")
    assert pair["all"].common == three[0]["a"].masks[name].dropped == pair["all"].second
    assert pair["block 1"].second == 0
    assert pair["block 1"].jaccard.value == 0.0
    assert found.personas[2].weights == sum(r * c for r, c in SHAPES.values())
