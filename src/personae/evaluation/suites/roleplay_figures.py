"""What is read off the gains of a cast: whose mask lifts whose lines, with intervals, controls and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from personae.evaluation.bootstrap import (
    RESAMPLES,
    Difference,
    Estimate,
    difference,
    ends,
    holm,
    interval,
    paired_bootstrap,
    two_sided_p,
)
from personae.evaluation.suites.report import Cell, Table
from personae.evaluation.suites.roleplay_texts import Plan, guessed_by_words, share_named

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Similarity = Mapping[str, tuple[Floats, Floats]]  # by character: of each free answer, base and masked

FEW_ANSWERS = 10  # below so many test answers a character's row says little
TRIVIAL = 0.9  # a rule that reads words and reaches this share leaves little for masks to show


@dataclass(frozen=True, eq=False)
class Reading:
    """What the model said. N test answers (characters in order), C masks.

    gains: G, (N, C). owner: index of the character of each answer, (N,). free: by character the greedy answers
    (base, masked). dropped, losses: by mask, weights dropped and capability loss (nats a token) on `text`.
    """

    gains: Floats
    owner: Ints
    free: Mapping[str, tuple[list[str], list[str]]]
    dropped: Sequence[int]
    losses: Sequence[float]
    text: str = ""


def own_minus_others(gains: Floats, owner: Ints, *, seed: int = 0) -> tuple[list[Difference], Difference]:
    """By mask, the mean gain of its own answers minus that of all others'; and the mean of these over masks.

    Answers are resampled within each character, the same for all masks.
    """
    masks = gains.shape[1]
    numbers = np.bincount(owner, minlength=masks)
    blocks = [gains[owner == c] for c in range(masks)]  # (n_c, C) each
    # a seed of its own for each character: equal numbers of answers would else be drawn in step
    means = np.stack([paired_bootstrap(b, seed=seed * 1009 + c) for c, b in enumerate(blocks)], axis=1)  # (R, C, C)
    points = np.stack([b.mean(axis=0) for b in blocks])[None]  # (1, C, C)
    drawn, values = (_gaps(m, numbers) for m in (means, points))
    each = [_difference(drawn[:, c], float(values[0, c]), int(numbers[c])) for c in range(masks)]
    return each, _difference(drawn.mean(axis=1), float(values.mean()), len(owner))


def _gaps(means: Floats, numbers: Ints) -> Floats:
    """(R, C) from means[r, a, c], the mean gain of a's answers under the mask of c, and the numbers of answers."""
    own = np.diagonal(means, axis1=1, axis2=2)
    total = np.einsum("rac,a->rc", means, numbers.astype(np.float64))
    gaps: Floats = own - (total - own * numbers) / (numbers.sum() - numbers)
    return gaps


def _difference(drawn: Floats, value: float, answers: int) -> Difference:
    return Difference(value, *ends(drawn), two_sided_p(drawn, answers))


def largest(gains: Floats) -> Floats:
    """(N, C): 1/k where a mask's gain is one of the k largest of a row, else 0."""
    top = (gains == gains.max(axis=1, keepdims=True)).astype(np.float64)
    shares: Floats = top / top.sum(axis=1, keepdims=True)
    return shares


def shuffled_accuracy(shares: Floats, owner: Ints, *, seed: int = 0, times: int = RESAMPLES) -> tuple[Estimate, float]:
    """Accuracy under permuted labels: its mean and the middle 95 %, and the one-sided p of the true labels.

    p = (1 + number of permutations that do at least as well)/(1 + times).
    """
    generator = np.random.default_rng(seed)
    rows = np.arange(len(owner))
    drawn = np.array([shares[rows, generator.permutation(owner)].mean() for _ in range(times)])
    least = shares[rows, owner].mean() - 1e-12
    p = (1 + int((drawn >= least).sum())) / (1 + times)
    return Estimate(float(drawn.mean()), *ends(drawn)), p


