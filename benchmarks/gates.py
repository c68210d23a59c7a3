"""Is a gate of zero the best one? Soft gates, strengths above 1, and the mean contribution of what is dropped, on dev.

    python -m benchmarks.gates power wealth --steps      # of the masks of short steps; a core, half an hour
    python -m benchmarks.gates power wealth              # of two rounds, in float32

The masks of both poles (python -m benchmarks.ai_persona) on dev items and on a third of the text that searches read:
dropped weights at strength s, w ← (1 − s)·w (s = 1 drops them, 0.5 halves them, 2 turns them round), and dropped with
w_ij·E[x_j] on generic text put back as a bias (`suites/ablation.py`). Per pole the share of items it wins, all and
tied, mean log σ of its margin, the rise of its own answers, and the capability loss with its 95 % upper bound. Writes
benchmarks/results/gates_<set>[_steps].json after every row; an interrupted run goes on with the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.common import SEARCH_ANSWERS
from benchmarks.headline import Opened, opened, run_sets, taken_up, write_framed
from personae.discovery import capability
from personae.discovery.session import hash_of
from personae.evaluation.bootstrap import interval
from personae.evaluation.scoring import ItemScores, encode_items, score_encoded
from personae.evaluation.suites.ablation import mean_ablated
from personae.runtime import wearing
from personae.subnetwork import Mask

WAYS: dict[str, float | None] = {
    "zero": 1.0, "half": 0.5, "strength 1.25": 1.25, "strength 1.5": 1.5, "strength 2": 2.0, "mean": None,
}  # fmt: skip
ITEMS = 128  # dev items; all where there are fewer


def worn(found: Opened, masks: dict[str, Mask], strength: float | None) -> AbstractContextManager[None]:
    """The masks at a strength; None: dropped, with their mean contribution put back."""
    targets = found.session.targets
    if strength is None:
        return mean_ablated(targets, masks, found.session.generic_statistics)
    return wearing(targets, masks, strength)


def readings(found: Opened, only: Sequence[str], done: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row a pole and way that is not there yet."""
    generic = found.session.generic
    text = replace(generic, answers=min(generic.answers, SEARCH_ANSWERS)).held_out.read
    items = encode_items(found.model, found.tokenizer, found.parts.dev.take(min(ITEMS, len(found.parts.dev))))
    asked = [(pole, name, way) for pole, name in enumerate(found.contrast.poles) for way in only]
    asked = [(p, name, way) for p, name, way in asked if not any((r["pole"], r["way"]) == (name, way) for r in done)]
    if not asked:
        return
    base_text, base = capability(found.model, text), score_encoded(found.model, items)
    for pole, name, way in asked:
        with worn(found, dict(found.artefact[name].masks), WAYS[way]):
            scores, read = score_encoded(found.model, items), capability(found.model, text)
        rises = {"loss": read.loss(base_text), "bound": read.loss_bound(base_text)}
        yield {"pole": name, "way": way, "strength": WAYS[way], **figures(scores, base, pole), **rises}


def figures(scores: ItemScores, base: ItemScores, pole: int) -> dict[str, Any]:
    """What dev says for one pole: acc and acc_tied with 95 % intervals, mean log σ(margin), rise of own answers."""
    sign = 1 if pole == 0 else -1
    won = scores.outcomes() if pole == 0 else 1 - scores.outcomes()
    margin = sign * scores.difference()
    own = (scores.normalised() - base.normalised())[:, pole]
    acc, tied = interval(won), interval(won[scores.tied])
    return {
        "items": len(won), "tied_items": int(scores.tied.sum()),
        "acc": [acc.value, acc.low, acc.high], "acc_tied": [tied.value, tied.low, tied.high],
        "log_sigmoid": float(-np.logaddexp(0, -margin).mean()), "own_answers": float(own.mean()),
    }  # fmt: skip


def run(name: str, dtype: str, only: Sequence[str], steps: int | None = None) -> None:
    """Every row of one set that its file does not hold yet."""
    found = opened(name, dtype, steps)
    file = f"{name}_steps" if steps else name
    masks = {pole: hash_of(part.masks) for pole, part in sorted(found.artefact.personas.items())}
    frame = {**found.frame, "masks": masks, "generic_sha256": found.session.generic.sha256}
    frame["dev_sha256"] = found.parts.dev.sha256
    rows: list[dict[str, Any]] = taken_up(f"gates_{file}", frame, "rows") or []
    for row in readings(found, only, rows):
        rows.append(row)
        write_framed("gates", file, frame, rows=rows)
        print(row, flush=True)


def main() -> None:
    """Run the sets that are asked for."""
    run_sets(run, "Gates other than zero, on dev.", tuple(WAYS), in_steps=True)


if __name__ == "__main__":
    main()
