"""Controls: as many weights as a persona drops, chosen without knowing the persona."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from personae.discovery import Session, Settings, choose, encode_contrast, family_of, to_masks
from personae.errors import OptionError
from personae.evaluation.bench import Bench
from personae.evaluation.conditions import Condition, Loss, Sides
from personae.evaluation.poles import Masks, Poles, budget_of, cost_of, cost_to_find, dropped
from personae.evaluation.shared import Shared
from personae.models import Target
from personae.subnetwork import Artefact, Mask

CONTROLS = ("random", "magnitude", "generic", "opposite")
Counts = NDArray[np.int64]
SLOW_CONTROLS = ("shuffled",)  # on request: they calibrate again
MATCHES = ("sparsity", "loss")
NOT_DIRECTED = "--control shuffled repeats directed or directed-forward, and this persona was found by neither."


def control_conditions(
    bench: Bench,
    shared: Shared,
    poles: Poles,
    persona: Condition,
    *,
    controls: Sequence[str] = CONTROLS,
    match: Sequence[str] = ("sparsity",),
    random_seeds: int = 5,
) -> list[Condition]:
    """The controls of one persona (its masks, and what was read under them), in the order of CONTROLS."""
    found: list[Condition] = []
    if "random" in controls:
        found.append(random_control(bench, shared, poles, random_seeds))
    for method in ("magnitude", "generic"):
        if method not in controls:
            continue
        if "sparsity" in match:
            number = round(sum(dropped(m) for m in poles.masks) / 2)
            masks = scored_masks(shared.session, method, number)
            found.append(_one_mask(bench, method, cost_of(method), masks, "as many weights, within each row"))
        if "loss" in match:
            budget = budget_of(poles, None if persona.loss is None else persona.loss.worst)
            settings = Settings(method=method, max_capability_loss=budget).checked()
            [choice] = choose(shared.session, settings, shared.dev, poles=(0,))
            note = f"the largest mask within {budget:.3g} nats a token"
            found.append(_one_mask(bench, f"{method} (equal loss)", cost_of(method), to_masks(choice.dropped), note))
    if "shuffled" in controls:
        found.append(shuffled_control(bench, shared, poles))
    if "opposite" in controls:
        found.append(opposite_control(poles, persona))
    return found


def shuffled_control(bench: Bench, shared: Shared, poles: Poles, seed: int = 0) -> Condition:
    """Masks found in the same way from the same items with the labels of half the pairs exchanged.

    Same candidates, objective and β, same number of weights, as many short steps; of rounds one, since later ones
    start from a mask that the persona's own gains chose. What it gains is what fitting any direction gains.
    """
    items = encode_contrast(bench.model, shared.tokenizer, shared.calibration.shuffled_labels(seed))
    session = shared.session.with_calibration(items)
    if poles.found_by is None:
        raise OptionError(NOT_DIRECTED)
    masks, fewer, ways = [], 0, []
    for pole, (own, cheap) in enumerate(zip(poles.masks, poles.cheap_shares, strict=True)):
        settings = poles.found_by[pole]
        if cheap is None:
            raise OptionError(NOT_DIRECTED)
        if not settings.steps:
            settings = replace(settings, rounds=1)
        ways.append((f"in {settings.steps} short steps" if settings.steps else "in one round", settings))
        masks.append(to_masks(family_of(session, settings, pole, cheap).at(dropped(own))))
        fewer += dropped(own) - dropped(masks[-1])
    pair = (masks[0], masks[1])
    sides, loss = bench.both("shuffled", pair)
    return Condition(
        "shuffled", "control", [sides], bench.sparsities(pair), loss,
        cost=" and ".join(dict.fromkeys(cost_of(s.method, s.steps) for _, s in ways)), seeds=(seed,),
        note=f"as many weights{f' less {fewer} that gain nothing' * bool(fewer)}, found from the same pairs with half "
        f"of the labels exchanged, {' and '.join(dict.fromkeys(way for way, _ in ways))}",
    )  # fmt: skip


def other_controls(bench: Bench, other: Artefact) -> list[Condition]:
    """Another artefact's personas, each worn for both poles."""
    return [
        _one_mask(
            bench,
            f"other: {name}",
            cost_to_find(part.provenance),
            part.masks,
            f"the mask of {name}, at its own sparsity",
        )
        for name, part in sorted(other.personas.items())
    ]


