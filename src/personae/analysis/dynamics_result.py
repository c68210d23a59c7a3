"""What dynamics found: one stage a checkpoint, and what the masks of different checkpoints have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from personae.analysis.frames import data_frame, flat
from personae.analysis.overlap import Overlap
from personae.evaluation import Difference, Estimate

if TYPE_CHECKING:
    import pandas

__all__ = ["Chance", "Dynamics", "MaskOverlap", "Onset", "Stage"]


@dataclass(frozen=True, slots=True)
class Chance:
    """A control of one stage: masks with as many weights that know nothing of the persona.

    name: 'random' (drawn among the same candidates) or 'shuffled' (found from pairs half of whose labels were
    exchanged). seeds: of its masks. acc, acc_opposite, separation: means over seeds, intervals over items.
    separations: one a seed.
    """

    name: str
    seeds: tuple[int, ...]
    acc: Estimate
    acc_opposite: Estimate
    separation: Estimate
    separations: tuple[float, ...]

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Chance:
        """From what `asdict` and JSON made of it. Errors: `KeyError`, `TypeError` for anything else."""
        acc, opposite, separation = (Estimate(**said[n]) for n in ("acc", "acc_opposite", "separation"))
        return cls(said["name"], tuple(said["seeds"]), acc, opposite, separation, tuple(said["separations"]))


@dataclass(frozen=True, slots=True)
class Stage:
    """One checkpoint: base model, both poles' masks found on it, and controls, on the test items.

    label, step: name within the series, and the number of training steps where the folder or revision names one.
    source, revision, fingerprint: the checkpoint. items, tied_items: how many were scored, and how many of them are
    tied in polarity. base_…: the bare checkpoint. acc: share of items won by p⁺'s answer under p⁺'s mask,
    acc_opposite: under p⁻'s; separation = acc − acc_opposite, paired by item; …_tied: on tied items, None without
    any. margin, margin_opposite: mean length-normalised margin under p⁺'s and p⁻'s mask, nats a token. controls: see
    `Chance`. over_control: separation minus that of the best control (chosen again in every resample; the bare model,
    whose separation is 0, is one). p_holm: its p after Holm over the stages. capability_loss: the largest rise of NLL
    over both masks and both texts, nats a token, with its standard error; capability_text: which text.
    base_plain, base_chat: NLL of the bare checkpoint on it, nats a token. weights: of all targets. dropped: by p⁺'s
    and p⁻'s mask. sparsity: the mean of both shares. chosen: what discovery chose for each pole (cheap_share, round).
    masks: name of the kept `.persona` file, None where none was kept. seconds: of discovery.
    """

    label: str
    step: int | None
    source: str
    revision: str | None
    fingerprint: str
    items: int
    tied_items: int
    base_acc: Estimate
    base_acc_tied: Estimate | None
    base_margin: Estimate
    acc: Estimate
    acc_opposite: Estimate
    separation: Estimate
    acc_tied: Estimate | None
    acc_tied_opposite: Estimate | None
    separation_tied: Estimate | None
    margin: Estimate
    margin_opposite: Estimate
    controls: tuple[Chance, ...]
    best_control: str
    over_control: Difference
    p_holm: float
    capability_loss: float
    capability_loss_error: float
    capability_text: str
    base_plain: float
    base_chat: float
    weights: int
    dropped: tuple[int, int]
    sparsity: float
    chosen: tuple[Mapping[str, Any], ...]
    seconds: float
    masks: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Stage:
        """From what `asdict` and JSON made of it. Errors: `KeyError`, `TypeError` for anything else."""
        values = {f.name: said[f.name] for f in fields(cls)}
        for name, value in values.items():
            if isinstance(value, Mapping) and set(value) == {"value", "low", "high"}:
                values[name] = Estimate(**value)
        values["over_control"] = Difference(**values["over_control"])
        values["controls"] = tuple(Chance.from_dict(each) for each in values["controls"])
        for name in ("dropped", "chosen", "notes"):
            values[name] = tuple(values[name])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class MaskOverlap:
    """What one pole's masks of two checkpoints have in common, against chance.

    first, second: labels, the earlier first. against: 'previous' (two successive checkpoints) or 'last'. pole: its
    name. parts: all weights, then each kind. among_candidates: Jaccard index of as many weights drawn at random among
    either checkpoint's own candidates (all weights where the method has none), one draw: successive checkpoints share
    candidates, and what follows from that alone tells nothing of the persona.
    """

    first: str
    second: str
    against: str
    pole: str
    parts: tuple[Overlap, ...]
    among_candidates: float

    def __getitem__(self, part: str) -> Overlap:
        """Of 'all', 'attention' or 'mlp'. Errors: `KeyError`."""
        for overlap in self.parts:
            if overlap.part == part:
                return overlap
        raise KeyError(f"no part {part!r}; there are {', '.join(o.part for o in self.parts)}.")


@dataclass(frozen=True, slots=True)
class Onset:
    """From which checkpoint on a figure is there: at that one and at every later one. None: not at the last.

    figure: 'alignment' (base_acc, its interval clear of 0.5), 'separation' (over_control, p_holm below 0.05 and above
    0), 'overlap' (Jaccard of successive masks above the interval by chance and above `among_candidates`, for both
    poles; the label is the later checkpoint's).
    """

    figure: str
    label: str | None
    step: int | None


@dataclass(frozen=True, slots=True)
class Dynamics:
    """A contrast over the checkpoints of one model, in the order of training.

    draws: masks by chance behind the intervals of overlap. resamples, seed: of the bootstrap.
    """

    contrast: str
    positive: str
    negative: str
    method: str
    stages: tuple[Stage, ...]
    overlaps: tuple[MaskOverlap, ...]
    onsets: tuple[Onset, ...]
    draws: int
    resamples: int
    seed: int
    notes: tuple[str, ...] = ()

    def __getitem__(self, label: str) -> Stage:
        """The stage of a checkpoint. Errors: `KeyError`."""
        for stage in self.stages:
            if stage.label == label:
                return stage
        raise KeyError(f"no checkpoint {label!r}; there are {', '.join(s.label for s in self.stages)}.")

    def overlap(self, first: str, second: str, pole: str) -> MaskOverlap:
        """Of two checkpoints, in either order, for one pole. Errors: `KeyError` for what was not compared."""
        for overlap in self.overlaps:
            if {overlap.first, overlap.second} == {first, second} and overlap.pole == pole:
                return overlap
        raise KeyError(f"the masks of {first!r} and {second!r} were not compared for {pole!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)

    def frame(self) -> pandas.DataFrame:
        """One row a checkpoint: every figure with its interval ('acc', 'acc_low', 'acc_high', …), each control's
        separation ('random_separation', …). Errors: `OptionError` without pandas."""
        return data_frame(list(self._rows()))

    def overlap_frame(self) -> pandas.DataFrame:
        """One row a couple of checkpoints, pole and part: counts, and value, chance, low and high of every figure.

        Errors: `OptionError` without pandas.
        """
        return data_frame(
            [
                {
                    "first_checkpoint": o.first,
                    "second_checkpoint": o.second,
                    "against": o.against,
                    "pole": o.pole,
                    **flat(part),
                }
                for o in self.overlaps
                for part in o.parts
            ]
        )

    def _rows(self) -> Iterator[dict[str, Any]]:
        for stage in self.stages:
            row = flat(stage)
            for control in stage.controls:
                row |= flat({f"{control.name}_separation": asdict(control.separation)})
            yield row | {
                f"dropped_{pole}": n for pole, n in zip((self.positive, self.negative), stage.dropped, strict=True)
            }
