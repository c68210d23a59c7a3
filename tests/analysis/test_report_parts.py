"""From the content of files to the data of tables and figures, number by number."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from pydantic import TypeAdapter

import report_data as data
from compare_data import SHAPES, artefact, dropped_of, random_masks, subnetwork
from personae.analysis import compare
from personae.analysis.dendrogram import linked
from personae.analysis.hidden_states import Alike, HiddenStates
from personae.analysis.report import report
from personae.analysis.report_overlap import tree_chart
from personae.analysis.report_pieces import Chart, HeatMap, Part, cell, flattened, number, percent
from personae.analysis.results import Record, write_result
from personae.analysis.stability import Agreement, Spread, Stability
from personae.cli.discover import discover, parse_n_m
from personae.discovery import Settings
from personae.errors import DataError
from personae.evaluation import Estimate
from personae.subnetwork import CalibrationIdentity, Provenance, Subnetwork

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

PartOf = Callable[[Any], Part]


@pytest.fixture
def part_of(tmp_path: Path) -> PartOf:
    """`part_of(content)` -> the part that a file of that content becomes."""

    def make(content: Any) -> Part:
        return report([data.write(tmp_path / "x.json", content)]).parts[-1]

    return make


def chart(part: Part, key: str) -> Chart:
    """A chart of the part by its key."""
    found = next(figure for figure in part.figures if figure.key == key)
    assert isinstance(found, Chart)
    return found


def heat_map(part: Part, key: str) -> HeatMap:
    """A heat map of the part by its key."""
    found = next(figure for figure in part.figures if figure.key == key)
    assert isinstance(found, HeatMap)
    return found


def texts(part: Part, title: str) -> list[list[str]]:
    """A table's cells, value and interval as one text."""
    table = next(table for table in part.tables if table.title == title)
    assert all(len(row) == len(table.columns) for row in table.rows)
    return [[f"{each.text} {each.interval}".strip() for each in row] for row in table.rows]


# --- evaluations and frontiers --------------------------------------------------------------------------------


def test_an_evaluation(tmp_path: Path) -> None:
    part = report([data.evaluation_file(tmp_path / "e.json")]).parts[0]
    rows = {row[0]: row[1:] for row in texts(part, "Conditions")}
    assert list(rows) == ["base", "system prompt", "directed", "random"]
    assert rows["directed"] == [
        "0.90 [0.85, 0.95]", "0.10 [0.05, 0.15]", "0.90 [0.85, 0.95]", "–", "+0.80 [0.60, 1.00]", "+0.80 [0.60, 1.00]",
        "+0.80 [0.60, 1.00]", "+0.80 [0.60, 1.00]", "1 %", "+0.040 ± 0.004", "+0.010 ± 0.008", "one backward, 12 s",
    ]  # fmt: skip
    assert rows["system prompt"][-3:] == ["–", "–", "31 prompt tokens a request, 12 s"]
    assert texts(part, "Claims over the best control") == [
        ["directed", "acc", "random", "+0.300 [0.200, 0.400]", "< 0.001", "0.001"]
    ]
    assert part.warnings == ("the items give themselves away",)
    assert part.command is None
    assert "personae eval" in part.command_note
    by_condition = chart(part, "accuracy")
    assert by_condition.y.ticks == ("random", "directed", "system prompt", "base")
    acc = by_condition.series[0]
    assert acc.x == (0.5, 0.9, 0.6, 0.55)
    assert (acc.x_low or ())[1] == 0.85
    assert [series.name for series in by_condition.series] == ["acc", "acc, tied items", "acc opposite"]  # no tied one
    made = dict(part.made)
    assert made["data.sha256"] == "c0" * 32
    assert made["data.rendered_prompt"] == "Q: Hello?\nA:"
    assert made["versions.torch"] == "2.0"


def test_a_benchmarks_frame_gives_command_and_budget(part_of: PartOf) -> None:
    from personae.evaluation import to_dict

    framed = {"evaluation": to_dict(data.evaluation()), "artefact": {"bold": {}}, "budget": 0.05,
              "command": "python -m benchmarks.x", "machine": {"threads": 1}}  # fmt: skip
    part = part_of(framed)
    assert part.command == "python -m benchmarks.x"
    assert dict(part.made)["machine.threads"] == "1"
    assert [rule.at for rule in chart(part, "pareto-positive").rules] == [0.5, 0.05]


