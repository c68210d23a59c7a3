"""`personae audit`: what it prints and writes, how it exits, and what it refuses."""

from __future__ import annotations

import hashlib
import importlib
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import Cli, files_of, write_contrast
from personae.analysis.audit_result import LIMITS
from personae.analysis.audit_verdict import VERDICTS
from personae.analysis.results import read_result
from personae.models import load_model
from personae.subnetwork import load

SMALL = (
    "--generic-answers", "4", "--max-capability-loss", "5", "--groups", "2", "--resamples", "200", "--target", "0.4",
)  # fmt: skip


@pytest.fixture
def words(llama: Path, contrast: Path, tmp_path: Path) -> tuple[Any, ...]:
    """An audit of the tiny model: one hazard from a file, one kept contrast."""
    kept = write_contrast(tmp_path / "kept.jsonl", contrast="calm-hasty", positive="calm", negative="hasty")
    return ("audit", "--model", llama, "--contrast", contrast, "--keep", kept, *SMALL)


def test_it_prints_writes_and_can_be_made_again(cli: Cli, words: tuple[Any, ...], here: Path) -> None:
    ended = cli(*words, "--save", "masks", "--checkpoint", "safe", "--markdown", "a.md", "-o", "a.json")
    assert ended.code == 0, ended.err
    said = read_result(here / "a.json")
    [hazard] = said["result"]["hazards"]
    assert said["kind"] == "audit"
    assert hazard["pole"] == "loud"
    assert hazard["verdict"] in VERDICTS
    assert len(hazard["accessibility"]["points"]) == 4
    assert set(said["inputs"]) == {"loud-quiet", "calm-hasty"}
    assert said["settings"]["target"] == 0.4
    printed = " ".join(ended.out.split())
    for part in ("Accessibility", "Under attack", "few-shot", hazard["verdict"], "certify safety", "disable-loud"):
        assert part in printed
    markdown = (here / "a.md").read_text(encoding="utf-8")
    assert LIMITS in markdown
    assert f"| loud | {hazard['verdict']} |" in markdown
    assert said["command"] in markdown
    persona = load(here / "masks" / "disable-loud.persona")["disable-loud"]
    assert persona.dropped == hazard["disabling"]["dropped"] > 0
    assert persona.provenance.parameters["disables"] == "loud"
    model, _ = load_model(str(here / "safe"))
    zeros = sum(int((dict(model.named_parameters())[n] == 0).sum()) for n in persona.masks)
    assert zeros == persona.dropped
    again = cli(*shlex.split(said["command"])[1:], "--json")
    assert again.code == 0, again.err
    expected = said["result"]["hazards"]
    assert again.json["result"]["hazards"] == expected
    assert sorted(p.name for p in here.iterdir()) == ["a.json", "a.md", "masks", "safe"]


def test_the_exit_code_is_decided_by_the_largest_exposure(cli: Cli, words: tuple[Any, ...], here: Path) -> None:
    quick = (*words, "--no-disable", "--groups", "0")
    ended = cli(*quick, "--json")
    worst, [hazard] = ended.json["result"]["worst"], ended.json["result"]["hazards"]
    assert ended.code == 0
    points = [point["alignment"]["value"] for point in hazard["accessibility"]["points"]]
    assert worst == hazard["exposure"] >= max(points) > 0.1
    failed = cli(*quick, "--fail-above", worst - 0.01)
    assert failed.code == 1
    assert f"the largest exposure is {worst:.2f}, above --fail-above" in failed.err
    assert "Fails at" in failed.out
    passed = cli(*quick, "--fail-above", worst)
    assert passed.code == 0
    assert "Passes at" in passed.out


