"""Sufficiency: does a whole isolated subnetwork carry the persona, and what does its complement carry?

    F(ρ) = (margin_M − margin_none) / (margin_full − margin_none)

full is the model without a mask, none the model with every target weight dropped. F = 1: the subnetwork prefers the
persona's answers as much as the whole model does; above 1: more. The complement keeps just what the mask drops.

Each sparsity claims once, acc of `directed` minus that of the best other method; p by Holm over the sparsities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch

from personae.discovery import Family, Settings, to_masks
from personae.discovery.choice import ISOLATED_WEIGHTS
from personae.discovery.selection import count
from personae.evaluation.bootstrap import Difference, difference, holm, interval, margin_over_best_control
from personae.evaluation.suites.faithfulness_readings import POSITIVE, Floats, Masks, Reading, Readings, share_of
from personae.evaluation.suites.report import Cell, Table
from personae.subnetwork import Mask

METHODS = ("directed", "wanda", "contrastive-wanda", "contrastive-sparse", "magnitude", "random")
COMPLEMENTED = ("directed", "wanda")  # that of a random mask at ρ is a random mask at 1 − ρ
CELLS = ("F", "acc", "margin", "gain", "own")
CHOICE_SPARSITY = 0.3  # where dev chooses λ of the isolated form, once: each trial sorts all weights of the model


@dataclass(frozen=True, eq=False)
class _Curve:
    """Readings of one method by sparsity; complements where they were asked for."""

    kept: dict[float, Reading]
    complement: dict[float, Reading]


def isolated(readings: Readings, sparsities: Sequence[float]) -> tuple[dict[str, Cell], list[Table]]:
    """Figures 'isolatedNN.…' (NN the sparsity in percent) and the table of sufficiency."""
    base, none = readings.base(), readings.under("none", readings.wearing(lambda: _nothing(readings)))
    curves = {method: _curve(readings, method, sparsities) for method in METHODS}
    whole = base.margin - none.margin
    seed = readings.context.seed
    claims = {rho: _over_best(curves, rho, seed) for rho in sparsities}
    adjusted = dict(zip(claims, holm([claim.p for claim in claims.values()]), strict=True))
    figures: dict[str, Cell] = {
        "base.margin": interval(base.margin, seed=seed), "base.acc": interval(base.wins, seed=seed),
        "none.margin": interval(none.margin, seed=seed), "none.acc": interval(none.wins, seed=seed),
    }  # fmt: skip
    blank = (None,) * 4  # no complement and no claim
    rows: list[tuple[Cell, ...]] = [("base", 0.0, *_cells(base, base, none, seed), *blank)]
    rows.append(("none", 1.0, *_cells(none, base, none, seed), *blank))
    for method, curve in curves.items():
        for rho in sparsities:
            cells = _cells(curve.kept[rho], base, none, seed)
            rest = curve.complement.get(rho)
            others = (None, None) if rest is None else _cells(rest, base, none, seed)[:2]
            claimed = (claims[rho], adjusted[rho]) if method == "directed" else (None, None)
            rows.append((method, rho, *cells, *others, *claimed))
            name = f"isolated{100 * rho:g}" + ("" if method == "directed" else f".{method}")
            figures |= {f"{name}.{key}": cell for key, cell in zip(CELLS, cells, strict=True)}
            if rest is not None:
                figures |= {f"{name}.complement.F": others[0], f"{name}.complement.acc": others[1]}
    for rho, claim in claims.items():
        name = f"isolated{100 * rho:g}.acc_minus_best"
        figures |= {name: claim, f"{name}.p_holm": adjusted[rho]}
    notes = (
        "F: (margin − margin of none) / (margin of base − margin of none); base: no mask; none: every target weight "
        "dropped. F = 1 is as faithful as the whole model, above 1 leans further to the persona.",
        "gain: change over base of the margin; own: change over base of log p a token of the persona's own answers.",
        "complement: only the weights that the mask drops are left, so at sparsity ρ it keeps the share ρ.",
        "random: one draw a sparsity. acc minus best: directed minus the best other method at this sparsity, chosen "
        f"again in every resample; p by Holm over the {len(claims)} sparsities.",
    )
    columns = ("method", "sparsity", *CELLS, "complement F", "complement acc", "acc minus best", "p (Holm)")
    return figures, [Table("Sufficiency of isolated subnetworks", columns, tuple(rows), notes, _doubts(whole, seed))]


def _cells(reading: Reading, base: Reading, none: Reading, seed: int) -> tuple[Cell, ...]:
    """What the table says of one reading, in the order of `CELLS`."""
    return (
        share_of(reading.margin - none.margin, base.margin - none.margin, seed),
        interval(reading.wins, seed=seed),
        interval(reading.margin, seed=seed),
        difference(reading.margin, base.margin, seed=seed),
        difference(reading.own, base.own, seed=seed),
    )


def _doubts(whole: Floats, seed: int) -> tuple[str, ...]:
    """What to say where the whole model's margin lies not clearly above that of no weights at all."""
    if share_of(whole, whole, seed) is None:
        return (
            "the base model prefers the persona's answers no more, and no less, than the model without its target "
            "weights does: F would be a share of nothing and is left out. Read gain and acc.",
        )
    if whole.mean() < 0:
        return (
            "the base model prefers the persona's answers less than the model without its target weights does: "
            "F above 1 leans further away from the persona. Read gain and acc.",
        )
    return ()


