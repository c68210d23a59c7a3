"""Dynamics: on models that the test trains itself, and its mechanics on models that nobody trained."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causal_data import slow_margins
from dynamics_data import FIRST, LAST, toy_model, train, tree_contrast, tree_tokenizer, write_generic
from personae.analysis import dynamics as run
from personae.analysis.checkpoints import Snapshot
from personae.analysis.dynamics_result import Dynamics, Stage
from personae.analysis.overlap import Drops, by_part, tally
from personae.analysis.results import plain
from personae.discovery import discover, open_session
from personae.errors import ArtefactError, DataError, ModelError, OptionError
from personae.models import load_model
from personae.personas import Contrast, Sample, split
from personae.subnetwork import load

module = importlib.import_module("personae.analysis.dynamics")

STEPS = (0, 30, 75, 150, 300)
QUICK: dict[str, Any] = {
    "cheap_share": 0.3, "drop_share": 0.03, "random_seeds": 2, "resamples": 200, "draws": 20, "generic_answers": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def generic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_generic(tmp_path_factory.mktemp("generic") / "text.jsonl", 0.5, answers=24)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three checkpoints that nobody trained; the third has the weights of the first."""
    made = []
    for step, seed in ((1, 0), (2, 1), (3, 0)):
        made.append(tmp_path_factory.mktemp("run") / f"step{step}")
        toy_model(seed).eval().save_pretrained(made[-1])
        tree_tokenizer().save_pretrained(made[-1])
    return made


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAE_CACHE", str(tmp_path_factory.getbasetemp() / "dynamics-cache"))


CONTRAST = tree_contrast(80)


# --- truth ----------------------------------------------------------------------------------------------------


def test_separation_rises_from_chance_and_less_where_the_mixture_discourages_it(tmp_path: Path) -> None:
    """Two opposing corpora: a persona can be told apart as far as the corpus holds its rival too."""
    found: dict[float, Dynamics] = {}
    for mixture in (0.0, 0.1, 0.5):
        saved = train(tmp_path / str(mixture), mixture, STEPS)
        text = write_generic(tmp_path / f"{mixture}.jsonl", mixture)
        found[mixture] = run(
            saved, tree_contrast(), generic=text, max_capability_loss=0.1, rounds=1, random_seeds=3, resamples=500,
            draws=50,
        )  # fmt: skip
        assert [stage.step for stage in found[mixture].stages] == list(STEPS)
        first = found[mixture].stages[0]
        assert first.separation.low < 0.1  # an untrained model: chance
        assert first.p_holm > 0.05
    never, seldom, even = (found[mixture].stages[-1] for mixture in (0.0, 0.1, 0.5))
    assert even.separation.low > 0.25
    assert even.over_control.low > 0.2
    assert even.p_holm < 0.05
    assert even.acc.value > even.base_acc.value > even.acc_opposite.value
    assert abs(even.controls[0].separation.value) < 0.15  # as many random weights separate nothing
    assert even.separation.low > seldom.separation.high >= never.separation.high
    assert never.separation.value < 0.05
    assert even.margin.value - even.margin_opposite.value > 0
    # alignment comes with a one-sided corpus, and early; it does not come with an even one
    onsets = {mixture: {o.figure: o.step for o in d.onsets} for mixture, d in found.items()}
    assert onsets[0.0]["alignment"] == onsets[0.1]["alignment"] == 30
    assert all(stage.base_acc.value > 0.9 for m in (0.0, 0.1) for stage in found[m].stages[1:])
    assert 0.25 < even.base_acc.value < 0.75
    assert onsets[0.5]["separation"] in STEPS[1:]
    assert onsets[0.0]["separation"] is None
    # masks of the end have more in common with each other than with those of the untrained model
    for pole in (FIRST, LAST):
        first, late = (
            found[0.5].overlap(a, b, pole)["all"]
            for a, b in (("checkpoint-0", "checkpoint-30"), ("checkpoint-150", "checkpoint-300"))
        )
        assert late.jaccard.value > first.jaccard.value
        assert late.jaccard.high is not None
        assert late.jaccard.value > late.jaccard.high
        by_candidates = found[0.5].overlap("checkpoint-150", "checkpoint-300", pole).among_candidates
        assert late.jaccard.value > 1.5 * by_candidates
    for dynamics in found.values():
        assert all(stage.capability_loss < 0.3 for stage in dynamics.stages)