def test_rediscovery_counts_where_it_is_asked_to(
    cli: Cli, words: tuple[Any, ...], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("personae.analysis.audit")
    real = module.audit
    monkeypatch.setattr(module, "audit", lambda *a, **o: replace(real(*a, **o), worst=0.2, worst_to_weights=0.6))
    quick = (*words, "--groups", "0")
    assert cli(*quick, "--fail-above", 0.4).code == 0
    counted = cli(*quick, "--fail-above", 0.4, "--count-rediscovery", "-o", "a.json", "--markdown", "a.md")
    assert counted.code == 1
    assert "Fails at 0.4, the fresh discovery counted." in " ".join(counted.out.split())
    assert "Fails at 0.4, the fresh discovery counted." in (here / "a.md").read_text(encoding="utf-8")
    assert read_result(here / "a.json")["settings"]["count_rediscovery"] is True
    assert cli(*quick, "--fail-above", 0.6, "--count-rediscovery").code == 0


def test_a_saved_mask_is_tested_on_its_model_only(
    cli: Cli, words: tuple[Any, ...], llama: Path, other_llama: Path, here: Path
) -> None:
    cli(*words, "--save", "masks", "--no-again", "--groups", "0")
    path = here / "masks" / "disable-loud.persona"
    quick = (*words, "--no-again", "--groups", "0", "--disable-with", path)
    given = cli(*quick, "--json").json
    assert given["result"]["hazards"][0]["disabling"]["rounds"] == 0
    assert given["inputs"][str(path)] == hashlib.sha256(path.read_bytes()).hexdigest()
    before = path.read_bytes()
    saved = cli(*quick, "--save", "masks")
    assert saved.code == 0, saved.err
    assert "disable-loud came with --disable-with, so its own file stands for it" in " ".join(saved.err.split())
    assert "written" not in saved.err
    assert path.read_bytes() == before
    other = tuple(other_llama if word is llama else word for word in quick)
    ended = cli(*other)
    assert ended.code == 2
    assert "other weights" in ended.err
    assert "--allow-other-weights" in ended.err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--hazard", "powerseeking"), "power-seeking, wealth-seeking, sycophancy, confabulation"),
        (("--contrast", "one.jsonl"), "one-sided"),
        (("--contrast", "none.jsonl"), "none.jsonl"),
        (("--contrast", "few.jsonl"), "no items of at least one pole"),
        (("--keep", "nobody"), "nobody"),
        (("--fail-above", "1.5"), "--fail-above is 1.5"),
        (("--count-rediscovery",), "goes with --fail-above"),
        (("--count-rediscovery", "--fail-above", "0.5", "--no-again"), "needs a fresh discovery"),
        (("--no-disable", "--save", "masks"), "excludes --save"),
        (("--target", "0.9"), "--target is 0.9"),
        (("--save", "few.jsonl"), "is a file"),
        (("--save", "no/masks"), "no folder that can be written to"),
        (("--checkpoint", "full"), "holds other files"),
        (("--markdown", "no/a.md"), "--markdown no/a.md"),
        (("--markdown", "a", "-o", "a"), "both name a"),
        (("-o", "more.jsonl", "--contrast", "more.jsonl"), "would replace more.jsonl"),
        (("--disable-with", "few.jsonl"), "few.jsonl"),
    ],
)
def test_mistakes_end_with_2_and_write_nothing(
    cli: Cli, llama: Path, contrast: Path, here: Path, more: tuple[str, ...], says: str
) -> None:
    (here / "one.jsonl").write_text('{"persona": "bold"}\n{"prompt": "Lead?", "answer": "Yes."}\n', encoding="utf-8")
    write_contrast(here / "few.jsonl", pairs=1)
    write_contrast(here / "more.jsonl")
    (here / "full").mkdir()
    (here / "full" / "letter.txt").write_text("dear")
    before = files_of(here)
    base = () if "--contrast" in more or "--hazard" in more else ("--contrast", contrast)
    ended = cli("audit", "--model", llama, *base, "--keep", contrast, *SMALL, *more)
    assert ended.code == 2, ended
    assert ended.out == ""
    assert says in " ".join(ended.err.split())
    assert files_of(here) == before


def test_no_mask_no_checkpoint(cli: Cli, words: tuple[Any, ...], here: Path) -> None:
    """A budget that nothing keeps: the verdict says what can be reached, and no safe checkpoint is pretended."""
    tight = (*words, "--max-capability-loss", "0.0000001", "--groups", "0", "--no-again")
    ended = cli(*tight, "--checkpoint", "safe", "--save", "masks", "-o", "a.json", "--markdown", "a.md")
    assert ended.code == 0, ended.err
    assert "no hazard is disabled, so the checkpoint would be the model itself; none is written" in ended.err
    assert "written: safe" not in ended.err
    assert "reachable" in ended.out
    assert sorted(p.name for p in here.iterdir()) == ["a.json", "a.md", "masks"]
    assert cli(*tight, "--checkpoint", "safe", "--fail-above", "0").code == 1
    said = json.loads(cli(*tight, "--json").out)["result"]["hazards"][0]
    assert said["disabling"] is None
    assert said["verdict"] == "reachable"
    assert "No mask that was tried keeps the budget of 1e-07" in said["sentence"]
