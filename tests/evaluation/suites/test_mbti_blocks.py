"""Thirds of a model, and MBTI masks that are confined to one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mbti_files import write_mbti_files
from personae.discovery import GenericText, Settings, open_session, stepped, steps, to_masks
from personae.errors import ModelError, OptionError
from personae.evaluation.suites import SuiteContext
from personae.evaluation.suites.mbti import run
from personae.evaluation.suites.mbti_blocks import RANGES, spans, third
from personae.evaluation.suites.mbti_data import Sizes, items, read_dimension
from personae.evaluation.suites.mbti_masks import Finder, Finding
from personae.evaluation.suites.mbti_tuning import Tuning
from personae.models import find_targets

SIZES = Sizes(calibration=12, dev=4, test=6, tokens=24)


@pytest.fixture
def context(model_and_tokenizer: Any, tmp_path: Path) -> SuiteContext:
    model, tokenizer = model_and_tokenizer
    write_mbti_files(tmp_path, 60)
    return SuiteContext(model, tokenizer, tmp_path, tmp_path / "parts")


@pytest.mark.parametrize(
    ("name", "changes", "number"),
    [("llama", {}, 3), ("gpt2", {"n_layer": 4}, 4), ("mixtral", {"num_hidden_layers": 5}, 5)],
)
def test_thirds_share_out_the_targets_in_the_order_of_the_blocks(
    tiny_model: Callable[..., Any], name: str, changes: dict[str, Any], number: int
) -> None:
    model, _ = tiny_model(name, **changes)
    targets = find_targets(model)
    found = spans(model, targets, tuple(RANGES))
    assert found["all"].targets == {t.name for t in targets}
    assert found["all"].blocks == range(number)
    parts = [found[n] for n in ("first", "middle", "last")]
    assert [b for part in parts for b in part.blocks] == list(range(number))
    for part in parts:
        numbers = {int(re.findall(r"\.(\d+)\.", n)[0]) for n in part.targets}  # of the block, read off the name
        assert numbers == set(part.blocks)
    assert sum(len(part.targets) for part in parts) == len(targets)


def test_thirds_differ_by_one_block_at_most() -> None:
    for number in range(3, 100):
        sizes = [len(third(n, number)) for n in ("first", "middle", "last")]
        assert sum(sizes) == number
        assert max(sizes) - min(sizes) <= 1
    assert third("middle", 30) == range(10, 20)


def test_a_model_of_two_blocks_has_no_middle(tiny_model: Callable[..., Any]) -> None:
    model, _ = tiny_model("qwen2")
    targets = find_targets(model)
    assert set(spans(model, targets, ("all", "first", "last"))) == {"all", "first", "last"}
    with pytest.raises(ModelError, match="'middle' of this model's 2 blocks"):
        spans(model, targets, ("middle",))


@pytest.mark.parametrize("name", ["EI", "SN"])
def test_steps_within_a_range_read_and_drop_nothing_outside_of_it(
    context: SuiteContext, generic: GenericText, name: str
) -> None:
    """The masks are those of short steps of a session whose targets are the range's alone."""
    finding = Finding(None, None, 0.5, steps=4, step_share=0.03, blocks="last")
    finder = Finder(context, finding, {}, generic)
    data = read_dimension(context.model, context.tokenizer, context.data / f"mbti/{name}_dev.jsonl", name, SIZES)
    found = finder.find(data)
    inside = spans(context.model, context.targets, ("last",))["last"].targets
    last = [t.name for t in context.targets if t.name in inside]
    session = open_session(
        context.model, context.tokenizer, data.contrast, generic=generic, targets=last, resume=False
    ).with_calibration(items(data.calibration, data.paired))  # fmt: skip
    settings = Settings(max_capability_loss=0.5, steps=4, step_share=0.03).checked()
    for pole, masks in enumerate(found.persona):
        assert masks.keys() == inside
        assert 0 < found.dropped[pole] <= round(steps.BEYOND * 0.03 * sum(t.size for t in session.targets))
        assert masks == to_masks(stepped(session, settings, pole, 0.6).at(found.dropped[pole]))
    for masks in (*found.shuffled, *finder.random(data, found, 0)):
        assert masks.keys() == inside
        assert any(m.dropped for m in masks.values())
    assert "blocks" not in Finding().key  # parts of runs without a range stay what they were
    assert finder.key["blocks"] == "last"


def test_a_range_of_blocks_is_recorded_and_excludes_tuning(context: SuiteContext, generic: GenericText) -> None:
    small: dict[str, Any] = {"dimensions": ("EI",), "rows": 8, "test": 6, "tokens": 16, "resamples": 50}
    result = run(context, **small, blocks="last", drop_share=0.01, questionnaire=False, generic=generic)
    assert result.settings["blocks"] == "last"
    with pytest.raises(OptionError, match="unknown blocks 'end': choose all, first, middle, last"):
        run(context, **small, blocks="end")
    with pytest.raises(OptionError, match="leave blocks out"):
        run(context, **small, blocks="last", tuning=Tuning())
