"""Isolated subnetworks over sparsity and over calibration pairs: the ablations of the persona paper, and ours.

Masks per pole, within rows, on a paired contrast: wanda, contrastive-wanda, contrastive-sparse, sparsegpt, and the
isolated form of `directed`. By default a cross: every sparsity with `pairs_fixed` pairs, every number of pairs at
`rho_fixed`; `full=True` is the product. arXiv 2602.07164; docs/methods.md sections 3 and 4.

Cost on the default model (0.21 GFLOP a token, 0.06 more where it is scored; an item of power-seeking-inclination
adds 50 tokens of its prompt and 45 of its answers): 2,300 GFLOP for 100 items under one mask and 1,350 for the
capability text, so 7,300 a cell. The cross has 50 cells, and 18 readings of controls: 430,000. Statistics of 580 pairs
take 25,000, with second moments 50,000, gains 38,000, λ 16,000. In all 560,000 GFLOP, 155 minutes of a core of 60
GFLOP/s, and 25 minutes for sorting 10⁸ weights 180 times. Runs of some methods end within 40 minutes on two cores, and
together they say all but the claims, which compare the methods of one run; with parts kept, a run of all closes them:

    run(context, contrast, methods=("directed",), pairs=())          # 120,000 GFLOP, 40 minutes of a core; controls
    run(context, contrast, methods=("directed",))                    # 75,000 more, 30 minutes
    run(context, contrast, methods=("wanda", "contrastive-wanda"), controls=())   # 170,000, 53 minutes
    run(context, contrast, methods=("contrastive-sparse",), controls=())          # 98,000, 31 minutes
    run(context, contrast, methods=("sparsegpt",), controls=())                   # 123,000, 37 minutes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from personae.discovery import (
    Calibration,
    Capability,
    Family,
    GenericText,
    Session,
    Settings,
    capability,
    encode_contrast,
    mean_log_probabilities,
    open_session,
    to_masks,
)
from personae.discovery.choice import ISOLATED_WEIGHTS
from personae.discovery.selection import check_share, count
from personae.errors import DataError, ModelError, OptionError
from personae.evaluation.capability_texts import CapabilityText, unread_text
from personae.evaluation.scoring import baselines, doubts
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.faithfulness import DEV_ITEMS, SPARSITIES
from personae.evaluation.suites.faithfulness_isolated import CHOICE_SPARSITY
from personae.evaluation.suites.faithfulness_readings import NEGATIVE, POSITIVE, Masks, Reading
from personae.evaluation.suites.isolated_grid_report import (
    CONTROLS,
    METHODS,
    Grid,
    Pole,
    Side,
    figures_and_tables,
)
from personae.evaluation.suites.report import SuiteResult, warned
from personae.personas import Contrast, is_tied, split
from personae.runtime import wearing

PAIRS = (10, 20, 50, 100, 400)
PLAIN_WINDOWS, CHAT_ANSWERS = 8, 24  # of the capability text, where the caller gives none


def run(
    context: SuiteContext,
    contrast: Contrast,
    *,
    methods: Sequence[str] = METHODS,
    controls: Sequence[str] = CONTROLS,
    rhos: Sequence[float] = SPARSITIES,
    pairs: Sequence[int] = PAIRS,
    rho_fixed: float = CHOICE_SPARSITY,
    pairs_fixed: int = 100,
    full: bool = False,
    test_items: int = 100,
    generic: GenericText | str | Path | None = None,
    text: CapabilityText | None = None,
) -> SuiteResult:
    """Isolated subnetworks of a paired contrast over sparsities and numbers of calibration pairs.

    methods: of METHODS. controls: of CONTROLS, beside them. rhos: sparsities of the axis at `pairs_fixed` pairs (at
    most all of the calibration part); pairs: numbers of the axis at `rho_fixed`, those the calibration part has; an
    empty axis is left out. full: also their product. Subsets are `Contrast.take(n)`, so they are nested. generic:
    generic text, or its source, for `directed` and the control `generic`. text: on which capability loss is read; by
    default 8 windows and 24 answers of the generic text that no calibration reads. λ of `directed` is chosen on dev
    for each number of pairs, by p⁺'s mask at `rho_fixed`, and serves both poles and every sparsity.

    Figures: 'isolatedNN.FIGURE' (NN = `rho_fixed` in percent) of directed with the most pairs that ran and
    'isolatedNN.best_paper.FIGURE' of the best of the paper's methods there, with FIGURE of FIGURES (acc, acc_opposite,
    separation, …); 'isolatedNN.best_paper' (its name), 'isolatedNN.pairs'; 'rhoNN.separation_minus_best' and
    'rhoNN.p_holm' of every sparsity at `pairs_fixed`; 'base.acc'. Errors: `DataError` for an unpaired contrast,
    `OptionError` for unknown methods, shares out of range, numbers below 1, or nothing to do.
    """
    _check(contrast, methods, controls, (rho_fixed, *rhos), (pairs_fixed, test_items, *pairs))
    parts, most = split(contrast, seed=context.seed), context.limit
    there = len(parts.calibration)
    fixed = min(pairs_fixed, there, most or there)
    numbers = sorted({min(n, most or n) for n in pairs if min(n, most or n) <= there})
    points = {(fixed, rho) for rho in rhos} | {(n, rho_fixed) for n in numbers}
    if full:
        points |= {(n, rho) for n in numbers for rho in rhos}
    if not points:
        raise OptionError(
            f"nothing to do: no rhos, and '{contrast.name}' has {there} calibration pairs, fewer than any of "
            f"{tuple(pairs)}; give rhos, or smaller numbers of pairs."
        )
    dev = parts.dev.take(min(DEV_ITEMS, len(parts.dev), most or DEV_ITEMS))
    test = parts.test.take(min(test_items, len(parts.test), most or test_items))
    largest = parts.calibration.take(max(n for n, _ in points))
    opened = open_session(
        context.model, context.tokenizer, largest, generic=generic, seed=context.seed, progress=context.progress
    )
    unread = unread_text(opened.generic)
    read = text or CapabilityText(unread.plain[:PLAIN_WINDOWS], unread.chat[:CHAT_ANSWERS], unread.name)
    if most is not None:
        read = CapabilityText(read.plain[:most], read.chat[:most], f"{read.name}, the first {most} of each kind")
    dev_encoded, test_encoded = (encode_contrast(context.model, context.tokenizer, part) for part in (dev, test))
    frame = {"contrast": contrast.name, "test": test.sha256, "dev": dev.sha256, "text": read.sha256}
    if any(t.expert is not None for t in context.targets):
        frame["largest"] = largest.sha256  # `random` spares the experts that no answer of its pole reached
    reader = _Reader(context, opened, parts.calibration, test_encoded, dev_encoded, read, frame, rho_fixed)
    grid = Grid(
        base=reader.base(),
        controls={
            (m, rho): reader.control(m, rho)
            for m in CONTROLS if m in controls for rho in sorted({r for _, r in points})
        },
        cells=reader.all_cells(methods, points),
        tied=np.array([is_tied(p.positive, p.negative) for p in test.pairs]),
        fixed_pairs=fixed, fixed_sparsity=rho_fixed, seed=context.seed,
    )  # fmt: skip
    reader.forget()
    figures, tables = figures_and_tables(grid)
    rules = baselines(test)
    return SuiteResult(
        suite="isolated-grid",
        model=context.record(),
        data={**context.read, contrast.name: contrast.sha256},
        settings={
            **frame, "generic_text": opened.generic.sha256, "generic_source": opened.generic.source,
            "text_source": read.name, "methods": list(grid.methods),
            "controls": [m for m in CONTROLS if m in controls], "points": [list(p) for p in sorted(points)],
            "pairs_fixed": fixed, "rho_fixed": rho_fixed, "full": full, "dev_items": len(dev),
            "test_items": len(test), "limit": most, "weights": reader.weights,
        },
        figures=figures,
        tables=warned(tables, doubts(test)),
        notes=(
            f"persona: {contrast.positive} (against {contrast.negative}); {len(test)} test items, "
            f"{int(grid.tied.sum())} tied; 95 % intervals over items.",
            f"the calibration part has {there} pairs; larger numbers than that were left out.",
            f"rules without meaning on these items: 'prefer yes, avoid no' {rules.yes:.3f}, 'the shorter answer' "
            f"{rules.shorter:.3f}.",
            f"capability text: {read.name}; {len(read.plain)} windows, {len(read.chat)} answers.",
        ),
        seed=context.seed,
        versions=context.versions(),
    )  # fmt: skip


@dataclass
class _Reader:
    """Reads the test items and the capability text under masks; every reading under one mask is a part of its own.

    opened: a session that holds what generic text decides; sessions of other numbers of pairs are made from it.
    weights: λ by number of pairs.
    """

    context: SuiteContext
    opened: Session
    calibration: Contrast
    test: Calibration
    dev: Calibration
    text: CapabilityText
    frame: Mapping[str, Any]
    rho_fixed: float
    weights: dict[str, float] = field(default_factory=dict)
    _current: tuple[tuple[int, bool], Session] | None = None

    def base(self) -> Side:
        """The model as it is."""
        return self._under("base", {}, dict)

    def control(self, method: str, rho: float) -> Pole:
        """`random`: a draw a pole; `generic`: one mask for both poles."""
        settings = Settings(method=method, sparsity=rho, seed=self.context.seed).checked()
        read = self.opened.generic.sha256 if method == "generic" else ""

        def side(pole: int) -> Side:
            return self._under(
                f"{method} {rho:g} pole {pole + 1}", {"method": method, "rho": rho, "pole": pole, "read": read},
                lambda: _at(self.opened.family(settings, pole), rho),
            )  # fmt: skip

        first = side(POSITIVE)
        return first, first if method == "generic" else side(NEGATIVE)

    def all_cells(
        self, methods: Sequence[str], points: Iterable[tuple[int, float]]
    ) -> dict[tuple[str, int, float], Pole]:
        """By (method, pairs, sparsity). Statistics and gains are computed once a number of pairs."""
        cells: dict[tuple[str, int, float], Pole] = {}
        for number in sorted({n for n, _ in points}):
            rhos = sorted(rho for n, rho in points if n == number)
            for method in (m for m in METHODS if m in methods):
                # pole by pole: the order of all weights of two masks at once would be as large as two models
                own, rival = (self._sides(method, number, rhos, pole) for pole in (POSITIVE, NEGATIVE))
                cells |= {(method, number, rho): (own[rho], rival[rho]) for rho in rhos}
        return cells

    def forget(self) -> None:
        """Drop the last session, and what was kept for the case of a kill."""
        self._current = None
        self.opened.forget()

    def _sides(self, method: str, number: int, rhos: Sequence[float], pole: int) -> dict[float, Side]:
        calibration = self.calibration.take(number).sha256
        settings: dict[str, Any] = {"method": method, "pole": pole, "calibration": calibration}
        masks_at = partial(self._scored, number, pole, method, [])
        if method == "directed":
            weight = self._weight(number)
            settings |= {"weight": weight, "generic": self.opened.generic.sha256}
            masks_at = partial(self._directed, number, pole, weight)
        return {
            rho: self._under(
                f"{method} {number} pairs {rho:g} pole {pole + 1}", {**settings, "rho": rho}, partial(masks_at, rho)
            )
            for rho in rhos
        }

    def _scored(self, number: int, pole: int, method: str, kept: list[Family], rho: float) -> Masks:
        """Of a score; `kept` holds it, sorted, from the first sparsity that asks on."""
        if not kept:
            settings = Settings(method=method, sparsity=rho, seed=self.context.seed).checked()
            kept.append(self._session(number, generic=False).family(settings, pole))
        return _at(kept[0], rho)

    def _directed(self, number: int, pole: int, weight: float, rho: float) -> Masks:
        settings = Settings(method="directed", isolated=True, sparsity=rho, seed=self.context.seed).checked()
        return to_masks(self._session(number, generic=True).isolated(settings, pole, weight))

    def _weight(self, number: int) -> float:
        """λ by the mean log σ(margin) on dev under p⁺'s mask at `rho_fixed`."""

        def on_dev(weight: float) -> float:
            name = f"directed {number} pairs weight {weight:g}"
            decides = {
                **self.frame, "calibration": self.calibration.take(number).sha256, "weight": weight,
                "rho": self.rho_fixed, "generic": self.opened.generic.sha256,
            }  # fmt: skip

            def compute() -> float:
                with wearing(self.context.targets, self._directed(number, POSITIVE, weight, self.rho_fixed)):
                    log_p = self._answers(name, self.dev)
                return float(torch.nn.functional.logsigmoid(log_p[:, 0] - log_p[:, 1]).mean())

            return float(self.context.part(f"isolated-grid/{name}", decides, compute))

        if str(number) not in self.weights:
            self.weights[str(number)] = max(ISOLATED_WEIGHTS, key=on_dev)
        return self.weights[str(number)]

    def _session(self, number: int, *, generic: bool) -> Session:
        """Of so many pairs; one is held at a time. generic: with what generic text decides, computed once for all."""
        if generic:
            _ = self.opened.generic_statistics  # before the copy is made
        if self._current is None or self._current[0] != (number, generic):
            self.forget()
            items = encode_contrast(self.context.model, self.context.tokenizer, self.calibration.take(number))
            self._current = (number, generic), self.opened.with_calibration(items)
        return self._current[1]

    def _under(self, name: str, settings: Mapping[str, Any], masks: Callable[[], Masks]) -> Side:
        def compute() -> dict[str, Any]:
            texts = len(self.text.plain) + len(self.text.chat)
            with wearing(self.context.targets, masks()):
                log_p = self._answers(name, self.test)
                with self.context.progress(f"isolated grid: {name}, capability", texts) as tick:
                    found = capability(self.context.model, self.text.generic, tick)
            if not all(t.isfinite().all() for t in (found.plain_texts, found.chat_texts)):
                raise ModelError(f"isolated grid, {name}: likelihoods are no finite numbers; load in float32.")
            return {"log_p": log_p.tolist(), "plain": found.plain_texts.tolist(), "chat": found.chat_texts.tolist()}

        kept = self.context.part(f"isolated-grid/{name}", {**self.frame, **settings}, compute)
        plain, chat = (torch.tensor(kept[k], dtype=torch.float64) for k in ("plain", "chat"))
        return Side(Reading(np.array(kept["log_p"], dtype=np.float64)), Capability(plain, chat))

    def _answers(self, name: str, items: Calibration) -> torch.Tensor:
        """log p a token of both answers, (n, 2). Errors: `ModelError` on nan or infinity."""
        with self.context.progress(f"isolated grid: {name}", len(items.paired)) as tick:
            found = mean_log_probabilities(self.context.model, items, tick=tick)
        if not found.isfinite().all():
            raise ModelError(f"isolated grid, {name}: log-probabilities are no finite numbers; load in float32.")
        return found


def _at(family: Family, rho: float) -> Masks:
    return to_masks(family.at(count(rho, family.size)))


def _check(
    contrast: Contrast,
    methods: Sequence[str],
    controls: Sequence[str],
    shares: Sequence[float],
    numbers: Sequence[int],
) -> None:
    if not contrast.paired:
        raise DataError(
            f"contrast '{contrast.name}' is not paired: the grid compares two answers to one question. Give pairs "
            "(load_contrast(…, paired=True) joins two sets that share their questions)."
        )
    unknown = [m for m in methods if m not in METHODS]
    if unknown or not methods:
        raise OptionError(f"methods of the grid: {', '.join(METHODS)}; found {', '.join(unknown) or 'none'}.")
    if strange := [m for m in controls if m not in CONTROLS]:
        raise OptionError(f"controls of the grid: {', '.join(CONTROLS)}; found {', '.join(strange)}.")
    for share in shares:
        check_share(share, "sparsity")
    if min(numbers) < 1:
        raise OptionError(f"pairs, pairs_fixed and test_items must be at least 1, found {tuple(numbers)}.")