def test_evaluations_on_the_same_items_and_text_share_a_frontier(tmp_path: Path) -> None:
    one = data.evaluation_file(tmp_path / "one.json")
    two = data.evaluation_file(
        tmp_path / "two.json",
        data.row("base", "base", 0.55, 0.0),
        data.row("wanda", "method", 0.6, 0.03),
        data.row("random", "control", 0.4, 0.03),
    )
    other = data.evaluation_file(tmp_path / "other.json", test="0743")
    made = report([one, two, other])
    together = [part for part in made.parts if part.kind == "together"]
    assert [part.source for part in together] == ["one.json, two.json"]
    names = [series.name for series in chart(together[0], "pareto-positive-together").series]
    assert names == ["base", "directed", "random", "wanda", "random (two)", "frontier"]
    assert report([one, other]).parts[0].kind == "evaluation"


def test_a_frontier_file(part_of: PartOf) -> None:
    part = part_of(data.frontier())
    bold, shy = (chart(part, f"frontier-{place}") for place in (1, 2))
    assert [(s.name, s.x, s.y) for s in bold.series] == [
        ("directed", (0.01, 0.04), (0.7, 0.9)), ("random", (0.02,), (0.55,)), ("frontier", (0.01, 0.04), (0.7, 0.9)),
    ]  # fmt: skip
    assert [s.name for s in shy.series] == ["directed"]
    assert texts(part, "Points")[0][:5] == ["directed", "bold", "3,000", "0.3 %", "0.90 [0.86, 0.94]"]
    assert part.command == "python -m benchmarks.frontier bold"


@pytest.mark.parametrize("field", ["acc", "plain_error", "pole", "share", "condition"])
def test_a_frontier_with_a_field_missing_is_refused_by_place(part_of: PartOf, field: str) -> None:
    broken = data.frontier()
    del broken["points"][2][field]
    with pytest.raises(DataError, match=rf"x\.json: points\[2\]\.{field} is missing"):
        part_of(broken)


# --- suites ---------------------------------------------------------------------------------------------------


def test_faithfulness_curves(part_of: PartOf) -> None:
    part = part_of(data.faithfulness())
    found = chart(part, "faithfulness-f")
    assert [series.name for series in found.series] == ["directed", "directed, complement", "wanda"]
    ours, complement, wanda = found.series
    assert ours.x == wanda.x == (0.1, 0.3, 0.5)  # by rising sparsity, as they did not stand in the file
    assert ours.y == pytest.approx((1.1, 0.9, 0.7))
    assert ours.low == pytest.approx((1.0, 0.8, 0.6))
    assert complement.y == pytest.approx((0.7, 0.7, 0.7))
    assert complement.dashed
    assert ours.colour == complement.colour != wanda.colour
    tenths = chart(part, "minimality")
    assert tenths.series[0].x == tuple(float(k) for k in range(1, 11))
    assert tenths.series[0].y == pytest.approx([1 / k for k in range(1, 11)])
    assert [(rule.name, rule.at) for rule in tenths.rules] == [("random", 0.05)]
    restored = chart(part, "restoration")
    assert [series.name for series in restored.series] == ["lost when restored"]  # nothing was brought alone
    assert restored.series[0].y == pytest.approx((0.0, 0.1, 0.2))
    rows = texts(part, "Sufficiency of isolated subnetworks")
    assert rows[2][:3] == ["directed", "0.100", "1.100 [1.000, 1.200]"]
    assert part.tables[1].warnings == ("lengths differ",)
    assert texts(part, "Figures by name") == [["necessity", "0.200 [0.100, 0.300]", "0.010"]]


def test_a_suite_of_another_name_keeps_its_tables(part_of: PartOf) -> None:
    suite = data.faithfulness()
    suite["suite"], suite["tables"][0]["title"] = "horoscope", "Stars"
    part = part_of(suite)
    assert [figure.key for figure in part.figures] == ["minimality", "restoration"]
    assert part.tables[1].title == "Stars"


def test_a_suites_table_of_another_width_is_refused(part_of: PartOf) -> None:
    suite = data.faithfulness()
    suite["tables"][1]["rows"][3].pop()
    with pytest.raises(DataError, match=r"tables\[1\] has a row of another width"):
        part_of(suite)
    suite = data.faithfulness()
    suite["tables"][0]["rows"][0][2] = {"value": 1.0}
    with pytest.raises(DataError, match=r"tables\[0\]\.rows\.low is missing"):
        part_of(suite)


