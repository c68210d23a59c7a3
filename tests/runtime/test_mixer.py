from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from personae.errors import OptionError, UnknownPersonaError
from personae.models import find_targets
from personae.runtime import mixer
from personae.runtime.costs import Costs
from personae.runtime.mixer import Mixer, Recent
from personae.runtime.wardrobe import Wardrobe
from personae.subnetwork import Mask, Provenance, Subnetwork

ALWAYS = Costs(dense=1.0, sparse=0.0, call=0.0, share=math.inf)


def look(name: str, strength: float = 1.0) -> tuple[tuple[str, float], ...]:
    return ((name, strength),)


def persona(name: str, masks: dict[str, Mask]) -> Subnetwork:
    return Subnetwork(name, masks, Provenance(method="x", sparsity=0.1))


def dropping(shape: tuple[int, int], share: float, seed: int = 0) -> Mask:
    return Mask.from_dropped(np.random.default_rng(seed).random(shape) < share)


def set_up(model: nn.Module, costs: Costs | None = ALWAYS) -> tuple[Mixer, Wardrobe]:
    wardrobe = Wardrobe(None)
    return Mixer(model, {target.name: target for target in find_targets(model)}, wardrobe, costs), wardrobe


# ------------------------------------------------------------------ keeping


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=30), st.integers(1, 10))
def test_what_was_used_last_is_kept(uses: list[tuple[int, int]], limit: int) -> None:
    recent: Recent[int, int] = Recent(limit, float)
    model: list[tuple[int, int]] = []  # (key, value), the least recently used first
    for key, value in uses:
        known = dict(model).get(key)
        assert recent.get(key, lambda value=value: value) == (value if known is None else known)
        model = [pair for pair in model if pair[0] != key] + [(key, value if known is None else known)]
        while sum(size for _, size in model) > limit and len(model) > 1:
            model.pop(0)
    made: list[int] = []
    for key, value in model:
        assert recent.get(key, lambda key=key: made.append(key) or 0) == value
    assert made == []


def test_stale_keys_are_forgotten() -> None:
    recent: Recent[int, str] = Recent(10)
    for key in range(5):
        recent.get(key, lambda: "old")
    recent.forget(lambda key: key % 2 == 0)
    assert [recent.get(key, lambda: "new") for key in range(5)] == ["new", "old", "new", "old", "new"]


# ----------------------------------------------------------------- deciding


def test_the_costs_decide(tiny_model) -> None:
    model, _ = tiny_model("llama")
    costs = Costs(dense=1.0, sparse=10.0, call=0.0)
    mixing, wardrobe = set_up(model, costs)
    targets = find_targets(model)
    wardrobe.add(
        [persona(f"{share}", {t.name: dropping(t.shape, share) for t in targets}) for share in (0.02, 0.3, 0.5)], set()
    )
    assert mixing.mixable(())
    assert mixing.mixable(look("0.02"))
    assert not mixing.mixable(look("0.3"))
    assert not mixing.mixable(look("0.5", 0.5))
    assert not mixing.mixable((("0.02", 0.5), ("0.3", 0.5)))
    with pytest.raises(UnknownPersonaError):
        mixing.mixable(look("x"))


def test_a_dense_mask_is_not_read_to_its_end(tiny_model, monkeypatch) -> None:
    model, _ = tiny_model("llama")
    mixing, wardrobe = set_up(model, Costs(dense=1.0, sparse=10.0, call=0.0))
    wardrobe.add([persona("a", {t.name: dropping(t.shape, 0.5) for t in find_targets(model)})], set())
    read, real = [], mixer.split_of
    monkeypatch.setattr(mixer, "split_of", lambda worn, target: read.append(target) or real(worn, target))
    assert not mixing.mixable(look("a"))
    assert len(read) < len(find_targets(model)) / 2
    number = len(read)
    assert not mixing.mixable(look("a"))
    assert len(read) == number, "asked again, it is known"


def channels(shape: tuple[int, int], rows: list[int], columns: list[int]) -> Mask:
    dropped = np.zeros(shape, bool)
    dropped[rows] = True
    dropped[:, columns] = True
    return Mask.from_dropped(dropped)


def test_whole_channels_are_mixable_however_many(tiny_model) -> None:
    model, _ = tiny_model("llama")
    nowhere = Costs(dense=1.0, sparse=math.inf, call=1.0)  # a machine without sparse products
    mixing, wardrobe = set_up(model, nowhere)
    half = {t.name: channels(t.shape, list(range(0, t.shape[0], 2)), []) for t in find_targets(model)}
    one_more = {**half, next(iter(half)): half[next(iter(half))] & Mask.from_positions(np.array([33]), (32, 32))}
    wardrobe.add([persona("half", half), persona("more", one_more)], set())
    assert mixing.mixable(look("half"))
    assert mixing.mixable(look("half", 0.3))
    assert not mixing.mixable(look("more"))


