from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personae.errors import DataError, ModelError, OptionError
from personae.evaluation import Baselines, ItemScores, baselines, score_items
from personae.evaluation.scoring import FEW, TRIVIAL, doubts, item_id, mean_outcomes, trivial_warnings
from personae.models import render_answer, render_prompt
from personae.personas import Contrast, Pair, is_tied, polarity


def oracle(model: Any, tokenizer: Any, prompt: str, answer: str, system: str | None = None) -> tuple[float, int]:
    """One sequence, one forward, a Python loop over the answer's tokens."""
    special = tokenizer.chat_template is None
    head = tokenizer(render_prompt(tokenizer, prompt, system), add_special_tokens=special)["input_ids"]
    tail = tokenizer(render_answer(tokenizer, answer), add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([head + tail])).logits[0].double()
    logs = torch.log_softmax(logits, dim=-1)
    return sum(float(logs[len(head) + i - 1, token]) for i, token in enumerate(tail)), len(tail)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("system", [None, "You are loud."])
def test_scores_are_those_of_a_plain_forward(
    tiny_model: Callable[..., Any], contrast: Contrast, name: str, system: str | None
) -> None:
    model, tokenizer = tiny_model(name)
    few = contrast.take(5)
    scores = score_items(model, tokenizer, few, system)
    for row, pair in enumerate(few.pairs):
        for column, answer in enumerate((pair.positive, pair.negative)):
            log_p, tokens = oracle(model, tokenizer, pair.prompt, answer, system)
            assert scores.log_p[row, column] == pytest.approx(log_p, abs=2e-3)
            assert scores.tokens[row, column] == tokens
            assert scores.bytes[row, column] == len(answer.encode())
        assert scores.tied[row] == is_tied(pair.positive, pair.negative)
        assert scores.ids[row] == item_id(pair.prompt.upper())
    won = sum(
        oracle(model, tokenizer, p.prompt, p.positive, system)[0] / oracle(model, tokenizer, p.prompt, p.positive)[1]
        > oracle(model, tokenizer, p.prompt, p.negative, system)[0] / oracle(model, tokenizer, p.prompt, p.negative)[1]
        for p in few.pairs
    )
    assert scores.acc() == pytest.approx(won / 5)


def test_kinds_normalise_by_tokens_by_nothing_or_by_bytes() -> None:
    scores = ItemScores(
        np.array([[-6.0, -4.0], [-2.0, -2.0]]), np.array([[3.0, 1.0], [2.0, 2.0]]), np.array([[6.0, 8.0], [4.0, 2.0]]),
        np.array([True, False]), ("a", "b"),
    )  # fmt: skip
    assert scores.difference().tolist() == [2.0, 0.0]
    assert scores.difference("sum").tolist() == [-2.0, 0.0]
    assert scores.difference("byte").tolist() == [-0.5, 0.5]
    assert (scores.acc(), scores.acc("sum"), scores.acc("byte")) == (0.75, 0.25, 0.5)
    assert scores.outcomes().tolist() == [1.0, 0.5]
    with pytest.raises(OptionError, match="mean, sum, byte"):
        scores.acc("median")  # type: ignore[arg-type]


def test_swapping_the_poles_mirrors_the_accuracy(model_and_tokenizer: Any, contrast: Contrast) -> None:
    forward = score_items(*model_and_tokenizer, contrast.take(8))
    backward = score_items(*model_and_tokenizer, contrast.take(8).swapped())
    np.testing.assert_allclose(forward.difference(), -backward.difference(), atol=1e-5)
    assert forward.acc() == pytest.approx(1 - backward.acc())


def test_an_unpaired_contrast_is_refused(model_and_tokenizer: Any, contrast: Contrast) -> None:
    apart = replace(
        contrast, pairs=(), positive_samples=contrast.samples("loud"), negative_samples=contrast.samples("quiet")
    )
    with pytest.raises(DataError, match=r"not paired.*paired=True"):
        score_items(*model_and_tokenizer, apart)


def test_overflow_is_an_error_and_no_figure(model_and_tokenizer: Any, contrast: Contrast) -> None:
    model, tokenizer = model_and_tokenizer
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"3 of 3 items.*float32"):
        score_items(model, tokenizer, contrast.take(3))


def test_seeds_are_averaged_item_by_item(scores_of: Callable[..., ItemScores]) -> None:
    both = mean_outcomes([scores_of([1.0, -1.0, 0.0]), scores_of([1.0, 1.0, -2.0])])
    assert both.tolist() == [1.0, 0.5, 0.25]


