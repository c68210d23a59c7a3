"""What a worn mask does to generic text, and which dropped weights do it.

Dropping a weight alone costs D/2 to second order, but many weights dropped together push the model's outputs the
same way, and that common push is nearly all of what a mask costs. It shows in the gradient of the divergence at
the masked point: with K = KL(p_base ‖ p_masked) a token, −w·∂K/∂w is what dropping w adds to the divergence given
all the others that are dropped. At the base model that gradient is zero and tells nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from personae.discovery.attribution import Gradients, by_target, gradients_on, rescue, rescued, restore_sums
from personae.discovery.resume import Checkpoint
from personae.errors import DataError
from personae.models import Batch, Encoded, Target, head_on, sequence_batches
from personae.runtime import wearing
from personae.subnetwork import Mask

DIVERGENCE_BATCH_TOKENS = 256


def divergence_gradient(
    model: nn.Module,
    targets: Sequence[Target],
    masks: Mapping[str, Mask],
    texts: Sequence[Encoded],
    *,
    batch_tokens: int = DIVERGENCE_BATCH_TOKENS,
    tick: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Gradients:
    """∂K/∂W at the masked point, for every target, (out, in) float32 on the CPU.

    K = (1/n) Σ_t KL(p_base(·|x_<t) ‖ p_masked(·|x_<t)) over the n counted tokens of the texts (answers; plain text
    whole but for its first token), nats a token. The gradient does not depend on the value of a weight, so it is
    as true of dropped weights (at zero) as of kept ones. Base and masked model run batch after batch; nothing of
    the size of the vocabulary is kept. Errors: `DataError` without texts.
    """
    batches, tokens = _batches(model, texts, batch_tokens)
    names = {id(p): n for n, p in model.named_parameters()}
    with gradients_on(model, targets) as buffers:
        done, _ = restore_sums(buffers, checkpoint, targets, names)
        if tick and done:
            tick(sum(len(b.items) for b in batches[:done]))
        for number, batch in enumerate(batches[done:], start=done + 1):
            _add(model, targets, masks, batch, tokens)
            if tick:
                tick(len(batch.items))
            if checkpoint and checkpoint.due():
                checkpoint.save(number, {names[key]: b for key, b in buffers.items()})
        if checkpoint:
            checkpoint.finish(len(batches), {names[key]: b for key, b in buffers.items()})
    return by_target(targets, rescued(buffers, rescue(model, tokens)))


def divergence_step(
    model: nn.Module,
    targets: Sequence[Target],
    masks: Mapping[str, Mask],
    texts: Sequence[Encoded],
    *,
    batch_tokens: int = DIVERGENCE_BATCH_TOKENS,
) -> tuple[Gradients, torch.Tensor]:
    """`divergence_gradient` of a few texts, and what the mask costs each: (rise of its negative log-likelihood in nats,
    counted tokens), (texts, 2) float64. Nothing is kept for the case of a kill."""
    batches, tokens = _batches(model, texts, batch_tokens)
    rises = torch.zeros(len(texts), 2, dtype=torch.float64)
    with gradients_on(model, targets) as buffers:
        for batch in batches:
            rises[list(batch.items)] = _add(model, targets, masks, batch, tokens)
    return by_target(targets, rescued(buffers, rescue(model, tokens))), rises


def _batches(model: nn.Module, texts: Sequence[Encoded], batch_tokens: int) -> tuple[list[Batch], int]:
    """The texts as batches on the model's device, and their counted tokens."""
    if not texts:
        raise DataError("no texts to take a divergence on.")
    device = next(model.parameters()).device
    batches = [batch.to(device) for batch in sequence_batches(texts, batch_tokens=batch_tokens)]
    return batches, sum(int(b.counted[:, 1:].sum()) for b in batches)


def _add(
    model: nn.Module, targets: Sequence[Target], masks: Mapping[str, Mask], batch: Batch, tokens: int
) -> torch.Tensor:
    """Add a batch's gradient to those that are being collected; (rise, tokens) of its texts, (B, 2) float64."""
    with torch.no_grad():
        base = _log_probabilities(model, batch)
    with wearing(targets, masks):
        worn = _log_probabilities(model, batch)
        scale = rescue(model, tokens)
        (scale * (base.exp() * (base - worn)).sum() / tokens).backward()  # type: ignore[no-untyped-call]
    counted = _predicted(batch)
    said = batch.ids[counted][:, None]
    rise = (base.gather(1, said) - worn.detach().gather(1, said))[:, 0].cpu().double()
    numbers = counted.sum(dim=1).tolist()
    parts = torch.split(rise, numbers)
    return torch.tensor([[float(part.sum()), len(part)] for part in parts], dtype=torch.float64)


def _predicted(batch: Batch) -> torch.Tensor:
    """True on the counted tokens that something predicts, (B, T): not on the first of a row."""
    counted = batch.counted.clone()
    counted[:, 0] = False
    return counted


def _log_probabilities(model: nn.Module, batch: Batch) -> torch.Tensor:
    """log p over the vocabulary at every position that predicts a counted token, (n, vocabulary) float32."""
    with head_on(model, torch.roll(_predicted(batch), -1, dims=1)):  # the row before a token predicts it
        logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[0]
    return torch.log_softmax(logits.float(), dim=-1)
