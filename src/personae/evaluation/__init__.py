"""Two-choice scoring under every condition, controls, capability, intervals: one table a sceptic can check."""

from personae.evaluation.bootstrap import (
    RESAMPLES,
    Difference,
    Estimate,
    difference,
    holm,
    interval,
    margin_over_best_control,
    paired_bootstrap,
)
from personae.evaluation.capability_texts import CapabilityText, capability_text, unread_text
from personae.evaluation.conditions import Claim, Loss, Reading, Row
from personae.evaluation.controls import CONTROLS, MATCHES
from personae.evaluation.evaluate import evaluate
from personae.evaluation.results import DataRecord, Evaluation, ModelRecord, TextRecord
from personae.evaluation.scoring import Baselines, ItemScores, baselines, score_items
from personae.evaluation.second_model import SecondModel, beside, read_second_model
from personae.evaluation.table import from_dict, to_dict, to_markdown, to_rich

__all__ = [
    "CONTROLS",
    "MATCHES",
    "RESAMPLES",
    "Baselines",
    "CapabilityText",
    "Claim",
    "DataRecord",
    "Difference",
    "Estimate",
    "Evaluation",
    "ItemScores",
    "Loss",
    "ModelRecord",
    "Reading",
    "Row",
    "SecondModel",
    "TextRecord",
    "baselines",
    "beside",
    "capability_text",
    "difference",
    "evaluate",
    "from_dict",
    "holm",
    "interval",
    "margin_over_best_control",
    "paired_bootstrap",
    "read_second_model",
    "score_items",
    "to_dict",
    "to_markdown",
    "to_rich",
    "unread_text",
]
