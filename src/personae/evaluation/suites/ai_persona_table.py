"""The tables of the ai-persona suite: pure, from outcomes by item to figures with intervals, claims and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from personae.evaluation.bootstrap import Difference, Estimate, difference, holm, interval, margin_over_best_control
from personae.evaluation.conditions import Row
from personae.evaluation.scoring import Baselines, Bools, Floats, wins
from personae.evaluation.suites.report import Cell, Table

COLUMNS = (
    "condition", "acc", "acc_opposite", "acc_tied", "acc_tied_opposite", "minus best control", "capability loss",
    "dropped", "seconds", "cost",
)  # fmt: skip
CONTROL_KINDS = ("base", "control")

Figures = dict[str, Cell]


@dataclass(frozen=True, eq=False)
class Line:
    """One condition. first, second: outcome of every item under p⁺'s side and under p⁻'s, (n,), a mean over seeds where
    there are several. loss: capability loss ± 1.96 standard errors; None where it was not measured. dropped: share."""

    name: str
    kind: str
    first: Floats
    second: Floats
    loss: Estimate | None = None
    dropped: float = 0.0
    seconds: float | None = None
    cost: str = "none"
    note: str = ""


def line_of(row: Row) -> Line:
    """A row of an evaluation, with its outcomes by item."""
    loss = None
    if row.loss is not None:
        half = 1.96 * row.loss.error
        loss = Estimate(row.loss.worst, row.loss.worst - half, row.loss.worst + half)
    first = np.mean([wins(np.array(r.difference)) for r in row.readings], axis=0)
    second = np.mean([wins(np.array(r.difference_opposite)) for r in row.readings], axis=0)
    cost = f"{row.extra_prompt_tokens:.0f} prompt tokens a request" if row.extra_prompt_tokens else row.cost
    return Line(row.name, row.kind, first, second, loss, row.sparsity, row.seconds, cost, row.note)


def over_controls(lines: Sequence[Line], *, seed: int = 0) -> dict[str, tuple[Difference, str, float]]:
    """By method: acc minus that of the best control (bare model included), the name of that control, and p after Holm.

    The best control is chosen again inside each resample. Empty without a control or a method.
    """
    controls = [line for line in lines if line.kind in CONTROL_KINDS]
    methods = [line for line in lines if line.kind == "method"]
    if not any(line.kind == "control" for line in controls):
        return {}
    rivals = np.column_stack([line.first for line in controls])
    best = controls[int(rivals.mean(axis=0).argmax())].name
    found = [margin_over_best_control(line.first, rivals, seed=seed) for line in methods]
    adjusted = holm([gap.p for gap in found])
    return {line.name: (gap, best, p) for line, gap, p in zip(methods, found, adjusted, strict=True)}


def set_table(
    title: str,
    lines: Sequence[Line],
    tied: Bools,
    trivial: Baselines,
    *,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Table, Figures]:
    """One table with a row a condition, and its figures under '<condition>.<column>'.

    warnings: what the test items give to doubt (`scoring.doubts`); empty masks are warned of here.
    """
    claims = over_controls(lines, seed=seed)
    rows: list[tuple[Cell, ...]] = []
    figures: Figures = {
        "items": len(tied), "tied_items": int(tied.sum()), "trivial.yes": trivial.yes,
        "trivial.shorter": trivial.shorter,
    }  # fmt: skip
    for line in lines:
        claim = claims.get(line.name)
        cells: dict[str, Cell] = {
            "acc": interval(line.first, seed=seed),
            "acc_opposite": interval(line.second, seed=seed),
            "acc_tied": interval(line.first[tied], seed=seed) if tied.any() else None,
            "acc_tied_opposite": interval(line.second[tied], seed=seed) if tied.any() else None,
            "minus_best_control": claim[0] if claim else None,
            "capability_loss": line.loss,
            "dropped": line.dropped,
        }
        figures |= {f"{line.name}.{name}": cell for name, cell in cells.items() if cell is not None}
        dropped = f"{line.dropped:.2%}" if line.dropped else "0"
        seconds = None if line.seconds is None else round(line.seconds)
        rows.append((line.name, *list(cells.values())[:-1], dropped, seconds, line.cost))
    said = [
        f"{name}: acc over the best control ({best}) {gap.value:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}], "
        f"p {gap.p:.3f}, after Holm {p:.3f}" + (": no better than its controls" if gap.value <= 0 else "")
        for name, (gap, best, p) in claims.items()
    ]
    said.append(f"trivial baselines: shorter answer {trivial.shorter:.2f}, always yes {trivial.yes:.2f}")
    said += [f"{line.name}: {line.note}" for line in lines if line.note]
    return Table(title, COLUMNS, tuple(rows), (*said, *notes), (*warnings, *empty_masks(lines))), figures


def empty_masks(lines: Sequence[Line]) -> list[str]:
    """A sentence for every method that dropped nothing, so that its row is the bare model again."""
    return [
        f"{line.name} found no mask within the budget: its row is the bare model's"
        for line in lines
        if line.kind == "method" and not line.dropped
    ]


def truth_table(
    conditions: Sequence[tuple[str, Floats, Floats]], *, notes: Sequence[str] = (), seed: int = 0
) -> tuple[Table, Figures]:
    """The truth control. conditions: name, outcomes (1: 'Yes') on fiction items and on their true twins, both (n,).

    separation: 'Yes' on the true twin minus 'Yes' on the fiction, which an 'always yes' leaves at 0. A condition under
    which 'Yes' to the truth falls below the first condition's (the bare model's) is warned of.
    """
    rows: list[tuple[Cell, ...]] = []
    figures: Figures = {}
    doubts = []
    bare = conditions[0][2]
    for name, fiction, truth in conditions:
        cells: dict[str, Cell] = {
            "yes_to_fiction": interval(fiction, seed=seed),
            "yes_to_truth": interval(truth, seed=seed),
            "separation": difference(truth, fiction, seed=seed),
        }
        rows.append((name, *cells.values()))
        figures |= {f"{name}.{key}": cell for key, cell in cells.items()}
        fall = difference(truth, bare, seed=seed)
        if fall.high < 0:
            doubts.append(
                f"{name}: 'Yes' where it is right falls by {-fall.value:.2f} [{-fall.high:.2f}, {-fall.low:.2f}]: the "
                "mask says no to the truth too, so it is no pole of hallucination but of denial"
            )
    always = np.ones(len(bare))
    rows.append(("always yes", interval(always), interval(always), 0.0))
    explained = "yes_to_…: share of items on which the answer 'Yes, …' wins; separation: truth minus fiction, paired"
    columns = ("condition", "yes_to_fiction", "yes_to_truth", "separation")
    return Table("hallucination: truth control", columns, tuple(rows), (explained, *notes), tuple(doubts)), figures
