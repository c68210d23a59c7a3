"""What a classifier that never saw a model makes of the answers: words, or length alone.

L2-regularised logistic regression (the convention of scikit-learn: ½‖w‖² + C·Σ log(1 + exp(−y(w·x + b))), b free),
written out here so that a result needs no further package. If words alone tell two personas apart, a mask that does so
too has shown little.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from personae.errors import DataError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

LEAST = 2  # calibration answers in which a word must stand to be a feature
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def words(text: str) -> list[str]:
    """The words of a text, lower case; an apostrophe inside a word belongs to it."""
    return _WORD.findall(text.lower())


def log_counts(texts: Sequence[str], vocabulary: Sequence[str]) -> Floats:
    """log(1 + occurrences of each word of the vocabulary), (texts, vocabulary)."""
    column = {word: number for number, word in enumerate(vocabulary)}
    features = np.zeros((len(texts), len(vocabulary)))
    for row, text in enumerate(texts):
        for word, count in Counter(words(text)).items():
            if word in column:
                features[row, column[word]] = np.log1p(count)
    return features


def vocabulary_of(texts: Sequence[str]) -> list[str]:
    """The words that stand in at least `LEAST` of the texts, sorted."""
    texts_with = Counter(word for text in texts for word in set(words(text)))
    return sorted(word for word, count in texts_with.items() if count >= LEAST)


def logistic(features: Floats, positive: Bools, *, c: float = 1.0) -> tuple[Floats, float]:
    """Weights (features,) and intercept of the L2 logistic regression of `positive` (n,) on `features` (n, features).

    The problem is strictly convex, so the optimum does not depend on where the search (L-BFGS, float64) begins.
    Errors: `DataError` when there is one class only.
    """
    if positive.all() or not positive.any():
        raise DataError("a classifier needs calibration answers of both poles.")
    x = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float64))  # (n, features)
    sign = torch.from_numpy(np.where(positive, 1.0, -1.0))
    weights = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    intercept = torch.zeros((), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [weights, intercept], max_iter=1000, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        search.zero_grad()
        misses = torch.nn.functional.softplus(-sign * (x @ weights + intercept))
        total = 0.5 * weights.square().sum() + c * misses.sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        search.step(loss)  # type: ignore[no-untyped-call]
    found: Floats = weights.detach().numpy()
    return found, float(intercept.detach())


def bag_of_words_scores(calibration: Sequence[str], positive: Bools, test: Sequence[str]) -> Floats:
    """Log-odds of the positive pole for each test answer, (test,), from the words of the calibration answers."""
    vocabulary = vocabulary_of(calibration)
    weights, intercept = logistic(log_counts(calibration, vocabulary), positive)
    scores: Floats = log_counts(test, vocabulary) @ weights + intercept
    return scores


def length_scores(calibration: Sequence[int], positive: Bools, test: Sequence[int]) -> Floats:
    """The same from one feature, the logarithm of the number of tokens, standardised on the calibration answers."""
    own, other = (np.log1p(np.asarray(lengths, dtype=np.float64)) for lengths in (calibration, test))
    spread = float(own.std()) or 1.0  # answers of one length: nothing to learn, all scores equal
    weights, intercept = logistic(((own - own.mean()) / spread)[:, None], positive)
    scores: Floats = (other - own.mean()) / spread * weights[0] + intercept
    return scores
