"""Which words pay for a mask? The loss of chat answers at words that follow a negation, and at all others.

    python -m benchmarks.negations                       # one core, about 15 minutes

A margin rises in two ways: the persona's own answer becomes likelier, or its rival's becomes unlikely, and rivals of
many pairs say 'No, I do not …'. Under the two-round masks of both sets (float32) this reads the negative log-likelihood
of the 200 answers of mbti/TF_dev, the text of the final figures, token by token, and splits its rise by where the token
stands: within two words after a negation, or elsewhere. Intervals are 95 % bootstrap intervals over answers. Writes
benchmarks/results/negations.json.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.ai_persona import SETS
from benchmarks.common import machine, texts, write
from benchmarks.suites import committed_masks
from personae import load_model
from personae.cli.console import bar
from personae.discovery import versions
from personae.models import Encoded, Question, find_targets, fingerprint, score_continuations
from personae.runtime import wearing

NEGATED = re.compile(r"(?:\b(?:not|no|nor|never|cannot)|n['’]t)\b(?:\W+\w+)?\W*$", re.IGNORECASE)
RESAMPLES = 2000


def after_negation(tokenizer: PreTrainedTokenizerBase, answer: Sequence[int]) -> list[bool]:
    """Of every token of an answer: whether what stands before it ends in a negation, or in one and a word."""
    return [bool(NEGATED.search(str(tokenizer.decode(answer[:i])))) for i in range(len(answer))]


def likelihoods(model: PreTrainedModel, chat: Sequence[Encoded], title: str) -> list[np.ndarray]:
    """log p of every answer token under whatever the model wears."""
    questions = [Question(text.prompt, (text.answer,)) for text in chat]
    with torch.no_grad(), bar(title, len(questions)) as tick:
        return [answers[0].double().numpy() for answers in score_continuations(model, questions, tick=tick)]


def split_up(rise: Sequence[np.ndarray], negated: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """Mean rise a token at either kind of place, the shares of tokens and of the whole rise after negations."""
    after = np.array([r[np.array(n)].sum() for r, n in zip(rise, negated, strict=True)])
    number = np.array([sum(n) for n in negated])
    whole, tokens = np.array([r.sum() for r in rise]), np.array([len(r) for r in rise])
    drawn = np.random.default_rng(0).integers(len(rise), size=(RESAMPLES, len(rise)))

    def ratio(above: np.ndarray, below: np.ndarray) -> dict[str, float]:
        resampled = above[drawn].sum(1) / np.maximum(below[drawn].sum(1), 1e-9)
        low, high = np.quantile(resampled, [0.025, 0.975])
        return {"value": float(above.sum() / below.sum()), "low": float(low), "high": float(high)}

    return {
        "loss": ratio(whole, tokens), "after_negation": ratio(after, number),
        "elsewhere": ratio(whole - after, tokens - number), "share_of_tokens": float(number.sum() / tokens.sum()),
        "share_of_rise": ratio(after, whole),
    }  # fmt: skip


def main() -> None:
    """Every two-round mask."""
    model, tokenizer = load_model(dtype="float32")
    targets = find_targets(model)
    _, final = texts(tokenizer)
    negated = [after_negation(tokenizer, text.answer) for text in final.chat]
    base = likelihoods(model, final.chat, "answers under base")
    rows: dict[str, Any] = {}
    for name, made in zip(SETS, committed_masks(), strict=True):
        for pole, persona in made.personas.items():
            with wearing(targets, persona.masks):
                worn = likelihoods(model, final.chat, f"answers under {pole}")
            row = split_up([before - after for before, after in zip(base, worn, strict=True)], negated)
            rows[f"{name}, {pole}"] = row
            print(f"{name}, {pole}:", {k: v if isinstance(v, float) else round(v["value"], 4) for k, v in row.items()})
    result = {
        "rows": rows, "text": final.name, "text_sha256": final.sha256, "model": fingerprint(targets),
        "dtype": "float32", "versions": versions(), "machine": machine(), "command": "python -m benchmarks.negations",
    }  # fmt: skip
    print(write("negations", result))


if __name__ == "__main__":
    main()
