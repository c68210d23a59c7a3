"""Log-probabilities of continuations and of text.

`score_continuations` encodes each prompt once for all its answers: what all prompts share at the
start (system prompt, template) once for the whole call, the rest of each prompt once for its answers,
through the model's own key-value cache. `score_sequences` is the plain form, one row a sequence.
Both are differentiable when gradients are on, and both run the head on answer tokens only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig

from personae.models.batches import Batch, head_on, make_batch, plan
from personae.models.encode import Encoded
from personae.models.prefix import PrefixGradients, encode_prefix, repeat

Tick = Callable[[int], None]  # told how many items are done, for progress bars

DEFAULT_BATCH_TOKENS = 2048

# Kinds of layers that obey an attention mask given whole; others ('linear_attention', 'conv', …) do not.
_MASKED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with its candidate answers, as token ids; no answer is empty."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


def score_sequences(model: nn.Module, batch: Batch) -> torch.Tensor:
    """log p of every counted token given the tokens before it, row-major, (N,) float32.

    A counted first token has nothing before it and is left out.
    """
    counted = batch.counted.clone()
    counted[:, 0] = False
    with head_on(model, torch.roll(counted, -1, dims=1)):  # the row before a token predicts it
        logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[0]
    return _pick(logits, batch.ids[counted])


def _pick(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log softmax(logits)[target], (N,) float32, from logits (N, vocabulary)."""
    return -nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def _scored(batch: Batch) -> list[int]:
    """How many values `score_sequences` returns for each row."""
    return [int(n) for n in batch.counted[:, 1:].sum(1)]


def sequence_batches(
    encoded: Sequence[Encoded], *, batch_tokens: int = DEFAULT_BATCH_TOKENS, all_tokens: bool = False
) -> list[Batch]:
    """Prompt + answer sequences as length-sorted batches; answer tokens are counted (or all tokens)."""
    sequences = [e.prompt + e.answer for e in encoded]
    starts = [0 if all_tokens else len(e.prompt) for e in encoded]
    return [make_batch(sequences, starts, group) for group in plan([len(s) for s in sequences], batch_tokens)]


@torch.no_grad()
def text_nll(
    model: nn.Module, windows: Sequence[Sequence[int]], *, batch_tokens: int = DEFAULT_BATCH_TOKENS
) -> torch.Tensor:
    """Negative log-likelihood of plain text, nats: one row (sum, tokens) a window, (windows, 2) float64."""
    encoded = [Encoded((), tuple(w)) for w in windows]
    return answer_nll(model, encoded, batch_tokens=batch_tokens)


@torch.no_grad()
def answer_nll(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    tick: Tick | None = None,
) -> torch.Tensor:
    """Negative log-likelihood of answers, nats: (sum, tokens) a row, (items, 2) float64."""
    result = torch.zeros(len(encoded), 2, dtype=torch.float64)
    for batch in sequence_batches(encoded, batch_tokens=batch_tokens):
        values = score_sequences(model, batch.to(_device(model))).cpu().double()
        for item, part in zip(batch.items, torch.split(values, _scored(batch)), strict=True):
            result[item, 0], result[item, 1] = -part.sum(), part.numel()
        if tick:
            tick(len(batch.items))
    return result


def score_continuations(
    model: nn.Module,
    questions: Sequence[Question],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    share_prompt: bool = True,
    tick: Tick | None = None,
) -> list[list[torch.Tensor]]:
    """For every question, for every answer: log p of each of its tokens, (tokens,) float32 on the CPU.

    `share_prompt=False` encodes prompt and answer anew for every answer: slower, the same numbers.
    With an empty prompt nothing predicts the first token, and its value is left out.
    """
    result: list[list[torch.Tensor]] = [[] for _ in questions]
    with torch.no_grad():
        for items, scores in continuation_batches(
            model, questions, batch_tokens=batch_tokens, share_prompt=share_prompt
        ):
            for item, answers in zip(items, scores, strict=True):
                result[item] = [a.cpu() for a in answers]
            if tick:
                tick(len(items))
    return result


