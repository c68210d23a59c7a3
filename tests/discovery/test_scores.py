"""Each formula of METHODS section 3 against loops in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from personae.discovery import InputStatistics, scores
from personae.discovery.statistics import membership, reduce_rows
from personae.errors import DataError, OptionError

OUT, IN = 5, 7
W = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(1))


def inputs(seed: int, *, gram: bool = False) -> tuple[InputStatistics, np.ndarray, list[np.ndarray]]:
    """Statistics, all rows, and the rows of each of three answers."""
    chance = np.random.default_rng(seed)
    answers = [chance.normal(size=(n, IN)).astype(np.float32) for n in (3, 1, 4)]
    rows = np.concatenate(answers)
    owner = torch.tensor([0] * 3 + [1] + [2] * 4)
    return reduce_rows(torch.from_numpy(rows.copy()), membership(owner, 3), gram), rows.astype(np.float64), answers


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    assert found.dtype == torch.float32
    assert found.shape == (OUT, IN)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("statistic", ["mean_abs", "l2"])
def test_wanda(statistic: str) -> None:
    x, rows, _ = inputs(0)
    expected = np.zeros((OUT, IN))
    for i in range(OUT):
        for j in range(IN):
            a = np.mean(np.abs(rows[:, j])) if statistic == "mean_abs" else np.sqrt(np.mean(rows[:, j] ** 2))
            expected[i, j] = abs(W[i, j].item()) * a
    close(scores.wanda(W, x, statistic), expected)
    close(scores.magnitude(W), np.abs(W.numpy()))


def test_sparsegpt_by_explicit_inverse() -> None:
    x, rows, _ = inputs(0, gram=True)
    h = rows.T @ rows / len(rows)
    h += 0.01 * np.mean(np.diag(h)) * np.eye(IN)
    inverse = np.linalg.inv(h)
    expected = np.array([[W[i, j].item() ** 2 / inverse[j, j] for j in range(IN)] for i in range(OUT)])
    close(scores.sparsegpt(W, x), expected)
    with pytest.raises(DataError, match="gram=True"):
        scores.sparsegpt(W, inputs(0)[0])


def test_sparsegpt_is_the_smallest_error_that_dropping_a_weight_can_leave() -> None:
    x, rows, _ = inputs(0, gram=True)
    h = rows.T @ rows / len(rows)
    h += 0.01 * np.mean(np.diag(h)) * np.eye(IN)
    w, j = W[0].numpy().astype(np.float64), 2
    others = [k for k in range(IN) if k != j]  # choose the other weights anew, the best way
    change = np.zeros(IN)
    change[j] = -w[j]
    change[others] = np.linalg.solve(h[np.ix_(others, others)], -h[others, j] * change[j])
    assert scores.sparsegpt(W, x)[0, j].item() == pytest.approx(change @ h @ change, rel=1e-4)


def test_sparsegpt_of_silent_inputs_is_finite() -> None:
    silent = reduce_rows(torch.zeros(3, IN), membership(torch.tensor([0, 1, 2]), 3), gram=True)
    assert scores.sparsegpt(W, silent).isfinite().all()


def separations() -> tuple[InputStatistics, InputStatistics, np.ndarray]:
    own, _, own_answers = inputs(2)
    rival, _, rival_answers = inputs(3)
    z = np.zeros(IN)
    for j in range(IN):
        a = [np.mean(np.abs(rows[:, j])) for rows in own_answers]
        b = [np.mean(np.abs(rows[:, j])) for rows in rival_answers]
        z[j] = (np.mean(a) - np.mean(b)) / (np.sqrt(np.var(a) + np.var(b)) + 1e-8)
    return own, rival, z


def test_contrastive_wanda() -> None:
    own, rival, z = separations()
    assert (z > 0).any()
    assert (z < 0).any()
    weights = np.abs(W.numpy())
    close(scores.contrastive_wanda(W, own, rival), weights * np.maximum(z, 0))
    for temperature in (1.0, 0.3):
        soft = temperature * np.log1p(np.exp(z / temperature))
        close(scores.contrastive_wanda(W, own, rival, phi="softplus", temperature=temperature), weights * soft)
    torch.testing.assert_close(scores.separation(rival, own), -scores.separation(own, rival))


def test_contrastive_sparse() -> None:
    own, rows, _ = inputs(2)
    rival, rival_rows, _ = inputs(3)
    expected = np.zeros((OUT, IN))
    for sign, values in ((1, rows), (-1, rival_rows)):
        for i in range(OUT):
            score = [abs(W[i, j].item()) * np.mean(np.abs(values[:, j])) for j in range(IN)]
            expected[i] += sign * np.array(score) / sum(score)
    close(scores.contrastive_sparse(W, own, rival), expected)
    assert torch.equal(scores.contrastive_sparse(W, rival, own), -scores.contrastive_sparse(W, own, rival))


def test_cheapness_is_the_rank_within_the_row() -> None:
    x, rows, _ = inputs(4)
    scale = np.sqrt((rows**2).mean(0))
    expected = np.zeros((OUT, IN))
    for i in range(OUT):
        price = np.abs(W[i].numpy()) * scale
        for j in range(IN):
            expected[i, j] = sum(p < price[j] for p in price) / IN
    close(scores.cheapness(W, x), expected)
    flat = scores.cheapness(torch.zeros(2, 4), InputStatistics.zeros(4))  # equal scores rank by column
    assert flat.tolist() == [[0.0, 0.25, 0.5, 0.75]] * 2


@given(
    arrays.arrays(np.float32, (3, 7), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0])),
    st.floats(0.001, 1.0, exclude_max=True),
)
def test_cheapest_is_cheapness_below_the_share(weights: np.ndarray, share: float) -> None:
    unread = InputStatistics.zeros(7)
    level = replace(unread, tokens=1, sum_squares=torch.ones(7, dtype=torch.float64))
    for statistics, w in ((inputs(4)[0], W), (unread, W), (level, torch.from_numpy(weights))):
        assert torch.equal(scores.cheapest(w, statistics, share), scores.cheapness(w, statistics) < share)


def test_gain_is_what_first_order_promises() -> None:
    gradient = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(5)).to(torch.bfloat16)
    expected = [[-W[i, j].item() * gradient[i, j].item() for j in range(IN)] for i in range(OUT)]
    close(scores.gain(W, gradient), np.array(expected))


def test_random_is_seeded_and_leaves_the_global_state() -> None:
    state = torch.random.get_rng_state()
    first, again, other = scores.random(W, 3), scores.random(W, 3), scores.random(W, 4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert ((first >= 0) & (first < 1)).all()


def test_bfloat16_weights_are_scored_in_float32() -> None:
    x, _, _ = inputs(0)
    narrow = W.to(torch.bfloat16)
    torch.testing.assert_close(scores.wanda(narrow, x), scores.wanda(narrow.float(), x), rtol=0, atol=0)


def test_unknown_choices_are_named() -> None:
    x, _, _ = inputs(0)
    with pytest.raises(OptionError, match="'l1'"):
        scores.wanda(W, x, "l1")
    with pytest.raises(OptionError, match="'gelu'"):
        scores.contrastive_wanda(W, x, x, phi="gelu")
