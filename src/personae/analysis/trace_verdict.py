"""From log-probabilities to a name: pure functions on the tokens of one text.

With log p of token y_t under the base model and under each of P personas, nats:

    s_p(t) = log p(y_t | p) − log p(y_t | base)
    r_p(t) = s_p(t) − (1/P) Σ_q s_q(t)                     P > 1; of one persona alone r = s
    score_p = (1/T) Σ_t r_p(t) − offset_p

r takes out what all masks do to a text, such as the likelihood that every mask costs. The persona with the largest
score speaks; of one persona alone, it speaks where its score is above 0, else the base model does. The lead over the
second is told with its standard error over tokens, as if these were independent; a lead within one standard error is
undecided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.errors import DataError, OptionError

__all__ = ["NOISE", "Verdict", "even", "gains", "leading", "relative", "verdict"]

Floats = NDArray[np.float64]

NOISE = 1.0  # standard errors that a lead must exceed


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who speaks. persona: who is ahead, None for the base model. second: who is next, likewise. decided: whether the
    lead is more than noise. lead, error: of the first over the second, and its standard error, nats a token
    (error None for a text of one token). scores, offsets: one a persona. sentence: all of it in words."""

    persona: str | None
    second: str | None
    decided: bool
    lead: float
    error: float | None
    scores: tuple[float, ...]
    offsets: tuple[float, ...]
    sentence: str


def gains(base: Floats, worn: Floats) -> Floats:
    """s, (P, T), from log p under base, (T,), and under each persona, (P, T)."""
    return worn - base[None, :]


def relative(gain: Floats) -> Floats:
    """r, (P, T), from s, (P, T)."""
    return gain - gain.mean(axis=0, keepdims=True) if len(gain) > 1 else gain


def leading(shares: Floats) -> tuple[NDArray[np.intp], Floats]:
    """For each token the persona that it speaks for most, and its r, from r (P, T): (T,) and (T,). Equal: the first."""
    who = shares.argmax(axis=0)
    return who, shares[who, np.arange(shares.shape[1])]


def verdict(personas: Sequence[str], shares: Floats, offsets: Sequence[float] | None = None) -> Verdict:
    """Who speaks, from r (P, T). offsets: one a persona (`even`); None: 0. Of equal scores the first persona is ahead.

    Errors: `DataError` without tokens; `OptionError` for other than P names and offsets.
    """
    taken = tuple(offsets) if offsets is not None else (0.0,) * len(personas)
    if len(personas) != len(shares) or len(taken) != len(shares) or not personas:
        raise OptionError(
            f"{len(shares)} personas need as many names and offsets, not {len(personas)} and {len(taken)}."
        )
    if not shares.shape[1]:
        raise DataError("a text without tokens speaks for nobody: give some text.")
    scores = shares.mean(axis=1) - np.array(taken)
    # The base model stands beside one persona alone, with r = 0 at every token.
    names: list[str | None] = [*personas] if len(personas) > 1 else [*personas, None]
    rows = shares if len(personas) > 1 else np.vstack([shares, np.zeros(shares.shape[1])])
    ranked = [*scores.tolist()] if len(personas) > 1 else [*scores.tolist(), 0.0]
    first, second = sorted(range(len(names)), key=lambda i: (-ranked[i], i))[:2]
    lead = ranked[first] - ranked[second]
    error = None if rows.shape[1] < 2 else _standard_error(rows[first] - rows[second])
    decided = error is not None and lead > NOISE * error
    sentence = _sentence(names[first], names[second], decided, lead, error)
    return Verdict(names[first], names[second], decided, lead, error, tuple(scores.tolist()), taken, sentence)


def even(shares: Sequence[Floats]) -> tuple[float, ...]:
    """offset_p: the median over labelled answers of (1/T) Σ_t r_p(t), so that half of them lie on either side.

    shares: r of each answer, (P, T); as many answers of one pole as of the other. Errors: `DataError` for none.
    """
    if not shares:
        raise DataError("offsets need labelled answers, and there are none.")
    means = np.stack([each.mean(axis=1) for each in shares])  # (answers, P)
    return tuple(np.median(means, axis=0).tolist())


def _standard_error(differences: Floats) -> float:
    """Of the mean of (T,) values, T above 1."""
    return float(differences.std(ddof=1)) / math.sqrt(len(differences))


def _sentence(first: str | None, second: str | None, decided: bool, lead: float, error: float | None) -> str:
    ahead, behind = (name if name is not None else "the base model" for name in (first, second))
    much = f"{lead:.2f} nats a token" if error is None else f"{lead:.2f} ± {error:.2f} nats a token"
    if decided:
        return f"{ahead} speaks: ahead of {behind} by {much}"
    return f"undecided: {ahead} is ahead of {behind} by {much}, which is within noise"
