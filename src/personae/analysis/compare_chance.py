"""What two masks have in common by chance, given how many weights of every row each of them drops.

Permute the dropped weights inside every output row of one mask, so that all row counts stay. In a row of n weights of
which a and b are dropped, the number in common is then hypergeometric, and rows are independent:

    E[c_row] = ab/n,    Var[c_row] = ab(n − a)(n − b) / (n²(n − 1)),    c = Σ_rows c_row.

So no position has to be permuted: c is drawn from the sum of the rows' hypergeometric distributions, which is exactly
the distribution that permuting gives.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_NOTHING = 40.0  # e⁻⁴⁰ = 4·10⁻¹⁸ is nothing beside 1 in float64
_AT_ONCE = 1 << 20  # probabilities of rows that are held at once


def moments(first: Ints, second: Ints, columns: int) -> tuple[float, float]:
    """Exact mean and variance of what two masks with these row counts, (out,), have in common by chance."""
    a, b, n = first.astype(np.float64), second.astype(np.float64), columns
    mean = float((a * b).sum()) / n
    variance = float((a * b * (n - a) * (n - b)).sum()) / (n * n * (n - 1)) if n > 1 else 0.0
    return mean, variance


def common_by_chance(first: Ints, second: Ints, columns: int) -> tuple[int, Floats]:
    """(least c, P(c), P(c + 1), …) of what two masks with these row counts, (out,), have in common by chance.

    The sum of independent rows has the product of their characteristic functions φ(θ) = Σ_c P(c)·exp(−iθc), and rows
    with the same two counts have the same one. A hypergeometric number is a sum of independent yes-or-no ones (Vatutin
    and Mikhailov 1982), so with σ² the variance of the sum, |φ(θ)| ≤ exp(−2σ² sin²(θ/2)): few frequencies are not zero
    to float64, and Bernstein's bound says how far from the mean there is any probability. Exact but for rounding.
    """
    keys, times = np.unique(np.minimum(first, second) * (columns + 1) + np.maximum(first, second), return_counts=True)
    a, b = np.divmod(keys, columns + 1)  # a ≤ b, symmetric: (kinds of rows,)
    mean = a * b / columns
    variance = mean * (columns - a) * (columns - b) / (columns * max(columns - 1, 1))
    start = np.maximum(np.maximum(0, a + b - columns), np.floor(mean - _reach(variance))).astype(np.int64)
    steps = np.minimum(a, np.ceil(mean + _reach(variance))).astype(np.int64) - start
    centre, spread, widest = (float(times @ x) for x in (mean - start, variance, steps))
    length = int(min(widest, 2 * math.ceil(float(_reach(np.array(spread)))))) + 1
    waves = np.arange(length // 2 + 1)
    waves = waves[2 * spread * np.sin(np.pi * waves / length) ** 2 <= _NOTHING]
    angle = np.arange(int(steps.max()) + 1)[:, None] * waves * (-2 * np.pi / length)
    turn = np.hstack([np.cos(angle), np.sin(angle)])  # (steps + 1, 2·waves)
    size, phase = np.zeros(waves.size), np.zeros(waves.size)  # log |φ| and its angle
    at_once = max(1, _AT_ONCE // angle.shape[0])
    with np.errstate(divide="ignore"):  # log 0 is −∞, and its exponential 0 again
        for i in range(0, keys.size, at_once):
            part = slice(i, i + at_once)
            real, imaginary = np.hsplit(_row_chances(a[part], b[part], columns, start[part], angle.shape[0]) @ turn, 2)
            size += times[part] @ np.log(real * real + imaginary * imaginary) / 2
            phase += times[part] @ np.arctan2(imaginary, real)
    spectrum = np.zeros(length // 2 + 1, dtype=np.complex128)
    spectrum[: waves.size] = np.exp(size) * (np.cos(phase) + 1j * np.sin(phase))
    p = np.fft.irfft(spectrum, length).clip(0)  # of c modulo length
    least = min(max(round(centre) - length // 2, 0), int(widest) + 1 - length)
    p = p[np.arange(least, least + length) % length]
    return int(times @ start) + least, p / p.sum()


def drawn(least: int, p: Floats, draws: int, random: np.random.Generator) -> Ints:
    """`draws` draws of a distribution as `common_by_chance` gives it, int64 (draws,)."""
    sums = p.cumsum()
    found: Ints = least + np.searchsorted(sums[:-1], random.random(draws) * sums[-1], side="right")
    return found


def _row_chances(a: Ints, b: Ints, columns: int, start: Ints, width: int) -> Floats:
    """P(start), P(start + 1), … of hypergeometric rows, (rows, width).

    By P(c + 1)/P(c) = (a − c)(b − c) / ((c + 1)(n − a − b + c + 1)). The first is at worst some e⁻¹⁰⁰ of the largest
    (`_reach`), so products of these ratios fit float64.
    """
    c = start[:, None] + np.arange(width - 1.0)  # (rows, width − 1)
    ratio = np.maximum(a[:, None] - c, 0)
    ratio *= np.maximum(b[:, None] - c, 0)
    c += 1
    ratio /= c
    c += (columns - a - b)[:, None]
    ratio /= c
    found = np.ones((a.size, width))
    np.cumprod(ratio, axis=1, out=found[:, 1:])
    found /= found.sum(axis=1, keepdims=True)
    return found


def _reach(variance: Floats) -> Floats:
    """How far from its mean such a sum lies but with probability 2·e⁻⁴⁰: t²/(2(σ² + t/3)) = 40 (Bernstein)."""
    reach: Floats = _NOTHING / 3 + np.sqrt((_NOTHING / 3) ** 2 + 2 * _NOTHING * variance)
    return reach
