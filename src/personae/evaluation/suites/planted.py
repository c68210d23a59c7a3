"""Which score finds a persona whose weights are known? Trains its own models, so it needs no data.

Every score gives each weight a number; the area under the curve says how well it ranks the planted weights above the
others: the chance that a planted weight scores higher than another weight. 0.5 is chance. docs/suites.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from personae.discovery import Session, Settings, forward_gains, margin, mean_log_probabilities, to_masks, versions
from personae.errors import OptionError
from personae.evaluation.results import ModelRecord
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.planted_models import ARCHITECTURES, Planted, auc, make_planted
from personae.evaluation.suites.report import Cell, SuiteResult, Table
from personae.runtime import wearing

SEEDS = (0, 1, 2)
UNDIRECTED = ("wanda", "contrastive-wanda", "contrastive-sparse", "sparsegpt", "magnitude", "generic", "random")
SCORES = ("directed", "directed/price", "directed-forward/lean", "directed-forward/separation", *UNDIRECTED)


def run(
    context: SuiteContext | None = None,
    *,
    architectures: Sequence[str] = ARCHITECTURES,
    seeds: Sequence[int] = SEEDS,
) -> SuiteResult:
    """Train each architecture with each seed, and ask every score of `SCORES` for the plant.

    context: only for its progress, its finished parts and its limit (at most so many of the seeds); its model is not
    measured. None keeps nothing.

    Figures: 'planted.directed_auc' (H, mean over all models), 'planted.directed_auc.lowest', the highest of
    `UNDIRECTED` on any model ('planted.undirected_auc.highest'), and the means as 'planted.ARCHITECTURE.SCORE'. Errors:
    `OptionError` without an architecture or a seed, or for an unknown architecture.
    """
    if not architectures or not seeds:
        raise OptionError("planted truth needs at least one architecture and one seed.")
    limit = None if context is None else context.limit
    notes = []
    if limit is not None and limit < len(seeds):
        notes.append(f"A quick look: {limit} of {len(seeds)} seeds an architecture.")
    seeds = seeds[:limit]
    if context is not None:
        context = replace(context, limit=None)  # a model is the same whatever the limit, and so is its part
    found: dict[str, list[dict[str, Any]]] = {a: [] for a in architectures}
    for architecture in architectures:
        for seed in seeds:
            found[architecture].append(_part(context, architecture, seed))
    return SuiteResult(
        suite="planted",
        model=_record(found),
        data={},
        settings={"architectures": list(architectures), "seeds": list(seeds), "share": 0.01, "limit": limit},
        figures=_figures(found),
        tables=(_recovery_table(found, len(seeds)), _persona_table(found, seeds)),
        notes=tuple(notes),
        seed=seeds[0],
        versions=versions(),
    )


def _part(context: SuiteContext | None, architecture: str, seed: int) -> dict[str, Any]:
    if context is None:
        return measured(make_planted(seed=seed, architecture=architecture), seed)
    with context.progress(f"planted {architecture}, seed {seed}", 1) as tick:
        made: dict[str, Any] = context.part(
            f"planted/{architecture}/{seed}",
            {"architecture": architecture, "model seed": seed, "scores": list(SCORES)},
            lambda: measured(make_planted(seed=seed, architecture=architecture), seed),
        )
        tick(1)
    return made


def measured(planted: Planted, seed: int = 0) -> dict[str, Any]:
    """The AUC of every score, and what the plant does: margin of held-out questions with it and with it dropped."""
    acc, whole = margin(mean_log_probabilities(planted.model, planted.held_out))
    with wearing(planted.targets, to_masks(planted.plant)):
        _, without = margin(mean_log_probabilities(planted.model, planted.held_out))
    return {
        "auc": recoveries(planted, seed),
        "acc": acc,
        "margin": whole,
        "margin without the plant": without,
        "planted": sum(int(p.sum()) for p in planted.plant.values()),
        "weights": sum(t.size for t in planted.targets),
    }


def recoveries(planted: Planted, seed: int = 0) -> dict[str, float]:
    """The AUC of each of `SCORES` in finding the plant. seed: of `random`.

    The plant makes the positive pole, so removing it helps the negative one: `directed` is asked for what helps the
    negative pole to lose, the other methods for what the positive pole needs to keep.
    """
    nothing: Any = None  # token ids are ready: no tokenizer is asked
    session = Session(planted.model, nothing, planted.targets, planted.calibration, planted.generic)
    gains = session.signed_gains(Settings(), 1)
    priced = {}
    for target in planted.targets:
        price = (session.fisher[target.name].sqrt() * target.weight.abs()).clamp(min=1e-9)  # sqrt(D)
        priced[target.name] = gains[target.name] / price
    found = {SCORES[0]: auc(gains, planted.plant), SCORES[1]: auc(priced, planted.plant)}
    # Scores of the forward form exist for the targets that write to the residual stream alone.
    reached = {w.target.name: planted.plant[w.target.name] for w in session.writers}
    for name, variant in zip(SCORES[2:4], ("lean", "separation"), strict=True):
        forward = forward_gains(session.writers, session.directions, *session.pole_statistics, variant)
        sign = -1.0 if variant == "lean" else 1.0  # 'separation' is the same from either pole
        found[name] = auc({n: sign * h for n, h in forward.items()}, reached)
    for method in UNDIRECTED:
        found[method] = auc(session.scores(Settings(method=method, seed=seed), 0)[0], planted.plant)
    return found


def _figures(found: dict[str, list[dict[str, Any]]]) -> dict[str, Cell]:
    every = [one["auc"][SCORES[0]] for runs in found.values() for one in runs]
    figures: dict[str, Cell] = {
        "planted.directed_auc": statistics.fmean(every),
        "planted.directed_auc.lowest": min(every),
    }
    rivals = [one["auc"][m] for runs in found.values() for one in runs for m in UNDIRECTED]
    figures["planted.undirected_auc.highest"] = max(rivals)
    for architecture, runs in found.items():
        for score in SCORES:
            figures[f"planted.{architecture}.{score}"] = statistics.fmean(one["auc"][score] for one in runs)
    return figures


def _recovery_table(found: dict[str, list[dict[str, Any]]], seeds: int) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for architecture, runs in found.items():
        for score in SCORES:
            values = [one["auc"][score] for one in runs]
            rows.append((architecture, score, statistics.fmean(values), min(values), max(values)))
    return Table(
        "Planted truth: AUC in finding the weights of the persona",
        ("model", "score", "mean", "lowest", "highest"),
        tuple(rows),
        notes=(
            f"mean and range over {seeds} models, each trained anew; 0.5 is chance.",
            "directed: H; directed/price: H/sqrt(D). The plant was itself chosen and grown along gradients of an "
            "answer's likelihood, which favours scores that read such a gradient over those that read none.",
            "directed-forward scores only targets that write to the residual stream and are no experts: its AUC is "
            "among their weights.",
        ),
    )


def _persona_table(found: dict[str, list[dict[str, Any]]], seeds: Sequence[int]) -> Table:
    keys = ("acc", "margin", "margin without the plant", "planted", "weights")
    rows = [
        (architecture, seed, *(one[key] for key in keys))
        for architecture, runs in found.items()
        for seed, one in zip(seeds, runs, strict=True)
    ]
    weak = [f"{a}, seed {s}" for a, s, _, whole, without, *_ in rows if abs(without) > 0.25 * abs(whole)]
    warning = f"the plant is not all of the persona: more than a quarter of the margin stays without it in {weak}."
    return Table(
        "The planted models: 32 held-out questions",
        ("model", "seed", *keys),
        tuple(rows),
        notes=("margin: nats a token, of the planted persona's answer over its rival's.",),
        warnings=(warning,) if weak else (),
    )


def _record(found: dict[str, list[dict[str, Any]]]) -> ModelRecord:
    largest = max(one["weights"] for runs in found.values() for one in runs)
    return ModelRecord(
        id="planted models", revision=None, fingerprint="", architecture=", ".join(found), dtype="float32",
        device="cpu", weights=largest,
    )  # fmt: skip
