from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from personae.errors import ModelError, PersonaInUseError
from personae.runtime import PersonaModel
from personae.runtime.guards import check_base, guard, is_guarded, unguard

OPERATIONS = {
    "state_dict": lambda m, d: m.state_dict(),
    "load_state_dict": lambda m, d: m.load_state_dict({}, strict=False),
    "save_pretrained": lambda m, d: m.save_pretrained(d),
    "deepcopy": lambda m, d: copy.deepcopy(m),
    "copy": lambda m, d: copy.copy(m),
    "to": lambda m, d: m.to(torch.bfloat16),
    "half": lambda m, d: m.half(),
    "float": lambda m, d: m.float(),
    "torch.save": lambda m, d: torch.save(m, io.BytesIO()),
    "pickle": lambda m, d: pickle.dumps(m),
    "old pickle": lambda m, d: pickle.dumps(m, protocol=0),
    "inner state_dict": lambda m, d: m.model.state_dict(),
    "inner deepcopy": lambda m, d: copy.deepcopy(m.model.layers[0]),
    "inner save": lambda m, d: torch.save(m.model, io.BytesIO()),
    "inner conversion": lambda m, d: m.model.layers[0].mlp.to(torch.float16),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_refused_while_worn_and_as_ever_without(actor, operation, tmp_path, snapshot, same) -> None:
    attributes = {name: dict(module.__dict__) for name, module in actor.model.named_modules()}
    base = snapshot(actor.model)
    actor.set_persona("a")
    worn = snapshot(actor.model)
    with pytest.raises(PersonaInUseError, match=r"disable_persona\(\) first"):
        operation(actor.model, tmp_path / "saved")
    assert same(snapshot(actor.model), worn)
    assert not (tmp_path / "saved").exists()

    actor.disable_persona()
    assert same(snapshot(actor.model), base)
    assert {name: dict(module.__dict__) for name, module in actor.model.named_modules()} == attributes
    operation(actor.model, tmp_path / "saved")


def test_a_copy_made_as_base_is_the_base(actor) -> None:
    actor.set_persona("a")
    actor.set_persona("b")
    actor.disable_persona()
    twin = copy.deepcopy(actor.model)
    for one, other in zip(twin.parameters(), actor.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not is_guarded(twin)


def test_a_method_of_the_instance_comes_back(actor) -> None:
    def own() -> str:
        return "mine"

    actor.model.state_dict = own
    guard(actor.model)
    assert is_guarded(actor.model)
    with pytest.raises(PersonaInUseError):
        actor.model.state_dict()
    unguard(actor.model)
    assert actor.model.state_dict is own


def test_one_wearer_at_a_time(actor, make_artefact, snapshot, same) -> None:
    other = PersonaModel(actor.model)
    other.add_personas(make_artefact(actor.model, "x"))
    actor.set_persona("a")
    worn = snapshot(actor.model)
    with pytest.raises(PersonaInUseError, match="another PersonaModel"):
        PersonaModel(actor.model)
    with pytest.raises(PersonaInUseError, match="another PersonaModel"):
        other.set_persona("x")
    assert other.active == {}
    assert same(snapshot(actor.model), worn)
    actor.disable_persona()
    other.set_persona("x")
    assert other.active == {"x": 1.0}


def test_a_model_that_drops_out_by_chance_is_not_read(tiny_model) -> None:
    model, _ = tiny_model("gpt2")
    check_base(model, "discovery")
    model.train()
    with pytest.raises(ModelError, match=r"attn_pdrop 0\.1.*call model\.eval\(\) first"):
        check_base(model, "discovery")
    check_base(model, "a masked checkpoint", reads=False)
    steady, _ = tiny_model("llama")  # nothing is dropped out
    check_base(steady.train(), "discovery")


def test_what_needs_base_weights_refuses_a_worn_model(actor) -> None:
    check_base(actor.model, "discovery")
    with actor.persona("a"), pytest.raises(PersonaInUseError, match="discovery needs the base weights"):
        check_base(actor.model, "discovery")
