"""Masks of opposite personas against chance and against masks of resampled calibration: the persona paper's table.

    python -m benchmarks.compare [--limit N] [--dimensions EI SN TF JP]

compare.seconds: `compare` of two subnetworks of the default model, all parts with chance and its intervals: median of
five, the slowest of four couples (0.2 % and 50 % of all weights at random, 50 % of every row at random, the masks of
two rounds). table: difference of the masks of a dimension's two poles, in %, over all weights, attention and MLP, for
Wanda at ρ = 0.5, for `directed` as a whole subnetwork at ρ = 0.5 and for `directed` that drops 0.2 %; beside it chance,
the same between two bootstrap resamples of one pole, and the paper's figure (Wanda on LLaMA-2-13B). Calibration: at
most N answers a pole of the calibration part of mbti/*_dev.jsonl. hidden_states: cosines by block on test answers.
headline: the same for the masks of two rounds on power- and wealth-seeking, on answers of the built-in contrast
power-seeking.

A dimension costs about 20 forward passes over its 2·N calibration answers of some 130 tokens and as much as 500 answers
more for everything else. Dimensions that are done are kept under benchmarks/.parts, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import DATA, RESULTS, ROOT, machine, texts, write
from personae import load, load_contrast, load_model
from personae.analysis.compare import compare
from personae.analysis.hidden_states import hidden_states
from personae.analysis.overlap import Overlap
from personae.analysis.results import plain
from personae.analysis.stability import Agreement, Stability, stability
from personae.cli.console import bar
from personae.discovery import discover, open_session, versions
from personae.evaluation.suites import SuiteContext
from personae.personas import split
from personae.subnetwork import Artefact, Mask, ModelIdentity, Provenance, Subnetwork

DIMENSIONS = ("EI", "SN", "TF", "JP")
METHODS: dict[str, dict[str, Any]] = {
    "wanda": {"method": "wanda", "sparsity": 0.5},
    "isolated": {"method": "directed", "isolated": True, "sparsity": 0.5},
    "directed": {"method": "directed", "cheap_share": 0.3, "drop_share": 0.002},
}
PAPER = {  # arXiv 2602.07164, difference of masks in %: all, attention, MLP
    "EI": (1.34, 1.28, 1.44), "TF": (1.08, 1.03, 1.14), "SN": (0.75, 0.75, 0.76), "JP": (0.76, 0.73, 0.79),
}  # fmt: skip
PARTS = ("all", "attention", "mlp")
ROWS = 60  # calibration answers a pole
DEV = 16  # answers a pole that choose λ of the isolated masks
STATES = 16  # test answers a pole whose hidden states are read
RESAMPLES = 5
PARTS_FOLDER = ROOT / "benchmarks" / ".parts"
HEADLINE = tuple(RESULTS / f"ai_persona_{name}.persona" for name in ("power", "wealth"))


def main() -> None:
    """Measure, and write compare.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--limit", type=int, default=ROWS, help="calibration answers a pole, at most")
    # 'all' and not DIMENSIONS: argparse looks for the default among the choices.
    parser.add_argument("--dimensions", nargs="*", default="all", choices=(*DIMENSIONS, "all"))
    options = parser.parse_args()
    chosen = DIMENSIONS if "all" in options.dimensions else options.dimensions
    for path in HEADLINE:
        if not path.is_file():
            sys.exit(f"no {path.name} in benchmarks/results: run python -m benchmarks.ai_persona --masks first.")
    seconds = timings(load(HEADLINE[0]))
    model, tokenizer = load_model()
    # A context a part: what is kept depends on the files that its context has read.
    contexts = {name: SuiteContext(model, tokenizer, DATA, PARTS_FOLDER, progress=bar) for name in ("", *chosen)}
    of_headline = headline(contexts[""])
    found = {name: dimension(contexts[name], name, options.limit) for name in chosen}
    path = write(
        "compare",
        {
            "compare.seconds": max(statistics.median(s) for s in seconds.values()),
            "seconds": seconds,
            "headline": of_headline,
            "table": [row for name in chosen for row in found[name]["table"]],
            "stability": {name: found[name]["stability"] for name in chosen},
            "hidden_states": {name: found[name]["hidden_states"] for name in chosen},
            "rows": {name: found[name]["rows"] for name in chosen},
            "settings": {"methods": METHODS, "resamples": RESAMPLES, "limit": options.limit, "seed": 0},
            "model": plain(contexts[""].record()),
            "data": dict(sorted(item for context in contexts.values() for item in context.read.items())),
            "versions": versions(),
            "machine": machine(),
            "command": " ".join(["python -m benchmarks.compare", *sys.argv[1:]]),
        },
    )
    for row in [row for name in chosen for row in found[name]["table"]]:
        print(row)
    print(path)


# --- seconds --------------------------------------------------------------------------------------------------


def timings(headline: Artefact) -> dict[str, list[float]]:
    """Seconds of `compare` by couple, five times each after one to warm up."""
    makers: dict[str, Callable[[int], dict[str, Mask]]] = {
        "sparse, 0.2 %": lambda seed: _anywhere(headline.model, 0.002, seed),
        "dense, 50 %": lambda seed: _anywhere(headline.model, 0.5, seed),
        "dense, 50 % of every row": lambda seed: _of_rows(headline.model, 0.5, seed),
    }
    couples = {name: _couple(headline.model, make) for name, make in makers.items()}
    seconds: dict[str, list[float]] = {}
    for name, couple in {**couples, "headline": headline}.items():
        for repeat in range(6):
            started = time.perf_counter()
            compare(couple)
            if repeat:
                seconds.setdefault(name, []).append(time.perf_counter() - started)
    return seconds


