"""What else could make the model answer so: every rival and further controls beside the headline masks.

    python -m benchmarks.rivals power wealth                   # all, one after the other
    python -m benchmarks.rivals power --only steering lora-sft
    python -m benchmarks.rivals power wealth --steps           # beside the masks of short steps, in bfloat16

The masks are those of `python -m benchmarks.ai_persona` (they are found first where they are absent). Rivals that have
a strength (steering's coefficient, an adapter's scale, a mask's size) keep the same budget by the same upper bound, and
are read on the same test items and the same final text. Steering and adapters are searched on `SEARCH_ANSWERS` chat
answers, as the masks of two rounds, of short steps' text the first ones: a search takes dozens of readings. That leaves
them a bound a little wider, and the whole budget, of which the masks of short steps keep more than half on their search
text; `directed-forward` reads all of the text. Writes benchmarks/results/rivals_<set>.json
(with --steps rivals_<set>_steps.json) anew after each condition, and an interrupted run goes on with the next one;
what a condition rests on beside the frame is written with it (`rests_on`), and one whose masks or text have changed is
measured anew.
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
from personae.discovery import GenericText, Settings
from personae.discovery.session import hash_of
from personae.evaluation.bench import Bench
from personae.evaluation.bootstrap import difference, holm
from personae.evaluation.conditions import Condition, Row, make_row
from personae.evaluation.controls import control_conditions, other_controls, random_control
from personae.evaluation.poles import discovered, from_artefact
from personae.evaluation.rivals import RIVALS, rival_conditions
from personae.evaluation.scoring import encode_items, wins
from personae.evaluation.shared import Shared
from personae.subnetwork import Artefact

RESAMPLES = 2000
COMPARED = 20_000  # resamples of a difference: with 2,000 no p of fifty claims could be below 0.05 after Holm
RANDOM_SEEDS = 20
HEADLINE = "directed"
CONTROLS = ("random", "equal loss", "shuffled", "other")
ROUNDS = "two rounds"  # the masks of whole rounds, beside those of short steps
CONDITIONS = (*RIVALS, "directed-forward", *CONTROLS)
SEARCHED = ("steering", "lora-sft", "lora-dpo")
OF_NO_MASK = (*SEARCHED, "retrieval", "directed-forward", ROUNDS)
_ROW = TypeAdapter(Row)


def run(name: str, dtype: str, only: Sequence[str], steps: int | None = None) -> None:
    """Every condition of one set that its file does not hold yet."""
    found = opened(name, dtype, steps)
    file = f"{name}_steps" if steps else name
    session, test = found.session, found.parts.test
    dropped = {n: sum(m.dropped for m in p.masks.values()) for n, p in found.artefact.personas.items()}
    rest = rests_on(found.artefact, session.generic, _other(name, steps), _masks(name, None))
    frame = {**found.frame, "text_sha256": found.final.sha256}
    made = kept(file, frame, dropped, rest)
    frame["dropped"] = dropped
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
        own = {key: rest[key] for key in made}
        path = write_framed("rivals", file, frame, made=made, minus=minus(made, tied), tied=tied, rests_on=own)
        print(which, path, flush=True)
    session.forget()


def rests_on(artefact: Artefact, generic: GenericText, other: Path, rounds: Path) -> dict[str, dict[str, Any]]:
    """What each condition rests on beside the frame: hashes of masks, and of the text that it was searched on."""

    def masks_of(found: Artefact) -> dict[str, str]:
        return {name: hash_of(persona.masks) for name, persona in sorted(found.personas.items())}

    own, text = {"masks": masks_of(artefact)}, {"generic_sha256": generic.sha256}
    rest: dict[str, dict[str, Any]] = dict.fromkeys((HEADLINE, "mask + prompt", *CONTROLS), own)
    searched = {**text, "answers": min(generic.answers, SEARCH_ANSWERS)}
    rest |= dict.fromkeys(SEARCHED, searched)
    rest |= {"retrieval": {}, "directed-forward": {**text, "answers": generic.answers}}
    if other.is_file():
        rest["other"] = {**own, "other": masks_of(load(other))}
    if rounds.is_file():
        rest[ROUNDS] = {"masks": masks_of(load(rounds))}
    return rest


def kept(
    file: str, frame: Mapping[str, Any], dropped: Mapping[str, int], rest: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[Any]]:
    """Conditions of an earlier run that rest on the same masks and text.

    Files from before `rests_on` was written know masks by the number of weights alone, and texts not at all.
    """
    made: dict[str, list[Any]] = taken_up(f"rivals_{file}", frame, "made") or {}
    before: dict[str, Any] | None = taken_up(f"rivals_{file}", frame, "rests_on")
    if before is not None:
        return {which: rows for which, rows in made.items() if before.get(which) == rest.get(which)}
    same = taken_up(f"rivals_{file}", {**frame, "dropped": dict(dropped)}, "made") is not None
    return {which: rows for which, rows in made.items() if (same or which in OF_NO_MASK) and which in rest}


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
                gap = difference(_values(own, figure, tied), _values(row, figure, tied), resamples=COMPARED)
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
