"""The part of one artefact: how its personas were made, what was measured, and where their dropped weights lie."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np

from personae.analysis.overlap import place_of
from personae.analysis.report_pieces import Cell, HeatMap, Part, Table, cell, flattened, number, percent
from personae.analysis.report_read import Given
from personae.errors import DataError
from personae.personas import list_contrasts
from personae.subnetwork import Artefact, Subnetwork

__all__ = ["artefact_part"]

MOST_MAPS = 8  # personas of one file that get a heat map


def artefact_part(given: Given) -> Part:
    """Each persona of a file: how it was made, what was measured, and where its dropped weights lie."""
    artefact = given.artefact
    if artefact is None:
        raise DataError(f"{given.name} holds no personas.")
    personas = list(artefact.personas.values())
    findings = tuple(
        f"{p.name}: drops {number(p.dropped)} weights, {percent(p.dropped / _weights(artefact))} of all, by "
        f"{p.provenance.method}."
        for p in personas
    )
    notes = []
    if len(personas) > MOST_MAPS:
        notes.append(f"Heat maps of the first {MOST_MAPS} of {len(personas)} personas.")
    command, about = _discovered(artefact)
    return Part(
        title=", ".join(artefact.names) if len(personas) <= 4 else f"{len(personas)} personas",
        kind="artefact",
        source=given.name,
        sha256=given.sha256,
        model=given.model,
        findings=findings,
        tables=(_personas_table(artefact), _kinds_table(artefact)),
        figures=tuple(_layers(p, artefact, place) for place, p in enumerate(personas[:MOST_MAPS], 1)),
        notes=tuple(notes),
        made=tuple(_made_artefact(artefact)),
        command=command,
        command_note=about,
    )


def _weights(artefact: Artefact) -> int:
    return sum(rows * columns for rows, columns in artefact.model.targets.values())


def _personas_table(artefact: Artefact) -> Table:
    rows = []
    for persona in artefact.personas.values():
        record = persona.provenance
        measured = record.measured
        items = "–" if record.calibration is None else number(record.calibration.items)
        rows.append((
            Cell(persona.name), Cell(record.method),
            Cell("–" if record.calibration is None else record.calibration.name),
            Cell(items), Cell(number(persona.dropped)), Cell(percent(persona.dropped / _weights(artefact))),
            cell(measured.get("dev_acc")), cell(measured.get("capability_loss_bound"), 4),
        ))  # fmt: skip
    columns = (
        "persona", "method", "calibrated on", "items", "dropped", "of all weights", "acc on dev", "loss, upper bound"
    )  # fmt: skip
    notes = (
        "acc on dev: share of dev items won by the persona's answer; dev chose the mask, so this is no test figure and "
        "has no interval. loss, upper bound: of the capability loss on the text that the search read, nats a token.",
    )
    return Table("Personas", columns, tuple(rows), words=frozenset({0, 1, 2}), notes=notes)


def _kinds_table(artefact: Artefact) -> Table:
    rows = []
    for persona in artefact.personas.values():
        for kind in sorted({place_of(name)[1] for name in artefact.model.targets}):
            names = [name for name in artefact.model.targets if place_of(name)[1] == kind]
            dropped = sum(persona.masks[name].dropped for name in names if name in persona.masks)
            weights = sum(artefact.model.targets[n][0] * artefact.model.targets[n][1] for n in names)
            rows.append((
                Cell(persona.name), Cell(kind), Cell(number(dropped)),
                Cell(percent(dropped / persona.dropped if persona.dropped else None)), Cell(percent(dropped / weights)),
            ))  # fmt: skip
    columns = ("persona", "kind", "dropped", "of what it drops", "of the kind's weights")
    return Table("Where the dropped weights lie", columns, tuple(rows), words=frozenset({0, 1}))


def _layers(persona: Subnetwork, artefact: Artefact, place: int) -> HeatMap:
    """Share of each target's weights that is dropped: a row a block, a column a projection."""
    shapes = artefact.model.targets
    columns = list(dict.fromkeys(_projection(name) for name in sorted(shapes, key=_in_order)))
    blocks = sorted({block for name in shapes if (block := place_of(name)[0]) is not None})
    dropped = np.zeros((len(blocks), len(columns)))
    weights = np.zeros((len(blocks), len(columns)))
    for name, (rows, inputs) in shapes.items():
        block = place_of(name)[0]
        if block is None:
            continue
        at = blocks.index(block), columns.index(_projection(name))
        weights[at] += rows * inputs
        dropped[at] += persona.masks[name].dropped if name in persona.masks else 0
    values = tuple(
        tuple(None if w == 0 else 100 * float(d) / float(w) for d, w in zip(ds, ws, strict=True))
        for ds, ws in zip(dropped, weights, strict=True)
    )
    return HeatMap(
        f"layers-{place}",
        f"{persona.name}: share of weights dropped, by block and projection",
        f"Dropped weights over all weights of the target, percent; {number(persona.dropped)} weights in all. Counts of "
        "the mask itself: no estimate, no interval.",
        tuple(columns), tuple(str(block) for block in blocks), "projection", "block", values, "% dropped",
    )  # fmt: skip


def _projection(target: str) -> str:
    """'down_proj' of 'model.layers.3.mlp.down_proj.weight': the last word but 'weight' that is no number."""
    words = [word for word in target.split(".") if word != "weight" and not word.isdigit()]
    return words[-1] if words else target


def _in_order(target: str) -> tuple[str, str]:
    return place_of(target)[1], _projection(target)


def _made_artefact(artefact: Artefact) -> Any:
    model = {k: v for k, v in artefact.model.model_dump(mode="json").items() if k != "targets"}
    yield from flattened({"model": {**model, "targets": len(artefact.model.targets)}})
    for persona in artefact.personas.values():
        record = persona.provenance.model_dump(mode="json", exclude={"sparsity_per_target"})
        yield from flattened({persona.name: record})
    yield from flattened({"file": dict(artefact.metadata)})


def _discovered(artefact: Artefact) -> tuple[str | None, str]:
    """A command made of the recorded parameters, where all of them have an option and the contrast is built in."""
    records = [persona.provenance for persona in artefact.personas.values()]
    first = records[0]
    no = (
        "A .persona file names no command; `personae discover` with the calibration items and the parameters below "
        "makes its masks again."
    )
    same = all(r.method == first.method and r.calibration == first.calibration for r in records)
    if first.calibration is None or not same or first.calibration.name not in list_contrasts():
        return None, no
    given = first.parameters
    words = ["personae", "discover", first.calibration.name, "--method", first.method]
    budget = given.get("max_capability_loss")
    names = ("max_capability_loss",) if budget is not None else ("cheap_share", "drop_share", "sparsity")
    options = ("selection", "statistic", "phi", "tokens", "rank_by", "objective", "own_weight", "rounds", "steps")
    for name in (*names, *options):
        if given.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(given[name])]
    if given.get("isolated"):
        words.append("--isolated")
    words += ["--seed", str(given.get("seed", first.seed or 0))]
    return shlex.join(words), (
        "Made from the parameters that the file records, which name neither the generic text nor the dtype as options; "
        "what it finds is these masks only on the items with the SHA-256 below."
    )
