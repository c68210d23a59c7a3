"""What the activation suite reads: each way to make the model lean to a pole, crossed with each ablation.

A reading is the margin of every test item with one way entered and one set of weights dropped inside it. The way comes
first: an adapter is trained on the whole model, and what is dropped then are base weights underneath it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from personae.discovery import Calibration, encode_contrast, mean_log_probabilities
from personae.errors import ModelError
from personae.evaluation.bootstrap import Difference, Estimate, difference
from personae.evaluation.finetune import Recipe, Trained, adapted, adapters_on, train
from personae.evaluation.retrieval import SHOTS, with_examples
from personae.evaluation.suites.faithfulness_readings import Floats, Masks, Readings, share_of
from personae.personas import Contrast
from personae.runtime import wearing

BASE = "base"
CONDITIONS = ("system-prompt", "retrieval", "lora-sft", "mask")

Change = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, eq=False)
class Way:
    """What makes the model lean to a pole. items: what is read; change: what is entered around the reading; settings:
    what decides a reading beside the frame of all of them."""

    name: str
    items: Calibration
    change: Change
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Crossed:
    """Margins towards the pole under one way, nats a token: with all weights and without those that carry the pole,
    (n,); without as many random candidates, (draws, n)."""

    whole: Floats
    ablated: Floats
    random: Floats

    def log_sigmoid(self) -> Crossed:
        """log σ of every margin, ≤ 0: an item that is answered with certainty has nothing more to gain."""
        return Crossed(*(-np.logaddexp(0.0, -m) for m in (self.whole, self.ablated, self.random)))


@dataclass(frozen=True, slots=True)
class Lost:
    """What a way gains over base, means over items; and the share of it that goes with the weights.

    gain = margin under C − margin of base; ablated: gain_A = margin under C and A − margin under A alone; random: the
    same with random weights for A, mean of the draws. share: 1 − gain_A/gain; share_random; over: their difference
    (gain_random − gain_A)/gain, its p that of 'gain_random and gain_A are equal', which is the same question wherever
    gain > 0. Shares are ratios of means over the same resamples; None unless the interval of gain lies above zero.
    """

    gain: Difference
    ablated: Difference
    random: Difference
    share: Estimate | None
    share_random: Estimate | None
    over: Difference | None


def lost(base: Crossed, under: Crossed, *, seed: int = 0) -> Lost:
    """The figures of one way against base on the same items under the same ablations."""
    random_base: Floats = base.random.mean(axis=0)
    random_under: Floats = under.random.mean(axis=0)
    gain, ablated, random = (
        difference(under.whole, base.whole, seed=seed),
        difference(under.ablated, base.ablated, seed=seed),
        difference(random_under, random_base, seed=seed),
    )
    if gain.low <= 0:
        return Lost(gain, ablated, random, None, None, None)
    gained, kept, kept_random = under.whole - base.whole, under.ablated - base.ablated, random_under - random_base
    share, share_random, more = (
        share_of(part, gained, seed) for part in (gained - kept, gained - kept_random, kept_random - kept)
    )
    assert more is not None  # the interval of the gain lies above zero
    over = Difference(more.value, more.low, more.high, difference(kept_random, kept, seed=seed).p)
    return Lost(gain, ablated, random, share, share_random, over)


@dataclass
class Bench:
    """Everything that readings are taken with. calibration, test: the texts behind `readings`; lora: the pairs that an
    adapter learns from, `take` of the calibration pairs, so that their number tells which they are."""

    readings: Readings
    calibration: Contrast
    test: Contrast
    lora: Calibration
    recipe: Recipe
    draws: int

    @contextlib.contextmanager
    def way(self, name: str, pole: int) -> Iterator[Way]:
        """The base model or one of CONDITIONS, for as long as the block lasts."""
        model, tokenizer = self.readings.session.model, self.readings.session.tokenizer
        if name == "system-prompt":
            prompt = (self.test.positive_prompt, self.test.negative_prompt)[pole]
            asked = encode_contrast(model, tokenizer, self.test, prompt)
            yield Way(name, asked, contextlib.nullcontext, {"prompt": prompt})
        elif name == "retrieval":
            questions = with_examples(model, tokenizer, self.test, self.calibration)[pole].questions
            yield Way(name, Calibration(questions, (), ()), contextlib.nullcontext, {"shots": SHOTS})
        elif name == "lora-sft":
            settings = {"recipe": asdict(self.recipe), "pairs": len(self.lora.paired), "peft": version("peft")}
            with self.tuned(pole) as change:
                yield Way(name, self.readings.test, change, settings)
        elif name == "mask":
            worn = self.readings.wearing(partial(self.readings.directed, pole))
            yield Way(name, self.readings.test, worn)
        else:
            yield Way(BASE, self.readings.test, contextlib.nullcontext)

    @contextlib.contextmanager
    def tuned(self, pole: int) -> Iterator[Change]:
        """The model under a LoRA of one pole, trained once, when the first reading that is not kept asks for it."""
        session = self.readings.session
        kept: list[tuple[Any, Trained]] = []
        with contextlib.ExitStack() as stack:

            def change() -> AbstractContextManager[None]:
                if not kept:
                    self.readings.directed(1 - pole)  # masks are found on the bare model, not through adapters
                    name, total = "persona", self.recipe.epochs * len(self.lora.paired)
                    wrapped = stack.enter_context(adapters_on(session.model, session.targets, self.recipe, (name,)))
                    with session.progress("activation: LoRA", total) as tick:
                        adapter = train(
                            wrapped, name, self.lora, pole=pole, objective="sft", recipe=self.recipe, tick=tick
                        )
                    kept.append((wrapped, adapter))
                return adapted(*kept[0])

            yield change

    def crossed(self, way: Way, pole: int) -> Crossed:
        """The margins under a way, one part an ablation. What carries a pole is what its rival's mask drops."""
        readings, rival = self.readings, 1 - pole
        return Crossed(
            self._margins(way, pole, "whole", dict),
            self._margins(way, pole, "ablated", partial(readings.directed, rival)),
            np.stack(
                [
                    self._margins(way, pole, f"random {draw}", partial(readings.random, rival, draw))
                    for draw in range(self.draws)
                ]
            ),
        )

    def _margins(self, way: Way, pole: int, ablation: str, masks: Callable[[], Masks]) -> Floats:
        session, context = self.readings.session, self.readings.context
        name = f"{way.name}, {ablation}"

        def compute() -> list[list[float]]:
            dropped = masks()  # found on the base model, so before the way is entered
            with (
                way.change(),
                wearing(session.targets, dropped),
                context.progress(f"activation: {name}", len(way.items.paired)) as tick,
            ):
                found = mean_log_probabilities(session.model, way.items, tick=tick)
            if not found.isfinite().all():
                raise ModelError(
                    f"activation, {name}: log-probabilities are no finite numbers; load the model in float32."
                )
            return [[float(v) for v in row] for row in found]

        settings = {**self.readings.frame, **way.settings, "pole": pole}
        log_p = np.array(context.part(f"activation/{way.name}/{ablation}", settings, compute), dtype=np.float64)
        margins: Floats = log_p[:, pole] - log_p[:, 1 - pole]
        return margins
