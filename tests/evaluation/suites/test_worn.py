from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from personae.errors import MaskMismatchError
from personae.evaluation.suites import SuiteContext
from personae.evaluation.suites.worn import conditions, under_each
from personae.personas import Contrast


@pytest.fixture
def context(model_and_tokenizer: Any, tmp_path: Path) -> SuiteContext:
    return SuiteContext(*model_and_tokenizer, data=tmp_path, parts=tmp_path / "parts")


def test_base_comes_first_and_names_are_unique(context: SuiteContext, contrast: Contrast, artefact_of: Any) -> None:
    one, two = artefact_of(context.model, contrast), artefact_of(context.model, contrast, share=0.2)
    found = conditions(context, [one, two])
    assert [c.name for c in found] == ["base", "loud", "quiet", "loud (2)", "quiet (2)"]
    assert not found[0].masks
    assert found[3].masks == two["loud"].masks
    assert len({c.sha256 for c in found}) == 5
    assert conditions(context, [one])[1].sha256 == found[1].sha256
    assert [c.name for c in conditions(context, [])] == ["base"]


def test_masks_of_another_model_are_refused(
    context: SuiteContext, contrast: Contrast, artefact_of: Any, tiny_model: Any
) -> None:
    other, _ = tiny_model("llama", seed=5)
    with pytest.raises(MaskMismatchError):
        conditions(context, [artefact_of(other, contrast)])


def test_each_condition_is_kept_on_its_own(context: SuiteContext, contrast: Contrast, artefact_of: Any) -> None:
    worn = conditions(context, [artefact_of(context.model, contrast)])
    computed: list[str] = []

    def compute(condition: Any) -> int:
        computed.append(condition.name)
        return len(computed)

    assert under_each(context, "x", {"a": 1}, worn[:2], compute) == {"base": 1, "loud": 2}
    assert under_each(context, "x", {"a": 1}, worn, compute) == {"base": 1, "loud": 2, "quiet": 3}
    assert computed == ["base", "loud", "quiet"]
    renamed = [replace(worn[1], name="other name")]
    assert under_each(context, "x", {"a": 1}, renamed, compute) == {"other name": 2}
    under_each(context, "x", {"a": 2}, worn[:1], compute)
    assert computed[-1] == "base"
    assert len(computed) == 4
