"""What decides a kept part, and what becomes of parts that are damaged or were not finished."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from personae.discovery import versions
from personae.errors import DataError
from personae.evaluation.suites import SuiteContext


@pytest.fixture
def context(model_and_tokenizer: Any, tmp_path: Path) -> SuiteContext:
    (tmp_path / "items.txt").write_text("one")
    return SuiteContext(*model_and_tokenizer, data=tmp_path, parts=tmp_path / "parts")


def made(context: SuiteContext, **settings: Any) -> bool:
    """Whether a part was computed; False where it was kept."""
    calls: list[int] = []

    def compute() -> list[int]:
        calls.append(1)
        return [1]

    assert context.part("a part", settings, compute) == [1]
    return bool(calls)


def test_a_part_is_made_once(context: SuiteContext) -> None:
    assert made(context)
    assert not made(context)
    assert not made(replace(context, _fingerprint="", _targets=[]))
    assert made(replace(context, parts=None))


def other_weights(context: SuiteContext) -> SuiteContext:
    model = copy.deepcopy(context.model)
    other = replace(context, model=model, _targets=[], _fingerprint="")
    with torch.no_grad():
        other.targets[0].parameter[0, 0] += 1
    return other


def other_norm(context: SuiteContext) -> SuiteContext:
    """The same targets, so the same fingerprint."""
    model = copy.deepcopy(context.model)
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1  # type: ignore[operator, union-attr]
    other = replace(context, model=model, _targets=[], _fingerprint="", _surroundings="")
    assert other.fingerprint == context.fingerprint
    return other


def other_template(context: SuiteContext) -> SuiteContext:
    tokenizer: Any = copy.deepcopy(context.tokenizer)
    tokenizer.chat_template = "Be brief.\n" + tokenizer.chat_template
    return replace(context, tokenizer=tokenizer)


def other_tokens(context: SuiteContext) -> SuiteContext:
    """The same template; every text is cut into other tokens."""
    tokenizer: Any = copy.deepcopy(context.tokenizer)
    tokenizer.add_tokens(["think"])
    return replace(context, tokenizer=tokenizer)


def other_file(context: SuiteContext) -> SuiteContext:
    other = replace(context, read={})
    other.file("items.txt", "nowhere")
    return other


@pytest.mark.parametrize(
    "changed",
    [
        other_weights,
        other_norm,
        other_template,
        other_tokens,
        other_file,
        lambda c: replace(c, seed=1),
        lambda c: replace(c, limit=3),
        lambda c: replace(c, model=copy.deepcopy(c.model).double()),
    ],
)
def test_whatever_decides_a_part_makes_it_anew(
    context: SuiteContext, changed: Callable[[SuiteContext], SuiteContext]
) -> None:
    assert made(context)
    assert made(changed(context))
    assert not made(context)


def test_settings_and_versions_decide_a_part(context: SuiteContext, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(context, items=1)
    assert made(context, items=2)
    for package in ("personae", "torch", "transformers"):
        monkeypatch.setattr(versions.__globals__[package], "__version__", "another")
        assert made(context, items=1)


def test_a_damaged_part_is_made_anew_and_an_unfinished_one_leaves_nothing(context: SuiteContext) -> None:
    assert context.parts is not None

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        context.part("a part", {}, fail)
    assert not context.parts.exists()
    assert made(context)
    [path] = context.parts.iterdir()
    path.write_text("[1")
    assert made(context)
    assert not made(context)


def test_files_are_hashed_and_missing_ones_named(context: SuiteContext) -> None:
    context.file("items.txt", "nowhere")
    assert context.read == {"items.txt": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"}
    with pytest.raises(DataError, match=r"needs absent.txt under .*the moon"):
        context.file("absent.txt", "the moon")
