from __future__ import annotations

import copy
import random
import threading
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from personae.errors import MaskMismatchError, ModelError, OptionError, PersonaInUseError, UnknownPersonaError
from personae.models import find_targets
from personae.runtime import PersonaModel, dressing
from personae.subnetwork import Artefact, Mask, Provenance, Subnetwork

IDS = torch.tensor([[5, 9, 60, 200, 31]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


# -------------------------------------------------------------- bit for bit


@pytest.mark.parametrize(
    ("name", "dtype", "switches"),
    [
        ("llama", torch.float32, 1000), ("llama", torch.bfloat16, 1000), ("llama", torch.float16, 1000),
        ("gpt2", torch.float32, 100), ("gpt2", torch.bfloat16, 100), ("gpt2", torch.float16, 100),
        ("mixtral", torch.float32, 100), ("mixtral", torch.bfloat16, 100), ("mixtral", torch.float16, 100),
    ],
)  # fmt: skip
def test_random_switches_restore_bit_for_bit(
    tiny_model, make_artefact, make_subnetwork, snapshot, same, name, dtype, switches
) -> None:
    """Switches, blends, strengths, blocks within blocks and errors; the same state always has the same bits."""
    model, _ = tiny_model(name, dtype=dtype)
    with torch.no_grad():  # bits that arithmetic would not keep
        for target in find_targets(model)[:3]:
            target.weight[0, :3] = torch.tensor([-0.0, float("nan"), float("inf")], dtype=dtype)
    actor = PersonaModel(model)
    actor.add_personas(make_artefact(model, "a", "b", "c"))
    actor.add_personas(make_subnetwork(find_targets(model), "dense", share=0.5))
    names = (*"abc", "dense")
    base, chance, seen = snapshot(model), random.Random(name), {}

    def wish() -> dict[str, float]:
        if chance.random() < 0.5:
            return {chance.choice(names): chance.choice([0.0, 0.3, 1.0, 1.7])}
        return {n: chance.choice([0.0, 0.3, 0.5, 1.0]) for n in chance.sample(names, chance.choice([2, 3]))}

    def check() -> None:
        state = tuple(sorted(actor.active.items()))
        bits = snapshot(model)
        assert same(seen.setdefault(state, bits), bits), state
        assert same(bits, base) == (state == ())

    def act(depth: int) -> None:
        choice = chance.random()
        if choice < 0.15:
            actor.disable_persona()
        elif choice < 0.3 and depth < 3:
            before = actor.active
            with actor.persona(wish()):
                act(depth + 1)
            assert actor.active == before
        elif choice < 0.4:
            before = actor.active
            with pytest.raises((OptionError, UnknownPersonaError)):
                actor.set_persona(chance.choice([{"x": 1.0}, {"a": -1.0}, {"a": 1.5, "b": 1.0}, {}]))
            assert actor.active == before
        else:
            actor.set_persona(wish())

    for step in range(switches):
        act(0)
        if step % (switches // 50) == 0:
            check()
    check()
    assert len(seen) > 5
    actor.disable_persona()
    assert same(snapshot(model), base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_those_of_a_dense_oracle(tiny_model, architecture, dtype, make_artefact, dense_gate) -> None:
    model, _ = tiny_model(architecture, dtype=dtype)
    artefact = make_artefact(model, "a", "b", "c")
    oracle = copy.deepcopy(model)
    base = {t.name: t.weight.clone() for t in find_targets(oracle)}
    actor = PersonaModel(model)
    actor.add_personas(artefact)
    plain = logits(model)
    for blend in ({"a": 1.0}, {"b": 1.6}, {"a": 0.7, "b": 0.3}, {"a": 0.8, "b": 0.5, "c": 0.25}):
        for target in find_targets(oracle):
            gate = dense_gate(target, {n: (artefact[n], s) for n, s in blend.items()})
            target.weight.copy_((base[target.name].float() * gate).to(dtype))
        actor.set_persona(blend)
        torch.testing.assert_close(logits(model), logits(oracle), rtol=0, atol=1e-6)
        assert not torch.equal(logits(model), plain)
    actor.disable_persona()
    assert torch.equal(logits(model), plain)


# --------------------------------------------------------------- switching


def test_active_and_nesting(actor) -> None:
    assert actor.active == {}
    actor.set_persona("a")
    with actor.persona({"a": 0.5, "b": 0.5, "c": 0}) as same_actor:
        assert same_actor is actor
        assert actor.active == {"a": 0.5, "b": 0.5}
        with actor.persona("c", 1.5):
            assert actor.active == {"c": 1.5}
            actor.disable_persona()
        assert actor.active == {"a": 0.5, "b": 0.5}
    assert actor.active == {"a": 1.0}
    with pytest.raises(RuntimeError, match="inside"), actor.persona("b"):
        raise RuntimeError("inside")
    assert actor.active == {"a": 1.0}
    actor.active.clear()
    assert actor.active == {"a": 1.0}
    actor.set_persona("b", 0)
    assert actor.active == {}


@pytest.mark.parametrize(
    ("wish", "strength", "error"),
    [
        ("nobody", 1.0, UnknownPersonaError), ({"a": 0.5, "nobody": 0.0}, 1.0, UnknownPersonaError),
        ({}, 1.0, OptionError), ("b", -0.5, OptionError), ("b", float("nan"), OptionError),
        ({"a": 1.2, "b": 0.1}, 1.0, OptionError), ({"b": 0.5}, 0.5, OptionError),
    ],
)  # fmt: skip
def test_errors_leave_what_was_worn(actor, snapshot, same, wish, strength, error) -> None:
    actor.set_persona("a", 0.5)
    worn = snapshot(actor.model)
    with pytest.raises(error):
        actor.set_persona(wish, strength)
    with pytest.raises(error), actor.persona(wish, strength):
        pass
    assert actor.active == {"a": 0.5}
    assert same(snapshot(actor.model), worn)


def test_a_failure_while_switching_goes_back(actor, snapshot, same, monkeypatch) -> None:
    actor.set_persona("a", 0.5)
    worn, calls = snapshot(actor.model), []

    def failing(patches, undo):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError("no room")
        return real(patches, undo)

    real = dressing.put_on
    monkeypatch.setattr(dressing, "put_on", failing)
    with pytest.raises(MemoryError):
        actor.set_persona("b")
    assert actor.active == {"a": 0.5}
    assert same(snapshot(actor.model), worn)
    with pytest.raises(PersonaInUseError):
        actor.model.state_dict()


def test_an_interruption_right_behind_a_switch_goes_back(actor, snapshot, same, monkeypatch, tmp_path) -> None:
    actor.set_persona("a", 0.5)
    worn, wear, used, calls = snapshot(actor.model), dressing.Dressing.wear, actor._wardrobe.used, []

    def once(real, *arguments):
        real(*arguments)
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    def check() -> None:
        assert calls
        assert actor.active == {"a": 0.5}
        assert same(snapshot(actor.model), worn)
        calls.clear()

    with monkeypatch.context() as patched:
        patched.setattr(actor._wardrobe, "used", lambda names: once(used, names))
        with pytest.raises(KeyboardInterrupt):
            actor.set_persona("b")
        check()
    monkeypatch.setattr(dressing.Dressing, "wear", lambda *arguments: once(wear, *arguments))
    with pytest.raises(KeyboardInterrupt), actor.persona("b"):
        raise AssertionError("the block is entered")
    check()
    with pytest.raises(KeyboardInterrupt):
        actor.save_pretrained(tmp_path)
    check()
    actor.remove_persona("b")  # nothing holds on to it


def test_a_failure_of_going_back_too_ends_at_the_base(actor, snapshot, same, monkeypatch) -> None:
    base = snapshot(actor.model)
    actor.set_persona("a")

    def failing(patches, undo):
        raise MemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(dressing, "put_on", failing)
        with pytest.raises(MemoryError):
            actor.set_persona("b")
    assert actor.active == {}
    assert same(snapshot(actor.model), base)
    actor.model.state_dict()
    actor.set_persona("b")


def test_switching_passes_through_the_base_bits(actor, snapshot, same) -> None:
    actor.set_persona("b")
    direct = snapshot(actor.model)
    actor.set_persona("a")
    actor.set_persona("b")
    assert same(snapshot(actor.model), direct)


def test_replaced_parameters_are_noticed(actor) -> None:
    state = {name: tensor.clone() for name, tensor in actor.model.state_dict().items()}
    actor.model.load_state_dict(state, assign=True)
    with pytest.raises(ModelError, match="replaced"):
        actor.set_persona("a")
    assert actor.active == {}


# ------------------------------------------------------------------- adding


def test_add_from_a_file_an_artefact_or_a_subnetwork(tiny_model, make_artefact, make_subnetwork, tmp_path) -> None:
    model, _ = tiny_model("llama")
    targets = find_targets(model)
    make_artefact(model, "a", "b").save(tmp_path / "ab.persona")
    actor = PersonaModel(model, targets=targets)
    assert actor.add_personas(tmp_path / "ab.persona", names=["b"]) == ("b",)
    assert actor.add_personas(make_artefact(model, "c", "d")) == ("c", "d")
    assert actor.add_personas(make_subnetwork(targets, "e")) == ("e",)
    assert actor.personas == ("b", "c", "d", "e")
    assert actor.memory().keys() == {"b", "c", "d", "e"}
    actor.remove_persona("c")
    assert actor.personas == ("b", "d", "e")
    with pytest.raises(UnknownPersonaError):
        actor.remove_persona("c")
    with pytest.raises(OptionError, match="'d' has been added already"):
        actor.add_personas(make_artefact(model, "new", "d"))
    assert actor.personas == ("b", "d", "e")


def test_adding_while_worn_compares_the_base_weights(actor, make_artefact, snapshot, same) -> None:
    artefact = make_artefact(actor.model, "d")
    actor._fingerprints.clear()  # computed anew, while 'a' is worn
    actor.set_persona("a")
    worn = snapshot(actor.model)
    actor.add_personas(artefact)
    assert actor.active == {"a": 1.0}
    assert same(snapshot(actor.model), worn)


def test_other_weights_are_refused_unless_allowed(tiny_model, make_artefact) -> None:
    artefact = make_artefact(tiny_model("llama", seed=1)[0], "a")
    actor = PersonaModel(tiny_model("llama", seed=2)[0])
    with pytest.raises(MaskMismatchError, match=r"other weights.*--allow-other-weights"):
        actor.add_personas(artefact)
    assert actor.personas == ()
    with pytest.warns(UserWarning, match="other weights") as caught:
        actor.add_personas(artefact, allow_other_weights=True)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PersonaModel(tiny_model("llama", seed=1)[0]).add_personas(artefact, allow_other_weights=True)


def test_the_same_checkpoint_in_another_dtype_is_the_same_model(tiny_model, make_artefact) -> None:
    artefact = make_artefact(tiny_model("llama")[0], "a")
    assert PersonaModel(tiny_model("llama", dtype=torch.bfloat16)[0]).add_personas(artefact) == ("a",)


def test_another_models_masks_are_refused(tiny_model, make_artefact) -> None:
    llama, gpt2 = tiny_model("llama")[0], tiny_model("gpt2")[0]
    with pytest.raises(MaskMismatchError, match="no such target"):
        PersonaModel(gpt2).add_personas(make_artefact(llama, "a"), allow_other_weights=True)
    wide = tiny_model("llama", intermediate_size=64)[0]
    with pytest.raises(MaskMismatchError, match=r"shape"):
        PersonaModel(wide).add_personas(make_artefact(llama, "a"), allow_other_weights=True)


def test_a_model_with_targets_more_or_otherwise_shaped_is_another(tiny_model, make_artefact) -> None:
    model = tiny_model("llama")[0]
    whole = make_artefact(model, "a")
    first = find_targets(model)[0]
    only_first = {"a": Subnetwork("a", {first.name: Mask.full(first.shape)}, Provenance(method="x", sparsity=0))}
    missing = Artefact(whole.model, only_first)
    with pytest.raises(MaskMismatchError, match="is not a target of this model"):
        PersonaModel(model, targets=[first]).add_personas(missing)
    shapes = {**whole.model.targets, find_targets(model)[1].name: (1, 1)}
    with pytest.raises(MaskMismatchError, match="has shape"):
        PersonaModel(model).add_personas(Artefact(whole.model.model_copy(update={"targets": shapes}), only_first))


def test_least_recently_used_personas_are_evicted(tiny_model, make_artefact) -> None:
    model = tiny_model("llama")[0]
    fourth, fifth = make_artefact(model, "d"), make_artefact(model, "e")
    actor = PersonaModel(model, max_personas=3)
    actor.add_personas(make_artefact(model, "a", "b", "c"))
    actor.set_persona("a")
    actor.set_persona("c")
    actor.add_personas(fourth)
    assert actor.personas == ("a", "c", "d")
    with actor.persona({"a": 0.5, "d": 0.5}):  # 'c' will be put on again
        with pytest.raises(PersonaInUseError, match="leaves no room"):
            actor.add_personas(fifth)
        for needed in ("a", "c", "d"):
            with pytest.raises(PersonaInUseError, match="is worn"):
                actor.remove_persona(needed)
    assert actor.active == {"c": 1.0}
    with pytest.raises(UnknownPersonaError, match="evicted"):
        actor.set_persona("b")


def test_a_persona_that_drops_nothing(tiny_model) -> None:
    model = tiny_model("llama")[0]
    actor = PersonaModel(model)
    targets = find_targets(model)
    actor.add_personas(
        Subnetwork("full", {t.name: Mask.full(t.shape) for t in targets}, Provenance(method="x", sparsity=0))
    )
    plain = logits(model)
    actor.set_persona("full")
    assert actor.active == {"full": 1.0}
    assert torch.equal(logits(model), plain)


# -------------------------------------------------------- moving and saving


def test_to_moves_the_base_and_puts_the_persona_on_again(actor, tiny_model, make_artefact, snapshot, same) -> None:
    twin = PersonaModel(tiny_model("llama", dtype=torch.bfloat16)[0])
    artefact = make_artefact(tiny_model("llama")[0], "a", "b", "c")
    twin.add_personas(artefact)
    twin.set_persona({"a": 0.5, "b": 0.25})
    actor.set_persona({"a": 0.5, "b": 0.25})
    assert actor.to(torch.bfloat16) is actor
    assert actor.active == {"a": 0.5, "b": 0.25}
    assert same(snapshot(actor.model), snapshot(twin.model))
    actor.disable_persona()
    twin.disable_persona()
    assert same(snapshot(actor.model), snapshot(twin.model))


def test_to_that_fails_leaves_the_persona_on(actor, snapshot, same) -> None:
    actor.set_persona("a")
    worn = snapshot(actor.model)
    with pytest.raises(RuntimeError):
        actor.to("no-such-device")
    assert actor.active == {"a": 1.0}
    assert same(snapshot(actor.model), worn)


def test_save_pretrained_saves_the_base(actor, tmp_path, snapshot, same) -> None:
    base = snapshot(actor.model)
    actor.set_persona("a")
    actor.save_pretrained(tmp_path)
    assert actor.active == {"a": 1.0}
    assert same(snapshot(AutoModelForCausalLM.from_pretrained(tmp_path)), base)
    assert (tmp_path / "tokenizer.json").is_file()


def test_save_pretrained_without_a_tokenizer(tiny_model, tmp_path) -> None:
    PersonaModel(tiny_model("llama")[0]).save_pretrained(tmp_path)
    assert (tmp_path / "config.json").is_file()
    assert not (tmp_path / "tokenizer.json").exists()


# ----------------------------------------------------------------- generate


def test_generate_runs_under_what_is_worn_and_refuses_caches(actor) -> None:
    plain = actor.generate(IDS, max_new_tokens=6, do_sample=False)
    with actor.persona("a"):
        worn = actor.generate(IDS, max_new_tokens=6, do_sample=False)
        assert torch.equal(worn, actor.model.generate(IDS, max_new_tokens=6, do_sample=False))
    assert not torch.equal(plain, worn)
    with torch.no_grad():
        cache = actor.model(input_ids=IDS, use_cache=True).past_key_values
    with pytest.raises(OptionError, match="past_key_values"):
        actor.generate(IDS, past_key_values=cache)


def test_switching_from_inside_a_generation_is_refused(actor) -> None:
    def switch(ids, scores):
        actor.set_persona("b")
        return scores

    with pytest.raises(PersonaInUseError):
        actor.generate(IDS, max_new_tokens=3, logits_processor=[switch])
    actor.set_persona("b")


# ------------------------------------------------------------------ threads


def test_threads_that_switch_and_generate_never_mix(actor) -> None:
    def say() -> str:
        return actor.chat("What would you do?", max_new_tokens=8)

    expected = {}
    for name in "abc":
        with actor.persona(name):
            expected[name] = say()
    assert len(set(expected.values())) > 1
    wrong: list[str] = []

    def play(seed: int) -> None:
        chance = np.random.default_rng(seed)
        for _ in range(6):
            name = "abc"[chance.integers(3)]
            with actor.persona(name):
                if say() != expected[name]:
                    wrong.append(name)

    threads = [threading.Thread(target=play, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert actor.active == {}


def test_a_block_left_in_another_thread_restores_and_frees(actor) -> None:
    block = actor.persona("a")
    block.__enter__()
    thread = threading.Thread(target=lambda: block.__exit__(None, None, None))
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert actor.active == {}
    done = threading.Event()
    threading.Thread(target=lambda: (actor.set_persona("b"), done.set()), daemon=True).start()
    assert done.wait(60)


# -------------------------------------------------------- the default model


def test_the_default_model_comes_back_bit_for_bit(default_model, make_artefact, snapshot, same) -> None:
    model, tokenizer = default_model
    actor = PersonaModel(model, tokenizer)
    actor.add_personas(make_artefact(model, "a", "b", share=0.002))
    base = snapshot(model)
    for wish in ("a", {"a": 0.5, "b": 0.5}, "b"):
        actor.set_persona(wish)
        assert not same(snapshot(model), base)
    actor.disable_persona()
    assert same(snapshot(model), base)