def continuation_batches(
    model: nn.Module,
    questions: Sequence[Question],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    share_prompt: bool = True,
    skip: int = 0,
    skipped: Tick | None = None,
    prefix_gradients: PrefixGradients | None = None,
) -> Iterator[tuple[list[int], list[list[torch.Tensor]]]]:
    """Batch by batch: (indices of questions, for each the token log-probabilities of its answers).

    With gradients on, every batch carries its own graph, so the caller runs backward before the next. The graph
    reaches through the beginning that all prompts share; with `prefix_gradients` it ends there, and the caller
    collects after each backward pass and carries the sums on once, in the end.
    The first `skip` batches are not computed (a resumed pass has them already); `skipped` is told how
    many items each of them had.
    """
    if not questions:
        return
    if not share_prompt or not _can_share(model, questions):
        yield from _one_by_one(model, questions, batch_tokens, skip, skipped)
        return
    shared = _common_prefix([q.prompt for q in questions])
    cost = [
        (len(q.prompt) - shared) + sum(len(a) for a in q.answers) for q in questions
    ]  # what one question adds to a batch, in tokens
    prefix = questions[0].prompt[:shared]
    if prefix_gradients is not None:
        prefix_gradients.prefix = prefix
    kept: DynamicCache | None = None
    for number, items in enumerate(plan(cost, batch_tokens)):
        if number < skip:
            if skipped:
                skipped(len(items))
            continue
        # Once for all batches, unless each needs it in a graph of its own.
        if kept is None and prefix_gradients is not None:
            with torch.no_grad():
                kept = encode_prefix(model, prefix)
            kept = prefix_gradients.leaves(kept)
        elif kept is None or (torch.is_grad_enabled() and prefix_gradients is None):
            kept = encode_prefix(model, prefix)
        yield items, _score_batch(model, [questions[i] for i in items], shared, repeat(kept, len(items)))


def _score_batch(
    model: nn.Module, questions: list[Question], shared: int, cache: DynamicCache
) -> list[list[torch.Tensor]]:
    """One forward: each row holds a prompt's rest and then all its answers, side by side.

    An answer sees the prompt and itself, not its rivals: the attention mask is a tree, and every
    answer's positions begin where the prompt ends. Padding is only on the right.
    """
    device = _device(model)
    tree = _pack(questions, shared)
    # (B, 1, T, shared + T): 0 where a token may look, the most negative number where not
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(tree.allowed.shape, dtype=dtype).masked_fill(~tree.allowed, torch.finfo(dtype).min)
    with head_on(model, tree.rows):
        output = model(
            input_ids=tree.ids.to(device),
            attention_mask=mask[:, None].to(device),
            position_ids=tree.positions.to(device),
            past_key_values=cache,
            use_cache=True,
        )
    logits = output.logits[0].float()  # (N, vocabulary)
    source = tree.source.to(device)
    normaliser = torch.logsumexp(logits, dim=-1)
    values = logits[source, tree.targets.to(device)] - normaliser[source]
    scores = iter(torch.split(values, [len(a) for q in questions for a in q.answers]))
    return [[next(scores) for _ in q.answers] for q in questions]


@dataclass(frozen=True, slots=True)
class _Tree:
    ids: torch.Tensor  # (B, T) token ids, padded on the right
    positions: torch.Tensor  # (B, T)
    allowed: torch.Tensor  # (B, T, shared + T) bool: may row token i look at column token j?
    rows: torch.Tensor  # (B, T) bool: positions whose logits are needed
    source: torch.Tensor  # (answer tokens,) which of the needed positions predicts each answer token
    targets: torch.Tensor  # (answer tokens,)