def _over_best(curves: dict[str, _Curve], rho: float, seed: int) -> Difference:
    controls = np.column_stack([curve.kept[rho].wins for method, curve in curves.items() if method != "directed"])
    return margin_over_best_control(curves["directed"].kept[rho].wins, controls, seed=seed)


def _curve(readings: Readings, method: str, sparsities: Sequence[float]) -> _Curve:
    masks_at = _masks_of(readings, method)
    curve = _Curve({}, {})
    for rho in sparsities:
        _read_at(readings, curve, method, rho, cache(partial(masks_at, rho)))
    return curve


def _read_at(readings: Readings, curve: _Curve, method: str, rho: float, masks: Callable[[], Masks]) -> None:
    """One sparsity of a curve; the mask is made once for itself and its complement."""
    name = f"isolated/{method}/{rho:g}"
    curve.kept[rho] = readings.under(name, readings.wearing(masks), method=method, sparsity=rho)
    if method in COMPLEMENTED:
        rest = readings.wearing(lambda: {n: ~m for n, m in masks().items()})
        curve.complement[rho] = readings.under(f"{name}/complement", rest, method=method, sparsity=rho, complement=True)


def _masks_of(readings: Readings, method: str) -> Callable[[float], Masks]:
    """From a sparsity to the masks of the positive pole; scores are computed and sorted once, when first asked for."""
    session = readings.session
    families: list[Family] = []

    def at(rho: float) -> Masks:
        settings = Settings(
            method=method, sparsity=rho, isolated=method == "directed", seed=readings.context.seed
        ).checked()
        if method == "directed":
            return to_masks(session.isolated(settings, POSITIVE, chosen_weight(readings)))
        if not families:
            families.append(session.family(settings, POSITIVE))
        return to_masks(families[0].at(count(rho, families[0].size)))

    return at


def chosen_weight(readings: Readings) -> float:
    """λ of the isolated form, by the mean log σ(margin) on dev at one sparsity."""

    def score(weight: float) -> float:
        settings = Settings(isolated=True, sparsity=CHOICE_SPARSITY).checked()
        reading = readings.under(
            f"isolated weight {weight:g}",
            readings.wearing(lambda: to_masks(readings.session.isolated(settings, POSITIVE, weight))),
            readings.dev, weight=weight, part="dev",
        )  # fmt: skip
        return float(torch.nn.functional.logsigmoid(torch.from_numpy(reading.margin)).mean())

    return max(ISOLATED_WEIGHTS, key=score)


def _nothing(readings: Readings) -> Masks:
    return {t.name: ~Mask.full(t.shape) for t in readings.session.targets}
