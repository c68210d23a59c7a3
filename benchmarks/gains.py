"""How much of the gain that calibration promises is there on other questions, and does denoising it help?

    python -m benchmarks.gains                  # one core, about 20 minutes; 6 GB besides the model
    python -m benchmarks.gains --contrast wealth-seeking

The built-in power-seeking contrast, two thirds of it in eight folds, float32. Per way of estimating the gains H:

- `promised` and `kept`: the sum of H over the N best candidates by H/√D, H from four folds, and the sum of the other
  folds' H over the same weights, nats of mean margin, both poles. To first order the second is what the mask will do.
- `worn`, of WORN: masks of the negative pole within the budget from all folds, two rounds, on the other third of the
  items: alignment with the positive pole, shift of the margin, and the loss of generic text that no search has read.

`plain`: the mean over folds. `t-shrunk`: H·max(0, 1 − 2/|t|), t over folds (METHODS section 4). `rank k`: each target's
mean gradient cut to its k largest singular values before H = −w·g is taken: what answers have in common is one
direction in and out, what tells questions apart is many. Writes benchmarks/results/gains.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.common import machine, write
from personae import load_contrast, load_model
from personae.cli.console import bar
from personae.discovery import (
    DEFAULT_BUDGET,
    Session,
    Settings,
    capability,
    largest_within,
    loss_bound_of,
    open_session,
    to_masks,
    versions,
)
from personae.discovery.attribution import Gradients, attribute
from personae.evaluation import difference, interval, unread_text
from personae.evaluation.scoring import encode_items, score_encoded, wins
from personae.models import fingerprint
from personae.personas import split
from personae.runtime import wearing

FOLDS = 8
NUMBERS = (15_000, 50_000, 150_000, 500_000)
CHEAP_SHARE = 0.6
START = 0.0005  # share of the weights at which a search for the budget begins
FRACTIONS = (0.65, 0.02, 0.33)
Estimator = Callable[[Sequence[Gradients], Mapping[str, torch.Tensor]], Gradients]


def plain(folds: Sequence[Gradients], weights: Mapping[str, torch.Tensor]) -> Gradients:
    """Mean over folds."""
    return {name: torch.stack([fold[name] for fold in folds]).mean(0) for name in folds[0]}


def t_shrunk(folds: Sequence[Gradients], weights: Mapping[str, torch.Tensor]) -> Gradients:
    """H·max(0, 1 − 2/|t|), t = mean over its standard error."""
    result = {}
    for name in folds[0]:
        each = torch.stack([fold[name] for fold in folds])
        mean, error = each.mean(0), each.std(0) / len(folds) ** 0.5
        result[name] = mean * (1 - 2 * error / mean.abs().clamp(min=1e-12)).clamp(min=0)
    return result


def low_rank(rank: int) -> Estimator:
    """The mean gradient of each target cut to its `rank` largest singular values."""

    def estimate(folds: Sequence[Gradients], weights: Mapping[str, torch.Tensor]) -> Gradients:
        result = {}
        for name, gain in plain(folds, weights).items():
            weight = weights[name]
            gradient = -gain / torch.where(weight == 0, torch.ones_like(weight), weight)
            u, s, v = torch.linalg.svd(gradient, full_matrices=False)
            result[name] = -weight * ((u[:, :rank] * s[:rank]) @ v[:rank])
        return result

    return estimate


ESTIMATORS: dict[str, Estimator] = {
    "plain": plain,
    "t-shrunk": t_shrunk,
    **{f"rank {k}": low_rank(k) for k in (1, 4, 16)},
}
WORN = ("plain", "t-shrunk", "rank 1")


def carried_over(made: Gradients, other: Gradients, session: Session) -> dict[str, Any]:
    """Promised and kept gain of the N best candidates, mean of both poles."""
    inside = session.candidates(CHEAP_SHARE)
    price = {name: session.root_price(name) for name in made}

    def flat(of: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([of[name][inside[name]] for name in made])

    gains, others = flat(made), flat(other)
    order = gains / flat(price)
    found: dict[str, Any] = {}
    for number in NUMBERS:
        sums = []
        for sign in (1.0, -1.0):
            best = torch.topk(sign * order, number).indices
            sums.append([float(sign * h[best].double().sum()) for h in (gains, others)])
        promised, kept = np.mean(sums, axis=0)
        found[str(number)] = {"promised": float(promised), "kept": float(kept)}
    return found


def main() -> None:
    """Folds, then every estimator."""
    parser = argparse.ArgumentParser(description="What of the calibrated gain carries over.")
    parser.add_argument("--contrast", default="power-seeking", help="a built-in contrast")
    name = parser.parse_args().contrast
    started = time.perf_counter()
    model, tokenizer = load_model(dtype="float32")
    contrast = load_contrast(name)
    parts = split(contrast, fractions=FRACTIONS)
    session = open_session(model, tokenizer, parts.calibration, generic_answers=16, progress=bar)
    targets = session.targets
    weights = {t.name: t.weight.detach().float() for t in targets}
    folds = fold_gains(session)
    test = encode_items(model, tokenizer, parts.test)
    base = score_encoded(model, test).difference()
    unread = unread_text(session.generic).generic
    text = session.generic.held_out.read
    before, before_unread = capability(model, text), capability(model, unread)
    settings = Settings().checked()

    def worn(gains: Gradients, pole: int) -> dict[str, Any]:
        vars(session)["gains"] = gains  # in place of those that the session would compute
        family, start = session.family(settings, pole, CHEAP_SHARE), round(START * session.size)
        best: dict[str, Any] = {}
        for round_ in (1, 2):
            this = family

            def bound(number: int, this: Any = this) -> float:
                with wearing(targets, to_masks(this.at(number))):
                    return loss_bound_of(model, text, before, DEFAULT_BUDGET)

            number, at = largest_within(bound, int(family.most), DEFAULT_BUDGET, start=start, steps=5)
            if not number:
                break
            with wearing(targets, to_masks(family.at(number))):
                margins = score_encoded(model, test).difference()
                rises = capability(model, unread).rises(before_unread)
            won, moved = interval(wins(margins)), difference(margins, base)
            best[f"round {round_}"] = {
                "dropped": number, "bound": at, "loss": max(r for r, _ in rises), "rises": rises,
                "alignment": [won.value, won.low, won.high], "shift": [moved.value, moved.low, moved.high],
            }  # fmt: skip
            if round_ == 1:
                family, start = session.refined(settings, pole, CHEAP_SHARE, family.at(number)), round(1.2 * number)
        return best

    rows: dict[str, Any] = {}
    half = FOLDS // 2
    for estimator, estimate in ESTIMATORS.items():
        carried = carried_over(estimate(folds[:half], weights), plain(folds[half:], weights), session)
        masks = worn(estimate(folds, weights), 1) if estimator in WORN else {}
        rows[estimator] = {"carried": carried, "worn": {contrast.negative: masks}}
        print(estimator, rows[estimator], flush=True)
    session.forget()
    won = interval(wins(base))
    result = {
        "contrast": name, "sha256": contrast.sha256, "calibration_items": len(parts.calibration), "folds": FOLDS,
        "test_items": len(parts.test), "base_alignment": [won.value, won.low, won.high], "rows": rows,
        "budget": DEFAULT_BUDGET, "cheap_share": CHEAP_SHARE, "dtype": "float32", "fingerprint": fingerprint(targets),
        "generic_text": {"source": session.generic.source, "sha256": session.generic.sha256}, "seed": 0,
        "versions": versions(), "machine": machine(), "seconds": time.perf_counter() - started,
        "command": f"python -m benchmarks.gains --contrast {name}",
    }  # fmt: skip
    print(write("gains" if name == "power-seeking" else f"gains_{name}", result))


def fold_gains(session: Session) -> list[Gradients]:
    """H of the mean margin of each fold, the questions dealt out by a seeded shuffle."""
    questions = session.calibration.objective()
    order = np.random.default_rng(0).permutation(len(questions))
    found = []
    for k in range(FOLDS):
        part = [questions[i] for i in sorted(order[k::FOLDS])]
        with bar(f"gains of fold {k + 1} of {FOLDS}", len(part)) as tick:
            gains = attribute(session.model, session.targets, part, tick=tick)
        for target in session.targets:  # a question's weight is 1/all of them: scaled to the mean of the fold
            gains[target.name].mul_(target.weight.float()).mul_(-len(questions) / len(part))
        found.append(gains)
    return found


if __name__ == "__main__":
    main()