# --- masks ----------------------------------------------------------------------------------------------------


def test_an_artefact_by_block_and_projection(tmp_path: Path) -> None:
    masks = random_masks(SHAPES, 0.2, 0)
    record = Provenance(
        method="directed", sparsity=0.2, parameters={"max_capability_loss": 0.05, "rounds": 2, "seed": 4},
        calibration=CalibrationIdentity(name="introvert-extravert", sha256="ab", items=10, licence="Apache-2.0"),
        measured={"dev_acc": 0.75},
    )  # fmt: skip
    artefact(Subnetwork("bold", masks, record)).save(tmp_path / "m.persona")
    part = report([tmp_path / "m.persona"]).parts[0]
    found = heat_map(part, "layers-1")
    assert found.columns == ("q_proj", "down_proj", "up_proj")
    assert found.rows == ("0", "1", "2")
    slow = dropped_of(masks)
    for block in range(3):
        for column, place in enumerate(("self_attn.q_proj", "mlp.down_proj", "mlp.up_proj")):
            expected = 100 * slow[f"model.layers.{block}.{place}.weight"].mean()
            assert found.values[block][column] == pytest.approx(expected)
    total = sum(int(each.sum()) for each in slow.values())
    assert texts(part, "Personas")[0][:5] == ["bold", "directed", "introvert-extravert", "10", str(total)]
    assert part.command == (
        "personae discover introvert-extravert --method directed --max-capability-loss 0.05 --rounds 2 --all-items "
        "--seed 4"
    )


def test_the_command_of_short_steps_asks_for_them(tmp_path: Path) -> None:
    parameters = {"max_capability_loss": 0.05, "objective": "log-sigmoid", "steps": 16, "seed": 0}
    record = Provenance(
        method="directed", sparsity=0.2, parameters=parameters,
        calibration=CalibrationIdentity(name="introvert-extravert", sha256="ab", items=10, licence="Apache-2.0"),
    )  # fmt: skip
    artefact(Subnetwork("bold", random_masks(SHAPES, 0.2, 0), record)).save(tmp_path / "m.persona")
    assert report([tmp_path / "m.persona"]).parts[0].command == (
        "personae discover introvert-extravert --method directed --max-capability-loss 0.05 --objective log-sigmoid "
        "--steps 16 --all-items --seed 0"
    )


def command_of(folder: Path, record: Provenance, metadata: dict[str, Any]) -> str | None:
    """The command that the report puts together for one persona of the built-in contrast."""
    made = artefact(Subnetwork("bold", random_masks(SHAPES, 0.2, 0), record))
    replace(made, metadata=metadata).save(folder / "m.persona")
    return report([folder / "m.persona"]).parts[0].command


def found_with(method: str, parameters: dict[str, Any], split: str | None) -> Provenance:
    """Provenance of a persona of the built-in contrast."""
    items = CalibrationIdentity(name="introvert-extravert", sha256="ab", items=9, licence="Apache-2.0", split=split)
    return Provenance(method=method, sparsity=0.2, parameters=parameters, calibration=items)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(), Settings(steps=9, own_weight=1.0, step_share=0.001), Settings(isolated=True, sparsity=0.4, seed=3),
        Settings(method="wanda", n_m=(2, 4), statistic="l2", tokens="all"),
        Settings(method="contrastive-wanda", sparsity=0.5, phi="softplus", selection="global"),
        Settings(method="directed-forward", cheap_share=0.5, drop_share=0.01, forward="separation", rank_by="gain"),
    ],
)  # fmt: skip
def test_the_command_of_an_artefact_asks_for_all_that_was_asked_for(tmp_path: Path, settings: Settings) -> None:
    """Read as `discover` reads it, the command comes to the settings that were recorded."""
    asked = settings.checked()
    recorded = json.loads(json.dumps({k: v for k, v in asdict(asked).items() if v is not None}))
    text = command_of(
        tmp_path, found_with(asked.method, recorded, "calibration of seed 5"), {"generic_text": {"answers": 96}}
    )
    app, read = typer.Typer(), {}

    @app.command()
    @functools.wraps(discover)
    def take(**options: Any) -> None:
        read.update(options)

    app(shlex.split(text or "")[2:], standalone_mode=False)
    assert (read["split_seed"], read["generic_answers"], read["all_items"]) == (5, 96, False)
    given = {**read, "n_m": parse_n_m(read["n_m"])}
    assert Settings(**{f.name: given[f.name] for f in fields(Settings)}).checked() == asked


