"""Are the masks of the MBTI poles about the poles? Held-out answers, controls, specificity, types, a trained ceiling.

For each of the four Machine-Mindset dimensions: masks of both poles from the calibration part (`directed`), then the
test part's answers of either pole under them; with `tuning`, masks that dev chose. docs/suites.md has the definitions.

Cost, as tokens of a forward pass: c·(24·rows + 56·test + 48·others + 128·blends), c the mean number of tokens an answer
adds (about 82 with the defaults: prompt and cut answer). The ceiling adds c·(48·rows + 16·test) at two epochs. Tuning
costs what `mbti_tuning` says; four dimensions tuned within 40 minutes on two cores, all else included:

    run(context, test=48, others=4, blends=1, questionnaire=False, tuning=Tuning(shares=(0.002, 0.004), couples=16))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from personae.discovery import GenericText
from personae.errors import OptionError
from personae.evaluation.bootstrap import RESAMPLES
from personae.evaluation.finetune import Recipe
from personae.evaluation.suites import mbti_questionnaire
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.mbti_blocks import RANGES, spans
from personae.evaluation.suites.mbti_data import DIMENSIONS, INSTRUCTIONS, Dimension, Sizes, only_pole, read_dimension
from personae.evaluation.suites.mbti_masks import Finder, Finding, Masks, union
from personae.evaluation.suites.mbti_readings import Floats, Reader, Readings, read_all
from personae.evaluation.suites.mbti_report import (
    TYPES,
    Draws,
    Figures,
    dimension_figures,
    discrimination_table,
    one_class,
    own_answers_table,
    specificity,
    types,
)
from personae.evaluation.suites.mbti_tuning import Tuned, Tuner, Tuning
from personae.evaluation.suites.mbti_tuning_report import tuned_figures, tuning_tables
from personae.evaluation.suites.report import Cell, SuiteResult, Table

SOURCE = "PKU-YuanGroup/Machine-Mindset (https://github.com/PKU-YuanGroup/Machine-Mindset)"
DEV_COUPLES = 48  # read where a budget is searched

# With `steps` (docs/experiments.md, MBTI): β, the largest mask that they wear as a share of its blocks' weights, and
# those blocks.
SHORT_STEPS: Mapping[str, Any] = {"own_weight": 1.0, "step_share": 0.001, "blocks": "last"}


def run(
    context: SuiteContext,
    *,
    dimensions: Sequence[str] = DIMENSIONS,
    rows: int = 120,
    test: int = 96,
    others: int = 20,
    blends: int = 8,
    tokens: int = 96,
    cheap_share: float | None = 0.6,
    drop_share: float | None = 0.002,
    max_capability_loss: float | None = None,
    steps: int | None = None,
    step_share: float | None = None,
    own_weight: float = 0.0,
    blocks: str = "all",
    instructions: str = "as-is",
    random_seeds: int = 1,
    strength: float = 1.0,
    questionnaire: bool = True,
    ceiling: bool = False,
    recipe: Recipe | None = None,
    tuning: Tuning | None = None,
    generic: GenericText | str | Path | None = None,
    resamples: int = RESAMPLES,
) -> SuiteResult:
    """The MBTI suite.

    rows, test: answers a pole of the calibration and of the test part, at most. others: test answers a pole under the
    masks of other dimensions. blends: under each of the sixteen types. tokens: an answer is cut to so many, in every
    part. cheap_share, drop_share: c and the share of weights dropped; max_capability_loss instead: a budget, nats a
    token (then set both shares to None); steps: short steps within it, for the exchanged labels too, which wear
    step_share of the weights at most; own_weight: β, added weight of the pole's own answers, with steps.
    blocks: the range of blocks that masks are confined to, 'all', 'first', 'middle' or 'last' (thirds); every share is
    then of the weights of these blocks.
    instructions: 'as-is', or 'matched' (S/N and J/P: partners answer the same or the most similar instruction).
    random_seeds: draws of the random control. strength: of the types' blends, at most 1.
    questionnaire: also the 60 items of 16Personalities under each mask.
    ceiling: also train LoRA adapters on the same rows, by `recipe`. tuning: choose the masks of each dimension, and
    those of its control `shuffled`, from a grid on dev; `auc_untuned` is of the masks as found without. Needs both
    shares. generic: generic text or its source (default: sampled from the model).

    Errors: `DataError` for missing, broken or too small files; `OptionError` for options out of range.
    """
    _check(dimensions, instructions, strength, resamples, rows=rows, test=test, others=others, blends=blends,
           tokens=tokens, random_seeds=random_seeds)  # fmt: skip
    if recipe is not None and not ceiling:
        raise OptionError("a recipe is of the ceiling: ask for the ceiling too.")
    if blocks not in RANGES:
        raise OptionError(f"unknown blocks {blocks!r}: choose {', '.join(RANGES)}.")
    if tuning is not None and blocks != "all":
        raise OptionError("tuning chooses the range of blocks: leave blocks out.")
    finding = Finding(cheap_share, drop_share, max_capability_loss, steps, own_weight, step_share, blocks)
    finding.settings(context.seed)  # refused before anything is computed
    if tuning is not None and max_capability_loss is not None:
        raise OptionError("tuning chooses from shares: leave max_capability_loss out, and give the grid a budget.")
    within = {} if tuning is None else spans(context.model, context.targets, tuning.ranges)
    paths = {name: context.file(f"mbti/{name}_dev.jsonl", SOURCE) for name in dimensions}
    if questionnaire:  # asked for now, so that a missing file is told of before hours of work
        context.file(mbti_questionnaire.FILE, mbti_questionnaire.SOURCE)
    dev = DEV_COUPLES if tuning is None else tuning.couples
    most = max(rows, dev, test) if context.limit is None else max(context.limit, 2)
    sizes = Sizes(min(rows, most), min(dev, most), min(test, most), tokens)
    alone = {name: pole for name in dimensions if (pole := only_pole(paths[name])) is not None}
    sets = [
        read_dimension(
            context.model, context.tokenizer, paths[name], name, sizes, instructions=instructions, seed=context.seed
        )
        for name in dimensions
        if name not in alone
    ]
    of_data = {"rows": rows, "tokens": tokens, "instructions": instructions}
    finder = Finder(context, finding, of_data, generic, keep_gains=tuning is not None)
    reader = Reader(context, {**finder.key, "test": test})
    of_ceiling = (recipe or Recipe()) if ceiling else None
    tuned: dict[str, Tuned] = {}
    of_masks: dict[str, Any] = {}
    if tuning is not None:
        tuner = Tuner(finder, reader, tuning, within)
        tuned = {d.name: tuner.tune(d) for d in sets}
        of_masks = {"tuning": asdict(tuning)}
        reader = replace(reader, of_masks=of_masks)
    every: dict[str, Readings] = {}
    for data in sets:
        found = tuned[data.name].found if data.name in tuned else None
        every[data.name] = read_all(reader, finder, data, random_seeds=random_seeds, recipe=of_ceiling, tuned=found)

    draws = Draws(resamples, context.seed)
    by_dimension: dict[str, Figures] = {name: {} for name in dimensions}
    warnings = [one_class(name, pole) for name, pole in alone.items()]
    for name, readings in every.items():
        by_dimension[name], own = dimension_figures(readings, draws)
        warnings += own
        if name in tuned:
            by_dimension[name] |= tuned_figures(tuned[name], readings, draws)
    figures: dict[str, Cell] = {
        f"{name}.{key}": cell for name, own in by_dimension.items() for key, cell in own.items()
    }
    tables: list[Table] = [discrimination_table(by_dimension, warnings), own_answers_table(by_dimension)]
    if tuning is not None and tuned:
        tables += tuning_tables(tuned, by_dimension, tuning, draws)
    notes = [_told(d) for d in sets]
    if len(every) > 1:
        more, table = specificity(_under_each_mask(reader, every, others), every, others, draws)
        figures.update(more)
        tables.append(table)
    if tuple(every) == DIMENSIONS:
        more, both = types(_under_each_type(reader, every, blends, strength), every, blends, strength, draws)
        figures.update(more)
        tables += both
    else:
        notes.append("The sixteen types need all four dimensions and were left out.")
    if questionnaire and every:
        more, table = mbti_questionnaire.questionnaire(context, _by_pole(every), {**finder.key, **of_masks}, draws)
        figures.update(more)
        tables.append(table)
    settings: dict[str, Any] = {
        "dimensions": list(dimensions), "test": test, "others": others, "blends": blends, "random_seeds": random_seeds,
        "strength": strength, "questionnaire": questionnaire, "resamples": resamples, "limit": context.limit,
        "ceiling": None if of_ceiling is None else asdict(of_ceiling),
        "tuning": None if tuning is None else asdict(tuning), **finder.key,
    }  # fmt: skip
    return SuiteResult(
        "mbti", context.record(), dict(sorted(context.read.items())), settings, figures, tuple(tables), tuple(notes),
        context.seed, context.versions(),
    )  # fmt: skip


def _under_each_mask(reader: Reader, every: dict[str, Readings], couples: int) -> dict[tuple[str, str], Floats]:
    """Change over base of the first test answers of every dimension under every mask, by (mask's pole, dimension)."""
    shifts = {}
    for owner in every.values():
        for pole, letter in enumerate(owner.data.poles):
            for name, readings in every.items():
                few = 2 * len(readings.data.test[:couples])
                if readings is owner:  # read already
                    worn = readings.persona[pole][:few]
                else:
                    worn = reader.masked(f"mask {letter}", readings.data, owner.found.persona[pole], couples)
                shifts[letter, name] = worn - readings.base[:few]
    return shifts


def _under_each_type(
    reader: Reader, every: dict[str, Readings], couples: int, strength: float
) -> dict[tuple[str, str], Floats]:
    """Change over base of the first test answers of every dimension under every type's blend, by (type, dimension)."""
    poles = _by_pole(every)
    shifts = {}
    for kind in TYPES:
        blend = union([poles[letter] for letter in kind])
        for name, readings in every.items():
            few = 2 * len(readings.data.test[:couples])
            worn = reader.masked(f"type {kind}", readings.data, blend, couples, strength)
            shifts[kind, name] = worn - readings.base[:few]
    return shifts


def _by_pole(every: dict[str, Readings]) -> dict[str, Masks]:
    """The masks by letter, both poles of a dimension in turn."""
    return {letter: masks for r in every.values() for letter, masks in zip(r.data.poles, r.found.persona, strict=True)}


def _told(data: Dimension) -> str:
    kind = "paired by instruction" if data.paired else "unpaired"
    cut = sum(a.length > len(a.encoded.answer) for c in data.test for a in c) / max(2 * len(data.test), 1)
    return (
        f"{data.name}: {kind}; {len(data.calibration)} calibration and {len(data.test)} test answers a pole; "
        f"{cut:.0%} of the test answers were cut."
    )


def _check(dimensions: Sequence[str], instructions: str, strength: float, resamples: int, **numbers: int) -> None:
    unknown = sorted(set(dimensions) - set(DIMENSIONS))
    if unknown or not dimensions or len(set(dimensions)) < len(dimensions):
        raise OptionError(
            f"dimensions are {', '.join(dimensions) or 'none'}: choose from {', '.join(DIMENSIONS)}, once."
        )
    if instructions not in INSTRUCTIONS:
        raise OptionError(f"unknown instructions {instructions!r}: choose {', '.join(INSTRUCTIONS)}.")
    if not 0 < strength <= 1:
        raise OptionError(f"the strength of a blend is {strength}: it must lie above 0 and be at most 1.")
    for name, number in {**numbers, "resamples": resamples}.items():
        least = 2 if name == "rows" else 1
        if number < least:
            raise OptionError(f"{name} is {number}: it must be {least} or more.")
