"""When a persona appears in training: the same discovery on a series of checkpoints of one model.

1. Look at every checkpoint (`checkpoints`): another shape is refused before anything is discovered.
2. For each, one in memory at a time: masks of both poles from the calibration items, then base, masks and controls on
   the test items (`discover` and `evaluate`, as for a single model).
3. What the masks of successive checkpoints, and of each and the last, have in common, against chance (`overlap`).
4. From which checkpoint on alignment, separation and overlap are there (`onsets`).

A finished checkpoint is kept, figures and masks, and read again by the next run with the same settings.
"""

from __future__ import annotations

import hashlib
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any

from personae.analysis.checkpoints import Known, Loader, Snapshot, default_loader, forget, loaded, series, survey
from personae.analysis.dynamics_figures import among_candidates, measured, onsets
from personae.analysis.dynamics_result import Dynamics, MaskOverlap, Stage
from personae.analysis.overlap import Drops, by_part, tally
from personae.discovery import READ_ANSWERS, Progress, Settings, discover, open_session, silent
from personae.errors import ArtefactError, DataError, OptionError, PersonaeError
from personae.evaluation import RESAMPLES, evaluate, holm
from personae.evaluation.bootstrap import too_few
from personae.evaluation.kept import Kept
from personae.personas import Contrast, split
from personae.subnetwork import Artefact, load

DRAWS = 200  # masks by chance behind every interval of overlap
RANDOM_SEEDS = 5


