"""The capability budget: the most that may be dropped while generic text stays as likely as it was.

Capability loss is the larger of two rises of negative log-likelihood under the mask, on plain text
and on chat answers, nats a token. For a family of nested masks it rises with the number of dropped
weights, so the largest number within the budget is found in a few probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from personae.discovery.calibration import nll
from personae.discovery.generic import GenericText
from personae.errors import DataError


@dataclass(frozen=True, slots=True)
class Capability:
    """Negative log-likelihood of the two generic texts, nats a token."""

    plain: float
    chat: float

    def loss(self, base: Capability) -> float:
        """The larger rise over `base`."""
        return max(self.plain - base.plain, self.chat - base.chat)


def capability(model: PreTrainedModel, text: GenericText, tick: Callable[[int], None] | None = None) -> Capability:
    """Both likelihoods under whatever the model wears now."""
    if not text.plain or not text.chat:
        raise DataError("capability needs plain text and chat answers; the generic text lacks one of them.")
    return Capability(nll(model, text.plain, tick), nll(model, text.chat, tick))


def largest_within(
    loss_at: Callable[[int], float], most: int, budget: float, *, start: int | None = None, steps: int = 7
) -> tuple[int, float]:
    """A count n in [1, most] whose loss lies within the budget and close below it, and that loss.

    Assumes that the loss rises with n, roughly as a power of it: each probe aims at 0.95 of the budget
    from the nearest ones known, and the search ends with the first loss in [0.9, 1] of the budget, at `most`,
    or after `steps` probes. (0, 0.0) when no probe kept the budget.
    """
    if most <= 0:
        return 0, 0.0
    below: tuple[int, float] = (0, 0.0)
    above: tuple[int, float] | None = None
    number = min(max(start or most // 50, 1), most)
    for _ in range(steps):
        loss = loss_at(number)
        if math.isnan(loss):
            loss = math.inf  # a mask that makes the model overflow is over every budget
        if loss <= budget:
            below = max(below, (number, loss))
            if number == most or loss >= 0.9 * budget:
                break
        elif above is None or number < above[0]:
            above = (number, loss)
        number = _next_probe(below, above, 0.95 * budget, most)
        if number <= below[0] or (above is not None and number >= above[0]):
            break  # nothing left between the two
    return below


_POWER: float = 0.8  # how loss grows with the number of dropped weights where only one side is known (measured)


def _next_probe(below: tuple[int, float], above: tuple[int, float] | None, aim: float, most: int) -> int:
    n, loss = below
    if above is None:
        return min(most, round(n * min(max(math.pow(aim / max(loss, 1e-9), 1 / _POWER), 1.5), 8.0)))
    if n == 0:
        return max(1, round(above[0] / min(max(math.pow(above[1] / aim, 1 / _POWER), 1.5), 16.0)))
    if loss <= 0:
        return round(math.sqrt(n * above[0]))
    if not math.isfinite(above[1]):
        return round(math.sqrt(n * above[0]))
    slope = math.log(above[0] / n) / math.log(above[1] / loss)
    guess = n * math.pow(aim / loss, slope)  # the power law through both known points
    return round(min(max(guess, n * 1.03 + 1), above[0] * 0.97))
