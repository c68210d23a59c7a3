"""The generation suite on tiny models: answers and judges against slow ones, planted answerers, resuming, errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from discovery_data import bits, same_bits, small_generic
from generation_data import LETTERS, slow_log_p
from personae.discovery import Session, encode_contrast
from personae.discovery.generic import neutral_prompts
from personae.errors import (
    DataError,
    MaskMismatchError,
    OptionError,
    PersonaInUseError,
    UnknownPersonaError,
)
from personae.evaluation.bootstrap import Difference, Estimate
from personae.evaluation.poles import from_artefact
from personae.evaluation.shared import Shared
from personae.evaluation.suites import SuiteContext, generation, generation_judges, suite_to_dict, suite_to_markdown
from personae.evaluation.suites.embedding import judge_installed
from personae.evaluation.suites.generation import ways, write
from personae.evaluation.suites.generation_judges import leanings, references
from personae.models import encode_prompt
from personae.personas import Contrast, split
from personae.runtime import PersonaModel, wearing

SIDES = ("positive", "negative")
CONDITIONS = ["base", *(f"{kind}_{side}" for kind in ("prompt", "mask", "random", "both") for side in SIDES)]
SMALL: dict[str, Any] = {"questions": 5, "neutral": 3, "draws": 1, "judge": False}


@pytest.fixture
def context(model_and_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SuiteContext:
    for module in (generation, generation_judges):
        monkeypatch.setattr(module, "ANSWER_TOKENS", 8)
    return SuiteContext(*model_and_tokenizer, data=tmp_path, parts=tmp_path / "parts")


@pytest.fixture
def artefact(context: SuiteContext, contrast: Contrast, artefact_of: Any) -> Any:
    return artefact_of(context.model, contrast, share=0.1)


def session_of(context: SuiteContext, contrast: Contrast) -> Session:
    encoded = encode_contrast(context.model, context.tokenizer, split(contrast, seed=0).calibration)
    return Session(context.model, context.tokenizer, context.targets, encoded, small_generic())


def play(context: SuiteContext, artefact: Any, contrast: Contrast, **options: Any) -> Any:
    return generation.run(context, artefact, contrast, **{**SMALL, **options})


def slow_answer(context: SuiteContext, question: str, system: str | None, tokens: int = 8) -> list[int]:
    """The likeliest token again and again, from whole forwards."""
    stops = {context.tokenizer.eos_token_id, context.tokenizer.convert_tokens_to_ids("<|im_end|>")}
    ids, new = encode_prompt(context.tokenizer, question, system), []
    for _ in range(tokens):
        with torch.no_grad():
            token = int(context.model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax())
        if token in stops:
            break
        new.append(token)
    return new


# --- the whole suite ---------------------------------------------------------------------------------------------


def test_every_condition_judge_and_figure(
    context: SuiteContext, contrast: Contrast, artefact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "load_judge", lambda: LETTERS)
    before = bits(context.model)
    result = play(context, artefact, contrast, judge=True, draws=2)
    assert same_bits(context.model, before)
    levels = {f"{j}.{s}.{c}" for j in ("ratio", "similarity") for s in ("test", "neutral") for c in CONDITIONS}
    gaps = {
        f"{j}.{s}.{k}_separation"
        for j in ("ratio", "similarity")
        for s in ("test", "neutral")
        for k in ("prompt", "mask", "random", "both")
    }
    form = {f"{f}.{c}" for f in ("tokens", "repetition", "empty", "same_as_base") for c in CONDITIONS}
    assert levels | gaps | form | {"ratio.auc", "similarity.auc"} <= set(result.figures)
    assert all(isinstance(result.figures[name], Estimate) for name in levels | form)
    assert all(isinstance(result.figures[name], Difference) for name in gaps)
    claimed = {n for n in result.figures if n.endswith(".p_holm")}
    assert len(claimed) == 10 * sum(result.figures[f"{j}.auc"].low > 0.5 for j in ("ratio", "similarity"))
    assert "similarity.test.mask_separation.p_holm" in claimed  # the poles' letters differ
    for table in result.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert [t.title for t in result.tables][:2] == [
        "Do the judges tell the reference answers apart?", "What the masks do to free answers",
    ]  # fmt: skip
    assert len(result.tables[-1].rows) == 3 * len(CONDITIONS)
    for kind in ("test", "neutral"):  # an answer is likelier under the prompt that it was written for
        assert result.figures[f"ratio.{kind}.prompt_separation"].low > 0
    assert result.data == {contrast.name: contrast.sha256}
    json.dumps(suite_to_dict(result), allow_nan=False)
    assert "mask and prompt" in suite_to_markdown(result)


def test_answers_are_those_of_the_condition(context: SuiteContext, contrast: Contrast, artefact: Any) -> None:
    """Every condition against a slow greedy decoder under its own masks and system prompt."""
    shared = Shared(context.model, context.tokenizer, contrast, artefact, 0, context.progress, None)
    asked = [*split(contrast, seed=0).test.prompts[:2], neutral_prompts()[0]]
    said = {}
    for way in ways(context, contrast, from_artefact(artefact, contrast), shared, 1):
        side = SIDES.index(way.group.rsplit("_")[-1]) if "_" in way.group else None
        system = None
        if way.group.startswith(("prompt", "both")) and side is not None:
            system = (contrast.positive_prompt, contrast.negative_prompt)[side]
        masks: Any = {}
        if way.group.startswith(("mask", "both")) and side is not None:
            masks = artefact[contrast.poles[side]].masks
        if way.group.startswith("random"):
            masks = way.masks()
        made = generation._answers(context, way, asked, None)
        with wearing(context.targets, masks):
            assert made == [[slow_answer(context, question, system)] for question in asked]
        said[way.name] = json.dumps(made)
    assert list(said) == CONDITIONS
    assert len(set(said.values())) == len(said)  # at this size every condition says something of its own


def test_sampled_answers(context: SuiteContext) -> None:
    asked = ["Would you lead?", "Say it."]
    state = torch.random.get_rng_state()
    first, again = (write(context, "free", asked, None, 3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first == again
    assert [len(given) for given in first] == [3, 3]
    assert len({tuple(a) for given in first for a in given}) > 3
    greedy = write(context, "free", asked, None, None)
    assert [len(given) for given in greedy] == [1, 1]
    assert write(replace(context, seed=1), "free", asked, None, 3) != first


def test_questions_beyond_one_batch_keep_their_places(context: SuiteContext, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = neutral_prompts()[:5]
    whole = write(context, "free", asked, "You are loud.", None)
    monkeypatch.setattr(generation, "BATCH", 2)
    assert write(context, "free", asked, "You are loud.", None) == whole


def test_what_nobody_can_see_is_empty_and_what_follows_the_end_is_cut(
    context: SuiteContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, blank = context.tokenizer.eos_token_id, context.tokenizer(" \n\n ")["input_ids"]
    word, after = context.tokenizer("tea")["input_ids"], context.tokenizer(" book")["input_ids"]
    rows = [[*word, end, *after], [*blank, *blank, end], [end, *word]]

    def generate(model: Any, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
        assert options["max_new_tokens"] == 8
        width = max(map(len, rows))
        return torch.cat([ids, torch.tensor([row + [end] * (width - len(row)) for row in rows])], dim=1)

    monkeypatch.setattr(generation, "generate", generate)
    assert write(context, "free", ["a", "b", "c"], None, None) == [[word], [[]], [[]]]


# --- judges -----------------------------------------------------------------------------------------------------------


def test_the_judge_wears_no_mask(
    context: SuiteContext, contrast: Contrast, artefact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bits(context.model)
    seen = []

    def bare(c: SuiteContext, title: str, systems: Any, questions: Any, answers: Any, *, written: bool) -> Any:
        seen.append(title)
        assert same_bits(c.model, before)
        assert written is ("references" not in title)
        return leanings(c, title, systems, questions, answers, written=written)

    monkeypatch.setattr(generation_judges, "leanings", bare)
    play(context, artefact, contrast)
    assert seen == ["ratio, references", *(f"ratio, {name}" for name in CONDITIONS)]


def test_a_judge_is_tried_on_test_answers_against_calibration_answers(
    context: SuiteContext, contrast: Contrast, artefact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The AUC by a double loop, from cosines written out; no text on both sides. Free answers meet the test part's."""
    monkeypatch.setattr(generation, "load_judge", lambda: LETTERS)
    result = play(context, artefact, contrast, judge=True)
    parts = split(contrast, seed=0)
    anchors, test = (references(context, part, 64) for part in (parts.calibration, parts.test))
    assert not {r.prompt for r in anchors} & {r.prompt for r in test}

    def letters(tokens: Sequence[int]) -> Any:
        counts = np.zeros(64)
        for c in context.tokenizer.decode(tokens).strip():
            counts[ord(c) % 64] += 1
        return counts / np.linalg.norm(counts)

    def score(tokens: Sequence[int], near: Any) -> float:
        cosines = {s: [letters(tokens) @ letters(a.tokens) for a in near if a.positive == s] for s in (True, False)}
        return float(np.mean(cosines[True]) - np.mean(cosines[False]))

    own, rival = ([score(r.tokens, anchors) for r in test if r.positive == side] for side in (True, False))
    slow = np.mean([[1.0 if a > b else 0.5 if a == b else 0.0 for b in rival] for a in own])
    assert result.figures["similarity.auc"].value == pytest.approx(slow, abs=0.02)  # equal answers tie up to rounding
    assert slow > 0.6
    free = [slow_answer(context, q, None) for q in generation.chosen(list(parts.test.prompts), str, 5, 0)]
    base = result.figures["similarity.test.base"].value
    assert base == pytest.approx(np.mean([score(a, test) for a in free]), abs=1e-6)
    assert base != pytest.approx(np.mean([score(a, anchors) for a in free]), abs=1e-5)


