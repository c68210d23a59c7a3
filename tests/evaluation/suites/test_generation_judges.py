"""Both judges against sums written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from generation_data import LETTERS, slow_log_p
from personae.errors import ModelError
from personae.evaluation.suites import SuiteContext, generation_judges
from personae.evaluation.suites.generation_judges import leanings, nearness, references
from personae.models import find_targets
from personae.personas import Contrast, split


@pytest.fixture
def context(model_and_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SuiteContext:
    monkeypatch.setattr(generation_judges, "ANSWER_TOKENS", 8)
    return SuiteContext(*model_and_tokenizer, data=tmp_path)


def test_ratio_is_the_slow_ratio(context: SuiteContext) -> None:
    questions = ["Would you lead?", "What of tea, on a free Saturday?", "Nothing?"]
    answers = [[[40, 41, 42], []], [[50, 51], [60]], [[]]]
    systems = ("You are loud.", "You are quiet and you like it.")
    found = leanings(context, "test", systems, questions, answers)
    for question, given, scored in zip(questions, answers, found, strict=True):
        for answer, score in zip(given, scored, strict=True):
            if not answer:
                assert score == 0
                continue
            own, rival = (slow_log_p(context, question, system, answer) for system in systems)
            assert score == pytest.approx(own - rival, abs=1e-4)
            assert abs(score) > 1e-3
    turned = leanings(context, "test", (systems[1], systems[0]), questions, answers)
    assert np.allclose([s for row in turned for s in row], [-s for row in found for s in row], atol=1e-4)
    assert leanings(context, "test", systems, questions[:1], [[[]]]) == [[0.0]]


def test_similarity_by_loops(context: SuiteContext) -> None:
    def letters(text: str) -> Any:
        counts = np.zeros(64)
        for c in text:
            counts[ord(c) % 64] += 1
        return counts / np.linalg.norm(counts)

    own, rival = ["abc", "aab"], ["xyz", "xxz", "zz"]
    texts = [["aa", ""], ["xz", "ax"]]
    near = [np.stack([letters(t) for t in side]) for side in (own, rival)]
    found = nearness(LETTERS, near, texts)
    for given, scored in zip(texts, found, strict=True):
        for text, score in zip(given, scored, strict=True):
            slow = 0.0
            if text:
                slow = sum(letters(text) @ letters(r) for r in own) / 2
                slow -= sum(letters(text) @ letters(r) for r in rival) / 3
            assert score == pytest.approx(slow, abs=1e-6)
    assert nearness(LETTERS, near, [[""], [""]]) == [[0.0], [0.0]]


def test_references_are_cut_and_have_no_end_of_turn(context: SuiteContext, contrast: Contrast) -> None:
    test = split(contrast, seed=0).test
    found = references(context, test, 4)
    assert [r.positive for r in found] == [True] * 4 + [False] * 4
    assert [r.prompt for r in found[:4]] == [r.prompt for r in found[4:]]  # the same questions for both poles
    answers = {(p.prompt, side): text for p in test.pairs for side, text in ((True, p.positive), (False, p.negative))}
    for r in found:
        whole = context.tokenizer(answers[r.prompt, r.positive])["input_ids"]
        assert list(r.tokens) == whole[:8]
    assert any(len(context.tokenizer(a)["input_ids"]) > 8 for a in answers.values())


def test_without_a_template_references_begin_as_answers_do(tiny_model: Any, contrast: Contrast, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama", template=False)
    found = references(SuiteContext(model, tokenizer, tmp_path), split(contrast, seed=0).test, 1)
    assert tokenizer.decode(found[0].tokens)[0] == " "
    assert tokenizer.eos_token_id not in found[0].tokens


def test_a_model_that_overflows_is_an_error(context: SuiteContext) -> None:
    with torch.no_grad():
        find_targets(context.model)[0].parameter.fill_(float("nan"))
    with pytest.raises(ModelError, match="ratio, x: a log-probability is no finite number"):
        leanings(context, "ratio, x", ("You are loud.", "You are quiet."), ["Would you?"], [[[40, 41]]])
