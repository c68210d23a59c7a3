"""The checkpoints of one model: their order and labels, and whether masks of one can be compared with those of another.

1. `series`: folders, or revisions of one model, with a label and, where a name tells it, a training step each.
2. `survey`: each is loaded once, alone; what must be known of it before hours are spent on the first one.
"""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.analysis.weights import weights_hash, writing
from personae.discovery import Progress, silent
from personae.errors import ModelError, OptionError
from personae.models import find_targets, load_model
from personae.runtime import check_base

__all__ = ["Known", "Loader", "Snapshot", "check_same_shapes", "forget", "loaded", "series", "step_of", "survey"]

_STEP = re.compile(r"(?:step|checkpoint|ckpt|iter)s?[-_]?(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"(?:.*[-_])?(\d+)")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One checkpoint. source: folder, `.gguf` file or Hub id. revision: of the Hub. step: None where no name tells."""

    label: str
    step: int | None
    source: str
    revision: str | None = None


Loader = Callable[[Snapshot], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


@dataclass(frozen=True, slots=True)
class Known:
    """What a survey tells of a checkpoint: its targets' shapes, hashes of its weights and of its way to write text."""

    shapes: dict[str, tuple[int, int]]
    weights: str
    writing: str
    dtype: str


# --- order and labels -----------------------------------------------------------------------------------------


def series(
    sources: Sequence[str | PathLike[str]], revisions: Sequence[str] = (), *, as_given: bool = False
) -> tuple[Snapshot, ...]:
    """The checkpoints in the order of their steps where every one has another, else (or as_given) as they were given.

    sources: folders, `.gguf` files or Hub ids; or a single folder of a training run, whose subfolders with a model
    are meant. revisions: of the single source; of a local folder: names of its subfolders.
    Errors: `OptionError` for fewer than two, one that is given twice, or revisions of several sources; `ModelError` for
    a folder that is not there.
    """
    names = [str(source) for source in sources]
    if revisions:
        found = _revisions(names, revisions)
    else:
        folders = _of_run(Path(names[0]).expanduser()) if len(names) == 1 else []
        found = [(str(folder), None) for folder in folders] or [(name, None) for name in names]
    if len(found) < 2:
        raise OptionError(
            f"there is one checkpoint, {found[0][0]}: dynamics needs two or more (folders, or --revisions of a Hub id)."
            if found
            else "there is no checkpoint: give two or more folders, or a Hub id with --revisions."
        )
    for number, each in enumerate(found):
        if each in found[:number]:
            raise OptionError(f"checkpoint {' at '.join(p for p in each if p)} is given twice; give each one once.")
    for source, revision in found:
        if revision is None and _is_local(source) and not Path(source).expanduser().exists():
            raise ModelError(f"there is no checkpoint folder {source}; check the path.")
    labels = _labels(found)
    made = [
        Snapshot(label, step_of(revision or Path(source).name), source, revision)
        for label, (source, revision) in zip(labels, found, strict=True)
    ]
    steps = [each.step for each in made]
    if as_given or None in steps or len(set(steps)) < len(steps):
        return tuple(made)
    return tuple(sorted(made, key=lambda each: each.step or 0))


def step_of(name: str) -> int | None:
    """The number of training steps that a name tells: 'checkpoint-300', 'step1000-tokens4B', 'run_7', '20'; or None."""
    found = _STEP.search(name) or _NUMBER.fullmatch(name)
    return int(found[1]) if found else None


def _revisions(names: Sequence[str], revisions: Sequence[str]) -> list[tuple[str, str | None]]:
    if len(names) != 1:
        raise OptionError(f"--revisions are those of one model, but {len(names)} are given: name one.")
    folder = Path(names[0]).expanduser()
    if not folder.exists():
        return [(names[0], revision) for revision in revisions]
    for revision in revisions:
        if not (folder / revision).is_dir():
            raise ModelError(
                f"--revisions: {folder} is a folder, which has no history, and no subfolder {revision!r}: name "
                "subfolders of it, or give a Hub id."
            )
    return [(str(folder / revision), None) for revision in revisions]


def _of_run(folder: Path) -> list[Path]:
    """The checkpoints that a training run has left in its folder."""
    if not folder.is_dir() or (folder / "config.json").exists():
        return []
    return sorted(path.parent for path in folder.glob("*/config.json"))


def _is_local(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1


def _labels(found: Sequence[tuple[str, str | None]]) -> list[str]:
    """Revision or folder's name; with its parent in front where several have it, else with a number behind."""
    short = [revision or Path(source).name or source for source, revision in found]
    long = [
        s if short.count(s) == 1 else f"{Path(source).parent.name}/{s}"
        for s, (source, _) in zip(short, found, strict=True)
    ]
    return [s if long.count(s) == 1 else f"{s} ({long[: n + 1].count(s)})" for n, s in enumerate(long)]


# --- a look at each before the first is worked on -------------------------------------------------------------


def default_loader(snapshot: Snapshot) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`load_model` at its defaults. Errors: `ModelError`."""
    return load_model(snapshot.source, revision=snapshot.revision)


def survey(
    snapshots: Sequence[Snapshot],
    load: Loader,
    targets: str | Sequence[str] | None = None,
    progress: Progress = silent,
) -> list[Known]:
    """Load each checkpoint once, one at a time. Errors: `ModelError` for one that cannot be loaded, or whose targets'
    names or shapes differ from the first one's; `OptionError` for a target pattern that matches nothing."""
    known: list[Known] = []
    with progress("looking at the checkpoints", len(snapshots)) as tick:
        for snapshot in snapshots:
            model, tokenizer = loaded(snapshot, load)
            check_base(model, "dynamics")
            shapes = {target.name: target.shape for target in find_targets(model, targets)}
            known.append(
                Known(shapes, weights_hash(model), writing(tokenizer), str(model.dtype).removeprefix("torch."))
            )
            held = weakref.ref(model)
            del model, tokenizer
            forget(held)
            check_same_shapes(snapshots[0], known[0].shapes, snapshot, shapes)
            tick(1)
    return known


def loaded(snapshot: Snapshot, load: Loader) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """One checkpoint. Errors: `ModelError` naming it."""
    try:
        return load(snapshot)
    except ModelError as error:
        raise ModelError(f"checkpoint '{snapshot.label}': {error}") from error


def forget(held: weakref.ref[PreTrainedModel]) -> None:
    """Free a model that nobody names any more, before the next is loaded: only one has to fit into memory."""
    if held() is not None:  # it is part of a cycle, as one that was hooked may be
        gc.collect()


def check_same_shapes(
    first: Snapshot, expected: dict[str, tuple[int, int]], other: Snapshot, found: dict[str, tuple[int, int]]
) -> None:
    """Raise `ModelError`, naming checkpoint, target and both shapes, unless two checkpoints have the same targets."""
    for name in sorted(expected.keys() | found.keys()):
        here, there = expected.get(name), found.get(name)
        if here != there:
            raise ModelError(
                f"checkpoint '{other.label}' ({other.source}) is no checkpoint of the same model as '{first.label}' "
                f"({first.source}): its {name} {_said(there)}, that of '{first.label}' {_said(here)}. Give "
                "checkpoints of one architecture and size."
            )


def _said(shape: tuple[int, int] | None) -> str:
    return "is not there" if shape is None else f"has shape {shape}"
