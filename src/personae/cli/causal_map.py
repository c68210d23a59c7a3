"""`personae causal-map`: which blocks and kinds a persona's mask needs, and which are enough."""

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
    ModelOption,
    SeedOption,
    bar,
    check_split,
    check_writable,
    load,
    out,
    print_json,
    short_warnings,
    tell,
)
from personae.cli.discover import read_data
from personae.cli.dynamics import folder_of
from personae.errors import ArtefactError, DataError

SIGNIFICANT = 0.05  # of p after Holm; such cells carry a star
GAIN, LOSS = (33, 113, 181), (203, 75, 22)  # full colours of a heat map: what helps the persona, what hinders it


def causal_map(
    context: typer.Context,
    artefact: Annotated[Path, typer.Argument(help="A .persona file with a pole of the contrast.")],
    contrast: Annotated[str, typer.Option(help="Contrast it was found from: built-in name, file, or hub:owner/name.")],
    persona: Annotated[str | None, typer.Option("--persona", "-p", help="Which pole is worn. Default: the positive one.")] = None,
    by: Annotated[list[str] | None, typer.Option(help="block, kind, target or cell (block × kind); may be repeated. Default: cell.")] = None,
    items: Annotated[int, typer.Option(help="Read at most so many test items; each reading passes over all of them.")] = 48,
    random_seeds: Annotated[int, typer.Option(help="Draws of as many random weights in each part, alone; 0: none.")] = 1,
    model: ModelOption = None,
    positive: Annotated[str | None, typer.Option(help="Name of the positive pole.")] = None,
    negative: Annotated[str | None, typer.Option(help="Name of the negative pole.")] = None,
    data_format: Annotated[str | None, typer.Option("--format", help="Format of the file, if it is not recognised.")] = None,
    split_seed: Annotated[int, typer.Option(help="Seed of the split whose test part is read.")] = 0,
    all_items: Annotated[bool, typer.Option("--all-items", help="Items of every part, not just of test.")] = False,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 10_000,
    allow_other_weights: Annotated[bool, typer.Option(help="Same names and shapes, other weights.")] = False,
    resume: Annotated[Path | None, typer.Option(help="Folder of finished readings. Default: beside --output.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result file here.")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Give one part of a mask its weights back (necessity), wear it alone (sufficiency): a heat map of the model."""
    from personae.analysis.causal import causal_map as run
    from personae.analysis.causal_parts import check_levels
    from personae.analysis.results import FORMAT, Record, plain, write_result
    from personae.evaluation.suites import SuiteContext
    from personae.personas import Contrast
    from personae.subnetwork import load as load_artefact

    check_split(context, all_items)
    levels = check_levels(by or ["cell"])
    if output is not None:
        output = output.expanduser()
        check_writable(output, "--output", artefact, contrast)
    folder = folder_of(output, resume)
    with short_warnings():
        data = read_data(contrast, positive=positive, negative=negative, format=data_format)
        if not isinstance(data, Contrast):
            raise DataError(f"{contrast} is one-sided; give a contrast, with both poles.")
        made = load_artefact(artefact)  # a broken file before the model is loaded
        lm, tokenizer = load(model, dtype, device)
        found = run(
            lm, tokenizer, made, data, persona=persona, by=levels, items=items,
            split_seed=None if all_items else split_seed, random_seeds=random_seeds, resamples=resamples, seed=seed,
            allow_other_weights=allow_other_weights, resume=folder, planned=_planned, progress=bar,
        )  # fmt: skip
    chosen = {
        "--contrast": contrast, "--persona": persona, "--items": items, "--random-seeds": random_seeds,
        "--model": model, "--positive": positive, "--negative": negative, "--format": data_format,
        "--split-seed": None if all_items else split_seed, "--resamples": resamples, "--dtype": dtype, "--seed": seed,
    }  # fmt: skip
    words = [str(word) for option, value in chosen.items() if value is not None for word in (option, value)]
    words += [word for level in levels for word in ("--by", level)]
    words += [w for w, given in (("--all-items", all_items), ("--allow-other-weights", allow_other_weights)) if given]
    record = Record(
        kind="causal-map",
        command=shlex.join(["personae", "causal-map", str(artefact), *words]),
        model=SuiteContext(lm, tokenizer, Path()).record(),
        inputs={artefact.name: hashlib.sha256(artefact.read_bytes()).hexdigest(), data.name: data.sha256},
        settings={
            **{option.removeprefix("--").replace("-", "_"): value for option, value in chosen.items()},
            "by": levels, "all_items": all_items,
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
        tell(f"written: {escape(str(output))}")


def _planned(plan: Any) -> None:
    """What it will take, on stderr, before it is taken."""
    kept = f", {plan.kept} of them kept from an earlier run" if plan.kept else ""
    pace = "" if plan.seconds is None else f"; about {_duration(plan.seconds)} to go"
    tell(f"{plan.readings} readings{kept}, each of {plan.items} questions ({plan.tokens:,} tokens){pace}")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{max(seconds, 1):.0f} s"


# --- tables ---------------------------------------------------------------------------------------------------


def to_rich(found: Any) -> RenderableType:
    """The whole mask in a sentence; a heat map of block × kind, a table of every other level."""
    gain = found.gain
    said = Text(
        f"{found.persona}: {found.dropped:,} weights dropped; on {found.items} items alignment "
        f"{found.base_alignment.value:.2f} → {found.worn_alignment.value:.2f}, margin {found.base_margin.value:+.3f} → "
        f"{found.worn_margin.value:+.3f} nats a token, gain {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    )
    parts: list[RenderableType] = [said]
    for level in dict.fromkeys(cell.level for cell in found.cells):
        parts.append(_heat(found) if level == "cell" else _level(found, level))
    parts.append(
        Text(
            "lost: margin lost when the part gets its weights back; alone: margin gained by the part's mask alone; "
            f"* p < {SIGNIFICANT} after Holm over the parts"
        )
    )
    return Group(*parts, *(Text(f"note: {note}") for note in found.notes))


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1))
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if number == 0 else "right", overflow="fold")
    return table


def _heat(found: Any) -> Group:
    """Blocks × kinds; the colour is full at the largest absolute value of the map."""
    cells = {(cell.block, cell.kind): cell for cell in found.of_level("cell")}
    blocks, kinds, _ = found.matrix()
    most = max((abs(v.value) for c in cells.values() for v in (c.necessity, c.sufficiency)), default=0.0)
    columns = [
        f"{kind} {what}" for kind in kinds for what in ("lost", "alone", *(["random"] if found.random_seeds else []))
    ]
    table = _table("block", *columns)
    for block in blocks:
        row: list[Text] = []
        for kind in kinds:
            cell = cells.get((block, kind))
            if cell is None:
                row += [Text("–")] * (3 if found.random_seeds else 2)
                continue
            row += [
                shade(cell.necessity.value, most, cell.necessity_p_holm),
                shade(cell.sufficiency.value, most, cell.sufficiency_p_holm),
            ]
            if cell.random is not None:
                row.append(Text(f"{cell.random.value:+.3f}"))
        table.add_row(Text(str(block)), *row)
    return Group(Text("By block and kind, nats a token", style="bold"), table)


def shade(value: float, most: float, p: float) -> Text:
    """A figure on its colour: white at 0, blue where the part helps the persona, red where it hinders it."""
    share = min(abs(value) / most, 1.0) if most else 0.0
    full = GAIN if value >= 0 else LOSS
    red, green, blue = (round(255 + (colour - 255) * share) for colour in full)
    ink = "white" if share > 0.6 else "black"
    return Text(f"{value:+.3f}{'*' if p < SIGNIFICANT else ' '}", style=f"{ink} on rgb({red},{green},{blue})")


def _level(found: Any, level: str) -> Group:
    table = _table(level, "dropped", "lost", "share", "alone", "share", *(["random"] if found.random_seeds else []))
    for cell in found.of_level(level):
        row = [
            f"{cell.dropped:,}",
            _difference(cell.necessity, cell.necessity_p_holm), _share(cell.necessity_share),
            _difference(cell.sufficiency, cell.sufficiency_p_holm), _share(cell.sufficiency_share),
        ]  # fmt: skip
        if cell.random is not None:
            row.append(f"{cell.random.value:+.3f}")
        table.add_row(Text(cell.part.removeprefix("block ")), *row)
    return Group(Text(f"By {level}, nats a token [95 %]", style="bold"), table)


def _difference(figure: Any, p: float) -> str:
    return f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]{'*' if p < SIGNIFICANT else ' '}"


def _share(figure: Any) -> str:
    return "–" if figure is None else f"{figure.value:.0%}"
