"""The part of a series of checkpoints: when alignment, separation and overlap appear."""

from __future__ import annotations

from collections.abc import Sequence

from personae.analysis.report_pieces import (
    Axis,
    Cell,
    Chart,
    Part,
    Rule,
    Series,
    Table,
    ends,
    flattened,
    number,
    percent,
    triple,
)
from personae.analysis.report_read import Given, Said

__all__ = ["dynamics_part"]

_INTERVALS = "Intervals: 95 %, bootstrap over items."
_SKIP = {"format", "kind", "command", "result", "notes"}


# --- checkpoints ----------------------------------------------------------------------------------------------


def dynamics_part(given: Given) -> Part:
    """What `personae dynamics -o` has written."""
    said = given.said
    result = said.object("result")
    stages = result.objects("stages")
    contrast = f"{result.text('positive')} against {result.text('negative')}"
    return Part(
        title=f"{contrast} over {len(stages)} checkpoints",
        kind="dynamics",
        source=given.name,
        sha256=given.sha256,
        model=given.model,
        findings=tuple(_onset(onset) for onset in result.objects("onsets")) if result.has("onsets") else (),
        tables=(_stages(stages), *_overlaps(result)),
        figures=(*_rising(stages, result), *_overlap_charts(result, stages)),
        notes=(*said.texts("notes", optional=True), *result.texts("notes", optional=True)),
        made=tuple(flattened({key: value for key, value in said.content.items() if key not in _SKIP})),
        command=said.text("command") if said.has("command") else None,
    )


def _onset(onset: Said) -> str:
    when = onset.content.get("label")
    there = "is not there at the last checkpoint" if when is None else f"is there from {when} on"
    return f"{onset.text('figure')} {there}."


def _stages(stages: Sequence[Said]) -> Table:
    rows = []
    for stage in stages:
        controls = stage.objects("controls") if stage.has("controls") else []
        best = max((c.estimate("separation") for c in controls), default=None)
        rows.append((
            Cell(stage.text("label")), triple(stage.estimate("base_acc")), triple(stage.estimate("acc")),
            triple(stage.estimate("acc_opposite")), triple(stage.estimate("separation")),
            triple(stage.maybe_estimate("separation_tied")), triple(best), triple(stage.estimate("over_control")),
            Cell(number(stage.maybe("p_holm"))), Cell(percent(stage.number("sparsity"))),
            Cell(number(stage.number("capability_loss"), 4), _plus_minus(stage.maybe("capability_loss_error"))),
        ))  # fmt: skip
    columns = (
        "checkpoint", "base acc", "acc", "acc opposite", "separation", "separation, tied", "best control",
        "over control", "p (Holm)", "dropped", "capability loss",
    )  # fmt: skip
    note = (
        "acc: share of test items won by p⁺'s answer under p⁺'s mask; acc opposite: under p⁻'s; separation: their "
        "difference, paired by item. over control: separation minus that of the best control, chosen again in every "
        f"resample. capability loss: nats a token ± 1.96 standard errors. {_INTERVALS}"
    )
    return Table("Checkpoints", columns, tuple(rows), notes=(note,))


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f"± {number(1.96 * error, 4)}"


def _overlaps(result: Said) -> list[Table]:
    rows = []
    for each in result.objects("overlaps") if result.has("overlaps") else []:
        parts = {part.text("part"): part for part in each.objects("parts")}
        if "all" not in parts:
            continue
        figure = parts["all"].object("jaccard")
        low, high = figure.maybe("low"), figure.maybe("high")
        ends = "" if low is None or high is None else f" [{number(low, 4)}, {number(high, 4)}]"
        rows.append((
            Cell(f"{each.text('first')} – {each.text('second')}"), Cell(each.text("against")), Cell(each.text("pole")),
            Cell(number(figure.number("value"), 4), f"chance {number(figure.number('chance'), 4)}{ends}"),
            Cell(number(each.maybe("among_candidates"), 4)),
        ))  # fmt: skip
    if not rows:
        return []
    note = (
        "Of the weights that either mask drops, the share that both drop; below it chance at the same row counts. "
        "among candidates: of as many weights drawn from either checkpoint's own candidates, which alone tells nothing "
        "of the persona."
    )
    columns = ("checkpoints", "against", "pole", "Jaccard", "among candidates")
    return [Table("Masks of different checkpoints", columns, tuple(rows), frozenset({0, 1, 2}), (note,))]


def _places(stages: Sequence[Said]) -> tuple[tuple[float, ...], Axis]:
    """Steps where every checkpoint has one, else one place a checkpoint."""
    steps = [stage.maybe("step") for stage in stages]
    if all(step is not None for step in steps) and len(set(steps)) == len(steps):
        return tuple(float(s) for s in steps if s is not None), Axis("training step")
    labels = tuple(stage.text("label") for stage in stages)
    return tuple(float(i) for i in range(len(stages))), Axis("checkpoint", ticks=labels)


