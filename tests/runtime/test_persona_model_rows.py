"""Mixed batches: every row gets what it would get with its persona put on alone."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from personae.errors import MaskMismatchError, OptionError, PersonaInUseError, UnknownPersonaError
from personae.models import find_targets
from personae.runtime import PersonaModel
from personae.runtime.costs import Costs
from personae.runtime.look import BASE, Look
from personae.runtime.rows import in_use
from personae.subnetwork import Mask, Provenance, Subnetwork

ALWAYS = Costs(dense=1.0, sparse=0.0, call=0.0, share=float("inf"))  # whatever can be mixed is
NAMES = tuple(f"p{number}" for number in range(8))
PROMPTS = (
    "A free Saturday?", "Would you lead the team? Why", "Tea", "I would stay at home with a book and", "Who?",
    "Questions are short, answers are longer", "Yes, I would.", "Call my friends and go dancing until late, or not?",
    "The user asks", "Nothing planned", "No, thank you. I would rather",
)  # fmt: skip
CLOSE = 1e-3  # of logits whose spread is about 10


def subnetworks(model) -> list[Subnetwork]:
    """Eight personas of single weights, whole rows, whole columns, or all of it, on all that is not an expert."""
    found = []
    for number, name in enumerate(NAMES):
        masks = {}
        for target in find_targets(model):
            random = np.random.default_rng([number, *target.name.encode()])
            if target.expert is not None or random.random() < 0.2:
                continue
            dropped = random.random(target.shape) < (0, 0.1, 0.02, 0.2)[number % 4]
            if number % 4 in (0, 3):
                dropped[random.random(target.shape[0]) < 0.1] = True
                dropped[:, random.random(target.shape[1]) < 0.1] = True
            masks[target.name] = Mask.from_dropped(dropped)
        found.append(Subnetwork(name, masks, Provenance(method="random", sparsity=0.1)))
    return found


def mixing_actor(model, tokenizer=None) -> PersonaModel:
    actor = PersonaModel(model, tokenizer, costs=ALWAYS)
    for subnetwork in subnetworks(model):
        actor.add_personas(subnetwork)
    return actor


def some_looks(actor: PersonaModel) -> list[Look]:
    """Eight personas, the base model, a blend, and a strength above 1; in no order."""
    looks = [actor.look(name, 1.0 if number < 5 else 0.6) for number, name in enumerate(NAMES)]
    looks += [actor.look(None), actor.look({"p0": 0.5, "p1": 0.7, "p4": 0.4}), actor.look("p2", 1.5)]
    return [looks[row] for row in np.random.default_rng(3).permutation(len(looks))]


def generated(actor: PersonaModel, ids, mask, steps: int):
    """(tokens written, logits they were chosen from), (rows, steps) and (rows, steps, vocabulary)."""
    made = actor.model.generate(
        ids, attention_mask=mask, max_new_tokens=steps, do_sample=False, eos_token_id=None,
        return_dict_in_generate=True, output_logits=True, pad_token_id=0,
    )  # fmt: skip
    return made.sequences[:, ids.shape[1] :], torch.stack(made.logits, dim=1)


def padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    return ids, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


def test_rows_are_written_as_by_their_personas_alone(tiny_model, architecture) -> None:
    """Left padding, a cache of keys and values, grouped heads: 11 rows at once against each on its own."""
    model, tokenizer = tiny_model(architecture)
    actor = mixing_actor(model, tokenizer)
    looks = some_looks(actor)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    with actor.rows(looks):
        tokens, logits = generated(actor, *padded(prompts), steps=8)
    assert len({tuple(row) for row in tokens.tolist()}) > 5, "the personas do differ"
    for row, look in enumerate(looks):
        if look == BASE:
            own_tokens, own_logits = generated(actor, *padded(prompts[row : row + 1]), steps=8)
        else:
            with actor.persona(dict(look)):
                own_tokens, own_logits = generated(actor, *padded(prompts[row : row + 1]), steps=8)
        best = own_logits[0].topk(2).values
        clear = (best[:, 0] - best[:, 1]) > 2 * CLOSE
        sure = int(clear.long().cumprod(0).sum())  # steps before a choice that rounding may turn
        assert sure > 0
        assert tokens[row, :sure].tolist() == own_tokens[0, :sure].tolist(), look
        seen = slice(0, min(sure + 1, 8))
        torch.testing.assert_close(logits[row, seen], own_logits[0, seen], rtol=0, atol=CLOSE)


def test_in_bfloat16_a_row_is_as_near_as_its_persona_alone(tiny_model, architecture) -> None:
    """As near to the persona worn in float32, or nearer."""
    model, exact_model = tiny_model(architecture, dtype=torch.bfloat16)[0], tiny_model(architecture)[0]
    actor, exact = mixing_actor(model), mixing_actor(exact_model)
    looks = some_looks(actor)
    ids = torch.randint(5, 300, (len(looks), 6), generator=torch.Generator().manual_seed(0))
    with actor.rows(looks):
        mixed = model(input_ids=ids).logits.float()
    assert mixed.isfinite().all()
    errors = []
    for row, look in enumerate(looks):
        alone = []
        for each in (actor, exact):
            with torch.no_grad():
                each.disable_persona() if look == BASE else each.set_persona(dict(look))
                alone.append(each.model(input_ids=ids[row : row + 1]).logits[0].float())
            each.disable_persona()
        errors.append([(one - alone[1]).square().mean(-1).sqrt() for one in (mixed[row], alone[0])])
    # The median, since rounding may send a token to another expert.
    rows, worn = (torch.cat(each).median() for each in zip(*errors, strict=True))
    assert rows <= 1.5 * worn


def test_a_model_in_float64_stays_so(tiny_model) -> None:
    model, _ = tiny_model("llama", dtype=torch.float64)
    actor = mixing_actor(model)
    ids = torch.tensor([[5, 9, 60], [7, 7, 8]])
    with actor.rows([actor.look("p3", 0.3), actor.look("p1")]):
        got = model(input_ids=ids).logits
    with actor.persona("p3", 0.3), torch.no_grad():
        torch.testing.assert_close(got[0], model(input_ids=ids[:1]).logits[0], rtol=0, atol=1e-6)


def test_many_forwards_a_block_and_blocks_of_other_sizes(tiny_model) -> None:
    model, _ = tiny_model("llama")
    actor = mixing_actor(model)
    ids = torch.tensor([[5, 9, 60], [7, 7, 8]])
    with actor.rows([actor.look("p1"), BASE]):
        first = model(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, first)
        with pytest.raises(OptionError, match="a forward of 1 rows"):
            model(input_ids=ids[:1])
        assert torch.equal(model(input_ids=ids).logits, first)
    with actor.rows([BASE, actor.look("p1"), actor.look("p1")]):
        again = model(input_ids=ids[[1, 0, 0]]).logits
    torch.testing.assert_close(again, first[[1, 0, 0]], rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(first[1], model(input_ids=ids[1:]).logits[0], rtol=0, atol=1e-5)


def test_base_rows_alone(tiny_model) -> None:
    model, _ = tiny_model("llama")
    actor = mixing_actor(model)
    ids = torch.tensor([[5, 9, 60], [7, 7, 8]])
    with torch.no_grad():
        plain = model(input_ids=ids).logits
    with actor.rows([BASE, BASE]):
        assert torch.equal(model(input_ids=ids).logits, plain)
        with pytest.raises(OptionError, match="a forward of 1 rows"):
            model(input_ids=ids[:1])


# -------------------------------------------------- the model and its turn


def state_of(model) -> tuple[int, int]:
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return hooks, sum(len(vars(m)) for m in model.modules())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_whatever_happens_the_model_is_as_before(tiny_model, snapshot, same, error) -> None:
    model, _ = tiny_model("llama")
    actor = mixing_actor(model)
    before, state = snapshot(model), state_of(model)

    def inside() -> None:
        with actor.rows([actor.look("p0"), actor.look("p3")]):
            assert state_of(model) != state
            assert same(snapshot(model), before), "the weights are not written"
            raise error

    with pytest.raises(error):
        inside()
    assert state_of(model) == state
    assert same(snapshot(model), before)
    actor.set_persona("p0")


def test_rows_need_the_base_weights_and_keep_them(tiny_model, tmp_path) -> None:
    model, _ = tiny_model("llama")
    actor, other = mixing_actor(model), mixing_actor(model)
    looks = [actor.look("p1"), BASE]
    for wearing in (actor, other):
        wearing.set_persona("p2")
        with pytest.raises(PersonaInUseError), actor.rows(looks):
            pass
        wearing.disable_persona()
    with actor.rows(looks):
        for refused in (
            lambda: actor.set_persona("p1"),
            lambda: actor.persona("p1").__enter__(),
            lambda: actor.to(torch.bfloat16),
            lambda: actor.rows(looks).__enter__(),
            lambda: other.rows(looks).__enter__(),
            lambda: other.set_persona("p1"),
            lambda: PersonaModel(model),
        ):
            with pytest.raises(PersonaInUseError):
                refused()
        actor.disable_persona()  # changes nothing
        actor.save_pretrained(tmp_path)
        assert in_use(model)
    assert not in_use(model)
    assert model.dtype == torch.float32
    other.set_persona("p1")


def test_moving_the_model_makes_all_anew(tiny_model) -> None:
    model, _ = tiny_model("llama")
    actor = mixing_actor(model)
    ids, looks = torch.tensor([[5, 9, 60], [7, 7, 8]]), [actor.look("p1"), BASE]
    for dtype in (torch.float64, torch.float32):
        actor.to(dtype)
        with actor.rows(looks):
            got = model(input_ids=ids).logits
        with actor.persona("p1"), torch.no_grad():
            assert got.dtype == dtype
            torch.testing.assert_close(got[0], model(input_ids=ids[:1]).logits[0], rtol=0, atol=1e-4)


def test_other_threads_wait_for_the_block(tiny_model) -> None:
    model, tokenizer = tiny_model("llama")
    actor = mixing_actor(model, tokenizer)
    done: list[str] = []

    def others() -> list[threading.Thread]:
        def batch() -> None:
            with actor.rows([BASE]):
                done.append("rows")

        works = [batch, lambda: (actor.set_persona("p1"), actor.disable_persona(), done.append("set"))]
        threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in threads:
            thread.start()
        return threads

    with actor.rows([actor.look("p1"), actor.look("p2")]):
        threads = others()
        for thread in threads:
            thread.join(0.2)
        assert done == []
        actor.mixable(actor.look("p5"))  # asks nobody
        model(input_ids=torch.tensor([[5], [6]]))
    for thread in threads:
        thread.join(30)
    assert sorted(done) == ["rows", "set"]


def test_threads_that_mix_and_switch_never_get_each_others_rows(tiny_model) -> None:
    model, _ = tiny_model("llama")
    actor = mixing_actor(model)
    ids = torch.tensor([[5, 9, 60]])
    expected = {}
    for name in NAMES:
        with actor.persona(name), torch.no_grad():
            expected[name] = model(input_ids=ids).logits[0]
    wrong: list[str] = []

    def play(seed: int) -> None:
        chance = np.random.default_rng(seed)
        for _ in range(8):
            names = [NAMES[i] for i in chance.permutation(8)[: chance.integers(1, 5)]]
            if chance.random() < 0.3:
                with actor.persona(names[0]), torch.no_grad():
                    got = model(input_ids=ids).logits
                names = names[:1]
            else:
                with actor.rows([actor.look(name) for name in names]):
                    got = model(input_ids=ids.expand(len(names), -1)).logits
            wrong.extend(
                n for n, row in zip(names, got, strict=True) if not torch.allclose(row, expected[n], atol=1e-4)
            )

    threads = [threading.Thread(target=play, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert not in_use(model)


def test_a_stream_begun_in_a_block_is_waited_for(tiny_model) -> None:
    model, tokenizer = tiny_model("llama")
    actor = mixing_actor(model, tokenizer)
    with actor.persona("p1"):
        expected = actor.chat("Tea?", max_new_tokens=12)
    with actor.rows([actor.look("p1")]):
        stream = actor.stream_chat("Tea?", max_new_tokens=12)
    assert "".join(stream).strip() == expected


# ------------------------------------------------------- looks, pins, memory


def test_looks_are_checked(tiny_model) -> None:
    actor = mixing_actor(tiny_model("llama")[0])
    assert actor.look(None) == actor.look({}) == actor.look("p0", 0.0) == BASE
    assert actor.look("p0", 0.5) == (("p0", 0.5),)
    assert actor.look({"p1": 1, "p0": 0.5, "p2": 0}) == (("p0", 0.5), ("p1", 1.0))
    for wish in ("x", {"p0": 0.5, "x": 0.0}):
        with pytest.raises(UnknownPersonaError, match="'x'"):
            actor.look(wish)
    with pytest.raises(UnknownPersonaError, match="'x'"):
        actor.look("x", 0.0)
    for wish, strength in (("p0", -1.0), ({"p0": 1.5, "p1": 0.1}, 1.0), (None, 0.5)):
        with pytest.raises(OptionError):
            actor.look(wish, strength)
    for looks, error in (([], OptionError), ([(("x", 1.0),)], UnknownPersonaError)):
        with pytest.raises(error), actor.rows(looks):
            pass
    assert not in_use(actor.model)


def test_an_edition_is_of_the_masks_and_not_of_the_name(tiny_model) -> None:
    model, _ = tiny_model("llama")
    actor = mixing_actor(model)
    look = actor.look({"p0": 0.5, "p1": 0.5})
    first = actor.edition(look)
    assert first == actor.edition(look)
    assert hash(first) == hash(actor.edition(look))
    actor.remove_persona("p1")
    with pytest.raises(UnknownPersonaError):
        actor.edition(look)
    actor.add_personas(subnetworks(model)[1])
    assert actor.edition(look) != first


def test_what_is_pinned_or_in_a_block_stays(tiny_model) -> None:
    model, _ = tiny_model("llama")
    actor = PersonaModel(model, max_personas=2, costs=ALWAYS)
    first, second, third = subnetworks(model)[:3]
    actor.add_personas(first)
    actor.add_personas(second)
    actor.pin(actor.look("p0"))
    with actor.rows([actor.look("p1")]):
        with pytest.raises(PersonaInUseError, match="leaves no room"):
            actor.add_personas(third)
        with pytest.raises(PersonaInUseError):
            actor.remove_persona("p1")
    with pytest.raises(PersonaInUseError, match="'p0' is pinned"):
        actor.remove_persona("p0")
    actor.add_personas(third)
    assert actor.personas == ("p0", "p2")
    actor.unpin(actor.look("p0"))
    actor.remove_persona("p0")
    with pytest.raises(UnknownPersonaError):
        actor.pin((("p0", 1.0),))


def test_pins_wait_for_nobody(tiny_model) -> None:
    actor = mixing_actor(tiny_model("llama")[0])
    done = threading.Event()
    with actor.persona("p1"):
        thread = threading.Thread(
            target=lambda: (actor.pin(actor.look("p2")), actor.edition(actor.look("p2")), done.set()), daemon=True
        )
        thread.start()
        assert done.wait(60)


def test_memory_is_told_before_adding(tiny_model, make_artefact, tmp_path) -> None:
    model, _ = tiny_model("llama")
    make_artefact(model, "sparse", share=0.01).save(tmp_path / "sparse.persona")
    dense = make_artefact(model, "dense", share=0.6)
    actor = PersonaModel(model)
    told = actor.memory_of(tmp_path / "sparse.persona") | actor.memory_of(dense, ["dense"])
    assert actor.personas == ()
    actor.add_personas(tmp_path / "sparse.persona")
    actor.add_personas(dense)
    assert {name: memory.masks for name, memory in told.items()} == actor.memory()
    for name, memory in told.items():
        with actor.persona(name):
            assert sum(each.values.nbytes for each in actor._dressing._undo.saved) == memory.undo
    with pytest.raises(UnknownPersonaError, match="'x'"):
        actor.memory_of(tmp_path / "sparse.persona", ["x"])
    with pytest.raises(MaskMismatchError, match="no such target"):
        PersonaModel(tiny_model("gpt2")[0]).memory_of(tmp_path / "sparse.persona")


# -------------------------------------------------------- the default model


def test_eight_personas_of_the_default_model(default_model) -> None:
    model, tokenizer = default_model
    actor = PersonaModel(model, tokenizer)
    targets, names = find_targets(model), NAMES
    for number, name in enumerate(names):
        random = np.random.default_rng(number)
        masks = {
            t.name: Mask.from_positions(random.choice(t.size, t.size // 200, replace=False), t.shape) for t in targets
        }
        actor.add_personas(Subnetwork(name, masks, Provenance(method="random", sparsity=0.005)))
    dense = {t.name: Mask.from_dropped(np.random.default_rng(1).random(t.shape) < 0.4) for t in targets}
    actor.add_personas(Subnetwork("dense", dense, Provenance(method="random", sparsity=0.4)))
    looks = [actor.look(name) for name in names]
    assert all(actor.mixable(look) for look in looks)
    assert not actor.mixable(actor.look("dense"))
    prompts = [tokenizer(PROMPTS[row])["input_ids"] for row in range(8)]
    with actor.rows(looks):
        tokens, logits = generated(actor, *padded(prompts), steps=4)
    for row in (0, 5):
        with actor.persona(names[row]):
            own_tokens, own_logits = generated(actor, *padded(prompts[row : row + 1]), steps=4)
        torch.testing.assert_close(logits[row, 0], own_logits[0, 0], rtol=0, atol=1e-2)
        best = own_logits[0].topk(2).values
        if bool((best[:, 0] - best[:, 1] > 2e-2).all()):
            assert tokens[row].tolist() == own_tokens[0].tolist()
