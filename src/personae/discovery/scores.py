"""Scores of weights: pure functions of a weight matrix and its input's statistics.

Every function takes w of shape (out, in) and gives scores of the same shape in float32. Higher means
'keep'. Equations and sources: docs/methods.md section 3.
"""

from __future__ import annotations

import torch

from personae.discovery.statistics import InputStatistics
from personae.errors import DataError, OptionError

EPSILON = 1e-8


def random(w: torch.Tensor, seed: int) -> torch.Tensor:
    """Uniform in [0, 1), from `seed`: the control that knows nothing."""
    return torch.rand(w.shape, generator=torch.Generator().manual_seed(seed))


def magnitude(w: torch.Tensor) -> torch.Tensor:
    """|w_ij|: the control that never reads the calibration text."""
    return w.detach().float().abs()


def wanda(w: torch.Tensor, x: InputStatistics, statistic: str = "mean_abs") -> torch.Tensor:
    """|w_ij|·A_j with A = mean |x_j| ('mean_abs', arXiv 2602.07164) or sqrt(mean x_j²) ('l2', arXiv 2306.11695)."""
    if statistic not in {"mean_abs", "l2"}:
        raise OptionError(f"unknown statistic {statistic!r}: choose mean_abs or l2.")
    scale = x.mean_abs if statistic == "mean_abs" else x.rms
    return magnitude(w) * scale.to(w.device, torch.float32)


def sparsegpt(w: torch.Tensor, x: InputStatistics, damping: float = 0.01) -> torch.Tensor:
    """w_ij² / [H⁻¹]_jj with H = XᵀX/n + λ·mean(diag)·I: the optimal-brain-surgeon saliency (mask only).

    A channel that is never active has the saliency its damping gives it. Errors: `DataError` when the
    statistics were collected without the gram matrix.
    """
    if x.gram is None:
        raise DataError("sparsegpt needs statistics collected with gram=True.")
    h = x.gram / max(x.tokens, 1)
    h = h + damping * h.diagonal().mean().clamp(min=EPSILON) * torch.eye(len(h), dtype=h.dtype)
    inverse_diagonal = torch.cholesky_inverse(torch.linalg.cholesky(h)).diagonal()
    return (magnitude(w).double() ** 2 / inverse_diagonal.to(w.device)).float()


def separation(positive: InputStatistics, negative: InputStatistics) -> torch.Tensor:
    """z_j = (μ⁺−μ⁻)/(sqrt(σ²⁺+σ²⁻)+ε) over answers, (in,) float32."""
    spread = (positive.answer_variance + negative.answer_variance).sqrt()
    return ((positive.answer_mean - negative.answer_mean) / (spread + EPSILON)).float()


def contrastive_wanda(
    w: torch.Tensor,
    own: InputStatistics,
    rival: InputStatistics,
    *,
    phi: str = "relu",
    temperature: float = 1.0,
) -> torch.Tensor:
    """|w_ij|·φ(z_j), φ = relu or τ·softplus(z/τ); z measures the persona's own activation against its rival's.

    With relu most scores of a row are 0; `selection` breaks those ties by |w|·A, never by index.
    """
    z = separation(own, rival).to(w.device)
    if phi == "relu":
        return magnitude(w) * z.relu()
    if phi == "softplus":
        return magnitude(w) * temperature * torch.nn.functional.softplus(z / temperature)
    raise OptionError(f"unknown phi {phi!r}: choose relu or softplus.")


def contrastive_sparse(w: torch.Tensor, own: InputStatistics, rival: InputStatistics) -> torch.Tensor:
    """S̃_own − S̃_rival, S̃ the `wanda` score (mean_abs) divided by its row's sum.

    The mask of a persona drops, in each row, the weights where this is smallest; at half sparsity the
    masks of two opposed personas are disjoint up to row rounding.
    """
    return _row_normalised(wanda(w, own)) - _row_normalised(wanda(w, rival))


def _row_normalised(scores: torch.Tensor) -> torch.Tensor:
    return scores / scores.sum(1, keepdim=True).clamp(min=EPSILON)


def cheapness(w: torch.Tensor, generic: InputStatistics) -> torch.Tensor:
    """u_ij in [0, 1): rank, within its row, of the generic Wanda score (l2), divided by the row's length.

    Low u: generic text hardly needs the weight. Equal scores rank by column (they carry no information).
    """
    scores = wanda(w, generic, "l2")
    order = scores.argsort(dim=1, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(w.shape[1], device=w.device).expand_as(order))
    return ranks.float() / w.shape[1]


def cheapest(w: torch.Tensor, generic: InputStatistics, share: float) -> torch.Tensor:
    """`cheapness(w, generic) < share`, (out, in) bool, without sorting: the k lowest of each row, ties by column."""
    width = w.shape[1]
    number = int((torch.arange(width).float() / width < share).sum())
    if number in (0, width):
        return torch.full(w.shape, number > 0, dtype=torch.bool, device=w.device)
    scores = wanda(w, generic, "l2")
    last = scores.kthvalue(number, dim=1, keepdim=True).values
    below, level = scores < last, scores == last
    room = number - below.sum(dim=1, keepdim=True)
    if bool((level.sum(dim=1, keepdim=True) > room).any()):
        level &= level.cumsum(dim=1) <= room
    return below | level


def gain(w: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """H_ij = −w_ij·g_ij: the first-order change of the objective when w_ij is set to zero."""
    return -(w.detach().float() * gradient.float())
