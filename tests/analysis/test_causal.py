"""The causal map: against a slow oracle, on planted truth, resumed, and what it refuses."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from causal_data import CAPITALS, planted_contrast, planted_tokenizer, slow_margins
from compare_data import artefact_for, subnetwork
from personae.analysis import causal_map
from personae.analysis.results import plain
from personae.errors import DataError, MaskMismatchError, OptionError, PersonaInUseError, UnknownPersonaError
from personae.evaluation import difference
from personae.models import find_targets
from personae.personas import Contrast, Pair, Sample
from personae.runtime import PersonaModel
from personae.subnetwork import Mask
from planted import Planted, make_planted
from trace_data import random_artefact

readings = importlib.import_module("personae.analysis.causal_readings")

CONTRAST = Contrast(
    "loud-quiet", "loud", "quiet",
    tuple(
        Pair(f"Would you talk about {topic}?", f"Yes, and at once about {topic}!", f"No, {topic} bore me.")
        for topic in ("boats", "letters", "music", "walls", "bread", "maps")
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def planted() -> Planted:
    return make_planted()


@pytest.fixture
def tiny(tiny_model: Any) -> tuple[Any, Any]:
    return tiny_model("llama")


def bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("persona", ["loud", "quiet"])
def test_every_cell_is_what_a_slow_copy_of_the_model_says(tiny: tuple[Any, Any], persona: str) -> None:
    model, tokenizer = tiny
    artefact = random_artefact(model, "loud", "quiet")
    before = bits(model)
    found = causal_map(
        model, tokenizer, artefact, CONTRAST, persona=persona, by=("block", "kind", "target", "cell"), split_seed=None,
        random_seeds=0, resamples=300, seed=4,
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    masks, sign = artefact[persona].masks, 1 if persona == "loud" else -1
    targets = {t.name: t for t in find_targets(model)}

    def margins(names: set[str]) -> Any:
        return sign * slow_margins(model, tokenizer, CONTRAST, {n: masks[n] for n in names & set(masks)})

    base, worn = margins(set()), margins(set(targets))
    assert found.gain == pytest_difference(worn, base)
    assert found.worn_alignment.value == pytest.approx((worn > 0).mean())
    assert (found.persona, found.rival) == (persona, "quiet" if persona == "loud" else "loud")
    assert [c.part for c in found.of_level("kind")] == ["attention", "mlp"]
    assert [c.part for c in found.of_level("cell")] == [
        f"block {b} {k}" for b in range(3) for k in ("attention", "mlp")
    ]
    assert [c.part for c in found.of_level("target")] == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    for cell in found.cells:
        inside = {
            name
            for name, t in targets.items()
            if (cell.block is None or t.block == cell.block)
            and (cell.kind is None or t.kind == cell.kind)
            and (cell.target is None or f".{cell.target}." in name)
        }
        assert cell.targets == len(inside)
        assert cell.weights == sum(targets[n].size for n in inside)
        assert cell.dropped == sum(masks[n].dropped for n in inside & set(masks))
        restored, alone = margins(set(targets) - inside), margins(inside)
        assert cell.necessity == pytest_difference(worn, restored)
        assert cell.sufficiency == pytest_difference(alone, base)
        assert cell.restored_margin.value == pytest.approx(restored.mean(), abs=1e-5)
        assert cell.alone_alignment.value == pytest.approx((alone > 0).mean())
        assert cell.necessity_alignment.value == pytest.approx((worn > 0).mean() - (restored > 0).mean())
        assert cell.random is None
    whole = {level: sum(c.dropped for c in found.of_level(level)) for level in ("block", "kind", "target", "cell")}
    assert set(whole.values()) == {found.dropped}


class pytest_difference:
    """Equal to a Difference whose value and interval are those of two margins."""

    def __init__(self, first: Any, second: Any) -> None:
        self.expected = difference(first, second, resamples=300, seed=4)

    def __eq__(self, other: object) -> bool:
        values = [[getattr(d, n) for n in ("value", "low", "high")] for d in (self.expected, other)]
        return bool(np.allclose(*values, atol=1e-5))

    def __repr__(self) -> str:
        return repr(self.expected)


def test_it_points_to_the_plant_among_decoys(planted: Planted) -> None:
    """The mask drops the plant, which sits in block 1, and as many weights at random in every block and kind."""
    chance = np.random.default_rng(0)
    size = sum(int(m.sum()) for m in planted.plant.values())
    masks = {}
    for target in planted.targets:
        dropped = planted.plant[target.name].numpy().copy()
        number = round(size * target.size / sum(t.size for t in planted.targets))
        dropped.flat[chance.choice(target.size, number, replace=False)] = True
        masks[target.name] = Mask.from_dropped(dropped)
    artefact = artefact_for(planted.model, subnetwork(CAPITALS, masks))
    tokenizer, contrast = planted_tokenizer(), planted_contrast(planted)
    found = causal_map(
        planted.model, tokenizer, artefact, contrast, by=("block", "cell", "target"), split_seed=None, random_seeds=2
    )
    assert found.persona == CAPITALS
    assert found.gain.low > 0.1  # dropping the plant takes small letters away
    first, second = found.of_level("block")
    assert second.necessity.low > max(5 * abs(first.necessity.value), 0)
    assert second.sufficiency.low > max(5 * abs(first.sufficiency.value), 0)
    assert second.necessity_share is not None
    assert second.necessity_share.value == pytest.approx(1, abs=0.2)
    assert second.over_random is not None
    assert second.over_random.low > 0
    assert first.necessity_share is not None
    assert abs(first.necessity_share.value) < 0.2
    holding = {n for n, plant in planted.plant.items() if plant.any()}
    truth = {
        cell.part: slow_margins(planted.model, tokenizer, contrast, {
            t.name: Mask.from_dropped(planted.plant[t.name].numpy())
            for t in planted.targets if t.name in holding and t.block == cell.block and t.kind == cell.kind
        }).mean()
        for cell in found.of_level("cell")
    }  # fmt: skip
    by_map = max(found.of_level("cell"), key=lambda c: c.sufficiency.value)
    assert by_map.part == min(truth, key=lambda part: truth[part])  # p⁺'s margin falls most without that part's plant
    assert by_map.sufficiency_p_holm < 0.05
    strongest = max(found.of_level("target"), key=lambda c: c.sufficiency.value)
    assert strongest.part in {"o_proj", "down_proj"}  # the only ones that hold the plant
    blocks, kinds, values = found.matrix("sufficiency")
    assert (blocks, kinds) == ((0, 1), ("attention", "mlp"))
    assert values[1][kinds.index(str(by_map.kind))] == by_map.sufficiency.value


def test_random_weights_are_as_many_in_every_matrix_and_reproducible(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    artefact = random_artefact(model, "loud")
    common: dict[str, Any] = {"by": ("kind",), "split_seed": None, "random_seeds": 2, "resamples": 100}
    first, again = (causal_map(model, tokenizer, artefact, CONTRAST, **common, seed=1) for _ in range(2))
    other = causal_map(model, tokenizer, artefact, CONTRAST, **common, seed=2)
    assert first == again
    assert [c.random for c in first.cells] != [c.random for c in other.cells]
    assert [c.sufficiency.value for c in first.cells] == [c.sufficiency.value for c in other.cells]
    held = readings.Readings(model, find_targets(model), None, artefact["loud"].masks, 1.0, 1, None)  # type: ignore[arg-type]
    drawn = held._worn(readings.Key(frozenset(held.masks), 0))
    assert {n: m.dropped for n, m in drawn.items()} == {n: m.dropped for n, m in held.masks.items()}
    assert all(drawn[n] != m for n, m in held.masks.items() if m.dropped)
    for cell in first.cells:
        assert cell.random is not None
        assert cell.over_random is not None
        assert cell.over_random.value == pytest.approx(cell.sufficiency.value - cell.random.value)


def test_what_comes_to_the_same_is_read_once(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny
    taken: list[Any] = []
    real = readings.score_encoded
    monkeypatch.setattr(readings, "score_encoded", lambda *a: taken.append(1) or real(*a))
    plans: list[Any] = []
    found = causal_map(
        model, tokenizer, random_artefact(model, "loud"), CONTRAST, by=("kind",), split_seed=None, random_seeds=0,
        planned=plans.append,
    )  # fmt: skip
    assert len(taken) == found.readings == 4  # base, whole, and each of two kinds alone = the other restored
    assert (plans[0].readings, plans[0].kept, plans[0].items) == (4, 0, len(CONTRAST))
    assert plans[0].seconds > 0
    attention, mlp = found.cells
    assert attention.restored_margin == mlp.alone_margin


def test_it_goes_on_where_it_was_killed(tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny
    artefact, before = random_artefact(model, "loud"), bits(model)
    common: dict[str, Any] = {"split_seed": None, "random_seeds": 1, "resamples": 100}
    whole = causal_map(model, tokenizer, artefact, CONTRAST, **common)
    real, taken = readings.score_encoded, []

    def dies(*arguments: Any) -> Any:
        taken.append(1)
        if len(taken) == 7:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(readings, "score_encoded", dies)
    with pytest.raises(KeyboardInterrupt):
        causal_map(model, tokenizer, artefact, CONTRAST, resume=tmp_path / "parts", **common)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert len(list((tmp_path / "parts").iterdir())) == 6
    broken = sorted((tmp_path / "parts").iterdir())[0]
    broken.write_text('{"margin": [1.0]}')  # of other items, or cut: read anew
    plans: list[Any] = []
    taken.clear()
    monkeypatch.setattr(readings, "score_encoded", lambda *a: taken.append(1) or real(*a))
    again = causal_map(model, tokenizer, artefact, CONTRAST, resume=tmp_path / "parts", planned=plans.append, **common)
    assert again == whole
    assert len(taken) == whole.readings - 5
    assert plans[0].readings == whole.readings
    taken.clear()
    other = random_artefact(model, "loud", seed=9)
    causal_map(model, tokenizer, other, CONTRAST, resume=tmp_path / "parts", **common)
    assert len(taken) == whole.readings  # another mask: nothing of the first serves


def test_frames_and_json(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    found = causal_map(
        model, tokenizer, random_artefact(model, "loud"), CONTRAST, by=("block", "kind"), split_seed=None
    )
    frame = found.frame()
    assert list(frame["part"]) == ["block 0", "block 1", "block 2", "attention", "mlp"]
    assert frame["necessity"].tolist() == [c.necessity.value for c in found.cells]
    assert {"necessity_low", "sufficiency_p", "over_random_high", "alone_alignment", "sufficiency_p_holm"} <= {*frame}
    said = json.loads(json.dumps(plain(found.to_dict())))
    assert said["cells"][0]["necessity"]["value"] == found.cells[0].necessity.value
    assert found["mlp"].kind == "mlp"
    with pytest.raises(KeyError, match="no part 'block 9'"):
        found["block 9"]
    with pytest.raises(KeyError, match="no figure"):
        found.matrix("nothing")
    assert found.matrix() == ((), (), [])


def test_holm_is_taken_over_the_parts_of_a_level(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    found = causal_map(
        model, tokenizer, random_artefact(model, "loud"), CONTRAST, by=("block", "kind"), split_seed=None
    )
    for level in ("block", "kind"):
        cells = found.of_level(level)
        least = min(cells, key=lambda c: c.necessity.p)
        assert least.necessity_p_holm == pytest.approx(min(1, len(cells) * least.necessity.p))


def refused(match: str, kind: type[Exception], *arguments: Any, **options: Any) -> None:
    with pytest.raises(kind, match=match):
        causal_map(*arguments, **options)


def test_resamples_that_give_no_star_to_any_part_are_told(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    common: dict[str, Any] = {"by": ("kind", "target"), "split_seed": None, "random_seeds": 0}
    few = causal_map(model, tokenizer, random_artefact(model, "loud"), CONTRAST, **common, resamples=100)
    number = len(few.of_level("target"))
    [said] = [note for note in few.notes if "resamples" in note]  # two kinds have enough of a hundred
    assert said.startswith(f"{number} parts of level 'target': 100 resamples cannot give a p after Holm below")
    assert min(c.sufficiency_p_holm for c in few.of_level("target")) >= 0.05
    enough = causal_map(model, tokenizer, random_artefact(model, "loud"), CONTRAST, **common)
    assert enough.resamples == 10_000
    assert not any("resamples" in note for note in enough.notes)


def test_bad_input(tiny: tuple[Any, Any], tiny_model: Any) -> None:
    model, tokenizer = tiny
    artefact = random_artefact(model, "loud", "quiet", "third")
    good = (model, tokenizer, artefact, CONTRAST)
    refused("unknown --by 'layer'", OptionError, *good, by=("layer",))
    refused("--by names no level", OptionError, *good, by=())
    refused("--items is 0", OptionError, *good, items=0)
    refused("--random-seeds is -1", OptionError, *good, random_seeds=-1)
    refused("--resamples is 0", OptionError, *good, resamples=0)
    refused("not 'nobody'", UnknownPersonaError, *good, persona="nobody")
    refused("'third' is no pole", UnknownPersonaError, *good, persona="third")
    refused("neither pole", UnknownPersonaError, model, tokenizer, random_artefact(model, "x"), CONTRAST)
    loose = Contrast("u", "loud", "quiet", positive_samples=(Sample("a", "b"),), negative_samples=(Sample("a", "c"),))
    refused("is not paired", DataError, model, tokenizer, artefact, loose)
    other, _ = tiny_model("llama", seed=1)
    refused("other weights", MaskMismatchError, other, tokenizer, artefact, CONTRAST)
    empty = artefact_for(model, subnetwork("loud", {t.name: Mask.full(t.shape) for t in find_targets(model)}))
    refused("drops nothing", OptionError, model, tokenizer, empty, CONTRAST, split_seed=None)
    actor = PersonaModel(model, tokenizer)
    actor.add_personas(artefact)
    with actor.persona("loud"):
        refused("a causal map", PersonaInUseError, *good)
