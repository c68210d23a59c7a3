"""Accuracy over capability loss: masks of rising size, of `directed` and of what knows no persona.

    python -m benchmarks.frontier power wealth
    python -m benchmarks.frontier power --only directed
    python -m benchmarks.frontier power wealth --steps      # of the masks of short steps, in bfloat16

One point a condition, pole and size: the share of test items won by that pole, all and tied, and the rise of both
likelihoods on a quarter of the text of the final figures, with its standard error. Sizes are multiples of those of
the headline's masks (python -m benchmarks.ai_persona). `directed` orders its candidates in the round that the
headline kept, a second round by the costs at the headline's own mask; in short steps their last sums order them, beyond
the size at which discovery ends too. `random` draws from the same candidates;
`magnitude` and `generic` drop within each row, one mask for both poles. Nothing is chosen by these points. Writes
benchmarks/results/frontier_<set>[_steps].json after every point, and an interrupted run goes on with the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.ai_persona import BUDGET
from benchmarks.headline import opened, run_sets, taken_up, write_framed
from personae.discovery import Session, Settings, capability, to_masks
from personae.discovery.session import Family, hash_of
from personae.discovery.steps import family_of
from personae.evaluation.bootstrap import interval
from personae.evaluation.scoring import encode_items, score_encoded
from personae.personas import Contrast
from personae.runtime import wearing
from personae.subnetwork import Artefact

# Sizes as multiples of the headline's; what knows no persona must drop far more to cost as much.
MULTIPLES = {
    "directed": (0.1, 0.3, 1.0, 2.0, 4.0),
    "random": (1.0, 8.0, 32.0),
    "magnitude": (8.0, 64.0, 128.0),
    "generic": (8.0, 64.0, 128.0),
}
FEWER = 4  # times as many of what knows no persona, as short steps drop 0.2 to 0.5 of the weights of two rounds


def families(
    session: Session, contrast: Contrast, artefact: Artefact, only: Sequence[str], steps: int | None
) -> Iterator[tuple[str, int, int, Family]]:
    """(condition, pole, size of the headline's mask, family), one ranking in memory at a time."""
    for pole, name in enumerate(contrast.poles):
        record = artefact[name]
        size, cheap = sum(m.dropped for m in record.masks.values()), float(record.provenance.parameters["cheap_share"])
        if "directed" in only:
            kept = record.provenance.parameters
            settings = Settings(
                max_capability_loss=BUDGET, steps=steps, own_weight=float(kept.get("own_weight", 0.0)),
                step_share=kept.get("step_share"),
            ).checked()  # fmt: skip
            family = family_of(session, settings, pole, cheap)
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


def multiples(condition: str, steps: int | None) -> tuple[float, ...]:
    """Sizes of a condition, as multiples of the mask's own."""
    few = steps is not None and condition != "directed"
    return tuple(multiple * (FEWER if few else 1) for multiple in MULTIPLES[condition])


def run(name: str, dtype: str, only: Sequence[str], steps: int | None = None) -> None:
    """Every point of one set that its file does not hold yet."""
    found = opened(name, dtype, steps)
    file = f"{name}_steps" if steps else name
    model, session, contrast, final = found.model, found.session, found.contrast, found.final
    text = replace(final.generic, plain=final.generic.plain[::4], chat=final.generic.chat[::4])
    items = encode_items(model, found.tokenizer, found.parts.test)
    frame = {**found.frame, "text_sha256": text.sha256}
    points: list[dict[str, Any]] = taken_up(f"frontier_{file}", frame, "points") or []
    base = capability(model, text)
    for condition, pole, size, family in families(session, contrast, found.artefact, only, steps):
        for multiple in multiples(condition, steps):
            beyond = steps is not None and condition == "directed"
            dropped = round(multiple * size) if beyond else min(round(multiple * size), family.most)
            key = {"condition": condition, "pole": contrast.poles[pole], "multiple": multiple}
            own = [p for p in points if all(p[k] == v for k, v in key.items())]
            masks = hash_of(found.artefact[contrast.poles[pole]].masks) if condition == "directed" else None
            read = session.generic.sha256 if condition in ("random", "generic") else None  # decides their weights
            if any(
                p["dropped"] == dropped and p.get("masks", masks) == masks and p.get("generic_sha256") == read
                for p in own
            ):
                continue
            points = [p for p in points if p not in own]  # of another mask or text
            with wearing(session.targets, to_masks(family.at(dropped))):
                scores, worn = score_encoded(model, items), capability(model, text)
            won = scores.outcomes() if pole == 0 else 1 - scores.outcomes()
            (plain, plain_error), (chat, chat_error) = worn.rises(base)
            acc, tied = interval(won), interval(won[scores.tied])
            points.append(
                {
                    **key, "masks": masks, "generic_sha256": read, "dropped": dropped, "share": dropped / session.size,
                    "acc": [acc.value, acc.low, acc.high], "acc_tied": [tied.value, tied.low, tied.high],
                    "outcomes": won.tolist(), "plain": plain, "plain_error": plain_error, "chat": chat,
                    "chat_error": chat_error,
                }
            )  # fmt: skip
            write_framed("frontier", file, frame, points=points)
            print({k: v for k, v in points[-1].items() if k != "outcomes"}, flush=True)
    session.forget()


def main() -> None:
    """Run the sets that are asked for."""
    run_sets(run, "Accuracy over capability loss on power- and wealth-seeking.", tuple(MULTIPLES), in_steps=True)


if __name__ == "__main__":
    main()
