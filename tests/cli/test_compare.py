"""`personae compare`: tables, the result file, what is refused and when."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

import personae.cli
import personae.models
from cli_helpers import Cli
from compare_data import SHAPES, artefact, random_masks, subnetwork
from personae.analysis.compare import compare
from personae.analysis.hidden_states import Alike, HiddenStates
from personae.analysis.results import plain, read_result
from personae.cli.compare import compare as command
from personae.cli.compare import to_rich
from personae.cli.console import out
from personae.evaluation.bootstrap import Estimate
from personae.subnetwork import load


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The subcommand, whether or not `personae.cli` lists it."""
    known = personae.cli.app.registered_commands
    if "compare" not in [each.name for each in known]:
        own = typer.Typer()
        own.command("compare")(command)
        monkeypatch.setattr(personae.cli.app, "registered_commands", [*known, *own.registered_commands])


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(personae.models, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))


@pytest.fixture
def many(here: Path) -> list[Path]:
    """Three personas in two files; 'c' is what 'a' is."""
    masks = random_masks(SHAPES, 0.4, 1)
    paths = [here / "x.persona", here / "y.persona"]
    artefact(subnetwork("a", masks), subnetwork("b[red]", random_masks(SHAPES, 0.1, 2))).save(paths[0])
    artefact(subnetwork("c", masks)).save(paths[1])
    return paths


@pytest.mark.usefixtures("no_model")
def test_artefacts_alone(cli: Cli, many: list[Path], here: Path) -> None:
    ended = cli("compare", *many, "-o", "r.json", "--seed", "3", "--draws", "50")
    assert ended.code == 0, ended.err
    expected = compare(*many, draws=50, seed=3)
    whole = expected.pair("a", "b[red]")["all"]
    assert "a – b[red]" in ended.out
    assert f"{whole.difference.value:.3%} ({whole.difference.chance:.3%})" in ended.out
    assert f"{whole.jaccard.value:.4f} ({whole.jaccard.chance:.4f}, {whole.jaccard.low:.4f}–" in ended.out
    assert "(2) b[red]" in ended.out
    assert "\nc      ─┘" in ended.out  # the tree
    assert "By block" not in ended.out
    assert "written: r.json" in ended.err
    said = read_result(here / "r.json")
    assert said["result"] == plain(expected)
    assert said["inputs"] == {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in many}
    assert said["model"] is None
    assert (said["kind"], said["seed"], said["settings"]["draws"]) == ("compare", 3, 50)
    again = cli(*shlex.split(said["command"])[1:], "--json")
    assert again.json["result"] == said["result"]


@pytest.mark.usefixtures("no_model")
def test_a_single_pair_is_shown_by_block(cli: Cli, artefact: Path) -> None:
    ended = cli("compare", artefact)
    assert ended.code == 0, ended.err
    assert "loud – quiet" in ended.out
    assert "By block" in ended.out
    assert "average linkage" not in ended.out
    without = cli("compare", artefact, "--draws", "0", "--json").json
    assert without["result"]["pairs"][0]["parts"][0]["jaccard"]["low"] is None


def test_stability_and_hidden_states(cli: Cli, artefact: Path, llama: Path, contrast: Path, here: Path) -> None:
    words = ("compare", artefact, "--stability", contrast, "--hidden-states", contrast, "--model", llama,
             "--resamples", "2", "--items", "3", "-o", "r.json")  # fmt: skip
    ended = cli(*words)
    assert ended.code == 0, ended.err
    calibration = load(artefact)["loud"].provenance.calibration
    assert calibration is not None
    assert f"Masks on 2 bootstrap resamples of {calibration.items} items" in ended.out
    assert "Cosine of mean hidden states of 6 answers" in ended.out
    assert "Uncentred, these cosines lie between" in ended.out
    said = read_result(here / "r.json")
    assert [s["persona"] for s in said["result"]["stability"]] == ["loud", "quiet"]
    assert said["result"]["hidden_states"]["answers"] == 6
    assert said["result"]["stability"][0]["notes"] == []
    assert said["notes"] == []
    assert said["model"]["architecture"] == "LlamaForCausalLM"
    assert said["inputs"]["loud-quiet"]
    again: Any = cli(*shlex.split(said["command"])[1:], "--json").json
    assert again["result"] == said["result"]
    assert again["command"] == said["command"]


@pytest.mark.usefixtures("no_model")
def test_refusals_before_a_model_is_loaded(
    cli: Cli, artefact: Path, many: list[Path], contrast: Path, here: Path
) -> None:
    for words, says in (
        (("--model", "x"), "--model goes with --stability or --hidden-states"),
        (("--all-items",), "--all-items goes with"),
        (("--format", "csv"), "--format goes with"),
        (("--split-seed", "0"), "--split-seed goes with"),
        (("--items", "40"), "--items goes with --hidden-states"),
        (("--items", "8", "--stability", contrast), "--items goes with --hidden-states"),
        (("--resamples", "5"), "--resamples goes with --stability"),
        (("--resamples", "9", "--hidden-states", contrast), "--resamples goes with --stability"),
        (("--generic-text", "g.txt", "--hidden-states", contrast), "--generic-text goes with --stability"),
        (("--draws", "-1"), "--draws is -1"),
        (("--stability", "no-such-contrast"), "no built-in contrast"),
        (("-o", artefact), "would replace"),
        (("-o", "nowhere/r.json"), "there is no directory"),
    ):
        ended = cli("compare", artefact, *words)
        assert ended.code == 2, words
        assert says in " ".join(ended.err.split())
        assert ended.out == ""
    ended = cli("compare", artefact, many[0])
    assert ended.code == 2
    assert "'loud' (loud-quiet.persona) belongs to" in " ".join(ended.err.split())
    assert "'a' (x.persona) belongs to tiny-f00d" in " ".join(ended.err.split())
    assert cli("compare", many[1]).code == 2
    assert cli("compare", here / "nothing.persona").code == 2


def test_what_looks_like_markup_is_printed_as_it_is(many: list[Path]) -> None:
    sure = Estimate(0.5, 0.4, 0.6)
    pair = Alike("a", "b[red]", (sure,), (None,))
    states = HiddenStates("c", "0", 4, 1, (), (pair,) * 8, 10, 0)
    with out.capture() as captured:
        out.print(to_rich(replace(compare(*many), hidden_states=states)))
    assert captured.get().count("b[red]") >= 8
    assert "–" in captured.get()
    assert "2 further pairs stand in the JSON alone" in captured.get()


def test_masks_of_another_model(cli: Cli, artefact: Path, other_llama: Path, contrast: Path, tmp_path: Path) -> None:
    words = ("compare", artefact, "--hidden-states", contrast, "--model", other_llama, "--items", "2")
    ended = cli(*words)
    assert ended.code == 2
    assert "--allow-other-weights" in ended.err
    allowed = cli(*words, "--allow-other-weights")
    assert allowed.code == 0, allowed.err
    assert "warning" in allowed.err
    assert load(artefact).names == ("loud", "quiet")
