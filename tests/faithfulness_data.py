"""Readings on the planted model, for the tests of the faithfulness suite."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from personae.discovery import Calibration, Session
from personae.evaluation.suites import SuiteContext
from personae.evaluation.suites.faithfulness_readings import Floats, Readings
from personae.evaluation.suites.planted_models import Planted, make_planted
from personae.models import Target


@cache
def planted() -> Planted:
    """Trained once a process; tests leave it as they found it."""
    return make_planted()


def planted_readings(parts: Path | None = None, **changes: Any) -> Readings:
    """On the held-out questions, which also choose; drop share 1 %, as much as is planted."""
    truth = planted()
    one_word = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))  # texts are token ids already
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=one_word, unk_token="?", eos_token="?")
    context = SuiteContext(truth.model, tokenizer, Path(), parts=parts)
    session = Session(truth.model, tokenizer, truth.targets, truth.calibration, truth.generic)
    options: dict[str, Any] = {"frame": {}, "cheap_share": 0.6, "drop_share": 0.01, **changes}
    return Readings(context, session, truth.held_out, truth.held_out, **options)


def slow_margins(
    model: Any, targets: list[Target], dropped: Mapping[str, torch.Tensor], items: Calibration, columns: bool = False
) -> Floats:
    """Margins (or log p a token) with weights zeroed by hand and one plain forward an answer; then put back."""
    kept = {t.name: t.weight.clone() for t in targets}
    for target in targets:
        if target.name in dropped:
            target.weight[dropped[target.name]] = 0.0
    scores = []
    for question in items.paired:
        for answer in question.answers:
            ids = torch.tensor([question.prompt + answer])
            with torch.no_grad():
                logs = model(input_ids=ids).logits[0].log_softmax(-1)
            start = len(question.prompt)
            scores.append(float(np.mean([float(logs[start + k - 1, token]) for k, token in enumerate(answer)])))
    for target in targets:
        target.weight.copy_(kept[target.name])
    table = np.array(scores).reshape(-1, 2)
    return table if columns else table[:, 0] - table[:, 1]
