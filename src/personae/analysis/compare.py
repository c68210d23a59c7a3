"""Compare personas: what their masks drop in common, against chance, for every pair; which are nearest to each other.

1. Gather the personas of all artefacts; those of different models are refused.
2. For every pair, count what both drop in every target (`overlap`), and add up blocks, kinds and the whole.
3. Matrices over all personas, and average linkage on the Jaccard distance (`dendrogram`).

Artefacts alone are read; no model is needed. How far masks depend on the items they were found from (`stability`) and
how alike the model's states are under them (`hidden_states`) need a model and stand beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from personae.analysis.compare_members import Member, Source, gathered
from personae.analysis.dendrogram import Tree, linked
from personae.analysis.frames import data_frame
from personae.analysis.hidden_states import HiddenStates
from personae.analysis.overlap import Drops, Overlap, by_part, tally
from personae.analysis.stability import Stability
from personae.discovery import Progress, silent
from personae.errors import OptionError

if TYPE_CHECKING:
    import pandas

DRAWS = 200  # of the masks by chance: the ends of the interval are then the fifth from either side

FIGURES = ("difference", "jaccard", "cosine")

Matrix = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True)
class ComparedPersona:
    """One persona, by its label. calibration: SHA-256 of the items it was found from. weights: of all targets."""

    label: str
    persona: str
    source: str
    method: str
    calibration: str | None
    weights: int
    dropped: int

    @property
    def sparsity(self) -> float:
        """Share of all target weights that it drops."""
        return self.dropped / self.weights


@dataclass(frozen=True, slots=True)
class Pair:
    """Two personas by their labels. parts: all, kinds, blocks, targets, in this order."""

    first: str
    second: str
    parts: tuple[Overlap, ...]

    def __getitem__(self, part: str) -> Overlap:
        """Of 'all', 'attention', 'mlp', 'block 3' or a target's name. Errors: `KeyError`."""
        for overlap in self.parts:
            if overlap.part == part:
                return overlap
        raise KeyError(f"no part {part!r}; there are {', '.join(self.of_level('kind'))}, blocks and targets.")

    def of_level(self, level: str) -> dict[str, Overlap]:
        """The parts of a level: 'all', 'kind', 'block' or 'target'."""
        return {overlap.part: overlap for overlap in self.parts if overlap.level == level}


@dataclass(frozen=True, slots=True)
class Compared:
    """All personas against each other. matrices: 'difference', 'jaccard' and 'cosine' over all weights, and the same
    with '_by_chance' (nothing on their diagonal), in the order of `personas`. tree: of the distance 1 − jaccard.
    draws, seed: of the masks by chance. stability, hidden_states: what was asked for beside.
    """

    model: str
    fingerprint: str
    personas: tuple[ComparedPersona, ...]
    pairs: tuple[Pair, ...]
    matrices: Mapping[str, Matrix]
    tree: Tree
    draws: int
    seed: int
    stability: tuple[Stability, ...] = ()
    hidden_states: HiddenStates | None = None

    def pair(self, first: str, second: str) -> Pair:
        """The pair of two labels, in either order. Errors: `KeyError`."""
        for pair in self.pairs:
            if {pair.first, pair.second} == {first, second}:
                return pair
        raise KeyError(f"no pair of {first!r} and {second!r}; there are {', '.join(p.label for p in self.personas)}.")

    def frame(self) -> pandas.DataFrame:
        """One row a pair and part: counts, z, and value, chance, low and high of every figure ('jaccard_low', …).

        Errors: `OptionError` without pandas.
        """
        return data_frame(list(self._rows()))

    def _rows(self) -> Iterator[dict[str, Any]]:
        for pair in self.pairs:
            for overlap in pair.parts:
                row: dict[str, Any] = {"persona": pair.first, "other": pair.second}
                for name, value in asdict(overlap).items():
                    if isinstance(value, dict):
                        row |= {name if key == "value" else f"{name}_{key}": each for key, each in value.items()}
                    else:
                        row[name] = value
                yield row


def compare(*artefacts: Source, draws: int = DRAWS, seed: int = 0, progress: Progress = silent) -> Compared:
    """Compare all personas of artefacts, or of their files, of one model.

    draws: masks by chance behind every interval; 0 leaves the intervals out. seed: of the draws.
    Errors: `MaskMismatchError` for artefacts of different models, or found on different targets; `OptionError` for
    fewer than two personas or without scipy; `ArtefactError` for a file that cannot be read.
    """
    if draws < 0:
        raise OptionError(f"--draws is {draws}: it must be 0 or more.")
    members = gathered(artefacts)
    if len(members) < 2:
        raise OptionError(f"there is one persona, '{members[0].label}': give two or more to compare.")
    identity = members[0].artefact.model
    drops = [Drops.of(member.persona.masks, identity.targets) for member in members]
    pairs = []
    with progress("overlap of pairs", len(members) * (len(members) - 1) // 2) as tick:
        for i, j in combinations(range(len(members)), 2):
            parts = by_part(tally(drops[i], drops[j], draws=draws, seed=(seed, i, j)))
            pairs.append(Pair(members[i].label, members[j].label, tuple(parts)))
            tick(1)
    labels = [member.label for member in members]
    of_itself = {"difference": 0.0, "jaccard": 1.0, "cosine": 1.0}
    matrices: dict[str, Matrix] = {}
    for figure in FIGURES:
        matrices[figure] = _matrix(labels, pairs, figure, "value", of_itself[figure])
        matrices[f"{figure}_by_chance"] = _matrix(labels, pairs, figure, "chance", None)
    apart = [[1 - (value or 0.0) for value in row] for row in matrices["jaccard"]]
    return Compared(
        identity.id, identity.fingerprint, tuple(_described(member) for member in members), tuple(pairs), matrices,
        linked(labels, apart), draws, seed,
    )  # fmt: skip


def _described(member: Member) -> ComparedPersona:
    persona, record = member.persona, member.persona.provenance
    sha256 = None if record.calibration is None else record.calibration.sha256
    weights = sum(rows * columns for rows, columns in member.artefact.model.targets.values())
    return ComparedPersona(
        member.label, persona.name, member.source, record.method, sha256, weights, persona.dropped
    )  # fmt: skip


def _matrix(labels: Sequence[str], pairs: Sequence[Pair], figure: str, field: str, diagonal: float | None) -> Matrix:
    found: dict[tuple[str, str], float] = {}
    for pair in pairs:
        value = float(getattr(getattr(pair["all"], figure), field))
        found |= {(pair.first, pair.second): value, (pair.second, pair.first): value}
    return tuple(tuple(found.get((a, b), diagonal) for b in labels) for a in labels)
