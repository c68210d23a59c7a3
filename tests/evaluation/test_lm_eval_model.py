"""lm-eval on a worn persona: its log-likelihoods are ours, from a local task, by Python and by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from personae.errors import OptionError, UnknownPersonaError
from personae.evaluation.lm_eval_model import register, run_lm_eval, worn
from personae.models import Question, find_targets, load_model, score_continuations
from personae.personas import Contrast
from personae.runtime import wearing

QUESTIONS = [
    {"q": f"What about {topic}?", "choices": [" I like it a lot.", " Not for me, thanks."], "gold": n % 2}
    for n, topic in enumerate(("boats", "letters", "music", "walls", "bread"))
]
TASK = """task: local_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with one task and its data."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (folder / "local_choice.yaml").write_text(TASK.format(data=data))
    return folder


@pytest.fixture
def saved(tmp_path: Path, model_and_tokenizer: Any, contrast: Contrast, artefact_of: Any) -> tuple[Path, Path]:
    """(folder of the tiny model, artefact)."""
    model, tokenizer = model_and_tokenizer
    folder, path = tmp_path / "model", tmp_path / "loud.persona"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    artefact_of(model, contrast, share=0.1).save(path)
    return folder, path


def ours(folder: Path, path: Path, persona: str | None, contrast: Contrast) -> list[list[float]]:
    """Summed log-probability of every choice, scored by us."""
    from personae.subnetwork import load

    model, tokenizer = load_model(folder)
    questions = []
    for row in QUESTIONS:
        prompt = tokenizer(row["q"])["input_ids"]
        whole = [tokenizer(f"{row['q']}{choice}")["input_ids"] for choice in row["choices"]]  # type: ignore[attr-defined]
        questions.append(Question(tuple(prompt), tuple(tuple(w[len(prompt) :]) for w in whole)))
    masks = load(path)[persona].masks if persona else {}
    with wearing(find_targets(model), masks):
        return [[float(a.sum()) for a in answers] for answers in score_continuations(model, questions)]


@pytest.mark.parametrize("persona", ["loud", None])
def test_log_likelihoods_equal_ours(
    tasks: Path, saved: tuple[Path, Path], contrast: Contrast, persona: str | None
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder, path = saved
    register()
    arguments = {"model": str(folder)} | ({"artefact": str(path), "persona": persona} if persona else {})
    result = simple_evaluate(
        model="personae", model_args=arguments, tasks=["local_choice"], log_samples=True, batch_size=2,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False), bootstrap_iters=10,
    )  # fmt: skip
    samples = sorted(result["samples"]["local_choice"], key=lambda s: s["doc_id"])
    found = [[r[0] for r in s["filtered_resps"]] for s in samples]
    expected = ours(folder, path, persona, contrast)
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), atol=1e-4)
    if persona:
        assert not torch.allclose(torch.tensor(found), torch.tensor(ours(folder, path, None, contrast)), atol=1e-2)


def test_the_command_line_of_lm_eval(tasks: Path, saved: tuple[Path, Path], contrast: Contrast, tmp_path: Path) -> None:
    folder, path = saved
    given = {"model": str(folder), "artefact": str(path), "persona": "quiet", "strength": 1.0}
    out = tmp_path / "out"
    run_lm_eval(
        given,
        ["--tasks", "local_choice", "--include_path", str(tasks), "--output_path", str(out), "--log_samples"],
    )
    [results] = out.rglob("results_*.json")
    assert "local_choice" in json.loads(results.read_text())["results"]
    [samples] = out.rglob("samples_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda s: s["doc_id"])
    expected = ours(folder, path, "quiet", contrast)
    found = [[float(r[0]) for r in row["filtered_resps"]] for row in rows]
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), atol=1e-4)


def test_what_is_refused(model_and_tokenizer: Any, contrast: Contrast, artefact_of: Any, tmp_path: Path) -> None:
    model, tokenizer = model_and_tokenizer
    path = tmp_path / "loud.persona"
    artefact_of(model, contrast).save(path)
    with pytest.raises(OptionError, match="belong together"):
        worn(model, tokenizer, path, None, 1.0, False)
    with pytest.raises(UnknownPersonaError):
        worn(model, tokenizer, path, "calm", 1.0, False)
    for option in ("--model", "--model_args=x=1", "--device"):
        with pytest.raises(OptionError, match="belongs to lm-eval alone"):
            run_lm_eval({}, ["--tasks", "x", option])
