"""What the parts of the faithfulness suite share: one session, the test items, and readings that are kept.

A reading is the log-probability a token of both answers of every test item under one condition. All figures are means
over the same items, and so resampled together. docs/suites.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personae.discovery import Calibration, Family, Session, Settings, mean_log_probabilities, to_masks
from personae.discovery.selection import Dropped, count
from personae.errors import ModelError
from personae.evaluation.bootstrap import Estimate, ends, interval, paired_bootstrap
from personae.evaluation.controls import random_masks
from personae.evaluation.scoring import wins
from personae.evaluation.suites.context import SuiteContext
from personae.runtime import wearing
from personae.subnetwork import Mask

Floats = NDArray[np.float64]
Masks = Mapping[str, Mask]

POSITIVE, NEGATIVE = 0, 1


@dataclass(frozen=True, eq=False)
class Reading:
    """log p a token of (the persona's answer, its rival's) of every item, nats, (n, 2)."""

    log_p: Floats

    @property
    def margin(self) -> Floats:
        """Of each item, the persona's answer minus its rival's, (n,)."""
        result: Floats = self.log_p[:, 0] - self.log_p[:, 1]
        return result

    @property
    def wins(self) -> Floats:
        """1 where the persona's answer is likelier, one half on an exact tie, else 0, (n,)."""
        return wins(self.margin)

    @property
    def own(self) -> Floats:
        """Of the persona's own answers, (n,)."""
        result: Floats = self.log_p[:, 0]
        return result

    def first(self, number: int) -> Reading:
        """Of the first items alone."""
        return Reading(self.log_p[:number])


def share_of(part: Floats, whole: Floats, seed: int = 0) -> Estimate | None:
    """mean(part)/mean(whole) over the same items, both (n,), resampled together.

    None where the interval of mean(whole) reaches zero: a share of nothing has no meaning, and near nothing it is a
    huge number without one.
    """
    known = interval(whole, seed=seed)
    if known.low <= 0 <= known.high:
        return None
    means = paired_bootstrap(np.column_stack([part, whole]), seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may still come to nothing
        shares = means[:, 0] / means[:, 1]
    return Estimate(float(part.mean() / whole.mean()), *ends(shares))


@dataclass
class Readings:
    """Readings of the test items under whatever is worn. frame: what decides every part, beside its own settings.

    What is expensive (gains, candidates, orders) is computed when a reading that is not kept yet first asks for it.
    """

    context: SuiteContext
    session: Session
    test: Calibration
    dev: Calibration
    frame: Mapping[str, Any]
    cheap_share: float
    drop_share: float
    _families: dict[int, Family] = field(default_factory=dict)
    _directed: dict[int, dict[str, Mask]] = field(default_factory=dict)
    _read: dict[str, Reading] = field(default_factory=dict)

    def under(
        self,
        name: str,
        change: Callable[[], AbstractContextManager[None]],
        items: Calibration | None = None,
        **settings: Any,
    ) -> Reading:
        """The reading under `change()`, or the one that was made or kept under this name before.

        items: of the test part, if not all. settings: what decides this part beside the frame. Errors: `ModelError`
        on nan or infinity.
        """
        chosen = self.test if items is None else items
        if name in self._read:
            return self._read[name]

        def compute() -> list[list[float]]:
            with change(), self.context.progress(f"faithfulness: {name}", len(chosen.paired)) as tick:
                found = mean_log_probabilities(self.session.model, chosen, tick=tick)
            if not found.isfinite().all():
                raise ModelError(
                    f"faithfulness, {name}: log-probabilities are no finite numbers; load the model in float32."
                )
            return [[float(v) for v in row] for row in found]

        kept = self.context.part(
            f"faithfulness/{name}", {**self.frame, **settings, "items": len(chosen.paired)}, compute
        )
        self._read[name] = Reading(np.array(kept, dtype=np.float64))
        return self._read[name]

    def wearing(self, masks: Callable[[], Masks]) -> Callable[[], AbstractContextManager[None]]:
        """A change for `under`: the masks, made only when they are needed."""
        return lambda: wearing(self.session.targets, masks())

    def base(self) -> Reading:
        """The model as it is."""
        return self.under("base", self.wearing(dict))

    @cached_property
    def candidates(self) -> Dropped:
        """What generic text does not need: where random controls are drawn."""
        return self.session.candidates(self.cheap_share)

    def family(self, pole: int) -> Family:
        """The nested masks of `directed` for one pole."""
        if pole not in self._families:
            settings = Settings(cheap_share=self.cheap_share, drop_share=self.drop_share).checked()
            self._families[pole] = self.session.family(settings, pole, self.cheap_share)
        return self._families[pole]

    def number(self, pole: int) -> int:
        """How many weights its mask drops; fewer than asked for where fewer candidates help the pole."""
        return min(count(self.drop_share, self.session.size), self.family(pole).most)

    def directed(self, pole: int) -> dict[str, Mask]:
        """The mask of `directed` at the drop share, made once."""
        if pole not in self._directed:
            self._directed[pole] = to_masks(self.family(pole).at(self.number(pole)))
        return self._directed[pole]

    def random(self, pole: int, seed: int, tenths: int = 10) -> dict[str, Mask]:
        """As many weights as this pole's mask drops (or so many tenths of them), drawn from the same candidates."""
        return random_masks(self.session.targets, self.number(pole) * tenths // 10, seed, self.candidates)
