"""What a trace found: per token, per layer, and for the whole text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from personae.analysis.frames import data_frame
from personae.analysis.trace_flow import Layer, Squares, shares
from personae.analysis.trace_verdict import Verdict, gains, relative
from personae.errors import OptionError

if TYPE_CHECKING:
    import pandas

__all__ = ["FULL_COLOUR", "Trace"]

Floats = NDArray[np.float64]

FULL_COLOUR = 2.0  # nats by which a token must speak for a persona to be shown in its full colour


@dataclass(frozen=True, eq=False)
class Trace:
    """One text, read under the base model and under each of P personas, over its T scored tokens.

    question: what the text answers; None where it was read as plain text. opening: what stands before the first scored
    token (of a plain text the first token has nothing that predicts it). tokens: texts of the tokens; a character of
    several tokens stands at its last one. base: log p of each token under the base model, nats, (T,). worn: the same
    under each persona, (P, T). layers: (block, kind) of each row of squares, which are None where the flow was not
    read. notes: what a reader should know.
    """

    question: str | None
    opening: str
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    personas: tuple[str, ...]
    base: Floats
    worn: Floats
    verdict: Verdict
    layers: tuple[Layer, ...] = ()
    squares: Squares | None = None
    notes: tuple[str, ...] = ()

    @property
    def gain(self) -> Floats:
        """s = log p under the persona − log p under base, nats, (P, T)."""
        return gains(self.base, self.worn)

    @property
    def relative(self) -> Floats:
        """r = s minus its mean over the personas (of one persona alone: s), nats, (P, T)."""
        return relative(self.gain)

    @property
    def over_base(self) -> tuple[float, ...]:
        """Mean of s over the tokens, a persona each, nats a token."""
        return tuple(self.gain.mean(axis=1).tolist())

    @property
    def share(self) -> Floats | None:
        """Share of each layer's output through the weights that one persona alone drops, at the position that predicts
        the token, (P, layers, T)."""
        return None if self.squares is None else shares(self.squares)

    @property
    def overall(self) -> Floats | None:
        """The same with the squares summed over the tokens, (P, layers)."""
        if self.squares is None:
            return None
        summed = Squares(self.squares.lost.sum(-1, keepdims=True), self.squares.whole.sum(-1, keepdims=True))
        return shares(summed)[:, :, 0]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON: tokens in order, figures of a persona under its name."""
        share, overall = self.share, self.overall
        return {
            "question": self.question,
            "opening": self.opening,
            "personas": self.personas,
            "verdict": {
                **asdict(self.verdict),
                "scores": dict(zip(self.personas, self.verdict.scores, strict=True)),
                "offsets": dict(zip(self.personas, self.verdict.offsets, strict=True)),
            },
            "over_base": dict(zip(self.personas, self.over_base, strict=True)),
            "tokens": self.tokens,
            "ids": self.ids,
            "base": self.base,
            "log_p": dict(zip(self.personas, self.worn, strict=True)),
            "relative": dict(zip(self.personas, self.relative, strict=True)),
            "layers": [{"block": block, "kind": kind} for block, kind in self.layers],
            "overall_share": None if overall is None else dict(zip(self.personas, overall, strict=True)),
            "share": None if share is None else dict(zip(self.personas, share, strict=True)),
        }

    def frame(self) -> pandas.DataFrame:
        """One row a token and persona: at, token, persona, base, log_p, gain, relative. Errors: `OptionError` without
        pandas."""
        gain, share = self.gain, self.relative
        rows = [
            {
                "at": at, "token": token, "persona": name, "base": self.base[at], "log_p": self.worn[p, at],
                "gain": gain[p, at], "relative": share[p, at],
            }
            for p, name in enumerate(self.personas)
            for at, token in enumerate(self.tokens)
        ]  # fmt: skip
        return data_frame(rows)

    def layer_frame(self) -> pandas.DataFrame:
        """One row a token, persona and layer: at, persona, block, kind, share. Errors: `OptionError` without pandas or
        where the flow was not read."""
        share = self.share
        if share is None:
            raise OptionError("this trace has no shares: it was made with flow=False.")
        p, layer, at = (axis.ravel() for axis in np.indices(share.shape))
        blocks, kinds = (np.array(column)[layer] for column in zip(*self.layers, strict=True))
        named = {"at": at, "persona": np.array(self.personas)[p], "block": blocks, "kind": kinds}
        return data_frame({**named, "share": share.ravel()})