def test_the_command_of_an_artefact_knows_folds_and_legacy_parameters_and_no_split_but_its_own(tmp_path: Path) -> None:
    folded = command_of(tmp_path, found_with("magnitude", {"sparsity": 0.3}, None), {"cross_fit": [{}, {}, {}]})
    assert folded is not None
    assert folded.endswith("--sparsity 0.3 --cross-fit 3 --split-seed 0 --seed 0")
    seeded = {"cross_fit": [{}, {}], "cross_fit_seed": 7}
    assert "--cross-fit 2 --split-seed 7" in str(command_of(tmp_path, found_with("magnitude", {}, None), seeded))
    legacy = found_with("directed", {"max_capability_loss": 0.1, "forward": "separation"}, "calibration of seed 0")
    assert "--forward" not in str(command_of(tmp_path, legacy, {}))  # `discover` refuses what changes nothing
    audited = found_with("directed", {"disables": "bold"}, "calibration of the audit's split, seed 0")
    assert command_of(tmp_path, audited, {}) is None
    assert command_of(tmp_path, found_with("union", {}, None), {}) is None


def test_the_command_of_poles_that_were_found_apart(tmp_path: Path) -> None:
    """One pole alone is asked for by its name; two that were found by different options come from no one command."""
    wide, plain = (
        found_with("directed", {"max_capability_loss": 0.05, "steps": 9, **more}, "calibration of seed 0")
        for more in ({"step_share": 0.001}, {})
    )
    masks = random_masks(SHAPES, 0.2, 0)
    artefact(Subnetwork("introvert", masks, wide)).save(tmp_path / "one.persona")
    assert report([tmp_path / "one.persona"]).parts[0].command == (
        "personae discover introvert-extravert --method directed --max-capability-loss 0.05 --steps 9 "
        "--step-share 0.001 --split-seed 0 --pole introvert --seed 0"
    )
    for record, command in ((plain, None), (wide, "personae discover")):
        both = (Subnetwork("introvert", masks, wide), Subnetwork("extravert", masks, record))
        artefact(*both).save(tmp_path / "m.persona")
        part = next(p for p in report([tmp_path / "m.persona"]).parts if p.kind != "together")
        assert (part.command or "")[:17] == (command or "")
        assert "--pole" not in (part.command or "")


def test_an_artefact_whose_source_is_not_built_in_has_no_command(tmp_path: Path) -> None:
    artefact(subnetwork("bold", random_masks(SHAPES, 0.2, 0))).save(tmp_path / "m.persona")
    part = report([tmp_path / "m.persona"]).parts[0]
    assert part.command is None
    assert "names no command" in part.command_note


def test_overlap_is_that_of_compare(tmp_path: Path) -> None:
    names = ("bold", "shy", "calm")
    made = [subnetwork(name, random_masks(SHAPES, 0.2, seed)) for seed, name in enumerate(names)]
    for one in made:
        artefact(one).save(tmp_path / f"{one.name}.persona")
    paths = [tmp_path / f"{name}.persona" for name in names]
    found = compare(*paths)
    part = report(paths).parts[0]
    matrix = heat_map(part, "overlap")
    at = {name: matrix.rows.index(name) for name in names}
    for a in names:
        assert matrix.values[at[a]][at[a]] is None
        for b in names:
            if a != b:
                assert matrix.values[at[a]][at[b]] == found.pair(a, b)["all"].jaccard.value
    blocks = chart(part, "blocks-1")
    assert blocks.series[0].y == tuple(o.jaccard.value for o in found.pairs[0].of_level("block").values())
    assert blocks.series[1].low == tuple(o.jaccard.low for o in found.pairs[0].of_level("block").values())
    # and the file that `compare` writes says the same
    kept = Record("compare", "personae compare …", None, {}, {})
    write_result(tmp_path / "c.json", kept, found)
    written = report([tmp_path / "c.json"]).parts[0]
    assert [figure.key for figure in written.figures] == [figure.key for figure in part.figures]
    assert asdict(heat_map(written, "overlap")) == asdict(matrix)
    assert texts(written, "Overlap against chance") == texts(part, "Overlap against chance")


