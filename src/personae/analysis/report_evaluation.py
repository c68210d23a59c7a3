"""Parts of evaluations: the table and its claims, accuracy by condition, accuracy over capability loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from personae.analysis.report_pareto import chart, of_rows
from personae.analysis.report_pieces import (
    NO_COMMAND,
    Axis,
    Cell,
    Chart,
    Part,
    Rule,
    Series,
    Table,
    cell,
    ends,
    flattened,
    number,
    percent,
)
from personae.analysis.report_read import Given
from personae.errors import DataError
from personae.evaluation import Estimate, from_dict
from personae.evaluation.conditions import Row
from personae.evaluation.results import Evaluation
from personae.evaluation.table import remarks

__all__ = ["ACC", "INTERVALS", "evaluation_part", "joint_frontiers"]

INTERVALS = "Intervals: 95 %, percentile bootstrap over questions; of losses ± 1.96 standard errors over texts."
ACC = (
    "Share of test items on which the pole's own answer has the larger length-normalised log-probability under the "
    "pole's mask; ties count one half."
)


# --- one evaluation -------------------------------------------------------------------------------------------


def evaluation_part(given: Given) -> Part:
    """The table of `personae eval`, its claims, accuracy by condition, and accuracy over capability loss."""
    found = _evaluation(given)
    data = found.data
    part = "all items" if data.split_seed is None else f"test part of split seed {data.split_seed}"
    return Part(
        title=f"{data.positive} against {data.negative}",
        kind="evaluation",
        source=given.name,
        sha256=given.sha256,
        model=given.model,
        findings=tuple(_findings(found)),
        tables=(_rows_table(found), *_claims_table(found)),
        figures=(_by_condition(found), *_own_frontiers(found, given)),
        notes=(
            f"{data.items} items, {data.tied_items} of them tied ({part}); {found.resamples} resamples, "
            f"seed {found.seed}.",
            *remarks(found)[sum(len(row.claims) for row in found.rows) :],
        ),
        warnings=found.warnings,
        made=_made_evaluation(found, given),
        command=_command(given),
        command_note=NO_COMMAND.format("eval") if _command(given) is None else "",
    )


def _evaluation(given: Given) -> Evaluation:
    try:
        return from_dict(given.said.content)
    except DataError as error:
        raise DataError(f"{given.name}: {error}") from error


def _command(given: Given) -> str | None:
    named = given.frame.get("command") or given.said.content.get("command")
    return str(named) if named else None


def _findings(found: Evaluation) -> list[str]:
    """The best method against base; then every claim that was made for a method."""
    said = []
    base = found.of_kind("base")
    for row in found.of_kind("method"):
        beside = f" (base {_short(base[0].acc)})" if base else ""
        tied = "" if row.acc_tied is None else f", on tied items {_short(row.acc_tied)}"
        loss = "" if row.capability_loss is None else f"; capability loss {number(row.capability_loss)} nats a token"
        said.append(
            f"{row.name}: acc {_short(row.acc)}{beside}{tied}, acc_opposite {_short(row.acc_opposite)}, with "
            f"{percent(row.sparsity)} of the weights dropped{loss}."
        )
    return said


def _short(estimate: Any) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _rows_table(found: Evaluation) -> Table:
    columns = (
        "condition", "acc", "acc opposite", "acc, tied", "acc opposite, tied", "margin", "margin opposite",
        "own answers", "own answers opposite", "dropped", "loss, plain", "loss, chat", "cost",
    )  # fmt: skip
    return Table(
        "Conditions",
        columns,
        tuple(_row_cells(row) for row in found.rows),
        words=frozenset({0, len(columns) - 1}),
        notes=(
            "acc: share of items won by p⁺'s answer under p⁺'s mask; acc opposite: the same under p⁻'s mask, so small "
            "is good. margin: p⁺'s answer minus p⁻'s, nats a token. own answers: change over base of log p a token of "
            "a pole's answers under its mask. loss: rise of the negative log-likelihood, nats a token, the larger of "
            "both masks. " + INTERVALS,
        ),
    )


def _row_cells(row: Row) -> tuple[Cell, ...]:
    accs = (row.acc, row.acc_opposite, row.acc_tied, row.acc_tied_opposite)
    moves = (row.margin, row.margin_opposite, row.own_answers, row.own_answers_opposite)
    seconds = "" if row.seconds is None else f", {row.seconds:.0f} s"
    prompt = f"{row.extra_prompt_tokens:.0f} prompt tokens a request" if row.extra_prompt_tokens else row.cost
    return (
        Cell(row.name), *(cell(acc, 2) for acc in accs), *(cell(move, 2, signed=True) for move in moves),
        Cell(percent(row.sparsity)), _loss(row, 0), _loss(row, 2), Cell(prompt + seconds),
    )  # fmt: skip


def _loss(row: Row, first: int) -> Cell:
    if row.loss is None:
        return Cell("–")
    value, error = max((row.loss.values[i], row.loss.errors[i]) for i in (first, first + 1))
    return Cell(f"{value:+.3f}", f"± {1.96 * error:.3f}" if error else "")


def _claims_table(found: Evaluation) -> list[Table]:
    rows = [
        (Cell(row.name), Cell(claim.figure), Cell(claim.over), cell(claim, signed=True), *_ps(claim.p, claim.p_holm))
        for row in found.rows
        for claim in row.claims
    ]
    if not rows:
        return []
    columns = ("condition", "figure", "over", "difference", "p", "p (Holm)")
    note = (
        "The condition minus the best control in each figure, turned so that larger is better; the best control is "
        "chosen again inside each resample. p: two-sided; Holm over all claims of this table."
    )
    return [Table("Claims over the best control", columns, tuple(rows), words=frozenset({0, 1, 2}), notes=(note,))]


def _ps(*values: float) -> tuple[Cell, ...]:
    return tuple(Cell("< 0.001" if p < 0.001 else f"{p:.3f}") for p in values)


def _by_condition(found: Evaluation) -> Chart:
    """acc and acc_opposite with intervals, all and tied items, a line a condition."""
    rows = found.rows[::-1]  # the first at the top
    places = tuple(float(i) for i in range(len(rows)))
    figures: dict[str, list[Estimate | None]] = {
        "acc": [r.acc for r in rows], "acc, tied items": [r.acc_tied for r in rows],
        "acc opposite": [r.acc_opposite for r in rows],
        "acc opposite, tied items": [r.acc_tied_opposite for r in rows],
    }  # fmt: skip
    series = []
    for i, (name, values) in enumerate(figures.items()):
        if all(value is None for value in values):
            continue
        shift = 0.12 * (1.5 - i)
        x, low, high = ends([None if v is None else (v.value, v.low, v.high) for v in values])
        series.append(Series(name, x, tuple(p + shift for p in places), x_low=low, x_high=high, style="points"))
    return Chart(
        "accuracy", f"{found.data.positive} against {found.data.negative}: accuracy by condition",
        f"{ACC} acc: of {found.data.positive}'s answer under {found.data.positive}'s mask; acc opposite: the same "
        f"answer under {found.data.negative}'s. {found.data.items} items, {found.data.tied_items} tied. {INTERVALS}",
        Axis("share of items", low=0.0, high=1.0), Axis("", ticks=tuple(r.name for r in rows)), tuple(series),
        (Rule(0.5, "chance", upright=True),),
    )  # fmt: skip


def _own_frontiers(found: Evaluation, given: Given) -> list[Chart]:
    budget = given.frame.get("budget")
    limit = float(budget) if isinstance(budget, int | float) and not isinstance(budget, bool) else None
    return _frontiers(found, found.rows, limit)


def _frontiers(found: Evaluation, rows: Sequence[Row], budget: float | None = None, where: str = "") -> list[Chart]:
    """One chart a pole: every condition with a measured loss; none where there is only the base model."""
    charts = []
    for pole, name in enumerate((found.data.positive, found.data.negative)):
        points = of_rows(rows, pole)
        if len(points) < 2:
            continue
        caption = (
            f"{ACC} Loss: rise of the negative log-likelihood over base under that mask, the larger of plain text and "
            f"chat ({found.text.name}). Left and high is good. {INTERVALS} The staircase joins what no other "
            "condition beats in both, by point estimates. Conditions without a measured loss, such as prompts, are "
            "left out."
        )
        charts.append(
            chart(f"pareto-{'positive' if pole == 0 else 'negative'}{where}", f"{name}: accuracy over capability loss",
                  name, points, caption, budget)
        )  # fmt: skip
    return charts


def _made_evaluation(found: Evaluation, given: Given) -> tuple[tuple[str, str], ...]:
    data, text = found.data, found.text
    said: dict[str, Any] = {
        **{f"model.{key}": value for key, value in found_fields(found.model).items()},
        **{
            f"data.{key}": getattr(data, key)
            for key in (
                "contrast", "positive", "negative", "source", "licence", "sha256", "test_sha256", "split_seed", "items",
                "tied_items", "calibration_sha256", "dev_sha256", "rendered_prompt",
            )
        },
        **{f"text.{key}": value for key, value in found_fields(text).items()},
        "resamples": found.resamples, "seed": found.seed, "versions": found.versions,
    }  # fmt: skip
    frame = {key: value for key, value in given.frame.items() if key != "command"}
    return (*flattened(said), *flattened(frame))


def found_fields(record: Any) -> dict[str, Any]:
    """Fields of a small record by name."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def joint_frontiers(files: Sequence[Given]) -> list[Part]:
    """Evaluations on the same test items and the same text: their conditions in one frontier."""
    groups: dict[tuple[str, str], list[tuple[Given, Evaluation]]] = {}
    for given in files:
        found = _evaluation(given)
        groups.setdefault((found.data.test_sha256, found.text.sha256), []).append((given, found))
    parts = []
    for group in groups.values():
        if len(group) < 2:
            continue
        rows: dict[str, Row] = {}
        for given, found in group:
            for row in found.rows:
                name = row.name if row.name not in rows else f"{row.name} ({given.path.stem})"
                if row.kind == "base" and row.name in rows:
                    continue  # the same bare model on the same items
                rows[name] = replace(row, name=name)
        first = group[0][1]
        sources = ", ".join(given.name for given, _ in group)
        parts.append(
            Part(
                title=f"{first.data.positive} against {first.data.negative}: all conditions together",
                kind="together", source=sources, sha256="", model=group[0][0].model,
                figures=tuple(_frontiers(first, tuple(rows.values()), where="-together")),
                notes=("The same test items and the same text of the capability loss, by their SHA-256.",),
            )
        )  # fmt: skip
    return [part for part in parts if part.figures]
