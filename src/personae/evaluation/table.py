"""The table for people (terminal, Markdown) and for machines (a dictionary that survives JSON unchanged).

Figures are rounded here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from personae.errors import DataError
from personae.evaluation.bootstrap import Difference, Estimate, least_p
from personae.evaluation.conditions import Claim, Loss, Row
from personae.evaluation.results import Evaluation

FORMAT = "personae.evaluation/1"
HEADINGS = (
    "condition", "acc", "acc_opposite", "acc_tied", "acc_tied_opposite", "margin", "own answers", "sparsity",
    "loss plain", "loss chat", "seconds", "cost",
)  # fmt: skip
_NOTHING = "–"
_CLEAR = 0.05  # p after Holm below which a claim is told apart
_EVALUATION = TypeAdapter(Evaluation)


def to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Everything as JSON-able values, unrounded: versions, fingerprints, hashes, rows, item by item readings.

    Beside the fields of `Evaluation`: 'format', and in each row its 'capability_loss' and '…_error'. `from_dict`
    reads it back.
    """
    content: dict[str, Any] = _EVALUATION.dump_python(evaluation, mode="json")
    for row, entry in zip(evaluation.rows, content["rows"], strict=True):
        entry["capability_loss"] = row.capability_loss
        entry["capability_loss_error"] = None if row.loss is None else row.loss.error
    return {"format": FORMAT, **content}


def from_dict(content: Mapping[str, Any]) -> Evaluation:
    """The evaluation that `to_dict` described. Errors: `DataError` for another format or broken content."""
    if content.get("format") != FORMAT:
        raise DataError(
            f"not an evaluation of personae: 'format' is {content.get('format')!r}, expected {FORMAT!r}; "
            "give a file written by `personae eval --json`."
        )
    try:
        return _EVALUATION.validate_python(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"broken evaluation: {where}: {first['msg']} ({error.error_count()} problems).") from error


def to_markdown(evaluation: Evaluation) -> str:
    """Title, warnings, table, claims, baselines and notes as GitHub Markdown."""
    lines = [f"**{_title(evaluation)}**", ""]
    for warning in evaluation.warnings:  # a paragraph each: GitHub runs neighbouring lines together
        lines += [f"> **Warning**: {warning}", ""]
    lines += [_cells(HEADINGS), _cells("---" for _ in HEADINGS)]
    lines += [_cells(row_cells(row)) for row in evaluation.rows]
    lines += ["", *(f"- {line}" for line in remarks(evaluation))]
    return "\n".join(lines) + "\n"


def to_rich(evaluation: Evaluation) -> RenderableType:
    """The same for `rich.print`."""
    table = Table(title=_title(evaluation), title_justify="left", box=SIMPLE, padding=0)
    for heading in HEADINGS:
        left = heading in ("condition", "cost")
        table.add_column(
            heading.replace("_opposite", "\n_opposite"),
            justify="left" if left else "right",
            overflow="fold",
            min_width=9 if left else None,
        )
    kind = None
    for row in evaluation.rows:
        if kind is not None and row.kind != kind:
            table.add_section()
        kind = row.kind
        style = "bold" if kind == "method" else ""
        # Text: '[0.77, …]' is no markup. Two lines a cell: twelve columns do not fit a terminal otherwise.
        cells = (cell.replace(" [", "\n[").replace(" / ", "\n") for cell in row_cells(row))
        table.add_row(*(Text(cell, style=style) for cell in cells))
    doubts = (Text(f"warning: {warning}", style="yellow") for warning in evaluation.warnings)
    return Group(*doubts, table, *(Text(line) for line in remarks(evaluation)))


def row_cells(row: Row) -> tuple[str, ...]:
    """A row as texts, in the order of HEADINGS; the losses are the larger of the two poles'."""
    plain, chat = (_NOTHING, _NOTHING) if row.loss is None else (_loss(row.loss, 0), _loss(row.loss, 2))
    return (
        row.name,
        shown(row.acc),
        shown(row.acc_opposite),
        shown(row.acc_tied),
        shown(row.acc_tied_opposite),
        f"{row.margin.value:+.3f} / {row.margin_opposite.value:+.3f}",
        f"{row.own_answers.value:+.3f} / {row.own_answers_opposite.value:+.3f}",
        f"{row.sparsity:.2%}" if row.sparsity else "0",
        plain,
        chat,
        _NOTHING if row.seconds is None else f"{row.seconds:.0f}",
        _cost(row),
    )


def _cost(row: Row) -> str:
    """'one backward, 1300 MB', or the tokens that a prompt adds."""
    if row.extra_prompt_tokens:
        return f"{row.extra_prompt_tokens:.0f} prompt tokens a request"
    return row.cost if row.peak_bytes is None else f"{row.cost}, {row.peak_bytes / 1e6:.0f} MB"


def _loss(loss: Loss, first: int) -> str:
    """'+0.041 ± 0.006': the larger of a text's two rises, and 1.96 of its standard errors."""
    value, error = max((loss.values[i], loss.errors[i]) for i in (first, first + 1))
    return f"{value:+.3f}" + (f" ± {1.96 * error:.3f}" if error else "")


def shown(estimate: Estimate | Difference | Claim | None) -> str:
    """'0.83 [0.77, 0.88]'."""
    if estimate is None:
        return _NOTHING
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def remarks(evaluation: Evaluation) -> list[str]:
    """What stands below the table: claims, trivial baselines, texts, notes."""
    claims = sum(len(row.claims) for row in evaluation.rows)
    least = least_p(claims, evaluation.resamples)
    lines = [
        f"{row.name}: {claim.figure} over the best control ({claim.over}): {shown(claim)}, "
        f"p {_p(claim.p)}, after Holm {_p(claim.p_holm)}{_verdict(claim, least)}"
        for row in evaluation.rows
        for claim in row.claims
    ]
    methods = [row.name for row in evaluation.rows if row.claims]
    if len(methods) > 1:
        lines.append(
            f"controls have the size of {methods[0]}'s masks: where another method drops more, its claim over them "
            "counts its damage too; evaluate it alone for controls of its own size"
        )
    trivial, text = evaluation.baselines, evaluation.text
    lines.append(
        f"trivial baselines: shorter {trivial.shorter:.2f}{_tied(trivial.shorter_tied)}, always yes "
        f"{trivial.yes:.2f}{_tied(trivial.yes_tied)}, majority {trivial.majority:.2f}"
    )
    lines.append(
        f"capability loss in nats a token (± 1.96 standard errors over texts), the larger of both poles, "
        f"on {text.plain_windows} plain windows and "
        f"{text.chat_answers} chat answers: {text.name}"
    )
    lines += [f"{row.name}: {row.note}" for row in evaluation.rows if row.note]
    return lines + [f"note: {note}" for note in evaluation.notes]


def _verdict(claim: Claim, least: float) -> str:
    """least: the smallest p after Holm that so many resamples and claims can give."""
    if claim.value <= 0:
        return ": no better than its controls"
    if least >= _CLEAR:
        return ": too few resamples to tell (--resamples)"
    return "" if claim.p_holm < _CLEAR else ": not told apart from its controls"


def _title(evaluation: Evaluation) -> str:
    data = evaluation.data
    part = "all items" if data.split_seed is None else f"test part of split seed {data.split_seed}"
    return (
        f"{data.positive} against {data.negative}: {data.items} items, {data.tied_items} tied ({part}), "
        f"{evaluation.model.id}, 95 % intervals"
    )


def _tied(value: float | None) -> str:
    return "" if value is None else f" (tied {value:.2f})"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _cells(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