def test_stability_and_hidden_states_stand_beside_the_overlap(tmp_path: Path) -> None:
    for seed, name in enumerate(("bold", "shy")):
        artefact(subnetwork(name, random_masks(SHAPES, 0.2, seed))).save(tmp_path / f"{name}.persona")
    found = compare(tmp_path / "bold.persona", tmp_path / "shy.persona", draws=0)

    def agreement(part: str, level: str, at: float) -> Agreement:
        spread = Spread(at, at - 0.1, at + 0.1, 0.05)
        return Agreement(part, level, spread, spread, replace(spread, mean=at + 0.02))

    parts = (agreement("all", "all", 0.5), *(agreement(f"block {b}", "block", 0.3 + b / 10) for b in range(3)))
    stable = Stability("bold", "bold-shy", "directed", 40, 5, 99, (99,) * 5, parts)
    centred = (Estimate(0.5, 0.4, 0.6), None, Estimate(-0.2, -0.3, -0.1))
    alike = Alike("bold", "shy", (Estimate(1.0, 1.0, 1.0),) * 3, centred)
    states = HiddenStates("bold-shy", "ab", 80, 3, (), (alike,), 500, 0)
    whole = replace(found, stability=(stable,), hidden_states=states)
    write_result(tmp_path / "c.json", Record("compare", "personae compare", None, {}, {}), whole)
    part = report([tmp_path / "c.json"]).parts[0]
    assert chart(part, "stability-1").series[0].y == pytest.approx((0.3, 0.4, 0.5))
    assert chart(part, "stability-1").series[1].y == pytest.approx((0.32, 0.42, 0.52))
    assert chart(part, "hidden-states").series[0].y == (0.5, None, -0.2)
    assert chart(part, "hidden-states").series[0].high == (0.6, None, -0.1)
    title = "Masks on 5 bootstrap resamples of 40 items"
    assert texts(part, title)[0][:3] == ["bold", "all", "0.5000 [0.4000, 0.6000]"]
    assert "draws" not in next(table for table in part.tables if table.title == "Overlap against chance").notes[0]


def test_many_personas_are_compared_without_draws_and_by_all_weights_alone(tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(7)]
    artefact(*(subnetwork(n, random_masks(SHAPES, 0.2, i)) for i, n in enumerate(names))).save(tmp_path / "m.persona")
    part = report([tmp_path / "m.persona"]).parts[0]
    assert len(texts(part, "Overlap against chance")) == 21
    assert part.command == "personae compare m.persona --draws 0"
    assert len([figure for figure in part.figures if figure.key.startswith("blocks")]) == 6


def test_the_tree_joins_groups_at_their_distance() -> None:
    distances = np.array([[0.0, 0.2, 0.8], [0.2, 0.0, 0.6], [0.8, 0.6, 0.0]])
    made = tree_chart(linked(("a", "b", "c"), distances.tolist()))
    x, y = made.series[0].x, made.series[0].y
    assert x[:4] == (0.0, 0.2, 0.2, 0.0)
    assert x[5:9] == pytest.approx((0.0, 0.7, 0.7, 0.2)) or x[5:9] == pytest.approx((0.2, 0.7, 0.7, 0.0))
    assert x[4] is x[9] is y[4] is None
    ticks = made.y.ticks or ()
    assert {ticks[int(place)] for place in (y[0], y[3]) if place is not None} == {"a", "b"}


def test_a_damaged_comparison_is_refused_by_place(part_of: PartOf) -> None:
    with pytest.raises(DataError, match=r"x\.json: result\.personas"):
        part_of(data.record("compare", {"model": "m", "fingerprint": "f"}))


# --- traces ---------------------------------------------------------------------------------------------------


def test_a_trace(part_of: PartOf) -> None:
    part = part_of(data.trace())
    tokens = heat_map(part, "tokens")
    assert tokens.columns == ("Yes", ",", "␣I⏎")
    assert tokens.values == ((1.0, -1.0, 1.0), (-1.0, 1.0, -1.0))
    assert tokens.limits == (-4.0, 4.0)
    running = chart(part, "running")
    assert running.series[0].y == (1.0, 0.0, 1.0)
    share = chart(part, "share-attention")
    assert share.series[0].x == (0.0, 1.0)
    assert share.series[0].y == (1.0, 3.0)
    assert chart(part, "share-mlp").series[0].y == (2.0, None)
    passage = part.passages[0]
    assert [(token.text, token.colour, token.strength) for token in passage.tokens] == [
        ("Yes", 0, 0.5), (",", 1, 0.5), (" I\n", 0, 0.5),
    ]  # fmt: skip
    assert passage.tokens[0].about == "bold +1.00, shy -1.00"
    assert texts(part, "Scores") == [["bold", "+0.333", "+0.333"], ["shy", "-0.333", "-0.333"]]


