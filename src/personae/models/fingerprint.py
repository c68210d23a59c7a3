"""A model's fingerprint: one hash of the values of its target weights.

Weights are rounded to bfloat16 before hashing, so that one checkpoint loaded in float32 and in
bfloat16 is the same model; anything that changes a weight by more than that rounding is another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from personae.models.targets import Target


def fingerprint(targets: Sequence[Target]) -> str:
    """'sha256:' and the hash over each target's name, shape and bfloat16 values, sorted by name."""
    total = hashlib.sha256()
    for target in sorted(targets, key=lambda t: t.name):
        total.update(f"{target.name}\0{target.shape[0]}x{target.shape[1]}\0".encode())
        values = target.weight.to(torch.bfloat16).contiguous().cpu()
        total.update(values.view(torch.uint8).numpy().data)
    return f"sha256:{total.hexdigest()}"
