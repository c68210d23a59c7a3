"""A judge made of letters and a slow likelihood, for the tests of the generation suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from personae.evaluation.suites import SuiteContext
from personae.evaluation.suites.embedding import Judge
from personae.models import encode_prompt


class _Letters:
    """A judge for tests: hidden states are one-hot letters, so the vector is the letters' frequencies."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 64 for c in text]}


class _OneHot:
    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        class Output:
            last_hidden_state = torch.eye(64)[input_ids]

        return Output()


LETTERS = Judge("letters", _OneHot(), _Letters())


def slow_log_p(context: SuiteContext, question: str, system: str, answer: Sequence[int]) -> float:
    """log p a token of the answer, from one whole forward."""
    ids = encode_prompt(context.tokenizer, question, system)
    with torch.no_grad():
        rows = context.model(input_ids=torch.tensor([[*ids, *answer]])).logits[0].double().log_softmax(-1)
    return float(np.mean([rows[len(ids) + k - 1, token] for k, token in enumerate(answer)]))
