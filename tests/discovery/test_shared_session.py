"""`discover` on a session of the caller's: the same masks as on its own, nothing computed twice, strangers refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from discovery_data import small_contrast, small_generic
from personae.discovery import discover, open_session
from personae.errors import OptionError
from personae.evaluation import evaluate

TinyModel = Callable[..., tuple[Any, Any]]
SETTINGS: dict[str, Any] = {"split_seed": None, "cheap_share": 0.3, "drop_share": 0.01}


@pytest.mark.filterwarnings("ignore")
def test_masks_are_those_of_a_session_of_its_own_and_statistics_are_shared(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    contrast = small_contrast(6)
    alone = discover(model, tokenizer, contrast, generic=small_generic(), resume=False, **SETTINGS)
    passes: list[str] = []

    def noted(title: str, total: int) -> Any:
        from personae.discovery.progress import silent

        passes.append(title)
        return silent(title, total)

    session = open_session(model, tokenizer, contrast, generic=small_generic(), resume=False, progress=noted)
    shared = discover(model, tokenizer, contrast, session=session, **SETTINGS)
    for name in alone.names:
        assert dict(shared[name].masks) == dict(alone[name].masks)
    evaluate(
        model, tokenizer, contrast, shared, session=session, split_seed=None, random_seeds=1, resamples=20,
        progress=noted,
    )  # fmt: skip
    assert passes.count("statistics: generic text") == 1


def test_a_session_of_something_else_is_refused(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    contrast = small_contrast(6)
    session = open_session(model, tokenizer, contrast, generic=small_generic(), resume=False)
    with pytest.raises(OptionError, match="not opened on"):
        discover(model, tokenizer, small_contrast(4), session=session, **SETTINGS)
    with pytest.raises(OptionError, match="not opened on"):
        discover(tiny_model("llama", seed=1)[0], tokenizer, contrast, session=session, **SETTINGS)
    with pytest.raises(OptionError, match="generic text and targets"):
        discover(model, tokenizer, contrast, session=session, targets="*mlp*", **SETTINGS)
    with pytest.raises(OptionError, match="tokens="):
        discover(model, tokenizer, contrast, session=session, tokens="all", **SETTINGS)
