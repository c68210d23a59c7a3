"""How alike the hidden states of one text are under different personas' masks, block by block.

h_p(l) is the mean over answers of the mean over an answer's tokens of block l's output, with p's masks on. The same
answers are read under every persona, so that nothing but the masks tells the states apart. Raw cosines cos(h_p, h_q)
are near 1 whatever the masks do: most of a mean hidden state is common to all text. Centred on the base model,

    cos(h_p − h_base, h_q − h_base),

they say whether two masks push the states the same way (1), unrelated ways (0) or opposite ways (−1); how far they push
is |h_p − h_base| / |h_base|. Intervals are of a bootstrap over the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.analysis.compare_members import Source, fit, gathered
from personae.discovery import Progress, encode_contrast, silent
from personae.errors import ModelError, OptionError
from personae.evaluation.bootstrap import Estimate, paired_bootstrap
from personae.models import Encoded, find_blocks, find_targets, head_on, sequence_batches
from personae.personas import Contrast, split
from personae.runtime import check_base, wearing

Floats = NDArray[np.float64]

ITEMS = 40  # answers a pole: the interval of a centred cosine is then a few hundredths wide
RESAMPLES = 500


@dataclass(frozen=True, slots=True)
class Push:
    """How far one persona's masks push the mean hidden state, |h_p − h_base| / |h_base| by block."""

    persona: str
    relative: tuple[Estimate, ...]


@dataclass(frozen=True, slots=True)
class Alike:
    """Cosines of two personas by block; centred: on the base model, None where one pushes nothing."""

    first: str
    second: str
    raw: tuple[Estimate, ...]
    centred: tuple[Estimate | None, ...]


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """answers: how many were read, both poles equally; sha256: of the items they are from."""

    contrast: str
    sha256: str
    answers: int
    blocks: int
    pushes: tuple[Push, ...]
    pairs: tuple[Alike, ...]
    resamples: int
    seed: int


def hidden_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    artefacts: Sequence[Source],
    contrast: Contrast,
    *,
    items: int = ITEMS,
    split_seed: int | None = 0,
    resamples: int = RESAMPLES,
    seed: int = 0,
    allow_other_weights: bool = False,
    progress: Progress = silent,
) -> HiddenStates:
    """Cosines by block of all couples of the artefacts' personas on the answers of a contrast's two poles.

    items: at most so many answers a pole, chosen by seed from the test part of the split, or, with split_seed None,
    from the whole contrast. One forward pass over them for the base model and each persona; the weights are left as
    they were, bit for bit. Errors: `OptionError` for less than two personas or answers; `MaskMismatchError` for
    personas of another model (allow_other_weights: only a warning if names and shapes are the same).
    """
    members = gathered(artefacts)
    if len(members) < 2 or items < 2:
        raise OptionError("hidden states are compared between two personas or more, on two answers a pole or more.")
    check_base(model, "comparing hidden states")
    fit(members, model, allow_other_weights=allow_other_weights)
    part = contrast if split_seed is None else split(contrast, seed=split_seed).test
    part = part.take(min(items, len(part)), seed)
    encoded = encode_contrast(model, tokenizer, part)
    texts = encoded.positive + encoded.negative
    targets = find_targets(model)
    states: dict[str, Floats] = {}
    with progress("hidden states", (len(members) + 1) * len(texts)) as tick:
        base = answer_means(model, texts, tick)
        for member in members:
            with wearing(targets, member.persona.masks):
                states[member.label] = answer_means(model, texts, tick)
    return HiddenStates(
        contrast.name, part.sha256, len(texts), base.shape[1], _pushes(base, states, resamples, seed),
        _pairs(base, states, resamples, seed), resamples, seed,
    )  # fmt: skip


@torch.no_grad()
def answer_means(
    model: PreTrainedModel, texts: Sequence[Encoded], tick: Callable[[int], None] = lambda done: None
) -> Floats:
    """Mean over each answer's tokens of every block's output, (answers, blocks, hidden) float64.

    Errors: `ModelError` where a block's states have another width than those of the first one.
    """
    blocks = find_blocks(model)
    device = next(model.parameters()).device
    weights = torch.empty(0)
    seen: dict[int, Floats] = {}

    def see(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output  # (B, T, hidden)
            seen[index] = torch.einsum("bt,bth->bh", weights, hidden.float()).double().cpu().numpy()

        return hook

    found: Floats | None = None
    handles = []
    try:
        for index, block in enumerate(blocks):
            handles.append(block.register_forward_hook(see(index)))
        for batch in sequence_batches(texts):
            here = batch.to(device)
            counted = here.counted.float()
            weights = counted / counted.sum(1, keepdim=True).clamp(min=1)
            seen.clear()
            with head_on(model, torch.zeros_like(here.counted)):
                model(input_ids=here.ids, attention_mask=here.mask, use_cache=False)
            if len(seen) < len(blocks) or len({part.shape for part in seen.values()}) > 1:
                raise ModelError("the blocks of this model do not all write states of one width: nothing to compare.")
            part = np.stack([seen[index] for index in range(len(blocks))], axis=1)
            found = np.empty((len(texts), *part.shape[1:])) if found is None else found
            found[list(batch.items)] = part
            tick(len(batch.items))
    finally:
        for handle in handles:
            handle.remove()
    assert found is not None
    return found


# --- figures, one block after the other: all resamples of all blocks would not fit into memory ----------------


def _pushes(base: Floats, states: Mapping[str, Floats], resamples: int, seed: int) -> tuple[Push, ...]:
    found: dict[str, list[Estimate]] = {label: [] for label in states}
    for block in range(base.shape[1]):
        start = _means(base[:, block], resamples, seed)
        for label, own in states.items():
            moved = _means(own[:, block], resamples, seed) - start
            found[label].append(_estimate(_norm(moved) / _norm(start)))
    return tuple(Push(label, tuple(estimates)) for label, estimates in found.items())


def _pairs(base: Floats, states: Mapping[str, Floats], resamples: int, seed: int) -> tuple[Alike, ...]:
    found: dict[tuple[str, str], list[tuple[Estimate, Estimate | None]]] = {p: [] for p in combinations(states, 2)}
    for block in range(base.shape[1]):
        start = _means(base[:, block], resamples, seed)
        worn = {label: _means(own[:, block], resamples, seed) for label, own in states.items()}
        for (first, second), estimates in found.items():
            centred = _cosine(worn[first] - start, worn[second] - start)
            estimates.append(
                (_estimate(_cosine(worn[first], worn[second])), _estimate(centred) if np.isfinite(centred[0]) else None)
            )
    return tuple(
        Alike(first, second, tuple(raw for raw, _ in estimates), tuple(centred for _, centred in estimates))
        for (first, second), estimates in found.items()
    )


def _means(answers: Floats, resamples: int, seed: int) -> Floats:
    """Means over all answers (first row) and over each resample of them: (answers, hidden) → (1 + resamples, hidden).

    The same resamples for every persona, so figures of two are paired.
    """
    return np.vstack([answers.mean(axis=0), paired_bootstrap(answers, resamples=resamples, seed=seed)])


def _norm(rows: Floats) -> Floats:
    found: Floats = np.sqrt((rows * rows).sum(axis=1))
    return found


def _cosine(first: Floats, second: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):  # nothing pushed: no direction
        found: Floats = (first * second).sum(axis=1) / (_norm(first) * _norm(second))
    return found


def _estimate(rows: Floats) -> Estimate:
    """The first row's figure, with the central 95 % of the resamples that have one."""
    low, high = np.nanquantile(rows[1:], [0.025, 0.975])
    return Estimate(float(rows[0]), float(low), float(high))