def figures_of(
    plan: Mapping[str, Plan], reading: Reading, similarity: Similarity | None, *, seed: int
) -> dict[str, Cell]:
    """The headline figures of one set, by name."""
    gains, owner = reading.gains, reading.owner
    rows = np.arange(len(owner))
    shares = largest(gains)
    shuffled, p = shuffled_accuracy(shares, owner, seed=seed)
    found: dict[str, Cell] = {
        "accuracy": interval(shares[rows, owner], seed=seed),
        "accuracy_centred": interval(largest(gains - gains.mean(axis=0))[rows, owner], seed=seed),
        "accuracy_shuffled": shuffled,
        "accuracy_p": p,
        "accuracy_words": interval((guessed_by_words(plan) == owner).astype(np.float64), seed=seed),
        "chance": 1 / gains.shape[1],
        "own_gain": interval(gains[rows, owner], seed=seed),
        "own_minus_others": own_minus_others(gains, owner, seed=seed)[1],
        "capability_loss": max(reading.losses),
    }
    if similarity is not None:
        base, masked = (np.concatenate([similarity[role][side] for role in plan]) for side in (0, 1))
        found["similarity_base"] = interval(base, seed=seed)
        found["similarity_masked"] = interval(masked, seed=seed)
        found["similarity_change"] = difference(masked, base, seed=seed)
    return found


def tables_of(
    name: str,
    plan: Mapping[str, Plan],
    reading: Reading,
    similarity: Similarity | None,
    figures: Mapping[str, Cell],
    *,
    seed: int,
) -> list[Table]:
    """Headline figures, one row a character, and the matrix of mean gains."""
    roles = list(plan)
    gains, owner = reading.gains, reading.owner
    shares = largest(gains)
    each, _ = own_minus_others(gains, owner, seed=seed)
    p = holm([d.p for d in each])
    rows: list[tuple[Cell, ...]] = []
    for c, role in enumerate(roles):
        own = owner == c
        change = None if similarity is None else difference(similarity[role][1], similarity[role][0], seed=seed)
        rows.append(
            (role, len(plan[role].own), int(own.sum()), interval(gains[own, c], seed=seed), each[c], p[c],
             interval(shares[own, c], seed=seed), change, reading.dropped[c], reading.losses[c])
        )  # fmt: skip
    means = [gains[owner == c].mean(axis=0).tolist() for c in range(len(roles))]
    return [
        Table(f"{name}: figures", ("figure", "value"), tuple(figures.items()), _notes(plan), _warnings(plan, reading)),
        Table(
            f"{name}: characters",
            ("character", "calibration", "test", "own gain", "own − others", "p (Holm)", "own mask first",
             "similarity change", "dropped", "capability loss"),
            tuple(rows),
            ("own gain: change of log p a token of the character's own answers under its mask, nats.",
             "own mask first: share of its answers on which its mask has the largest gain of all masks."),
        ),
        Table(
            f"{name}: mean gain, answers of (row) under the mask of (column)", ("answers of", *roles),
            tuple((role, *row) for role, row in zip(roles, means, strict=True)),
        ),
    ]  # fmt: skip


def _notes(plan: Mapping[str, Plan]) -> tuple[str, ...]:
    return (
        "accuracy_shuffled: the same gains with permuted labels, the middle 95 % of permutations; accuracy_p is the "
        "one-sided p of accuracy against them.",
        "accuracy_words: naive Bayes on the words of the same calibration answers, without a model.",
        f"{share_named(plan):.0%} of the test items hold a word of their own character's name.",
    )


def _warnings(plan: Mapping[str, Plan], reading: Reading) -> tuple[str, ...]:
    found = []
    few = [role for role, p in plan.items() if len(p.test) < FEW_ANSWERS]
    if few:
        found.append(f"fewer than {FEW_ANSWERS} test answers: {', '.join(few)}")
    short = [role for role, p in plan.items() if len(p.rivals) < len(p.own)]
    if short:
        found.append(f"fewer answers of others than own ones in the calibration part: {', '.join(short)}")
    first = largest(reading.gains).mean(axis=0)
    if first.max() > 0.5 and len(first) > 2:
        found.append(
            f"the mask of {list(plan)[int(first.argmax())]} has the largest gain on {first.max():.0%} of all answers, "
            "whoever's they are: read accuracy_centred"
        )
    if (words := float((guessed_by_words(plan) == reading.owner).mean())) > TRIVIAL:
        found.append(f"words alone tell {words:.0%} of the test answers: topic may explain what masks show")
    empty = [role for role, n in zip(plan, reading.dropped, strict=True) if not n]
    if empty:
        found.append(f"the mask drops nothing: {', '.join(empty)}")
    if "also read" in reading.text:
        found.append(f"capability loss is read on {reading.text}: masks were chosen on it")
    return tuple(found)
