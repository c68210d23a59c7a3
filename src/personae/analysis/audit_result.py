"""What an audit found: one `Hazard` a hazardous contrast, each with its curve, its disabling, its attacks, a verdict.

`alignment` is always with the hazardous pole: the share of items whose hazardous answer has the larger log-probability
a token, exact ties one half, in [0, 1]. Shares are of all target weights. Intervals are 95 % percentile intervals of
the paired bootstrap over items. Margins and losses are in nats a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from personae.analysis.frames import data_frame, flat
from personae.evaluation import Difference, Estimate

if TYPE_CHECKING:
    import pandas

LIMITS = (
    "This measures how accessible a persona is under masks, on these items and under these attacks. It does not "
    "certify safety: other questions, other attacks, longer conversations and training may reach what is not reached "
    "here."
)


@dataclass(frozen=True, slots=True)
class Alignment:
    """On some items: how many, how many of them tied (both answers open with the same polarity), the alignment on all
    and on tied items (None where none is tied), and the mean margin, hazardous minus harmless answer."""

    items: int
    tied_items: int
    all: Estimate
    tied: Estimate | None
    margin: Estimate


@dataclass(frozen=True, slots=True)
class Point:
    """One prefix of the ranking: its share of all target weights, and the alignment and mean margin under that mask.

    dropped: weights; fewer than the share says where fewer help. control: alignment under as many weights drawn at
    random from the same candidates; None where it was not read.
    """

    dropped: int
    share: float
    alignment: Estimate
    margin: float
    control: Estimate | None


@dataclass(frozen=True, slots=True)
class Accessibility:
    """Alignment against dropped weights, on nested prefixes of one discovery's ranking; docs/audit.md has the formulas.

    base: nothing dropped. area: mean alignment over ln(share) between the first and the last point; control_area: the
    same of the random masks; above_control: their difference (None where no control was read). smallest: least share
    that takes the alignment past `threshold`, 0 where the model is past it already, None where no point is;
    smallest_low, smallest_high: ends of its interval, None where it is not reached there; reached: share of resamples
    in which it is. loss: rise of the negative log-likelihood of generic text at the first point past the threshold (the
    larger of plain and chat), None if there is none.
    """

    base: Estimate
    points: tuple[Point, ...]
    threshold: float
    area: Estimate
    control_area: Estimate | None
    above_control: Difference | None
    smallest: float | None
    smallest_low: float | None
    smallest_high: float | None
    reached: float
    loss: float | None


@dataclass(frozen=True, slots=True)
class Place:
    """Part of the hazardous pole's mask in one block and kind ('attention', 'mlp', 'other').

    dropped: weights; share: of all weights that the mask drops; density: of the place's own weights.
    """

    block: int
    kind: str
    dropped: int
    share: float
    density: float


@dataclass(frozen=True, slots=True)
class Restored:
    """The hazardous pole's mask with some blocks put back: margin with all of the mask minus margin without its part in
    these blocks, over `items` items; positive where the blocks hold the persona."""

    blocks: tuple[int, ...]
    items: int
    effect: Difference


@dataclass(frozen=True, slots=True)
class Kept:
    """A harmless contrast under the disabling mask, on its test items. before, after: alignment with its positive
    pole; change, margin_change: after minus before; touched: the interval of the change excludes 0."""

    contrast: str
    pole: str
    items: int
    before: Estimate
    after: Estimate
    change: Difference
    margin_change: Difference
    touched: bool


@dataclass(frozen=True, slots=True)
class Loss:
    """Rise of the negative log-likelihood on text that no choice has read: plain text, chat answers, each with its
    normal 95 % interval over texts; worst: the larger of the two rises; within: worst is within the budget."""

    plain: Estimate
    chat: Estimate
    worst: float
    within: bool


@dataclass(frozen=True, slots=True)
class Disabling:
    """The mask of the harmless pole that is worn to disable. persona: its name in the artefact.

    target: the alignment aimed at on dev; dev: what was reached there; reached: dev is within the target. rounds: of
    the discovery it comes from. searched_loss_bound: upper confidence bound of the loss on the text that the search
    read; it was kept within `budget`. probes: capability evaluations of the search. own: alignment on some of the pairs
    that the mask was found on (None: it was given); far below that of held-out items it says that the ranking carries
    over only in part, which more, or more varied, pairs may change.
    """

    persona: str
    dropped: int
    share: float
    rounds: int
    target: float
    dev: Alignment
    reached: bool
    budget: float
    searched_loss_bound: float
    probes: int
    loss: Loss
    kept: tuple[Kept, ...]
    own: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack on base and disabled model, on the same held-out items. kind: 'prompt' or 'weights'.

    base, disabled: alignment under attack (disabled None: there is no disabling mask). moved, margin_moved: base under
    attack minus base, alignment and mean margin. counts: the interval of `moved` lies above 0; where the base model is
    past the threshold already, so that there is little room, that of `margin_moved`. Else the attack does not move the
    base model.
    """

    name: str
    kind: str
    base: Estimate
    disabled: Estimate | None
    moved: Difference
    margin_moved: Difference
    counts: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class FoundAgain:
    """A fresh discovery of the hazardous pole on the disabled model. ratio: smallest share there over that on base
    (None unless both are reached above 0). area: that on base minus that on the disabled model, paired over items.
    harder: it is not reached any more, or the interval of `area` lies above 0."""

    accessibility: Accessibility
    ratio: float | None
    area: Difference
    harder: bool


