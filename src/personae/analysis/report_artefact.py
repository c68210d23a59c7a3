"""The part of one artefact: how its personas were made, what was measured, and where their dropped weights lie."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from personae.analysis.overlap import place_of
from personae.analysis.report_pieces import Cell, HeatMap, Part, Table, cell, flattened, number, percent
from personae.analysis.report_read import Given
from personae.discovery import METHODS, Settings
from personae.errors import DataError
from personae.personas import list_contrasts, load_contrast
from personae.subnetwork import Artefact, Provenance, Subnetwork

__all__ = ["artefact_part"]

MOST_MAPS = 8  # personas of one file that get a heat map
_OF_METHOD = (
    "selection", "statistic", "phi", "tokens", "rank_by", "forward", "objective", "own_weight", "rounds", "steps",
    "step_share",
)  # fmt: skip


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
    if same and first.method in METHODS:  # poles may have been found apart, by options of their own
        same = len({(*_method(r),) for r in records}) == 1
    if first.calibration is None or not same or first.calibration.name not in list_contrasts():
        return None, no
    items = _items(first.calibration.split, artefact.metadata)
    if first.method not in METHODS or items is None:  # such as an audit's: its split and its search are its own
        return None, no
    words = ["personae", "discover", first.calibration.name, "--method", first.method, *_method(first), *items]
    [name, *others] = artefact.personas
    if not others and name in load_contrast(first.calibration.name).poles:
        words += ["--pole", name]
    words += ["--seed", str(first.parameters.get("seed", first.seed or 0))]
    return shlex.join(words), (
        "Made from the parameters that the file records, which name neither the generic text, the targets nor the "
        "dtype as options; what it finds is these masks only on the items with the SHA-256 below."
    )


def _method(record: Provenance) -> Iterator[str]:
    """Options of the method as recorded, but for those that it does not read, which `discover` would refuse."""
    given: dict[str, Any] = dict(record.parameters)
    fields = ("isolated", "statistic", "phi", "rank_by", "forward")
    unread = Settings(method=record.method, **{n: given[n] for n in fields if given.get(n) is not None}).unread
    budget = given.get("max_capability_loss") is not None
    names = ("max_capability_loss",) if budget else ("cheap_share", "drop_share", "sparsity")
    for name in (*names, *_OF_METHOD):
        if given.get(name) is not None and name not in unread:
            yield from (f"--{name.replace('_', '-')}", str(given[name]))
    if given.get("n_m"):
        yield from ("--n-m", ":".join(map(str, given["n_m"])))
    if given.get("isolated"):
        yield "--isolated"


def _items(part: str | None, metadata: Mapping[str, Any]) -> list[str] | None:
    """Options that choose the items and how much generic text is read; None for a split that is not `discover`'s."""
    answers = (metadata.get("generic_text") or {}).get("answers")
    words = [] if answers is None else ["--generic-answers", str(answers)]
    if part is not None:
        found = re.fullmatch(r"calibration of seed (-?\d+)", part)
        return None if found is None else ["--split-seed", found[1], *words]
    folds = metadata.get("cross_fit")
    if not folds:
        return ["--all-items", *words]
    return ["--cross-fit", str(len(folds)), "--split-seed", str(metadata.get("cross_fit_seed", 0)), *words]
