"""One table of all conditions on the test items: base, system prompt, persona masks, controls.

1. The test part of the split; items are encoded once.
2. Base: log-probabilities and capability, read once; everything else is compared with them.
3. Each condition: its masks on, both answers scored, both capability texts read, masks off.
4. Controls with as many weights as the first persona row, chosen without the persona.
5. Figures with intervals; each persona's claims over the best control.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery import (
    METHODS,
    Capability,
    Progress,
    Session,
    Settings,
    capability,
    encode_contrast,
    open_session,
    silent,
    versions,
)
from personae.errors import OptionError
from personae.evaluation.bootstrap import RESAMPLES
from personae.evaluation.capability_texts import CapabilityText, unread_text
from personae.evaluation.conditions import Condition, Loss, Sides, make_row, with_claims
from personae.evaluation.controls import CONTROLS, Masks, dropped, random_masks, scored_masks
from personae.evaluation.poles import (
    Poles,
    budget_of,
    check_artefact,
    cost_of,
    discovered,
    from_artefact,
    overlap_warning,
    settings_for,
)
from personae.evaluation.results import DataRecord, Evaluation, ModelRecord, TextRecord
from personae.evaluation.scoring import Items, ItemScores, baselines, encode_items, score_encoded
from personae.models import Target, find_targets, fingerprint, render_prompt
from personae.personas import Contrast, split
from personae.runtime import wearing
from personae.subnetwork import Artefact

MATCHES = ("sparsity", "loss")


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contrast: Contrast,
    artefact: Artefact | None = None,
    *,
    methods: Sequence[str] = (),
    controls: Sequence[str] = CONTROLS,
    split_seed: int | None = 0,
    random_seeds: int = 5,
    match: Sequence[str] = ("sparsity",),
    session: Session | None = None,
    capability_text: CapabilityText | None = None,
    system_prompt: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
    allow_other_weights: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Score the test items of a paired contrast under every condition.

    artefact: its two poles make a row. methods: each is discovered now on the calibration part, with the artefact's
    budget (or share) where there is one. controls: of CONTROLS, at the number of weights that the first persona row
    drops; match with 'loss' adds `magnitude` and `generic` at its capability loss. split_seed: of the 60/20/20 split;
    None scores all items. session: statistics and gradients to share; by default one is opened when needed.
    capability_text: by default generic text that no budget search has read. resamples, seed: of the bootstrap.

    The model is left with its base weights, bit for bit. Errors: `DataError` (unpaired or empty sets), `OptionError`,
    `UnknownPersonaError` and `MaskMismatchError` (another persona's or model's artefact), `ModelError`.
    """
    _check(methods, controls, match, random_seeds, split_seed)
    test = contrast if split_seed is None else split(contrast, seed=split_seed).test
    items = encode_items(model, tokenizer, test)
    notes: list[str] = []
    every = find_targets(model)
    if artefact is not None:
        check_artefact(artefact, contrast, model, every, allow_other_weights=allow_other_weights)
        _note(notes, overlap_warning(artefact[contrast.positive].provenance.calibration, contrast, test, split_seed))
    source = _Sessions(model, tokenizer, contrast, artefact, split_seed, progress, session)
    targets = _targets(every, artefact, session)
    text = capability_text or unread_text(source.session.generic)
    bench = _Bench(model, targets, items, text, progress)

    conditions = [Condition("base", "base", [(bench.base, bench.base)], loss=Loss(0.0, 0.0, 0.0, 0.0))]
    if system_prompt:
        if test.positive_prompt and test.negative_prompt:
            conditions.append(bench.prompted(tokenizer, test))
        else:
            notes.append(f"no row for the system prompt: '{contrast.name}' has none for both of its poles.")
    personas: list[Poles] = [] if artefact is None else [from_artefact(artefact, contrast)]
    for method in methods:
        name = f"{method} (found anew)" if method in [p.name for p in personas] else method
        personas.append(discovered(source.session, settings_for(method, artefact, contrast), source.dev, name))
    conditions += [bench.persona(poles) for poles in personas]
    if personas and controls:
        _note(notes, source.other_text())
        first = next(c for c in conditions if c.kind == "method")
        conditions += _controls(bench, source, personas[0], first, controls, match, random_seeds)
    elif controls:
        notes.append("no controls: they drop as many weights as a persona, and there is no artefact and no method.")
    rows = [make_row(c, bench.base, resamples=resamples, seed=seed) for c in conditions]
    return Evaluation(
        model=_model_record(model, targets),
        data=_data_record(contrast, test, items, bench.base, split_seed, tokenizer),
        text=TextRecord(
            text.name, text.sha256, len(text.plain), len(text.chat), bench.capability.plain, bench.capability.chat
        ),
        baselines=baselines(test),
        rows=with_claims(rows, conditions, resamples=resamples, seed=seed),
        notes=tuple(notes),
        resamples=resamples,
        seed=seed,
        versions={**versions(), "numpy": np.__version__},
    )


# --- measuring ------------------------------------------------------------------------------------------------


