"""An audit as tables: in the terminal and as Markdown. The same rows in both, and the limits under both."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from personae.analysis.audit_result import Audit, Hazard, Kept, Loss
from personae.evaluation import Difference, Estimate

STYLES = {
    "absent": "green", "disabled": "green", "disabled at a cost": "yellow", "weakened": "yellow", "reachable": "red",
    "not disabled": "red",
}  # fmt: skip
_PLACES = 5  # that hold the most, a hazard

Cells = tuple[str, ...]
Rows = tuple[str, Cells, list[Cells]]  # title, columns, rows


def to_rich(audit: Audit, *, fail_above: float | None = None, count_rediscovery: bool = False) -> RenderableType:
    """Verdicts, then curves, disabling and attacks, then what the audit does not say."""
    parts: list[RenderableType] = []
    for title, columns, rows in tables(audit):
        table = Table(box=SIMPLE, padding=(0, 1))
        for number, column in enumerate(columns):
            table.add_column(Text(column), justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
        parts += [Text(title, style="bold"), table]
    for hazard in audit.hazards:
        parts.append(Text(f"{hazard.contrast}: {hazard.sentence}"))
        parts += [Text(f"  doubt: {warning}", style="yellow") for warning in hazard.warnings]
    parts.append(Text(closing(audit, fail_above, count_rediscovery), style="bold"))
    parts.append(Text(audit.limits, style="italic"))
    return Group(*parts)


def to_markdown(
    audit: Audit, *, command: str = "", fail_above: float | None = None, count_rediscovery: bool = False
) -> str:
    """The same as Markdown, with the command that makes it again."""
    lines = [f"# Audit of {audit.model}", "", f"Weights `{audit.fingerprint}`.", ""]
    for title, columns, rows in tables(audit):
        lines += [f"## {title}", ""]
        lines.append("| " + " | ".join(map(_cell, columns)) + " |")
        lines.append("|---" + "|---:" * (len(columns) - 1) + "|")
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
        lines.append("")
    lines += ["## In words", ""]
    for hazard in audit.hazards:
        lines.append(f"- **{_cell(hazard.contrast)}**, {hazard.verdict}: {hazard.sentence}")
        lines += [f"  - doubt: {warning}" for warning in hazard.warnings]
    lines += ["", closing(audit, fail_above, count_rediscovery), "", f"*{audit.limits}*"]
    if command:
        lines += ["", f"    {command}"]
    return "\n".join(lines) + "\n"


def decisive(audit: Audit, count_rediscovery: bool) -> float:
    """The exposure that --fail-above is compared with, in what is printed and in the exit code alike."""
    return audit.worst_to_weights if count_rediscovery else audit.worst


def closing(audit: Audit, fail_above: float | None, count_rediscovery: bool = False) -> str:
    """The figure that the exit code is decided by."""
    said = f"Largest exposure: {audit.worst:.2f} to prompts, {audit.worst_to_weights:.2f} to a fresh discovery as well."
    if fail_above is None:
        return said
    ends = "Fails" if decisive(audit, count_rediscovery) > fail_above else "Passes"
    return f"{said} {ends} at {fail_above:g}{', the fresh discovery counted' * count_rediscovery}."


def tables(audit: Audit) -> list[Rows]:
    """Titles, columns and cells. Alignments are with the hazardous pole, with 95 % intervals over items."""
    made = [_verdicts(audit.hazards), _curves(audit.hazards), _places(audit.hazards), _attacks(audit.hazards)]
    disabled = [hazard for hazard in audit.hazards if hazard.disabling is not None]
    if disabled:
        made.insert(3, _disablings(disabled))
    if audit.together is not None:
        made.append(_together(audit))
    return made


def _verdicts(hazards: Sequence[Hazard]) -> Rows:
    columns: Cells = (
        "hazard",
        "verdict",
        "items (tied)",
        "base",
        "base, tied",
        "disabled",
        "disabled, tied",
        "exposure",
    )
    rows: list[Cells] = []
    for hazard in hazards:
        base, after = hazard.base, hazard.disabled
        read = (None, None) if after is None else (after.all, after.tied)
        rows.append(
            (
                hazard.pole, hazard.verdict, f"{base.items} ({base.tied_items})", _estimate(base.all),
                _estimate(base.tied), *map(_estimate, read), f"{hazard.exposure:.2f}",
            )
        )  # fmt: skip
    return "Alignment with the hazardous pole on held-out items", columns, rows


def _curves(hazards: Sequence[Hazard]) -> Rows:
    shares = [point.share for point in hazards[0].accessibility.points]
    columns: Cells = (
        "hazard", "model", *(f"{share:.2%}" for share in shares), "area", "area of random masks", "smallest share",
        "loss there",
    )  # fmt: skip
    rows: list[Cells] = []
    for hazard in hazards:
        curves = [("base", hazard.accessibility)]
        if hazard.found_again is not None:
            curves.append(("disabled", hazard.found_again.accessibility))
        for model, curve in curves:
            points = (
                f"{p.alignment.value:.2f}" + (f" ({p.control.value:.2f})" if p.control else "") for p in curve.points
            )
            ends = "–" if curve.smallest is None else f"{curve.smallest:.3%}"
            if curve.smallest_low is not None:
                high = "not reached" if curve.smallest_high is None else f"{curve.smallest_high:.3%}"
                ends += f" [{curve.smallest_low:.3%}, {high}]"
            rows.append(
                (
                    hazard.pole if model == "base" else "", model, *points, _estimate(curve.area),
                    _estimate(curve.control_area), ends, "–" if curve.loss is None else f"{curve.loss:+.3f}",
                )
            )  # fmt: skip
    threshold = hazards[0].accessibility.threshold
    title = f"Accessibility: alignment by share of weights dropped (random masks); smallest share past {threshold:g}"
    return title, columns, rows


def _places(hazards: Sequence[Hazard]) -> Rows:
    rows: list[Cells] = []
    for hazard in hazards:
        most = sorted(hazard.places, key=lambda place: -place.share)[:_PLACES]
        effects = sorted(hazard.restored, key=lambda each: -each.effect.value)[:2]
        rows.append(
            (
                hazard.pole, ", ".join(f"{p.block} {p.kind} {p.share:.1%}" for p in most) or "–",
                ", ".join(f"{_run(e.blocks)} {_difference(e.effect)}" for e in effects) or "–",
            )
        )  # fmt: skip
    columns: Cells = (
        "hazard",
        "most dropped weights by block and kind",
        "margin lost when blocks are put back, nats a token",
    )
    return "Where it lies", columns, rows


def _disablings(hazards: Sequence[Hazard]) -> Rows:
    columns: Cells = (
        "mask",
        "weights",
        "share",
        "own pairs",
        "dev",
        "loss: plain",
        "loss: chat",
        "budget",
        "harmless personas",
    )
    rows: list[Cells] = []
    for hazard in hazards:
        mask = hazard.disabling
        assert mask is not None
        rows.append(
            (
                mask.persona, f"{mask.dropped:,}", f"{mask.share:.3%}", _estimate(mask.own), _estimate(mask.dev.all),
                *_losses(mask.loss), f"{mask.budget:g}", _kept(mask.kept),
            )
        )  # fmt: skip
    return "Disabling masks: what they drop, cost and touch", columns, rows


def _attacks(hazards: Sequence[Hazard]) -> Rows:
    rows: list[Cells] = []
    for hazard in hazards:
        for number, attack in enumerate(hazard.attacks):
            rows.append(
                (
                    "" if number else hazard.pole, attack.name, _estimate(attack.base), _difference(attack.moved),
                    "yes" if attack.counts else "no: does not move the base model", _estimate(attack.disabled),
                )
            )  # fmt: skip
    columns: Cells = ("hazard", "attack", "base model", "moved by", "counts", "disabled model")
    return "Under attack", columns, rows


def _together(audit: Audit) -> Rows:
    assert audit.together is not None
    columns = ("hazard", "all masks at once")
    rows: list[Cells] = [(n, _estimate(a.all)) for n, a in audit.together.alignments.items()]
    plain, chat = _losses(audit.together.loss)
    rows += [("loss: plain", plain), ("loss: chat", chat), ("harmless personas", _kept(audit.together.kept))]
    return f"All masks at once, {audit.together.share:.3%} of the weights", columns, rows


def _point(alignment: Estimate, control: Estimate | None) -> str:
    return f"{alignment.value:.2f}" + ("" if control is None else f" ({control.value:.2f})")


def _estimate(figure: Estimate | None) -> str:
    return "–" if figure is None else f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


def _difference(figure: Difference) -> str:
    return f"{figure.value:+.2f} [{figure.low:+.2f}, {figure.high:+.2f}]"


def _losses(loss: Loss) -> tuple[str, str]:
    plain, chat = (f"{e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]" for e in (loss.plain, loss.chat))
    return plain, chat


def _kept(kept: Sequence[Kept]) -> str:
    said = (f"{k.pole} {_difference(k.change)}{' TOUCHED' if k.touched else ''}" for k in kept)
    return ", ".join(said) or "–"


def _run(blocks: Sequence[int]) -> str:
    return f"{blocks[0]}" if len(blocks) == 1 else f"{blocks[0]}–{blocks[-1]}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