def random_control(bench: Bench, shared: Shared, poles: Poles, seeds: int) -> Condition:
    """Per pole as many weights as the persona drops, from the same candidates, read once a seed."""
    readings: list[Sides] = []
    loss: Loss | None = None
    sparsities = (0.0, 0.0)
    for seed in range(seeds):
        first, second = (
            random_masks(
                _reached(bench.targets, masks, cheap), dropped(masks), 2 * seed + pole, shared.candidates(cheap)
            )
            for pole, (masks, cheap) in enumerate(zip(poles.masks, poles.cheap_shares, strict=True))
        )
        sides, measured = bench.both(f"random, seed {seed}", (first, second), loss=seed == 0)
        readings.append(sides)
        if seed == 0:
            loss, sparsities = measured, bench.sparsities((first, second))
    where = "among all weights" if poles.cheap_shares[0] is None else "among the same candidates"
    pools = (_reached(bench.targets, m, cheap) for m, cheap in zip(poles.masks, poles.cheap_shares, strict=True))
    if any(len(pool) < len(bench.targets) for pool in pools):
        where += " but those of experts that the masks leave whole"
    return Condition(
        "random", "control", readings, sparsities, loss, cost=cost_of("random"), seeds=tuple(range(seeds)),
        note=f"as many weights {where}; mean of {seeds} seeds, capability loss of seed 0",
    )  # fmt: skip


def _reached(targets: Sequence[Target], masks: Masks, cheap_share: float | None) -> Sequence[Target]:
    """Where a draw is made: without candidates not from experts that the mask leaves whole.

    A score spares experts that none of its texts reached. To drop their weights costs nothing, so a control that drew
    from them would be too mild; among candidates they have none.
    """
    if cheap_share is not None:
        return targets
    return [t for t in targets if t.expert is None or (t.name in masks and masks[t.name].dropped)]


def opposite_control(poles: Poles, persona: Condition) -> Condition:
    """Each pole under the other's mask: what was read already, with the sides exchanged."""
    [(first, second)] = persona.readings
    return Condition(
        "opposite", "control", [(second, first)], (persona.sparsities[1], persona.sparsities[0]),
        None if persona.loss is None else persona.loss.exchanged(), persona.seconds, persona.cost,
        note=f"each pole wears the other's mask of {poles.name}",
    )  # fmt: skip


def _one_mask(bench: Bench, name: str, cost: str, masks: Masks, note: str) -> Condition:
    """A control with one mask for both poles."""
    pair = (masks, masks)
    sides, loss = bench.both(name, pair)
    return Condition(name, "control", [sides], bench.sparsities(pair), loss, cost=cost, note=note)


def random_masks(
    targets: Sequence[Target], number: int, seed: int, candidates: Mapping[str, torch.Tensor] | None = None
) -> dict[str, Mask]:
    """`number` weights drawn uniformly without replacement, among the candidates (True) or among all.

    Fewer where there are fewer candidates. First it is drawn how many fall to each target (multivariate
    hypergeometric), then which, so no list over the whole model is ever made.
    """
    generator = np.random.default_rng(seed)
    pools = np.array([t.size if candidates is None else int(candidates[t.name].sum()) for t in targets])
    counts = _shared_out(generator, pools, min(number, int(pools.sum())))
    masks: dict[str, Mask] = {}
    for target, pool, count in zip(targets, pools, counts, strict=True):
        positions = generator.choice(pool, size=int(count), replace=False, shuffle=False)
        if candidates is not None:
            positions = candidates[target.name].flatten().nonzero().flatten().numpy()[positions]
        masks[target.name] = Mask.from_positions(positions, target.shape)
    return masks


_MOST = 10**9  # weights over which numpy draws no multivariate hypergeometric numbers


def _shared_out(generator: np.random.Generator, pools: Counts, number: int) -> Counts:
    """How many of `number` weights, drawn without replacement from all pools together, fall to each."""
    total = int(pools.sum())
    if total < _MOST:
        return np.asarray(generator.multivariate_hypergeometric(pools, number, method="marginals"), dtype=np.int64)
    # A coin for each weight; then those too many are taken back, or those too few taken, each with the same chance.
    # Any set of `number` weights stays as likely as any other.
    counts = generator.binomial(pools, number / total)
    over = int(counts.sum()) - number
    given: Counts = counts - np.sign(over) * _few(generator, counts if over > 0 else pools - counts, abs(over))
    return given


def _few(generator: np.random.Generator, pools: Counts, number: int) -> Counts:
    """The same for a number that is small beside the pools: places are drawn until so many differ."""
    ends, places = np.cumsum(pools), np.empty(0, dtype=np.int64)
    while len(places) < number:
        places = np.unique(np.append(places, generator.integers(ends[-1], size=number - len(places))))
    return np.bincount(np.searchsorted(ends, places, side="right"), minlength=len(pools))


def scored_masks(session: Session, method: str, number: int) -> Masks:
    """`magnitude` or `generic` at the share of `number` weights within each row; exact up to half a weight a target."""
    return to_masks(session.family(Settings(method=method), 0).at(number))
