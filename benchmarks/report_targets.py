"""The first section of docs/evidence.md: every target, what was measured, and by how much it was missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.readme import SETS
from benchmarks.run import ceiling_of
from personae.evaluation.suites.ai_persona_sets import SOURCES

Found = dict[str, Any]
Read = Callable[[str], Any]
LEAST = {"acc": 0.93, "acc_tied": 0.85}
MOST = {"acc_opposite": 0.08}
BUDGET, OF_CEILING, HELLASWAG, GOLD = 0.05, 0.90, 0.01, 0.03
CLEAR = "> 0, clear"
RIVALS = {  # condition, what it is called, what is wanted; all but retrieval were searched within the same bound
    "retrieval": ("retrieval", CLEAR),
    "steering": ("steering (CAA), searched within the same bound", CLEAR),
    "lora-sft": ("LoRA, SFT, scaled within the same bound", "≥ 0"),
    "lora-dpo": ("LoRA, DPO, scaled within the same bound", "no target"),
}
FORMS = {
    "mbti-steps": "short steps, last third",
    "mbti-tuned": "blocks and share chosen on dev",
    "mbti": "all blocks, one round",
}
ACCURACY, LETTERS = "Accuracy, change to base", "MMLU: log-probability, change to base"
GOLDEN = {
    "gold letter among the four, nats": "gold letter among the four",
    "gold letter among all tokens, nats": "gold letter among all tokens",
    "gold choice written out, nats a token": "gold choice written out, a token",
}


def targets(read: Read) -> Iterator[str]:
    """The section. read: from the name of a result file to what it says, or None."""
    yield "## Targets\n"
    yield "On the default model, test items. A row that wants '> 0, clear' is met where its 95 % interval is above zero"
    yield "and p after Holm, where its file holds one, below 0.05; any other goes by the figure itself, the interval"
    yield "beside it. What was tried for those missed is told in [experiments.md](experiments.md).\n"
    yield "| target | wanted | measured | |"
    yield "|---|---|---|---|"
    for name, title in SETS.items():
        yield from _persona(read, name, title)
    yield from _capability(read)
    yield ""
    yield from _dimensions(read)
    yield from _beside_the_paper(read)


def _line(what: str, wanted: str, measured: str, short: float | None) -> str:
    """short: by how much the target was missed; 0 or less where it was met, None where there is none."""
    return f"| {what} | {wanted} | {measured} | {'' if short is None else _verdict(short)} |"


def _verdict(short: float) -> str:
    return "met" if short <= 0 else f"**missed by {max(short, 0.001):.3f}**"


def _clear(gap: Found) -> str:
    return "met" if gap["low"] > 0 and gap.get("p_holm", 0.0) < 0.05 else "**not clear**"


def _persona(read: Read, name: str, title: str) -> Iterator[str]:
    found = read(f"ai_persona_{name}_steps")
    if not found:
        return
    row = next(r for r in found["evaluation"]["rows"] if r["name"] == "directed")
    for key, least in LEAST.items():
        yield _line(f"{title}: {key}", f"≥ {least}", _spread(row[key]), least - row[key]["value"])
    for key, most in MOST.items():
        yield _line(f"{title}: {key}", f"≤ {most}", _spread(row[key]), row[key]["value"] - most)
    loss = row["capability_loss"]
    measured = f"{loss:.3f} ± {1.96 * row['capability_loss_error']:.3f}"
    yield _line(f"{title}: capability loss, nats a token", f"≤ {BUDGET}", measured, loss - BUDGET)
    for key, of in (("own_answers", ""), ("own_answers_opposite", " of the opposite")):
        yield _line(f"{title}: own answers{of}, nats a token", "≥ 0", _spread(row[key], "+"), -row[key]["value"])
    prompt = next(r["acc"] for r in found["evaluation"]["rows"] if r["name"] == "system prompt")
    apart = {"low": row["acc"]["low"] - prompt["high"]}  # the intervals of the two do not meet: more than is needed
    text = f"{row['acc']['value'] - prompt['value']:+.3f}: it has {_spread(prompt)}"
    yield f"| {title}: acc above the system prompt | {CLEAR} | {text} | {_clear(apart)} |"
    yield from _over_others(read(f"rivals_{name}_steps"), row, title)
    yield from _forward_only(read, name, title)


def _over_others(rivals: Found | None, row: Found, title: str) -> Iterator[str]:
    """The masks above every rival and control. row: of the masks, with its claims over controls of its size."""
    for claim in (c for c in row["claims"] if c["figure"] == "acc"):
        what = f"{title}: acc above the best control of its size ({claim['over']})"
        yield f"| {what} | {CLEAR} | {_spread(claim, '+')} | {_clear(claim)} |"
    minus = rivals["minus"] if rivals else {}
    for other in (name for name in minus if name.startswith("other: ")):
        gap = minus[other]["acc"]
        what = f"{title}: acc above the mask of {other.removeprefix('other: ')}"
        yield f"| {what} | {CLEAR} | {_spread(gap, '+')} | {_clear(gap)} |"
    for rival, (called, wanted) in RIVALS.items():
        if rivals is None or rival not in minus:
            continue
        gap, other = minus[rival]["acc"], rivals["made"][rival][0]["capability_loss"]
        losses = "its loss not measured" if other is None else f"losses {row['capability_loss']:.3f} and {other:.3f}"
        over = ", **over the budget**" if other is not None and other > BUDGET else ""
        met = {CLEAR: _clear(gap), "≥ 0": _verdict(-gap["value"])}.get(wanted, "")
        yield f"| {title}: acc above {called} | {wanted} | {_spread(gap, '+')}; {losses}{over} | {met} |"


def _forward_only(read: Read, name: str, title: str) -> Iterator[str]:
    """The masks of the largest acc on these items that no gradient helped to find, with their dtype and loss."""
    rows: list[tuple[Found, str]] = []
    for form in ("_steps", ""):
        rivals = read(f"rivals_{name}{form}") or {"made": {}, "dtype": ""}
        rows += [(row, rivals["dtype"]) for made in rivals["made"].values() for row in made]
    if others := read(f"ai_persona_{name}_methods"):
        rows += [(row, others["evaluation"]["model"]["dtype"]) for row in others["evaluation"]["rows"]]
    mine = [(row, dtype) for row, dtype in rows if row["kind"] == "method" and row["cost"] == "forward-only"]
    if not mine:
        return
    row, dtype = max(mine, key=lambda each: float(each[0]["acc"]["value"]))
    over = ", **over the budget**" if row["capability_loss"] > BUDGET else ""
    text = f"{row['name']} ({dtype}): {_spread(row['acc'])} / {_spread(row['acc_opposite'])}, loss "
    left = "" if any(r["name"] == "directed-forward" for r, _ in mine) else "; directed-forward was not measured"
    what = f"{title}: acc / acc_opposite of the best found by forwards alone, of {len(mine)} on these very items"
    yield _line(what, "a row of its own", f"{text}{row['capability_loss']:.3f}{over}{left}", None)


def _capability(read: Read) -> Iterator[str]:
    both = [kept for name in SETS if (kept := read(f"suite_capability-{name}-steps"))]
    for title, column, called, within in (
        (ACCURACY, "HellaSwag, by bytes", "HellaSwag, by bytes: accuracy, change", HELLASWAG),
        *((LETTERS, column, f"MMLU: log p of the {called}, change in nats", GOLD) for column, called in GOLDEN.items()),
    ):
        changes = [change for kept in both for change in _column(kept, title, column)]
        if changes:
            far = max(changes, key=lambda f: abs(float(f["value"])))
            short = abs(far["value"]) - within
            yield _line(f"{called}, farthest of {len(changes)} masks", f"within {within}", _spread(far, "+"), short)


def _column(capability: Found, title: str, column: str) -> list[Found]:
    """The cells of every mask in one column of one table."""
    [table] = [t for t in capability["tables"] if t["title"] == title]
    return [row[table["columns"].index(column)] for row in table["rows"]]


def _dimensions(read: Read) -> Iterator[str]:
    """MBTI, every form of masks that was measured: which one a reader takes is not chosen by these figures here."""
    yield "MBTI: AUC of answers of either pole under the two masks, over that of LoRA adapters on the same rows"
    yield f"(wanted: ≥ {OF_CEILING}), above the best control (wanted: clear), own answers of either pole (wanted: ≥ 0)."
    yield "'In name': words alone tell the answers apart better than adapters and masks do.\n"
    yield "| dimension, masks | AUC | adapters | words alone | share of the adapters' | above the best control | own answers | loss |"  # noqa: E501
    yield "|---|---|---|---|---|---|---|---|"
    for dimension in ("EI", "SN", "TF", "JP"):
        plain = read(f"suite_mbti-{dimension}")
        for form, called in FORMS.items():
            if found := read(f"suite_{form}-{dimension}"):
                yield _form(found, plain, dimension, called)
    yield ""


def _form(found: Found, plain: Found | None, dimension: str, called: str) -> str:
    def of(key: str) -> Any:
        return found["figures"].get(f"{dimension}.{key}")

    auc, words, ceiling = of("auc"), of("auc_bag_of_words"), ceiling_of(dimension, found, plain)
    share = "–"
    if ceiling is not None and plain is not None:
        ratio = auc["value"] / ceiling["value"]
        in_name = ", in name" if words["value"] > max(ceiling["value"], auc["value"]) else ""
        share = f"{ratio:.2f}: {_verdict(OF_CEILING - ratio)}{in_name if ratio >= OF_CEILING else ''}"
        ceiling_dtype = plain["model"]["dtype"]
    own = "; ".join(
        f"{pole} {_spread(of(key), '+')}: {_verdict(-of(key)['value'])}"
        for pole, key in zip(dimension, ("own_answers", "own_answers_opposite"), strict=True)
    )
    gap, dtype = of("auc_minus_best_control"), found["model"]["dtype"]
    adapters = "–" if ceiling is None else _spread(ceiling) + ("" if ceiling_dtype == dtype else f" ({ceiling_dtype})")
    return (
        f"| {dimension[0]}/{dimension[1]}, {called} ({dtype}) | {_spread(auc)} | {adapters} | {words['value']:.3f} "
        f"| {share} | {_spread(gap, '+')}: {_clear(gap)} | {own} | {of('capability_loss'):.3f} |"
    )


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
