"""The model and the test items, ready to be read: base is read once, each mask once for all figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery import Capability, Progress, capability
from personae.errors import ModelError
from personae.evaluation.capability_texts import CapabilityText
from personae.evaluation.conditions import Condition, Loss, Sides
from personae.evaluation.poles import Masks, Poles, dropped
from personae.evaluation.scoring import Items, ItemScores, encode_items, extra_tokens, score_encoded
from personae.models import Target
from personae.personas import Contrast
from personae.runtime import wearing


class Bench:
    """Reads conditions. `base` and `capability` are the bare model's scores and likelihoods of the texts."""

    def __init__(
        self,
        model: PreTrainedModel,
        targets: Sequence[Target],
        items: Items,
        text: CapabilityText,
        progress: Progress,
    ) -> None:
        self.model, self.targets, self.items, self.text, self.progress = model, targets, items, text, progress
        self.size = sum(t.size for t in targets)
        self.base = self.scores("base", items)
        self.capability = self.likelihoods("base")

    def scores(self, title: str, items: Items) -> ItemScores:
        """Items under whatever the model wears now."""
        with self.progress(f"scoring: {title}", len(items)) as tick:
            return score_encoded(self.model, items, tick)

    def likelihoods(self, title: str) -> Capability:
        """Both capability texts under whatever the model wears now. Errors: `ModelError` on nan or infinity."""
        with self.progress(f"capability: {title}", len(self.text.plain) + len(self.text.chat)) as tick:
            found = capability(self.model, self.text.generic, tick)
        if not (math.isfinite(found.plain) and math.isfinite(found.chat)):
            raise ModelError(
                f"{title}: the likelihood of the capability text is no finite number; load the model in float32."
            )
        return found

    def read(self, title: str, masks: Masks, *, loss: bool = True) -> tuple[ItemScores, Capability | None]:
        """Items, and unless `loss` is False the capability texts, under one side's masks."""
        if not dropped(masks):  # an empty mask is the base model, which has been read
            return self.base, self.capability if loss else None
        return self.under(title, wearing(self.targets, masks), loss=loss)

    def under(
        self, title: str, change: AbstractContextManager[None], *, loss: bool = True
    ) -> tuple[ItemScores, Capability | None]:
        """The same under any other change of the model."""
        with change:
            return self.scores(title, self.items), self.likelihoods(title) if loss else None

    def both(self, title: str, masks: tuple[Masks, Masks], *, loss: bool = True) -> tuple[Sides, Loss | None]:
        """Both sides of a condition; one and the same mask on both is read once."""
        first, before = self.read(title, masks[0], loss=loss)
        second, after = (first, before) if masks[0] is masks[1] else self.read(title, masks[1], loss=loss)
        return (first, second), self._loss(before, after)

    def both_under(
        self, title: str, changes: Sequence[Callable[[], AbstractContextManager[None]]]
    ) -> tuple[Sides, Loss | None]:
        """Both sides of a condition that is no mask."""
        (first, before), (second, after) = (self.under(title, change()) for change in changes)
        return (first, second), self._loss(before, after)

    def _loss(self, before: Capability | None, after: Capability | None) -> Loss | None:
        if before is None or after is None:
            return None
        (plain, chat), (plain_opposite, chat_opposite) = (c.rises(self.capability) for c in (before, after))
        values, errors = zip(plain, plain_opposite, chat, chat_opposite, strict=True)
        return Loss(*values, errors=errors)

    def sparsities(self, masks: tuple[Masks, Masks]) -> tuple[float, float]:
        """Share of dropped weights over all target weights, for both sides."""
        return dropped(masks[0]) / self.size, dropped(masks[1]) / self.size

    def bare(self) -> Condition:
        """The base model."""
        return Condition("base", "base", [(self.base, self.base)], loss=Loss(0.0, 0.0, 0.0, 0.0))

    def persona(self, poles: Poles) -> Condition:
        """A pair of persona masks."""
        sides, loss = self.both(poles.name, poles.masks)
        return Condition(
            poles.name, "method", [sides], self.sparsities(poles.masks), loss, poles.seconds, poles.cost,
            note=poles.note, peak_bytes=poles.peak_bytes,
        )  # fmt: skip

    def prompted(self, tokenizer: PreTrainedTokenizerBase, test: Contrast) -> Condition:
        """The contrast's system prompts instead of masks."""
        asked = [encode_items(self.model, tokenizer, test, p) for p in (test.positive_prompt, test.negative_prompt)]
        sides = (self.scores("system prompt", asked[0]), self.scores("opposite system prompt", asked[1]))
        return Condition(
            "system prompt", "prompt", [sides], extra_prompt_tokens=extra_tokens(self.items, asked),
            note="no mask, so no capability loss is measured",
        )  # fmt: skip
