"""Which of the dropped weights matter: necessity, minimality, and restoring a part of the model at a time.

Necessity asks about the weights that carry the persona: those whose removal helps its rival, p⁻'s mask of `directed`.
Minimality and restoration ask about p⁺'s own mask: what each part of it adds to the margin of the persona's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np

from personae.discovery import Calibration, to_masks
from personae.evaluation.bootstrap import difference, interval
from personae.evaluation.suites.ablation import mean_ablated
from personae.evaluation.suites.faithfulness_readings import (
    NEGATIVE,
    POSITIVE,
    Floats,
    Masks,
    Reading,
    Readings,
    share_of,
)
from personae.evaluation.suites.report import Cell, Table, shown
from personae.models import Target

RANDOM_SEEDS = {"zero": 5, "mean": 2}  # draws of random candidates; each is a reading
TENTH_SEEDS = 3
DECILES = 10

Result = tuple[dict[str, Cell], list[Table]]


# --- necessity ------------------------------------------------------------------------------------------------


def necessity(readings: Readings) -> Result:
    """Margin lost when the weights that carry p⁺ are ablated, against as many random candidates.

    Figures: 'necessity' (zero ablation: lost minus lost by random), 'necessity.lost', 'necessity.random', and the same
    under 'necessity.mean' for mean ablation; None where a mask touches experts.
    """
    base, seed = readings.base(), readings.context.seed
    figures: dict[str, Cell] = {}
    rows: list[tuple[Cell, ...]] = []
    experts = any(t.expert is not None for t in readings.session.targets)
    for kind, name in (("zero", "necessity"), ("mean", "necessity.mean")):
        if kind == "mean" and experts:
            figures[name] = None
            rows.append((kind, None, None, None, None, None))
            continue
        carried = _ablated(readings, kind, "what carries it", partial(readings.directed, NEGATIVE))
        random = [
            _ablated(readings, kind, f"random {s}", partial(readings.random, NEGATIVE, s))
            for s in range(RANDOM_SEEDS[kind])
        ]
        lost = base.margin - carried.margin
        by_chance: Floats = base.margin - np.mean([r.margin for r in random], axis=0)
        cells: tuple[Cell, ...] = (
            interval(lost, seed=seed), interval(by_chance, seed=seed), difference(lost, by_chance, seed=seed),
            interval(carried.wins, seed=seed), interval(np.mean([r.wins for r in random], axis=0), seed=seed),
        )  # fmt: skip
        rows.append((kind, *cells))
        figures |= {name: cells[2], f"{name}.lost": cells[0], f"{name}.random": cells[1], f"{name}.acc": cells[3]}
    notes = [
        "ablated: the weights that the mask of the rival pole drops, found on the calibration part; their removal "
        "should cost the persona its margin. random: as many of the same candidates, mean of "
        f"{RANDOM_SEEDS['zero']} draws ({RANDOM_SEEDS['mean']} for mean ablation).",
        "zero: the weights are zero. mean: what they add on average over generic text is handed on as a bias.",
    ]
    if experts:
        notes.append("mean ablation is left out: an expert has no bias for the mean of what it loses.")
    columns = ("ablation", "margin lost", "lost by random", "difference", "acc", "acc of random")
    return figures, [Table("Necessity: ablating what carries the persona", columns, tuple(rows), tuple(notes))]


def _ablated(readings: Readings, kind: str, what: str, masks: Callable[[], Masks]) -> Reading:
    def mean() -> AbstractContextManager[None]:
        return mean_ablated(readings.session.targets, masks(), readings.session.generic_statistics)

    change = mean if kind == "mean" else readings.wearing(masks)
    return readings.under(f"necessity/{kind}/{what}", change, ablation=kind, what=what)


# --- minimality -----------------------------------------------------------------------------------------------


def minimality(readings: Readings) -> Result:
    """The dropped weights of p⁺ in the order of their rank, a tenth at a time, each alone.

    Figures: 'minimality.decile_K_minus_random', K = 1 the best ranked: margin gained over base by dropping that tenth
    alone, minus the mean gain of as many random candidates.
    """
    base, seed = readings.base(), readings.context.seed
    random = [
        readings.under(
            f"minimality/random {s}", readings.wearing(partial(readings.random, POSITIVE, 1000 + s, tenths=1)), draw=s
        )
        for s in range(TENTH_SEEDS)
    ]
    chance: Floats = np.mean([r.margin for r in random], axis=0)
    figures: dict[str, Cell] = {"minimality.random": difference(chance, base.margin, seed=seed)}
    rows: list[tuple[Cell, ...]] = []
    for decile in range(DECILES):
        worn = readings.under(
            f"minimality/decile {decile + 1}", readings.wearing(partial(_decile, readings, decile)), decile=decile
        )
        over = difference(worn.margin, chance, seed=seed)
        gained = difference(worn.margin, base.margin, seed=seed)
        figures[f"minimality.decile_{decile + 1}_minus_random"] = over
        rows.append((decile + 1, gained, over, interval(worn.wins, seed=seed)))
    rows.append(("random", figures["minimality.random"], None, None))
    notes = (
        "decile: a tenth of the weights that the persona's mask drops, by rank, 1 the best; it alone is dropped.",
        f"random: as many of the same candidates, mean of {TENTH_SEEDS} draws. A flat column means that the order "
        "within the mask does not matter, not that the mask does not.",
    )
    columns = ("decile", "margin gained", "minus random", "acc")
    return figures, [Table("Minimality: the mask by tenths", columns, tuple(rows), notes)]


def _decile(readings: Readings, decile: int) -> Masks:
    """Weights n·k/10 to n·(k+1)/10 of the ranking, rounded down."""
    number, family = readings.number(POSITIVE), readings.family(POSITIVE)
    before, through = (family.at(number * k // DECILES) for k in (decile, decile + 1))
    return to_masks({n: through[n] & ~before[n] for n in through})


# --- restoring one part at a time -----------------------------------------------------------------------------


def restoration(readings: Readings, block_items: int) -> Result:
    """With p⁺'s whole mask worn, one block (or kind) gets its weights back; and each one's mask worn alone.

    Figures: 'restore.gain' (margin over base under the whole mask), 'restore.KIND' (share of it lost when that kind is
    restored), 'alone.KIND' (share that this kind's mask alone brings); single blocks stand in the table. None where the
    gain is not clear of zero.
    """
    base, seed = readings.base(), readings.context.seed
    worn = readings.under("directed", readings.wearing(partial(readings.directed, POSITIVE)))
    gain = difference(worn.margin, base.margin, seed=seed)
    figures: dict[str, Cell] = {"restore.gain": gain}
    rows: list[tuple[Cell, ...]] = []
    for part, names in parts_of(readings.session.targets).items():
        single = part.startswith("block")
        items = Calibration(readings.test.paired[:block_items], (), ()) if single else readings.test
        number = len(items.paired)

        def read(title: str, part: str, masks: Callable[[], Masks], items: Calibration = items) -> Floats:
            return readings.under(f"{title}/{part}", readings.wearing(masks), items, what=title, part=part).margin

        restored = read("restored", part, partial(_without, readings, names))
        alone = read("alone", part, partial(_only, readings, names))
        before, after = base.first(number).margin, worn.first(number).margin
        lost = share_of(after - restored, after - before, seed)
        kept = share_of(alone - before, after - before, seed)
        rows.append((part, lost, kept, number))
        if not single:
            figures |= {f"restore.{part}": lost, f"alone.{part}": kept}
    notes = (
        f"gain of the whole mask: {shown(gain)} nats a token. lost: the share of it that goes when this part gets its "
        "weights back and the rest stays masked; alone: the share that this part's mask brings when nothing else is "
        "masked. Parts that work together have shares that do not sum to one.",
        f"single blocks are read on the first {block_items} items.",
    )
    warnings: tuple[str, ...] = ()
    if gain.low <= 0 <= gain.high:
        warnings = ("the gain of the whole mask is not clear of zero: shares of it are left out.",)
    columns = ("part", "lost when restored", "brought alone", "items")
    return figures, [Table("Restoring one part at a time", columns, tuple(rows), notes, warnings)]


def parts_of(targets: Sequence[Target]) -> dict[str, set[str]]:
    """Names of the targets of each kind (sorted) and of each block ('block 0', …, in order)."""
    kinds: dict[str, set[str]] = {
        kind: {t.name for t in targets if t.kind == kind} for kind in sorted({t.kind for t in targets})
    }
    blocks = {f"block {b}": {t.name for t in targets if t.block == b} for b in sorted({t.block for t in targets})}
    return {**kinds, **blocks}


def _only(readings: Readings, names: set[str]) -> Masks:
    return {n: m for n, m in readings.directed(POSITIVE).items() if n in names}


def _without(readings: Readings, names: set[str]) -> Masks:
    return {n: m for n, m in readings.directed(POSITIVE).items() if n not in names}