def test_a_trace_with_too_few_figures_is_refused(part_of: PartOf) -> None:
    broken = data.trace()
    broken["result"]["relative"]["shy"].pop()
    with pytest.raises(DataError, match="not one figure a token and persona"):
        part_of(broken)


def test_a_trace_without_layers_and_with_a_gap(part_of: PartOf) -> None:
    content = data.trace()
    content["result"]["overall_share"] = None
    content["result"]["relative"]["bold"][1] = None
    part = part_of(content)
    assert [figure.key for figure in part.figures] == ["tokens", "running"]
    assert heat_map(part, "tokens").values[0] == (1.0, None, 1.0)


# --- audits, checkpoints, causal maps -------------------------------------------------------------------------


def test_an_audit(part_of: PartOf) -> None:
    part = part_of(data.audit("power", "wealth"))
    first, second = texts(part, "Verdicts")
    assert first[:5] == ["power", "disabled", "0.550 [0.500, 0.600]", "0.550 [0.450, 0.650]", "0.1 % [0.05 %, –]"]
    assert first[7:] == ["0.100 [0.050, 0.150]", "0.060 [0.010, 0.110]", "0.1 %", "0.0400", "0.300", "0.600"]
    assert second[7:11] == ["–", "–", "–", "–"]
    older = data.audit("power")  # written before masks were read on their own pairs
    del older["result"]["hazards"][0]["disabling"]["own"]
    assert texts(part_of(older), "Verdicts")[0][8] == "–"
    assert part.warnings == (
        "This certifies nothing.", "power: every answer starts with yes", "wealth: every answer starts with yes",
    )  # fmt: skip
    curve = chart(part, "accessibility-1")
    assert curve.x.log
    base, random, again = curve.series
    assert base.x == pytest.approx((0.001, 0.01, 0.1, 1.0))
    assert base.y[-1] == pytest.approx(0.9)
    assert len(random.x) == 3  # the last point has no control
    assert again.y[-1] == pytest.approx(0.6)
    assert curve.rules[0].at == 0.75
    assert len(chart(part, "accessibility-2").series) == 2
    attacks = chart(part, "attacks-1")
    assert attacks.y.ticks == ("system prompt (not counted)", "few-shot", "held-out items")
    assert attacks.series[1].x == (0.1, 0.3, 0.1)
    assert len(chart(part, "attacks-2").series) == 1
    places = heat_map(part, "places-1")
    assert places.columns == ("attention", "mlp")
    assert places.values[2] == pytest.approx((100 * 0.2 / 3, 20.0))
    assert chart(part, "restored-1").x.ticks == ("0–1", "2")
    assert [row[6] for row in texts(part, "Attacks")] == ["yes", "does not move the base model"] * 2
    assert [row[-1] for row in texts(part, "Harmless personas")] == ["untouched"]
    assert [row[:2] for row in texts(part, "All disabling masks at once")] == [
        ["power", "0.550 [0.500, 0.600]"], ["wealth", "0.550 [0.500, 0.600]"],
    ]  # fmt: skip


def test_checkpoints_over_steps(part_of: PartOf) -> None:
    part = part_of(data.dynamics())
    separation = chart(part, "separation")
    assert separation.x.title == "training step"
    assert [s.name for s in separation.series] == ["separation", "random masks"]
    assert separation.series[0].x == (100.0, 200.0, 300.0)
    assert separation.series[0].y == pytest.approx((0.0, 0.2, 0.4))
    assert separation.series[0].high == pytest.approx((0.05, 0.25, 0.45))
    before = chart(part, "overlap-previous")
    assert [s.name for s in before.series] == [
        "bold", "bold, by chance", "bold, random candidates", "shy", "shy, by chance", "shy, random candidates",
    ]  # fmt: skip
    assert before.series[2].y == pytest.approx((0.05, 0.05))
    assert before.series[0].x == (200.0, 300.0)
    assert before.series[0].y == pytest.approx((0.2, 0.3))
    assert chart(part, "overlap-last").series[0].x == (100.0, 200.0)
    assert texts(part, "Checkpoints")[2][4] == "0.400 [0.350, 0.450]"
    assert part.findings == (
        "separation is there from checkpoint-1 on.", "overlap is not there at the last checkpoint.",
    )  # fmt: skip


