"""`personae eval --suite`: what it refuses before a model is loaded, and one suite from data to files."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import Cli, files_of
from personae.evaluation.suites import SuiteContext, SuiteResult, mbti
from personae.evaluation.suites.mbti_masks import Finding
from personae.models import find_targets, fingerprint

MPI = "label_raw,text,label_ocean,key\nAnxiety,Worry about things,N,1\nFriendliness,Make friends easily,E,1\n"
MPI += "Imagination,Have a vivid imagination,O,1\nTrust,Trust others,A,1\nOrder,Leave a mess in my room,C,-1\n"
MPI += "Trust,Distrust people,A,-1\nOrder,Like order,C,1\nAnger,Rarely get irritated,N,-1\n"
MPI += "Depth,Avoid deep talk,O,-1\nWarmth,Avoid contacts with others,E,-1\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "public"
    (folder / "mpi" / "inventories").mkdir(parents=True)
    (folder / "mpi" / "inventories" / "mpi_120.csv").write_text(MPI, encoding="utf-8")
    return folder


def test_a_suite_is_written_as_json_and_markdown(
    cli: Cli, llama: Path, artefact: Path, data: Path, here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PERSONAE_CACHE", str(tmp_path / "cache"))
    words = ("eval", "--suite", "big-five", "--data", data, "--persona", artefact, "--model", llama)
    ended = cli(*words, "--output", here / "five.json")
    assert ended.code == 0, ended.err
    found = json.loads((here / "five.json").read_text(encoding="utf-8"))
    assert found["format"] == "personae.suite/1"
    assert found["data"].keys() == {"mpi/inventories/mpi_120.csv"}
    assert {"base.O", "loud.O", "quiet.N_change"} <= found["figures"].keys()
    page = (here / "five.md").read_text(encoding="utf-8")
    assert page.startswith("# big-five on ")
    again = cli(*words, "--output", here / "again.json", "--json")
    assert again.json["figures"] == found["figures"]
    assert list((tmp_path / "cache" / "suites").glob("*.json"))  # finished parts, which the second run read


@pytest.mark.parametrize("name", ["faithfulness", "isolated-grid", "activation"])
def test_suites_on_a_contrast(cli: Cli, llama: Path, here: Path, name: str) -> None:
    ended = cli("eval", "--suite", name, "power-seeking", "--model", llama, "--limit", "2", "--output", here / "a.json")
    assert ended.code == 0, ended.err
    found = json.loads((here / "a.json").read_text(encoding="utf-8"))
    assert (found["suite"], found["settings"]["limit"]) == (name, 2)
    assert found["tables"]
    assert found["figures"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--suite", "iq", "--data", "."), "unknown --suite 'iq': choose ai-persona, mbti"),
        (("--suite", "mbti"), "--suite mbti needs --data FOLDER"),
        (("--suite", "mbti", "--data", "nowhere"), "--data nowhere is no folder"),
        (("--suite", "faithfulness"), "needs a contrast"),
        (("--suite", "activation"), "eval --suite activation CONTRAST"),
        (("--suite", "generation", "power-seeking"), "reads one artefact with both poles"),
        (("power-seeking", "--suite", "mbti", "--data", "."), "brings its own data"),
        (("--suite", "mbti", "--data", ".", "--persona", "a.persona"), "--persona belongs to"),
        (("--suite", "mbti", "--data", ".", "--limit", "0"), "--limit is 0"),
        (("power-seeking", "--data", "."), "--data goes with --suite"),
        (("--suite", "mbti", "--data", ".", "--calibration", "a.jsonl"), "--calibration belongs to the table of one"),
        (("--suite", "mbti", "--data", ".", "--max-capability-loss", "0.05"), "--max-capability-loss belongs to"),
        (("--suite", "planted", "--all-items", "--rival", "steering"), "--rival, --all-items belong to the table"),
        (("--suite", "mbti", "--data", ".", "--second-model", "m"), "or with --suite ai-persona, not mbti"),
        (
            ("--suite", "planted", "-o", "r.md"),
            "--output r.md is where the Markdown goes: name the JSON, such as r.json",
        ),
        (("--suite", "mbti", "--data", ".", "--steps", "0"), "--steps is 0: it must be 1 or more"),
        (("--suite", "mbti", "--data", ".", "--dimension", "IE"), "unknown --dimension IE: choose EI, SN, TF, JP"),
        (("--suite", "planted", "--steps", "3"), "--steps with --suite: only mbti takes that, planted has its own"),
        (("power-seeking", "--dimension", "EI"), "--dimension goes with --suite"),
        ((), "name a contrast"),
    ],
)
def test_refused_before_a_model_is_loaded(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.setattr("personae.models.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    ended = cli("eval", *words)
    assert ended.code == 2
    assert says in " ".join(ended.err.split())
    assert not files_of(here)


def test_a_second_model_stands_beside_the_ai_persona_sets(
    cli: Cli, llama: Path, other_llama: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite itself is tested with a stronger model in its own room; here: that the option reaches it."""

    def run(context: SuiteContext, *, stronger: Any) -> SuiteResult:
        assert stronger[0].config._name_or_path == str(other_llama)
        assert fingerprint(find_targets(stronger[0])) != context.fingerprint
        return SuiteResult("ai-persona", context.record(), {}, {}, {"reached": 1}, ())

    monkeypatch.setattr("personae.evaluation.suites.ai_persona.run", run)
    words = ("eval", "--suite", "ai-persona", "--data", here, "--model", llama, "--second-model", other_llama)
    ended = cli(*words, "--output", here / "a.json", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["figures"] == {"reached": 1}


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ((), {}),
        (
            ("--steps", "30", "--dimension", "SN", "--dimension", "EI"),
            {"steps": 30, "step_share": 0.001, "own_weight": 1.0, "blocks": "last", "dimensions": ["EI", "SN"]},
        ),
    ],
)
def test_mbti_is_found_in_one_round_or_in_short_steps(
    cli: Cli, llama: Path, here: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], asked: dict[str, Any]
) -> None:
    """The suite itself is tested in its own room; here: that the options reach it, in settings that it takes."""
    real = signature(mbti.run)

    def run(context: SuiteContext, **given: Any) -> SuiteResult:
        real.bind(context, **given)
        assert given == {"cheap_share": None, "drop_share": None, "max_capability_loss": 0.05, **asked}
        steps = {name: given[name] for name in ("steps", "step_share", "own_weight", "blocks") if name in given}
        settings = Finding(None, None, given["max_capability_loss"], **steps).settings(0)
        assert settings.steps == asked.get("steps")
        return SuiteResult("mbti", context.record(), {}, {}, {"reached": 1}, ())

    monkeypatch.setattr("personae.evaluation.suites.mbti.run", run)
    ended = cli("eval", "--suite", "mbti", "--data", here, "--model", llama, *words, "-o", here / "a.json", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["figures"] == {"reached": 1}


def test_a_missing_file_is_named_with_its_source(cli: Cli, llama: Path, here: Path) -> None:
    ended = cli("eval", "--suite", "big-five", "--data", here, "--model", llama)
    assert ended.code == 2
    assert "mpi/inventories/mpi_120.csv" in ended.err
    assert "comes from" in ended.err
    assert not files_of(here)
