"""Words and length as classifiers: against scikit-learn's optimum, by hand, and where the answer is planted."""

from __future__ import annotations

import numpy as np
import pytest

from personae.errors import DataError
from personae.evaluation.suites.bag_of_words import (
    bag_of_words_scores,
    length_scores,
    log_counts,
    logistic,
    vocabulary_of,
    words,
)


def test_words_and_counts_by_hand() -> None:
    assert words("Don't STOP; été 2 don't!") == ["don't", "stop", "été", "2", "don't"]
    texts = ["a b b", "b c", "c d"]
    assert vocabulary_of(texts) == ["b", "c"]  # twice in one text is one text
    assert np.array_equal(log_counts(["b b x", "c"], ["b", "c"]), np.log1p([[2, 0], [0, 1]]))


@pytest.mark.parametrize("c", [0.1, 1.0, 10.0])
def test_logistic_is_at_the_optimum(c: float) -> None:
    """The gradient of ½‖w‖² + C·Σ log(1 + exp(−y(w·x + b))), written out anew, vanishes."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 6))
    positive = generator.random(40) < 1 / (1 + np.exp(-x[:, 0] * 2 - 1))
    weights, intercept = logistic(x, positive, c=c)
    y = np.where(positive, 1.0, -1.0)
    pull = -y / (1 + np.exp(y * (x @ weights + intercept)))
    assert np.allclose(weights + c * (x.T @ pull), 0, atol=1e-5)
    assert abs(c * pull.sum()) < 1e-5


def test_logistic_is_that_of_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(1)
    x = generator.normal(size=(60, 4))
    positive = (x[:, 1] + generator.normal(size=60)) > 0
    theirs = linear.LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(x, positive)
    weights, intercept = logistic(x, positive)
    assert np.allclose(weights, theirs.coef_[0], atol=1e-5)
    assert intercept == pytest.approx(theirs.intercept_[0], abs=1e-5)


def test_words_that_give_a_pole_away() -> None:
    texts = [f"I {'party' if n % 2 == 0 else 'read'} with word{n}" for n in range(12)]
    positive = np.arange(12) % 2 == 0
    scores = bag_of_words_scores(texts, positive, ["we party", "we read", "unknown words only"])
    assert scores[0] > 0.5
    assert scores[1] < -0.5
    assert abs(scores[2]) < abs(scores[:2]).min()


def test_length_in_either_direction_and_without_any() -> None:
    lengths, positive = [5, 50, 6, 60, 7, 70], np.array([True, False] * 3)
    short = length_scores(lengths, positive, [4, 80])
    assert short[0] > 0 > short[1]
    assert np.allclose(length_scores(lengths, ~positive, [4, 80]), -short, atol=1e-6)
    even = length_scores([9, 9, 9, 9], np.array([True, False] * 2), [9, 9])
    assert even[0] == even[1]


def test_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="both poles"):
        logistic(np.ones((3, 1)), np.array([True] * 3))