@pytest.mark.parametrize("steps", [(None, 200, 300), (100, 100, 200)], ids=["one has none", "two are equal"])
def test_checkpoints_without_steps_stand_by_name(part_of: PartOf, steps: tuple[int | None, ...]) -> None:
    found = chart(part_of(data.dynamics(steps)), "alignment")
    assert found.x.ticks == ("checkpoint-0", "checkpoint-1", "checkpoint-2")
    assert found.series[0].x == (0.0, 1.0, 2.0)


def test_a_causal_map_points_to_its_cell(part_of: PartOf) -> None:
    part = part_of(data.causal())
    found = heat_map(part, "causal-necessity")
    assert found.rows == ("0", "1", "2")
    assert found.columns == ("attention", "mlp")
    assert found.values[1] == (-0.05, 0.9)
    assert found.limits == (-0.9, 0.9)
    assert heat_map(part, "causal-sufficiency").values[1][1] == 0.45
    assert "block 1 mlp: +0.900" in part.findings[1]
    by_block = chart(part, "causal-by-block")
    assert by_block.x.ticks == ("0", "1", "2")
    assert by_block.series[0].y == (0.02, 0.9, 0.02)
    assert texts(part, "Parts of the mask")[3][:2] == ["cell", "block 1 mlp"]


@pytest.mark.parametrize(
    ("module", "name", "content"),
    [
        ("audit_result", "Audit", data.audit("a", "b")), ("dynamics_result", "Dynamics", data.dynamics()),
        ("causal_result", "CausalMap", data.causal()),
    ],
)  # fmt: skip
def test_the_samples_are_what_the_analyses_write(module: str, name: str, content: Any) -> None:
    found = getattr(pytest.importorskip(f"personae.analysis.{module}"), name)
    made = TypeAdapter(found).validate_python(content["result"])
    assert set(asdict(made)) == set(content["result"])


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (data.audit("a"), "hazards"), (data.dynamics(), "stages"), (data.causal(), "cells"), (data.trace(), "verdict"),
    ],
)  # fmt: skip
def test_a_missing_field_is_told_with_file_and_place(part_of: PartOf, content: dict[str, Any], place: str) -> None:
    broken = {**content, "result": {k: v for k, v in content["result"].items() if k != place}}
    with pytest.raises(DataError, match=rf"x\.json: result\.{place} is missing"):
        part_of(broken)


# --- what is committed ----------------------------------------------------------------------------------------


def test_every_committed_result_of_a_known_format_is_taken() -> None:
    """Real files: evaluations that benchmarks wrap, suites on real and planted models, a frontier."""
    taken, left = [], []
    for path in sorted(RESULTS.glob("*.json")):
        try:
            part = report([path]).parts[-1]
        except DataError as error:
            left.append(str(error))
            continue
        assert part.tables, path
        assert part.command, path
        taken.append(part.kind)
    assert set(taken) >= {"evaluation", "suite", "frontier"}
    assert all("has the format None" in said for said in left)


# --- numbers as text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "–"), (float("nan"), "–"), (1234567, "1,234,567"), (0.0, "0.000"), (0.5, "0.500"), (1e-5, "1.00e-05"),
     (True, "yes"), ("word", "word"), (12345.678, "12,345.678")],
)  # fmt: skip
def test_numbers(value: Any, said: str) -> None:
    assert number(value) == said


def test_percents_and_cells() -> None:
    assert [percent(v) for v in (0.0, 0.00169, 0.5, 1.0, None)] == ["0 %", "0.169 %", "50.0 %", "100.0 %", "–"]
    assert cell({"value": 1e-5, "low": -1e-5, "high": 0.1}, 2).interval == "[-0.00, 0.10]"
    assert cell({"value": None}).text == "–"
    assert cell(3).text == "3"
    assert cell("x").text == "x"


def test_parameters_are_flat_and_complete() -> None:
    content = {"a": {"b": 1, "c": [1, 2.5]}, "d": [{"e": None}, {"e": True}], "f": []}
    assert list(flattened(content)) == [
        ("a.b", "1"), ("a.c", "1, 2.5"), ("d[0].e", "none"), ("d[1].e", "yes"), ("f", "none"),
    ]  # fmt: skip
