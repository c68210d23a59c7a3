"""The capability budget: the most that may be dropped while generic text stays as likely as it was.

Capability loss is the larger of two rises of negative log-likelihood under the mask, on plain text
and on chat answers, nats a token. For a family of nested masks it rises with the number of dropped
weights, so the largest number within the budget is found in a few probes.

A few dozen texts tell a loss only to within some hundredths of a nat, and a search takes the largest mask that
happens to look cheap on them. So a budget is kept when the upper confidence bound of the loss lies within it: more
text gives a tighter bound and a stronger mask, less text a weaker one, and either way the budget holds elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from personae.discovery.generic import GenericText
from personae.errors import DataError
from personae.models import answer_nll

CONFIDENCE = 1.645  # standard errors above the loss: its 95 % upper bound, one-sided
CLEARLY = 3.0  # standard errors by which a quarter of the text must be over the budget, so that the rest is not read
FEWEST = 4  # texts of which a standard error means something


@dataclass(frozen=True, slots=True, eq=False)
class Capability:
    """Negative log-likelihood of the two generic texts: (sum in nats, tokens) of every text, (texts, 2) float64."""

    plain_texts: torch.Tensor
    chat_texts: torch.Tensor

    @property
    def plain(self) -> float:
        """Of plain text, nats a token."""
        return _per_token(self.plain_texts)

    @property
    def chat(self) -> float:
        """Of chat answers, nats a token."""
        return _per_token(self.chat_texts)

    def loss(self, base: Capability) -> float:
        """The larger rise over `base`, nats a token."""
        return _largest((self.plain - base.plain, self.chat - base.chat))

    def loss_bound(self, base: Capability) -> float:
        """The larger of the two upper bounds, rise + `CONFIDENCE` standard errors, nats a token."""
        return _largest(rise + CONFIDENCE * error for rise, error in self.rises(base))

    def rises(self, base: Capability) -> tuple[tuple[float, float], tuple[float, float]]:
        """(rise over `base`, its standard error over texts) of plain text and of chat answers, nats a token."""
        return _rise(self.plain_texts, base.plain_texts), _rise(self.chat_texts, base.chat_texts)


def _largest(losses: Iterable[float]) -> float:
    """Infinite where one is no number (`max` might pass it over): a model that overflows is over every budget."""
    return max(loss if math.isfinite(loss) else math.inf for loss in losses)


def _per_token(texts: torch.Tensor) -> float:
    return float(texts[:, 0].sum() / texts[:, 1].sum().clamp(min=1))


def _rise(worn: torch.Tensor, base: torch.Tensor) -> tuple[float, float]:
    """r = Σd/Σn over texts with rises d and n tokens, and the ratio estimator's standard error
    sqrt(k/(k−1)·Σ(d − r·n)²)/Σn, k texts (Cochran 1977); 0 for a single text, which tells no spread."""
    rises, tokens = worn[:, 0] - base[:, 0], base[:, 1]
    total, number = tokens.sum().clamp(min=1), len(tokens)
    mean = rises.sum() / total
    if number < 2:
        return float(mean), 0.0
    spread = (rises - mean * tokens).square().sum() * number / (number - 1)
    return float(mean), float(spread.sqrt() / total)


def capability(model: PreTrainedModel, text: GenericText, tick: Callable[[int], None] | None = None) -> Capability:
    """Both likelihoods under whatever the model wears now."""
    if not text.plain or not text.chat:
        raise DataError("capability needs plain text and chat answers; the generic text lacks one of them.")
    return Capability(answer_nll(model, text.plain, tick=tick), answer_nll(model, text.chat, tick=tick))


def loss_bound_of(model: PreTrainedModel, text: GenericText, base: Capability, budget: float) -> float:
    """`capability(model, text).loss_bound(base)`, at a quarter of the price where the loss is clearly over the budget.

    Every fourth text of both kinds is read first. If the rise of a kind, over `FEWEST` texts or more, exceeds the
    budget by `CLEARLY` standard errors, the bound of these texts is returned, which then lies over the budget too; else
    the others are read, and the bound is that of all. base: of the bare model on the same text, nats.
    """
    sides = []
    for texts, before in ((text.plain, base.plain_texts), (text.chat, base.chat_texts)):
        first = torch.arange(0, len(texts), 4)
        sides.append((texts, before, first, answer_nll(model, [texts[i] for i in first])))
    rises = [(len(first), *_rise(worn, before[first])) for _, before, first, worn in sides]
    if any(number >= FEWEST and rise - CLEARLY * error > budget for number, rise, error in rises):
        return _largest(rise + CONFIDENCE * error for _, rise, error in rises)
    whole = []
    for texts, before, first, worn in sides:
        rest = [i for i in range(len(texts)) if i % 4]
        read = torch.empty_like(before)
        read[first] = worn
        read[rest] = answer_nll(model, [texts[i] for i in rest])
        whole.append(read)
    return Capability(*whole).loss_bound(base)


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
