"""What the benchmarks beside the headline share: command line, frame of a result file, taking a file up again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from discovery_data import small_contrast, small_generic
from personae.discovery import open_session, versions
from personae.evaluation.controls import random_masks
from personae.evaluation.scoring import encode_items, score_encoded
from personae.models import find_targets, fingerprint
from personae.personas import Pair, split

ROOT = Path(__file__).parents[1]


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`benchmarks.headline`, which writes into an empty folder."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import common, headline

    for module in (common, headline):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return headline


def test_the_frame_is_that_of_the_committed_files(
    shared: ModuleType, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Any]
) -> None:
    """A key more or less and no condition of an earlier run would be taken up again."""
    model, tokenizer = tiny_model("llama")
    contrast = small_contrast(20)
    monkeypatch.setattr(shared, "load_model", lambda dtype: (model, tokenizer))
    monkeypatch.setattr(shared, "contrast_of", lambda name: contrast)
    monkeypatch.setattr(shared, "prepared", lambda found: found)
    monkeypatch.setattr(shared, "headline", lambda name, *_: f"masks of {name}")
    monkeypatch.setattr(shared, "answers_of", lambda artefact: {"masks of power": 192}[artefact])
    read: list[int] = []
    monkeypatch.setattr(shared, "texts", lambda _, answers: read.append(answers) or (small_generic(), "final"))
    found = shared.opened("power", "float32")
    parts = split(contrast)
    assert found.frame == {
        "set": "power", "dtype": "float32", "budget": 0.05, "fingerprint": fingerprint(find_targets(model)),
        "versions": versions(), "calibration_sha256": parts.calibration.sha256, "test_sha256": parts.test.sha256,
    }  # fmt: skip
    assert (found.artefact, found.final) == ("masks of power", "final")
    assert read == [192]  # the text that the masks were found with
    committed = json.loads((ROOT / "benchmarks" / "results" / "frontier_power.json").read_text(encoding="utf-8"))
    written = shared.write_framed("frontier", "power", {**found.frame, "text_sha256": "0"}, points=[])
    assert json.loads(written.read_text(encoding="utf-8")).keys() == committed.keys() | {"seed"}


def test_a_file_is_taken_up_on_the_same_frame_only(shared: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["rivals.py", "power", "--only", "other"])
    frame = {"set": "power", "versions": {"torch": "2"}, "text_sha256": "0"}
    assert shared.taken_up("rivals_power", frame, "made") is None
    path = shared.write_framed("rivals", "power", frame, made={"directed": [1]}, tied=[True])
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert (path.name, kept["command"]) == ("rivals_power.json", "python -m benchmarks.rivals power --only other")
    assert kept.keys() == {*frame, "made", "tied", "seed", "machine", "command"}
    assert kept["seed"] == 0
    assert shared.taken_up("rivals_power", frame, "made") == {"directed": [1]}
    assert shared.taken_up("rivals_power", frame, "points") is None
    for changed in ({"versions": {"torch": "3"}}, {"text_sha256": "1"}, {"dropped": {"loud": 1}}):
        assert shared.taken_up("rivals_power", {**frame, **changed}, "made") is None


def test_rivals_are_kept_while_what_they_rest_on_is_the_same(
    shared: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import rivals

    monkeypatch.setattr(rivals, "taken_up", shared.taken_up)
    frame, made = {"set": "power"}, {"directed": [1], "steering": [2], "mask + prompt": [3], "two rounds": [4]}
    old = {"directed": {"masks": "a"}, "mask + prompt": {"masks": "a"}, "steering": {"text": "t"}, "two rounds": {}}
    # a file from before anything was written but numbers
    shared.write_framed("rivals", "power", {**frame, "dropped": {"loud": 5}}, made=made)
    assert rivals.kept("power", frame, {"loud": 5}, old) == made
    assert rivals.kept("power", frame, {"loud": 6}, old) == {"steering": [2], "two rounds": [4]}
    assert rivals.kept("power", {"set": "wealth"}, {"loud": 5}, old) == {}
    shared.write_framed("rivals", "power", {**frame, "dropped": {"loud": 5}}, made=made, rests_on=old)
    assert rivals.kept("power", frame, {"loud": 5}, old) == made
    other_masks = {**old, "directed": {"masks": "b"}, "mask + prompt": {"masks": "b"}}
    assert rivals.kept("power", frame, {"loud": 5}, other_masks) == {"steering": [2], "two rounds": [4]}
    other_text = {**old, "steering": {"text": "u"}}
    assert rivals.kept("power", frame, {"loud": 5}, other_text) == {k: v for k, v in made.items() if k != "steering"}


def test_every_condition_says_what_it_rests_on(
    shared: ModuleType, tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    from benchmarks import rivals

    from personae import discover

    model, tokenizer = tiny_model("llama")
    options: dict[str, Any] = {"cheap_share": 0.3, "split_seed": None, "resume": False, "generic": small_generic()}
    found = [discover(model, tokenizer, small_contrast(6), drop_share=share, **options) for share in (0.01, 0.02)]
    paths = [tmp_path / f"{number}.persona" for number in (1, 2)]
    for artefact, path in zip(found, paths, strict=True):
        artefact.save(path)
    rest = rivals.rests_on(found[0], small_generic(), paths[1], paths[0])
    assert set(rest) == {*rivals.CONDITIONS, rivals.HEADLINE, rivals.ROUNDS}
    assert rest["two rounds"] == rest["directed"]
    assert rest["other"]["other"] != rest["directed"]["masks"] == rest["other"]["masks"]
    assert rest["steering"]["answers"] <= rest["directed-forward"]["answers"]
    assert not set(rivals.OF_NO_MASK) & {which for which, on in rest.items() if on == rest["directed"]} - {"two rounds"}


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        ((), [("power", "float32", ("a", "b c")), ("wealth", "float32", ("a", "b c"))]),
        (("all", "--only", "a"), [("power", "float32", ("a",)), ("wealth", "float32", ("a",))]),
        (("wealth", "--only", "b c", "--dtype", "bfloat16"), [("wealth", "bfloat16", ("b c",))]),
    ],
)
def test_the_command_line(
    shared: ModuleType, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], runs: list[Any]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    seen: list[Any] = []
    shared.run_sets(lambda name, dtype, only: seen.append((name, dtype, tuple(only))), "…", ("a", "b c"))
    assert seen == runs


@pytest.mark.parametrize(
    ("words", "run"),
    [
        (("power", "--steps"), ("power", "bfloat16", {"steps": 75})),
        (("power", "--steps", "--dtype", "float32"), ("power", "float32", {"steps": 75})),
        (("power",), ("power", "float32", {})),
    ],
)
def test_short_steps_are_asked_for_where_a_benchmark_knows_them(
    shared: ModuleType, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], run: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    seen: list[Any] = []
    shared.run_sets(lambda name, dtype, only, **steps: seen.append((name, dtype, steps)), "…", ("a",), in_steps=True)
    assert seen == [run]
    if "--steps" in words:
        with pytest.raises(SystemExit):
            shared.run_sets(lambda *_: pytest.fail("ran"), "…", ("a",))


@pytest.mark.parametrize("words", [("greed",), ("power", "--only", "luck")])
def test_unknown_sets_and_conditions_are_refused(
    shared: ModuleType, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    with pytest.raises(SystemExit):
        shared.run_sets(lambda *_: pytest.fail("ran"), "…", ("a",))


def test_the_report_tells_what_audit_and_compare_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import report

    def at(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    attack = {"name": "few-shot", "counts": True, "base": at(0.9), "disabled": at(0.2)}
    hazard = {
        "pole": "power-seeking", "base": {"all": at(0.5)}, "disabled": {"all": at(0.1)}, "verdict": "disabled",
        "accessibility": {"area": at(0.8), "control_area": at(0.51), "smallest": 0.00025},
        "disabling": {"loss": {"worst": 0.03}}, "attacks": [attack, {**attack, "name": "prompt", "counts": False}],
    }  # fmt: skip
    unreached = {**hazard, "pole": "other", "disabled": None, "disabling": None, "attacks": []}
    unreached["accessibility"] = {"area": at(0.5), "control_area": None, "smallest": None}
    parts = {"all": 1.0, "attention": 1.5, "mlp": 0.5}
    row = {
        "dimension": "EI", "method": "wanda", "paper_wanda_13b": None,
        **{f"{f}{k}": parts for f in ("difference", "jaccard") for k in ("", "_by_chance", "_of_resamples")},
    }  # fmt: skip
    files = {
        "audit": {"command": "a", "result": {"hazards": [hazard, unreached], "limits": "L.", "together": None}},
        "compare": {"command": "c", "settings": {"limit": 24}, "table": [row]},
    }
    monkeypatch.setattr(report, "_read", files.get)

    text = report.report()

    expected = (
        "| power-seeking | 0.50 [0.40, 0.60] | 0.51 [0.41, 0.61] | 0.80 [0.70, 0.90] | 0.025% | 0.10 [0.00, 0.20] "
        "| 0.030 | few-shot 0.90 → 0.20 | disabled |"
    )
    assert expected in text
    assert "| other | 0.50 [0.40, 0.60] | – | 0.50 [0.40, 0.60] | none | – | – | none | disabled |" in text
    assert "| EI | wanda | 1.00 / 1.50 / 0.50 | " in text
    assert "| – | 1.000 | 1.000 | 1.000 |" in text


def test_the_report_tells_what_gains_and_causal_maps_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.report_inside import inside

    def at(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    def cell(level: str, part: str, necessity: float) -> dict[str, Any]:
        return {
            "level": level, "part": part, "dropped": 1200, "necessity": at(necessity), "necessity_p_holm": 0.01,
            "sufficiency": at(0.25), "sufficiency_p_holm": 0.5, "random": None,
        }  # fmt: skip

    blocks = [cell("cell", f"block {number} mlp", number / 100) for number in range(30)]
    turn = {"dropped": 150_000, "alignment": [0.3, 0.2, 0.4], "shift": [-0.25, -0.3, -0.2], "loss": 0.04}
    files = {
        "causal_power": {
            "command": "c", "result": {"gain": at(1.5), "items": 16, "cells": [cell("kind", "mlp", 1.25), *blocks]},
        },
        "gains": {
            "command": "g", "contrast": "power-seeking", "calibration_items": 178, "test_items": 87, "folds": 8,
            "budget": 0.05, "base_alignment": [0.4, 0.3, 0.5],
            "rows": {
                "plain": {
                    "carried": {"15000": {"promised": 0.47, "kept": 0.033}},
                    "worn": {"power-averse": {"round 1": {**turn, "dropped": 1}, "round 2": turn}},
                },
                "rank 1": {"carried": {"15000": {"promised": 0.32, "kept": 0.073}}, "worn": {"power-averse": {}}},
            },
        },
    }  # fmt: skip

    text = "\n".join(inside(files.get))

    assert "| mlp | 1,200 | +1.250 [+1.150, +1.350] | 0.010 | +0.250 [+0.150, +0.350] | 0.500 | – |" in text
    assert "| block 29 mlp |" in text
    assert "| block 22 mlp |" in text
    assert "| block 21 mlp |" not in text
    assert "| plain | 0.47 → 0.03 | 150,000 | 0.30 [0.20, 0.40] | -0.25 [-0.30, -0.20] | 0.040 |" in text
    assert "| rank 1 | 0.32 → 0.07 | – | – | – | – |" in text


def test_readme_evidence_and_summary_are_those_of_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import readme, report, run

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.render(text) == text, "python -m benchmarks.readme"
    assert report.report() == (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8"), "python -m benchmarks.report"
    kept = json.loads((ROOT / "benchmarks" / "results" / "summary.json").read_text(encoding="utf-8"))
    assert run.summary() == pytest.approx(kept), "python -m benchmarks.run --gather"
    assert run.summary().keys() == kept.keys()


def test_forgetting_takes_a_result_with_its_masks_and_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import run

    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    names = ("a.json", "a.persona", "b.json", "b.persona", "a_steps.json")
    for name in names:
        (tmp_path / name).write_text("{}")
    (tmp_path / "benchmarks" / ".parts").mkdir(parents=True)
    ran: list[list[str]] = []
    monkeypatch.setattr(run.subprocess, "run", lambda command, check: ran.append(command[2:]))
    monkeypatch.setattr(run, "PARTS", {"a": ["benchmarks.a"]})
    monkeypatch.setattr(run, "summary", dict)
    monkeypatch.setattr(run, "write", lambda name, found: tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    run.main()
    assert ran == []  # there already
    monkeypatch.setattr(sys, "argv", ["run.py", "--again"])
    run.main()
    assert ran == [["benchmarks.a"]]
    assert {p.name for p in tmp_path.iterdir()} == {"b.json", "b.persona", "a_steps.json", "benchmarks"}
    assert not (tmp_path / "benchmarks" / ".parts").exists()


def test_the_report_says_which_points_of_a_frontier_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import begun, frontier

    every = [
        {"condition": condition, "pole": pole}
        for condition in frontier.MULTIPLES
        for pole in (("power-seeking", "power-averse") if condition in ("directed", "random") else ("power-seeking",))
        for _ in frontier.multiples(condition, 75)
    ]
    assert begun.points_left(every, "power", 75) == []
    assert begun.points_left(every[:-1], "power", 75) == ["generic of power-seeking"]
    some = [p for p in every if p["condition"] in ("magnitude", "generic")]
    assert begun.points_left(some, "power", 75) == [
        f"{condition} of {pole}" for condition in ("directed", "random") for pole in ("power-seeking", "power-averse")
    ]


def test_the_frontier_orders_by_the_settings_that_found_each_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pole's steps, own weight and share worn: one pole of wealth-seeking wears twice the default."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import frontier

    def record(**parameters: Any) -> SimpleNamespace:
        given = {"cheap_share": 0.6, "own_weight": 1.0, **parameters}
        return SimpleNamespace(masks={}, provenance=SimpleNamespace(parameters=given))

    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(frontier, "family_of", lambda _, settings, pole, cheap: seen.append((settings, pole, cheap)))
    artefact: Any = {"rich": record(step_share=0.0008), "poor": record()}
    contrast: Any = SimpleNamespace(poles=("rich", "poor"))
    session: Any = object()
    made = [f[:3] for f in frontier.families(session, contrast, artefact, ("directed",), 75)]
    assert made == [("directed", 0, 0), ("directed", 1, 0)]
    assert [(s.steps, s.own_weight, s.step_share, s.objective, pole, cheap) for s, pole, cheap in seen] == [
        (75, 1.0, 0.0008, "log-sigmoid", 0, 0.6),
        (75, 1.0, None, "log-sigmoid", 1, 0.6),
    ]


def test_what_was_begun_is_taken_up_and_what_is_whole_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import run
    from benchmarks.rivals import CONDITIONS

    files: dict[str, Any] = {
        "rivals_power_steps": {"made": dict.fromkeys(CONDITIONS[:-1], ()), "versions": versions()},
        "rivals_wealth_steps": {"made": dict.fromkeys(CONDITIONS, ()), "versions": versions()},
        "frontier_power_steps": {"points": [], "versions": versions()},
        "frontier_wealth_steps": {"points": [], "versions": {**versions(), "torch": "1"}},  # to go on would replace it
        "gates_power_steps": {
            "masks": {"bold": "1"},
            "rows": [{"pole": "bold", "way": "zero"}],
            "versions": versions(),
        },
        "compare": {},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    ran: list[str] = []
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(run.subprocess, "run", lambda command, check: ran.append(command[2]))
    monkeypatch.setattr(run, "PARTS", {**{name: [name] for name in files}, "trace": ["trace"]})
    monkeypatch.setattr(run, "summary", dict)
    monkeypatch.setattr(run, "write", lambda name, found: tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["run.py", "--gather"])
    run.main()
    assert ran == []
    monkeypatch.setattr(sys, "argv", ["run.py"])
    run.main()
    assert ran == ["rivals_power_steps", "frontier_power_steps", "gates_power_steps", "trace"]
    assert "frontier_wealth_steps was begun under other versions: --again" in capsys.readouterr().out


def test_the_report_says_what_each_rival_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import report

    row = {"name": "retrieval", "cost": "none", "seconds": 1.6, "peak_bytes": None, "extra_prompt_tokens": 322.4}
    assert report._price_of(row) == "| retrieval | none | 2 | – | 322 |"
    assert report._price_of({**row, "seconds": None, "peak_bytes": 7.1e9}) == "| retrieval | none | – | 7,100 | 322 |"


def test_gates_are_worn_as_they_say_and_read_from_either_pole(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Any]
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import begun, gates

    model, tokenizer = tiny_model("llama")
    alike = tuple(Pair(f"And team {n}?", f"Yes, I lead {n}.", f"Yes, but not {n}.") for n in range(10))
    contrast = replace(small_contrast(40), pairs=small_contrast(40).pairs + alike)
    session = open_session(model, tokenizer, contrast, generic=small_generic(), resume=False)
    masks = {pole: random_masks(session.targets, 400, n) for n, pole in enumerate(contrast.poles)}
    artefact = {pole: SimpleNamespace(masks=masks[pole]) for pole in contrast.poles}
    parts = SimpleNamespace(dev=contrast)
    found: Any = SimpleNamespace(
        model=model, tokenizer=tokenizer, contrast=contrast, parts=parts, artefact=artefact, session=session
    )
    rows = list(gates.readings(found, tuple(gates.WAYS), []))
    assert [(r["pole"], r["way"]) for r in rows] == [(p, w) for p in contrast.poles for w in gates.WAYS]
    items = encode_items(model, tokenizer, contrast)
    base = score_encoded(model, items).difference()
    by_hand = {}
    for target in session.targets:  # twice the mask's weights the other way round
        by_hand[target.name] = target.weight.clone()
        target.weight.mul_(1 - 2.0 * torch.from_numpy(masks["follow"][target.name].dropped_bool()))
    turned = score_encoded(model, items).difference()
    for target in session.targets:
        target.weight.copy_(by_hand[target.name])
    [row] = [r for r in rows if (r["pole"], r["way"]) == ("follow", "strength 2")]
    assert row["log_sigmoid"] == pytest.approx(-np.logaddexp(0, turned).mean())
    assert row["acc"][0] == pytest.approx((turned < 0).mean())
    assert score_encoded(model, items).difference() == pytest.approx(base)
    losses = {r["way"]: r["loss"] for r in rows if r["pole"] == "lead"}
    assert len(set(losses.values())) == len(gates.WAYS)
    assert all(r["bound"] > r["loss"] for r in rows)
    kept = {"rows": rows[:-1], "masks": dict.fromkeys(contrast.poles, "")}
    assert begun.left("gates_power_steps", kept) == ["mean of follow"]
    assert [r["way"] for r in gates.readings(found, tuple(gates.WAYS), rows[:-1])] == ["mean"]


def test_a_dimensions_keys_are_of_the_latest_form_whatever_it_reaches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import run

    def suite(auc: float, ceiling: float | None = None, data: str = "da7a") -> str:
        spread = None if ceiling is None else {"value": ceiling, "low": ceiling - 0.05, "high": ceiling + 0.05}
        figures = {"JP.auc": {"value": auc}, "JP.test_answers": 192, "JP.auc_ceiling": spread}
        return json.dumps({"figures": figures, "data": {"rows": data}})

    monkeypatch.setattr(run, "RESULTS", tmp_path)
    assert run._dimension("JP") == {}
    (tmp_path / "suite_mbti-JP.json").write_text(suite(0.7, 0.8), encoding="utf-8")
    assert run._dimension("JP")["mbti.JP.auc_over_ceiling"] == pytest.approx(0.7 / 0.8)
    (tmp_path / "suite_mbti-tuned-JP.json").write_text(suite(0.6), encoding="utf-8")
    found = run._dimension("JP")
    assert (found["mbti.JP.auc"], found["mbti.JP.tuned_auc"], found["mbti.JP.one_round_auc"]) == (0.6, 0.6, 0.7)
    assert found["mbti.JP.auc_gain_over_ceiling"] == pytest.approx(0.1 / 0.3)
    (tmp_path / "suite_mbti-steps-JP.json").write_text(suite(0.9, data="other rows"), encoding="utf-8")
    found = run._dimension("JP")  # on other rows the adapters are no ceiling of these masks
    assert (found["mbti.JP.auc"], found["mbti.JP.steps_auc"]) == (0.9, 0.9)
    assert not {"mbti.JP.steps_auc_over_ceiling", "mbti.JP.auc_over_ceiling"} & found.keys()
