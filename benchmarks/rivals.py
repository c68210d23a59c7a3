"""What else could make the model answer so: every rival and further controls beside the headline masks.

    python -m benchmarks.rivals power wealth                   # all, one after the other
    python -m benchmarks.rivals power --only steering lora-sft

The masks are those of `python -m benchmarks.ai_persona` (they are found first where they are absent). Rivals that have
a strength (steering's coefficient, an adapter's scale, a mask's size) keep the same budget by the same upper bound on
the same text, and are read on the same test items and the same final text. Writes benchmarks/results/rivals_<set>.json
anew after each condition, and an interrupted run goes on with the next one. `minus` holds headline minus each one,
paired over items, Holm over the file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from benchmarks.ai_persona import BUDGET, SETS, contrast_of, headline, prepared
from benchmarks.common import RESULTS, machine, texts, write
from personae import load, load_model
from personae.cli.console import bar
from personae.discovery import Settings, open_session, versions
from personae.evaluation.bench import Bench
from personae.evaluation.bootstrap import difference, holm
from personae.evaluation.conditions import Condition, Row, make_row
from personae.evaluation.controls import control_conditions, other_controls, random_control
from personae.evaluation.poles import discovered, from_artefact
from personae.evaluation.rivals import RIVALS, rival_conditions
from personae.evaluation.scoring import encode_items, wins
from personae.evaluation.shared import Shared
from personae.models import find_targets, fingerprint
from personae.personas import split

RESAMPLES = 2000
RANDOM_SEEDS = 20
HEADLINE = "directed"
CONTROLS = ("random", "equal loss", "shuffled", "other")
CONDITIONS = (*RIVALS, "directed-forward", *CONTROLS)
_ROW = TypeAdapter(Row)


def run(name: str, dtype: str, only: Sequence[str]) -> None:
    """Every condition of one set that its file does not hold yet."""
    model, tokenizer = load_model(dtype=dtype)
    contrast = prepared(contrast_of(name))
    parts = split(contrast)
    artefact = headline(name, model, tokenizer)
    generic, final = texts(tokenizer)
    targets = find_targets(model)
    frame = {
        "set": name, "dtype": dtype, "budget": BUDGET, "fingerprint": fingerprint(targets), "versions": versions(),
        "calibration_sha256": parts.calibration.sha256, "test_sha256": parts.test.sha256, "text_sha256": final.sha256,
        "dropped": {n: sum(m.dropped for m in p.masks.values()) for n, p in artefact.personas.items()},
    }  # fmt: skip
    path = RESULTS / f"rivals_{name}.json"
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    made: dict[str, list[Any]] = kept.get("made", {}) if all(kept.get(k) == v for k, v in frame.items()) else {}
    session = open_session(model, tokenizer, parts.calibration, generic=generic, progress=bar)
    bench = Bench(model, targets, encode_items(model, tokenizer, parts.test), final, bar)
    shared = Shared(model, tokenizer, contrast, artefact, 0, bar, session)
    poles = from_artefact(artefact, contrast)
    persona: list[Condition] = []

    def worn() -> Condition:
        persona[:] = persona or [bench.persona(poles)]
        return persona[0]

    def rival(which: str) -> Callable[[], list[Condition]]:
        return lambda: rival_conditions(bench, shared, tokenizer, parts.test, (which,), poles=poles, measured=None)

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
        "other": lambda: other_controls(bench, load(_other(name))),
    }
    for which in (HEADLINE, *only):
        if which in made:
            continue
        if which == "other" and not _other(name).is_file():
            print(f"{which}: no {_other(name).name} yet; run python -m benchmarks.ai_persona first.", flush=True)
            continue
        found = [make_row(c, bench.base, resamples=RESAMPLES, seed=0) for c in compute[which]()]
        made[which] = [_entry(row) for row in found]
        command = " ".join(["python -m benchmarks.rivals", *sys.argv[1:]])
        tied = [bool(t) for t in bench.base.tied]
        result = {**frame, "made": made, "minus": minus(made, tied), "tied": tied, "machine": machine()}
        print(which, write(path.stem, {**result, "command": command}), flush=True)
    session.forget()


def _other(name: str) -> Path:
    return RESULTS / f"ai_persona_{next(s for s in SETS if s != name)}.persona"


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
    parser = argparse.ArgumentParser(description="Rivals and controls of the headline masks.")
    parser.add_argument("sets", nargs="*", default=SETS, choices=SETS)
    parser.add_argument("--only", nargs="+", default=CONDITIONS, choices=CONDITIONS)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    for name in options.sets:
        run(name, options.dtype, options.only)


if __name__ == "__main__":
    main()
