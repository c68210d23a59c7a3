"""The whole way on tiny models: discover, wear, restore; shares, one-sided and unpaired data, interruptions."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import personae
from discovery_data import bits, run, same_bits, small_contrast, small_generic
from personae.discovery import (
    METHODS,
    Cost,
    GenericText,
    Settings,
    attribute,
    choose,
    encode_contrast,
    mean_log_probabilities,
    open_session,
    versions,
)
from personae.discovery.selection import count
from personae.errors import DataError, OptionError
from personae.models import find_targets, fingerprint
from personae.personas import Persona, Sample, split
from personae.runtime import PersonaModel
from personae.subnetwork import Artefact

TinyModel = Callable[..., tuple[Any, Any]]
quiet = pytest.mark.filterwarnings("ignore:no token of")

BY_CANDIDATES = ("directed", "directed-forward")
SHARES: dict[str, dict[str, Any]] = {m: {"sparsity": 0.3} for m in METHODS} | {
    "directed": {"cheap_share": 0.3, "drop_share": 0.01},
    "directed-forward": {"cheap_share": 0.3, "drop_share": 0.002},  # fewer targets, so fewer candidates
}


def zeros(model: Any) -> dict[str, torch.Tensor]:
    return {t.name: t.weight == 0 for t in find_targets(model)}


@quiet
def test_discover_apply_restore(tiny_model: TinyModel, architecture: str) -> None:
    model, tokenizer = tiny_model(architecture)
    before, grads = bits(model), [p.requires_grad for p in model.parameters()]
    probe = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = model(input_ids=probe).logits
    session = open_session(model, tokenizer, small_contrast(4), generic=small_generic(), resume=False)
    for method in METHODS:
        settings = Settings(method=method, **SHARES[method]).checked()
        choices = choose(session, settings, session.calibration)
        assert same_bits(model, before), method
        for choice in choices:
            assert choice.dropped.keys() == {t.name for t in session.targets}
            assert any(d.any() for d in choice.dropped.values()), method
    artefact = run(model, tokenizer, **SHARES["directed"])
    assert same_bits(model, before)
    assert [p.requires_grad for p in model.parameters()] == grads
    actor = PersonaModel(model, tokenizer)
    assert actor.add_personas(artefact) == ("lead", "follow")
    for name in ("lead", "follow"):
        with actor.persona(name), torch.no_grad():
            for target in find_targets(model):
                gone = torch.from_numpy(artefact[name].masks[target.name].dropped_bool())
                assert not target.weight[gone].any()
            assert not torch.equal(model(input_ids=probe).logits, logits)
    assert same_bits(model, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny_model: TinyModel, dtype: torch.dtype) -> None:
    model, tokenizer = tiny_model("llama", dtype=dtype)
    before = bits(model)
    artefact = run(model, tokenizer, **SHARES["directed"])
    assert artefact.model.dtype == str(dtype).removeprefix("torch.")
    assert artefact["lead"].sparsity == pytest.approx(0.01, abs=1e-4)
    assert same_bits(model, before)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in BY_CANDIDATES])
@pytest.mark.parametrize("selection", ["row", "target", "global"])
def test_the_asked_number_is_dropped(tiny_model: TinyModel, method: str, selection: str) -> None:
    model, tokenizer = tiny_model("llama")
    artefact = run(model, tokenizer, method=method, sparsity=0.3, selection=selection)
    size = sum(t.size for t in find_targets(model))
    for subnetwork in artefact.personas.values():
        if selection == "global":
            assert subnetwork.dropped == count(0.3, size)
            continue
        for target in find_targets(model):
            mask = subnetwork.masks[target.name]
            assert mask.dropped == count(0.3, target.size)
            if selection == "row":
                rows = mask.dropped_bool().sum(1)
                assert rows.max() - rows.min() <= 1
        assert subnetwork.provenance.sparsity == subnetwork.sparsity


def test_n_of_m(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    artefact = run(model, tokenizer, method="wanda", n_m=(2, 4))
    for mask in artefact["lead"].masks.values():
        groups = mask.dropped_bool().reshape(-1, 4).sum(1)
        assert (groups == 2).all()
    assert artefact["lead"].provenance.parameters["n_m"] == [2, 4]


def test_contrastive_sparse_at_one_half_is_disjoint(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    half = run(model, tokenizer, method="contrastive-sparse", sparsity=0.5)
    for name, mask in half["lead"].masks.items():
        both = mask.dropped_bool() & half["follow"].masks[name].dropped_bool()
        assert both.sum(1).max() <= 1  # a row of an odd length must share one
        assert mask.shape[1] % 2 or not both.any()
    third = run(model, tokenizer, method="contrastive-sparse", sparsity=0.3)
    assert not any(
        (m.dropped_bool() & third["follow"].masks[n].dropped_bool()).any() for n, m in third["lead"].masks.items()
    )


def test_isolated(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    artefact = run(model, tokenizer, isolated=True, sparsity=0.5)
    for name in ("lead", "follow"):
        assert artefact[name].sparsity == 0.5
        assert artefact[name].provenance.parameters["isolated_weight"] in (0.25, 0.5, 1.0)
    assert artefact["lead"].difference_rate(artefact["follow"]) > 0.1


def test_the_artefact_says_where_it_comes_from(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    contrast = small_contrast(40)
    parts = split(contrast, seed=3)
    artefact = run(model, tokenizer, contrast, split_seed=3, seed=5, **SHARES["directed"])
    assert artefact.names == ("lead", "follow")
    assert artefact.model.fingerprint == fingerprint(find_targets(model))
    assert artefact.model.targets == {t.name: t.shape for t in find_targets(model)}
    assert artefact.model.architecture == "LlamaForCausalLM"
    assert artefact.metadata["contrast"] == "lead-follow"
    text = small_generic()
    assert artefact.metadata["generic_text"] == {"source": "random ids", "sha256": text.sha256, "answers": text.answers}
    for subnetwork in artefact.personas.values():
        record = subnetwork.provenance
        assert (record.method, record.seed, record.licence) == ("directed", 5, "CC0-1.0")
        assert record.parameters["drop_share"] == 0.01
        assert "max_capability_loss" not in record.parameters
        assert record.calibration is not None
        assert record.calibration.sha256 == parts.calibration.sha256
        assert (record.calibration.items, record.calibration.split) == (len(parts.calibration), "calibration of seed 3")
        assert record.measured["dev_items"] == len(parts.dev)
        assert record.versions == versions()
        assert record.versions["personae"] == personae.__version__


def test_tested_items_neither_calibrate_nor_choose(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session holds the calibration part of the split, choices and measures read the dev part: nothing else."""
    model, tokenizer = tiny_model("llama")
    contrast = small_contrast(40)
    parts = split(contrast, seed=3)
    module = importlib.import_module("personae.discovery.discover")
    read: dict[str, list[Any]] = {"calibration": [], "choose": [], "measure": []}
    choice = importlib.import_module("personae.discovery.choice")
    opened, chosen, measured = module.open_session, module.choose, choice.measure

    def opens(*given: Any, **options: Any) -> Any:
        session = opened(*given, **options)
        read["calibration"].append(session.calibration)
        return session

    def chooses(session: Any, settings: Any, dev: Any, *rest: Any, **options: Any) -> Any:
        read["choose"].append(dev)
        return chosen(session, settings, dev, *rest, **options)

    def measures(session: Any, dropped: Any, dev: Any, *rest: Any, **options: Any) -> Any:
        read["measure"].append(dev)
        return measured(session, dropped, dev, *rest, **options)

    monkeypatch.setattr(module, "open_session", opens)
    monkeypatch.setattr(module, "choose", chooses)
    monkeypatch.setattr(choice, "measure", measures)
    run(model, tokenizer, contrast, split_seed=3, max_capability_loss=0.5)
    calibration, dev = (encode_contrast(model, tokenizer, part) for part in (parts.calibration, parts.dev))
    assert read["calibration"] == [calibration]
    assert read["choose"]
    assert read["measure"]
    assert all(items == dev for key in ("choose", "measure") for items in read[key])


