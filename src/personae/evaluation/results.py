"""The result of an evaluation: all rows, and everything that is needed to make them again."""

from __future__ import annotations

from dataclasses import dataclass

from personae.evaluation.conditions import Row
from personae.evaluation.scoring import Baselines


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """The model that was measured. weights: number of target weights. device, dtype: of the measurement."""

    id: str
    revision: str | None
    fingerprint: str
    architecture: str
    dtype: str
    device: str
    weights: int


@dataclass(frozen=True, slots=True)
class DataRecord:
    """The items. sha256: of the whole contrast; test_sha256: of the items scored. split_seed None: all of them;
    then calibration_sha256 and dev_sha256 are those of the caller's own items, if there were any.

    rendered_prompt: the first question as the model reads it. ids, tokens, bytes, tied: by item; tokens and bytes
    of (positive, negative) answer.
    """

    contrast: str
    positive: str
    negative: str
    source: str
    licence: str
    sha256: str
    test_sha256: str
    split_seed: int | None
    items: int
    tied_items: int
    rendered_prompt: str
    ids: tuple[str, ...]
    tokens: tuple[tuple[int, int], ...]
    bytes: tuple[tuple[int, int], ...]
    tied: tuple[bool, ...]
    calibration_sha256: str | None = None
    dev_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class TextRecord:
    """The text of the capability loss, and how likely the bare model finds it, nats a token."""

    name: str
    sha256: str
    plain_windows: int
    chat_answers: int
    base_plain: float
    base_chat: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One table: rows in the order of reading (base, prompt, methods, controls) and what they rest on.

    resamples, seed: of the bootstrap. notes: what a reader should know, such as test items that calibrated.
    warnings: what in the test items should make a reader doubt the figures (`scoring.doubts`).
    """

    model: ModelRecord
    data: DataRecord
    text: TextRecord
    baselines: Baselines
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    resamples: int
    seed: int
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()  # older files have none

    def __getitem__(self, name: str) -> Row:
        """The row of a condition by its name; `KeyError` with the names there are."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no condition {name!r}; there are: {', '.join(r.name for r in self.rows)}")

    def of_kind(self, kind: str) -> tuple[Row, ...]:
        """The rows of a kind: 'base', 'prompt', 'method' or 'control'."""
        return tuple(row for row in self.rows if row.kind == kind)
