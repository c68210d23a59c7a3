"""The whole suite on tiny models: what it hands back, that it resumes, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from discovery_data import bits, same_bits, small_contrast
from personae.discovery import GenericText
from personae.errors import DataError, OptionError
from personae.evaluation.suites import SuiteContext, faithfulness_readings, suite_to_dict, suite_to_markdown
from personae.evaluation.suites.faithfulness import run
from personae.personas import Contrast

SMALL: dict[str, Any] = {"sparsities": (0.3,), "pairs": 8, "test_items": 6, "block_items": 2, "drop_share": 0.02}


def test_run_resumes_and_leaves_the_model(
    tiny_model: Any, contrast: Contrast, generic: GenericText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_model("llama")
    before = bits(model)
    result = run(SuiteContext(model, tokenizer, tmp_path, parts=tmp_path), contrast, generic=generic, **SMALL)
    assert same_bits(model, before)
    assert result.suite == "faithfulness"
    assert result.data == {contrast.name: contrast.sha256}
    assert (result.settings["pairs"], result.settings["test_items"]) == (8, 6)
    assert {
        "necessity",
        "necessity.mean",
        "minimality.decile_1_minus_random",
        "isolated30.acc",
    } <= result.figures.keys()
    assert {"isolated30.acc_minus_best", "restore.attention", "alone.mlp"} <= result.figures.keys()
    assert [t.title.split(":")[0].split()[0] for t in result.tables] == [
        "Sufficiency", "Necessity", "Minimality", "Restoring",
    ]  # fmt: skip
    json.dumps(suite_to_dict(result), allow_nan=False)
    assert "loud (against quiet)" in suite_to_markdown(result)

    def never(*arguments: Any, **options: Any) -> None:
        pytest.fail("read again")

    monkeypatch.setattr(faithfulness_readings, "mean_log_probabilities", never)
    again = run(SuiteContext(model, tokenizer, tmp_path, parts=tmp_path), contrast, generic=generic, **SMALL)
    assert again.figures == result.figures
    assert again.tables == result.tables


def test_how_much_generic_text_is_read_decides_the_parts(
    tiny_model: Any, contrast: Contrast, generic: GenericText, tmp_path: Path
) -> None:
    """The price of weights reads `answers` texts: masks found with another number are other masks."""
    model, tokenizer = tiny_model("llama")
    results = [
        run(SuiteContext(model, tokenizer, tmp_path, parts=parts), contrast, generic=text, **SMALL)
        for text, parts in ((generic, tmp_path), (replace(generic, answers=1), tmp_path),
                            (replace(generic, answers=1), None))
    ]  # fmt: skip
    assert results[1].figures == results[2].figures
    assert results[1].figures["restore.gain"] != results[0].figures["restore.gain"]


def test_limit_cuts_every_set(tiny_model: Any, contrast: Contrast, generic: GenericText, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("gpt2")
    result = run(SuiteContext(model, tokenizer, tmp_path, limit=3), contrast, generic=generic, **SMALL)
    numbers = [result.settings[k] for k in ("pairs", "dev_items", "test_items", "block_items", "limit")]
    assert numbers == [3, 3, 3, 2, 3]


def test_experts_are_left_out_of_mean_ablation(
    tiny_model: Any, contrast: Contrast, generic: GenericText, tmp_path: Path
) -> None:
    model, tokenizer = tiny_model("mixtral")
    before = bits(model)
    result = run(SuiteContext(model, tokenizer, tmp_path, limit=4), contrast, generic=generic, **SMALL)
    assert result.figures["necessity.mean"] is None
    assert result.figures["necessity"] is not None
    assert any("has no bias" in note for note in result.tables[1].notes)
    assert same_bits(model, before)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sparsities": ()}, "at least one sparsity"),
        ({"sparsities": (0.0,)}, "between 0 and 1"),
        ({"drop_share": 1.5}, "--drop-share"),
        ({"pairs": 0}, "at least 1"),
        ({"block_items": 0}, "at least 1"),
    ],
)
def test_bad_options(model_and_tokenizer: Any, contrast: Contrast, changed: dict[str, Any], words: str) -> None:
    model, tokenizer = model_and_tokenizer
    with pytest.raises(OptionError, match=words):
        run(SuiteContext(model, tokenizer, Path()), contrast, **{**SMALL, **changed})


def test_unpaired_contrasts_are_refused(model_and_tokenizer: Any) -> None:
    model, tokenizer = model_and_tokenizer
    unpaired = replace(small_contrast(6, paired=False), name="apart")
    with pytest.raises(DataError, match="'apart' is not paired"):
        run(SuiteContext(model, tokenizer, Path()), unpaired)
