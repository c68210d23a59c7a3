"""From which checkpoint on a figure is there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from personae.analysis.dynamics_figures import onsets
from personae.analysis.dynamics_result import MaskOverlap, Stage
from personae.analysis.overlap import Against, Overlap
from personae.evaluation import Difference, Estimate

NONE = Estimate(0.0, 0.0, 0.0)
STAGE = Stage(
    "", None, "", None, "", 40, 0, Estimate(0.5, 0.4, 0.6), None, NONE, NONE, NONE, NONE, None, None, None, NONE, NONE,
    (), "base", Difference(0.0, -0.1, 0.1, 1.0), 1.0, 0.0, 0.0, "", 0.0, 0.0, 100, (1, 1), 0.01, ({}, {}), 0.0,
)  # fmt: skip
POLES = ("loud", "quiet")


def stage(label: str, *, base: tuple[float, float] = (0.4, 0.6), over: float = 0.0, p: float = 1.0) -> Stage:
    return replace(
        STAGE, label=label, step=int(label), base_acc=Estimate(float(np.mean(base)), *base),
        over_control=Difference(over, 0.0, 0.0, p), p_holm=p,
    )  # fmt: skip


def overlap(
    first: str,
    second: str,
    value: float,
    *,
    high: float | None = 0.2,
    z: float = 0.0,
    pole: str,
    candidates: float = 0.1,
) -> MaskOverlap:
    figure = Against(value, 0.1, None if high is None else 0.05, high)
    whole = Overlap("all", "all", 100, 10, 10, 5, 1.0, z, figure, figure, figure)
    return MaskOverlap(first, second, "previous", pole, (whole,), candidates)


def found(stages: list[Stage], overlaps: tuple[MaskOverlap, ...] = ()) -> dict[str, str | None]:
    return {onset.figure: onset.label for onset in onsets(stages, overlaps)}


def test_alignment_needs_one_side_to_the_end() -> None:
    up, down, even = (0.6, 0.8), (0.2, 0.4), (0.4, 0.6)
    assert found([stage("1"), stage("2", base=up), stage("3", base=up)])["alignment"] == "2"
    assert found([stage("1", base=up), stage("2", base=even), stage("3", base=up)])["alignment"] == "3"
    assert found([stage("1", base=up), stage("2", base=down)])["alignment"] == "2"  # it has turned
    assert found([stage("1", base=up), stage("2", base=even)])["alignment"] is None


def test_separation_must_be_above_its_controls() -> None:
    assert found([stage("1"), stage("2", over=0.3, p=0.01)])["separation"] == "2"
    assert found([stage("1", over=0.3, p=0.01), stage("2", over=0.3, p=0.06)])["separation"] is None
    assert found([stage("1"), stage("2", over=-0.3, p=0.01)])["separation"] is None
    [_, onset, _] = onsets([stage("1"), stage("2", over=0.3, p=0.01)], ())
    assert onset.step == 2


@pytest.mark.parametrize("high", [0.2, None])
def test_overlap_needs_both_poles(high: float | None) -> None:
    stages = [stage("1"), stage("2"), stage("3")]

    def series(value: float, z: float) -> tuple[MaskOverlap, ...]:
        told = {"high": high, "z": z}
        return (
            *(overlap("2", "3", 0.5, high=high, z=9.0, pole=pole) for pole in POLES),
            overlap("1", "2", 0.5, high=high, z=9.0, pole="loud"),
            overlap("1", "2", value, **told, pole="quiet"),  # type: ignore[arg-type]
        )

    assert found(stages, series(0.5, 9.0))["overlap"] == "2"
    assert found(stages, series(0.15, 1.0))["overlap"] == "3"
    assert found(stages)["overlap"] is None
    shared = tuple(replace(each, among_candidates=0.6) for each in series(0.5, 9.0))
    assert found(stages, shared)["overlap"] is None  # no more than sharing candidates brings
