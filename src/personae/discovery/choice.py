"""Which mask of a family: as many weights as asked for, or as many as a budget of capability allows.

Scores order weights into families of nested masks (`session`, `steps`); here one mask of them is taken for each pole.
Where there is a choice between families (shares of candidates, rounds, weights of the isolated form), that which does
best on dev is taken.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from personae.discovery.budget import FEWEST, Capability, capability, largest_within
from personae.discovery.calibration import Calibration, margin, mean_log_probabilities
from personae.discovery.generic import GenericText
from personae.discovery.selection import Dropped, count
from personae.discovery.session import Family, Session, to_masks
from personae.discovery.settings import DEFAULT_CHEAP_SHARES, FIXED_CHEAP_SHARE, Settings
from personae.discovery.steps import family_of
from personae.errors import ModelError, OptionError
from personae.runtime import wearing

ISOLATED_WEIGHTS = (0.25, 0.5, 1.0)  # λ of the isolated form, chosen on dev
ROOM = 0.5  # of a budget: where short steps leave more of it, they say so
FIRST_PROBE = 0.001  # share of weights the search for the budget tries first


@dataclass(frozen=True)
class Choice:
    """The weights dropped for one pole, how that number was chosen, and what dev says of it."""

    dropped: Dropped
    parameters: dict[str, Any]
    measured: dict[str, Any]


def choose(session: Session, settings: Settings, dev: Calibration, poles: Sequence[int] = (0, 1)) -> list[Choice]:
    """Masks of the poles: by the budget where one is set, else by the shares asked for."""
    if settings.max_capability_loss is not None:
        return _within_budget(session, settings, dev, poles)
    chosen = []
    for pole in poles:
        if settings.isolated:
            chosen.append(_best_isolated(session, settings, dev, pole))
            continue
        if settings.by_candidates:
            cheap = settings.cheap_share or FIXED_CHEAP_SHARE
            family = session.family(settings, pole, cheap)
            wanted = family.most if settings.drop_share is None else count(settings.drop_share, session.size)
            if wanted > family.most:
                raise OptionError(
                    f"--drop-share {settings.drop_share} asks for {wanted:,} weights, but only {family.most:,} "
                    f"candidates (--cheap-share {cheap}) help this pole; raise --cheap-share or lower --drop-share."
                )
            dropped = family.at(wanted)
            parameters: dict[str, Any] = {"cheap_share": cheap}
        else:
            share = settings.sparsity if settings.sparsity is not None else 0.5
            family = session.family(settings, pole)
            dropped = family.at(count(share, family.size))
            parameters = {}
        chosen.append(Choice(dropped, parameters, measure(session, dropped, dev, pole)))
    return chosen


def _within_budget(session: Session, settings: Settings, dev: Calibration, poles: Sequence[int]) -> list[Choice]:
    """Per pole, cheap share and round: the most that keeps the budget; what does best on dev wins."""
    text = session.generic.held_out.read
    if min(len(text.plain), len(text.chat)) < FEWEST:
        warnings.warn(
            f"the budget is kept on {len(text.plain)} plain windows and {len(text.chat)} answers: fewer than {FEWEST} "
            "tell no spread, so the bound says little of other text; give more text, or raise --generic-answers.",
            stacklevel=3,
        )  # fmt: skip
    with session.progress("capability of the base model", len(text.plain) + len(text.chat)) as tick:
        base = capability(session.model, text, tick)
    budget = settings.max_capability_loss
    assert budget is not None

    def within(family: Family, pole: int, parameters: dict[str, Any], start: int, title: str) -> Choice:
        with session.progress(f"capability budget ({title})", 7) as tick:
            read: dict[int, Capability] = {}
            probe = _bound(session, family, text, base, read, tick)
            number, bound = largest_within(probe, family.most, budget, start=start)
        if not family.most:
            warnings.warn(f"{settings.method} found no weight that it would drop ({title}): empty mask.", stacklevel=3)
        if settings.steps and number == family.most and 0 < bound < ROOM * budget:
            warnings.warn(
                f"short steps end at {number:,} weights ({title}), which cost at most {bound:.3f} of {budget:g} nats a "
                "token: a larger --step-share, or --rounds, can use the rest of the budget.", stacklevel=3,
            )  # fmt: skip
        if read and not number:
            least = min(read)
            costs, most = read[least].loss(base), read[least].loss_bound(base)
            warnings.warn(
                f"no mask of {settings.method} keeps {budget:g} nats a token ({title}): the smallest that was tried, "
                f"{least:,} weights, costs {costs:.3f} and may cost {most:.3f} on other text; "
                "the mask is empty. More generic answers make the bound tighter.", stacklevel=3,
            )  # fmt: skip
        dropped = family.at(number)
        loss = read[number].loss(base) if number else 0.0
        searched = {"capability_loss_searched": loss, "capability_loss_bound": bound}
        return Choice(dropped, parameters, {**measure(session, dropped, dev, pole), **searched})

    shares: Sequence[float | None] = DEFAULT_CHEAP_SHARES if settings.by_candidates else (None,)
    chosen: list[Choice] = []
    for pole in poles:
        tried: list[Choice] = []
        for cheap in shares:
            # a larger share of candidates spends the budget on fewer weights
            start = _number(tried[-1]) // 2 if tried else count(FIRST_PROBE, session.size)
            title = f"pole {pole + 1}, c={cheap}" if cheap else f"pole {pole + 1}"
            family = family_of(session, settings, pole, cheap)
            start = family.most if settings.steps else start  # steps have kept an eye on the budget
            tried.append(within(family, pole, {"cheap_share": cheap} if cheap else {}, max(start, 1), title))
        best = max(tried, key=_on_dev)
        for number in range(2, (settings.rounds or 1) + 1):
            cheap, before = best.parameters["cheap_share"], _number(best)
            if not before:
                break
            family = session.refined(settings, pole, cheap, best.dropped)
            again = within(
                family, pole, {"cheap_share": cheap, "round": number}, round(1.5 * before),
                f"pole {pole + 1}, round {number}",
            )  # fmt: skip
            if _on_dev(again) <= _on_dev(best):
                break  # first order does not hold for ever: a round is taken only if dev gains by it
            best = again
        chosen.append(best)
    return chosen


def _number(choice: Choice) -> int:
    return sum(int(d.sum()) for d in choice.dropped.values())


def _on_dev(choice: Choice) -> float:
    """What choices are made by: mean log σ of the margin. The mean margin itself is ruled by its largest items."""
    return float(choice.measured["dev_log_sigmoid"])


def _bound(
    session: Session, family: Family, text: GenericText, base: Capability, read: dict[int, Capability],
    tick: Callable[[int], None],
) -> Callable[[int], float]:  # fmt: skip
    """The bound of the loss of so many weights; what was read stays in `read`."""

    def bound_at(number: int) -> float:
        with wearing(session.targets, to_masks(family.at(number))):
            read[number] = capability(session.model, text)
        tick(1)
        return read[number].loss_bound(base)

    return bound_at


def _best_isolated(session: Session, settings: Settings, dev: Calibration, pole: int) -> Choice:
    best: Choice | None = None
    for weight in ISOLATED_WEIGHTS:
        dropped = session.isolated(settings, pole, weight)
        measured = measure(session, dropped, dev, pole)
        choice = Choice(dropped, {"isolated_weight": weight}, measured)
        best = choice if best is None or _on_dev(choice) > _on_dev(best) else best
    assert best is not None
    return best


def measure(session: Session, dropped: Dropped, dev: Calibration, pole: int) -> dict[str, Any]:
    """What dev says: the share of items won by this pole, its mean margin, and the gain over base."""
    base = session.base_log_probabilities(dev)
    with wearing(session.targets, to_masks(dropped)):
        worn = mean_log_probabilities(session.model, dev)
    sign = 1 if pole == 0 else -1
    won, mean = margin(worn)
    _, before = margin(base)
    if not math.isfinite(mean):
        raise ModelError(
            "under this mask the model's log-probabilities on dev are no finite numbers: drop less (a smaller share or "
            "budget), or load it in bfloat16 or float32."
        )
    own = worn[:, pole].mean() - base[:, pole].mean()
    return {
        "dev_items": len(dev.paired) or len(dev.positive) + len(dev.negative),
        "dev_acc": won if pole == 0 else 1 - won,
        "dev_margin": sign * mean,
        "dev_margin_gain": sign * (mean - before),
        "dev_log_sigmoid": float(torch.nn.functional.logsigmoid(sign * (worn[:, 0] - worn[:, 1])).mean()),
        "dev_own_answers": float(own),  # change of log p on the persona's own answers, nats a token
    }
