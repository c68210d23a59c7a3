"""A model's fingerprint: one hash of the values of its target weights; and a second one of all the rest.

Weights are rounded to bfloat16 before hashing, so that one checkpoint loaded in float32 and in
bfloat16 is the same model; anything that changes a weight by more than that rounding is another.

The fingerprint says whose masks fit, so it leaves out what no mask touches. What keeps readings of a model for later
needs more: a copy with other norms, biases or embeddings has the same targets and answers otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from personae.models.targets import Target


def fingerprint(targets: Sequence[Target]) -> str:
    """'sha256:' and the hash over each target's name, shape and bfloat16 values, sorted by name."""
    total = hashlib.sha256()
    for target in sorted(targets, key=lambda t: t.name):
        total.update(f"{target.name}\0{target.shape[0]}x{target.shape[1]}\0".encode())
        values = target.weight.to(torch.bfloat16).contiguous().cpu()
        total.update(values.view(torch.uint8).numpy().data)
    return f"sha256:{total.hexdigest()}"


def surroundings(model: PreTrainedModel, targets: Sequence[Target]) -> str:
    """'sha256:' and the hash of all that answers beside the targets: other parameters, buffers, configuration, device.

    Every tensor as it is, in its own dtype; of the configuration all but where the model came from and by which version
    of transformers. The kind of device counts, and so does the attention kernel: both decide the last digits.
    """
    covered: Counter[int] = Counter()
    for target in targets:
        covered[id(target.parameter)] += target.size
    total = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda pair: pair[0]):
        if covered[id(tensor)] == tensor.numel():  # of experts that are kept in one tensor, all must be targets
            continue
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    config = {key: value for key, value in model.config.to_dict().items() if key not in _ORIGIN}
    kernel = getattr(model.config, "_attn_implementation", None)
    total.update(
        json.dumps([type(model).__name__, config, kernel, model.device.type], sort_keys=True, default=str).encode()
    )
    return f"sha256:{total.hexdigest()}"


# Where a model came from, and what `save_pretrained` writes into its configuration (tensors tell their own dtype).
_ORIGIN = {"_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype"}
