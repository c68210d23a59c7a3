"""Subnetworks and artefacts: names, sums over targets, set algebra, adding and removing."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import pytest

from personae.errors import MaskMismatchError, OptionError, UnknownPersonaError
from personae.subnetwork import Artefact, Mask, Provenance, Subnetwork

PROVENANCE = Provenance(method="directed", sparsity=0.5, licence="MIT")


def subnetwork(name: str = "p", **dropped: list[int]) -> Subnetwork:
    masks = {t: Mask.from_positions(np.array(d, dtype=np.int64), (2, 4)) for t, d in dropped.items()}
    return Subnetwork(name, masks, PROVENANCE)


def test_sums_run_over_all_targets() -> None:
    both = subnetwork(b=[0, 1, 2], a=[7])
    assert both.targets == ("a", "b")
    assert (both.dropped, both.size, both.sparsity) == (4, 16, 0.25)
    assert both.nbytes == both.masks["a"].nbytes + both.masks["b"].nbytes > 0


@pytest.mark.parametrize(
    ("combine", "name", "method", "dropped"),
    [
        (operator.and_, "x&y", "intersection", [0, 1, 2]),
        (operator.or_, "x|y", "union", [1]),
        (operator.xor, "x^y", "symmetric-difference", [1, 3, 4, 5, 6, 7]),
        (operator.sub, "x-y", "difference", [0, 1, 3, 4, 5, 6, 7]),
    ],
)
def test_algebra(
    combine: Callable[[Subnetwork, Subnetwork], Subnetwork], name: str, method: str, dropped: list[int]
) -> None:
    result = combine(subnetwork("x", t=[0, 1]), subnetwork("y", t=[1, 2]))
    assert result.name == name
    assert result.masks["t"].positions().tolist() == dropped
    assert result.provenance.method == method
    assert result.provenance.sparsity == result.sparsity == len(dropped) / 8
    assert result.provenance.licence == "MIT"
    operands = result.provenance.parameters["operands"]
    assert isinstance(operands, list)
    assert [o["name"] for o in operands if isinstance(o, dict)] == ["x", "y"]


def test_complement_and_long_names() -> None:
    inverse = ~subnetwork("n" * 100, t=[0])
    assert inverse.masks["t"].positions().tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert inverse.name == "~" + "n" * 99
    assert inverse.renamed("rest").name == "rest"


def test_difference_rate() -> None:
    assert subnetwork(a=[0], b=[1]).difference_rate(subnetwork(a=[0], b=[2])) == 2 / 16


@pytest.mark.parametrize("combine", [operator.and_, operator.sub, Subnetwork.difference_rate])
def test_other_targets_do_not_combine(combine: Callable[[Subnetwork, Subnetwork], object]) -> None:
    with pytest.raises(MaskMismatchError, match="such as b"):
        combine(subnetwork(a=[0]), subnetwork(a=[0], b=[1]))


@pytest.mark.parametrize("name", ["", "  ", "a/b", "a\nb", "a\x7f", "\ud800", "n" * 101])
def test_bad_persona_names(name: str) -> None:
    with pytest.raises(OptionError, match="bad persona name"):
        subnetwork(name, t=[0])


@pytest.mark.parametrize("target", ["", "a\0"])
def test_bad_target_names(target: str) -> None:
    with pytest.raises(OptionError, match="bad target name"):
        Subnetwork("p", {target: Mask.full((1, 1))}, PROVENANCE)


def test_a_subnetwork_needs_a_mask() -> None:
    with pytest.raises(OptionError, match="no masks"):
        Subnetwork("p", {}, PROVENANCE)


def test_artefact_is_an_ordered_collection(artefact: Artefact, third: Subnetwork) -> None:
    assert artefact.names == tuple(artefact) == ("introvert", "extravert")
    assert len(artefact) == 2
    assert "introvert" in artefact
    assert third.name not in artefact
    bigger = artefact.add(third)
    assert bigger.names == ("introvert", "extravert", third.name)
    assert bigger[third.name] == third
    assert artefact.names == ("introvert", "extravert")
    assert bigger.without("introvert").names == ("extravert", third.name)
    assert bigger.without(third.name) == artefact


def test_a_taken_name(artefact: Artefact, third: Subnetwork) -> None:
    other = third.renamed("introvert")
    with pytest.raises(OptionError, match="'introvert' is already there"):
        artefact.add(other)
    replaced = artefact.add(other, overwrite=True)
    assert replaced.names == artefact.names
    assert replaced["introvert"] == other


@pytest.mark.parametrize("look", [Artefact.__getitem__, Artefact.without])
def test_unknown_names_are_answered_with_the_known_ones(
    artefact: Artefact, look: Callable[[Artefact, str], object]
) -> None:
    with pytest.raises(UnknownPersonaError, match=r"no persona 'nobody'.*introvert, extravert"):
        look(artefact, "nobody")


def test_masks_must_fit_the_model(artefact: Artefact) -> None:
    with pytest.raises(MaskMismatchError, match="tiny has no such target"):
        artefact.add(subnetwork(elsewhere=[0]))
    wrong = Subnetwork("p", {"layers.0.up": Mask.full((7, 33))}, PROVENANCE)
    with pytest.raises(MaskMismatchError, match=r"\(7, 33\).*\(33, 7\) there"):
        artefact.add(wrong)


def test_keys_are_the_names(artefact: Artefact) -> None:
    with pytest.raises(OptionError, match="rename one"):
        Artefact(artefact.model, {"other": artefact["introvert"]})
