"""The parts of a model that a causal map goes through: blocks, kinds, projections, and block × kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from personae.analysis.causal_result import LEVELS
from personae.errors import OptionError
from personae.models import Target

__all__ = ["Part", "check_levels", "parts_of", "projections"]


@dataclass(frozen=True, eq=False)
class Part:
    """Targets that are restored, and worn alone, together. block, kind, target: None where it spans several."""

    level: str
    name: str
    block: int | None
    kind: str | None
    target: str | None
    targets: tuple[Target, ...]

    @property
    def names(self) -> frozenset[str]:
        """Names of its targets."""
        return frozenset(target.name for target in self.targets)


def check_levels(by: Sequence[str]) -> tuple[str, ...]:
    """The levels asked for, in the order of `LEVELS`. Errors: `OptionError` for none, or one that is none."""
    for level in by:
        if level not in LEVELS:
            raise OptionError(f"unknown --by {level!r}: choose {', '.join(LEVELS)}.")
    if not by:
        raise OptionError(f"--by names no level: choose among {', '.join(LEVELS)}.")
    return tuple(level for level in LEVELS if level in by)


def parts_of(targets: Sequence[Target], level: str) -> list[Part]:
    """The parts of one level; blocks rise, kinds are in the order of the alphabet, projections in that of the model."""
    called = projections(targets)
    groups: dict[tuple[int | None, str | None, str | None], list[Target]] = {}
    for target in targets:
        block = target.block if level in ("block", "cell") else None
        kind = target.kind if level in ("kind", "cell") else None
        name = called[target.name] if level == "target" else None
        groups.setdefault((block, kind, name), []).append(target)
    keys = list(groups)
    if level != "target":
        keys.sort(key=lambda key: (-1 if key[0] is None else key[0], key[1] or ""))
    return [Part(level, _name(*key), *key, tuple(groups[key])) for key in keys]


def _name(block: int | None, kind: str | None, target: str | None) -> str:
    words = [f"block {block}" if block is not None else None, kind, target]
    return " ".join(word for word in words if word is not None)


def projections(targets: Sequence[Target]) -> dict[str, str]:
    """By target: what it is in its block, 'q_proj'; with its module in front, 'attn.c_proj', where two share a name.

    Numbers are left out, so that all experts' 'w1' are one projection.
    """
    long: dict[str, str] = {}
    for target in targets:
        words = target.name.split(".")
        start = next((i + 1 for i, word in enumerate(words) if word.isdigit()), 0)
        rest = [word for word in words[start:] if not word.isdigit()]
        if len(rest) > 1 and rest[-1] == "weight":
            rest = rest[:-1]
        long[target.name] = ".".join(rest) or target.name
    meant: dict[str, set[str]] = {}
    for path in long.values():
        meant.setdefault(path.rsplit(".", 1)[-1], set()).add(path)
    return {
        name: path if len(meant[path.rsplit(".", 1)[-1]]) > 1 else path.rsplit(".", 1)[-1]
        for name, path in long.items()
    }
