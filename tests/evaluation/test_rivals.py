"""Rows of rivals: real, on the same items, and refused with a reason where they cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from discovery_data import bits, same_bits
from personae.discovery import GenericText, open_session
from personae.errors import DataError, OptionError
from personae.evaluation import evaluate, score_items
from personae.evaluation.rivals import RIVALS
from personae.models import find_targets
from personae.personas import Contrast, split
from personae.runtime import wearing


def test_every_rival_is_a_row(
    model_and_tokenizer: Any, contrast: Contrast, artefact_of: Any, generic: GenericText
) -> None:
    model, tokenizer = model_and_tokenizer
    artefact = artefact_of(model, contrast, max_capability_loss=0.05)
    session = open_session(model, tokenizer, split(contrast).calibration, generic=generic, resume=False)
    before = bits(model)
    result = evaluate(model, tokenizer, contrast, artefact, rivals=RIVALS, controls=(), session=session, resamples=50)
    assert same_bits(model, before)
    assert [row.name for row in result.rows] == ["base", "system prompt", *RIVALS, "directed"]
    assert {row.name for row in result.rows if row.kind == "rival"} == set(RIVALS)
    test = split(contrast).test
    with wearing(find_targets(model), artefact["loud"].masks):
        both = score_items(model, tokenizer, test, contrast.positive_prompt)
    row = result["mask + prompt"]
    assert row.readings[0].difference == pytest.approx(both.difference().tolist(), abs=1e-4)
    assert (row.capability_loss, row.sparsity) == (None, result["directed"].sparsity)
    assert row.extra_prompt_tokens == result["system prompt"].extra_prompt_tokens
    assert result["retrieval"].extra_prompt_tokens > 20
    assert result["retrieval"].readings[0].log_p != result["retrieval"].readings[0].log_p_opposite
    row = result["steering"]
    assert row.loss is not None
    assert row.cost == "forward-only"
    assert "block" in row.note
    assert row.readings[0].difference != row.readings[0].difference_opposite


def test_what_a_rival_needs(model_and_tokenizer: Any, contrast: Contrast, generic: GenericText) -> None:
    model, tokenizer = model_and_tokenizer
    session = open_session(model, tokenizer, split(contrast).calibration, generic=generic, resume=False)

    def run(data: Contrast = contrast, **options: Any) -> None:
        evaluate(model, tokenizer, data, controls=(), session=session, resamples=10, **options)

    with pytest.raises(DataError, match="needs a persona"):
        run(rivals=("mask + prompt",))
    with pytest.raises(OptionError, match="need a split"):
        run(rivals=("steering",), split_seed=None)
    with pytest.raises(OptionError, match="it would fit the items that are tested"):
        evaluate(model, tokenizer, contrast, controls=("shuffled",), session=session, resamples=10, split_seed=None)
    with pytest.raises(OptionError, match="unknown --rival 'luck'"):
        run(rivals=("luck",))


def test_no_prompts_no_row(
    model_and_tokenizer: Any, contrast: Contrast, artefact_of: Any, generic: GenericText
) -> None:
    model, tokenizer = model_and_tokenizer
    bare = replace(contrast, positive_prompt=None, negative_prompt=None)
    session = open_session(model, tokenizer, split(bare).calibration, generic=generic, resume=False)
    with pytest.raises(DataError, match="no system prompts"):
        evaluate(
            model, tokenizer, bare, artefact_of(model, bare), rivals=("mask + prompt",), controls=(), session=session
        )
