"""Who a model and its tokenizer are, to the last weight: under what finished parts of an analysis are kept."""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.models import encode, find_targets, fingerprint


def weights_hash(model: PreTrainedModel) -> str:
    """Of all weights, embeddings and norms too, which the fingerprint of the targets leaves out."""
    targets = find_targets(model)
    covered = {id(target.parameter) for target in targets}
    total = hashlib.sha256(fingerprint(targets).encode())
    for name, parameter in sorted(model.named_parameters()):
        if id(parameter) not in covered:
            total.update(f"{name}\0{tuple(parameter.shape)}\0".encode())
            values = parameter.detach().to(torch.bfloat16).contiguous().cpu().flatten()
            total.update(values.view(torch.uint8).numpy().data)
    return total.hexdigest()


def writing(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of how text becomes token ids: the vocabulary, the template, and a question with its answer written so."""
    probe = encode(tokenizer, "What is 1 + 1?", "Two, I think.")
    said = [
        sorted(tokenizer.get_vocab().items()),
        getattr(tokenizer, "chat_template", None),
        probe.prompt,
        probe.answer,
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
