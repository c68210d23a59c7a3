"""The part of a trace: who speaks, the text in colours, log-probabilities token by token, shares layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from personae.analysis.report_pieces import (
    Axis,
    Cell,
    Chart,
    Figure,
    HeatMap,
    Part,
    Passage,
    Rule,
    Series,
    Table,
    Token,
    flattened,
    number,
)
from personae.analysis.report_read import Given, Said
from personae.analysis.trace_result import FULL_COLOUR
from personae.analysis.trace_verdict import leading
from personae.errors import DataError

__all__ = ["trace_part"]

MOST_TICKS = 40  # tokens that stand on the axis by their text

Floats = NDArray[np.float64]


def trace_part(given: Given) -> Part:
    """What `personae trace -o` has written."""
    said = given.said
    result = said.object("result")
    personas, tokens = result.texts("personas"), result.texts("tokens")
    relative = _by_persona(result, "relative", personas, len(tokens))
    verdict = result.object("verdict")
    scores, over = verdict.object("scores"), result.object("over_base")
    rows = tuple(
        (Cell(name), Cell(number(scores.number(name), signed=True)), Cell(number(over.maybe(name), signed=True)))
        for name in personas
    )
    noise = verdict.maybe("error")
    lead = f"{number(verdict.number('lead'))}" + ("" if noise is None else f" ± {number(noise)}")
    skip = {"format", "kind", "command", "result", "notes"}
    return Part(
        title="Which persona is speaking",
        kind="trace",
        source=given.name,
        sha256=given.sha256,
        model=given.model,
        findings=(verdict.text("sentence") + ".",),
        tables=(
            Table(
                "Scores", ("persona", "score", "over base"), rows,
                notes=(
                    f"score: mean of r over {len(tokens)} tokens, nats a token, minus the persona's offset. over base: "
                    "mean of log p under the persona − log p under base. Lead of the first over the second: "
                    f"{lead} (± one standard error over tokens, as if they were independent).",
                ),
            ),
        ),
        figures=(_tokens(personas, tokens, relative), _running(personas, tokens, relative), *_shares(result, personas)),
        passages=(_passage(result, personas, tokens, relative),),
        notes=said.texts("notes", optional=True),
        made=tuple(flattened({key: value for key, value in said.content.items() if key not in skip})),
        command=said.text("command") if said.has("command") else None,
    )  # fmt: skip


def _by_persona(result: Said, field: str, personas: Sequence[str], count: int) -> Floats:
    """(P, T); a number that was not finite is NaN. Errors: `DataError` for another length."""
    inner = result.object(field)
    rows = [inner.numbers(name) for name in personas]
    if not personas or not count or any(len(row) != count for row in rows):
        raise DataError(
            f"{result.file}: {result.place}.{field} has not one figure a token and persona: make the file again."
        )
    return np.array([[np.nan if value is None else value for value in row] for row in rows])


def _tokens(personas: Sequence[str], tokens: Sequence[str], relative: Floats) -> HeatMap:
    return HeatMap(
        "tokens", "What each token says for each persona",
        "r = s minus its mean over the personas, s = log p under the persona − log p under base, nats; of one persona "
        f"alone r = s. One text, {len(tokens)} tokens; colours end at ±{2 * FULL_COLOUR:g} nats.",
        tuple(_shown(token) for token in tokens) if len(tokens) <= MOST_TICKS else tuple(
            f"{at + 1} {_shown(token)}" for at, token in enumerate(tokens)
        ),
        tuple(personas), "token", "", tuple(_points(row) for row in relative), "r, nats", diverging=True,
        low=-2 * FULL_COLOUR, high=2 * FULL_COLOUR,
    )  # fmt: skip


def _running(personas: Sequence[str], tokens: Sequence[str], relative: Floats) -> Chart:
    xs = tuple(float(at) for at in range(1, len(tokens) + 1))
    summed = np.nancumsum(relative, axis=1)
    return Chart(
        "running", "How the lead builds up",
        "Running sum of r over the tokens, nats: its last value over the number of tokens is the score before offsets.",
        Axis("token"), Axis("running sum of r, nats"),
        tuple(
            Series(name, xs, _points(row), style="line", texts=tuple(_shown(token) for token in tokens))
            for name, row in zip(personas, summed, strict=True)
        ),
        (Rule(0.0, "even"),),
    )  # fmt: skip


def _shares(result: Said, personas: Sequence[str]) -> list[Figure]:
    """One chart a kind: share of each block's output, over the whole text."""
    if not result.has("overall_share"):
        return []
    layers = [(layer.maybe("block"), layer.text("kind")) for layer in result.objects("layers")]
    overall = result.object("overall_share")
    rows = {name: overall.numbers(name) for name in personas}
    if any(len(row) != len(layers) for row in rows.values()):
        raise DataError(f"{result.file}: result.overall_share has not one figure a layer: make the file again.")
    figures: list[Figure] = []
    for kind in sorted({kind for _, kind in layers}):
        at = [place for place, (block, each) in enumerate(layers) if each == kind and block is not None]
        series = tuple(
            Series(name, tuple(layers[i][0] for i in at), tuple(None if (v := row[i]) is None else 100 * v for i in at))
            for name, row in rows.items()
        )
        figures.append(
            Chart(
                f"share-{kind}", f"Share of each block's {kind} output through weights that one persona alone drops",
                "sqrt( Σ ‖(W ⊙ D) x‖² / Σ ‖W x‖² ), squares summed over the text's positions and the block's targets "
                "of that kind; x under the base model, D: weights that this persona drops and no other does.",
                Axis("block"), Axis("share, %", low=0.0), series,
            )
        )  # fmt: skip
    return figures


def _passage(result: Said, personas: Sequence[str], tokens: Sequence[str], relative: Floats) -> Passage:
    who, much = leading(np.nan_to_num(relative))
    coloured = tuple(
        Token(
            token, int(who[t]) % 6, round(min(max(float(much[t]), 0.0) / FULL_COLOUR, 1.0), 3),
            ", ".join(f"{name} {relative[p, t]:+.2f}" for p, name in enumerate(personas)),
        )
        for t, token in enumerate(tokens)
    )  # fmt: skip
    title = result.text("question") if result.has("question") else "A plain text"
    return Passage(
        title, f"Each token has the colour of the persona with the largest r, full from {FULL_COLOUR:g} nats on.",
        result.text("opening") if result.has("opening") else "", coloured,
        tuple((p % 6, name) for p, name in enumerate(personas)),
    )  # fmt: skip


def _points(row: Floats) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(value) for value in row)


def _shown(token: str) -> str:
    """Blanks and line ends as marks, so that a tick is not empty."""
    return token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "·"