@dataclass(frozen=True, slots=True)
class Hazard:
    """One hazardous contrast. part: the items of the figures ('test', unless it says otherwise).

    exposure: the alignment that the exit code is decided by, see docs/audit.md: with a disabling mask the largest of
    held-out items and counted prompt attacks on the disabled model, else the largest that base, curve and counted
    attacks reach. exposure_to_weights: the same with the fresh discovery. verdict: one of `VERDICTS`
    (`audit_verdict`); sentence: the same in words. warnings: what should make a reader doubt the items.
    """

    contrast: str
    pole: str
    opposite: str
    sha256: str
    calibration_items: int
    dev_items: int
    base: Alignment
    accessibility: Accessibility
    places: tuple[Place, ...]
    restored: tuple[Restored, ...]
    disabling: Disabling | None
    disabled: Alignment | None
    lowered: Difference | None
    attacks: tuple[Attack, ...]
    found_again: FoundAgain | None
    exposure: float
    exposure_to_weights: float
    verdict: str
    sentence: str
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Together:
    """All disabling masks worn at once (every weight dropped that one of them drops), as the safe checkpoint has it.

    contrasts: whose masks; alignments: by contrast, on its held-out items, of every hazard of the audit.
    """

    contrasts: tuple[str, ...]
    dropped: int
    share: float
    alignments: Mapping[str, Alignment]
    loss: Loss
    kept: tuple[Kept, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """All hazards, in the order asked for. together: where several are disabled. worst: the largest exposure, that of
    `together` included where a checkpoint was asked for. limits: what the audit does not say."""

    model: str
    fingerprint: str
    hazards: tuple[Hazard, ...]
    worst: float
    worst_to_weights: float
    together: Together | None = None
    seconds: float = 0.0
    limits: str = LIMITS

    def __getitem__(self, contrast: str) -> Hazard:
        """The hazard of a contrast, or of a hazardous pole, by name. Errors: `KeyError` with the names there are."""
        for hazard in self.hazards:
            if contrast in (hazard.contrast, hazard.pole):
                return hazard
        raise KeyError(f"no hazard {contrast!r}; there are: {', '.join(h.contrast for h in self.hazards)}")

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON-able values."""
        return asdict(self)

    def frame(self) -> pandas.DataFrame:
        """One row a hazard: verdict, alignments with their intervals, area, smallest share, loss, exposure.

        Errors: `OptionError` without pandas.
        """
        return data_frame(list(self._rows()))

    def curves(self) -> pandas.DataFrame:
        """One row a hazard, model ('base', 'disabled') and point of the curve. Errors: `OptionError` without pandas."""
        rows: list[dict[str, Any]] = []
        for hazard in self.hazards:
            curves = {"base": hazard.accessibility}
            if hazard.found_again is not None:
                curves["disabled"] = hazard.found_again.accessibility
            for model, curve in curves.items():
                for point in curve.points:
                    figures = flat({"alignment": point.alignment, "control": point.control})
                    named = {"contrast": hazard.contrast, "model": model, "share": point.share}
                    rows.append({**named, "dropped": point.dropped, **figures, "margin": point.margin})
        return data_frame(rows)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for hazard in self.hazards:
            curve, mask = hazard.accessibility, hazard.disabling
            yield {
                "contrast": hazard.contrast, "pole": hazard.pole, "verdict": hazard.verdict,
                **flat({"base": hazard.base.all, "area": curve.area, "control_area": curve.control_area}),
                "smallest": curve.smallest,
                **flat({"disabled": None if hazard.disabled is None else hazard.disabled.all}),
                "disabling_share": None if mask is None else mask.share,
                "loss": None if mask is None else mask.loss.worst,
                "exposure": hazard.exposure, "exposure_to_weights": hazard.exposure_to_weights,
            }  # fmt: skip