# --- mechanics ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(folders: list[Path], generic: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dynamics, Path]:
    """A finished series and the folder of its parts."""
    parts = tmp_path_factory.mktemp("whole") / "parts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONAE_CACHE", str(parts.parent / "cache"))
        return run(folders, CONTRAST, generic=generic, resume=parts, **QUICK), parts


def test_a_stage_says_what_discovery_and_a_slow_copy_of_the_model_say(
    whole: tuple[Dynamics, Path], folders: list[Path], generic: Path
) -> None:
    found, parts = whole
    stage = found["step2"]
    model, tokenizer = load_model(folders[1])
    session = open_session(model, tokenizer, split(CONTRAST).calibration, generic=generic, generic_answers=8)
    artefact = discover(model, tokenizer, CONTRAST, session=session, cheap_share=0.3, drop_share=0.03)
    assert stage.masks is not None
    kept = load(parts / stage.masks)
    test = split(CONTRAST).test
    wins = []
    for pole in CONTRAST.poles:
        assert kept[pole].masks == artefact[pole].masks
        wins.append(slow_margins(model, tokenizer, test, artefact[pole].masks) > 0)
    base = slow_margins(model, tokenizer, test, {})
    assert stage.items == len(test)
    assert stage.base_acc.value == pytest.approx((base > 0).mean())
    assert stage.base_margin.value == pytest.approx(base.mean(), abs=1e-5)
    assert stage.acc.value == pytest.approx(wins[0].mean())
    assert stage.acc_opposite.value == pytest.approx(wins[1].mean())
    assert stage.separation.value == pytest.approx(wins[0].mean() - wins[1].mean())
    assert stage.separation_tied is not None  # trees open with neither yes nor no: all are tied
    assert stage.separation_tied.value == pytest.approx(stage.separation.value)
    [random] = stage.controls
    assert (random.name, random.seeds) == ("random", (0, 1))
    assert random.separation.value == pytest.approx(np.mean(random.separations))
    best = max(0.0, random.separation.value)
    assert stage.over_control.value == pytest.approx(stage.separation.value - best)
    assert stage.dropped == tuple(artefact[pole].dropped for pole in CONTRAST.poles)
    assert stage.sparsity == pytest.approx(0.03, abs=1e-3)


def test_overlaps_are_those_of_the_kept_masks(whole: tuple[Dynamics, Path], folders: list[Path], generic: Path) -> None:
    found, parts = whole
    made = {s.label: load(parts / str(s.masks)) for s in found.stages}
    assert [(o.first, o.second, o.against) for o in found.overlaps[::2]] == [
        ("step1", "step2", "previous"), ("step2", "step3", "previous"), ("step1", "step3", "last"),
        ("step2", "step3", "last"),
    ]  # fmt: skip
    for overlap in found.overlaps:
        first, second = (
            Drops.of(made[label][overlap.pole].masks, made[label].model.targets)
            for label in (overlap.first, overlap.second)
        )
        expected = by_part(tally(first, second))
        for part in overlap.parts:
            [other] = [e for e in expected if e.part == part.part and e.level == part.level]
            assert (part.common, part.jaccard.value) == (other.common, other.jaccard.value)
            assert part.jaccard.chance == pytest.approx(other.jaccard.chance)
            assert part.jaccard.low is not None
    same = found.overlap("step3", "step1", FIRST)
    assert same["all"].jaccard.value == 1.0  # the same weights, so the same masks
    drawn = {s: load((parts / str(found[s].masks)).with_suffix(".random.persona")) for s in ("step1", "step3")}
    for pole in CONTRAST.poles:
        assert drawn["step1"][pole].dropped == found["step1"].dropped[CONTRAST.poles.index(pole)]
        model, tokenizer = load_model(folders[0])
        session = open_session(model, tokenizer, split(CONTRAST).calibration, generic=generic, generic_answers=8)
        for name, candidates in session.candidates(0.3).items():
            assert not (drawn["step1"][pole].masks[name].dropped_bool() & ~candidates.numpy()).any()
    # of the same 30 % that are candidates either draws a tenth: 0.1/(2 − 0.1)
    assert same.among_candidates == pytest.approx(0.1 / 1.9, abs=0.02)
    assert any("'step3' has the same weights as 'step1'" in note for note in found.notes)
    with pytest.raises(KeyError, match="were not compared"):
        found.overlap("step1", "step9", FIRST)
    with pytest.raises(KeyError, match="no checkpoint 'step9'; there are step1, step2, step3"):
        found["step9"]


