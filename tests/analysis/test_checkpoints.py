"""The series of checkpoints: order, labels, revisions, and what is refused before any discovery."""

from __future__ import annotations

import importlib
import weakref
from pathlib import Path
from typing import Any

import pytest

from dynamics_data import toy_model, tree_tokenizer
from personae.analysis.checkpoints import Snapshot, default_loader, series, step_of, survey
from personae.errors import ModelError, OptionError

checkpoints = importlib.import_module("personae.analysis.checkpoints")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-300", 300), ("step1000", 1000), ("step1000-tokens4B", 1000), ("global_step_20", 20), ("run_7", 7),
        ("40", 40), ("iter-0010", 10), ("main", None), ("9f86d081884c", None), ("llama2", None), ("v1.5-final", None),
    ],
)  # fmt: skip
def test_step_of_a_name(name: str, step: int | None) -> None:
    assert step_of(name) == step


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a training run leaves: three checkpoints and something else."""
    for name in ("checkpoint-1000", "checkpoint-200", "checkpoint-30"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "config.json").write_text("{}")
    (tmp_path / "run" / "logs").mkdir()
    return tmp_path / "run"


def test_steps_give_the_order(run: Path) -> None:
    folders = [run / "checkpoint-1000", run / "checkpoint-200"]
    assert [(s.label, s.step) for s in series(folders)] == [("checkpoint-200", 200), ("checkpoint-1000", 1000)]
    assert [s.step for s in series(folders, as_given=True)] == [1000, 200]
    (run / "final").mkdir()
    assert [s.label for s in series([*folders, run / "final"])] == ["checkpoint-1000", "checkpoint-200", "final"]


def test_the_folder_of_a_run_means_its_checkpoints(run: Path) -> None:
    assert [s.step for s in series([run])] == [30, 200, 1000]


def test_labels_tell_checkpoints_apart(tmp_path: Path) -> None:
    folders = [tmp_path / place / "a" / "step1" for place in ("x", "y")] + [tmp_path / "b" / "step1"]
    for folder in folders:
        folder.mkdir(parents=True)
    assert [s.label for s in series(folders)] == ["a/step1 (1)", "a/step1 (2)", "b/step1"]


def test_revisions_of_a_hub_id_go_to_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(checkpoints, "load_model", lambda name, **o: asked.append((name, o)) or ("m", "t"))
    found = series(["EleutherAI/pythia-70m"], ["step2000", "step0"])
    assert [(s.label, s.step, s.revision) for s in found] == [("step0", 0, "step0"), ("step2000", 2000, "step2000")]
    assert default_loader(found[1]) == ("m", "t")
    assert asked == [("EleutherAI/pythia-70m", {"revision": "step2000"})]


def test_revisions_of_a_folder_are_its_subfolders(run: Path) -> None:
    found = series([run], ["checkpoint-30", "checkpoint-200"])
    assert [(s.label, s.revision) for s in found] == [("checkpoint-30", None), ("checkpoint-200", None)]
    assert found[0].source == str(run / "checkpoint-30")
    with pytest.raises(ModelError, match="no subfolder 'step9'"):
        series([run], ["checkpoint-30", "step9"])


def test_bad_series(run: Path) -> None:
    for sources, revisions, kind, match in (
        ([], (), OptionError, "there is no checkpoint"),
        ([run / "checkpoint-30"], (), OptionError, "there is one checkpoint"),
        (["a/b"], ["main"], OptionError, "there is one checkpoint, a/b"),
        ([run / "checkpoint-30", run / "checkpoint-30"], (), OptionError, "given twice"),
        (["a/b"], ["main", "main"], OptionError, "a/b at main is given twice"),
        (["a/b", "c/d"], ["main"], OptionError, "--revisions are those of one model"),
        ([run / "checkpoint-30", run / "checkpoint-99"], (), ModelError, "no checkpoint folder .*checkpoint-99"),
    ):
        with pytest.raises(kind, match=match):
            series(sources, revisions)


def snapshots(*names: str) -> list[Snapshot]:
    return [Snapshot(name, None, name) for name in names]


@pytest.mark.parametrize("cyclic", [False, True])
def test_one_checkpoint_is_in_memory_at_a_time(cyclic: bool) -> None:
    alive: list[weakref.ref[Any]] = []

    def load(snapshot: Snapshot) -> Any:
        assert not any(reference() is not None for reference in alive), "an earlier checkpoint is still held"
        model = toy_model(seed=len(alive)).eval()
        alive.append(weakref.ref(model))
        if cyclic:
            model.__dict__["itself"] = model
        return model, tree_tokenizer()

    known = survey(snapshots("a", "b", "c"), load)
    assert len(alive) == 3
    assert len({facts.weights for facts in known}) == 3
    assert len({facts.writing for facts in known}) == 1


def test_the_hash_sees_embeddings_and_norms_too() -> None:
    plain, other = toy_model().eval(), toy_model().eval()
    other.transformer.wte.weight.data[3] += 1
    known = survey(snapshots("a", "b"), lambda s: ((plain if s.label == "a" else other), tree_tokenizer()))
    assert known[0].weights != known[1].weights
    assert known[0].shapes == known[1].shapes


def test_other_shapes_are_refused_by_name() -> None:
    def load(snapshot: Snapshot) -> Any:
        sizes = {"a": (2, 48), "wide": (2, 64), "deep": (3, 48)}
        layers, width = sizes[snapshot.label]
        return toy_model(layers=layers, width=width).eval(), tree_tokenizer()

    with pytest.raises(ModelError) as error:
        survey(snapshots("a", "wide"), load)
    said = str(error.value)
    assert "'wide'" in said
    assert "transformer.h.0.attn.c_attn.weight has shape (192, 64)" in said
    assert "that of 'a' has shape (144, 48)" in said
    with pytest.raises(ModelError, match=r"transformer\.h\.2\.\S+ has shape .*, that of 'a' is not there"):
        survey(snapshots("a", "deep"), load)


def test_a_checkpoint_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "step1").mkdir()
    (tmp_path / "step2").mkdir()
    with pytest.raises(ModelError, match="checkpoint 'step1': "):
        survey(series([tmp_path / "step1", tmp_path / "step2"]), default_loader)
