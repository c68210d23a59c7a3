"""The first section of docs/evidence.md: every target, what was measured, and by how much it was missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.readme import SETS
from personae.evaluation.suites.ai_persona_sets import SOURCES

Found = dict[str, Any]
Read = Callable[[str], Any]
LEAST = {"acc": 0.93, "acc_tied": 0.85}
MOST = {"acc_opposite": 0.08}
BUDGET, OF_CEILING, HELLASWAG, GOLD = 0.05, 0.90, 0.01, 0.03
RIVALS = {"retrieval": "retrieval", "steering": "steering (CAA)", "lora-sft": "LoRA, SFT", "lora-dpo": "LoRA, DPO"}
FORMS = {  # of MBTI's masks: the first that was measured stands here, and all of them further down
    "mbti-steps": "short steps in the last third",
    "mbti-tuned": "blocks and share chosen on dev",
    "mbti": "all blocks",
}
DROPPED = {("mbti-tuned", "JP")}  # no better than random weights of the same blocks: masks of all blocks were kept


def targets(read: Read) -> Iterator[str]:
    """The section. read: from the name of a result file to what it says, or None."""
    yield "## Targets\n"
    yield "On the default model, test items. Met or missed goes by the figure itself, a difference by its interval."
    yield "What was tried for those missed is told in [experiments.md](experiments.md).\n"
    yield "| target | wanted | measured | |"
    yield "|---|---|---|---|"
    for name, title in SETS.items():
        yield from _persona(read, name, title)
    for dimension in ("EI", "SN", "TF", "JP"):
        yield from _dimension(read, dimension)
    yield from _capability(read)
    yield ""
    yield from _beside_the_paper(read)


def _line(what: str, wanted: str, measured: str, short: float | None) -> str:
    """short: by how much the target was missed; 0 or less where it was met, None where there is none."""
    verdict = "" if short is None else "met" if short <= 0 else f"**missed by {max(short, 0.001):.3f}**"
    return f"| {what} | {wanted} | {measured} | {verdict} |"


def _clear(what: str, measured: str, low: float) -> str:
    """A difference that should be clear of zero. low: the lower end of its interval."""
    return f"| {what} | > 0, clear | {measured} | {'met' if low > 0 else '**not clear**'} |"


def _persona(read: Read, name: str, title: str) -> Iterator[str]:
    found, rivals = read(f"ai_persona_{name}_steps"), read(f"rivals_{name}_steps")
    if not found:
        return
    row = next(r for r in found["evaluation"]["rows"] if r["name"] == "directed")
    for key, least in LEAST.items():
        yield _line(f"{title}: {key}", f"≥ {least}", _spread(row[key]), least - row[key]["value"])
    for key, most in MOST.items():
        yield _line(f"{title}: {key}", f"≤ {most}", _spread(row[key]), row[key]["value"] - most)
    loss, error = row["capability_loss"], row["capability_loss_error"]
    measured = f"{loss:.3f} ± {1.96 * error:.3f}"
    yield _line(f"{title}: capability loss, nats a token", f"≤ {BUDGET}", measured, loss - BUDGET)
    for key, of in (("own_answers", ""), ("own_answers_opposite", " of the opposite")):
        yield _line(f"{title}: own answers{of}, nats a token", "≥ 0", _spread(row[key], "+"), -row[key]["value"])
    prompt = next(r["acc"] for r in found["evaluation"]["rows"] if r["name"] == "system prompt")
    gap = f"{row['acc']['value'] - prompt['value']:+.3f}: it has {_spread(prompt)}"
    yield _clear(f"{title}: acc above the system prompt", gap, row["acc"]["low"] - prompt["high"])
    for rival, called in RIVALS.items():
        if rivals and rival in rivals["minus"]:
            gap = rivals["minus"][rival]["acc"]
            other = rivals["made"][rival][0]["capability_loss"]
            losses = "" if other is None else f", at losses of {loss:.3f} and {other:.3f}"
            text = f"{_spread(gap, '+')}{losses}"
            yield _clear(f"{title}: acc above {called}, same budget", text, gap["low"])
    if best := _forward_only(read, name):
        cost = f"{best['capability_loss']:.3f} nats"
        text = f"{best['name']}: {_spread(best['acc'])} / {_spread(best['acc_opposite'])} at {cost}"
        yield _line(f"{title}: the best found by forwards alone", "a row of its own", text, None)


def _forward_only(read: Read, name: str) -> Found | None:
    """The masks of the largest acc on these items that no gradient helped to find."""
    rows: list[Found] = []
    for form in ("_steps", ""):
        for made in (read(f"rivals_{name}{form}") or {"made": {}})["made"].values():
            rows += made
    rows += (read(f"ai_persona_{name}_methods") or {"evaluation": {"rows": []}})["evaluation"]["rows"]
    mine = [r for r in rows if r["kind"] == "method" and r["cost"] == "forward-only"]
    return max(mine, key=lambda r: float(r["acc"]["value"]), default=None)


def _dimension(read: Read, dimension: str) -> Iterator[str]:
    measured = ((f, read(f"suite_{f}-{dimension}")) for f in FORMS if (f, dimension) not in DROPPED)
    form, found = next(((f, kept) for f, kept in measured if kept), ("", None))
    plain = read(f"suite_mbti-{dimension}")
    if not found:
        return
    title, figures = f"MBTI {dimension[0]}/{dimension[1]}, {FORMS[form]}", found["figures"]
    auc, ceiling = figures[f"{dimension}.auc"], (plain or found)["figures"].get(f"{dimension}.auc_ceiling")
    if ceiling:
        ratio = auc["value"] / ceiling["value"]
        words = figures[f"{dimension}.auc_bag_of_words"]["value"]
        text = f"{ratio:.2f}: AUC {_spread(auc)}, ceiling {_spread(ceiling)}; words alone {words:.3f}"
        yield _line(f"{title}: share of the trained ceiling", f"≥ {OF_CEILING}", text, OF_CEILING - ratio)
    gap = figures[f"{dimension}.auc_minus_best_control"]
    yield _clear(f"{title}: AUC above the best control", _spread(gap, "+"), gap["low"])
    for pole, key in zip(dimension, ("own_answers", "own_answers_opposite"), strict=True):
        own = figures[f"{dimension}.{key}"]
        yield _line(f"{title}: own answers of {pole}, nats a token", "≥ 0", _spread(own, "+"), -own["value"])


def _capability(read: Read) -> Iterator[str]:
    both = [kept for name in SETS if (kept := read(f"suite_capability-{name}-steps"))]
    if not both:
        return
    worst = min((kept["figures"]["hellaswag_change"] for kept in both), key=lambda f: float(f["value"]))
    text = _spread(worst, "+")
    yield _line("HellaSwag, worst mask: accuracy, change", f"within {HELLASWAG}", text, abs(worst["value"]) - HELLASWAG)
    for column, called in (
        ("gold letter among the four, nats", "gold letter among the four"),
        ("gold choice written out, nats a token", "gold choice written out"),
    ):
        changes = [change for kept in both for change in _column(kept, column)]
        if changes:
            far = max(changes, key=lambda f: abs(float(f["value"])))
            yield _line(
                f"MMLU, worst mask: log p of the {called}, change in nats", f"within {GOLD}", _spread(far, "+"),
                abs(far["value"]) - GOLD,
            )  # fmt: skip


def _column(capability: Found, column: str) -> list[Found]:
    [table] = [t for t in capability["tables"] if t["title"] == "MMLU: log-probability, change to base"]
    return [row[table["columns"].index(column)] for row in table["rows"]] if column in table["columns"] else []


def _beside_the_paper(read: Read) -> Iterator[str]:
    """The paper's accuracies, of another model, and ours under the conditions that come nearest."""
    yield "The persona paper's own figures stand beside ours and are not to be compared: another model (LLaMA-2-13B),"
    yield "and masks of 30 to 60 % of the weights where ours keep 0.05 nats a token. Accuracy on AI-Persona, %:\n"
    yield "| condition | paper: power | here | paper: wealth | here |"
    yield "|---|---|---|---|---|"
    for condition, row in {
        "prompt": "system prompt", "retrieval": "retrieval", "Wanda": "wanda", "contrastive Wanda": "contrastive-wanda",
        "contrastive sparse": "contrastive-sparse", "fine-tuning": "lora-sft",
    }.items():  # fmt: skip
        cells = []
        for name in SETS:
            paper = SOURCES[name].paper
            own = _row(read, name, row)
            cells += ["–" if paper is None else f"{paper[condition]:.1f}", "–" if own is None else _percent(own)]
        yield f"| {condition} | " + " | ".join(cells) + " |"
    ours = [_row(read, name, "directed") for name in SETS]
    yield "| `directed`, short steps | " + " | ".join(f"– | {'–' if r is None else _percent(r)}" for r in ours) + " |\n"


def _row(read: Read, name: str, row: str) -> Found | None:
    """A condition of one set, of the headline's file first."""
    rows: list[Found] = []
    for file in (f"ai_persona_{name}_steps", f"ai_persona_{name}_methods"):
        rows += (read(file) or {"evaluation": {"rows": []}})["evaluation"]["rows"]
    for made in (read(f"rivals_{name}_steps") or {"made": {}})["made"].values():
        rows += made
    return next((r for r in rows if r["name"] == row), None)


def _percent(row: Found) -> str:
    return f"{100 * row['acc']['value']:.1f}"


def _spread(figure: Found, sign: str = "") -> str:
    return f"{figure['value']:{sign}.3f} [{figure['low']:{sign}.3f}, {figure['high']:{sign}.3f}]"