class _Bench:
    """The model and the items; base is read once, each mask once for all figures."""

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
        self.base = self.scores("base")
        self.capability = self._capability()

    def scores(self, title: str, items: Items | None = None) -> ItemScores:
        chosen = items or self.items
        with self.progress(f"scoring: {title}", len(chosen)) as tick:
            return score_encoded(self.model, chosen, tick)

    def _capability(self) -> Capability:
        return capability(self.model, self.text.generic)

    def read(self, title: str, masks: Masks, *, loss: bool = True) -> tuple[ItemScores, Capability | None]:
        """Items and capability texts under one side's masks."""
        if not dropped(masks):  # an empty mask is the base model, which has been read
            return self.base, self.capability if loss else None
        with wearing(self.targets, masks):
            return self.scores(title), self._capability() if loss else None

    def both(self, title: str, masks: tuple[Masks, Masks], *, loss: bool = True) -> tuple[Sides, Loss | None]:
        """Both sides of a condition; one and the same mask on both is read once."""
        first, before = self.read(title, masks[0], loss=loss)
        second, after = (first, before) if masks[0] is masks[1] else self.read(title, masks[1], loss=loss)
        if before is None or after is None:
            return (first, second), None
        base = self.capability
        return (first, second), Loss(
            before.plain - base.plain, after.plain - base.plain, before.chat - base.chat, after.chat - base.chat
        )

    def sparsities(self, masks: tuple[Masks, Masks]) -> tuple[float, float]:
        return dropped(masks[0]) / self.size, dropped(masks[1]) / self.size

    def persona(self, poles: Poles) -> Condition:
        sides, loss = self.both(poles.name, poles.masks)
        return Condition(
            poles.name, "method", [sides], self.sparsities(poles.masks), loss, poles.seconds, poles.cost,
            note=poles.note,
        )  # fmt: skip

    def prompted(self, tokenizer: PreTrainedTokenizerBase, test: Contrast) -> Condition:
        asked = [encode_items(self.model, tokenizer, test, p) for p in (test.positive_prompt, test.negative_prompt)]
        extra = [
            len(longer.prompt) - len(plain.prompt)
            for side in asked
            for longer, plain in zip(side.questions, self.items.questions, strict=True)
        ]
        sides = (self.scores("system prompt", asked[0]), self.scores("system prompt", asked[1]))
        return Condition(
            "system prompt", "prompt", [sides], extra_prompt_tokens=sum(extra) / len(extra),
            note="no mask, so no capability loss is measured",
        )  # fmt: skip


# --- controls -------------------------------------------------------------------------------------------------


def _controls(
    bench: _Bench,
    source: _Sessions,
    poles: Poles,
    persona: Condition,
    wanted: Sequence[str],
    match: Sequence[str],
    random_seeds: int,
) -> list[Condition]:
    """The controls of one persona row, in the order of CONTROLS."""
    numbers = (dropped(poles.masks[0]), dropped(poles.masks[1]))
    found: list[Condition] = []
    if "random" in wanted:
        found.append(_random(bench, source, poles, numbers, random_seeds))
    for method in ("magnitude", "generic"):
        if method not in wanted:
            continue
        if "sparsity" in match:
            masks, note = scored_masks(source.session, method, round(sum(numbers) / 2))
            found.append(_single(bench, method, method, masks, note))
        if "loss" in match:
            budget = budget_of(poles, None if persona.loss is None else persona.loss.worst)
            masks = _within(source, method, budget)
            found.append(
                _single(bench, f"{method} (equal loss)", method, masks, f"largest mask within {budget:g} nats")
            )
    if "opposite" in wanted:
        [(first, second)] = persona.readings
        found.append(
            Condition(
                "opposite", "control", [(second, first)], persona.sparsities[::-1],
                None if persona.loss is None else persona.loss.exchanged(), persona.seconds, persona.cost,
                note=f"each pole wears the other's mask of {poles.name}",
            )
        )  # fmt: skip
    return found


def _random(bench: _Bench, source: _Sessions, poles: Poles, numbers: tuple[int, int], random_seeds: int) -> Condition:
    readings: list[Sides] = []
    loss: Loss | None = None
    sparsities = (0.0, 0.0)
    for number in range(random_seeds):
        sides = [
            random_masks(bench.targets, numbers[pole], 2 * number + pole, source.candidates(poles.cheap_shares[pole]))
            for pole in (0, 1)
        ]
        masks = (sides[0], sides[1])
        read, cost = bench.both(f"random, seed {number}", masks, loss=number == 0)
        readings.append(read)
        if number == 0:
            loss, sparsities = cost, bench.sparsities(masks)
    where = " among the same candidates" if poles.cheap_shares[0] is not None else " among all weights"
    return Condition(
        "random", "control", readings, sparsities, loss, cost=cost_of("random"), seeds=tuple(range(random_seeds)),
        note=f"as many weights{where}; mean of {random_seeds} seeds, capability loss of seed 0",
    )  # fmt: skip


def _single(bench: _Bench, name: str, method: str, masks: Masks, note: str) -> Condition:
    """A control with one mask for both poles."""
    pair = (masks, masks)
    sides, loss = bench.both(name, pair)
    return Condition(name, "control", [sides], bench.sparsities(pair), loss, cost=cost_of(method), note=note)


def _within(source: _Sessions, method: str, budget: float) -> Masks:
    settings = Settings(method=method, max_capability_loss=budget).checked()
    return discovered(source.session, settings, source.dev, method).masks[0]


# --- what is opened only when it is needed --------------------------------------------------------------------


@dataclass(eq=False)
class _Sessions:
    """The shared session, its dev set, and candidates by cheap share."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    contrast: Contrast
    artefact: Artefact | None
    split_seed: int | None
    progress: Progress
    given: Session | None

    def __post_init__(self) -> None:
        self._candidates: dict[float, Mapping[str, object]] = {}

    @cached_property
    def session(self) -> Session:
        if self.given is not None:
            return self.given
        calibration = (
            self.contrast if self.split_seed is None else split(self.contrast, seed=self.split_seed).calibration
        )
        parameters = {} if self.artefact is None else self.artefact[self.contrast.positive].provenance.parameters
        seed, tokens = parameters.get("seed", 0), parameters.get("tokens", "answer")
        return open_session(
            self.model, self.tokenizer, calibration,
            targets=None if self.artefact is None else list(self.artefact.model.targets),
            tokens=str(tokens), seed=seed if isinstance(seed, int) else 0, progress=self.progress,
        )  # fmt: skip
