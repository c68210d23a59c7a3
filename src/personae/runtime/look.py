"""What one row of a batch wears: nothing, one persona at a strength, or a blend.

A look is a plain value that can be compared, hashed and put into a log, so that caches, metrics and requests agree on
what 'the same persona' means.
"""

from __future__ import annotations

from collections.abc import Mapping

from personae.errors import OptionError
from personae.runtime.blend import check_strengths

__all__ = ["BASE", "Look", "look_of", "named"]

Look = tuple[tuple[str, float], ...]  # (name, strength) sorted by name, no strength of 0; () is the base model
BASE: Look = ()


def look_of(persona: str | Mapping[str, float] | None, strength: float = 1.0) -> Look:
    """The look of a persona's name, of a blend {name: strength}, or of None, the base model.

    Errors: `OptionError` for a strength out of range, or one beside a blend or the base model.
    """
    if persona is None or isinstance(persona, Mapping):
        if strength != 1.0:
            raise OptionError("a blend holds its own strengths, and the base model has none: give {name: strength}.")
        return tuple(sorted(check_strengths(persona).items())) if persona else BASE
    return tuple(check_strengths({persona: strength}).items())


def named(look: Look) -> str:
    """'base', 'introvert', or 'extravert=0.3 + formal=0.7', for people."""
    return " + ".join(name if strength == 1 else f"{name}={strength:g}" for name, strength in look) or "base"
