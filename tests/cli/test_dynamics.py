"""`personae dynamics`: tables, the result file, going on, and what is refused and when."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

import personae.models
from cli_helpers import Cli, files_of
from dynamics_data import toy_model, tree_contrast, tree_tokenizer, write_generic
from personae.analysis.results import read_result
from personae.subnetwork import load

QUICK = (
    "--cheap-share", "0.3", "--drop-share", "0.03", "--random-seeds", "1", "--resamples", "100", "--draws", "10",
    "--generic-answers", "6",
)  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints that nobody trained."""
    folder = tmp_path_factory.mktemp("training")
    for step in (20, 100):
        toy_model(step).eval().save_pretrained(folder / f"checkpoint-{step}")
        tree_tokenizer().save_pretrained(folder / f"checkpoint-{step}")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The options that name the trees and a generic text."""
    folder = tmp_path_factory.mktemp("trees")
    contrast = tree_contrast(60)
    lines = [json.dumps({"contrast": contrast.name, "positive": contrast.positive, "negative": contrast.negative})]
    lines += [json.dumps({"prompt": p.prompt, "positive": p.positive, "negative": p.negative}) for p in contrast.pairs]
    (folder / "trees.jsonl").write_text("\n".join(lines) + "\n")
    generic = write_generic(folder / "generic.jsonl", 0.5, answers=24)
    return ["--contrast", folder / "trees.jsonl", "--generic-text", generic]


def test_tables_file_and_the_command_that_makes_it_again(
    cli: Cli, run_folder: Path, data: list[object], here: Path
) -> None:
    ended = cli("dynamics", run_folder, *data, *QUICK, "-o", "d.json", "--seed", "2")
    assert ended.code == 0, ended.err
    said = read_result(here / "d.json")
    stages = said["result"]["stages"]
    assert said["kind"] == "dynamics"
    assert [(s["label"], s["step"]) for s in stages] == [("checkpoint-20", 20), ("checkpoint-100", 100)]
    assert said["inputs"]["checkpoint checkpoint-20"] == stages[0]["fingerprint"]
    assert set(said["inputs"]) >= {"first-named-last-named", str(data[3])}
    assert said["settings"]["drop_share"] == 0.03
    sep = stages[1]["separation"]
    assert f"{sep['value']:+.2f} [{sep['low']:+.2f}, {sep['high']:+.2f}]" in ended.out
    overlap = said["result"]["overlaps"][0]
    figure = overlap["parts"][0]["jaccard"]
    ends = f"{figure['low']:.4f}–{figure['high']:.4f}; {overlap['among_candidates']:.4f}"
    assert f"{figure['value']:.4f} ({figure['chance']:.4f}, {ends})" in ended.out
    for figure in ("alignment of the base model: ", "separation by masks: ", "overlap of masks: "):
        assert figure in ended.out
    assert "written: d.json; masks of every checkpoint: d.json.parts" in ended.err
    kept = load(here / "d.json.parts" / stages[0]["masks"])
    assert kept.names == ("first-named", "last-named")
    again = cli(*shlex.split(said["command"])[1:], "--resume", "d.json.parts", "--json")
    assert again.json == said  # read again, not discovered again: seconds are the same
    assert "attribution" not in again.err


def test_subfolders_as_revisions_and_order(cli: Cli, run_folder: Path, data: list[object]) -> None:
    words = ("dynamics", run_folder, "--revisions", "checkpoint-100, checkpoint-20", *data, *QUICK, "--json")
    assert [s["step"] for s in cli(*words).json["result"]["stages"]] == [20, 100]
    given = cli(*words, "--as-given")
    assert [s["step"] for s in given.json["result"]["stages"]] == [100, 20]
    assert "--as-given" in given.json["command"]


def test_hub_revisions_reach_the_loader(
    cli: Cli, run_folder: Path, data: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = personae.models.load_model, []

    def stand_in(name: str, *, revision: str, **options: Any) -> Any:
        asked.append((name, revision, options["dtype"]))
        return real(run_folder / {"step1": "checkpoint-20", "step2": "checkpoint-100"}[revision], **options)

    monkeypatch.setattr(personae.models, "load_model", stand_in)
    ended = cli("dynamics", "owner/name", "--revisions", "step1,step2", *data, *QUICK, "--dtype", "float32", "--json")
    assert ended.code == 0, ended.err
    assert asked[:2] == [("owner/name", "step1", "float32"), ("owner/name", "step2", "float32")]
    assert [(s["source"], s["revision"]) for s in ended.json["result"]["stages"]] == [
        ("owner/name", "step1"), ("owner/name", "step2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("checkpoint-20",), "there is one checkpoint"),
        (("checkpoint-20", "checkpoint-20"), "is given twice"),
        (("checkpoint-20", "./nowhere"), "no checkpoint folder ./nowhere"),
        (("checkpoint-20", "wide"), "no checkpoint of the same model as 'checkpoint-20'"),
        (("checkpoint-20", "empty"), "checkpoint 'empty': cannot load"),
        (("checkpoint-20", "checkpoint-100", "--revisions", "a"), "--revisions are those of one model"),
        ((".", "--revisions", "a,,b"), "write names with a comma"),
        ((".", "--revisions", "checkpoint-20,x"), "no subfolder 'x'"),
        (("checkpoint-20", "checkpoint-100", "--sparsity", "0.1"), "--drop-share"),
        (("checkpoint-20", "checkpoint-100", "--max-capability-loss", "0.1"), "excludes --cheap-share"),
        (("checkpoint-20", "checkpoint-100", "--method", "magic"), "unknown method 'magic'"),
        (("checkpoint-20", "checkpoint-100", "-o", "no/d.json"), "there is no directory"),
        (("checkpoint-20", "checkpoint-100", "--resume", "note.txt"), "is a file, but finished parts need a folder"),
        (("checkpoint-20", "checkpoint-100", "--contrast", "nowhere"), "nowhere"),
        (("checkpoint-20", "checkpoint-100", "--pairs", "999"), "cannot take 999"),
    ],
)
def test_mistakes_end_with_2_before_any_discovery(
    cli: Cli, run_folder: Path, data: list[object], here: Path, monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...], says: str,
) -> None:  # fmt: skip
    for folder in run_folder.iterdir():
        (here / folder.name).symlink_to(folder)
    toy_model(width=64).save_pretrained(here / "wide")
    tree_tokenizer().save_pretrained(here / "wide")
    (here / "empty").mkdir()
    (here / "note.txt").write_text("")
    before = files_of(here)
    monkeypatch.setattr("personae.discovery.session.Session.family", lambda *_: pytest.fail("it was discovered"))
    ended = cli("dynamics", *data, *QUICK, *words)
    assert ended.code == 2, ended
    assert ended.out == ""
    assert says in " ".join(ended.err.split())
    assert files_of(here) == before


def test_one_sided_data_are_refused(cli: Cli, run_folder: Path, here: Path) -> None:
    lines = [json.dumps({"prompt": f"What, {n}?", "answer": "So."}) for n in range(9)]
    (here / "lone.jsonl").write_text("\n".join([json.dumps({"persona": "lone"}), *lines]) + "\n")
    ended = cli("dynamics", run_folder, "--contrast", "lone.jsonl", *QUICK)
    assert ended.code == 2
    assert "one-sided" in ended.err or "lone.jsonl" in ended.err
