"""From readings to figures and tables: discrimination, the persona's own answers, specificity, the sixteen types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from personae.evaluation.bootstrap import Difference, Estimate, holm
from personae.evaluation.suites.mbti_data import DIMENSIONS, flat
from personae.evaluation.suites.mbti_readings import Floats, Readings, Sides, positive
from personae.evaluation.suites.mbti_statistics import (
    Resampled,
    auc,
    best,
    length_matched,
    mean,
    separation,
    weights_of,
)
from personae.evaluation.suites.report import Cell, Table

TRIVIAL = 0.9  # a baseline above it makes the set a poor test of a persona
TYPES = tuple("".join(letters) for letters in product(*DIMENSIONS))

Figures = dict[str, Cell]


@dataclass(frozen=True, slots=True)
class Draws:
    """The bootstrap of every figure."""

    resamples: int
    seed: int

    def weights(self, readings: Readings, couples: int | None = None) -> Floats:
        """How often each test answer is drawn, (resamples, answers)."""
        names = [a.instruction for a in flat(readings.data.test[:couples])]
        return weights_of(names, resamples=self.resamples, seed=self.seed)


def gap(sides: Sides) -> Floats:
    """s(a): mean log p of each answer under p⁺'s side minus under p⁻'s, (n,)."""
    return sides[0] - sides[1]


def dimension_figures(readings: Readings, draws: Draws) -> tuple[Figures, tuple[str, ...]]:
    """The figures of one dimension by their names without it, and the warnings that belong to them."""
    answers = flat(readings.data.test)
    labels, weights = positive(answers), draws.weights(readings)
    lengths = [a.length for a in answers]

    def area(*scores: Floats) -> Resampled:
        return auc(scores, labels, weights)

    own, shuffled = area(gap(readings.persona)), area(gap(readings.shuffled))
    chance = area(*(gap(sides) for sides in readings.random))
    words, length = area(readings.words), area(readings.length)
    matched = length_matched(lengths, labels)
    even = auc([gap(readings.persona)[matched]], labels[matched], weights[:, matched]) if matched else None
    over_controls = own.minus(best([shuffled, chance]))
    ceiling = None if readings.ceiling is None else area(gap(readings.ceiling))
    changes = [
        mean((readings.persona[pole] - readings.base)[side], weights[:, side])
        for pole, side in enumerate((labels, ~labels))
    ]
    figures: Figures = {
        "auc": own.estimate(),
        "auc_length_matched": None if even is None else even.estimate(),
        "auc_shuffled": shuffled.estimate(),
        "auc_random": chance.estimate(),
        "auc_bag_of_words": words.estimate(),
        "auc_length": length.estimate(),
        "auc_ceiling": None if ceiling is None else ceiling.estimate(),
        "auc_over_ceiling": None if ceiling is None else own.over(ceiling),
        "auc_gain_over_ceiling": None if ceiling is None else _gain_over(own, ceiling),
        "auc_minus_best_control": over_controls,
        "auc_minus_bag_of_words": own.minus(words),
        "own_answers": changes[0].estimate(),
        "own_answers_opposite": changes[1].estimate(),
        "capability_loss": max(readings.found.losses),
        "test_answers": len(answers),
        "length_matched_answers": len(matched),
    }
    name = readings.data.name
    warnings = [
        f"{name}: {what} alone reaches an AUC of {baseline.value:.2f}: these answers can be told apart without a model."
        for what, baseline in (("a bag of words", words), ("the length", length))
        if baseline.value > TRIVIAL
    ]
    if len(set(lengths)) == 1:
        warnings.append(f"{name}: all answers have {lengths[0]} tokens, so nothing can be said about length.")
    if not matched:
        warnings.append(f"{name}: no two answers of opposite poles are of one length, so none could be matched.")
    if over_controls.low <= 0:
        warnings.append(f"{name}: no better than its controls (the interval of the difference reaches zero).")
    if ceiling is not None and ceiling.value < own.value:
        warnings.append(f"{name}: the adapter as trained is no ceiling: the masks do better.")
    return figures, tuple(warnings)


def _gain_over(own: Resampled, ceiling: Resampled) -> Estimate | None:
    """(auc − ½)/(auc_ceiling − ½): chance has 0 here, in the plain ratio more than a half. None: no clear ceiling."""
    return own.above(0.5).over(ceiling.above(0.5)) if ceiling.estimate().low > 0.5 else None


def one_class(name: str, pole: str) -> str:
    """The warning of a file with one class."""
    return f"{name}: the file holds answers of one pole only ({pole}), so nothing was measured."


def discrimination_table(figures: Mapping[str, Figures], warnings: Sequence[str]) -> Table:
    """AUC of the masks beside every control, by dimension."""
    columns = (
        "auc", "auc_length_matched", "auc_shuffled", "auc_random", "auc_bag_of_words", "auc_length",
        "auc_minus_best_control", "auc_minus_bag_of_words", "auc_ceiling", "auc_over_ceiling",
        "auc_gain_over_ceiling",
    )  # fmt: skip
    measured = [name for name, own in figures.items() if isinstance(own.get("auc_minus_best_control"), Difference)]
    claims = [figures[name]["auc_minus_best_control"] for name in measured]
    p = dict(zip(measured, holm([c.p for c in claims if isinstance(c, Difference)]), strict=True))
    return Table(
        "Held-out discrimination of the poles (AUC)",
        ("dimension", *columns, "p (Holm)", "answers"),
        tuple(
            (name, *(own.get(c) for c in columns), p.get(name), own.get("test_answers"))
            for name, own in figures.items()
        ),
        notes=(
            "s(a) = mean log p(a|x) a token under the first pole's mask minus under the second's; AUC: the chance that "
            "an answer of the first pole has the larger s. 95 % intervals over instructions.",
            "shuffled: the labels of half of the calibration answers exchanged; random: drawn; both with as many "
            "weights from the same candidates. The best of the two is chosen again inside every resample; p (Holm) is "
            "of that difference, over the dimensions.",
            "bag of words, length: logistic regressions on the same calibration answers (words of the text as cut; "
            "tokens of the whole answer).",
        ),
        warnings=tuple(warnings),
    )


def own_answers_table(figures: Mapping[str, Figures]) -> Table:
    """Whether a mask makes its persona's own answers likelier, and what it costs elsewhere."""
    columns = ("own_answers", "own_answers_opposite", "capability_loss")
    return Table(
        "The personas' own answers (change of mean log p, nats a token)",
        ("dimension", *columns),
        tuple((name, *(own.get(c) for c in columns)) for name, own in figures.items()),
        notes=(
            "own_answers: the first pole's answers under its mask minus under the bare model; _opposite: the second "
            "pole's under its own. capability_loss: the larger of both masks', on generic text that no search read.",
        ),
    )