def test_baselines_follow_their_rules() -> None:
    pairs = (
        Pair("a?", "Yes.", "No, thank you."),  # shorter right, yes right
        Pair("b?", "No, not at all.", "Yes."),  # shorter wrong, yes wrong
        Pair("c?", "Yes, a lot.", "No."),  # shorter wrong, yes right
        Pair("d?", "A sea of it.", "A bit."),  # tied; shorter wrong
        Pair("e?", "Tea", "Ale"),  # tied; as long
    )
    found = baselines(Contrast("x", "p", "n", pairs=pairs))
    assert found.shorter == pytest.approx((1 + 0 + 0 + 0 + 0.5) / 5)
    assert found.shorter_tied == pytest.approx(0.25)
    assert found.yes == pytest.approx((1 + 0 + 1 + 0.5 + 0.5) / 5)
    assert found.yes_tied == 0.5
    assert found.majority == 0.5
    untied = baselines(Contrast("x", "p", "n", pairs=pairs[:3]))
    assert untied.shorter_tied is None
    assert untied.yes_tied is None


FAIR = Baselines(0.5, 0.5, 0.6, 0.5)


def test_rules_without_meaning_are_told_above_the_limit_only() -> None:
    assert trivial_warnings(FAIR) == []
    assert trivial_warnings(Baselines(TRIVIAL, None, 1 - TRIVIAL, None)) == []  # at the limit
    [shorter, tied, yes] = trivial_warnings(Baselines(0.97, 1.0, 0.999, 0.5))
    assert "'take the shorter answer' alone scores 0.97 here" in shorter
    assert "'take the shorter answer' alone scores 1.00 on the tied items" in tied
    assert "'prefer yes, avoid no' alone scores 1.00 here" in yes
    [longer] = trivial_warnings(replace(FAIR, shorter=0.04))
    assert "'take the longer answer' alone scores 0.96" in longer
    [no] = trivial_warnings(replace(FAIR, yes=0.02))
    assert "'prefer no, avoid yes' alone scores 0.98" in no
    [label] = trivial_warnings(replace(FAIR, majority=0.95))
    assert "'take the more frequent label' alone scores 0.95" in label


OPENINGS = ("Yes, ", "No, ", "Tea ")
ANSWER = st.tuples(st.sampled_from(OPENINGS), st.integers(0, 3)).map(lambda o: o[0] + "a" * o[1])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(ANSWER, ANSWER), min_size=1, max_size=12), st.sampled_from((1, 4)))
def test_doubts_against_counting_by_hand(answers: list[tuple[str, str]], times: int) -> None:
    rows = answers * times
    contrast = Contrast("x", "plus", "minus", pairs=tuple(Pair(f"{n}?", a, b) for n, (a, b) in enumerate(rows)))
    found = doubts(contrast)

    def share(rule: Callable[[str], float], only: list[tuple[str, str]]) -> float:
        return sum(0.5 if rule(a) == rule(b) else float(rule(a) > rule(b)) for a, b in only) / len(only)

    def told(name: str, where: str) -> bool:
        return any(w.startswith(f"'{name}'") and f" {where}:" in w for w in found)

    rank = {"Yes, ": 1.0, "Tea ": 0.0, "No, ": -1.0}
    rules: list[tuple[str, str, Callable[[str], float]]] = [
        ("take the shorter answer", "take the longer answer", lambda a: -len(a)),
        ("prefer yes, avoid no", "prefer no, avoid yes", lambda a: next(rank[o] for o in OPENINGS if a.startswith(o))),
    ]
    tied = [pair for pair in rows if pair[0][:2] == pair[1][:2]]
    for name, reverse, rule in rules:
        for where, only in (("here", rows), ("on the tied items", tied)):
            score = share(rule, only) if only else 0.5
            assert told(name, where) == (score > 0.9 + 1e-12)
            assert told(reverse, where) == (score < 0.1 - 1e-12)
    for column, pole in enumerate(("plus", "minus")):
        for opening, word in (("Yes, ", "yes"), ("No, ", "no")):
            all_of_it = all(pair[column].startswith(opening) for pair in rows)
            assert any(w.startswith(f"every answer of {pole} opens like a '{word}'") for w in found) == all_of_it
    assert any("equal length" in w for w in found) == all(len(a) == len(b) for a, b in rows)
    assert any(w.startswith(f"only {len(rows)} test items") for w in found) == (len(rows) < 30)


def test_a_fair_set_gives_nothing_to_doubt_and_the_poles_are_treated_alike() -> None:
    answers = (("Yes, a lot.", "No."), ("No.", "Yes, a lot."), ("Tea for me", "An ale"), ("An ale", "Tea for me"))
    pairs = tuple(Pair(f"Number {n}?", *answers[n % 4]) for n in range(40))
    fair = Contrast("x", "p", "n", pairs=pairs)
    assert doubts(fair) == doubts(fair.swapped()) == ()
    assert doubts(replace(fair, pairs=pairs[:FEW])) == ()
    assert len(doubts(replace(fair, pairs=pairs[: FEW - 2]))) == 1
    lengths = replace(fair, pairs=tuple(Pair(p.prompt, "Blå" * 2, "Blue") for p in pairs))  # characters are not bytes
    [longer] = doubts(lengths)[:1]
    assert "'take the longer answer' alone scores 1.00" in longer
    assert "'take the shorter answer' alone scores 1.00" in doubts(lengths.swapped())[0]
    assert polarity("Blå") == "neither"  # so both poles open with the same, which is no habit
    assert not any("opens like" in w for w in doubts(lengths))
