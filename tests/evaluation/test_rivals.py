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
from personae.evaluation.table import to_dict
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
    with pytest.raises(OptionError, match="needs a split, or calibration items of its own"):
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


def figures(row: Any) -> Any:
    """A row without what a clock and the operating system say."""
    return replace(row, seconds=None, peak_bytes=None)


def test_a_set_with_its_own_test_file_has_the_rows_of_a_split(
    model_and_tokenizer: Any, contrast: Contrast, artefact_of: Any, generic: GenericText
) -> None:
    """The same items, once as the parts of a split and once as three sets: every row is the same."""
    model, tokenizer = model_and_tokenizer
    artefact = artefact_of(model, contrast, max_capability_loss=0.5, cheap_share=0.5)
    parts = split(contrast)
    options: dict[str, Any] = {
        "rivals": RIVALS, "controls": ("random", "shuffled"), "methods": ("magnitude",), "random_seeds": 1,
        "resamples": 50, "max_capability_loss": 0.5,
    }  # fmt: skip

    def session() -> Any:
        return open_session(model, tokenizer, parts.calibration, generic=generic, resume=False)

    with pytest.warns(UserWarning, match="generic text"):
        before = evaluate(model, tokenizer, contrast, artefact, session=session(), **options)
    test = replace(parts.test, name="another file")
    with pytest.warns(UserWarning, match="generic text"):
        after = evaluate(
            model, tokenizer, test, artefact, session=session(), split_seed=None, calibration=parts.calibration,
            dev=parts.dev, **options,
        )  # fmt: skip
    assert {*RIVALS, "shuffled", "magnitude"} < {row.name for row in after.rows}
    assert [figures(row) for row in after.rows] == [figures(row) for row in before.rows]
    assert before.warnings == after.warnings
    data = to_dict(after)["data"]
    assert (data["calibration_sha256"], data["dev_sha256"]) == (parts.calibration.sha256, parts.dev.sha256)
    assert (before.data.calibration_sha256, before.data.dev_sha256) == (None, None)
    assert data["test_sha256"] == parts.test.sha256


def test_what_chooses_needs_dev_items_and_what_only_calibrates_does_not(
    model_and_tokenizer: Any, contrast: Contrast, generic: GenericText
) -> None:
    model, tokenizer = model_and_tokenizer
    parts = split(contrast)
    session = open_session(model, tokenizer, parts.calibration, generic=generic, resume=False)

    def run(**options: Any) -> Any:
        return evaluate(
            model, tokenizer, parts.test, controls=(), session=session, resamples=10, system_prompt=False,
            **{"split_seed": None, "calibration": parts.calibration, **options},
        )  # fmt: skip

    found = run(rivals=("retrieval",))
    assert [row.name for row in found.rows] == ["base", "retrieval"]
    for options in ({"rivals": ("steering",)}, {"methods": ("directed",)}):
        with pytest.raises(OptionError, match="give dev beside calibration"):
            run(**options)
    with pytest.raises(OptionError, match="instead of a split"):
        run(split_seed=0)
    with pytest.raises(OptionError, match="instead of a split"):
        run(split_seed=0, calibration=None, dev=parts.dev)
    with pytest.raises(OptionError, match="give calibration too"):
        run(calibration=None, dev=parts.dev)
    with pytest.raises(DataError, match="of the dev items 'loud-quiet' are tested"):
        run(dev=parts.test)
    with pytest.raises(DataError, match="of the calibration items 'loud-quiet' are tested"):
        run(calibration=contrast)
    with pytest.raises(OptionError, match="not opened on the items"):
        run(calibration=parts.dev)