def test_costs_are_measured_when_first_needed_and_once(tiny_model, monkeypatch) -> None:
    model, _ = tiny_model("llama")
    mixing, wardrobe = set_up(model, None)
    targets = find_targets(model)
    wardrobe.add([persona(name, {targets[0].name: dropping(targets[0].shape, 0.01)}) for name in "ab"], set())
    measured = []
    monkeypatch.setattr(mixer, "measure", lambda targets: measured.append(len(targets)) or ALWAYS)
    assert mixing.mixable(())
    assert measured == []
    threads = [threading.Thread(target=lambda name=name: mixing.mixable(look(name))) for name in "abab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert measured == [len(targets)]


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
def test_experts_are_not_mixable_and_attention_is(tiny_model, name) -> None:
    model, _ = tiny_model(name)
    mixing, wardrobe = set_up(model)
    targets = find_targets(model)
    experts = [t for t in targets if t.expert is not None]
    others = [t for t in targets if t.expert is None]
    assert experts
    assert others
    nothing = {t.name: Mask.full(t.shape) for t in experts}
    wardrobe.add(
        [
            persona("expert", {experts[0].name: dropping(experts[0].shape, 0.01)}),
            persona("attention", {t.name: dropping(t.shape, 0.01) for t in others} | nothing),
        ],
        set(),
    )
    assert mixing.mixable(look("attention"))
    assert not mixing.mixable(look("expert"))
    assert not mixing.mixable((("attention", 0.5), ("expert", 0.5)))
    with pytest.raises(OptionError, match="expert cannot share a batch"):
        mixing.block([look("attention"), look("expert")])


def test_experts_in_a_list_of_their_own_are_not_mixable() -> None:
    """They are given chosen tokens, which could by chance be as many as the batch has."""
    block = nn.ModuleDict({"fc": nn.Linear(4, 4), "experts": nn.ModuleList([nn.Linear(4, 4)])})
    model = nn.ModuleDict({"h": nn.ModuleList([block])})
    mixing, wardrobe = set_up(model)
    mask = Mask.from_positions(np.array([3]), (4, 4))
    wardrobe.add([persona("a", {"h.0.fc.weight": mask}), persona("b", {"h.0.experts.0.weight": mask})], set())
    assert mixing.mixable(look("a"))
    assert not mixing.mixable(look("b"))


# ------------------------------------------------------------------- making


def forward(mixing: Mixer, model: nn.Module, looks: list) -> torch.Tensor:
    with mixing.block(looks):
        return model(input_ids=torch.full((len(looks), 3), 7)).logits


def test_nothing_is_read_twice_until_it_changes(tiny_model, monkeypatch) -> None:
    model, _ = tiny_model("llama")
    mixing, wardrobe = set_up(model)
    targets = find_targets(model)
    wardrobe.add([persona(n, {t.name: dropping(t.shape, 0.01, ord(n)) for t in targets}) for n in "abc"], set())
    made, real = [], mixer.change
    monkeypatch.setattr(mixer, "change", lambda target, parts: made.append(target.name) or real(target, parts))

    def news(*names: str) -> int:
        made.clear()
        forward(mixing, model, [look(name) for name in names])
        return len(made) // len(targets)

    assert news("a", "b") == 2
    assert news("a", "b") == news("b", "a") == news("a", "b", "b", "a") == news("a") == 0
    assert news("a", "c") == 1
    wardrobe.remove("b")
    mixing.forget()
    assert news("a", "c") == 0
    wardrobe.add([persona("b", {t.name: dropping(t.shape, 0.01, 9) for t in targets})], set())
    assert news("a", "b") == 1
    mixing.moved({target.name: target for target in targets})
    assert news("a", "b") == 2
    with torch.no_grad():
        for target in targets:
            target.parameter.data = target.parameter.data.clone()
    assert news("a", "b") == 2, "moved without a word"


def test_a_name_that_means_other_masks_is_another_look(tiny_model) -> None:
    model, _ = tiny_model("llama")
    mixing, wardrobe = set_up(model)
    targets = find_targets(model)
    old, new = ({t.name: dropping(t.shape, 0.1, seed) for t in targets} for seed in (1, 2))
    wardrobe.add([persona("a", old)], set())
    first = forward(mixing, model, [look("a")])
    wardrobe.remove("a")
    wardrobe.add([persona("a", new)], set())  # without forget(): even then
    assert not torch.allclose(forward(mixing, model, [look("a")]), first)


def test_memory_of_personas_that_are_gone_is_free(tiny_model) -> None:
    model, _ = tiny_model("llama")
    mixing, wardrobe = set_up(model)
    wardrobe.add([persona(n, {t.name: dropping(t.shape, 0.01) for t in find_targets(model)}) for n in "ab"], set())
    forward(mixing, model, [look("a"), look("b")])
    forward(mixing, model, [look("a")])
    wardrobe.remove("b")
    mixing.forget()
    kept = (mixing._verdicts, mixing._changes, mixing._together)
    assert [len(each._kept) for each in kept] == [1, 1, 1]


def test_looks_that_cannot_be_a_batch(tiny_model) -> None:
    model, _ = tiny_model("llama")
    mixing, wardrobe = set_up(model, Costs(dense=1.0, sparse=10.0, call=0.0))
    wardrobe.add([persona("dense", {t.name: dropping(t.shape, 0.5) for t in find_targets(model)})], set())
    with pytest.raises(OptionError, match="at least one row"):
        mixing.block([])
    with pytest.raises(UnknownPersonaError, match="'x'"):
        mixing.block([look("x")])
    with pytest.raises(OptionError, match=r"dense=0\.5 cannot share a batch"):
        mixing.block([(), look("dense", 0.5)])