def dynamics(
    checkpoints: Sequence[str | PathLike[str] | Snapshot],
    contrast: Contrast,
    *,
    revisions: Sequence[str] = (),
    as_given: bool = False,
    loader: Loader = default_loader,
    generic: str | Path | None = None,
    generic_answers: int = READ_ANSWERS,
    targets: str | Sequence[str] | None = None,
    split_seed: int = 0,
    random_seeds: int = RANDOM_SEEDS,
    shuffled: bool = False,
    draws: int = DRAWS,
    resamples: int = RESAMPLES,
    resume: Path | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Dynamics:
    """Discover and measure both poles of a contrast on every checkpoint.

    checkpoints, revisions, as_given: see `series`. contrast: paired; its calibration part finds masks, dev chooses,
    test is scored. loader: what loads one. generic, generic_answers, targets: as `discover` takes them; without a
    source every checkpoint samples its own generic text. random_seeds: of the random control; shuffled: also masks
    from exchanged labels, one backward pass more a checkpoint. draws: masks by chance. resume: folder of finished
    checkpoints, with a `.persona` file each; None: kept in a temporary folder while this runs. options: the fields of
    `Settings`; seed also draws controls and resamples.

    Errors: `OptionError`, `DataError`, `ModelError` (checkpoints that cannot be loaded or differ in shape) before any
    discovery; `ArtefactError` where the folder cannot be written.
    """
    settings = Settings(**options).checked()
    parts = _check(contrast, settings, split_seed, random_seeds, shuffled, draws, resamples)
    ready = [each for each in checkpoints if isinstance(each, Snapshot)]
    if ready and (len(ready) < len(checkpoints) or revisions):
        raise OptionError("give snapshots, or sources with their revisions, not both.")
    snapshots = tuple(ready) or series(
        [c for c in checkpoints if not isinstance(c, Snapshot)], revisions, as_given=as_given
    )
    known = survey(snapshots, loader, targets, progress)
    controls = ("random", "shuffled") if shuffled else ("random",)
    frame = {
        "contrast": contrast.sha256, "split_seed": split_seed, "settings": asdict(settings),
        "generic": _generic_key(generic), "generic_answers": generic_answers, "controls": controls,
        "random_seeds": random_seeds, "resamples": resamples,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="personae-dynamics-") as temporary:
        kept = Kept(Path(temporary) if resume is None else resume.expanduser(), frame)
        stages: list[Stage] = []
        for number, (snapshot, facts) in enumerate(zip(snapshots, known, strict=True), 1):
            stage = _kept_stage(kept, snapshot, facts)
            if stage is None:
                title = f"{snapshot.label} ({number} of {len(snapshots)})"
                model, tokenizer = loaded(snapshot, loader)
                session = open_session(
                    model, tokenizer, parts.calibration, generic=generic, generic_answers=generic_answers,
                    targets=targets, tokens=settings.tokens, seed=settings.seed, progress=_titled(progress, title),
                )  # fmt: skip
                artefact = discover(
                    model, tokenizer, contrast, split_seed=split_seed, session=session, **asdict(settings)
                )
                table = evaluate(
                    model, tokenizer, contrast, artefact, controls=controls, split_seed=split_seed,
                    random_seeds=random_seeds, session=session, system_prompt=False, resamples=resamples,
                    seed=settings.seed, progress=session.progress,
                )  # fmt: skip
                stage = measured(snapshot, artefact, table, contrast)
                session.forget()
                random = among_candidates(session, artefact, contrast, f"{snapshot.label} {facts.weights}")
                stage = _keep(kept, snapshot, facts, stage, (artefact, random), named=resume is not None)
                held = weakref.ref(model)
                del model, tokenizer, session, random
                forget(held)
            stages.append(stage)
        overlaps = _overlaps(kept, snapshots, known, contrast, draws, settings.seed, progress)
    stages = _adjusted(stages)
    return Dynamics(
        contrast.name, contrast.positive, contrast.negative, settings.method, tuple(stages), overlaps,
        onsets(stages, overlaps), draws, resamples, settings.seed, _notes(snapshots, known, stages, generic, resamples),
    )  # fmt: skip


def _check(
    contrast: Contrast,
    settings: Settings,
    split_seed: int,
    random_seeds: int,
    shuffled: bool,
    draws: int,
    resamples: int,
) -> Any:
    """The split; refuses what else would be refused after the first discovery. Errors: `OptionError`, `DataError`."""
    if not isinstance(contrast, Contrast) or not contrast.paired:
        raise DataError(f"'{contrast.name}' is not paired: dynamics scores both poles' answers to the same questions.")
    if random_seeds < 1:
        raise OptionError(f"--random-seeds is {random_seeds}: at least 1 is needed, or separation has no chance level.")
    for option, number, least in (("--draws", draws, 0), ("--resamples", resamples, 1)):
        if number < least:
            raise OptionError(f"{option} is {number}: it must be {least} or more.")
    if shuffled and not (settings.method == "directed" and not settings.isolated):
        raise OptionError("--shuffled repeats directed with exchanged labels; it goes with --method directed alone.")
    return split(contrast, seed=split_seed)


def _titled(progress: Progress, before: str) -> Progress:
    return lambda title, total: progress(f"{before}: {title}", total)


def _generic_key(generic: str | Path | None) -> Any:
    """What stands for the generic text: the content of a file, the name of any other source. Errors: `DataError`."""
    if generic is None or str(generic).startswith("hub:"):
        return generic
    try:
        return hashlib.sha256(Path(generic).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"there is no generic text at {generic}: {error.strerror}.") from error


# --- finished checkpoints -------------------------------------------------------------------------------------


def _decided(facts: Known) -> list[Any]:
    return [facts.weights, facts.writing, facts.dtype, sorted(facts.shapes)]


def _masks_paths(kept: Kept, snapshot: Snapshot, facts: Known) -> tuple[Path, Path]:
    """Of the masks that were found, and of the random ones beside them."""
    found, random = (kept.path(snapshot.label, _decided(facts), end) for end in (".persona", ".random.persona"))
    assert found is not None
    assert random is not None
    return found, random


def _kept_stage(kept: Kept, snapshot: Snapshot, facts: Known) -> Stage | None:
    """A checkpoint that an earlier run has finished, if its masks are whole too."""
    said = kept.read(snapshot.label, _decided(facts))
    if said is None:
        return None
    try:
        for path in _masks_paths(kept, snapshot, facts):
            load(path)
        stage = Stage.from_dict(said)
    except (KeyError, TypeError, ArtefactError):
        return None  # damaged, or of another version: made anew
    return replace(stage, step=snapshot.step, source=snapshot.source, revision=snapshot.revision)


def _keep(
    kept: Kept, snapshot: Snapshot, facts: Known, stage: Stage, artefacts: tuple[Artefact, Artefact], *, named: bool
) -> Stage:
    """Masks first, so that figures never stand there without them. named: whether the files outlive this run."""
    kept.make()
    paths = _masks_paths(kept, snapshot, facts)
    try:
        for artefact, path in zip(artefacts, paths, strict=True):
            artefact.save(path)
    except PersonaeError as error:
        raise ArtefactError(f"cannot keep the masks of '{snapshot.label}': {error}") from error
    stage = replace(stage, masks=paths[0].name if named else None)
    kept.write(snapshot.label, _decided(facts), asdict(stage))
    return stage


# --- over the series ------------------------------------------------------------------------------------------


def _overlaps(
    kept: Kept,
    snapshots: Sequence[Snapshot],
    known: Sequence[Known],
    contrast: Contrast,
    draws: int,
    seed: int,
    progress: Progress,
) -> tuple[MaskOverlap, ...]:
    """Each checkpoint's masks against the one before and against the last, pole by pole."""
    last = len(snapshots) - 1
    couples = [(i - 1, i, "previous") for i in range(1, last + 1)] + [(i, last, "last") for i in range(last)]
    held: dict[int, list[Mapping[str, Drops]]] = {}

    def drops(number: int) -> list[Mapping[str, Drops]]:
        if number not in held:
            for old in [n for n in held if n != last][:-1]:
                del held[old]  # the one before, this one and the last are enough
            shapes = known[number].shapes
            read = [load(path) for path in _masks_paths(kept, snapshots[number], known[number])]
            held[number] = [{pole: Drops.of(one[pole].masks, shapes) for pole in contrast.poles} for one in read]
        return held[number]

    found = []
    with progress("overlap of masks", len(couples)) as tick:
        for first, second, against in couples:
            (one, random), (other, other_random) = drops(first), drops(second)
            for p, pole in enumerate(contrast.poles):
                counted = tally(one[pole], other[pole], draws=draws, seed=(seed, first, second, p))
                wanted = tuple(part for part in by_part(counted) if part.level in ("all", "kind"))
                whole = by_part(tally(random[pole], other_random[pole]))[0]
                found.append(
                    MaskOverlap(
                        snapshots[first].label, snapshots[second].label, against, pole, wanted, whole.jaccard.value
                    )
                )
            tick(1)
    return tuple(found)


def _adjusted(stages: Sequence[Stage]) -> list[Stage]:
    adjusted = holm([stage.over_control.p for stage in stages])
    return [replace(stage, p_holm=p) for stage, p in zip(stages, adjusted, strict=True)]


def _notes(
    snapshots: Sequence[Snapshot], known: Sequence[Known], stages: Sequence[Stage], generic: object, resamples: int
) -> tuple[str, ...]:
    notes = []
    for number, facts in enumerate(known):
        same = [s.label for s, other in zip(snapshots[:number], known, strict=False) if other.weights == facts.weights]
        if same:
            notes.append(f"'{snapshots[number].label}' has the same weights as '{same[0]}'.")
    written = {facts.writing for facts in known}
    if len(written) > 1:
        notes.append("not all checkpoints have the same tokenizer and chat template: their items are other token ids.")
    if generic is None:
        notes.append("every checkpoint's capability loss is measured on text that it has sampled itself.")
    said = too_few(len(stages), resamples, f"{len(stages)} checkpoints")
    notes += [] if said is None else [said]
    for stage in stages:
        if not all(stage.dropped):
            notes.append(f"'{stage.label}': a mask is empty, since none keeps the budget.")
    return tuple(notes)
