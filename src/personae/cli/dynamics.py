"""`personae dynamics`: a contrast over the checkpoints of one model."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from personae.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    SeedOption,
    bar,
    check_writable,
    out,
    print_json,
    short_warnings,
    tell,
)
from personae.cli.discover import read_data
from personae.errors import ArtefactError, DataError, OptionError

PARTS = ".parts"  # of the folder of finished checkpoints, beside the result file


def dynamics(
    checkpoints: Annotated[list[str], typer.Argument(help="Folders of checkpoints, the folder of a training run, or one Hub id with --revisions.")],
    contrast: Annotated[str, typer.Option(help="Built-in name, file, or hub:owner/name; see `personae list`.")],
    revisions: Annotated[str | None, typer.Option(help="Revisions of the one Hub id (or subfolders of the one folder), with commas between them.")] = None,
    as_given: Annotated[bool, typer.Option("--as-given", help="Keep the order given, instead of that of the steps that the names tell.")] = False,
    method: Annotated[str, typer.Option(help="As of `personae discover`.")] = "directed",
    max_capability_loss: Annotated[float | None, typer.Option(help="Budget in nats a token on generic text. Default: 0.05.")] = None,
    cheap_share: Annotated[float | None, typer.Option(help="c: candidates are the cheapest share of each row.")] = None,
    drop_share: Annotated[float | None, typer.Option(help="Share of all target weights to drop, the same at every checkpoint.")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Share of weights to drop, for the scores.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of directed within a budget. Default: 2.")] = None,
    generic_text: Annotated[str | None, typer.Option(help="Text file, jsonl or hub:…, the same for all. Default: each checkpoint samples its own.")] = None,
    generic_answers: Annotated[int, typer.Option(help="Generic answers that each probe of the budget reads; the price reads 24 of them at most.")] = 24,
    targets: Annotated[list[str] | None, typer.Option("--target", help="Shell pattern on weight names; may be repeated.")] = None,
    pairs: Annotated[int | None, typer.Option(help="Use so many pairs of the data, chosen by seed.")] = None,
    positive: Annotated[str | None, typer.Option(help="Name of the positive pole.")] = None,
    negative: Annotated[str | None, typer.Option(help="Name of the negative pole.")] = None,
    data_format: Annotated[str | None, typer.Option("--format", help="Format of the file, if it is not recognised.")] = None,
    split_seed: Annotated[int, typer.Option(help="Seed of the 60/20/20 split by question.")] = 0,
    random_seeds: Annotated[int, typer.Option(help="Seeds of the random control.")] = 5,
    shuffled: Annotated[bool, typer.Option("--shuffled", help="Also masks found from exchanged labels: a backward pass more a checkpoint.")] = False,
    draws: Annotated[int, typer.Option(help="Masks by chance behind every interval of overlap; 0: no intervals.")] = 200,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 2000,
    resume: Annotated[Path | None, typer.Option(help="Folder of finished checkpoints and their masks. Default: beside --output.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result file here.")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """When do alignment, separation and overlap appear in training? The same discovery on every checkpoint."""
    from personae.analysis.checkpoints import Snapshot, series
    from personae.analysis.dynamics import dynamics as run
    from personae.analysis.results import FORMAT, Record, plain, write_result
    from personae.discovery import Settings
    from personae.models import load_model

    settings: dict[str, Any] = {
        "method": method, "max_capability_loss": max_capability_loss, "cheap_share": cheap_share,
        "drop_share": drop_share, "sparsity": sparsity, "rounds": rounds, "seed": seed,
    }  # fmt: skip
    Settings(**settings).checked()  # before anything is read
    named = _revisions(revisions)
    snapshots = series(checkpoints, named, as_given=as_given)
    folder = folder_of(output, resume)
    if output is not None:
        output = output.expanduser()
        check_writable(output, "--output", contrast, generic_text)

    def load(snapshot: Snapshot) -> Any:
        return load_model(snapshot.source, dtype=dtype, device=device, revision=snapshot.revision)

    with short_warnings():
        data = _contrast(contrast, positive=positive, negative=negative, format=data_format)
        if pairs is not None:
            data = data.take(pairs, seed)
        found = run(
            snapshots, data, loader=load, generic=generic_text, generic_answers=generic_answers, targets=targets,
            split_seed=split_seed, random_seeds=random_seeds, shuffled=shuffled, draws=draws, resamples=resamples,
            resume=folder, progress=bar, **settings,
        )  # fmt: skip
    chosen = {
        "--contrast": contrast, "--revisions": revisions, "--method": method,
        "--max-capability-loss": max_capability_loss, "--cheap-share": cheap_share, "--drop-share": drop_share,
        "--sparsity": sparsity, "--rounds": rounds, "--generic-text": generic_text,
        "--generic-answers": generic_answers, "--pairs": pairs, "--positive": positive, "--negative": negative,
        "--format": data_format, "--split-seed": split_seed, "--random-seeds": random_seeds, "--draws": draws,
        "--resamples": resamples, "--dtype": dtype, "--seed": seed,
    }  # fmt: skip
    words = [str(word) for option, value in chosen.items() if value is not None for word in (option, value)]
    words += [word for pattern in targets or () for word in ("--target", pattern)]
    words += [flag for flag, given in (("--as-given", as_given), ("--shuffled", shuffled)) if given]
    inputs = {data.name: data.sha256} | {f"checkpoint {stage.label}": stage.fingerprint for stage in found.stages}
    if generic_text is not None and Path(generic_text).is_file():
        inputs[generic_text] = hashlib.sha256(Path(generic_text).read_bytes()).hexdigest()
    record = Record(
        kind="dynamics",
        command=shlex.join(["personae", "dynamics", *checkpoints, *words]),
        model=None,  # there are several: `inputs` has their fingerprints
        inputs=inputs,
        settings={
            **{option.removeprefix("--").replace("-", "_"): value for option, value in chosen.items()},
            "as_given": as_given, "shuffled": shuffled, "targets": targets,
        },
        seed=seed,
        notes=found.notes,
    )  # fmt: skip
    if output is not None:
        try:
            write_result(output, record, found.to_dict())
        except OSError as error:
            raise ArtefactError(f"cannot write {output}: {error.strerror}. Free some space or name another.") from error
    if as_json:
        print_json({"format": FORMAT, **plain(record), "result": plain(found.to_dict())})
        return
    out.print(to_rich(found))
    if output is not None:
        tell(f"written: {escape(str(output))}; masks of every checkpoint: {escape(str(folder))}")


def _revisions(given: str | None) -> list[str]:
    """'a,b,c' → its parts. Errors: `OptionError` for an empty one."""
    if given is None:
        return []
    parts = [part.strip() for part in given.split(",")]
    if not all(parts):
        raise OptionError(f"--revisions {given!r}: write names with a comma between them, such as step1000,step2000.")
    return parts


def folder_of(output: Path | None, resume: Path | None) -> Path | None:
    """Where finished parts are kept: --resume, else beside the result file, else nowhere. Errors: `OptionError` for a file of that name."""
    folder = resume if resume is not None else None if output is None else output.with_name(output.name + PARTS)
    if folder is None:
        return None
    folder = folder.expanduser()
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"--resume {folder} is a file, but finished parts need a folder; name another.")
    return folder


def _contrast(source: str, **named: str | None) -> Any:
    from personae.personas import Contrast

    data = read_data(source, **named)
    if not isinstance(data, Contrast):
        raise DataError(f"{source} is one-sided; give a contrast, with both poles.")
    return data


# --- tables ---------------------------------------------------------------------------------------------------


def to_rich(found: Any) -> RenderableType:
    """Stages, overlap of their masks, and from when on each figure is there."""
    parts: list[RenderableType] = [_stages(found), _overlaps(found)]
    names = {
        "alignment": "alignment of the base model",
        "separation": "separation by masks",
        "overlap": "overlap of masks",
    }
    for onset in found.onsets:
        when = "not at the last checkpoint" if onset.label is None else f"from {onset.label} on"
        parts.append(Text(f"{names[onset.figure]}: {when}"))
    notes = dict.fromkeys([*found.notes, *(note for stage in found.stages for note in stage.notes)])
    return Group(*parts, *(Text(f"note: {note}") for note in notes))


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1))
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if number == 0 else "right", overflow="fold")
    return table


def _titled(title: str, table: Table) -> Group:
    return Group(Text(title, style="bold"), table)


def _stages(found: Any) -> Group:
    controls = [control.name for control in found.stages[0].controls]
    table = _table(
        "checkpoint", "base acc", "acc", "acc_opposite", "separation", "tied", *controls, "over best control", "p",
        "loss", "dropped",
    )  # fmt: skip
    for stage in found.stages:
        table.add_row(
            Text(stage.label), _estimate(stage.base_acc), _estimate(stage.acc), _estimate(stage.acc_opposite),
            _estimate(stage.separation, "+"), _estimate(stage.separation_tied, "+"),
            *(f"{control.separation.value:+.2f}" for control in stage.controls),
            _estimate(stage.over_control, "+"), f"{stage.p_holm:.3f}",
            f"{stage.capability_loss:+.3f}", f"{stage.sparsity:.2%}",
        )  # fmt: skip
    first = found.stages[0]
    title = (
        f"{found.positive} – {found.negative}: {first.items} test items, {first.tied_items} of them tied "
        "[95 %]; p after Holm over the checkpoints"
    )
    return _titled(title, table)


def _overlaps(found: Any) -> Group:
    table = _table("checkpoint", "pole", "with the one before", "with the last")
    known = {(o.against, o.first if o.against == "last" else o.second, o.pole): o for o in found.overlaps}
    for stage in found.stages:
        for pole in (found.positive, found.negative):
            cells = (known.get((against, stage.label, pole)) for against in ("previous", "last"))
            table.add_row(Text(stage.label if pole == found.positive else ""), Text(pole), *map(_jaccard, cells))
    return _titled(
        "Jaccard index of the dropped weights (by chance: as many in every row, 95 %; as many among the same candidates)",
        table,
    )


def _jaccard(overlap: Any) -> str:
    if overlap is None:
        return "–"
    figure = overlap["all"].jaccard
    ends = "" if figure.low is None else f", {figure.low:.4f}–{figure.high:.4f}"
    return f"{figure.value:.4f} ({figure.chance:.4f}{ends}; {overlap.among_candidates:.4f})"


def _estimate(figure: Any, sign: str = "") -> str:
    return "–" if figure is None else f"{figure.value:{sign}.2f} [{figure.low:{sign}.2f}, {figure.high:{sign}.2f}]"