def _rising(stages: Sequence[Said], result: Said) -> list[Chart]:
    xs, axis = _places(stages)
    about = f"{result.text('positive')} against {result.text('negative')}. {_INTERVALS}"
    alignment = tuple(
        _series(name, xs, [stage.estimate(field) for stage in stages], dashed=field == "base_acc", colour=colour)
        for field, name, colour in (
            ("acc", "acc, under p⁺'s mask", 0), ("acc_opposite", "acc opposite, under p⁻'s mask", 1),
            ("base_acc", "base", 6),
        )
    )  # fmt: skip
    separation = [_series("separation", xs, [stage.estimate("separation") for stage in stages], colour=0)]
    if all(stage.has("separation_tied") for stage in stages):
        tied = [stage.estimate("separation_tied") for stage in stages]
        separation.append(_series("separation, tied items", xs, tied, colour=2))
    names = sorted({c.text("name") for s in stages if s.has("controls") for c in s.objects("controls")})
    for place, name in enumerate(names, 4):
        found = [
            next((c.estimate("separation") for c in s.objects("controls") if c.text("name") == name), None)
            for s in stages
        ]
        separation.append(_series(f"{name} masks", xs, found, dashed=True, colour=place))
    losses = [stage.number("capability_loss") for stage in stages]
    errors = [1.96 * (stage.maybe("capability_loss_error") or 0.0) for stage in stages]
    return [
        Chart("alignment", "Alignment over checkpoints",
              f"Share of test items won by p⁺'s answer: {about}", axis, Axis("share of items", low=0.0, high=1.0),
              alignment, (Rule(0.5, "chance"),)),
        Chart("separation", "Separation over checkpoints",
              f"acc − acc opposite, paired by item; controls: as many weights dropped, mean over their seeds. {about}",
              axis, Axis("separation"), tuple(separation), (Rule(0.0, "chance"),)),
        Chart("loss", "Capability loss over checkpoints",
              "The largest rise of the negative log-likelihood over both masks and both texts, ± 1.96 standard errors.",
              axis, Axis("capability loss, nats a token"),
              (Series("capability loss", xs, tuple(losses),
                      tuple(v - e for v, e in zip(losses, errors, strict=True)),
                      tuple(v + e for v, e in zip(losses, errors, strict=True)), listed=False),)),
    ]  # fmt: skip


def _overlap_charts(result: Said, stages: Sequence[Said]) -> list[Chart]:
    """Jaccard with the checkpoint before, and with the last; a line a pole, chance dashed."""
    if not result.has("overlaps"):
        return []
    xs, axis = _places(stages)
    at = {stage.text("label"): x for stage, x in zip(stages, xs, strict=True)}
    charts = []
    for against, title, which in (
        ("previous", "Overlap with the mask of the checkpoint before", "second"),
        ("last", "Overlap with the mask of the last checkpoint", "first"),
    ):
        series: list[Series] = []
        own = [o for o in result.objects("overlaps") if o.text("against") == against and o.text(which) in at]
        for colour, pole in enumerate(dict.fromkeys(o.text("pole") for o in own)):
            found = []
            for overlap in own:
                if overlap.text("pole") == pole:
                    whole = [part for part in overlap.objects("parts") if part.text("part") == "all"]
                    drawn = overlap.maybe("among_candidates")
                    found += [(at[overlap.text(which)], part.object("jaccard"), drawn) for part in whole]
            found.sort(key=lambda each: each[0])
            places = tuple(x for x, _, _ in found)
            series.append(Series(pole, places, tuple(j.number("value") for _, j, _ in found), colour=colour))
            series.append(
                Series(f"{pole}, by chance", places, tuple(j.number("chance") for _, j, _ in found),
                       tuple(j.maybe("low") for _, j, _ in found), tuple(j.maybe("high") for _, j, _ in found),
                       style="line", band=True, dashed=True, colour=colour)
            )  # fmt: skip
            series.append(
                Series(f"{pole}, random candidates", places, tuple(drawn for _, _, drawn in found), style="points",
                       colour=colour)
            )  # fmt: skip
        if series:
            charts.append(
                Chart(f"overlap-{against}", title,
                      "Jaccard index of dropped weights, all targets; by chance: exact expectation at the same row "
                      "counts, band: central 95 % of its draws; points: as many weights drawn from either checkpoint's "
                      "own candidates.",
                      axis, Axis("Jaccard index", low=0.0), tuple(series))
            )  # fmt: skip
    return charts


def _series(
    name: str, xs: tuple[float, ...], found: Sequence[tuple[float, float, float] | None], *, dashed: bool = False,
    colour: int | None = None,
) -> Series:  # fmt: skip
    return Series(name, xs, *ends(found), dashed=dashed, colour=colour)