def _pack(questions: list[Question], shared: int) -> _Tree:
    # The last token of an answer predicts nothing that is scored, so it is not fed.
    lengths = [len(q.prompt) - shared + sum(len(a) - 1 for a in q.answers) for q in questions]
    batch, width = len(questions), max(lengths)
    ids = torch.zeros(batch, width, dtype=torch.int64)
    positions = torch.zeros(batch, width, dtype=torch.int64)
    rows = torch.zeros(batch, width, dtype=torch.bool)
    branch = torch.full((batch, width), -1, dtype=torch.int64)  # 0 prompt, 1.. answers, -1 padding
    needed: list[tuple[int, int]] = []  # (row, column) that predicts each answer token
    targets: list[int] = []
    for row, question in enumerate(questions):
        own = question.prompt[shared:]
        ids[row, : len(own)] = torch.tensor(own)
        positions[row, : len(own)] = torch.arange(shared, len(question.prompt))
        branch[row, : len(own)] = 0
        begin = len(own)
        for number, answer in enumerate(question.answers, start=1):
            fed = len(answer) - 1
            if fed:
                ids[row, begin : begin + fed] = torch.tensor(answer[:-1])
                positions[row, begin : begin + fed] = len(question.prompt) + torch.arange(fed)
                branch[row, begin : begin + fed] = number
            needed += [(row, len(own) - 1), *((row, begin + k) for k in range(fed))]
            targets += answer
            begin += fed
    at = torch.tensor(needed)
    rows[at[:, 0], at[:, 1]] = True
    rank = rows.flatten().cumsum(0).view(batch, width) - 1  # where a position stands among the needed ones
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    own_branch = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
    inside = causal & own_branch  # padding looks at earlier padding: finite, and never read
    prefix = torch.ones(batch, width, shared, dtype=torch.bool)
    return _Tree(
        ids,
        positions,
        torch.cat([prefix, inside], dim=2),
        rows,
        rank[at[:, 0], at[:, 1]],
        torch.tensor(targets),
    )


def _one_by_one(
    model: nn.Module, questions: Sequence[Question], batch_tokens: int, skip: int, skipped: Tick | None
) -> Iterator[tuple[list[int], list[list[torch.Tensor]]]]:
    # All answers of a question stay in one batch: with gradients on, a yield is one graph.
    most = max(len(q.answers) for q in questions)
    cost = [most * (len(q.prompt) + max(len(a) for a in q.answers)) for q in questions]
    for number, items in enumerate(plan(cost, batch_tokens)):
        if number < skip:
            if skipped:
                skipped(len(items))
            continue
        chosen = [questions[i] for i in items]
        sequences = [q.prompt + a for q in chosen for a in q.answers]
        starts = [len(q.prompt) for q in chosen for _ in q.answers]
        batch = make_batch(sequences, starts, range(len(sequences))).to(_device(model))
        parts = iter(torch.split(score_sequences(model, batch), _scored(batch)))
        yield items, [[next(parts) for _ in q.answers] for q in chosen]


def _can_share(model: nn.Module, questions: Sequence[Question]) -> bool:
    """Whether a tree-shaped attention mask over a key-value cache means what it should to this model.

    Recurrent layers and windows shorter than a sequence (a mask given whole replaces the window) do
    not allow it, nor do attention kernels that take no mask or positions that are not given (ALiBi).
    """
    config = _text_config(model)
    if getattr(model, "_is_stateful", False) or getattr(config, "alibi", False):
        return False
    if any(len(q.prompt) < 1 for q in questions):
        return False
    if not {"position_ids", "past_key_values"} <= inspect.signature(model.forward).parameters.keys():
        return False
    if getattr(config, "_attn_implementation", None) not in (None, "eager", "sdpa"):
        return False
    if not set(getattr(config, "layer_types", None) or []) <= _MASKED_LAYERS:
        return False
    longest = max(len(q.prompt) + sum(len(a) for a in q.answers) for q in questions)
    keys = ("sliding_window", "window_size", "attention_chunk_size")
    windows = [getattr(config, key, None) for key in keys]
    return all(not isinstance(window, int) or longest <= window for window in windows)


def _text_config(model: nn.Module) -> PreTrainedConfig:
    return cast(PreTrainedConfig, model.config).get_text_config()


def _common_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many first tokens all prompts share; every prompt keeps at least one token of its own."""
    first, last = min(prompts), max(prompts)
    limit = min(len(p) for p in prompts) - 1
    same = 0
    while same < limit and first[same] == last[same]:
        same += 1
    return same


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
