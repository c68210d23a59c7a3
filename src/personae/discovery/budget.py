"""The capability budget: the most that may be dropped while generic text stays as likely as it was.

Capability loss is the larger of two rises of negative log-likelihood under the mask, on plain text
and on chat answers, nats a token. For a family of nested masks it rises with the number of dropped
weights, so the largest number within the budget is found by bisection on the logarithm.
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


def capability(model: PreTrainedModel, text: GenericText) -> Capability:
    """Both likelihoods under whatever the model wears now."""
    if not text.plain or not text.chat:
        raise DataError("capability needs plain text and chat answers; the generic text lacks one of them.")
    return Capability(nll(model, text.plain), nll(model, text.chat))


def largest_within(
    loss_at: Callable[[int], float], most: int, budget: float, *, steps: int = 6, least: int = 64
) -> tuple[int, float]:
    """The largest count n in [1, most] with loss_at(n) <= budget, to a factor most^(1/2^steps), and its loss.

    Bisects log n; assumes that the loss rises with n. (0, 0.0) when even the `least` count costs too much.
    """
    if most <= 0:
        return 0, 0.0
    loss = loss_at(most)
    if loss <= budget:
        return most, loss
    low, high = math.log(min(least, most)), math.log(most)
    best = (0, 0.0)
    for _ in range(steps):
        middle = (low + high) / 2
        number = round(math.exp(middle))
        loss = loss_at(number)
        if loss <= budget:
            best, low = (number, loss), middle
        else:
            high = middle
    return best
