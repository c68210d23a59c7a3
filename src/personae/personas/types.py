"""What a persona is, as text: a pair of opposed answers, a contrast of two poles, one persona alone.

All four types are frozen: whoever holds one can hash it, split it and pass it on without copies.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from personae.errors import DataError, OptionError

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Pair:
    """One question (x), the positive pole's answer (y+) and the negative pole's answer (y-)."""

    prompt: str
    positive: str
    negative: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One question (x) and one persona's answer (y)."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two opposed personas, either as pairs or, unpaired, as one set of samples for each pole.

    `positive` and `negative` are the names of the poles; `positive_prompt` and `negative_prompt` are
    the system prompts that ask for them; `source` says where the text came from.

    Raises `DataError` if both kinds or neither are given, if an unpaired pole is empty, or if the
    poles share one name.
    """

    name: str
    positive: str
    negative: str
    pairs: tuple[Pair, ...] = ()
    positive_samples: tuple[Sample, ...] = ()
    negative_samples: tuple[Sample, ...] = ()
    positive_prompt: str | None = None
    negative_prompt: str | None = None
    description: str = ""
    licence: str = "unknown"
    source: str = ""

    def __post_init__(self) -> None:
        if self.positive == self.negative:
            raise DataError(f"contrast '{self.name}': both poles are '{self.positive}'; name them apart.")
        if self.pairs and (self.positive_samples or self.negative_samples):
            raise DataError(f"contrast '{self.name}': give pairs or two sets of samples, not both.")
        if self.pairs:
            return
        if not self.positive_samples and not self.negative_samples:
            raise DataError(f"contrast '{self.name}' is empty: give pairs, or samples of both poles.")
        for pole, samples in zip(self.poles, (self.positive_samples, self.negative_samples), strict=True):
            if not samples:
                raise DataError(
                    f"contrast '{self.name}' has no samples of '{pole}': give both poles, "
                    "or make a Persona of the one that is there."
                )

    @property
    def paired(self) -> bool:
        """True if every question has an answer of both poles."""
        return bool(self.pairs)

    @property
    def poles(self) -> tuple[str, str]:
        """The names of the two poles, positive first."""
        return self.positive, self.negative

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every question in order, repeats included; of an unpaired contrast the positive pole's first."""
        return tuple(item.prompt for item in (self.pairs or self.positive_samples + self.negative_samples))

    @property
    def sha256(self) -> str:
        """Hash of the content: kind, names of the poles, and the texts in their order.

        Name, description, prompts, licence and source do not enter: they do not change a mask.
        """
        if self.paired:
            return _sha256(["pairs", *self.poles, [[p.prompt, p.positive, p.negative] for p in self.pairs]])
        return _sha256(["samples", *self.poles, _texts(self.positive_samples), _texts(self.negative_samples)])

    def __len__(self) -> int:
        """Number of pairs, or of samples of the smaller pole."""
        return len(self.pairs) or min(len(self.positive_samples), len(self.negative_samples))

    def samples(self, pole: str) -> tuple[Sample, ...]:
        """The questions and answers of one pole, by its name. Raises `OptionError` on another name."""
        if pole not in self.poles:
            raise OptionError(
                f"contrast '{self.name}' has no pole '{pole}': its poles are '{self.positive}' and '{self.negative}'."
            )
        is_positive = pole == self.positive
        if self.paired:
            return tuple(Sample(p.prompt, p.positive if is_positive else p.negative) for p in self.pairs)
        return self.positive_samples if is_positive else self.negative_samples

    def swapped(self) -> Contrast:
        """The same contrast with its poles exchanged; a name made of both poles is turned round too."""
        forward, backward = f"{self.positive}-{self.negative}", f"{self.negative}-{self.positive}"
        return replace(
            self,
            name={forward: backward, backward: forward}.get(self.name, self.name),
            positive=self.negative,
            negative=self.positive,
            pairs=tuple(_turned(pair) for pair in self.pairs),
            positive_samples=self.negative_samples,
            negative_samples=self.positive_samples,
            positive_prompt=self.negative_prompt,
            negative_prompt=self.positive_prompt,
        )

    def subset(self, keep: Callable[[str], bool]) -> Contrast:
        """The rows whose question satisfies `keep`. Raises `DataError` if a pole would be left empty."""
        return replace(
            self,
            pairs=tuple(p for p in self.pairs if keep(p.prompt)),
            positive_samples=tuple(s for s in self.positive_samples if keep(s.prompt)),
            negative_samples=tuple(s for s in self.negative_samples if keep(s.prompt)),
        )

    def take(self, n: int, seed: int = 0) -> Contrast:
        """`n` pairs (unpaired: `n` samples of each pole) chosen by `seed`, in their present order.

        With one seed a smaller choice is part of every larger one. Raises `OptionError` unless
        1 <= n <= len(self).
        """
        _check_count(n, len(self), self.name)
        return replace(
            self,
            pairs=_chosen(self.pairs, n, seed),
            positive_samples=_chosen(self.positive_samples, n, seed),
            negative_samples=_chosen(self.negative_samples, n, seed),
        )

    def shuffled_labels(self, seed: int) -> Contrast:
        """The control without a persona in it: same texts, labels by chance.

        Each pair's answers change sides with probability 1/2; samples of an unpaired contrast are
        dealt anew to the two poles, as many to each as before.
        """
        chance = random.Random(seed)
        if self.paired:
            return replace(self, pairs=tuple(_turned(p) if chance.random() < 0.5 else p for p in self.pairs))
        deck = list(self.positive_samples + self.negative_samples)
        chance.shuffle(deck)
        count = len(self.positive_samples)
        return replace(self, positive_samples=tuple(deck[:count]), negative_samples=tuple(deck[count:]))


