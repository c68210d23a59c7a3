"""What a causal map found: what each part of a persona's mask is needed for, and what it does alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from personae.analysis.frames import data_frame, flat
from personae.evaluation import Difference, Estimate

if TYPE_CHECKING:
    import pandas

__all__ = ["FIGURES", "LEVELS", "CausalMap", "Cell"]

LEVELS = ("block", "kind", "target", "cell")
FIGURES = (
    "necessity", "sufficiency", "necessity_alignment", "sufficiency_alignment", "necessity_share", "sufficiency_share",
    "over_random", "random",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """One part of the mask.

    level: 'block', 'kind', 'target' (one projection in every block) or 'cell' (block × kind). part: its name; block,
    kind, target: what it is, None where it spans several. targets, weights: how many matrices and weights it has.
    dropped: how many of these the mask drops. restored_…: under the whole mask with this part's weights back; alone_…:
    under this part's mask alone. margin: mean length-normalised margin of the persona's answer over its rival's, nats
    a token; alignment: share of items on which the persona's answer scores higher.

    necessity = margin worn − margin restored (what is lost without the part); sufficiency = margin alone − margin
    base (what the part brings); …_alignment: the same of alignment; …_share: the same as a share of what the whole
    mask gains, None where that gain is not clear of zero. random: margin over base under as many weights drawn at
    random in each matrix, alone, mean over seeds; over_random: sufficiency minus that; both None without seeds.
    …_p_holm: two-sided p of the margin figures after Holm over the cells of one level.
    """

    level: str
    part: str
    block: int | None
    kind: str | None
    target: str | None
    targets: int
    weights: int
    dropped: int
    restored_margin: Estimate
    restored_alignment: Estimate
    alone_margin: Estimate
    alone_alignment: Estimate
    necessity: Difference
    sufficiency: Difference
    necessity_alignment: Difference
    sufficiency_alignment: Difference
    necessity_share: Estimate | None
    sufficiency_share: Estimate | None
    random: Difference | None
    over_random: Difference | None
    necessity_p_holm: float
    sufficiency_p_holm: float


@dataclass(frozen=True, slots=True)
class CausalMap:
    """One persona's mask, part by part, on items of its contrast.

    persona, rival: the pole that is worn, and the other. items, tied_items: how many were read. base_…, worn_…: the
    bare model and the whole mask. gain: margin worn − margin base, nats a token; gain_alignment: of alignment.
    dropped, weights: of the whole mask and of all targets. cells: in the order of levels, then of the model. readings:
    how often the items were read (a reading is one pass over all of them). random_seeds: of the control; 0: none.
    """

    persona: str
    rival: str
    contrast: str
    items: int
    tied_items: int
    base_margin: Estimate
    base_alignment: Estimate
    worn_margin: Estimate
    worn_alignment: Estimate
    gain: Difference
    gain_alignment: Difference
    dropped: int
    weights: int
    cells: tuple[Cell, ...]
    readings: int
    random_seeds: int
    resamples: int
    seed: int
    notes: tuple[str, ...] = ()

    def __getitem__(self, part: str) -> Cell:
        """Of 'block 3', 'mlp', 'q_proj', 'block 3 mlp', …. Errors: `KeyError`."""
        for cell in self.cells:
            if cell.part == part:
                return cell
        raise KeyError(f"no part {part!r}; there are {', '.join(c.part for c in self.cells)}.")

    def of_level(self, level: str) -> tuple[Cell, ...]:
        """The cells of 'block', 'kind', 'target' or 'cell', in the order of the model."""
        return tuple(cell for cell in self.cells if cell.level == level)

    def matrix(self, figure: str = "necessity") -> tuple[tuple[int, ...], tuple[str, ...], list[list[float | None]]]:
        """(blocks, kinds, values): the heat map of level 'cell', a row a block; None where there is no such cell.

        figure: one of `FIGURES`. Errors: `KeyError` for another.
        """
        if figure not in FIGURES:
            raise KeyError(f"no figure {figure!r}; there are {', '.join(FIGURES)}.")
        found: dict[tuple[int | None, str | None], Any] = {
            (cell.block, cell.kind): getattr(cell, figure) for cell in self.of_level("cell")
        }
        blocks = sorted({block for block, _ in found if block is not None})
        kinds = sorted({kind for _, kind in found if kind is not None})
        values = [
            [None if (each := found.get((block, kind))) is None else float(each.value) for kind in kinds]
            for block in blocks
        ]
        return tuple(blocks), tuple(kinds), values

    def to_dict(self) -> Mapping[str, Any]:
        """Everything, for JSON."""
        return asdict(self)

    def frame(self) -> pandas.DataFrame:
        """One row a cell: every figure with its interval ('necessity', 'necessity_low', …, 'necessity_p').

        Errors: `OptionError` without pandas.
        """
        return data_frame([{"persona": self.persona, **flat(cell)} for cell in self.cells])
