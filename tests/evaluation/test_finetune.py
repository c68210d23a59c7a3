"""LoRA: it learns what it is asked to, keeps its budget, and leaves the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from discovery_data import bits, random_questions, same_bits, small_generic
from personae.discovery import Calibration, capability, margin, mean_log_probabilities
from personae.errors import DataError, OptionError
from personae.evaluation import finetune
from personae.evaluation.finetune import Recipe, Trained, adapted, adapters_on, train, within_budget
from personae.models import Encoded, answer_nll, find_targets, score_continuations

RECIPE = Recipe(rank=4, rate=0.02, epochs=8, pairs=4)


@pytest.fixture
def items() -> Calibration:
    questions = tuple(random_questions(8))
    positive, negative = (tuple(Encoded(q.prompt, q.answers[side]) for q in questions) for side in (0, 1))
    return Calibration(questions, positive, negative)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_the_model_is_left_as_it_was(tiny_model: Any, items: Calibration, name: str) -> None:
    model, _ = tiny_model(name)
    targets = find_targets(model)
    before, modules = bits(model), [(n, id(m)) for n, m in model.named_modules()]
    flags = [p.requires_grad for p in model.parameters()]
    plain = mean_log_probabilities(model, items)
    with adapters_on(model, targets, RECIPE, ("one", "two")) as wrapped:
        assert torch.equal(mean_log_probabilities(model, items), plain)  # all off
        trained = train(wrapped, "one", items, pole=0, objective="sft", recipe=RECIPE)
        assert torch.equal(mean_log_probabilities(model, items), plain)
        with adapted(wrapped, trained):
            assert not torch.equal(mean_log_probabilities(model, items), plain)
    assert same_bits(model, before)
    assert [(n, id(m)) for n, m in model.named_modules()] == modules
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(mean_log_probabilities(model, items), plain)
    with pytest.raises(RuntimeError, match="mid-training"), adapters_on(model, targets, RECIPE, ("one",)):
        raise RuntimeError("mid-training")
    assert [(n, id(m)) for n, m in model.named_modules()] == modules


@pytest.mark.parametrize(("objective", "passes"), [("sft", 0), ("dpo", 1)])
def test_only_dpo_reads_the_base_model(
    tiny_model: Any, items: Calibration, objective: str, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = tiny_model("llama")
    calls: list[int] = []

    def counted(model: Any, questions: Any) -> Any:
        calls.append(len(questions))
        return score_continuations(model, questions)

    monkeypatch.setattr(finetune, "score_continuations", counted)
    with adapters_on(model, find_targets(model), RECIPE, ("one",)) as wrapped:
        train(wrapped, "one", items, pole=0, objective=objective, recipe=RECIPE)
    assert len(calls) == passes


@pytest.mark.parametrize("pole", [0, 1])
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_it_learns_its_pole(tiny_model: Any, items: Calibration, objective: str, pole: int) -> None:
    model, _ = tiny_model("llama")
    ticks: list[int] = []
    own = (items.positive, items.negative)[pole]
    before, (_, start) = answer_nll(model, own)[:, 0].sum(), margin(mean_log_probabilities(model, items))
    with adapters_on(model, find_targets(model), RECIPE, ("one",)) as wrapped:
        trained = train(wrapped, "one", items, pole=pole, objective=objective, recipe=RECIPE, tick=ticks.append)
        with adapted(wrapped, trained):
            after, (_, end) = answer_nll(model, own)[:, 0].sum(), margin(mean_log_probabilities(model, items))
    assert sum(ticks) == RECIPE.epochs * 8
    if objective == "sft":
        assert after < 0.8 * before
    assert (end - start) * (1 if pole == 0 else -1) > 0.5


def test_the_same_seed_gives_the_same_adapter(tiny_model: Any, items: Calibration) -> None:
    readings = []
    for _ in range(2):
        model, _ = tiny_model("llama")
        with adapters_on(model, find_targets(model), RECIPE, ("one",)) as wrapped:
            trained = train(wrapped, "one", items, pole=0, objective="dpo", recipe=RECIPE)
            with adapted(wrapped, trained):
                readings.append(mean_log_probabilities(model, items))
    assert torch.equal(*readings)


def test_the_scale_keeps_the_budget(tiny_model: Any, items: Calibration) -> None:
    model, _ = tiny_model("llama")
    text = small_generic()
    base = capability(model, text)
    with adapters_on(model, find_targets(model), RECIPE, ("one",)) as wrapped:
        whole = train(wrapped, "one", items, pole=0, objective="sft", recipe=RECIPE)
        with adapted(wrapped, whole):
            full = capability(model, text).loss_bound(base)
        kept = within_budget(wrapped, whole, text, full / 4)
        assert 0 < kept.scale < 1
        with adapted(wrapped, kept):
            assert capability(model, text).loss_bound(base) <= full / 4
        with adapted(wrapped, Trained("one", 0.0, 1)):
            assert capability(model, text).loss(base) == 0.0
        assert within_budget(wrapped, whole, text, 2 * abs(full)).scale == 1.0


def test_what_it_refuses(tiny_model: Any, items: Calibration) -> None:
    model, _ = tiny_model("llama")
    with adapters_on(model, find_targets(model), RECIPE, ("one",)) as wrapped:
        with pytest.raises(OptionError, match="choose sft, dpo"):
            train(wrapped, "one", items, pole=0, objective="rlhf", recipe=RECIPE)
        with pytest.raises(DataError, match="unpaired"):
            train(
                wrapped, "one", Calibration((), items.positive, items.negative), pole=0, objective="dpo", recipe=RECIPE
            )
