"""What else could make the model answer like the persona: rows to set beside the masks.

Each is real and gets the same calibration items, the same budget where it has a strength to choose, and the same test
items. Steering chooses its block on the same dev items; adapters are trained by one recipe, and only their scale is
searched. docs/methods.md section 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from transformers import PreTrainedTokenizerBase

from personae.discovery import DEFAULT_BUDGET, metered
from personae.errors import DataError
from personae.evaluation.bench import Bench
from personae.evaluation.conditions import Condition
from personae.evaluation.finetune import OBJECTIVES, Recipe, adapted, adapters_on, train, within_budget
from personae.evaluation.poles import Poles, budget_of
from personae.evaluation.retrieval import SHOTS, with_examples
from personae.evaluation.scoring import encode_items, extra_tokens
from personae.evaluation.shared import Shared
from personae.evaluation.steering import choose_steering, mean_differences, middle_blocks, steered
from personae.personas import Contrast
from personae.runtime import wearing

RIVALS = ("mask + prompt", "retrieval", "steering", "lora-sft", "lora-dpo")


def rival_conditions(
    bench: Bench,
    shared: Shared,
    tokenizer: PreTrainedTokenizerBase,
    test: Contrast,
    rivals: Sequence[str],
    *,
    poles: Poles | None,
    measured: float | None,
) -> list[Condition]:
    """The rows asked for, in the order of RIVALS. poles, measured: the first persona row's masks and its loss."""
    found: list[Condition] = []
    if "mask + prompt" in rivals:
        check_prompted(test, masks=poles is not None)
        assert poles is not None
        found.append(masked_and_prompted(bench, tokenizer, test, poles))
    if "retrieval" in rivals:
        found.append(retrieval(bench, shared, tokenizer, test))
    budget = DEFAULT_BUDGET if poles is None else budget_of(poles, measured)
    if "steering" in rivals:
        found.append(steering(bench, shared, budget))
    for objective in OBJECTIVES:
        if f"lora-{objective}" in rivals:
            found.append(finetuned(bench, shared, objective, budget))
    return found


def check_prompted(test: Contrast, *, masks: bool) -> None:
    """The row 'mask + prompt' has masks and prompts. Errors: `DataError`."""
    if not masks:
        raise DataError("the row 'mask + prompt' needs a persona: give an artefact, or --method.")
    if not (test.positive_prompt and test.negative_prompt):
        raise DataError(f"'{test.name}' has no system prompts, so there is no row 'mask + prompt'.")


def masked_and_prompted(bench: Bench, tokenizer: PreTrainedTokenizerBase, test: Contrast, poles: Poles) -> Condition:
    """Each pole's mask together with its system prompt."""
    prompts = (test.positive_prompt, test.negative_prompt)
    asked = [encode_items(bench.model, tokenizer, test, prompt) for prompt in prompts]
    sides = []
    for masks, items in zip(poles.masks, asked, strict=True):
        with wearing(bench.targets, masks):
            sides.append(bench.scores("mask + prompt", items))
    return Condition(
        "mask + prompt", "rival", [(sides[0], sides[1])], bench.sparsities(poles.masks), None, poles.seconds,
        poles.cost, extra_prompt_tokens=extra_tokens(bench.items, asked),
        note=f"the masks of {poles.name} and the system prompts; no capability loss is measured",
    )  # fmt: skip


def retrieval(bench: Bench, shared: Shared, tokenizer: PreTrainedTokenizerBase, test: Contrast) -> Condition:
    """The nearest calibration items as earlier turns."""
    with metered(bench.model.device) as cost:
        asked = with_examples(bench.model, tokenizer, test, shared.calibration)
    sides = tuple(bench.scores(f"retrieval, {side} pole", items) for side, items in zip(("+", "-"), asked, strict=True))
    return Condition(
        "retrieval", "rival", [(sides[0], sides[1])], seconds=cost.seconds, peak_bytes=cost.peak_bytes,
        extra_prompt_tokens=extra_tokens(bench.items, asked),
        note=f"the {SHOTS} nearest calibration items by BM25 as earlier turns; no capability loss is measured",
    )  # fmt: skip


def steering(bench: Bench, shared: Shared, budget: float) -> Condition:
    """Mean-difference steering, block and coefficient chosen on dev within the budget."""
    session = shared.session
    text = session.generic.held_out.read
    chosen = []
    with metered(bench.model.device) as cost:
        with bench.progress("steering vectors", len(session.calibration.positive) * 2) as tick:
            vectors = mean_differences(bench.model, session.calibration, tick=tick)
        for side, sign in (("+", 1), ("-", -1)):
            with bench.progress(f"steering, {side} pole: blocks", len(middle_blocks(vectors))) as tick:
                chosen.append(
                    choose_steering(bench.model, vectors, text, shared.dev, sign=sign, budget=budget, tick=tick)
                )
    sides, loss = bench.both_under("steering", [partial(steered, bench.model, c) for c in chosen])
    where = ", ".join(f"block {c.block} × {c.coefficient:+.2f}" for c in chosen)
    return Condition(
        "steering", "rival", [sides], loss=loss, seconds=cost.seconds, cost="forward-only", peak_bytes=cost.peak_bytes,
        note=f"mean-difference vector: {where}; searched within {budget:.3g} nats a token",
    )  # fmt: skip


def finetuned(bench: Bench, shared: Shared, objective: str, budget: float, recipe: Recipe | None = None) -> Condition:
    """LoRA trained on the calibration pairs of each pole, scaled down to the budget."""
    recipe = recipe or Recipe()
    name, session = f"lora-{objective}", shared.session
    text = session.generic.held_out.read
    with adapters_on(bench.model, bench.targets, recipe, ("positive", "negative")) as wrapped:
        adapters = []
        with metered(bench.model.device) as cost:
            for pole, side in enumerate(("positive", "negative")):
                rows = (session.calibration.positive, session.calibration.negative)[pole]
                with bench.progress(f"{name}, {side} pole", recipe.epochs * len(rows)) as tick:
                    trained = train(
                        wrapped, side, session.calibration, pole=pole, objective=objective, recipe=recipe, tick=tick
                    )
                adapters.append(within_budget(wrapped, trained, text, budget))
        sides, loss = bench.both_under(name, [partial(adapted, wrapped, adapter) for adapter in adapters])
    scales = " and ".join(f"{adapter.scale:.2f}" for adapter in adapters)
    return Condition(
        name, "rival", [sides], loss=loss, seconds=cost.seconds,
        cost=f"{recipe.epochs} backward passes a pole", peak_bytes=cost.peak_bytes,
        note=f"rank {recipe.rank}, {recipe.epochs} epochs, scaled by {scales} to keep {budget:.3g} nats a token",
    )  # fmt: skip
