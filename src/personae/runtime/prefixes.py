"""Keys and values of prompts that were read before, kept for prompts that begin alike under the same look."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

from personae.errors import OptionError
from personae.runtime.kv import Kept, first
from personae.runtime.look import Look

__all__ = ["Prefixes", "common"]

Tokens = tuple[int, ...]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the start on."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices compare at the speed of C
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Prefixes:
    """Kept prefixes by look, at most `limit` tokens in all; those not used for the longest time go first.

    Keys and values depend on what was worn when they were computed, so nothing is ever found under another look.
    A look is made of names, and a name can come to mean another persona: `edition` stands for the very masks it means
    now. When a look comes with another edition than before, all that was kept under it is dropped.

    Errors: `OptionError` for a limit below 0. 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise OptionError(f"prefix_tokens is {limit}: give 0 (keep none) or more.")
        self._limit = limit
        self._kept: OrderedDict[tuple[Look, Tokens], Kept] = OrderedDict()  # the least recently used first
        self._of_look: dict[Look, tuple[Hashable, dict[Tokens, None]]] = {}  # edition, and its keys in order
        self.tokens = 0

    def longest(self, look: Look, edition: Hashable, prompt: Tokens) -> Kept | None:
        """Keys and values of the longest kept beginning of a prompt, as views, or None.

        At least the last token is left out, since its logits are wanted.
        """
        wanted = prompt[:-1]
        lengths = {tokens: common(tokens, wanted) for tokens in self._under(look, edition)}
        best = max(lengths, key=lambda tokens: lengths[tokens], default=())
        if not best or not lengths[best]:
            return None
        self._kept.move_to_end((look, best))
        return first(self._kept[look, best], lengths[best])

    def keep(self, look: Look, edition: Hashable, tokens: Tokens, copied: Callable[[], Kept]) -> None:
        """Keep the keys and values of `tokens`; `copied` makes them, and is called only if they are wanted."""
        if not tokens or len(tokens) > self._limit:
            return
        for other in self._under(look, edition):
            shared = common(tokens, other)
            if shared == len(tokens):  # kept already, perhaps with more behind it
                self._kept.move_to_end((look, other))
                return
            if shared == len(other):
                self._drop(look, other)
        while self.tokens + len(tokens) > self._limit:
            self._drop(*next(iter(self._kept)))
        self._kept[look, tokens] = copied()
        self._of_look.setdefault(look, (edition, {}))[1][tokens] = None
        self.tokens += len(tokens)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._of_look.clear()
        self.tokens = 0

    def _under(self, look: Look, edition: Hashable) -> list[Tokens]:
        """What is kept under a look; that of an older edition is dropped."""
        known, tokens = self._of_look.get(look, (edition, {}))
        if known != edition:
            for each in list(tokens):
                self._drop(look, each)
            return []
        return list(tokens)

    def _drop(self, look: Look, tokens: Tokens) -> None:
        del self._kept[look, tokens]
        self.tokens -= len(tokens)
        mine = self._of_look[look][1]
        del mine[tokens]
        if not mine:
            del self._of_look[look]
