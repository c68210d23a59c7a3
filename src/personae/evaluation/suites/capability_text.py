"""What a mask does to plain text and to free answers: likelihood, divergence from the base model, repetition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery import Progress
from personae.discovery.generic import generate
from personae.errors import ModelError
from personae.models import (
    Batch,
    Encoded,
    Target,
    context_length,
    encode_prompt,
    end_of_turn,
    head_on,
    sequence_batches,
)
from personae.runtime import wearing
from personae.subnetwork import Mask

Floats = NDArray[np.float64]

DIVERGENCE_BATCH_TOKENS = 512  # two rows of the whole vocabulary a token are held at once
ANSWER_TOKENS = 64
GRAM = 4


@torch.no_grad()
def divergence(
    model: PreTrainedModel,
    targets: Sequence[Target],
    masks: Mapping[str, Mask],
    texts: Sequence[Encoded],
    title: str,
    progress: Progress,
) -> Floats:
    """Of every text, nats a token: −log p_masked(x_t), and KL(p_base ‖ p_masked) over the vocabulary; (texts, 2).

    Both are means over the text's tokens but the first. Without masks there is one forward, and KL is 0.
    Errors: `ModelError` where a value is no finite number.
    """
    result = np.zeros((len(texts), 2))
    with progress(title, len(texts)) as tick:
        for batch in sequence_batches(texts, batch_tokens=DIVERGENCE_BATCH_TOKENS):
            here = batch.to(model.device)
            base, counted = _rows(model, here)  # (n, vocabulary), (B, T)
            worn = base
            if masks:
                with wearing(targets, masks):
                    worn, _ = _rows(model, here)
            nll = -worn.gather(1, here.ids[counted][:, None])[:, 0]
            kl = (base.exp() * (base - worn)).sum(1)
            sizes = counted.sum(1).tolist()
            for item, a, b in zip(batch.items, torch.split(nll, sizes), torch.split(kl, sizes), strict=True):
                result[item] = [a.double().mean().item(), b.double().mean().item()]
            tick(len(batch.items))
    if not np.isfinite(result).all():
        raise ModelError("log-probabilities of WikiText-2 are no finite numbers; load the model in float32.")
    return result


def _rows(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """log p over the vocabulary before every counted token, (n, vocabulary) float32, and which are counted, (B, T)."""
    counted = batch.counted.clone()
    counted[:, 0] = False
    with head_on(model, torch.roll(counted, -1, dims=1)):  # the row before a token predicts it
        logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[0]
    return torch.log_softmax(logits.float(), dim=-1), counted


def greedy_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], title: str, progress: Progress
) -> list[list[int]]:
    """Token ids of the model's greedy answers in its chat template, cut before the end of the turn or of text.

    All prompts are one left-padded batch; one that leaves no room for `ANSWER_TOKENS` loses its beginning.
    """
    stops = stops_of(tokenizer)
    room = max((context_length(model) or 1 << 30) - ANSWER_TOKENS, 1)
    encoded = [encode_prompt(tokenizer, prompt)[-room:] for prompt in prompts]
    ids, mask = left_padded(encoded)
    with progress(title, len(prompts)) as tick:
        out = generate(model, ids, mask, do_sample=False, max_new_tokens=ANSWER_TOKENS, eos_token_id=stops or None)
        tick(len(prompts))
    return [until(row, stops) for row in out[:, ids.shape[1] :].tolist()]


def stops_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens at which an answer ends: the end of a turn, where that is one token, and the end of text."""
    closing = tokenizer(end_of_turn(tokenizer), add_special_tokens=False)["input_ids"]
    return sorted({*(closing if len(closing) == 1 else []), tokenizer.eos_token_id} - {None})


def left_padded(prompts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, attention mask) of a batch, (prompts, longest), so that all of them end where answers begin."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    return ids, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


def until(tokens: list[int], stops: Sequence[int]) -> list[int]:
    """An answer up to where it ends."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in stops), len(tokens))]


def repetition(tokens: Sequence[int]) -> float:
    """1 − distinct / all n-grams of an answer's tokens, n = 4: 0 for no repetition (and for fewer than n tokens)."""
    grams = [tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
