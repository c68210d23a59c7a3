"""LoRA fine-tuning: the trained reference beside masks, which train nothing.

Low-rank updates (Hu et al. 2021, arXiv 2106.09685; the library `peft`) of every Linear and Conv1D target learn from the
same calibration pairs, either to write the pole's answers (SFT: minimise −mean log p(y_own|x)) or to prefer them (DPO,
Rafailov et al. 2023, arXiv 2305.18290: minimise −log σ(β[(log p − log p_base)(y_own) − (log p − log p_base)(y_rival)]),
summed log-probabilities). Then the update is scaled down until the capability budget is kept, as a mask is made smaller
and a steering vector shorter. The base weights are never written.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from personae.discovery import Calibration, GenericText, capability, largest_within, loss_bound_of
from personae.errors import DataError, OptionError
from personae.models import Question, Target, continuation_batches, score_continuations

OBJECTIVES = ("sft", "dpo")
STEPS = 100  # a scale is a whole number of hundredths


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an adapter is trained. rate: of AdamW, falling linearly to zero. pairs: read by one step of the
    optimizer. dpo_beta: β of DPO. The defaults are the usual ones of peft and the papers; none was tuned on test items.
    """

    rank: int = 16
    alpha: int = 32
    rate: float = 2e-4
    epochs: int = 2
    pairs: int = 16
    dpo_beta: float = 0.1
    batch_tokens: int = 512
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """One pole's adapter inside the wrapped model. scale: 1 is as trained. backwards: passes over the pairs it took."""

    name: str
    scale: float
    backwards: int


def check_finetune() -> None:
    """peft is installed. Errors: `OptionError`."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise OptionError('LoRA rows need the extra: pip install "personae[finetune]".') from error


@contextlib.contextmanager
def adapters_on(
    model: PreTrainedModel, targets: Sequence[Target], recipe: Recipe, names: Sequence[str]
) -> Iterator[Any]:
    """`model` with untrained adapters of these names in place, all switched off; taken out again in `finally`.

    Every module, every weight and every `requires_grad` is as before when the block ends. Errors: `OptionError`
    when peft is not installed.
    """
    check_finetune()
    from peft import LoraConfig, get_peft_model

    before = [(p, p.requires_grad) for p in model.parameters()]
    modules = sorted({t.module_name for t in targets if t.expert is None})
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules=modules, lora_dropout=0.0, bias="none",
    )  # fmt: skip
    wrapped: Any = None
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(recipe.seed)
            wrapped = get_peft_model(model, config, adapter_name=names[0])
            for name in names[1:]:
                wrapped.add_adapter(name, config)
        wrapped.base_model.disable_adapter_layers()
        yield wrapped
    finally:
        if wrapped is not None:
            wrapped.unload()
        for parameter, required in before:
            parameter.requires_grad_(required)


def train(
    wrapped: Any,
    name: str,
    calibration: Calibration,
    *,
    pole: int,
    objective: str,
    recipe: Recipe,
    tick: Callable[[int], None] | None = None,
) -> Trained:
    """Train one adapter on one pole's answers; the others, and the base weights, stay as they are.

    Errors: `DataError` for DPO on unpaired data; `OptionError` for an unknown objective.
    """
    if objective not in OBJECTIVES:
        raise OptionError(f"unknown objective {objective!r}: choose {', '.join(OBJECTIVES)}.")
    if objective == "dpo" and not calibration.paired:
        raise DataError("DPO compares two answers to one question; these data are unpaired.")
    model = wrapped.get_base_model()
    questions = _questions(calibration, pole, objective)
    reference: list[list[float]] = [[] for _ in questions]
    if objective == "dpo":  # SFT is compared with nothing, and a pass over all pairs is not free
        reference = [[float(a.sum()) for a in answers] for answers in score_continuations(model, questions)]
    chance = random.Random(recipe.seed)
    order = [i for _ in range(recipe.epochs) for i in chance.sample(range(len(questions)), len(questions))]
    steps = math.ceil(len(order) / recipe.pairs)
    with _learning(wrapped, name) as parameters:
        optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=0.0)
        for step in range(steps):
            chosen = order[step * recipe.pairs : (step + 1) * recipe.pairs]
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * (1 - step / steps)
            optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                batches = continuation_batches(model, [questions[i] for i in chosen], batch_tokens=recipe.batch_tokens)
                for items, scores in batches:
                    total = torch.zeros((), device=model.device)
                    for item, answers in zip(items, scores, strict=True):
                        total = total + _loss(answers, reference[chosen[item]], objective, recipe.dpo_beta)
                    (total / len(chosen)).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if tick:
                tick(len(chosen))
    return Trained(name, 1.0, recipe.epochs)


def _questions(calibration: Calibration, pole: int, objective: str) -> list[Question]:
    """SFT reads the pole's own answers alone; DPO both, the pole's own first."""
    if objective == "sft":
        own = (calibration.positive, calibration.negative)[pole]
        return [Question(e.prompt, (e.answer,)) for e in own]
    return [Question(q.prompt, q.answers if pole == 0 else q.answers[::-1]) for q in calibration.paired]


def _loss(answers: Sequence[torch.Tensor], reference: Sequence[float], objective: str, beta: float) -> torch.Tensor:
    if objective == "sft":
        return -answers[0].mean()
    own, rival = (a.sum() - r for a, r in zip(answers, reference, strict=True))
    return -torch.nn.functional.logsigmoid(beta * (own - rival))


@contextlib.contextmanager
def _learning(wrapped: Any, name: str) -> Iterator[list[torch.nn.Parameter]]:
    """One adapter on, at its full scale, and its parameters alone learn."""
    layers = _layers(wrapped)
    parameters = [
        p for layer in layers for side in ("lora_A", "lora_B") for p in getattr(layer, side)[name].parameters()
    ]
    try:
        wrapped.base_model.enable_adapter_layers()
        wrapped.set_adapter(name)
        for layer in layers:
            layer.set_scale(name, 1.0)
        for parameter in wrapped.parameters():
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield parameters
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
        wrapped.base_model.disable_adapter_layers()


@contextlib.contextmanager
def adapted(wrapped: Any, adapter: Trained) -> Iterator[None]:
    """The model under one adapter at its scale."""
    try:
        wrapped.base_model.enable_adapter_layers()
        wrapped.set_adapter(adapter.name, inference_mode=True)
        for layer in _layers(wrapped):
            layer.set_scale(adapter.name, adapter.scale)
        yield
    finally:
        wrapped.base_model.disable_adapter_layers()


def _layers(wrapped: Any) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [m for m in wrapped.modules() if isinstance(m, LoraLayer)]


def within_budget(wrapped: Any, adapter: Trained, text: GenericText, budget: float) -> Trained:
    """The adapter at the largest scale, in hundredths up to 1, that keeps the budget by its bound."""
    model = wrapped.get_base_model()
    base = capability(model, text)

    def bound(steps: int) -> float:
        with adapted(wrapped, Trained(adapter.name, steps / STEPS, adapter.backwards)):
            return loss_bound_of(model, text, base, budget)

    steps, _ = largest_within(bound, STEPS, budget, start=STEPS)
    return Trained(adapter.name, steps / STEPS, adapter.backwards)