def specificity(
    shifts: Mapping[tuple[str, str], Floats], every: Mapping[str, Readings], couples: int, draws: Draws
) -> tuple[Figures, Table]:
    """The masks × dimensions matrix. shifts: change over base of the first `couples` test answers, by (mask's pole,
    dimension)."""
    rows: list[tuple[Cell, ...]] = []
    specific = total = 0
    for readings in every.values():
        for pole, letter in enumerate(readings.data.poles):
            cells = [_separated(shifts[letter, name], other, couples, draws) for name, other in every.items()]
            by_name = dict(zip(every, (c.value for c in cells), strict=True))
            toward = by_name.pop(readings.data.name) * (1 if pole == 0 else -1)
            specific += toward > max((abs(v) for v in by_name.values()), default=0.0)
            total += 1
            rows.append((letter, *(c.estimate() for c in cells)))
    table = Table(
        "Specificity: what each mask does to each dimension (nats a token)",
        ("mask", *every),
        tuple(rows),
        notes=(
            "Mean change of log p of the first pole's test answers minus mean change of the second pole's, over the "
            f"first {couples} couples of answers; the sign should be that of the mask's pole on its own dimension, and "
            "near zero elsewhere.",
            f"{specific} of {total} masks move their own dimension the right way, and further than any other.",
        ),
    )
    return {"specificity.masks": specific}, table


def types(
    shifts: Mapping[tuple[str, str], Floats], every: Mapping[str, Readings], couples: int, strength: float, draws: Draws
) -> tuple[Figures, tuple[Table, Table]]:
    """The sixteen types as blends of four poles. shifts: change over base by (type, dimension)."""
    rows: list[tuple[Cell, ...]] = []
    means: list[tuple[Cell, ...]] = []
    right = 0
    for kind in TYPES:
        cells: list[Estimate] = []
        by_pole: list[Cell] = []
        for letter, (name, readings) in zip(kind, every.items(), strict=True):
            change = shifts[kind, name]
            toward = 1.0 if letter == readings.data.poles[0] else -1.0
            cells.append(_separated(toward * change, readings, couples, draws).estimate())
            by_pole += [float(change[0::2].mean()), float(change[1::2].mean())]
        steps = sum(c.value > 0 for c in cells)
        right += steps == len(cells)
        rows.append((kind, *cells, steps))
        means.append((kind, *by_pole))
    first = Table(
        "The sixteen types as blends of four poles (nats a token)",
        ("type", *every, "right"),
        tuple(rows),
        notes=(
            f"The union of four masks at strength {strength:g}. Mean change of log p of the type's own pole's test "
            f"answers minus that of the other pole's, over {couples} couples of answers a dimension: above zero is the "
            "right way.",
            f"{right} of {len(TYPES)} types shift all four dimensions the right way (chance: one of sixteen).",
        ),
    )
    poles = tuple(letter for readings in every.values() for letter in readings.data.poles)
    second = Table("Mean change of log p of each pole's answers under each type", ("type", *poles), tuple(means))
    return {"types.right": right}, (first, second)


def _separated(change: Floats, readings: Readings, couples: int, draws: Draws) -> Resampled:
    labels = np.arange(len(change)) % 2 == 0
    return separation(change, labels, draws.weights(readings, couples))