def test_one_pole_alone_is_the_one_of_both(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    contrast = small_contrast(20)
    both = run(model, tokenizer, contrast, **SHARES["directed"])
    for pole, prompt in zip(("lead", "follow"), (contrast.positive_prompt, contrast.negative_prompt), strict=True):
        alone = run(model, tokenizer, contrast, pole=pole, **SHARES["directed"])
        assert alone.names == (pole,)
        assert alone[pole].masks == both[pole].masks
        assert alone[pole].system_prompt == prompt
        assert "kept_by_both" not in alone[pole].provenance.measured
        assert alone[pole].provenance.measured["dev_acc"] == both[pole].provenance.measured["dev_acc"]
    with pytest.raises(OptionError, match="'lead-follow' has no pole 'rule': choose lead or follow"):
        run(model, tokenizer, contrast, pole="rule", **SHARES["directed"])
    lone = Persona("solo", tuple(Sample(p.prompt, p.positive) for p in contrast.pairs))
    with pytest.raises(OptionError, match="'solo' is one persona and has no pole 'lead'"):
        run(model, tokenizer, lone, pole="lead", **SHARES["directed"])


def test_a_dev_set_of_one_s_own(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    artefact = run(model, tokenizer, dev=small_contrast(7), **SHARES["directed"])
    assert artefact["lead"].provenance.measured["dev_items"] == 7
    record = artefact["lead"].provenance.calibration
    assert record is not None
    assert (record.items, record.split) == (4, None)


def test_targets_by_pattern(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    artefact = run(model, tokenizer, targets="*mlp*", **SHARES["directed"])
    assert all("mlp" in name for name in artefact["lead"].masks)
    assert artefact["lead"].sparsity == pytest.approx(0.01, abs=1e-3)


def test_unpaired_contrasts(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("qwen2")
    contrast = small_contrast(5, paired=False)
    for method in ("directed", "contrastive-wanda", "contrastive-sparse", "sparsegpt"):
        artefact = run(model, tokenizer, contrast, method=method, **SHARES[method])
        assert all(s.dropped > 0 for s in artefact.personas.values())
    gains = run(model, tokenizer, contrast, cheap_share=0.5, drop_share=0.01, rank_by="gain")
    assert all(s.provenance.measured["dev_margin_gain"] > 0 for s in gains.personas.values())


PIRATE = Persona("pirate", tuple(Sample(f"Where to, {n}?", f"To sea, {n}!") for n in range(4)), prompt="Be a pirate.")


@pytest.mark.parametrize("method", ["directed", "wanda", "sparsegpt"])
def test_a_one_sided_persona(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr("personae.discovery.calibration.GREEDY_TOKENS", 8)
    model, tokenizer = tiny_model("llama")
    before = bits(model)
    artefact = run(model, tokenizer, PIRATE, method=method, **SHARES[method])
    assert artefact.names == ("pirate",)
    assert artefact["pirate"].dropped > 0
    assert artefact["pirate"].system_prompt == "Be a pirate."
    assert same_bits(model, before)


@pytest.mark.parametrize("method", ["contrastive-wanda", "contrastive-sparse"])
def test_contrastive_scores_refuse_one_side(tiny_model: TinyModel, method: str) -> None:
    model, tokenizer = tiny_model("llama")
    with pytest.raises(OptionError, match=f"{method} compares two personas, but 'pirate' is one-sided"):
        run(model, tokenizer, PIRATE, method=method, sparsity=0.5)


def test_contradictions_come_before_any_work(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    model.forward = None  # any forward would fail
    with pytest.raises(OptionError, match="excludes --sparsity"):
        run(model, tokenizer, method="wanda", sparsity=0.5, max_capability_loss=0.1)


def test_generic_text_without_chat_cannot_hold_a_budget(tiny_model: TinyModel) -> None:
    model, tokenizer = tiny_model("llama")
    with pytest.raises(DataError, match="lacks one"):
        run(model, tokenizer, generic=GenericText(small_generic().plain, (), "no chat"))


def saved(artefact: Artefact, path: Path) -> bytes:
    artefact.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("method", ["directed", "random", "contrastive-sparse"])
def test_the_same_seed_gives_the_same_bytes(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    module = sys.modules["personae.discovery.discover"]  # the package gives its name to the function
    monkeypatch.setattr(module, "metered", lambda device: nullcontext(Cost()))  # all but what discovery cost
    made = []
    for attempt in range(2):
        random.seed(attempt)
        torch.manual_seed(attempt)
        model, tokenizer = tiny_model("llama")
        made.append(saved(run(model, tokenizer, method=method, **SHARES[method]), tmp_path / f"{attempt}.persona"))
    assert made[0] == made[1]
    other = run(model, tokenizer, method=method, seed=1, **SHARES[method])
    again = Artefact.load(tmp_path / "0.persona")
    if method == "random":
        assert other["lead"].difference_rate(again["lead"]) > 0.3
    else:
        assert other["lead"].masks == again["lead"].masks


def stopping_at(title: str) -> Callable[[str, int], Any]:
    """A progress display that raises Ctrl-C at the first sign of life under a title."""

    @contextmanager
    def progress(name: str, size: int) -> Iterator[Callable[[int], None]]:
        def tick(done: int) -> None:
            if name.startswith(title):
                raise KeyboardInterrupt

        yield tick

    return progress


@quiet
@pytest.mark.parametrize("title", ["statistics", "attribution", "price of weights", "capability budget"])
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_ctrl_c_leaves_the_model_as_it_was(tiny_model: TinyModel, name: str, title: str) -> None:
    model, tokenizer = tiny_model(name)
    before, grads = bits(model), [p.requires_grad for p in model.parameters()]
    experts = model.config._experts_implementation_internal
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, progress=stopping_at(title))
    assert same_bits(model, before)
    assert [p.requires_grad for p in model.parameters()] == grads
    assert all(p.grad is None for p in model.parameters())
    assert model.config._experts_implementation_internal == experts
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_ctrl_c_while_a_mask_is_worn(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("llama")
    before = bits(model)
    masked: list[bool] = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if any(z.any() for z in zeros(model).values()):
            masked.append(True)
            raise KeyboardInterrupt
        return mean_log_probabilities(*arguments, **options)

    monkeypatch.setattr("personae.discovery.choice.mean_log_probabilities", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, **SHARES["directed"])
    assert masked == [True]
    assert same_bits(model, before)


def test_a_killed_discovery_resumes_its_attribution(
    tiny_model: TinyModel, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONAE_CHECKPOINT_SECONDS", "0")
    model, tokenizer = tiny_model("llama")
    kill_after = [3]

    def one_by_one(*arguments: Any, tick: Callable[[int], None], **options: Any) -> Any:
        ran: list[int] = []

        def tick_or_die(done: int) -> None:
            ran.append(done)
            if len(ran) in kill_after:
                raise KeyboardInterrupt

        return attribute(*arguments, tick=tick_or_die, batch_tokens=1, **options)

    monkeypatch.setattr("personae.discovery.session.attribute", one_by_one)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, small_contrast(6), resume=True, **SHARES["directed"])
    assert len(list((own_cache / "resume").iterdir())) == 2  # the statistics are whole, the gradients are not
    kill_after.clear()
    calls: list[bool] = []
    model.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    resumed = run(model, tokenizer, small_contrast(6), resume=True, **SHARES["directed"])
    with_gradients = sum(calls)
    assert list((own_cache / "resume").iterdir()) == []
    calls.clear()
    whole = run(model, tokenizer, small_contrast(6), resume=True, **SHARES["directed"])
    saved_batches = 2  # the third was killed before it was kept
    per_batch = 1  # the common beginning of the prompts is encoded anew, in the end, either way
    assert sum(calls) - with_gradients == saved_batches * per_batch
    assert [resumed[n].masks == whole[n].masks for n in whole.names] == [True, True]


def test_a_discovery_killed_late_loses_no_pass(
    tiny_model: TinyModel, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONAE_CHECKPOINT_SECONDS", "0")
    model, tokenizer = tiny_model("llama")

    def killed(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as late:
        late.setattr("personae.discovery.choice.measure", killed)
        with pytest.raises(KeyboardInterrupt):
            run(model, tokenizer, small_contrast(6), resume=True, **SHARES["directed"])
    kept = list((own_cache / "resume").iterdir())
    assert len(kept) == 3  # statistics, gradients, price
    for path in kept:  # as if each had taken that long
        with safe_open(path, framework="pt") as file:
            sums, told = {n: file.get_tensor(n).clone() for n in file.keys()}, file.metadata()  # noqa: SIM118
        save_file(sums, path, metadata={**told, "seconds": "1000"})
    calls: list[bool] = []
    model.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    resumed = run(model, tokenizer, small_contrast(6), resume=True, **SHARES["directed"])
    assert not any(calls)
    seconds = resumed.personas[resumed.names[0]].provenance.measured["seconds_of_discovery"]
    assert 3000 <= seconds < 4000  # to a tenth: the rest may take less
    assert list((own_cache / "resume").iterdir()) == []


def test_generic_text_is_sampled_when_none_is_given(
    tiny_model: TinyModel, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("personae.discovery.generic.WINDOW", 12)
    monkeypatch.setattr("personae.discovery.generic.ANSWER_TOKENS", 4)
    model, tokenizer = tiny_model("llama")
    state = torch.random.get_rng_state()
    artefact = run(model, tokenizer, generic=None, **SHARES["directed"])
    assert artefact.metadata["generic_text"]["source"] == "sampled from the model"  # type: ignore[index, call-overload]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(list((own_cache / "generic").iterdir())) == 1


def test_a_tokenizer_without_a_chat_template_works_from_sampling_to_masks(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONAE_CACHE", str(tmp_path))
    model, tokenizer = tiny_model("gpt2", template=False)
    artefact = run(model, tokenizer, generic=None, cheap_share=0.3, drop_share=0.01)
    first = artefact.personas[artefact.names[0]].provenance
    assert 0 < first.measured["kept_by_both"] < 1
    assert set(first.sparsity_per_target) == set(artefact.model.targets)
