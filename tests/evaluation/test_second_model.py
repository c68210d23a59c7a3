"""Rows of a second model: its own readings of the same items, below a table that they leave as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from discovery_data import bits, same_bits
from personae.errors import DataError, OptionError, PersonaInUseError
from personae.evaluation import Evaluation, evaluate, from_dict, score_items, to_dict, to_markdown
from personae.evaluation.retrieval import with_examples
from personae.evaluation.scoring import score_encoded
from personae.evaluation.second_model import NAMES, beside, read_second_model
from personae.models import find_targets, fingerprint
from personae.personas import Contrast, split
from personae.runtime import PersonaModel


@pytest.fixture
def other(tiny_model: Any) -> Any:
    """Another architecture, whose tokenizer writes questions in another form."""
    return tiny_model("qwen2", template=False, seed=3)


def table_of(model_and_tokenizer: Any, contrast: Contrast, generic: Any) -> Evaluation:
    from personae.discovery import open_session

    session = open_session(*model_and_tokenizer, split(contrast).calibration, generic=generic, resume=False)
    return evaluate(*model_and_tokenizer, contrast, controls=(), session=session, resamples=50)


def test_rows_are_the_models_own_readings(
    model_and_tokenizer: Any, other: Any, contrast: Contrast, generic: Any
) -> None:
    parts = split(contrast)
    before = bits(other[0])
    second = read_second_model(*other, parts.test, parts.calibration, "owner/name", resamples=50)
    assert same_bits(other[0], before)
    assert [row.name for row in second.rows] == [f"{name} (owner/name)" for name in NAMES]
    test, prompts = parts.test, (contrast.positive_prompt, contrast.negative_prompt)
    bare = score_items(*other, test)
    expected = {
        "base": (bare, bare),
        "system prompt": tuple(score_items(*other, test, prompt) for prompt in prompts),
        "retrieval": tuple(score_encoded(other[0], s) for s in with_examples(*other, test, parts.calibration)),
    }
    for row, sides in zip(second.rows, expected.values(), strict=True):
        [reading] = row.readings
        for read, side in zip((reading.difference, reading.difference_opposite), sides, strict=True):
            assert read == pytest.approx(side.difference().tolist(), abs=1e-5)
        assert (row.acc.value, row.acc_opposite.value) == (sides[0].acc(), sides[1].acc())
        # against its own base row, not the first model's
        own = (sides[0].normalised() - bare.normalised())[:, 0].mean()
        assert row.own_answers.value == pytest.approx(own, abs=1e-5)
        assert (row.capability_loss, row.sparsity, row.claims) == (None, 0.0, ())
    assert [row.extra_prompt_tokens > 0 for row in second.rows] == [False, True, True]
    assert fingerprint(find_targets(other[0])) in second.note

    table = table_of(model_and_tokenizer, contrast, generic)
    both = beside(table, second)
    assert both.rows[: len(table.rows)] == table.rows
    assert both.rows[len(table.rows) :] == second.rows
    assert from_dict(to_dict(both)) == both
    page = to_markdown(both)
    assert all(f"| {name} (owner/name) |" in page for name in NAMES)
    assert f"- note: {second.note}" in page


def test_prompts_that_are_not_there_make_no_row(
    model_and_tokenizer: Any, other: Any, contrast: Contrast, generic: Any
) -> None:
    bare = replace(contrast, negative_prompt=None)
    parts = split(bare)
    second = read_second_model(*other, parts.test, parts.calibration, "other", resamples=20)
    assert [row.name for row in second.rows] == ["base (other)", "retrieval (other)"]
    both = beside(table_of(model_and_tokenizer, bare, generic), second)
    assert any("no row for the system prompt" in note for note in both.notes)


def test_other_items_are_refused(model_and_tokenizer: Any, other: Any, contrast: Contrast, generic: Any) -> None:
    parts = split(contrast)
    second = read_second_model(*other, parts.dev, parts.calibration, "other", resamples=20)
    with pytest.raises(OptionError, match="read on other items"):
        beside(table_of(model_and_tokenizer, contrast, generic), second)


def test_a_model_that_wears_a_mask_and_unpaired_items_are_refused(
    tiny_model: Any, contrast: Contrast, artefact_of: Any
) -> None:
    model, tokenizer = tiny_model("llama")
    parts = split(contrast)
    actor = PersonaModel(model, tokenizer)
    actor.add_personas(artefact_of(model, contrast))
    with actor.persona("loud"), pytest.raises(PersonaInUseError, match="needs the base weights"):
        read_second_model(model, tokenizer, parts.test, parts.calibration, "same")
    unpaired = replace(
        contrast, pairs=(), positive_samples=contrast.samples("loud"), negative_samples=contrast.samples("quiet")
    )
    with pytest.raises(DataError, match="is not paired"):
        read_second_model(model, tokenizer, unpaired, parts.calibration, "same")


def test_the_random_state_is_left_alone(other: Any, contrast: Contrast) -> None:
    parts = split(contrast)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = read_second_model(*other, parts.test, parts.calibration, "a", resamples=20, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert read_second_model(*other, parts.test, parts.calibration, "a", resamples=20, seed=1) == first
