"""`personae lm-eval`: errors of ours before lm-eval starts, and lm-eval's own report after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_helpers import Cli


def test_a_local_task_under_a_persona(cli: Cli, llama: Path, artefact: Path, here: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"q": f"Part {n}?", "a": " one", "b": " two"}) + "\n" for n in range(3)))
    (tmp_path / "small.yaml").write_text(
        f"task: small\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_choice: ["{{a}}", "{{b}}"]\ndoc_to_target: 0\n'
        "metric_list:\n  - metric: acc\n"
    )
    done = cli(
        "lm-eval", artefact, "-p", "loud", "--model", llama, "--", "--tasks", "small", "--include_path", tmp_path,
        "--output_path", here / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "small" in done.out
    [results] = (here / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["small"]["sample_len"] == 3


def test_the_base_model_where_nothing_stands_before_the_dashes(
    cli: Cli, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[dict[str, object], list[str]]] = []
    run = "personae.evaluation.lm_eval_model.run_lm_eval"
    monkeypatch.setattr(run, lambda given, words: asked.append((given, words)))
    done = cli("lm-eval", "--model", llama, "--", "--tasks", "small", "--limit", "5")
    assert done.code == 0, done.err
    [(given, words)] = asked
    assert words == ["--tasks", "small", "--limit", "5"]
    assert not {"artefact", "persona"} & given.keys()


def test_errors_before_lm_eval_starts(cli: Cli, llama: Path, artefact: Path) -> None:
    for arguments, said in (
        (("lm-eval", artefact, "-p", "loud", "--model", llama), "options are missing"),
        (("lm-eval", artefact, "--model", llama, "--", "--tasks", "x"), "belong together"),
        (("lm-eval", "-p", "loud", "--model", llama, "--", "--tasks", "x"), "belong together"),
        (("lm-eval", "--", "--model", "hf", "--tasks", "x"), "belongs to"),
        (("lm-eval", artefact, "-p", "calm", "--model", llama, "--", "--tasks", "x"), "calm"),
        (("lm-eval", artefact, "-p", "loud", "--model", llama, "--", "--tasks", "x", "--model", "hf"), "belongs to"),
    ):
        done = cli(*arguments)
        assert done.code == 2, done.err
        assert said in done.err
