"""The 60 items of the 16Personalities questionnaire under the masks of the eight poles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personae.evaluation.bootstrap import difference
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.mbti_masks import Masks
from personae.evaluation.suites.mbti_report import Draws, Figures
from personae.evaluation.suites.questionnaires import (
    AGREE_5,
    Inventory,
    InventoryItem,
    answer_items,
    keyed,
    read_16_personalities,
    trait_scores,
)
from personae.evaluation.suites.report import Cell, Table
from personae.runtime import wearing

Floats = NDArray[np.float64]

FILE = "incharacter/data/questionnaires/16Personalities.json"
SOURCE = "Neph0s/InCharacter (https://github.com/Neph0s/InCharacter)"


def questionnaire(
    context: SuiteContext, masks: Mapping[str, Masks], settings: Mapping[str, Any], draws: Draws
) -> tuple[Figures, Table]:
    """Scores of the bare model and under each pole's mask, towards the first letter of each dimension.

    masks: by letter of the pole, both poles of a dimension in turn, the first one first. settings: to know parts by.
    The figure '<DIM>.questionnaire' is the difference of a dimension's two masks on its own items.
    Errors: `DataError` for a missing or broken file.
    """
    inventory = aligned(read_16_personalities(context.file(FILE, SOURCE)))
    if context.limit is not None:
        inventory = few(inventory, context.limit)
    statements = [item.statement for item in inventory.items]
    worn: dict[str, Masks] = {"base": {}, **masks}
    expected = {
        name: np.array(
            context.part(
                f"mbti questionnaire {name}", {**settings, "statements": statements, "options": list(AGREE_5)},
                lambda: _expected(context, statements, worn[name], f"questionnaire, {name}"),  # noqa: B023  # run at once
            )
        )
        for name in worn
    }  # fmt: skip
    letters = list(masks)
    figures: Figures = {}
    for first, second in zip(letters[0::2], letters[1::2], strict=True):
        own = inventory.of(f"{first}/{second}")
        gap = (keyed(inventory, expected[p])[own] for p in (first, second))
        figures[f"{first}{second}.questionnaire"] = difference(*gap, resamples=draws.resamples, seed=draws.seed)
    return figures, _table(inventory, expected, figures, draws)


def aligned(inventory: Inventory) -> Inventory:
    """P/J turned into J/P: every dimension is scored towards the letter that this suite takes for positive."""
    items = [
        InventoryItem(item.statement, "J/P", -item.key) if item.trait == "P/J" else item for item in inventory.items
    ]
    return Inventory(inventory.name, tuple("J/P" if t == "P/J" else t for t in inventory.traits), tuple(items))


def few(inventory: Inventory, limit: int) -> Inventory:
    """The first `limit` items of every dimension."""
    kept: list[InventoryItem] = []
    for item in inventory.items:
        if sum(other.trait == item.trait for other in kept) < limit:
            kept.append(item)
    return Inventory(inventory.name, inventory.traits, tuple(kept))


def _expected(context: SuiteContext, statements: Sequence[str], masks: Masks, title: str) -> list[float]:
    with wearing(context.targets, masks):
        answers = answer_items(context.model, context.tokenizer, statements, AGREE_5, context.progress, title)
    found: list[float] = answers.expected.tolist()
    return found


def _table(inventory: Inventory, expected: Mapping[str, Floats], figures: Figures, draws: Draws) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, values in expected.items():
        scores = trait_scores(inventory, values, seed=draws.seed)
        rows.append((name, *(scores.get(t) for t in inventory.traits)))
    apart = (figures.get(f"{t[0]}{t[2]}.questionnaire") for t in inventory.traits)
    rows.append(("first mask minus second", *apart))
    return Table(
        "16Personalities, 60 items" if len(inventory.items) == 60 else f"16Personalities, {len(inventory.items)} items",
        ("mask", *inventory.traits),
        tuple(rows),
        notes=(
            "Mean expected agreement from -1 to 1, keyed towards the first letter, options listed in both orders; "
            "intervals over items. A model that agrees with everything scores "
            + ", ".join(f"{score:+.2f} on {trait}" for trait, score in inventory.always_agree().items())
            + ".",
        ),
    )
