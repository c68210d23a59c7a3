"""The figures of one checkpoint, from its table, and from which checkpoint on they are there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from personae.analysis.checkpoints import Snapshot
from personae.analysis.dynamics_result import Chance, MaskOverlap, Onset, Stage
from personae.discovery import Session
from personae.evaluation import Evaluation, Row, interval, margin_over_best_control
from personae.evaluation.controls import random_masks
from personae.evaluation.scoring import wins
from personae.personas import Contrast
from personae.subnetwork import Artefact, Provenance, Subnetwork

__all__ = ["among_candidates", "measured", "onsets"]

Floats = NDArray[np.float64]

SIGNIFICANT = 0.05  # of p_holm
NORMAL = 1.96  # z of overlap where no masks by chance were drawn


def measured(snapshot: Snapshot, artefact: Artefact, table: Evaluation, contrast: Contrast) -> Stage:
    """One checkpoint's figures; p_holm is its own p until the series is whole."""
    base, [row] = table["base"], table.of_kind("method")
    controls = table.of_kind("control")
    own = separations(row).mean(axis=0)
    rivals = [np.zeros_like(own), *(separations(control).mean(axis=0) for control in controls)]
    over = margin_over_best_control(own, np.column_stack(rivals), resamples=table.resamples, seed=table.seed)
    names = ["base", *(control.name for control in controls)]
    assert row.loss is not None
    poles = [artefact[pole] for pole in contrast.poles]
    dropped = poles[0].dropped, poles[1].dropped
    return Stage(
        label=snapshot.label,
        step=snapshot.step,
        source=snapshot.source,
        revision=snapshot.revision,
        fingerprint=table.model.fingerprint,
        items=table.data.items,
        tied_items=table.data.tied_items,
        base_acc=base.acc,
        base_acc_tied=base.acc_tied,
        base_margin=base.margin,
        acc=row.acc,
        acc_opposite=row.acc_opposite,
        separation=interval(own, resamples=table.resamples, seed=table.seed),
        acc_tied=row.acc_tied,
        acc_tied_opposite=row.acc_tied_opposite,
        separation_tied=row.tied_separation,
        margin=row.margin,
        margin_opposite=row.margin_opposite,
        controls=tuple(_chance(control, table) for control in controls),
        best_control=names[int(np.argmax([rival.mean() for rival in rivals]))],
        over_control=over,
        p_holm=over.p,
        capability_loss=row.loss.worst,
        capability_loss_error=row.loss.error,
        capability_text=table.text.name,
        base_plain=table.text.base_plain,
        base_chat=table.text.base_chat,
        weights=table.model.weights,
        dropped=dropped,
        sparsity=sum(dropped) / 2 / table.model.weights,
        chosen=tuple(
            {k: v for k, v in pole.provenance.parameters.items() if k in ("cheap_share", "round")} for pole in poles
        ),
        seconds=row.seconds or 0.0,
        notes=(*table.warnings, *table.notes),
    )


def separations(row: Row) -> Floats:
    """By reading and item, 1[p⁺'s answer wins under p⁺'s mask] − 1[it wins under p⁻'s], (readings, items)."""
    return np.array([wins(np.array(r.difference)) - wins(np.array(r.difference_opposite)) for r in row.readings])


def _chance(row: Row, table: Evaluation) -> Chance:
    found = separations(row)
    return Chance(
        row.name, tuple(r.seed for r in row.readings if r.seed is not None), row.acc, row.acc_opposite,
        interval(found.mean(axis=0), resamples=table.resamples, seed=table.seed), tuple(found.mean(axis=1).tolist()),
    )  # fmt: skip


def among_candidates(session: Session, artefact: Artefact, contrast: Contrast, name: str) -> Artefact:
    """As many weights as each pole drops, at random among its candidates, under the poles' names.

    name: of the checkpoint; it decides the draw, so that two checkpoints never draw alike.
    """
    personas = {}
    for number, pole in enumerate(contrast.poles):
        found = artefact[pole]
        cheap = found.provenance.parameters.get("cheap_share")
        candidates = session.candidates(float(cheap)) if isinstance(cheap, int | float) else None
        drawn = int.from_bytes(hashlib.blake2b(f"{number} {name}".encode(), digest_size=4).digest(), "big")
        masks = random_masks(session.targets, found.dropped, drawn, candidates)
        record = Provenance(method="random", seed=drawn, sparsity=found.sparsity, licence=found.provenance.licence)
        personas[pole] = Subnetwork(pole, masks, record)
    return Artefact(artefact.model, personas)


# --- from when on ---------------------------------------------------------------------------------------------


def onsets(stages: Sequence[Stage], overlaps: Sequence[MaskOverlap]) -> tuple[Onset, ...]:
    """The first checkpoint at which each figure is there, and at every later one too (`Onset`)."""
    side = _side(stages[-1])
    return (
        _onset("alignment", stages, lambda stage: side != 0 and _side(stage) == side),
        _onset("separation", stages, lambda stage: stage.over_control.value > 0 and stage.p_holm < SIGNIFICANT),
        _onset("overlap", stages, lambda stage: _overlaps_previous(stage, overlaps)),
    )


def _onset(figure: str, stages: Sequence[Stage], there: Callable[[Stage], bool]) -> Onset:
    found = None
    for stage in reversed(stages):
        if not there(stage):
            break
        found = stage
    return Onset(figure, None, None) if found is None else Onset(figure, found.label, found.step)


def _side(stage: Stage) -> int:
    """1 where the bare model leans to p⁺ (its interval lies above one half), −1 to p⁻, 0 where it cannot be told."""
    return int(stage.base_acc.low > 0.5) - int(stage.base_acc.high < 0.5)


def _overlaps_previous(stage: Stage, overlaps: Sequence[MaskOverlap]) -> bool:
    """Both poles' masks have more in common with the checkpoint before than masks by chance, and than random weights
    of the same candidates; the first has none before it."""
    before = [each for each in overlaps if each.against == "previous" and each.second == stage.label]
    return bool(before) and all(_clear_of_chance(each) for each in before)


def _clear_of_chance(overlap: MaskOverlap) -> bool:
    whole = overlap["all"]
    high = whole.jaccard.high
    above = (whole.z or 0.0) > NORMAL if high is None else whole.jaccard.value > high
    return above and whole.jaccard.value > overlap.among_candidates