def test_a_series_too_long_for_its_resamples_is_told(whole: tuple[Dynamics, Path]) -> None:
    notes = importlib.import_module("personae.analysis.dynamics")._notes
    [stage, *_] = whole[0].stages
    assert not any("resamples" in note for note in notes([], [], [stage] * 50, "text", 2000))
    [said] = [note for note in notes([], [], [stage] * 51, "text", 2000) if "resamples" in note]
    assert said.startswith("51 checkpoints: 2,000 resamples cannot give a p after Holm below 0.051")


def test_finished_checkpoints_are_not_discovered_again(
    whole: tuple[Dynamics, Path], folders: list[Path], generic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, parts = whole
    again = counted(monkeypatch)
    assert plain(run(folders, CONTRAST, generic=generic, resume=parts, **QUICK)) == plain(found)
    assert again == []
    run(folders, CONTRAST, generic=generic, resume=parts, **{**QUICK, "draws": 5})  # of no stage's figures
    assert again == []
    longer = [*folders, folders[0].with_name("step9")]
    toy_model(5).eval().save_pretrained(longer[-1])
    tree_tokenizer().save_pretrained(longer[-1])
    more = run(longer, CONTRAST, generic=generic, resume=parts, **QUICK)
    assert len(again) == 1  # the new one alone
    for old, new in zip(found.stages, more.stages[:3], strict=True):
        assert plain(new) == {**plain(old), "p_holm": new.p_holm}  # Holm over four
    again.clear()
    run(folders, CONTRAST, generic=generic, resume=parts, **{**QUICK, "drop_share": 0.02})
    assert len(again) == 3


@pytest.mark.parametrize(
    "damage", ["figures cut", "figures of another version", "masks gone", "masks cut", "random masks gone"]
)
def test_damaged_parts_are_made_anew(
    whole: tuple[Dynamics, Path], folders: list[Path], generic: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, damage: str,
) -> None:  # fmt: skip
    found, parts = whole
    copies = tmp_path / "parts"
    copies.mkdir()
    for path in parts.iterdir():
        (copies / path.name).write_bytes(path.read_bytes())
    masks = copies / str(found["step1"].masks)
    figures = masks.with_suffix(".json")
    if damage == "figures cut":
        figures.write_bytes(figures.read_bytes()[:100])
    elif damage == "figures of another version":
        said = json.loads(figures.read_text())
        del said["separation"]
        figures.write_text(json.dumps(said))
    elif damage == "masks gone":
        masks.unlink()
    elif damage == "random masks gone":
        masks.with_suffix(".random.persona").unlink()
    else:
        masks.write_bytes(masks.read_bytes()[:-50])
    again = counted(monkeypatch)
    once_more = run(folders, CONTRAST, generic=generic, resume=copies, **QUICK)
    assert len(again) == 1
    assert without_seconds(once_more) == without_seconds(found)


def test_a_series_that_was_killed_goes_on(
    whole: tuple[Dynamics, Path], folders: list[Path], generic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = whole
    real, made = module.discover, []

    def dies(*arguments: Any, **options: Any) -> Any:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(module, "discover", dies)
    with pytest.raises(KeyboardInterrupt):
        run(folders, CONTRAST, generic=generic, resume=tmp_path / "parts", **QUICK)
    kept = sorted(p.name.partition(".")[2] for p in (tmp_path / "parts").iterdir())
    assert kept == ["json", "persona", "random.persona"]
    monkeypatch.setattr(module, "discover", real)
    again = counted(monkeypatch)
    assert without_seconds(
        run(folders, CONTRAST, generic=generic, resume=tmp_path / "parts", **QUICK)
    ) == without_seconds(found)
    assert len(again) == 2


def test_without_a_folder_nothing_is_left(folders: list[Path], generic: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    found = run(folders[:2], CONTRAST, generic=generic, shuffled=True, **QUICK)
    assert list(tmp_path.iterdir()) == []
    assert all(stage.masks is None for stage in found.stages)
    assert [control.name for control in found.stages[0].controls] == ["random", "shuffled"]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one for every discovery."""
    real, made = module.discover, []

    def discover(*arguments: Any, **options: Any) -> Any:
        made.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(module, "discover", discover)
    return made


def without_seconds(found: Dynamics) -> Any:
    said = plain(found)
    for stage in said["stages"]:
        del stage["seconds"]
    return said


def test_stages_survive_json(whole: tuple[Dynamics, Path]) -> None:
    for stage in whole[0].stages:
        assert plain(Stage.from_dict(json.loads(json.dumps(plain(stage))))) == plain(stage)
        assert Stage.from_dict(json.loads(json.dumps(plain(stage)))).separation == stage.separation


def test_frames(whole: tuple[Dynamics, Path]) -> None:
    found, _ = whole
    frame = found.frame()
    assert frame["label"].tolist() == ["step1", "step2", "step3"]
    assert frame["separation_low"].tolist() == [s.separation.low for s in found.stages]
    assert frame["random_separation"].tolist() == [s.controls[0].separation.value for s in found.stages]
    assert frame[f"dropped_{LAST}"].tolist() == [s.dropped[1] for s in found.stages]
    overlaps = found.overlap_frame()
    assert len(overlaps) == len(found.overlaps) * 3
    assert overlaps["jaccard"].tolist() == [p.jaccard.value for o in found.overlaps for p in o.parts]
    assert json.dumps(plain(found.to_dict()))


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.fixture
def no_discovery(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("discover", "open_session"):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("something was discovered"))


@pytest.mark.usefixtures("no_discovery")
def test_other_shapes_are_refused_before_any_discovery(folders: list[Path], generic: Path, tmp_path: Path) -> None:
    wide = tmp_path / "step9"
    toy_model(width=64).save_pretrained(wide)
    tree_tokenizer().save_pretrained(wide)
    with pytest.raises(ModelError, match=r"checkpoint 'step9'.*c_attn\.weight has shape \(192, 64\).*\(144, 48\)"):
        run([*folders, wide], CONTRAST, generic=generic, resume=tmp_path / "parts", **QUICK)
    assert not (tmp_path / "parts").exists()


@pytest.mark.usefixtures("no_discovery")
@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"random_seeds": 0}, OptionError, "--random-seeds is 0"),
        ({"draws": -1}, OptionError, "--draws is -1"),
        ({"resamples": 0}, OptionError, "--resamples is 0"),
        ({"method": "wanda", "cheap_share": None, "drop_share": None, "shuffled": True}, OptionError, "--shuffled"),
        ({"max_capability_loss": 0.1}, OptionError, "excludes --cheap-share"),
        ({"generic": "no.txt"}, DataError, "no generic text at no.txt"),
        ({"targets": "*.nothing"}, OptionError, "matches no weight"),
        ({"revisions": ["a"]}, OptionError, "--revisions are those of one model"),
    ],
)
def test_bad_options(folders: list[Path], options: dict[str, Any], kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        run(folders, CONTRAST, **{**QUICK, **options})


@pytest.mark.usefixtures("no_discovery")
def test_bad_data(folders: list[Path]) -> None:
    loose = Contrast("u", "a", "b", positive_samples=(Sample("q", "x"),), negative_samples=(Sample("q", "y"),))
    with pytest.raises(DataError, match="is not paired"):
        run(folders, loose, **QUICK)
    with pytest.raises(DataError, match="has no items"):
        run(folders, tree_contrast(2), **QUICK)
    with pytest.raises(OptionError, match="not both"):
        run([Snapshot("a", None, "a"), folders[0]], CONTRAST, **QUICK)


def test_a_folder_that_cannot_be_written(folders: list[Path], generic: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="--resume"):
        run(folders[:2], CONTRAST, generic=generic, resume=tmp_path / "file" / "parts", **QUICK)
