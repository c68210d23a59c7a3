"""The part of an audit: a verdict a hazard, how cheaply each is reached, what disabling and attacks did."""

from __future__ import annotations

from collections.abc import Sequence

from personae.analysis.report_pieces import (
    Axis,
    Cell,
    Chart,
    Figure,
    HeatMap,
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

__all__ = ["audit_part"]

_Three = tuple[float, float, float]

_ALIGNMENT = (
    "alignment: share of items whose hazardous answer has the larger log-probability a token, ties one half. "
    "Intervals: 95 %, paired bootstrap over items."
)


def audit_part(given: Given) -> Part:
    """What `personae audit -o` has written. The file's own limits stand first among the warnings."""
    said = given.said
    result = said.object("result")
    hazards = result.objects("hazards")
    figures: list[Figure] = []
    for place, hazard in enumerate(hazards, 1):
        figures += _figures(hazard, place)
    skip = {"format", "kind", "command", "result", "notes"}
    return Part(
        title=f"Audit of {result.text('model')}",
        kind="audit",
        source=given.name,
        sha256=given.sha256,
        model=given.model,
        findings=tuple(f"{h.text('contrast')}: {h.text('verdict')}. {h.text('sentence')}" for h in hazards),
        tables=(_verdicts(hazards), *_attacks(hazards), *_kept(hazards), *_together(result)),
        figures=tuple(figures),
        notes=said.texts("notes", optional=True),
        warnings=(
            *((result.text("limits"),) if result.has("limits") else ()),
            *(f"{h.text('contrast')}: {warning}" for h in hazards for warning in h.texts("warnings", optional=True)),
        ),
        made=tuple(flattened({key: value for key, value in said.content.items() if key not in skip})),
        command=said.text("command") if said.has("command") else None,
    )


# --- tables ---------------------------------------------------------------------------------------------------


def _verdicts(hazards: Sequence[Said]) -> Table:
    rows = []
    for hazard in hazards:
        base, curve = hazard.object("base"), hazard.object("accessibility")
        after = hazard.object("disabled") if hazard.has("disabled") else None
        mask = hazard.object("disabling") if hazard.has("disabling") else None
        smallest = Cell(percent(curve.maybe("smallest")), _smallest(curve))
        rows.append((
            Cell(hazard.text("contrast")), Cell(hazard.text("verdict")), triple(base.maybe_estimate("all")),
            triple(base.maybe_estimate("tied")), smallest, triple(curve.maybe_estimate("area")),
            triple(curve.maybe_estimate("control_area")), triple(after.maybe_estimate("all") if after else None),
            triple(mask.maybe_estimate("own") if mask else None),
            Cell("–" if mask is None else percent(mask.number("share"))),
            Cell("–" if mask is None else number(mask.object("loss").number("worst"), 4)),
            Cell(number(hazard.number("exposure"))), Cell(number(hazard.maybe("exposure_to_weights"))),
        ))  # fmt: skip
    columns = (
        "hazard", "verdict", "base", "base, tied items", "smallest share past the threshold", "area", "area, random",
        "disabled", "disabled, own pairs", "disabling mask", "capability loss", "exposure", "exposure to weights",
    )  # fmt: skip
    notes = (
        f"{_ALIGNMENT} base, disabled: alignment without and with the disabling mask, on held-out items; own pairs: on "
        "pairs that the mask was found on. smallest share: the least share of all weights whose removal takes the "
        "alignment past the threshold; – if none does. "
        "area: mean alignment over ln(share). capability loss: the larger of plain text and chat, nats a token.",
    )
    return Table("Verdicts", columns, tuple(rows), words=frozenset({0, 1}), notes=notes)


def _smallest(curve: Said) -> str:
    low, high = curve.maybe("smallest_low"), curve.maybe("smallest_high")
    return "" if low is None and high is None else f"[{percent(low)}, {percent(high)}]"


def _together(result: Said) -> list[Table]:
    """Every hazard under all disabling masks at once, which is what a safe checkpoint has."""
    if not result.has("together"):
        return []
    found = result.object("together")
    alignments = found.object("alignments")
    rows = tuple(
        (Cell(name), triple(alignments.object(name).estimate("all")),
         triple(alignments.object(name).maybe_estimate("tied")))
        for name in alignments.content
    )  # fmt: skip
    note = (
        f"{_ALIGNMENT} All masks together drop {percent(found.number('share'))} of the weights and cost "
        f"{number(found.object('loss').number('worst'), 4)} nats a token (the larger of plain text and chat)."
    )
    columns = ("hazard", "alignment", "alignment, tied items")
    return [Table("All disabling masks at once", columns, rows, words=frozenset({0}), notes=(note,))]


def _attacks(hazards: Sequence[Said]) -> list[Table]:
    rows = [
        (Cell(hazard.text("contrast")), Cell(attack.text("name")), Cell(attack.text("kind")),
         triple(attack.estimate("base")), triple(attack.estimate("moved"), signed=True),
         triple(attack.maybe_estimate("margin_moved"), signed=True),
         Cell("yes" if attack.content.get("counts") is True else "does not move the base model"),
         triple(attack.maybe_estimate("disabled")), Cell(attack.text("note") if attack.has("note") else ""))
        for hazard in hazards
        for attack in hazard.objects("attacks")
    ]  # fmt: skip
    if not rows:
        return []
    columns = (
        "hazard", "attack", "kind", "base, attacked", "moved", "margin moved", "counts", "disabled, attacked", "note"
    )  # fmt: skip
    note = (
        f"{_ALIGNMENT} moved, margin moved: base under attack minus base, in alignment and in nats a token. An attack "
        "counts only where the interval of the alignment lies above 0, or, where base is past the threshold already, "
        "that of the margin. disabled, attacked: the same attack on the disabled model, on the same items."
    )
    return [Table("Attacks", columns, tuple(rows), words=frozenset({0, 1, 2, 6, 8}), notes=(note,))]


def _kept(hazards: Sequence[Said]) -> list[Table]:
    rows = [
        (Cell(hazard.text("contrast")), Cell(f"{kept.text('contrast')} ({kept.text('pole')})"),
         Cell(number(kept.whole("items"))), triple(kept.estimate("before")), triple(kept.estimate("after")),
         triple(kept.estimate("change"), signed=True), triple(kept.maybe_estimate("margin_change"), signed=True),
         Cell("touched" if kept.content.get("touched") is True else "untouched"))
        for hazard in hazards
        if hazard.has("disabling")
        for kept in hazard.object("disabling").objects("kept")
    ]  # fmt: skip
    if not rows:
        return []
    columns = ("hazard", "harmless persona", "items", "before", "after", "change", "margin change", "verdict")
    note = "Under the disabling mask, on test items; touched: the interval of the change excludes 0."
    return [Table("Harmless personas", columns, tuple(rows), words=frozenset({0, 1, 7}), notes=(note,))]


# --- figures --------------------------------------------------------------------------------------------------


def _figures(hazard: Said, place: int) -> list[Figure]:
    name = hazard.text("contrast")
    curve = hazard.object("accessibility")
    series = [_curve("base model", curve, 0), *_control("random, base model", curve)]
    again = hazard.object("found_again") if hazard.has("found_again") else None
    if again is not None:
        after = again.object("accessibility")
        series += [_curve("disabled model, discovered anew", after, 1)]
    threshold = curve.number("threshold")
    figures: list[Figure] = [
        Chart(
            f"accessibility-{place}", f"{name}: how cheaply the hazardous pole is reached",
            f"{_ALIGNMENT} Each point drops a longer prefix of one ranking (random: as many weights of the same "
            "candidates). Left and high: cheaply reached.",
            Axis("dropped weights, % of all", log=True), Axis("alignment with the hazardous pole", low=0.0, high=1.0),
            tuple(series), (Rule(threshold, "threshold"), Rule(curve.estimate("base")[0], "nothing dropped")),
        ),
        *_alignments(hazard, place),
        *_places(hazard, place),
        *_restored(hazard, place),
    ]  # fmt: skip
    return figures


def _curve(name: str, curve: Said, colour: int) -> Series:
    points = [point for point in curve.objects("points") if point.number("share") > 0]
    return Series(
        name, tuple(100 * p.number("share") for p in points), *ends([p.estimate("alignment") for p in points]),
        colour=colour, texts=tuple(f"{number(p.whole('dropped'))} weights" for p in points),
    )  # fmt: skip


def _control(name: str, curve: Said) -> list[Series]:
    points = [p for p in curve.objects("points") if p.has("control") and p.number("share") > 0]
    if not points:
        return []
    xs = tuple(100 * p.number("share") for p in points)
    return [Series(name, xs, *ends([p.estimate("control") for p in points]), dashed=True, colour=6)]


def _alignments(hazard: Said, place: int) -> list[Chart]:
    """Base and disabled model side by side, held out and under each attack."""
    after = hazard.object("disabled").maybe_estimate("all") if hazard.has("disabled") else None
    rows = [("held-out items", hazard.object("base").estimate("all"), after)]
    for attack in hazard.objects("attacks"):
        name = attack.text("name") + ("" if attack.content.get("counts") is True else " (not counted)")
        rows.append((name, attack.estimate("base"), attack.maybe_estimate("disabled")))
    rows = rows[::-1]
    series = []
    models: tuple[tuple[str, list[_Three | None]], ...] = (
        ("base model", [row[1] for row in rows]),
        ("disabled model", [row[2] for row in rows]),
    )
    for colour, (model, found) in enumerate(models):
        if all(each is None for each in found):
            continue
        x, low, high = ends(found)
        ys = tuple(i + 0.1 - 0.2 * colour for i in range(len(rows)))
        series.append(Series(model, x, ys, x_low=low, x_high=high, style="points", colour=colour))
    return [
        Chart(
            f"attacks-{place}", f"{hazard.text('contrast')}: alignment on held-out items and under attack",
            _ALIGNMENT, Axis("alignment with the hazardous pole", low=0.0, high=1.0),
            Axis("", ticks=tuple(row[0] for row in rows)), tuple(series), (Rule(0.5, "chance", upright=True),),
        )
    ]  # fmt: skip


def _places(hazard: Said, place: int) -> list[HeatMap]:
    found = {(p.whole("block"), p.text("kind")): 100 * p.number("share") for p in hazard.objects("places")}
    if not found:
        return []
    blocks, kinds = sorted({block for block, _ in found}), sorted({kind for _, kind in found})
    return [
        HeatMap(
            f"places-{place}", f"{hazard.text('contrast')}: where the hazardous pole's mask lies",
            "Share of all weights that the mask drops, percent, by block and kind; sums to 100. Counts of the mask: no "
            "estimate, no interval.",
            tuple(kinds), tuple(map(str, blocks)), "kind", "block",
            tuple(tuple(found.get((block, kind)) for kind in kinds) for block in blocks), "% of the mask",
        )
    ]  # fmt: skip


def _restored(hazard: Said, place: int) -> list[Chart]:
    rows = hazard.objects("restored")
    if not rows:
        return []
    effects = ends([row.estimate("effect") for row in rows])
    blocks = [[int(b) for b in row.numbers("blocks") if b is not None] for row in rows]
    names = tuple(f"{b[0]}–{b[-1]}" if len(b) > 1 else ", ".join(map(str, b)) for b in blocks)
    return [
        Chart(
            f"restored-{place}", f"{hazard.text('contrast')}: which blocks hold the hazardous pole",
            "Margin lost when these blocks get their weights back and the rest of the mask stays on, nats a token; "
            f"positive where they hold it. {rows[0].whole('items')} items. Intervals: 95 %, paired bootstrap over "
            "items.",
            Axis("blocks", ticks=names), Axis("margin lost, nats a token"),
            (Series("restored", tuple(float(i) for i in range(len(rows))), *effects, style="bars", listed=False),),
            (Rule(0.0, "nothing lost"),),
        )
    ]  # fmt: skip
