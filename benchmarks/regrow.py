"""Further rounds of `directed` with gains taken anew under the mask: do they hold what the first round cannot see?

    python -m benchmarks.regrow power                    # one core, about 40 minutes
    python -m benchmarks.regrow power --pole 1

The first round orders weights by what each would bring alone, in the mean margin at the base model. Under a mask found
so most pairs are won by far and some are lost, on calibration pairs about as many as on others: it fits too little, not
too much. From `START` of the headline's mask (its first weights, anew from the same gains) each round here

1. weighs `PAIRS` calibration pairs by σ(−Δ), Δ their margin under the mask: H = −w·∂/∂w of mean log σ(Δ);
2. takes cost = −w·∂K/∂w, K the divergence from base on generic text, under the mask too;
3. orders by V = (H − μ·cost)/√D, cost at least 0 for weights not dropped yet, μ = `LOSS_PRICE`·log 2 / budget;
4. gives back what has V < 0, and adds the best others: as many as the mask has, or as the budget allows by its bound.

On dev items and on the search text, beside the headline's mask on the same: accuracy, mean log σ, loss. No test item is
read. float32. Writes benchmarks/results/regrow_<set>_<pole>.json.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.ai_persona import BUDGET, SETS, contrast_of, prepared
from benchmarks.common import machine, texts, write
from benchmarks.suites import headline_masks
from personae import load_model
from personae.cli.console import bar
from personae.discovery import (
    Calibration,
    Capability,
    Session,
    Settings,
    capability,
    encode_contrast,
    largest_within,
    loss_bound_of,
    mean_log_probabilities,
    open_session,
    to_masks,
    versions,
)
from personae.discovery.attribution import Gradients, WeightedQuestion, attribute
from personae.discovery.selection import Dropped, rank
from personae.evaluation import interval
from personae.evaluation.scoring import wins
from personae.models import fingerprint
from personae.personas import is_tied, split
from personae.runtime import wearing
from personae.subnetwork import Mask

START = 0.15  # of the headline's number of weights
ROUNDS = 3
PAIRS = 200  # calibration pairs of a round, drawn anew
ANSWERS = 32  # generic answers of a round's divergence, and of a reading of the loss; a third as many windows
DEV_ITEMS = 100
CHEAP_SHARE = 0.6
LEAST_WEIGHT = 0.03  # pairs with a smaller σ(−Δ) are left out of the gradient
LOSS_PRICE = 0.2  # nats of mean log σ that a nat of divergence must bring: of log 2 over the budget
PROBES = 4


def gains_under(session: Session, sign: float, worn: Dropped, number: int) -> tuple[Gradients, dict[str, Any]]:
    """∂/∂W of mean log σ(Δ) of a pole under a mask, and what the drawn pairs say there."""
    pairs = session.calibration.paired
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(number))[:PAIRS].tolist()
    drawn = [pairs[i] for i in order]
    with wearing(session.targets, to_masks(worn)):
        read = mean_log_probabilities(session.model, Calibration(tuple(drawn), (), ()))
        margins = sign * (read[:, 0] - read[:, 1])
        slopes = torch.sigmoid(-margins)
        some = (slopes > LEAST_WEIGHT).nonzero().flatten().tolist()
        weights = [sign * float(slopes[i]) / len(drawn) for i in some]
        questions = [WeightedQuestion(drawn[i], (w, -w)) for i, w in zip(some, weights, strict=True)]
        with bar("gains under the mask", len(questions)) as tick:
            gradients = attribute(session.model, session.targets, questions, tick=tick)
    return gradients, {"calibration_acc": float((margins > 0).double().mean()), "pairs_that_count": len(some)}


def ordered(session: Session, gradients: Gradients, worn: Dropped) -> Gradients:
    """V of every weight."""
    text = replace(session.generic.cheap, answers=ANSWERS).read
    costs = session.divergence(text.chat + text.plain, worn)
    price = LOSS_PRICE * math.log(2) / BUDGET
    values: Gradients = {}
    for target in session.targets:
        weight = target.weight.to("cpu", torch.float32)
        gain, cost = -weight * gradients.pop(target.name), -weight * costs.pop(target.name)
        value = gain - price * torch.where(worn[target.name], cost, cost.clamp(min=0))
        values[target.name] = session.by_price(target.name, value, "gain-per-price")
    return values


class Judge:
    """Dev items and a part of the search text under masks."""

    def __init__(self, session: Session, dev: Calibration, tied: list[bool], sign: float) -> None:
        self.session, self.dev, self.tied, self.sign = session, dev, np.array(tied), sign
        self.text = replace(session.generic.held_out, answers=ANSWERS).read
        self.base: Capability = capability(session.model, self.text)

    def bound(self, masks: dict[str, Mask]) -> float:
        with wearing(self.session.targets, masks):
            return loss_bound_of(self.session.model, self.text, self.base, BUDGET)

    def reading(self, masks: dict[str, Mask]) -> dict[str, Any]:
        with wearing(self.session.targets, masks):
            read = mean_log_probabilities(self.session.model, self.dev)
            (plain, _), (chat, error) = capability(self.session.model, self.text).rises(self.base)
        margins = self.sign * (read[:, 0] - read[:, 1]).numpy()
        won = wins(margins)
        acc, tied, own = (interval(v) for v in (won, won[self.tied], -np.logaddexp(0, -margins)))
        return {
            "dropped": sum(mask.dropped for mask in masks.values()), "acc": [acc.value, acc.low, acc.high],
            "acc_tied": [tied.value, tied.low, tied.high], "log_sigmoid": [own.value, own.low, own.high],
            "margin": float(margins.mean()), "plain": plain, "chat": chat, "chat_error": error,
        }  # fmt: skip


def main() -> None:
    """The headline's mask, and the rounds."""
    parser = argparse.ArgumentParser(description="Rounds with gains anew under the mask.")
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--pole", type=int, default=0, choices=(0, 1))
    options = parser.parse_args()
    name, pole = options.set, options.pole
    sign = 1.0 if pole == 0 else -1.0
    model, tokenizer = load_model(dtype="float32")
    contrast = prepared(contrast_of(name))
    parts = split(contrast)
    generic, _ = texts(tokenizer)
    session = open_session(model, tokenizer, parts.calibration, generic=generic, progress=bar)
    dev = parts.dev.take(min(DEV_ITEMS, len(parts.dev)))
    tied = [is_tied(p.positive, p.negative) for p in dev.pairs]
    judge = Judge(session, encode_contrast(model, tokenizer, dev), tied, sign)
    persona = (contrast.positive, contrast.negative)[pole]
    headline = headline_masks((name,))[0][persona].masks
    rows: dict[str, Any] = {"headline": judge.reading(dict(headline))}
    print("headline", rows["headline"], flush=True)
    first = round(START * sum(mask.dropped for mask in headline.values()))
    worn = session.family(Settings().checked(), pole, CHEAP_SHARE).at(first)
    rows["start"] = judge.reading(to_masks(worn))
    print("start", rows["start"], flush=True)
    for number in range(1, ROUNDS + 1):
        gradients, said = gains_under(session, sign, worn, number)
        values = ordered(session, gradients, worn)
        before = sum(int(mask.sum()) for mask in worn.values())
        stay = {name: mask & (values[name] > 0) for name, mask in worn.items()}
        candidates = session.candidates(CHEAP_SHARE)
        ranking = rank(values, {name: inside & ~worn[name] for name, inside in candidates.items()})
        del values

        def grown(count: int, stay: Dropped = stay, ranking: Any = ranking) -> Dropped:
            more = ranking.drop(count)
            return {name: mask | more[name] for name, mask in stay.items()}

        added, bound = largest_within(
            lambda n: judge.bound(to_masks(grown(n))), before, BUDGET, start=before, steps=PROBES
        )
        worn = grown(added)
        kept = sum(int(mask.sum()) for mask in stay.values())
        row = {**judge.reading(to_masks(worn)), **said, "given_back": before - kept, "added": added, "bound": bound}
        rows[f"round {number}"] = row
        print(number, row, flush=True)
        if not added:
            break
    session.forget()
    result = {
        "rows": rows, "set": name, "persona": persona, "budget": BUDGET, "dev_items": len(dev),
        "dev_sha256": dev.sha256, "calibration_sha256": parts.calibration.sha256, "dtype": "float32",
        "model": fingerprint(session.targets), "versions": versions(), "machine": machine(),
        "command": f"python -m benchmarks.regrow {name} --pole {pole}",
    }  # fmt: skip
    print(write(f"regrow_{name}_{pole}", result))


if __name__ == "__main__":
    main()
