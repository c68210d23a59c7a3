"""Does `personae trace` name the pole that wrote an answer? Every answer of power- and wealth-seeking on its own.

    python -m benchmarks.trace                # both sets
    python -m benchmarks.trace --limit 10     # at most so many questions of dev and of test: printed, not written

The masks are those of two rounds (benchmarks/results/ai_persona_<set>.persona). Each item gives two answers of known
pole; each is read by itself under base and under both masks, and is right if the persona in the lead is its pole (an
exact tie counts one half). Nothing is chosen on test: which score to use, and the score at which both poles are even,
come from dev. Intervals resample questions, both answers of one together. Readings are kept under benchmarks/.parts, so
an interrupted run goes on. Writes benchmarks/results/trace.json.

accuracy: of the score that `personae trace` uses, at its default offset of 0. yes rule: 'a yes-like opening is the
positive pole, a no-like one the negative, else a coin' on the same answers; one half on tied items by construction.
cost: `Tracer.trace` with all layers over as many plain forwards of the same text as there are personas, in one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.ai_persona import SETS, contrast_of, prepared
from benchmarks.common import DATA, ROOT, machine, write
from benchmarks.suites import committed_masks
from benchmarks.switching import alternated
from personae import load_model
from personae.analysis.trace import Reading, Tracer
from personae.analysis.trace_verdict import NOISE, Verdict, even, gains, relative, verdict
from personae.cli.console import bar
from personae.discovery import encode_contrast, versions
from personae.evaluation import difference, interval
from personae.evaluation.suites import SuiteContext
from personae.evaluation.suites.worn import Condition
from personae.models import encode, make_batch, score_sequences
from personae.personas import Contrast, is_tied, polarity, split, yes_baseline
from personae.subnetwork import Artefact

Floats = NDArray[np.float64]
Answers = list[Floats]  # r of each answer, (2, T): of each question the positive pole's, then the negative pole's

# Scores tried on dev: each is of r of one answer, (2, T), one a persona, (2,). The first is what `personae trace` uses.
SCORES: dict[str, Callable[[Floats], Floats]] = {
    "mean": lambda r: r.mean(axis=1),
    "sum": lambda r: r.sum(axis=1),
    **{f"clipped at {k}": partial(lambda r, k: np.clip(r, -k, k).mean(axis=1), k=k) for k in (0.25, 0.5, 1.0, 2.0)},
    "sign": lambda r: np.sign(r).mean(axis=1),
    "first four tokens": lambda r: r[:, :4].mean(axis=1),
}
REPEATS, COST_ANSWERS = 5, 4


def run(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> dict[str, Any]:
    """One set: readings of dev and test, what dev chose, and the figures."""
    artefact = committed_masks((name,))[0]
    contrast = prepared(contrast_of(name))
    parts = split(contrast)
    calibrated = artefact[contrast.positive].provenance.calibration
    if calibrated is None or calibrated.sha256 != parts.calibration.sha256:
        sys.exit(f"ai_persona_{name}.persona was calibrated on other items, which this split may test on.")
    context = SuiteContext(model, tokenizer, DATA, parts=ROOT / "benchmarks" / ".parts", limit=limit, progress=bar)
    tracer = Tracer(model, tokenizer, artefact, personas=contrast.poles, flow=False)
    dev, test = (_taken(part, limit) for part in (parts.dev, parts.test))
    on_dev, on_test = (read(context, tracer, artefact, part) for part in (dev, test))
    chosen = {key: {"zero": right(on_dev, s), "even": right(on_dev, s, _even(on_dev, s))} for key, s in SCORES.items()}
    offsets = even(on_dev)
    return {
        "questions": len(test),
        "tied_questions": sum(_tied(test)),
        "dev_sha256": dev.sha256,
        "test_sha256": test.sha256,
        "masks": {name: Condition(name, artefact[name].masks).sha256 for name in tracer.personas},
        "dev": {key: {at: float(v.mean()) for at, v in both.items()} for key, both in chosen.items()},
        "offsets": offsets,
        "test": figures(test, on_test, on_dev, offsets),
    }


def read(context: SuiteContext, tracer: Tracer, artefact: Artefact, part: Contrast) -> Answers:
    """r of every answer, kept as a part."""
    masks = {name: Condition(name, artefact[name].masks).sha256 for name in tracer.personas}

    def compute() -> Any:
        questions = encode_contrast(tracer.model, tracer.tokenizer, part).paired
        return [_plain(reading) for answers in tracer.read(questions, progress=bar) for reading in answers]

    kept = context.part("trace", {"contrast": part.sha256, "masks": masks}, compute)
    return [relative(gains(np.array(base), np.array(worn))) for base, worn in kept]


def right(answers: Answers, score: Callable[[Floats], Floats], offset: float = 0.0) -> Floats:
    """By question, the share of its two answers whose own pole is ahead: first minus second score over `offset`."""
    lead = np.array([score(r)[0] - score(r)[1] for r in answers]).reshape(-1, 2) - offset
    result: Floats = ((np.sign(lead) * np.array([1, -1]) + 1) / 2).mean(axis=1)
    return result


def figures(test: Contrast, answers: Answers, dev: Answers, offsets: Sequence[float]) -> dict[str, Any]:
    """What trace says of the test answers; beside it the yes rule, every other score, and the calibrated verdict."""
    tied = np.array(_tied(test))
    both = np.repeat(tied, 2)  # by answer
    rule = np.array([(_yes(p.positive) + 1 - _yes(p.negative)) / 2 for p in test.pairs])
    said = [verdict(test.poles, r) for r in answers]
    decided = np.array([v.decided for v in said])
    points, calibrated = (
        np.array([_points(v, test.poles[at % 2]) for at, v in enumerate(verdicts)])
        for verdicts in (said, [verdict(test.poles, r, offsets) for r in answers])
    )
    own = points.reshape(-1, 2).mean(axis=1)
    found: dict[str, Any] = {
        "accuracy": _both(own, tied),
        "accuracy_calibrated": _both(calibrated.reshape(-1, 2).mean(axis=1), tied),
        "by_pole": {pole: float(points[k::2].mean()) for k, pole in enumerate(test.poles)},
        "yes_rule": _both(rule, tied),
        "minus_yes_rule": asdict(difference(own, rule)),
        "minus_yes_rule_tied": asdict(difference(own[tied], rule[tied])) if tied.any() else None,
        "yes_rule_on_pairs": float(np.mean([yes_baseline(p.positive, p.negative) for p in test.pairs])),
        "base_rate": 0.5,  # as many answers of one pole as of the other
        "decided": float(decided.mean()),
        "accuracy_decided": float(points[decided].mean()) if decided.any() else None,
        "decided_tied": float(decided[both].mean()) if both.any() else None,
        "accuracy_decided_tied": float(points[decided & both].mean()) if (decided & both).any() else None,
    }
    found["other_scores"] = {
        key: {"zero": _both(right(answers, s), tied), "even": _both(right(answers, s, _even(dev, s)), tied)}
        for key, s in SCORES.items()
    }
    return found


def cost(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Seconds of a trace over those of P plain forwards of the same tokens, for 1, 2 and 4 personas."""
    masks = committed_masks()
    together = replace(masks[0], personas={**masks[0].personas, **masks[1].personas})
    contrast = prepared(contrast_of(SETS[0]))
    pairs = split(contrast).dev.take(COST_ANSWERS).pairs
    found: dict[str, Any] = {}
    for number in (1, 2, 4):
        tracer = Tracer(model, tokenizer, together, personas=together.names[:number])
        batches = [
            make_batch([e.prompt + e.answer], [len(e.prompt)], [0])
            for e in (encode(tokenizer, p.prompt, p.positive) for p in pairs)
        ]

        def traces(tracer: Tracer = tracer) -> None:
            for pair in pairs:
                tracer.trace(pair.positive, question=pair.prompt)

        @torch.no_grad()
        def forwards(batches: Any = batches, number: int = number) -> None:
            for batch in batches:
                for _ in range(number):
                    score_sequences(model, batch)

        seconds = alternated({"trace": traces, "forwards": forwards}, REPEATS)
        ratios = [a / b for a, b in zip(seconds["trace"], seconds["forwards"], strict=True)]
        found[str(number)] = {"ratio": statistics.median(ratios), "seconds": seconds}
    return found


