"""Accuracy over capability loss: masks of rising size for both poles, with and without the second round.

    python -m benchmarks.frontier power wealth

One point a pole, round and size: the share of test items won by that pole, all and tied, and the rise of both
likelihoods on the text of the final figures. Sizes are multiples of the size that keeps the searched budget, so the
points lie on both sides of it; nothing is chosen by them. Writes benchmarks/results/frontier_<set>.json after every
point, and an interrupted run goes on with the next one (the rankings are found anew, to the same order).
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks.ai_persona import BUDGET, SETS, contrast_of, prepared
from benchmarks.common import RESULTS, machine, texts, write
from personae import load_model
from personae.cli.console import bar
from personae.discovery import Settings, capability, largest_within, open_session, to_masks, versions
from personae.discovery.selection import count
from personae.discovery.settings import DEFAULT_CHEAP_SHARES
from personae.evaluation.scoring import encode_items, score_encoded
from personae.models import fingerprint
from personae.personas import split
from personae.runtime import wearing

MULTIPLES = (0.1, 0.3, 1.0, 2.0, 4.0)


def run(name: str, dtype: str) -> None:
    """Every point of one set that its file does not hold yet."""
    model, tokenizer = load_model(dtype=dtype)
    contrast = prepared(contrast_of(name))
    parts = split(contrast)
    generic, final = texts(tokenizer)
    session = open_session(model, tokenizer, parts.calibration, generic=generic, progress=bar)
    items = encode_items(model, tokenizer, parts.test)
    frame = {
        "set": name, "dtype": dtype, "budget": BUDGET, "cheap_share": DEFAULT_CHEAP_SHARES[0],
        "fingerprint": fingerprint(session.targets), "calibration_sha256": parts.calibration.sha256,
        "test_sha256": parts.test.sha256, "text_sha256": final.sha256, "versions": versions(),
    }  # fmt: skip
    path = RESULTS / f"frontier_{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    points: list[dict[str, Any]] = kept.get("points", []) if all(kept.get(k) == v for k, v in frame.items()) else []
    base = capability(model, final.generic)
    settings = Settings(max_capability_loss=BUDGET).checked()
    searched, start = generic.held_out.read, capability(model, generic.held_out.read)
    for pole, pole_name in enumerate(contrast.poles):
        family = session.family(settings, pole, DEFAULT_CHEAP_SHARES[0])
        first = count(0.001, session.size)
        for number in (1, 2):

            def loss(dropped: int, family: Any = family) -> float:
                with wearing(session.targets, to_masks(family.at(dropped))):
                    return capability(model, searched).loss_bound(start)

            size, _ = largest_within(loss, family.most, BUDGET, start=first)
            for multiple in MULTIPLES:
                dropped = min(round(multiple * size), family.most)
                if any((p["pole"], p["round"], p["multiple"]) == (pole_name, number, multiple) for p in points):
                    continue
                with wearing(session.targets, to_masks(family.at(dropped))):
                    scores, worn = score_encoded(model, items), capability(model, final.generic)
                won = scores.outcomes() if pole == 0 else 1 - scores.outcomes()
                points.append(
                    {
                        "pole": pole_name, "round": number, "multiple": multiple, "dropped": dropped,
                        "share": dropped / session.size, "acc": float(won.mean()),
                        "acc_tied": float(won[scores.tied].mean()), "outcomes": won.tolist(),
                        "plain": worn.plain - base.plain, "chat": worn.chat - base.chat,
                    }
                )  # fmt: skip
                write(f"frontier_{name}", {**frame, "points": points, "machine": machine()})
                print({k: v for k, v in points[-1].items() if k != "outcomes"}, flush=True)
            if number == 1:
                family, first = session.refined(settings, pole, DEFAULT_CHEAP_SHARES[0], family.at(size)), 2 * size
    session.forget()


def main() -> None:
    """Run the sets that are asked for."""
    parser = argparse.ArgumentParser(description="The frontier of directed on power- and wealth-seeking.")
    parser.add_argument("sets", nargs="*", default=SETS, choices=SETS)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    for name in options.sets:
        run(name, options.dtype)


if __name__ == "__main__":
    main()
