"""What is read of one dimension's test answers: mean log p a token under every condition, and what classifiers say.

Every reading is a part of its own, so a run that was killed goes on with the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personae.errors import ModelError
from personae.evaluation.finetune import Recipe, adapted, adapters_on, train
from personae.evaluation.suites.bag_of_words import bag_of_words_scores, length_scores
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.mbti_data import Answer, Dimension, flat, items
from personae.evaluation.suites.mbti_masks import Finder, Found, Masks
from personae.models import Question, score_continuations
from personae.runtime import wearing

Floats = NDArray[np.float64]
Sides = tuple[Floats, Floats]  # under p⁺'s side, under p⁻'s side


@dataclass(frozen=True, eq=False)
class Readings:
    """Of one dimension; every array is (test answers,), in the order of `flat(data.test)`.

    base, persona, shuffled, random (one a seed), ceiling: mean log p a token. words, length: log-odds of p⁺.
    """

    data: Dimension
    found: Found
    base: Floats
    persona: Sides
    shuffled: Sides
    random: tuple[Sides, ...]
    ceiling: Sides | None
    words: Floats
    length: Floats


@dataclass
class Reader:
    """Reads test answers in a context.

    settings: of the data and the masks, to know parts by. of_masks: what else decides masks that were tuned.
    """

    context: SuiteContext
    settings: Mapping[str, Any]
    of_masks: Mapping[str, Any] = field(default_factory=dict)

    def masked(
        self, condition: str, data: Dimension, masks: Masks, couples: int | None = None, strength: float = 1.0
    ) -> Floats:
        """The first `couples` of the test answers (all) under masks at a strength."""
        return self._read(
            condition,
            data,
            couples,
            lambda: wearing(self.context.targets, masks, strength),
            {"strength": strength, **self.of_masks},
        )

    def base(self, data: Dimension) -> Floats:
        """All test answers under the bare model."""
        return self._read("base", data, None, nullcontext, {})

    def adapted(self, data: Dimension, pole: int, recipe: Recipe) -> Floats:
        """All test answers under a LoRA adapter trained on one pole's calibration answers (SFT)."""
        context, name = self.context, data.poles[pole]

        def compute() -> list[float]:
            with adapters_on(context.model, context.targets, recipe, (name,)) as wrapped:
                total = recipe.epochs * len(data.calibration)
                with context.progress(f"LoRA {name}", total) as tick:
                    trained = train(
                        wrapped, name, items(data.calibration, data.paired), pole=pole, objective="sft", recipe=recipe,
                        tick=tick,
                    )  # fmt: skip
                with adapted(wrapped, trained):
                    return mean_log_p(context, flat(data.test), f"{data.name} under the adapter {name}")

        kept = context.part(f"mbti {data.name} adapter {name}", {**self.settings, "recipe": asdict(recipe)}, compute)
        return np.array(kept, dtype=np.float64)

    def _read(
        self,
        condition: str,
        data: Dimension,
        couples: int | None,
        worn: Callable[[], AbstractContextManager[None]],
        more: Mapping[str, Any],
    ) -> Floats:
        answers = flat(data.test[:couples])

        def compute() -> list[float]:
            with worn():
                return mean_log_p(self.context, answers, f"{data.name} under {condition}")

        settings = {**self.settings, **more, "answers": len(answers)}
        kept = self.context.part(f"mbti {data.name} under {condition}", settings, compute)
        return np.array(kept, dtype=np.float64)


def mean_log_p(context: SuiteContext, answers: Sequence[Answer], title: str) -> list[float]:
    """(1/|a|) log p(a|x) of each answer under whatever the model wears now, nats a token.

    Answers to one prompt are read together. Errors: `ModelError` when one is no finite number.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for place, answer in enumerate(answers):
        places.setdefault(answer.encoded.prompt, []).append(place)
    questions = [Question(prompt, tuple(answers[i].encoded.answer for i in at)) for prompt, at in places.items()]
    with context.progress(title, len(questions)) as tick:
        scored = score_continuations(context.model, questions, tick=tick)
    result = [0.0] * len(answers)
    for at, values in zip(places.values(), scored, strict=True):
        for place, value in zip(at, values, strict=True):
            result[place] = float(value.double().mean())
    if not np.isfinite(result).all():
        raise ModelError(f"{title}: log-probabilities are no finite numbers; load the model in float32.")
    return result


def read_all(
    reader: Reader,
    finder: Finder,
    data: Dimension,
    *,
    random_seeds: int,
    recipe: Recipe | None,
    tuned: Found | None = None,
) -> Readings:
    """Masks of one dimension and all that is read of its own test answers.

    recipe: of the ceiling; None: none. tuned: masks instead of those that the finder finds.
    """
    found = tuned or finder.find(data)

    def sides(condition: str, masks: tuple[Masks, Masks]) -> Sides:
        first, second = (reader.masked(f"{condition} {p}", data, m) for p, m in zip(data.poles, masks, strict=True))
        return first, second

    ceiling = None
    if recipe is not None:
        ceiling = reader.adapted(data, 0, recipe), reader.adapted(data, 1, recipe)
    known, asked = flat(data.calibration), flat(data.test)
    labels = positive(known)
    return Readings(
        data=data,
        found=found,
        base=reader.base(data),
        persona=sides("mask", found.persona),
        shuffled=sides("shuffled mask", found.shuffled),
        random=tuple(
            sides(f"random mask {seed}", finder.random(data, found, seed)) for seed in range(random_seeds)
        ),
        ceiling=ceiling,
        words=bag_of_words_scores([a.text for a in known], labels, [a.text for a in asked]),
        length=length_scores([a.length for a in known], labels, [a.length for a in asked]),
    )  # fmt: skip


def positive(answers: Sequence[Answer]) -> NDArray[np.bool_]:
    """True for the answers of p⁺, of answers in the order of `flat`."""
    even: NDArray[np.bool_] = np.arange(len(answers)) % 2 == 0
    return even