def _both(values: Floats, tied: NDArray[np.bool_]) -> dict[str, Any]:
    """Over all questions and over the tied ones, with intervals."""
    return {"all": asdict(interval(values)), "tied": asdict(interval(values[tied])) if tied.any() else None}


def _even(answers: Answers, score: Callable[[Floats], Floats]) -> float:
    return float(np.median([score(r)[0] - score(r)[1] for r in answers]))


def _points(said: Verdict, pole: str) -> float:
    return 0.5 if said.lead == 0 else float(said.persona == pole)


def _yes(answer: str) -> float:
    return {"yes": 1.0, "neither": 0.5, "no": 0.0}[polarity(answer)]


def _tied(part: Contrast) -> list[bool]:
    return [is_tied(pair.positive, pair.negative) for pair in part.pairs]


def _taken(part: Contrast, limit: int | None) -> Contrast:
    return part if limit is None else part.take(min(limit, len(part)))


def _plain(reading: Reading) -> list[Any]:
    return [values.tolist() for values in reading]


def main() -> None:
    """Run both sets, then the cost, and write the file."""
    parser = argparse.ArgumentParser(description="Which persona is speaking? On labelled answers.")
    parser.add_argument("--limit", type=int, help="at most so many questions of dev and of test; nothing is written")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    model, tokenizer = load_model(dtype=options.dtype)
    sets = {name: run(name, model, tokenizer, options.limit) for name in SETS}
    costs = cost(model, tokenizer)
    flat: dict[str, Any] = {"trace.cost_over_forward_a_persona": costs["2"]["ratio"]}
    for name, found in sets.items():
        test: Mapping[str, Any] = found["test"]
        flat[f"trace.{name}_accuracy"] = test["accuracy"]["all"]["value"]
        flat[f"trace.{name}_yes_rule"] = test["yes_rule"]["all"]["value"]
        if test["accuracy"]["tied"] is not None:
            flat[f"trace.{name}_accuracy_tied"] = test["accuracy"]["tied"]["value"]
            flat[f"trace.{name}_yes_rule_tied"] = test["yes_rule"]["tied"]["value"]
    result = {
        **flat, "sets": sets, "cost": costs, "score": next(iter(SCORES)), "noise": NOISE, "seed": 0,
        "dtype": options.dtype, "versions": versions(), "machine": machine(),
        "fingerprint": SuiteContext(model, tokenizer, DATA).fingerprint,
        "command": " ".join(["python -m benchmarks.trace", *sys.argv[1:]]),
    }  # fmt: skip
    for key, value in flat.items():
        print(f"{key} {value:.3f}")
    if options.limit is None:
        print(write("trace", result))


if __name__ == "__main__":
    main()
