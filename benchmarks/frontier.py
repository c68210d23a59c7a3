"""Accuracy over capability loss: masks of rising size, of `directed` and of what knows no persona.

    python -m benchmarks.frontier power wealth
    python -m benchmarks.frontier power --only directed

One point a condition, pole and size: the share of test items won by that pole, all and tied, and the rise of both
likelihoods on a quarter of the text of the final figures, with its standard error. Sizes are multiples of those of
the headline's masks (python -m benchmarks.ai_persona). `directed` orders its candidates in the round that the
headline kept, a second round by the costs at the headline's own mask. `random` draws from the same candidates;
`magnitude` and `generic` drop within each row, one mask for both poles. Nothing is chosen by these points. Writes
benchmarks/results/frontier_<set>.json after every point, and an interrupted run goes on with the next one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.ai_persona import BUDGET, SETS, contrast_of, headline, prepared
from benchmarks.common import RESULTS, machine, texts, write
from personae import load_model
from personae.cli.console import bar
from personae.discovery import Session, Settings, capability, open_session, to_masks, versions
from personae.discovery.session import Family
from personae.evaluation.bootstrap import interval
from personae.evaluation.scoring import encode_items, score_encoded
from personae.models import find_targets, fingerprint
from personae.personas import Contrast, split
from personae.runtime import wearing
from personae.subnetwork import Artefact

# Sizes as multiples of the headline's; what knows no persona must drop far more to cost as much.
MULTIPLES = {
    "directed": (0.1, 0.3, 1.0, 2.0, 4.0),
    "random": (1.0, 8.0, 32.0),
    "magnitude": (8.0, 64.0, 128.0),
    "generic": (8.0, 64.0, 128.0),
}


def families(
    session: Session, contrast: Contrast, artefact: Artefact, only: Sequence[str]
) -> Iterator[tuple[str, int, int, Family]]:
    """(condition, pole, size of the headline's mask, family), one ranking in memory at a time."""
    for pole, name in enumerate(contrast.poles):
        record = artefact[name]
        size, cheap = sum(m.dropped for m in record.masks.values()), float(record.provenance.parameters["cheap_share"])
        if "directed" in only:
            settings = Settings(max_capability_loss=BUDGET).checked()
            family = session.family(settings, pole, cheap)
            if record.provenance.parameters.get("round") == 2:
                # A second round starts from a mask of about the final size; the headline's is one.
                worn = {n: torch.from_numpy(m.dropped_bool()) for n, m in record.masks.items()}
                family = session.refined(settings, pole, cheap, worn)
            yield "directed", pole, size, family
        if "random" in only:
            yield "random", pole, size, session.family(Settings(method="random"), pole, cheap)
        for method in ("magnitude", "generic"):
            if pole == 0 and method in only:
                yield method, pole, size, session.family(Settings(method=method), 0)


def run(name: str, dtype: str, only: Sequence[str]) -> None:
    """Every point of one set that its file does not hold yet."""
    model, tokenizer = load_model(dtype=dtype)
    contrast = prepared(contrast_of(name))
    parts = split(contrast)
    generic, final = texts(tokenizer)
    text = replace(final.generic, plain=final.generic.plain[::4], chat=final.generic.chat[::4])
    artefact = headline(name, model, tokenizer)
    session = open_session(model, tokenizer, parts.calibration, generic=generic, progress=bar)
    items = encode_items(model, tokenizer, parts.test)
    frame = {
        "set": name, "dtype": dtype, "budget": BUDGET, "fingerprint": fingerprint(find_targets(model)),
        "calibration_sha256": parts.calibration.sha256, "test_sha256": parts.test.sha256, "text_sha256": text.sha256,
        "versions": versions(),
    }  # fmt: skip
    path = RESULTS / f"frontier_{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    points: list[dict[str, Any]] = kept.get("points", []) if all(kept.get(k) == v for k, v in frame.items()) else []
    base = capability(model, text)
    for condition, pole, size, family in families(session, contrast, artefact, only):
        for multiple in MULTIPLES[condition]:
            key = {"condition": condition, "pole": contrast.poles[pole], "multiple": multiple}
            dropped = min(round(multiple * size), family.most)
            if any(all(p[k] == v for k, v in key.items()) for p in points):
                continue
            with wearing(session.targets, to_masks(family.at(dropped))):
                scores, worn = score_encoded(model, items), capability(model, text)
            won = scores.outcomes() if pole == 0 else 1 - scores.outcomes()
            (plain, plain_error), (chat, chat_error) = worn.rises(base)
            acc, tied = interval(won), interval(won[scores.tied])
            points.append(
                {
                    **key, "dropped": dropped, "share": dropped / session.size,
                    "acc": [acc.value, acc.low, acc.high], "acc_tied": [tied.value, tied.low, tied.high],
                    "outcomes": won.tolist(), "plain": plain, "plain_error": plain_error, "chat": chat,
                    "chat_error": chat_error,
                }
            )  # fmt: skip
            command = " ".join(["python -m benchmarks.frontier", *sys.argv[1:]])
            write(path.stem, {**frame, "points": points, "machine": machine(), "command": command})
            print({k: v for k, v in points[-1].items() if k != "outcomes"}, flush=True)
    session.forget()


def main() -> None:
    """Run the sets that are asked for."""
    parser = argparse.ArgumentParser(description="Accuracy over capability loss on power- and wealth-seeking.")
    parser.add_argument("sets", nargs="*", default=SETS, choices=SETS)
    parser.add_argument("--only", nargs="+", default=tuple(MULTIPLES), choices=tuple(MULTIPLES))
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    for name in options.sets:
        run(name, options.dtype, options.only)


if __name__ == "__main__":
    main()
