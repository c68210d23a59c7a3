"""What else could make the model answer so: every rival and further controls beside the headline masks.

    python -m benchmarks.rivals power wealth                   # all, one after the other
    python -m benchmarks.rivals power --only steering lora-sft
    python -m benchmarks.rivals power wealth --steps           # beside the masks of short steps, in bfloat16

The masks are those of `python -m benchmarks.ai_persona` (they are found first where they are absent). Rivals that have
a strength (steering's coefficient, an adapter's scale, a mask's size) keep the same budget by the same upper bound, and
are read on the same test items and the same final text. Steering and adapters are searched on `SEARCH_ANSWERS` chat
answers, as the masks of two rounds: a search takes dozens of readings, and those of short steps read three times as
many without spending half of the budget. Writes benchmarks/results/rivals_<set>.json
(with --steps rivals_<set>_steps.json) anew after each condition, and an interrupted run goes on with the next one;
conditions that rest on no mask are kept when other masks take the headline's place.
`minus` holds headline minus each one, paired over items, Holm over the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from benchmarks.ai_persona import BUDGET, SETS, stem
from benchmarks.common import RESULTS, SEARCH_ANSWERS
from benchmarks.headline import opened, run_sets, taken_up, write_framed
from personae import load
from personae.cli.console import bar
from personae.discovery import Settings
from personae.discovery.session import hash_of
from personae.evaluation.bench import Bench
from personae.evaluation.bootstrap import difference, holm
from personae.evaluation.conditions import Condition, Row, make_row
from personae.evaluation.controls import control_conditions, other_controls, random_control
from personae.evaluation.poles import discovered, from_artefact
from personae.evaluation.rivals import RIVALS, rival_conditions
from personae.evaluation.scoring import encode_items, wins
from personae.evaluation.shared import Shared

RESAMPLES = 2000
RANDOM_SEEDS = 20
HEADLINE = "directed"
CONTROLS = ("random", "equal loss", "shuffled", "other")
ROUNDS = "two rounds"  # the masks of whole rounds, beside those of short steps
CONDITIONS = (*RIVALS, "directed-forward", *CONTROLS)
OF_NO_MASK = (*(which for which in RIVALS if which != "mask + prompt"), "directed-forward", ROUNDS)
_ROW = TypeAdapter(Row)


def run(name: str, dtype: str, only: Sequence[str], steps: int | None = None) -> None:
    """Every condition of one set that its file does not hold yet."""
    found = opened(name, dtype, steps)
    file = f"{name}_steps" if steps else name
    session, test = found.session, found.parts.test
    dropped = {n: sum(m.dropped for m in p.masks.values()) for n, p in found.artefact.personas.items()}
    masks = {n: hash_of(p.masks) for n, p in found.artefact.personas.items()}
    frame = {**found.frame, "text_sha256": found.final.sha256}
    made = kept(file, frame, dropped, masks)
    frame |= {"dropped": dropped, "masks": masks}
    items = encode_items(found.model, found.tokenizer, test)
    bench = Bench(found.model, session.targets, items, found.final, bar)
    shared = Shared(found.model, found.tokenizer, found.contrast, found.artefact, 0, bar, session)
    fewer = replace(session, generic=replace(session.generic, answers=min(session.generic.answers, SEARCH_ANSWERS)))
    beside = Shared(found.model, found.tokenizer, found.contrast, found.artefact, 0, bar, fewer)
    poles = from_artefact(found.artefact, found.contrast)
    persona: list[Condition] = []

    def worn() -> Condition:
        persona[:] = persona or [bench.persona(poles)]
        return persona[0]

    def rival(which: str) -> Callable[[], list[Condition]]:
        return lambda: rival_conditions(bench, beside, found.tokenizer, test, (which,), poles=poles, measured=None)

    def controls(*which: str, match: tuple[str, ...] = ("sparsity",)) -> Callable[[], list[Condition]]:
        return lambda: control_conditions(bench, shared, poles, worn(), controls=which, match=match)

    forward = Settings(method="directed-forward", max_capability_loss=BUDGET).checked()
    compute: dict[str, Callable[[], list[Condition]]] = {
        HEADLINE: lambda: [worn()],
        **{which: rival(which) for which in RIVALS},
        "directed-forward": lambda: [bench.persona(discovered(session, forward, shared.dev, "directed-forward"))],
        "random": lambda: [random_control(bench, shared, poles, RANDOM_SEEDS)],
        "equal loss": controls("magnitude", "generic", match=("loss",)),
        "shuffled": controls("shuffled"),
        "other": lambda: other_controls(bench, load(_other(name, steps))),
        ROUNDS: lambda: [bench.persona(replace(from_artefact(load(_masks(name, None)), found.contrast), name=ROUNDS))],
    }
    rounds = [ROUNDS] if steps and _masks(name, None).is_file() else []
    for which in (HEADLINE, *rounds, *only):
        if which in made:
            continue
        if which == "other" and not _other(name, steps).is_file():
            print(f"{which}: no {_other(name, steps).name} yet; run python -m benchmarks.ai_persona first.", flush=True)
            continue
        rows = [make_row(c, bench.base, resamples=RESAMPLES, seed=0) for c in compute[which]()]
        made[which] = [_entry(row) for row in rows]
        tied = [bool(t) for t in bench.base.tied]
        path = write_framed("rivals", file, frame, made=made, minus=minus(made, tied), tied=tied)
        print(which, path, flush=True)
    session.forget()


def kept(
    file: str, frame: Mapping[str, Any], dropped: Mapping[str, int], masks: Mapping[str, str]
) -> dict[str, list[Any]]:
    """Conditions of an earlier run: all under the same masks, else those that rest on no mask.

    Files from before `masks` was written know masks by the number of weights alone.
    """
    alike = {**frame, "dropped": dict(dropped)}
    same = taken_up(f"rivals_{file}", alike, "masks") in (None, dict(masks))
    whole: dict[str, list[Any]] | None = taken_up(f"rivals_{file}", alike, "made") if same else None
    if whole is not None:
        return whole
    others: dict[str, list[Any]] = taken_up(f"rivals_{file}", frame, "made") or {}
    return {which: rows for which, rows in others.items() if which in OF_NO_MASK}


def _masks(name: str, steps: int | None) -> Path:
    return RESULTS / f"{stem(name, steps)}.persona"


def _other(name: str, steps: int | None) -> Path:
    return _masks(next(s for s in SETS if s != name), steps)


def _entry(row: Row) -> dict[str, Any]:
    entry: dict[str, Any] = _ROW.dump_python(row, mode="json")
    loss = row.loss
    return {**entry, "capability_loss": row.capability_loss, "capability_loss_error": loss.error if loss else None}


def minus(made: dict[str, list[Any]], tied: Sequence[bool]) -> dict[str, dict[str, Any]]:
    """Headline minus each condition in acc, acc_opposite (turned) and tied separation; larger is better for it."""
    [own] = made[HEADLINE]
    found: list[tuple[str, str, Any]] = []
    for rows in (made[k] for k in sorted(made) if k != HEADLINE):
        for row in rows:
            for figure in ("acc", "acc_opposite", "tied_separation"):
                gap = difference(_values(own, figure, tied), _values(row, figure, tied), resamples=RESAMPLES)
                found.append((row["name"], figure, gap))
    adjusted = holm([gap.p for _, _, gap in found])
    result: dict[str, dict[str, Any]] = {}
    for (row_name, figure, gap), p in zip(found, adjusted, strict=True):
        entry = {"value": gap.value, "low": gap.low, "high": gap.high, "p": gap.p, "p_holm": p}
        result.setdefault(row_name, {})[figure] = entry
    return result


def _values(row: dict[str, Any], figure: str, tied: Sequence[bool]) -> Any:
    """Item by item, turned so that larger is better for the persona; means over seeds."""

    def outcomes(key: str) -> Any:
        return wins(np.array([reading[key] for reading in row["readings"]])).mean(axis=0)

    if figure == "acc":
        return outcomes("difference")
    if figure == "acc_opposite":
        return 1 - outcomes("difference_opposite")
    return (outcomes("difference") - outcomes("difference_opposite"))[np.array(tied)]


def main() -> None:
    """Run the sets that are asked for."""
    run_sets(run, "Rivals and controls of the headline masks.", CONDITIONS, in_steps=True)


if __name__ == "__main__":
    main()
