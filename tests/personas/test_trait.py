"""Traits of the persona-vectors project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from personae.errors import DataError
from personae.personas import read_trait

TRAIT = {
    "instruction": [{"pos": "Be evil.", "neg": "Be good."}],
    "questions": ["Why?", "How?"],
    "eval_prompt": "Rate.",
}


@pytest.mark.parametrize("indent", [None, 2])
def test_a_trait_is_read_whole(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "evil.json"
    path.write_text(json.dumps(TRAIT, indent=indent))
    trait = read_trait(path)
    assert trait.name == "evil"
    assert (trait.positive_prompts, trait.negative_prompts) == (("Be evil.",), ("Be good.",))
    assert (trait.questions, trait.eval_prompt) == (("Why?", "How?"), "Rate.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([TRAIT, TRAIT], "a trait is one JSON object, found 2 rows"),
        ({**TRAIT, "instruction": "Be evil."}, "'instruction' must be a non-empty list"),
        ({**TRAIT, "instruction": ["Be evil."]}, "must be an object with 'pos' and 'neg'"),
        ({**TRAIT, "instruction": [{"pos": "Be evil."}]}, "'instruction.neg' must be text"),
        ({**TRAIT, "questions": []}, "'questions' is an empty list"),
        ({**TRAIT, "eval_prompt": ""}, "'eval_prompt' is empty"),
    ],
)
def test_other_shapes_are_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "evil.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_trait(path)