@dataclass(frozen=True, slots=True)
class Persona:
    """One persona alone: questions and its answers, with no rival. `prompt` is its system prompt.

    Raises `DataError` if there are no samples.
    """

    name: str
    samples: tuple[Sample, ...]
    prompt: str | None = None
    description: str = ""
    licence: str = "unknown"
    source: str = ""

    def __post_init__(self) -> None:
        if not self.samples:
            raise DataError(f"persona '{self.name}' is empty: give at least one question with its answer.")

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every question in order, repeats included."""
        return tuple(sample.prompt for sample in self.samples)

    @property
    def sha256(self) -> str:
        """Hash of the content: the persona's name and the texts in their order."""
        return _sha256(["persona", self.name, _texts(self.samples)])

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def subset(self, keep: Callable[[str], bool]) -> Persona:
        """The samples whose question satisfies `keep`. Raises `DataError` if none does."""
        return replace(self, samples=tuple(s for s in self.samples if keep(s.prompt)))

    def take(self, n: int, seed: int = 0) -> Persona:
        """`n` samples chosen by `seed`, in their present order; see `Contrast.take`."""
        _check_count(n, len(self), self.name)
        return replace(self, samples=_chosen(self.samples, n, seed))


def _turned(pair: Pair) -> Pair:
    return Pair(pair.prompt, pair.negative, pair.positive)


def _texts(samples: Sequence[Sample]) -> list[list[str]]:
    return [[sample.prompt, sample.answer] for sample in samples]


def _sha256(content: list[object]) -> str:
    # JSON keeps the borders between texts, so ('ab', 'c') and ('a', 'bc') differ.
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode("ascii")).hexdigest()


def _check_count(n: int, there: int, name: str) -> None:
    if not 1 <= n <= there:
        raise OptionError(f"cannot take {n} items of '{name}': it has {there}; ask for 1 to {there}.")


def _chosen(items: tuple[_Item, ...], n: int, seed: int) -> tuple[_Item, ...]:
    # A prefix of one shuffle, not random.sample: only so are the choices nested.
    order = list(range(len(items)))
    random.Random(seed).shuffle(order)
    return tuple(items[i] for i in sorted(order[:n]))
