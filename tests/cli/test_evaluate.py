"""`personae eval`: the table and the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from cli_helpers import Cli
from personae.evaluation import from_dict


def test_the_table(cli: Cli, llama: Path, contrast: Path, artefact: Path, here: Path) -> None:
    ended = cli("eval", contrast, artefact, "--model", llama, "--random-seeds", "2", "--resamples", "50")
    assert ended.code == 0, ended.err
    for condition in ("base", "system prompt", "directed", "random", "magnitude", "generic", "opposite"):
        assert f" {condition} " in ended.out
    assert "loud against quiet" in ended.out
    assert "…" not in ended.out  # no figure is cut where stdout is no terminal
    assert not list(here.iterdir())


def test_json_is_alone_on_stdout_and_can_be_written_too(
    cli: Cli, llama: Path, contrast: Path, artefact: Path, here: Path
) -> None:
    ended = cli(
        "eval", contrast, artefact, "--model", llama, "--control", "magnitude", "--method", "random", "--all-items",
        "--resamples", "50", "--json", "-o", "result.json",
    )  # fmt: skip
    assert ended.code == 2  # --method calibrates: it needs a split
    assert "--method" in ended.err
    assert not list(here.iterdir())
    ended = cli(
        "eval", contrast, artefact, "--model", llama, "--control", "magnitude", "--method", "random",
        "--resamples", "50", "--json", "-o", "result.json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    result = from_dict(ended.json)
    assert [row.name for row in result.rows] == ["base", "system prompt", "directed", "random", "magnitude"]
    assert json.loads((here / "result.json").read_text()) == ended.json
    assert [p.name for p in here.iterdir()] == ["result.json"]


def test_all_items_say_that_they_calibrated(cli: Cli, llama: Path, contrast: Path, artefact: Path) -> None:
    words = ("eval", contrast, artefact, "--model", llama, "--control", "magnitude", "--resamples", "20", "--all-items")
    ended = cli(*words, "--json")
    assert ended.json["data"]["items"] == 30
    assert any("discovery has read" in note for note in ended.json["notes"])
    assert "warning: " in ended.err


def test_the_users_own_texts_measure_the_capability_loss_on_the_artefacts_targets(
    cli: Cli, llama: Path, contrast: Path, here: Path
) -> None:
    (here / "plain.txt").write_text("The sea was calm and the boats lay still. " * 60)
    chat = [{"prompt": f"Say {n} words.", "answer": "one two three"} for n in range(6)]
    (here / "chat.jsonl").write_text("\n".join(map(json.dumps, chat)))
    made = cli(
        "discover", contrast, "--model", llama, "--cheap-share", "0.3", "--drop-share", "0.02", "--target", "*mlp*",
        "--tokens", "all", "--generic-text", "plain.txt", "-o", "mlp.persona", "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    ended = cli(
        "eval", contrast, "mlp.persona", "--model", llama, "--plain-text", "plain.txt", "--chat-text", "chat.jsonl",
        "--generic-text", "plain.txt", "--resamples", "20", "--control", "random", "--random-seeds", "1", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    result = from_dict(ended.json)
    assert result.text.chat_answers == 6
    assert "plain.txt" in result.text.name
    # sparsity counts over the targets of the artefact, so mask and control drop the same share of them
    assert abs(result["directed"].sparsity - 0.02) < 0.002
    assert abs(result["random"].sparsity - 0.02) < 0.002
    assert not any("generic text" in note for note in result.notes)


def test_one_sided_data_are_refused(cli: Cli, llama: Path, here: Path) -> None:
    (here / "singer.jsonl").write_text('{"prompt": "What?", "answer": "I sing."}\n')
    ended = cli("eval", "singer.jsonl", "--model", llama)
    assert ended.code == 2
    assert "is one-sided; evaluation compares two answers" in ended.err