def _couple(model: ModelIdentity, make: Callable[[int], dict[str, Mask]]) -> Artefact:
    record = Provenance(method="random", sparsity=0.5)
    return Artefact(model, {f"p{seed}": Subnetwork(f"p{seed}", make(seed), record) for seed in (0, 1)})


def _anywhere(model: ModelIdentity, share: float, seed: int) -> dict[str, Mask]:
    chance = np.random.default_rng([seed, round(1000 * share)])
    shapes = sorted(model.targets.items())
    return {name: Mask.from_dropped(chance.random(shape, dtype=np.float32) < share) for name, shape in shapes}


def _of_rows(model: ModelIdentity, share: float, seed: int) -> dict[str, Mask]:
    chance = np.random.default_rng(seed)
    masks = {}
    for name, (rows, columns) in sorted(model.targets.items()):
        dropped = np.zeros((rows, columns), dtype=bool)
        dropped[:, : round(share * columns)] = True
        masks[name] = Mask.from_dropped(chance.permuted(dropped, axis=1))
    return masks


# --- the headline's masks -------------------------------------------------------------------------------------


def headline(context: SuiteContext) -> dict[str, Any]:
    """The example of docs/compare.md: power- against wealth-seeking by kind, and their hidden states."""
    found = compare(*HEADLINE)
    contrast = load_contrast("power-seeking")
    sha256 = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in HEADLINE}

    def read() -> Any:
        return plain(hidden_states(context.model, context.tokenizer, HEADLINE, contrast, items=8, progress=bar))

    states = context.part("compare headline", {**sha256, "contrast": contrast.sha256, "items": 8}, read)
    pairs = [
        {"first": pair.first, "second": pair.second, "parts": [p for p in pair.parts if p.level in ("all", "kind")]}
        for pair in found.pairs
    ]
    return {
        "pairs": plain(pairs),
        "matrices": plain(found.matrices),
        "tree": plain(found.tree),
        "hidden_states": states,
        "sha256": sha256,
    }


# --- a dimension ----------------------------------------------------------------------------------------------


def dimension(context: SuiteContext, name: str, limit: int) -> dict[str, Any]:
    """Table rows, stability and hidden states of one dimension; a part that is kept."""
    context.file(f"mbti/{name}_dev.jsonl", "PKU-YuanGroup/Machine-Mindset")
    settings = {"methods": METHODS, "resamples": RESAMPLES, "limit": limit, "dev": DEV, "states": STATES}
    kept: dict[str, Any] = context.part(f"compare {name}", settings, lambda: _measured(context, name, limit))
    return kept


def _measured(context: SuiteContext, name: str, limit: int) -> dict[str, Any]:
    model, tokenizer = context.model, context.tokenizer
    contrast = load_contrast(
        DATA / f"mbti/{name}_dev.jsonl", format="machine-mindset", positive=name[0], negative=name[1]
    )
    parts = split(contrast)
    calibration = parts.calibration.take(min(limit, len(parts.calibration)))
    generic, _ = texts(tokenizer, tuple(other for other in ("SN", "JP", "EI") if other != name))
    session = open_session(model, tokenizer, calibration, generic=replace(generic, answers=24), progress=bar)
    with tempfile.TemporaryDirectory() as folder:
        paths = {method: Path(folder) / f"{method}.persona" for method in METHODS}
        for method, options in METHODS.items():
            made = discover(
                model, tokenizer, calibration, session=session, split_seed=None, dev=parts.dev.take(DEV), progress=bar,
                **options,
            )  # fmt: skip
            made.save(paths[method])
        files = list(paths.values())
        stable = stability(
            model, tokenizer, files, calibration, resamples=RESAMPLES, split_seed=None, session=session, progress=bar
        )
        session.forget()
        states = hidden_states(model, tokenizer, files, parts.test, items=STATES, split_seed=None, progress=bar)
        own = tuple(pair for pair in states.pairs if _method(pair.first) == _method(pair.second))
        rows = [
            _row(name, method, compare(path).pairs[0].parts, [s for s in stable if _method(s.persona) == method])
            for method, path in paths.items()
        ]
    return {
        "table": plain(rows),
        "stability": plain(stable),
        "hidden_states": plain(replace(states, pairs=own)),
        "rows": {
            "calibration": len(calibration),
            "sha256": calibration.sha256,
            "generic_sha256": session.generic.sha256,
        },
    }


def _method(label: str) -> str:
    return label.split("/")[0]  # of the file, in front of the persona's name


def _row(name: str, method: str, parts: tuple[Overlap, ...], stable: list[Stability]) -> dict[str, Any]:
    """One method on one dimension, in % of the weights and as Jaccard index, by part."""
    overlaps = {overlap.part: overlap for overlap in parts}
    agreements: dict[str, list[Agreement]] = {part: [each[part] for each in stable] for part in PARTS}
    return {
        "dimension": name,
        "method": method,
        "difference": {part: 100 * overlaps[part].difference.value for part in PARTS},
        "difference_by_chance": {part: 100 * overlaps[part].difference.chance for part in PARTS},
        "difference_of_resamples": {p: 100 * _mean(a.difference.mean for a in agreements[p]) for p in PARTS},
        "jaccard": {part: overlaps[part].jaccard.value for part in PARTS},
        "jaccard_by_chance": {part: overlaps[part].jaccard.chance for part in PARTS},
        "jaccard_of_resamples": {part: _mean(a.jaccard.mean for a in agreements[part]) for part in PARTS},
        "cosine": {part: overlaps[part].cosine.value for part in PARTS},
        "z": {part: overlaps[part].z for part in PARTS},
        "paper_wanda_13b": dict(zip(PARTS, PAPER[name], strict=True)) if method == "wanda" else None,
    }


def _mean(values: Any) -> float:
    return statistics.fmean(values)


if __name__ == "__main__":
    main()
