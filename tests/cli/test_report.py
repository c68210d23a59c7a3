"""`personae report`: what it writes and prints, and what it refuses before it writes anything."""

from __future__ import annotations

from pathlib import Path

import report_data as data
from cli_helpers import Cli, files_of


def test_the_page_and_its_figures_are_written(cli: Cli, here: Path) -> None:
    data.write(here / "t.json", data.trace())
    data.write(here / "f.json", data.frontier())
    ended = cli("report", "t.json", "f.json", "-o", "r.html", "--title", "Two", "--figures", "papers")
    assert ended.code == 0, ended.err
    assert "bold speaks" in ended.out
    assert "written: r.html, 6 figures in papers" in ended.err
    page = (here / "r.html").read_text(encoding="utf-8")
    assert "<h1>Two</h1>" in page
    assert sorted(p.suffix for p in (here / "papers").iterdir()) == [".svg"] * 6


def test_json_says_what_was_written(cli: Cli, here: Path) -> None:
    data.write(here / "t.json", data.trace())
    ended = cli("report", "t.json", "--figures", "papers", "--figure-format", "png", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["format"] == "personae.report/1"
    assert ended.json["output"] == "report.html"
    assert ended.json["parts"][0]["command"] == "personae trace x.persona --seed 3"
    assert sorted(ended.json["figures"]) == sorted(str(p.relative_to(here)) for p in (here / "papers").iterdir())
    assert (here / "report.html").is_file()


def test_an_artefact_and_an_evaluation_of_this_tool_make_a_report(
    cli: Cli, llama: Path, contrast: Path, artefact: Path, here: Path
) -> None:
    ended = cli(
        "eval", contrast, artefact, "--model", llama, "--control", "random", "--random-seeds", "1", "--resamples", "20",
        "-o", "e.json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    ended = cli("report", artefact, "e.json", "--json")
    assert ended.code == 0, ended.err
    parts = ended.json["parts"]
    assert [part["kind"] for part in parts] == ["together", "artefact", "evaluation"]
    assert parts[2]["command"].startswith("personae eval ")
    assert "--random-seeds 1" in parts[2]["command"]
    assert "loud" in (here / "report.html").read_text(encoding="utf-8")


def test_bad_input_is_refused_and_nothing_is_written(cli: Cli, here: Path, artefact: Path) -> None:
    data.write(here / "t.json", data.trace())
    (here / "bad.json").write_text("{]")
    (here / "old.json").write_text('{"format": "personae.analysis/0"}')
    (here / "file").write_text("x")
    before = files_of(here)
    for words, message in (
        (("bad.json",), "bad.json is no JSON"),
        (("old.json",), "personae.analysis/0"),
        (("missing.json",), "cannot be read"),
        (("t.json", "t.json"), "given twice"),
        (("t.json", artefact), "--allow-mixed"),
        (("t.json", "-o", "t.json"), "would replace"),
        (("t.json", "-o", "no/r.html"), "there is no directory"),
        (("t.json", "--figures", "file"), "is a file"),
        (("t.json", "--figures", "f", "--figure-format", "gif"), "choose svg, png, pdf"),
        (("t.json", "--figure-format", "png"), "goes with --figures"),
    ):
        ended = cli("report", *words)
        assert ended.code == 2, words
        assert message in ended.err, (words, ended.err)
    assert files_of(here) == before


def test_mixed_models_with_leave(cli: Cli, here: Path, artefact: Path) -> None:
    data.write(here / "t.json", data.trace())
    ended = cli("report", "t.json", artefact, "--allow-mixed", "--json")
    assert ended.code == 0, ended.err
    assert len({part["fingerprint"] for part in ended.json["parts"]}) == 2
