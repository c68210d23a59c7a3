"""Keys and values of a batch whose rows come and go while it is decoded.

All rows end at the same slot and are padded on the left, so each step writes one slot for all of them:

    slot     0  1  2  3  4  5
    row 0    ·  ·  ·  a  b  c      lengths[0] = 3
    row 1    p  q  r  s  t  u      lengths[1] = 6

The layers are transformers' full-attention cache layers, over buffers with spare room: a row joins or leaves without
copying the others, and a step copies nothing at all. Models with sliding windows get their windows from the
attention mask, which counts slots back from the query, so layers that keep every slot are right for them too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from personae.errors import ModelError, PersonaeError
from personae.models import context_length

__all__ = ["Kept", "Rows", "check_rows", "first", "forward", "row_context"]

# Keys and values of one row, of each layer: two tensors of shape (heads, tokens, width of a head).
Kept = tuple[tuple[torch.Tensor, torch.Tensor], ...]

_ROOM = 64  # spare slots of a buffer, at least


def first(kept: Kept, tokens: int) -> Kept:
    """The first `tokens` of them, as views."""
    return tuple((keys[:, :tokens], values[:, :tokens]) for keys, values in kept)


class RowsLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer of `Rows`: `keys` and `values` are slots [start, end) of the first `rows` rows of two buffers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = self.start = self.end = 0
        self._buffers: list[torch.Tensor] = []  # keys, values: (rows or more, heads, slots, width of a head)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new slots, (rows, heads, new, width), behind the last one; all slots so far."""
        if not self._buffers:
            self.allocate(key_states, value_states, key_states.shape[0], 0, key_states.shape[2])
        new = key_states.shape[2]
        self._reserve(self.rows, 0, new)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self.rows, :, self.end : self.end + new] = states
        self.end += new
        return self._show()

    def allocate(self, keys: torch.Tensor, values: torch.Tensor, rows: int, slots: int, spare: int) -> None:
        """Buffers of zeros for `slots` slots, of the heads, width, dtype and device of `keys` and `values`."""
        self.rows, self.start, self.end = rows, 0, slots
        self._buffers = [
            like.new_zeros(rows, like.shape[-3], slots + spare + _ROOM, like.shape[-1]) for like in (keys, values)
        ]
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._show()

    def put(self, row: int, tokens: Sequence[torch.Tensor]) -> None:
        """Keys and values of one row, (heads, tokens, width), at its end."""
        for buffer, states in zip(self._buffers, tokens, strict=True):
            buffer[row, :, self.end - states.shape[1] : self.end] = states

    def join(self, other: RowsLayer) -> None:
        """Append the rows of `other`."""
        joined, wider = self.rows + other.rows, max(0, (other.end - other.start) - (self.end - self.start))
        self._reserve(joined, wider, 0)
        start = self.start - wider
        for buffer, states in zip(self._buffers, (other.keys, other.values), strict=True):
            assert states is not None
            # Padding is masked, but 0 · NaN would not be 0, and what lies there may be of a row that left.
            buffer[: self.rows, :, start : self.start] = 0
            buffer[self.rows : joined, :, start : self.end] = 0
            buffer[self.rows : joined, :, self.end - states.shape[2] : self.end] = states
        self.rows, self.start = joined, start
        self._show()

    def keep(self, order: Sequence[int], width: int) -> None:
        """Row i becomes what row order[i] ≥ i was, and only the last `width` slots stay."""
        self.rows, self.start = len(order), self.end - width
        for buffer in self._buffers:
            for row, before in enumerate(order):
                if row != before:
                    buffer[row, :, self.start : self.end] = buffer[before, :, self.start : self.end]
        self._show()

    def copied(self, row: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The last `tokens` slots of one row, (heads, tokens, width), as tensors of their own."""
        keys, values = (buffer[row, :, self.end - tokens : self.end].clone() for buffer in self._buffers)
        return keys, values

    def _reserve(self, rows: int, left: int, right: int) -> None:
        """Make the buffers hold `rows` rows with `left` slots before and `right` slots behind those in use."""
        capacity, slots = self._buffers[0].shape[0], self._buffers[0].shape[2]
        if rows <= capacity and left <= self.start and self.end + right <= slots:
            return
        used = self.end - self.start
        needed = left + used + right
        capacity = max(rows, min(capacity, 2 * rows))  # spare rows do not outlive the rush they were made for
        for number, buffer in enumerate(self._buffers):
            larger = buffer.new_empty(capacity, buffer.shape[1], needed + max(_ROOM, needed // 4), buffer.shape[3])
            larger[: self.rows, :, left : left + used] = buffer[: self.rows, :, self.start : self.end]
            self._buffers[number] = larger
        self.start, self.end = left, left + used

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (buffer[: self.rows, :, self.start : self.end] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values


class Rows(DynamicCache):
    """The cache of a batch: `lengths[i]` tokens of row i lie in its last slots.

    An error inside a forward leaves some layers longer than others: throw the rows away then.
    """

    layers: list[RowsLayer]  # type: ignore[assignment]

    def __init__(self, rows: int = 0) -> None:
        super().__init__()
        self.layer_class_to_replicate = RowsLayer
        self.lengths = [0] * rows

    @classmethod
    def of(cls, kept: Sequence[Kept | None]) -> Rows:
        """One row for each, beginning with the tokens that are kept of it (None: with none)."""
        rows = cls(len(kept))
        rows.lengths = [each[0][0].shape[1] if each else 0 for each in kept]
        example = next((each for each in kept if each), ())
        for number, (keys, values) in enumerate(example):
            layer = RowsLayer()
            layer.allocate(keys, values, len(kept), max(rows.lengths), 0)
            for row, each in enumerate(kept):
                if each:
                    layer.put(row, each[number])
            rows.layers.append(layer)
        return rows

    @property
    def width(self) -> int:
        """Slots of the longest row."""
        return max(self.lengths, default=0)

    def join(self, other: Rows) -> None:
        """Append the rows of `other`, which is used up."""
        if not self.lengths:
            self.layers, self.lengths = other.layers, other.lengths
            return
        for layer, more in zip(self.layers, other.layers, strict=True):
            layer.join(more)
        self.lengths = self.lengths + other.lengths

    def leave(self, gone: Collection[int]) -> list[int]:
        """Drop rows, and the padding that only they made necessary; for each row left, which it was before.

        The last rows move into the gaps, so the others are not copied.
        """
        left = len(self.lengths) - len(gone)
        order = list(range(left))
        last = [row for row in range(left, len(self.lengths)) if row not in gone]
        for gap in sorted(row for row in gone if row < left):
            order[gap] = last.pop()
        self.lengths = [self.lengths[row] for row in order]
        if not order:
            self.layers = []
        for layer in self.layers:
            layer.keep(order, self.width)
        return order

    def copied(self, row: int) -> Kept:
        """Keys and values of one row, as tensors of their own."""
        return tuple(layer.copied(row, self.lengths[row]) for layer in self.layers)


@torch.no_grad()
def forward(model: PreTrainedModel, rows: Rows, ids: torch.Tensor, counts: Sequence[int] | None = None) -> torch.Tensor:
    """One forward of the whole model over the next tokens of each row; logits behind the last one, (rows, vocabulary).

    ids: (rows, new). counts: how many of them are tokens of the row, the others, on the left, being padding; only a
    row without tokens so far may have padding. None: all are. The logits are float32, as `generate` has them.
    """
    new = ids.shape[1]
    counts = [new] * len(rows.lengths) if counts is None else list(counts)
    if any(count < new and length for count, length in zip(counts, rows.lengths, strict=True)):
        raise ValueError("padding behind tokens: a row that has begun must go on with every column.")
    slots = (rows.layers[0].end - rows.layers[0].start if rows.layers else 0) + new
    lengths = torch.tensor([length + count for length, count in zip(rows.lengths, counts, strict=True)])
    mask = torch.arange(slots) >= slots - lengths[:, None]  # (rows, slots)
    positions = (torch.arange(-new, 0) + lengths[:, None]).clamp(min=0)  # (rows, new)
    arguments = {
        "input_ids": ids.to(model.device),
        "attention_mask": mask.to(model.device, torch.int64),
        "position_ids": positions.to(model.device),
        "past_key_values": rows,
        "use_cache": True,
        "logits_to_keep": 1,
    }
    accepted = inspect.signature(model.forward).parameters  # some models count positions from the mask themselves
    logits: torch.Tensor = model(**{name: value for name, value in arguments.items() if name in accepted}).logits
    rows.lengths = lengths.tolist()
    return logits[:, -1].float()


def row_context(model: PreTrainedModel) -> int | None:
    """The longest row, in tokens; None where the model sets no limit.

    It is the model's context, or shorter where rotary frequencies are chosen for the longest row of a batch
    ('dynamic', 'longrope'): beyond the length for which they change, a row would depend on the rows beside it.
    """
    config = model.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    limits = [context_length(model)]
    for each in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        if "dynamic" in str(each.get("rope_type")) or each.get("rope_type") == "longrope":
            limits.append(each.get("original_max_position_embeddings"))
    return min((limit for limit in limits if limit), default=None)


def check_rows(model: PreTrainedModel, wearing: Callable[[int], AbstractContextManager[object]]) -> None:
    """Raise `ModelError` unless a row of a padded batch gets the logits that it would get alone.

    The model's own cache must be of attention layers only; then two short rows are tried together. wearing(rows):
    the block in which a forward of so many rows of the base model may run.
    """
    name = type(model).__name__
    refused = f"{name} cannot be served in batches whose rows come and go"
    try:
        layers = DynamicCache(config=model.config).layers
    except Exception as error:  # a configuration that transformers has no cache for
        raise ModelError(f"{refused}: it keeps no cache of keys and values ({error}).") from error
    kinds = sorted(
        {type(layer).__name__ for layer in layers} - {DynamicLayer.__name__, DynamicSlidingWindowLayer.__name__}
    )
    if kinds or model.config.is_encoder_decoder or getattr(model, "_is_stateful", False):
        state = ", ".join(kinds) or "another state than keys and values"
        raise ModelError(f"{refused}: it keeps {state}, not only keys and values. Use PersonaModel.chat() for it.")
    vocabulary = model.config.get_text_config().vocab_size
    long = [token % vocabulary for token in (3, 14, 15, 92, 65, 35, 89, 79, 32)]
    short = long[4:]
    try:
        with wearing(1), torch.no_grad():
            alone = [model(input_ids=torch.tensor([row], device=model.device)).logits[0, -1] for row in (long, short)]
            rows, other = Rows(1), Rows(1)
            forward(model, rows, torch.tensor([long[:-1]]))
            forward(model, other, torch.tensor([short[:-1]]))
        rows.join(other)
        with wearing(2):
            together = forward(model, rows, torch.tensor([long[-1:], short[-1:]]))
    except PersonaeError:  # the block could not be entered, which is not the model's fault
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise ModelError(f"{refused}: a trial of two short rows failed ({error}).") from error
    expected = torch.stack(alone).float()
    # A wrong position or a wrong mask moves logits by about their own spread, rounding by far less.
    allowed = (1e-2 if model.dtype in (torch.float32, torch.float64) else 0.25) * float(expected.std())
    if not float((together - expected).abs().max()) <= allowed:
        raise ModelError(f"{refused}: in a padded batch its rows get other logits than alone. Use PersonaModel.chat().")
