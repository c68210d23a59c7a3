from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from personae.analysis.results import plain
from personae.analysis.trace import trace
from personae.analysis.trace_result import Trace
from personae.errors import OptionError
from trace_data import ANSWER, QUESTION, random_artefact


@pytest.fixture(scope="module")
def found(tiny_model: Callable[..., Any]) -> Trace:
    model, tokenizer = tiny_model("llama")
    return trace(model, tokenizer, random_artefact(model, "lead", "follow"), ANSWER, question=QUESTION)


def test_the_dictionary_is_json_and_says_everything(found: Trace) -> None:
    said = json.loads(json.dumps(plain(found.to_dict())))
    tokens = len(found.tokens)
    assert "".join(said["tokens"]) == f"{ANSWER}<|im_end|>"
    assert said["question"] == QUESTION
    assert said["verdict"]["sentence"] == found.verdict.sentence
    assert said["personas"] == ["lead", "follow"]
    assert said["verdict"]["scores"] == dict(zip(said["personas"], found.verdict.scores, strict=True))
    assert list(said["log_p"]) == list(said["share"]) == ["lead", "follow"]
    np.testing.assert_allclose(said["log_p"]["follow"], found.worn[1])
    np.testing.assert_allclose(said["relative"]["lead"], found.relative[0])
    assert said["over_base"]["lead"] == pytest.approx(float((found.worn[0] - found.base).mean()))
    assert np.shape(said["share"]["lead"]) == (len(said["layers"]), tokens) == (6, tokens)
    assert said["layers"][0] == {"block": 0, "kind": "attention"}
    assert np.shape(said["overall_share"]["follow"]) == (6,)


def test_a_row_a_token_and_persona(found: Trace) -> None:
    frame = found.frame()
    assert len(frame) == 2 * len(found.tokens)
    for row in frame.itertuples():
        p = found.personas.index(row.persona)
        assert row.token == found.tokens[row.at]
        assert row.gain == pytest.approx(row.log_p - row.base)
        assert row.relative == pytest.approx(found.relative[p, row.at])


def test_a_row_a_token_persona_and_layer(found: Trace) -> None:
    frame = found.layer_frame()
    assert len(frame) == found.share.size
    for row in frame.sample(20, random_state=0).itertuples():
        layer = found.layers.index((row.block, row.kind))
        assert row.share == found.share[found.personas.index(row.persona), layer, row.at]


def test_without_pandas_the_extra_is_named(found: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(OptionError, match=r"personae\[analysis\]"):
        found.frame()


def test_without_shares_there_is_no_frame_of_layers(tiny_model: Callable[..., Any]) -> None:
    model, tokenizer = tiny_model("llama")
    bare = trace(model, tokenizer, random_artefact(model, "lead", "follow"), ANSWER, flow=False)
    assert bare.to_dict()["share"] is bare.to_dict()["overall_share"] is None
    assert bare.layers == ()
    with pytest.raises(OptionError, match="flow=False"):
        bare.layer_frame()
