"""The grid of isolated subnetworks against masks and figures made by hand; that it resumes, splits and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from discovery_data import bits, same_bits, small_contrast
from faithfulness_data import slow_margins
from personae.discovery import (
    Capability,
    GenericText,
    Settings,
    collect_statistics,
    encode_contrast,
    open_session,
    site,
)
from personae.discovery import session as session_module
from personae.errors import DataError, ModelError, OptionError
from personae.evaluation.suites import SuiteContext, isolated_grid, suite_to_dict, suite_to_markdown
from personae.evaluation.suites.faithfulness_readings import Reading
from personae.evaluation.suites.isolated_grid import run
from personae.evaluation.suites.isolated_grid_report import (
    CONTROLS,
    FIGURES,
    METHODS,
    PAPER,
    Grid,
    Pole,
    Side,
    figures_and_tables,
    worst_loss,
)
from personae.models import find_targets
from personae.personas import Contrast, is_tied, split

SMALL: dict[str, Any] = {"rhos": (0.3, 0.5), "pairs": (4, 8), "pairs_fixed": 8, "rho_fixed": 0.3, "test_items": 8}


def row_of(result: Any, table: int, *start: Any) -> dict[str, Any]:
    """The row of a table that begins with these cells, by column."""
    [row] = [r for r in result.tables[table].rows if r[: len(start)] == start]
    return dict(zip(result.tables[table].columns, row, strict=True))


# --- the suite on a tiny model --------------------------------------------------------------------------------


def test_runs_that_share_parts_give_what_one_run_gives(
    tiny_model: Any, contrast: Contrast, generic: GenericText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_model("llama")
    before = bits(model)
    whole = run(SuiteContext(model, tokenizer, tmp_path), contrast, generic=generic, **SMALL)
    assert same_bits(model, before)
    assert whole.suite == "isolated-grid"
    assert whole.data == {contrast.name: contrast.sha256}
    assert whole.settings["points"] == [[4, 0.3], [8, 0.3], [8, 0.5]]
    assert set(whole.settings["weights"]) == {"4", "8"}
    assert {f"isolated30.{f}" for f in FIGURES} | {f"isolated30.best_paper.{f}" for f in FIGURES} <= set(whole.figures)
    assert whole.figures["isolated30.pairs"] == 8
    assert {"rho30.separation_minus_best", "rho30.p_holm", "rho50.separation_minus_best", "rho50.p_holm"} <= set(
        whole.figures
    )
    over_rho, over_pairs, claims = whole.tables
    assert [r[:2] for r in over_rho.rows] == [
        ("base", None), *((m, rho) for m in (*CONTROLS, *METHODS) for rho in (0.3, 0.5)),
    ]  # fmt: skip
    assert [r[:2] for r in over_pairs.rows] == [
        ("base", None), *((m, None) for m in CONTROLS), *((m, n) for m in METHODS for n in (4, 8)),
    ]  # fmt: skip
    assert [r[0] for r in claims.rows] == [0.3, 0.5]
    json.dumps(suite_to_dict(whole), allow_nan=False)
    assert "ANOTHER MODEL" in suite_to_markdown(whole)

    for methods in (("directed",), ("contrastive-sparse", "wanda"), ("contrastive-wanda", "sparsegpt")):
        part = run(
            SuiteContext(model, tokenizer, tmp_path, parts=tmp_path),
            contrast,
            generic=generic,
            methods=methods,
            **SMALL,
        )
        assert part.settings["methods"] == [m for m in METHODS if m in methods]
        assert any("best of what was run" in w for w in part.tables[0].warnings)

    alone = run(
        SuiteContext(model, tokenizer, tmp_path, parts=tmp_path), contrast, generic=generic, methods=("wanda",),
        controls=("random",), **SMALL,
    )  # fmt: skip
    assert alone.settings["controls"] == ["random"]
    for table, axis in ((0, (0.3, 0.5)), (1, (4, 8))):
        rows = [r[:2] for r in alone.tables[table].rows]
        assert rows == [
            ("base", None), *([("random", rho) for rho in axis] if table == 0 else [("random", None)]),
            *(("wanda", point) for point in axis),
        ]  # fmt: skip
        same = {r[:2]: r for r in whole.tables[table].rows}
        assert all(row == same[row[:2]] for row in alone.tables[table].rows)

    def never(*arguments: Any, **options: Any) -> None:
        pytest.fail("computed again")

    for module, name in (
        (isolated_grid, "mean_log_probabilities"), (isolated_grid, "capability"), (session_module, "attribute"),
        (session_module, "collect_statistics"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, never)
    together = run(SuiteContext(model, tokenizer, tmp_path, parts=tmp_path), contrast, generic=generic, **SMALL)
    assert together.figures == whole.figures
    assert together.tables == whole.tables
    assert together.settings == whole.settings


def test_wanda_equals_masks_made_by_hand(
    tiny_model: Any, contrast: Contrast, generic: GenericText, tmp_path: Path
) -> None:
    model, tokenizer = tiny_model("llama")
    options = {**SMALL, "rhos": (0.5,), "pairs": (), "methods": ("wanda",)}
    result = run(SuiteContext(model, tokenizer, tmp_path), contrast, generic=generic, **options)
    found = row_of(result, 0, "wanda", 0.5)
    parts = split(contrast, seed=0)
    test = parts.test.take(8)
    items = encode_contrast(model, tokenizer, test)
    calibration = encode_contrast(model, tokenizer, parts.calibration.take(8))
    targets = find_targets(model)
    tied = np.array([is_tied(p.positive, p.negative) for p in test.pairs])
    assert 0 < tied.sum() < len(tied)
    base = slow_margins(model, targets, {}, items)
    wins, losses = [], []
    for texts, side in ((calibration.positive, ""), (calibration.negative, "_opposite")):
        own = collect_statistics(model, targets, texts)
        dropped = {}
        for target in targets:
            scores = target.weight.abs() * own[site(target)].mean_abs.float()
            dropped[target.name] = torch.zeros(target.shape, dtype=torch.bool)
            for row in range(target.shape[0]):
                order = sorted(range(target.shape[1]), key=lambda j: float(scores[row, j]))
                dropped[target.name][row, order[: target.shape[1] // 2]] = True
        margins = slow_margins(model, targets, dropped, items)
        wins.append((margins > 0).astype(float))
        assert found[f"acc{side}"].value == pytest.approx(wins[-1].mean())
        assert found[f"acc_tied{side}"].value == pytest.approx(wins[-1][tied].mean())
        assert found[f"gain{side}"].value == pytest.approx((margins - base).mean(), abs=1e-4)
        for texts_of_kind in (generic.held_out.plain, generic.held_out.chat):
            losses.append(
                slow_nll(model, targets, dropped, texts_of_kind) - slow_nll(model, targets, {}, texts_of_kind)
            )
    assert found["separation"].value == pytest.approx((wins[0] - wins[1]).mean())
    assert found["capability_loss"] == pytest.approx(max(losses), abs=1e-4)
    assert result.figures["base.acc"].value == pytest.approx((base > 0).mean())  # type: ignore[union-attr]
    first = row_of(result, 0, "base")
    assert (first["separation"].value, first["gain"].value, first["capability_loss"]) == (0, 0, 0)


def slow_nll(model: Any, targets: Any, dropped: Any, texts: Any) -> float:
    """Nats a token of the answers, one plain forward a text, weights zeroed by hand."""
    kept = {t.name: t.weight.clone() for t in targets}
    for target in targets:
        if dropped:
            target.weight[dropped[target.name]] = 0.0
    total, number = 0.0, 0
    for text in texts:
        ids = torch.tensor([text.prompt + text.answer])
        with torch.no_grad():
            logs = model(input_ids=ids).logits[0].log_softmax(-1)
        for place in range(max(len(text.prompt), 1), ids.shape[1]):
            total -= float(logs[place - 1, ids[0, place]])
            number += 1
    for target in targets:
        target.weight.copy_(kept[target.name])
    return total / number


def test_directed_takes_the_weight_that_dev_chooses(
    tiny_model: Any, contrast: Contrast, generic: GenericText, tmp_path: Path
) -> None:
    model, tokenizer = tiny_model("llama")
    options = {**SMALL, "rhos": (0.5,), "pairs": (8,), "methods": ("directed",)}
    result = run(SuiteContext(model, tokenizer, tmp_path), contrast, generic=generic, **options)
    parts = split(contrast, seed=0)
    session = open_session(model, tokenizer, parts.calibration.take(8), generic=generic, resume=False)
    dev = encode_contrast(model, tokenizer, parts.dev)
    scores = {}
    for weight in (0.25, 0.5, 1.0):
        dropped = session.isolated(Settings(isolated=True, sparsity=0.3), 0, weight)
        scores[weight] = float(np.mean(-np.log1p(np.exp(-slow_margins(model, session.targets, dropped, dev)))))
    best = max(scores, key=lambda w: scores[w])
    assert result.settings["weights"] == {"8": best}
    found = row_of(result, 0, "directed", 0.5)
    items = encode_contrast(model, tokenizer, parts.test.take(8))
    for pole, side in ((0, ""), (1, "_opposite")):
        dropped = session.isolated(Settings(isolated=True, sparsity=0.5), pole, best)
        margins = slow_margins(model, session.targets, dropped, items)
        assert found[f"acc{side}"].value == pytest.approx((margins > 0).mean())
    assert not any("minus_best" in name for name in result.figures)  # nothing of the paper's ran


def test_what_depends_on_pairs_is_computed_once_a_number(
    tiny_model: Any, contrast: Contrast, generic: GenericText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_model("llama")
    asked: list[tuple[str, int]] = []
    statistics, gradients = session_module.collect_statistics, session_module.attribute

    def counted_statistics(model: Any, targets: Any, texts: Any, **options: Any) -> Any:
        asked.append(("gram" if options["gram"] else "statistics", len(texts)))
        return statistics(model, targets, texts, **options)

    def counted_gradients(model: Any, targets: Any, questions: Any, **options: Any) -> Any:
        asked.append(("gradients", len(questions)))
        return gradients(model, targets, questions, **options)

    monkeypatch.setattr(session_module, "collect_statistics", counted_statistics)
    monkeypatch.setattr(session_module, "attribute", counted_gradients)
    options = {**SMALL, "pairs": (5, 9), "pairs_fixed": 9, "full": True}
    result = run(SuiteContext(model, tokenizer, tmp_path), contrast, generic=generic, **options)
    half = len(generic.cheap.plain) + len(generic.cheap.chat)
    assert sorted(asked) == sorted(
        [("statistics", half)]
        + [(kind, n) for n in (5, 9) for kind in ("statistics", "gram") for _ in range(2)]
        + [("gradients", 5), ("gradients", 9)]
    )
    assert result.settings["points"] == [[5, 0.3], [5, 0.5], [9, 0.3], [9, 0.5]]
    assert [t.title for t in result.tables][:2] == [
        f"Isolated subnetworks over sparsity, {n} calibration pairs" for n in (5, 9)
    ]
    # a run that takes the controls from an earlier one still reads generic text once, not once a number
    where = SuiteContext(model, tokenizer, tmp_path, parts=tmp_path)
    run(where, contrast, generic=generic, **{**options, "methods": ("wanda",)})
    asked.clear()
    run(where, contrast, generic=generic, **{**options, "methods": ("directed",)})
    assert sorted(asked) == [("gradients", 5), ("gradients", 9), ("statistics", half)]
    # generic Wanda has one mask for both poles, random has two
    generic_row = row_of(result, 0, "generic", 0.5)
    assert generic_row["acc"] == generic_row["acc_opposite"]
    assert generic_row["separation"].value == 0
    random_row = row_of(result, 0, "random", 0.5)
    assert random_row["gain"] != random_row["gain_opposite"]


def test_limit_and_calibration_part_bound_the_pairs(
    tiny_model: Any, contrast: Contrast, generic: GenericText, tmp_path: Path
) -> None:
    model, tokenizer = tiny_model("gpt2")
    options = {**SMALL, "methods": ("wanda",)}
    result = run(SuiteContext(model, tokenizer, tmp_path, limit=3), contrast, generic=generic, **options)
    assert [result.settings[k] for k in ("points", "test_items", "dev_items")] == [[[3, 0.3], [3, 0.5]], 3, 3]
    there = len(split(contrast, seed=0).calibration)
    options = {**options, "pairs": (2, there, there + 1), "pairs_fixed": 10_000, "rhos": ()}
    result = run(SuiteContext(model, tokenizer, tmp_path), contrast, generic=generic, **options)
    assert result.settings["points"] == [[2, 0.3], [there, 0.3]]
    assert result.settings["pairs_fixed"] == there


def test_a_model_that_overflows_is_named(
    tiny_model: Any, contrast: Contrast, generic: GenericText, tmp_path: Path
) -> None:
    model, tokenizer = tiny_model("llama")
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="isolated grid, base"):
        run(SuiteContext(model, tokenizer, tmp_path), contrast, generic=generic, **SMALL)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"methods": ("wanda", "magnitude")}, "found magnitude"),
        ({"methods": ()}, "found none"),
        ({"rhos": (0.3, 1.0)}, "between 0 and 1"),
        ({"rho_fixed": 0.0}, "between 0 and 1"),
        ({"pairs": (0,)}, "at least 1"),
        ({"test_items": 0}, "at least 1"),
        ({"rhos": (), "pairs": (5000,)}, "nothing to do"),
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


# --- figures and claims from readings made by hand ------------------------------------------------------------

ITEMS = 120


def side_of(won: int, *, plain: float = 0.0, chat: float = 0.0) -> Side:
    """Wins on the first `won` items; the texts lose so much a token, evenly."""
    margin = np.where(np.arange(ITEMS) < won, 1.0, -1.0)
    text = Capability(*(torch.tensor([[10 * (2 + x), 10.0]] * 3, dtype=torch.float64) for x in (plain, chat)))
    return Side(Reading(np.column_stack([margin - 3, np.full(ITEMS, -3.0)])), text)


def grid_of(cells: dict[tuple[str, int, float], Pole], tied: int = 30) -> Grid:
    base = side_of(60)
    controls = {(m, rho): (base, base) for m in CONTROLS for rho in {r for _, _, r in cells}}
    return Grid(base, cells, controls, np.arange(ITEMS) < tied, 100, 0.3, 0)


def planted(ours: dict[float, int], best: str = "contrastive-wanda") -> dict[tuple[str, int, float], Pole]:
    """directed wins `ours` items by sparsity and loses all under p⁻; `best` wins 70 against 60, all others 60 to 60."""
    cells: dict[tuple[str, int, float], Pole] = {}
    for rho, won in ours.items():
        cells |= {(m, 100, rho): (side_of(60), side_of(60)) for m in PAPER}
        cells[best, 100, rho] = (side_of(70), side_of(60))
        cells["directed", 100, rho] = (side_of(won), side_of(0))
    return cells


def test_claims_of_a_planted_winner() -> None:
    figures, tables = figures_and_tables(grid_of(planted({0.1: 90, 0.3: 110, 0.5: 10})))
    for rho, won in ((10, 90), (30, 110), (50, 10)):
        claim = figures[f"rho{rho}.separation_minus_best"]
        assert claim.value == pytest.approx((won - 10) / ITEMS)  # type: ignore[union-attr]
    assert figures["rho30.p_holm"] < 0.01 < figures["rho50.p_holm"]  # type: ignore[operator]
    # Holm by hand: the k-th smallest p is multiplied by how many are left
    p = sorted(figures[f"rho{r}.separation_minus_best"].p for r in (10, 30, 50))  # type: ignore[union-attr]
    adjusted = sorted(figures[f"rho{r}.p_holm"] for r in (10, 30, 50))  # type: ignore[type-var]
    by_hand: list[float] = []
    for k, value in enumerate(p):
        by_hand.append(max([min(1.0, (3 - k) * value), *by_hand]))
    assert adjusted == pytest.approx(by_hand)
    claims = tables[-1]
    assert [row[3] for row in claims.rows] == ["contrastive-wanda"] * 3
    assert not claims.warnings


def test_the_claim_takes_the_best_again_in_every_resample() -> None:
    """Four rivals, each good on items of its own: against the best of each resample the difference lies lower."""
    cells = planted({0.3: 30})
    for number, method in enumerate(PAPER):
        margin = np.where(np.arange(ITEMS) % 4 == number, 1.0, -1.0)  # wins a quarter, another one each
        rival = Side(Reading(np.column_stack([margin - 3, np.full(ITEMS, -3.0)])), side_of(0).text)
        cells[method, 100, 0.3] = (rival, side_of(0))
    figures, _ = figures_and_tables(grid_of(cells))
    claim = figures["rho30.separation_minus_best"]
    chance = np.random.default_rng(5)
    ours = cells["directed", 100, 0.3][0].answers.wins
    theirs = np.array([cells[m, 100, 0.3][0].answers.wins for m in PAPER])
    drawn = chance.integers(0, ITEMS, size=(3000, ITEMS))
    slow = [float(ours[d].mean() - max(t[d].mean() for t in theirs)) for d in drawn]
    assert claim.value == 0  # type: ignore[union-attr]
    assert claim.low == pytest.approx(np.quantile(slow, 0.025), abs=0.03)  # type: ignore[union-attr]
    assert claim.high == pytest.approx(np.quantile(slow, 0.975), abs=0.03)  # type: ignore[union-attr]
    assert claim.low + claim.high < -0.02  # type: ignore[union-attr]


def test_headline_is_of_most_pairs_and_ties_may_be_absent() -> None:
    cells = planted({0.3: 90})
    more = {(m, 400, rho): poles for (m, _, rho), poles in planted({0.3: 120}, best="sparsegpt").items()}
    figures, tables = figures_and_tables(grid_of(cells | more, tied=0))
    assert figures["isolated30.pairs"] == 400
    assert figures["isolated30.acc"].value == 1  # type: ignore[union-attr]
    assert figures["isolated30.acc_opposite"].value == 0  # type: ignore[union-attr]
    assert figures["isolated30.separation"].value == 1  # type: ignore[union-attr]
    assert figures["isolated30.acc_tied"] is None
    assert figures["isolated30.best_paper"] == "sparsegpt"
    assert figures["isolated30.best_paper.acc"].value == pytest.approx(70 / 120)  # type: ignore[union-attr]
    assert [t.title.split(",")[0] for t in tables] == [
        "Isolated subnetworks over sparsity",
        "Isolated subnetworks over calibration pairs",
        "Claims: directed against the paper's methods",
    ]


def test_loss_is_the_largest_over_masks_and_texts() -> None:
    base = side_of(60)
    poles = side_of(60, plain=0.1, chat=0.2), side_of(60, plain=0.4, chat=-1.0)
    loss, error = worst_loss(poles, base)
    assert (loss, error) == (pytest.approx(0.4), pytest.approx(0, abs=1e-9))
    uneven = Capability(torch.tensor([[24.0, 10.0], [20.0, 10.0]]).double(), base.text.chat_texts[:2])
    two = Capability(base.text.plain_texts[:2], base.text.chat_texts[:2])
    loss, error = worst_loss((Side(base.answers, uneven),) * 2, Side(base.answers, two))
    # rises 4 and 0 of 10 tokens each: mean 0.2, standard error of the mean of (0.4, 0.0)
    assert (loss, error) == (pytest.approx(0.2), pytest.approx(np.std([0.4, 0.0], ddof=1) / np.sqrt(2)))