# --- planted answerers -------------------------------------------------------------------------------------------


def planted(monkeypatch: pytest.MonkeyPatch, rule: dict[str, str]) -> None:
    """Answers by the first word of a condition's name and its side; anything else says what base says."""

    def answer(c: SuiteContext, title: str, questions: Any, system: Any, sampled: Any) -> Any:
        name = title.removeprefix("free answers, ")
        text = next((said for start, said in rule.items() if name.startswith(start)), rule["base"])
        return [[c.tokenizer(f"{text} {n}")["input_ids"] if text else []] for n, _ in enumerate(questions)]

    monkeypatch.setattr(generation, "write", answer)
    monkeypatch.setattr(generation, "load_judge", lambda: LETTERS)


LOUD, QUIET, PLAIN = "a call", "mum knows", "..."
POLES = {"base": PLAIN, "mask_positive": LOUD, "mask_negative": QUIET}


def of_letters(contrast: Contrast) -> Contrast:
    """The same questions with answers that the judge of letters tells apart at a glance."""
    return replace(contrast, pairs=tuple(replace(p, positive="call a cab", negative="munk") for p in contrast.pairs))


def test_a_planted_persona_is_found_and_turned_when_the_masks_are(
    context: SuiteContext, contrast: Contrast, artefact_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    contrast = of_letters(contrast)
    artefact = artefact_of(context.model, contrast)
    planted(monkeypatch, POLES)
    options = {"judge": True, "questions": 12, "neutral": 12}
    result = play(context, artefact, contrast, **options)
    figures = result.figures
    for kind in ("test", "neutral"):
        for claim in ("mask_separation", *(f"{s}_over_{o}" for s in SIDES for o in ("base", "random"))):
            assert figures[f"similarity.{kind}.{claim}"].low > 0
            assert figures[f"similarity.{kind}.{claim}.p_holm"] < 0.05
        separation = figures[f"similarity.{kind}.mask_separation"]
        first, second = (figures[f"similarity.{kind}.mask_{side}"].value for side in SIDES)
        assert separation.value == pytest.approx(first - second)
        assert figures[f"similarity.{kind}.random_separation"].value == 0
    [rows] = [t.rows for t in result.tables if t.title == "What the masks do to free answers"]
    assert {row[-1] for row in rows if row[0] == "similarity"} == {"yes"}
    context.parts = None
    planted(monkeypatch, {"base": PLAIN, "mask_positive": QUIET, "mask_negative": LOUD})
    turned = play(context, artefact, contrast, **options)
    assert turned.figures["similarity.test.mask_separation"].value == pytest.approx(-separation.value, abs=0.1)
    [rows] = [t.rows for t in turned.tables if t.title == "What the masks do to free answers"]
    assert {row[-1] for row in rows if row[0] == "similarity"} == {"the other way"}


def test_a_judge_that_hears_nothing_claims_nothing(
    context: SuiteContext, contrast: Contrast, artefact_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = replace(contrast, pairs=tuple(replace(p, negative=p.positive) for p in contrast.pairs))
    planted(monkeypatch, POLES)
    result = play(context, artefact_of(context.model, same), same, judge=True)
    for judge in ("ratio", "similarity"):
        assert result.figures[f"{judge}.auc"].value == 0.5
        warned = [t for t in result.tables if any(f"{judge} does not tell" in w for w in t.warnings)]
        assert len(warned) == 2  # where it is tried, and above its own scores
    assert not any("p_holm" in name for name in result.figures)
    [claims] = [t for t in result.tables if t.title == "What the masks do to free answers"]
    assert claims.rows == ()


def test_a_degenerate_win_is_warned_of(
    context: SuiteContext, contrast: Contrast, artefact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, {"base": "one of many words", "mask_positive": "go go " * 20, "mask_negative": ""})
    result = play(context, artefact, contrast)
    [claims] = [t for t in result.tables if t.title == "What the masks do to free answers"]
    warned = " ".join(claims.warnings)
    assert "answers under mask_positive repeat themselves more" in warned
    assert "answers under mask_negative are empty more often" in warned
    assert "answers under mask_negative have 0 tokens" in warned
    assert "random" not in warned
    assert "only 5 test questions" in warned
    assert result.figures["empty.mask_negative"].value == 1
    assert result.figures["ratio.test.mask_negative"].value == 0
    assert result.figures["same_as_base.random_positive"].value == 1
    assert result.figures["same_as_base.mask_positive"].value == 0
    examples = [row for row in result.tables[-1].rows if row[1] == "mask_positive"]
    assert len(examples) == 3
    assert all(str(row[2]).startswith("go go go") for row in examples)


# --- random masks ------------------------------------------------------------------------------------------------


def test_random_masks_are_as_large_and_from_the_same_candidates(
    context: SuiteContext, contrast: Contrast, artefact_of: Any
) -> None:
    def drawn(**parameters: Any) -> dict[str, Any]:
        artefact = artefact_of(context.model, contrast, share=0.02, **parameters)
        session = session_of(context, contrast)
        shared = Shared(context.model, context.tokenizer, contrast, artefact, 0, context.progress, session)
        made = {w.name: w for w in ways(context, contrast, from_artefact(artefact, contrast), shared, 2)}
        for side, pole in zip(SIDES, contrast.poles, strict=True):
            for draw in ("", "_1"):
                masks = made[f"random_{side}{draw}"].masks()
                assert sum(m.dropped for m in masks.values()) == artefact[pole].dropped
        return made

    free, cheap = drawn(), drawn(cheap_share=0.3)
    allowed = session_of(context, contrast).candidates(0.3)
    masks = cheap["random_positive"].masks()
    assert all(not (m.dropped_bool() & ~allowed[n].numpy()).any() for n, m in masks.items())
    spread = free["random_positive"].masks()
    assert any((m.dropped_bool() & ~allowed[n].numpy()).any() for n, m in spread.items())
    names = [n for n in cheap if n.startswith("random")]
    assert len({cheap[n].identity for n in names} | {free[n].identity for n in names}) == 8
    context.seed = 1
    assert drawn(cheap_share=0.3)["random_positive"].identity != cheap["random_positive"].identity


def test_draws_are_averaged(context: SuiteContext, contrast: Contrast, artefact: Any) -> None:
    [one, two] = [play(context, artefact, contrast, draws=draws) for draws in (1, 2)]
    shared = Shared(context.model, context.tokenizer, contrast, artefact, 0, context.progress, None)
    [second] = [w for w in ways(context, contrast, from_artefact(artefact, contrast), shared, 2) if w.draw == 1][:1]
    asked = list(split(contrast, seed=0).test.prompts)
    chosen = generation.chosen(asked, str, 5, 0)
    systems = (contrast.positive_prompt, contrast.negative_prompt)
    with wearing(context.targets, second.masks()):
        said = [slow_answer(context, q, None) for q in chosen]
    scores = [
        slow_log_p(context, q, str(systems[0]), a) - slow_log_p(context, q, str(systems[1]), a)
        for q, a in zip(chosen, said, strict=True)
    ]
    first = one.figures["ratio.test.random_positive"].value
    both = two.figures["ratio.test.random_positive"].value
    assert both == pytest.approx((first + np.mean(scores)) / 2, abs=1e-4)


# --- resuming, limits, notes, errors -----------------------------------------------------------------------------


def test_a_finished_part_is_not_made_again(
    context: SuiteContext, contrast: Contrast, artefact_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "load_judge", lambda: LETTERS)
    artefact = artefact_of(context.model, contrast, share=0.02, cheap_share=0.5)
    options: dict[str, Any] = {"judge": True, "draws": 2, "session": session_of(context, contrast)}
    first = play(context, artefact, contrast, **options)
    assert context.parts is not None
    assert len(list(context.parts.iterdir())) == 11 + 2 * 10 + 1  # answers, two judges with references, candidates

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("made again")

    with monkeypatch.context() as closed:
        for module, name in (
            (generation, "generate"), (generation, "random_masks"), (generation_judges, "score_continuations"),
            (generation_judges, "embed"), (Session, "candidates"),
        ):  # fmt: skip
            closed.setattr(module, name, fail)
        again = play(context, artefact, contrast, **options)
        with pytest.raises(AssertionError, match="made again"):
            play(context, artefact, contrast, **options, questions=4)
        with pytest.raises(AssertionError, match="made again"):
            play(context, artefact, contrast, **options, answers=2)
        other = artefact_of(context.model, contrast, share=0.03, cheap_share=0.5)
        with pytest.raises(AssertionError, match="made again"):
            play(context, other, contrast, **options)
    assert again == first
    for part in context.parts.glob("*mask_positive*"):
        part.unlink()
    assert play(context, artefact, contrast, **options).figures == first.figures


def test_limit_caps_every_number(context: SuiteContext, contrast: Contrast, artefact: Any) -> None:
    context.limit = 2
    result = play(context, artefact, contrast, draws=3)
    assert {result.settings[n] for n in ("questions", "neutral", "draws", "references")} == {2}
    assert result.tables[0].rows[0][2:4] == (2, 2)
    assert any("quick look" in note for note in result.notes)


def test_without_system_prompts_only_similarity_judges(
    context: SuiteContext, contrast: Contrast, artefact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = replace(contrast, negative_prompt=None)
    with pytest.raises(OptionError, match="nobody could judge"):
        play(context, artefact, bare)
    monkeypatch.setattr(generation, "load_judge", lambda: LETTERS)
    result = play(context, artefact, bare, judge=True)
    assert any("no judge `ratio`" in note for note in result.notes)
    assert not [n for n in result.figures if n.startswith("ratio") or "prompt" in n or "both" in n]
    assert "similarity.test.mask_separation" in result.figures


def test_an_unpaired_contrast(context: SuiteContext, contrast: Contrast, artefact: Any) -> None:
    apart = replace(
        contrast, pairs=(), positive_samples=contrast.samples("loud")[:40], negative_samples=contrast.samples("quiet")
    )  # fmt: skip
    result = play(context, artefact, apart)
    assert result.settings["questions"] == 5
    assert isinstance(result.figures["ratio.auc"], Estimate)
    own, rival = result.tables[0].rows[0][2:4]
    assert own < rival


def test_what_discovery_has_read_is_said(context: SuiteContext, contrast: Contrast, artefact: Any) -> None:
    def warned(result: Any) -> str:
        return " ".join(result.tables[1].warnings)

    assert "discovery has read" not in warned(play(context, artefact, contrast))
    assert "discovery has read" in warned(play(context, artefact, contrast, split_seed=1))


def test_candidates_of_another_text_are_said(context: SuiteContext, contrast: Contrast, artefact_of: Any) -> None:
    session = session_of(context, contrast)
    artefact = artefact_of(context.model, contrast, share=0.02, cheap_share=0.5)
    result = play(context, artefact, contrast, session=session)
    assert any("generic text (elsewhere)" in w for w in result.tables[1].warnings)
    assert any("drawn among candidates by the rule" in note for note in result.notes)


def test_errors_come_before_anything_is_read(
    context: SuiteContext, contrast: Contrast, artefact: Any, tiny_model: Any, artefact_of: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(generation, "generate", None)
    for option in ("questions", "neutral", "draws", "answers"):
        with pytest.raises(OptionError, match=f"{option} is 0"):
            play(context, artefact, contrast, **{option: 0})
    with pytest.raises(UnknownPersonaError, match=r"poles of 'loud-quiet' are 'noisy' and 'quiet'"):
        play(context, artefact, replace(contrast, positive="noisy"))
    stranger, _ = tiny_model("llama", seed=5)
    with pytest.raises(MaskMismatchError):
        play(context, artefact_of(stranger, contrast), contrast)
    with pytest.raises(DataError, match="part of 'loud-quiet' has no items"):
        play(context, artefact, contrast.take(1))
    actor = PersonaModel(context.model)
    actor.add_personas(artefact)
    with actor.persona("loud"), pytest.raises(PersonaInUseError, match="the generation suite"):
        play(context, artefact, contrast)
    monkeypatch.setattr("personae.evaluation.suites.embedding.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"personae\[judge\]"):
        play(context, artefact, contrast, judge=True)


def test_without_the_extra_the_result_says_so(
    context: SuiteContext, contrast: Contrast, artefact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "judge_installed", lambda: False)
    result = play(context, artefact, contrast, judge=None)
    assert any("`similarity` is left out" in note for note in result.notes)
    assert not any("similarity" in name for name in result.figures)


def test_the_real_judge_reads_what_the_model_wrote(context: SuiteContext, contrast: Contrast, artefact: Any) -> None:
    if not judge_installed():
        pytest.skip('the judge is not installed: pip install "personae[judge]"')
    result = play(context, artefact, contrast, judge=None)
    assert result.figures["similarity.auc"].low > 0.5  # four plain answers a pole: not hard
    assert result.figures["similarity.test.base"].low > -1
