"""`personae compare`: what the masks of personas have in common, against chance, and which are nearest."""

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
    typed,
)
from personae.cli.discover import read_data
from personae.errors import DataError, OptionError

MOST_BY_KIND = 15  # pairs that are printed by kind; of more, all weights only
MOST_COLUMNS = 6  # pairs whose hidden states are printed beside each other


def compare(
    context: typer.Context,
    files: Annotated[list[Path], typer.Argument(help=".persona files of one model, with two personas or more in all.")],
    stability: Annotated[str | None, typer.Option(help="Contrast the personas were found from: find their masks again on bootstrap resamples of it.")] = None,
    hidden_states: Annotated[str | None, typer.Option(help="Contrast on whose answers the hidden states are compared.")] = None,
    draws: Annotated[int, typer.Option(help="Masks by chance behind every interval; 0: no intervals.")] = 200,
    resamples: Annotated[int, typer.Option(help="Of --stability.")] = 5,
    items: Annotated[int, typer.Option(help="Answers a pole that --hidden-states reads, at most.")] = 40,
    generic_text: Annotated[str | None, typer.Option(help="Generic text of --stability. Default: sampled from the model.")] = None,
    model: ModelOption = None,
    positive: Annotated[str | None, typer.Option(help="Name of the positive pole of the contrasts.")] = None,
    negative: Annotated[str | None, typer.Option(help="Name of the negative pole of the contrasts.")] = None,
    data_format: Annotated[str | None, typer.Option("--format", help="Format of the contrasts, if it is not recognised.")] = None,
    split_seed: Annotated[int, typer.Option(help="Seed of the split: --stability resamples its calibration part, --hidden-states reads its test part.")] = 0,
    all_items: Annotated[bool, typer.Option("--all-items", help="Items of every part, for masks found with --all-items.")] = False,
    allow_other_weights: Annotated[bool, typer.Option(help="Same names and shapes, other weights.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result file here.")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Overlap of every pair of personas by weights, kind, block and target, each against chance; no model is needed.

    With --stability and --hidden-states also how far masks are an accident of their items, and how alike the model's
    states are under them.
    """
    from dataclasses import replace

    from personae.analysis.compare import compare as run
    from personae.analysis.results import Record, said, write_result

    if stability is None and hidden_states is None:
        _check_unused(model=model, positive=positive, negative=negative, format=data_format, all_items=all_items,
                      allow_other_weights=allow_other_weights, split_seed=typed(context, "split_seed"))  # fmt: skip
    check_split(context, all_items)
    for option, given, missing in (
        ("--generic-text", generic_text is not None, "--stability" if stability is None else None),
        ("--resamples", typed(context, "resamples"), "--stability" if stability is None else None),
        ("--items", typed(context, "items"), "--hidden-states" if hidden_states is None else None),
    ):
        if given and missing:
            raise OptionError(f"{option} goes with {missing}.")
    with short_warnings():
        if output is not None:
            output = output.expanduser()
            check_writable(output, "--output", *files, stability, hidden_states, generic_text)
        named = {"positive": positive, "negative": negative, "format": data_format}
        contrasts = {source: _contrast(source, named) for source in (stability, hidden_states) if source is not None}
        found = run(*files, draws=draws, seed=seed, progress=bar)
        record = None
        if contrasts:
            from personae.analysis.hidden_states import hidden_states as read_states
            from personae.analysis.stability import stability as resample
            from personae.evaluation.suites import SuiteContext

            lm, tokenizer = load(model, dtype, device)
            record = SuiteContext(lm, tokenizer, Path()).record()
            common: dict[str, Any] = {
                "split_seed": None if all_items else split_seed, "seed": seed, "progress": bar,
                "allow_other_weights": allow_other_weights,
            }  # fmt: skip
            if hidden_states is not None:  # minutes, before what may take an hour
                states = read_states(lm, tokenizer, files, contrasts[hidden_states], items=items, **common)
                found = replace(found, hidden_states=states)
            if stability is not None:
                again = resample(
                    lm, tokenizer, files, contrasts[stability], resamples=resamples, generic=generic_text, **common
                )
                found = replace(found, stability=again)
    chosen = {
        "--stability": stability, "--hidden-states": hidden_states, "--draws": draws,
        "--resamples": resamples if stability else None, "--items": items if hidden_states else None,
        "--generic-text": generic_text, "--model": model, "--positive": positive, "--negative": negative,
        "--format": data_format, "--split-seed": split_seed if contrasts else None, "--seed": seed,
        "--dtype": dtype if contrasts else None,
    }  # fmt: skip
    words = [str(word) for option, value in chosen.items() if value is not None for word in (option, value)]
    words += [w for w, given in (("--all-items", all_items), ("--allow-other-weights", allow_other_weights)) if given]
    kept = Record(
        kind="compare",
        command=shlex.join(["personae", "compare", *map(str, files), *words]),
        model=record,
        inputs={
            **{str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
            **{contrast.name: contrast.sha256 for contrast in contrasts.values()},
        },
        settings={
            option.removeprefix("--").replace("-", "_"): value
            for option, value in {**chosen, "--all-items": all_items}.items()
            if value is not None
        },
        seed=seed,
        notes=tuple(note for each in found.stability for note in each.notes),
    )
    if output is not None:
        write_result(output, kept, found)
    if as_json:
        print_json(said(kept, found))
        return
    out.print(to_rich(found))
    if output is not None:
        tell(f"written: {escape(str(output))}")


def _check_unused(**given: Any) -> None:
    for name, value in given.items():
        if value:
            raise OptionError(f"--{name.replace('_', '-')} goes with --stability or --hidden-states.")


def _contrast(source: str, named: dict[str, str | None]) -> Any:
    from personae.personas import Contrast

    data = read_data(source, **named)
    if not isinstance(data, Contrast):
        raise DataError(f"{source} is one-sided; give a contrast, with both poles.")
    return data


# --- tables ---------------------------------------------------------------------------------------------------


def to_rich(found: Any) -> RenderableType:
    """Pairs against chance, then blocks (of a single pair) or matrix and tree (of more), and what was asked beside."""
    from personae.analysis.dendrogram import drawn

    parts: list[RenderableType] = [_pairs(found)]
    if len(found.pairs) == 1:
        parts.append(_blocks(found.pairs[0]))
    else:
        parts += [_matrix(found), Text("1 − Jaccard index, average linkage"), *map(Text, drawn(found.tree))]
    if found.stability:
        parts.append(_stability(found.stability))
    if found.hidden_states is not None:
        parts += _hidden_states(found.hidden_states)
    parts += [Text(f"note: {note}") for each in found.stability for note in each.notes]
    return Group(*parts)


def _titled(title: str, table: Table) -> Group:
    return Group(Text(title, style="bold"), table)  # a title of the table itself is broken at the table's width


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1))
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if number == 0 else "right", overflow="fold")
    return table


def _pairs(found: Any) -> Group:
    table = _table("pair", "part", "first", "second", "both", "difference", "Jaccard", "cosine", "z")
    for pair in found.pairs:
        for overlap in pair.parts:
            if overlap.level == "all" or (overlap.level == "kind" and len(found.pairs) <= MOST_BY_KIND):
                name = _name(pair) if overlap.level == "all" else ""
                counts = (f"{n:,}" for n in (overlap.first, overlap.second, overlap.common))
                table.add_row(Text(name), overlap.part, *counts, *_figures(overlap))
    return _titled("Dropped weights; in brackets what masks with as many in every row come to by chance", table)


def _blocks(pair: Any) -> Group:
    table = _table("block", "both", "difference", "Jaccard", "cosine", "z")
    for name, overlap in pair.of_level("block").items():
        table.add_row(name.removeprefix("block "), f"{overlap.common:,}", *_figures(overlap))
    return _titled("By block", table)


def _figures(overlap: Any) -> tuple[str, ...]:
    return (
        f"{overlap.difference.value:.3%} ({overlap.difference.chance:.3%})",
        _against(overlap.jaccard),
        _against(overlap.cosine),
        "–" if overlap.z is None else f"{overlap.z:+,.1f}",
    )


def _against(figure: Any) -> str:
    ends = "" if figure.low is None else f", {figure.low:.4f}–{figure.high:.4f}"
    return f"{figure.value:.4f} ({figure.chance:.4f}{ends})"


def _matrix(found: Any) -> Group:
    labels = [persona.label for persona in found.personas]
    table = _table("", *(f"({n})" for n in range(1, len(labels) + 1)))
    for number, (label, row) in enumerate(zip(labels, found.matrices["jaccard"], strict=True), 1):
        table.add_row(Text(f"({number}) {label}"), *(f"{value:.4f}" for value in row))
    return _titled("Jaccard index", table)


def _stability(stable: Any) -> Group:
    table = _table(
        "persona", "part", "Jaccard of two", "by chance", "difference of two", "Jaccard with its own mask"
    )  # fmt: skip
    for each in stable:
        for part in each.parts:
            if part.level != "block":
                name = each.persona if part.level == "all" else ""
                difference = part.difference
                table.add_row(
                    Text(name), part.part, _spread(part.jaccard), f"{part.jaccard.chance:.4f}",
                    f"{difference.mean:.3%} ({difference.least:.3%}, {difference.greatest:.3%})", _spread(part.own),
                )  # fmt: skip
    title = f"Masks on {stable[0].resamples} bootstrap resamples of {stable[0].items} items"
    return _titled(f"{title}: mean over couples (least, most)", table)


def _spread(spread: Any) -> str:
    return f"{spread.mean:.4f} ({spread.least:.4f}, {spread.greatest:.4f})"


def _hidden_states(states: Any) -> list[RenderableType]:
    shown = states.pairs[:MOST_COLUMNS]
    table = _table("block", *map(_name, shown))
    for block in range(states.blocks):
        cells = (pair.centred[block] for pair in shown)
        table.add_row(
            str(block), *("–" if c is None else f"{c.value:+.3f} [{c.low:+.3f}, {c.high:+.3f}]" for c in cells)
        )
    raw = [each.value for pair in states.pairs for each in pair.raw]
    title = f"Cosine of mean hidden states of {states.answers} answers, centred on the base model [95 %]"
    between = f"Uncentred, these cosines lie between {min(raw):.6f} and {max(raw):.6f}."
    said: list[RenderableType] = [_titled(title, table), Text(between)]
    if len(states.pairs) > MOST_COLUMNS:
        said.append(Text(f"{len(states.pairs) - MOST_COLUMNS} further pairs stand in the JSON alone."))
    return said


def _name(pair: Any) -> str:
    return f"{pair.first} – {pair.second}"
