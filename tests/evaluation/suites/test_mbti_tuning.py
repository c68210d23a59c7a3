"""MBTI masks tuned on dev: the masks of a point, what is chosen, budgets, the suite with it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from discovery_data import bits, same_bits
from mbti_files import write_mbti_files
from personae.discovery import GenericText, Session, capability, open_session
from personae.errors import DataError, OptionError
from personae.evaluation.bootstrap import Difference, Estimate
from personae.evaluation.suites import SuiteContext, mbti_tuning, suite_to_dict, suite_to_markdown
from personae.evaluation.suites.mbti import run
from personae.evaluation.suites.mbti_blocks import spans, third
from personae.evaluation.suites.mbti_data import Answer, Dimension, Sizes, items, read_dimension
from personae.evaluation.suites.mbti_masks import Finder, Finding, Masks
from personae.evaluation.suites.mbti_readings import Reader
from personae.evaluation.suites.mbti_report import Draws
from personae.evaluation.suites.mbti_tuning import Point, Tuned, Tuner, Tuning, by_preference
from personae.evaluation.suites.mbti_tuning_report import tuning_tables
from personae.models import answer_nll
from personae.personas import load_contrast, split
from personae.personas.split import normalised
from personae.runtime import wearing

SIZES = Sizes(calibration=8, dev=4, test=6, tokens=16)
GRID = Tuning(shares=(0.01, 0.005), couples=4)
SMALL: dict[str, Any] = {
    "dimensions": ("EI", "SN"), "rows": 8, "test": 6, "others": 2, "blends": 2, "tokens": 16, "drop_share": 0.01,
    "resamples": 50, "questionnaire": False,
}  # fmt: skip


@pytest.fixture
def context(model_and_tokenizer: Any, tmp_path: Path) -> SuiteContext:
    model, tokenizer = model_and_tokenizer
    write_mbti_files(tmp_path, 50)
    return SuiteContext(model, tokenizer, tmp_path, tmp_path / "parts")


def tune(context: SuiteContext, generic: GenericText, tuning: Tuning, name: str = "EI") -> tuple[Tuned, Finder]:
    """The grid of one dimension."""
    finder = Finder(context, Finding(drop_share=0.01), {"rows": 8}, generic, keep_gains=True)
    reader = Reader(context, {**finder.key, "test": 6})
    within = spans(context.model, context.targets, tuning.ranges)
    return Tuner(finder, reader, tuning, within).tune(dimension(context, name)), finder


def dimension(context: SuiteContext, name: str = "EI") -> Dimension:
    return read_dimension(context.model, context.tokenizer, context.data / f"mbti/{name}_dev.jsonl", name, SIZES)


def blocks_with_zeros(context: SuiteContext) -> set[int]:
    """Blocks in which a weight is zero now; a random model has none."""
    return {t.block for t in context.targets if bool((t.weight == 0).any())}


def dropped_positions(masks: Masks) -> set[tuple[str, int]]:
    return {(name, int(p)) for name, mask in masks.items() for p in mask.positions()}


# ------------------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("name", ["EI", "SN"])
def test_masks_of_a_point_are_the_best_candidates_of_its_blocks(
    context: SuiteContext, generic: GenericText, name: str
) -> None:
    data = dimension(context, name)
    tuned, _ = tune(context, generic, Tuning(("last",), (0.01,), 4), name)
    number = round(0.01 * sum(t.size for t in context.targets))
    assert tuned.found.dropped == (number, number)
    exchanged = tuple((n, p) if place % 2 else (p, n) for place, (p, n) in enumerate(data.calibration))
    for couples, pair in ((data.calibration, tuned.found.persona), (exchanged, tuned.found.shuffled)):
        session = open_session(context.model, context.tokenizer, data.contrast, generic=generic, resume=False)
        session = session.with_calibration(items(couples, data.paired))  # one pass over all of them
        candidates = session.candidates(0.6)
        for masks, sign in zip(pair, (1, -1), strict=True):
            worth = [
                (float(gain / max(price, 1e-9)), t.name, place)
                for t in context.targets if t.block == 2
                for place, (gain, price, cheap) in enumerate(
                    zip(
                        (sign * session.gains[t.name]).flatten().tolist(),
                        (t.weight.abs() * session.fisher[t.name].sqrt()).flatten().tolist(),
                        candidates[t.name].flatten().tolist(),
                        strict=True,
                    )
                )
                if cheap and gain > 0
            ]  # fmt: skip
            best = {(where, place) for _, where, place in sorted(worth, reverse=True)[:number]}
            ours = dropped_positions(masks)
            assert len(ours) == number
            assert len(best & ours) > 0.98 * number  # float sums in another order may exchange a near tie


def test_a_smaller_share_is_the_head_of_a_larger_one(context: SuiteContext, generic: GenericText) -> None:
    small, large = (tune(context, generic, Tuning(("first",), (share,), 4))[0] for share in (0.005, 0.01))
    for side in (0, 1):
        few, many = (dropped_positions(t.found.persona[side]) for t in (small, large))
        assert few < many
        assert 2 * len(few) == pytest.approx(len(many), abs=1)


def test_random_masks_have_the_size_and_the_blocks_that_were_chosen(
    context: SuiteContext, generic: GenericText
) -> None:
    tuned, finder = tune(context, generic, Tuning(("middle",), (0.005,), 4))
    data = dimension(context)
    allowed = finder.session(data).candidates(0.6)
    for masks, number in zip(finder.random(data, tuned.found, 0), tuned.found.dropped, strict=True):
        assert sum(m.dropped for m in masks.values()) == number
        assert all(allowed[n].flatten()[m.positions()].all() for n, m in masks.items())
        assert {t.block for t in context.targets if masks[t.name].dropped} == {1}


# ---------------------------------------------------------------------------------------------------- choices


def test_dev_auc_is_that_of_every_couple_and_reads_dev_only(context: SuiteContext, generic: GenericText) -> None:
    tuned, _ = tune(context, generic, Tuning(("all",), (0.01,), 4), "SN")
    parts = split(
        load_contrast(context.data / "mbti/SN_dev.jsonl", format="machine-mindset", positive="S", negative="N")
    )
    assert len(tuned.dev) == 8
    assert {a.instruction for a in tuned.dev} <= {normalised(p) for p in parts.dev.prompts}

    def slow(masks: Masks) -> list[float]:
        with wearing(context.targets, masks):
            return [float(-row[0] / row[1]) for a in tuned.dev for row in answer_nll(context.model, [a.encoded])]

    first, second = (np.array(slow(masks)) for masks in tuned.found.persona)
    scores = first - second
    assert np.allclose(tuned.chosen[0].scores, scores, atol=1e-4)
    won = [1.0 if p > n else 0.5 if p == n else 0.0 for p in scores[0::2] for n in scores[1::2]]
    assert tuned.chosen[0].auc == pytest.approx(sum(won) / len(won))


def test_equal_aucs_prefer_the_smaller_share_then_more_blocks() -> None:
    def point(where: str, share: float, auc: float) -> Point:
        return Point("true", where, third(where, 9), share, np.zeros(2), auc)

    points = [
        point("first", 0.002, 0.7), point("all", 0.002, 0.7), point("last", 0.001, 0.7), point("middle", 0.001, 0.7),
        point("all", 0.001, 0.6), point("first", 0.004, 0.8),
    ]  # fmt: skip
    ordered = [(p.where, p.share) for p in by_preference(points)]
    assert ordered == [
        ("first", 0.004), ("last", 0.001), ("middle", 0.001), ("all", 0.002), ("first", 0.002), ("all", 0.001),
    ]  # fmt: skip


def plant(monkeypatch: pytest.MonkeyPatch) -> None:
    """True labels part the poles in the last third only, whatever the share; shuffled ones in the first at 0.01."""

    def read(context: SuiteContext, answers: Sequence[Answer], title: str) -> list[float]:
        told = re.search(r"dev, (\w+) labels, (\w+) blocks, ([\d.]+), mask (\w)", title)
        assert told is not None
        labels, where, at, letter = told.groups()
        assert blocks_with_zeros(context) == {"all": {0, 1, 2}, "first": {0}, "middle": {1}, "last": {2}}[where]
        knows = where == "last" if labels == "true" else (where, at) == ("first", "0.01")
        strength = (1.0 if knows else 0.0) * (1 if letter == "E" else -1)
        return [strength * (1 if place % 2 == 0 else -1) for place in range(len(answers))]

    monkeypatch.setattr(mbti_tuning, "mean_log_p", read)


def test_what_is_planted_is_chosen_by_the_method_and_by_its_control(
    context: SuiteContext, generic: GenericText, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    tuned, _ = tune(context, generic, GRID)
    own, control = tuned.chosen
    assert (own.where, own.share, own.auc) == ("last", 0.005, 1.0)
    assert (control.where, control.share, control.auc) == ("first", 0.01, 1.0)
    assert {(p.labels, p.where, p.share): p.auc for p in tuned.grid if p.auc != 0.5} == {
        ("true", "last", 0.01): 1.0, ("true", "last", 0.005): 1.0, ("shuffled", "first", 0.01): 1.0,
    }  # fmt: skip
    assert len(tuned.grid) == 16
    for pair, block, share in ((tuned.found.persona, 2, 0.005), (tuned.found.shuffled, 0, 0.01)):
        for masks in pair:
            assert {t.block for t in context.targets if masks[t.name].dropped} == {block}
            assert sum(m.dropped for m in masks.values()) == round(share * sum(t.size for t in context.targets))
    assert tuned.found.inside == {t.name for t in context.targets if t.block == 2}


def test_a_budget_passes_over_points_and_reads_no_more_than_it_must(
    context: SuiteContext, generic: GenericText, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    size = sum(t.size for t in context.targets)

    def bound(self: Finder, masks: Masks, session: Any) -> float:
        """A mask that touches the last block costs ten times what others do."""
        where = {t.block for t in context.targets if masks[t.name].dropped}
        return sum(m.dropped for m in masks.values()) / size * (10.0 if 2 in where else 1.0)

    monkeypatch.setattr(Finder, "bound", bound)
    tuned, _ = tune(context, generic, replace(GRID, max_capability_loss=0.02))
    assert [(p.where, p.share) for p in tuned.chosen] == [("first", 0.005), ("first", 0.01)]
    read = {(p.labels, p.where, p.share): p.bound for p in tuned.grid if p.bound is not None}
    assert read == pytest.approx(
        {
            ("true", "last", 0.005): 0.05, ("true", "last", 0.01): 0.1, ("true", "all", 0.005): 0.05,
            ("true", "first", 0.005): 0.005, ("shuffled", "first", 0.01): 0.01,
        },
        rel=0.01,
    )  # fmt: skip
    tight = replace(GRID, max_capability_loss=0.001)
    none, _ = tune(replace(context, parts=context.data / "others"), generic, tight)
    assert [(p.where, p.share) for p in none.chosen] == [("first", 0.005)] * 2  # the lowest bound of all
    figures = {"EI": dict.fromkeys(("tuned_blocks", "tuned_share", "auc_dev", "auc", "auc_untuned"), 0.0)}
    every = {"EI": {**figures["EI"], "auc_minus_untuned": Difference(0.0, 0.0, 0.0, 1.0)}}
    table, grid = tuning_tables({"EI": none}, every, tight, Draws(20, 0))
    assert [w.split(":")[0] for w in table.warnings] == ["EI, true labels", "EI, shuffled labels"]
    assert [row[-1] for row in grid.rows].count("yes") == 2
    kept, _ = tuning_tables({"EI": tuned}, every, replace(GRID, max_capability_loss=0.02), Draws(20, 0))
    assert not kept.warnings


def test_method_and_control_get_one_round_each_within_a_budget_too(
    context: SuiteContext, generic: GenericText, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    family = Session.family

    def noted(self: Session, *options: Any) -> Any:
        asked.append(options)
        return family(self, *options)

    monkeypatch.setattr(Session, "family", noted)
    monkeypatch.setattr(Session, "refined", lambda *_: pytest.fail("a second round"))
    tuned, _ = tune(context, generic, Tuning(("all", "last"), (0.01,), 4, max_capability_loss=0.02))
    own, control = asked[-8:-4], asked[-4:]  # two ranges, two poles each
    assert own == control
    assert {settings.rounds for settings, _, _ in own} == {None}
    assert {p.labels for p in tuned.grid if p.bound is not None} == {"true", "shuffled"}


def test_the_bound_is_the_larger_one_on_the_text_that_searches_read(
    context: SuiteContext, generic: GenericText
) -> None:
    tuned, _ = tune(context, generic, Tuning(("all",), (0.01,), 4, max_capability_loss=1e6))
    text = generic.held_out.read
    base = capability(context.model, text)
    bounds = []
    for masks in tuned.found.persona:
        with wearing(context.targets, masks):
            bounds.append(capability(context.model, text).loss_bound(base))
    assert tuned.chosen[0].bound == pytest.approx(max(bounds))


# ------------------------------------------------------------------------------------------------------ whole


def test_the_suite_with_tuned_masks_and_its_second_run(context: SuiteContext, generic: GenericText) -> None:
    before = bits(context.model)
    plain = run(context, **SMALL, generic=generic)
    assert plain.settings["tuning"] is None
    assert not any("tuned" in name or "untuned" in name for name in plain.figures)
    options = {**SMALL, "generic": generic, "tuning": GRID}
    result = run(context, **options)
    assert same_bits(context.model, before)
    for name in ("EI", "SN"):
        assert result.figures[f"{name}.auc_untuned"] == plain.figures[f"{name}.auc"]
        for unchanged in ("auc_bag_of_words", "auc_length", "test_answers"):
            assert result.figures[f"{name}.{unchanged}"] == plain.figures[f"{name}.{unchanged}"]
        own, old = result.figures[f"{name}.auc"], result.figures[f"{name}.auc_untuned"]
        gap, dev = result.figures[f"{name}.auc_minus_untuned"], result.figures[f"{name}.auc_dev"]
        assert isinstance(own, Estimate)
        assert isinstance(old, Estimate)
        assert isinstance(gap, Difference)
        assert isinstance(dev, Estimate)
        assert gap.value == pytest.approx(own.value - old.value)
        assert dev.low <= dev.value <= dev.high
    tables = {table.title: table for table in result.tables}
    grid = tables["Dev AUC at every point of the grid"]
    assert len(grid.rows) == 2 * 2 * 4 * 2
    for name in ("EI", "SN"):
        for labels in mbti_tuning.LABELS:
            own_rows = [row for row in grid.rows if row[:2] == (name, labels)]
            [chosen] = [row for row in own_rows if row[-1] == "yes"]
            cells = [row[4] for row in own_rows]
            assert max(c.value for c in cells if isinstance(c, Estimate)) == chosen[4].value  # type: ignore[union-attr]
            if labels == "true":
                assert chosen[2:5] == tuple(
                    result.figures[f"{name}.{f}"] for f in ("tuned_blocks", "tuned_share", "auc_dev")
                )
    assert "Masks tuned on dev" in suite_to_markdown(result)
    json.dumps(suite_to_dict(result), allow_nan=False)

    assert context.parts is not None
    stamps = {p.name: p.stat().st_mtime_ns for p in context.parts.iterdir()}
    again = SuiteContext(context.model, context.tokenizer, context.data, context.parts)
    assert suite_to_dict(run(again, **options)) == suite_to_dict(result)
    assert {p.name: p.stat().st_mtime_ns for p in context.parts.iterdir()} == stamps  # nothing was computed again
    for part in context.parts.glob("*grid-masks*"):  # killed after the plain masks, before the grid
        part.unlink()
    assert suite_to_dict(run(again, **options)) == suite_to_dict(result)


def test_a_point_does_not_depend_on_the_rest_of_the_grid(context: SuiteContext, generic: GenericText) -> None:
    wide, _ = tune(context, generic, GRID)
    narrow, _ = tune(replace(context, parts=None), generic, Tuning(("last",), (0.005,), 4))
    [same] = [p for p in wide.grid if (p.labels, p.where, p.share) == ("true", "last", 0.005)]
    assert np.allclose(same.scores, narrow.chosen[0].scores, atol=1e-5)


def test_limit_bounds_the_dev_answers(context: SuiteContext, generic: GenericText) -> None:
    limited = replace(context, limit=3, parts=None)
    options = {**SMALL, "dimensions": ("EI",), "tuning": Tuning(("all",), (0.01,), 20)}
    result = run(limited, **options, generic=generic)
    [table] = [t for t in result.tables if t.title.startswith("Masks tuned on dev")]
    assert dict(zip(table.columns, table.rows[0], strict=True))["dev answers"] == 6


# ---------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranges": ()}, "none"),
        ({"ranges": ("all", "upper")}, "choose from all, first, middle, last"),
        ({"ranges": ("all", "all")}, "once"),
        ({"shares": ()}, "at least one"),
        ({"shares": (0.001, 0.001)}, "each once"),
        ({"shares": (1.5,)}, "a share of the grid"),
        ({"couples": 0}, "couples is 0"),
        ({"max_capability_loss": 0.0}, "must be a positive number"),
        ({"max_capability_loss": float("nan")}, "must be a positive number"),
    ],
)
def test_bad_grids_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Tuning(**options)


def test_what_cannot_be_tuned_is_refused(context: SuiteContext, generic: GenericText) -> None:
    with pytest.raises(OptionError, match="tuning chooses from shares"):
        run(context, **{**SMALL, "cheap_share": None, "drop_share": None}, max_capability_loss=0.1, tuning=GRID)
    assert not context.read
    with pytest.raises(OptionError, match="candidates in the range 'last'"):
        tune(context, generic, Tuning(("last",), (0.3,), 4))
    empty = replace(dimension(context), dev=())
    finder = Finder(context, Finding(drop_share=0.01), {"rows": 8}, generic)
    with pytest.raises(DataError, match="dev part, which has no answers"):
        Tuner(finder, Reader(context, {}), GRID, {}).tune(empty)
