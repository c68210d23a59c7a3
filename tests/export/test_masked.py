"""Masked checkpoints: zeros where a mask drops, every other bit as it was, folders that appear whole or not at all."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from discovery_data import bits, same_bits
from personae.errors import ArtefactError, MaskMismatchError, OptionError, PersonaInUseError
from personae.export import check_folder, masked_state_dict, save_masked
from personae.export.masked import NOTE
from personae.models import find_targets, fingerprint
from personae.runtime import PersonaModel, wearing
from personae.subnetwork import Artefact, Mask, ModelIdentity, Provenance, Subnetwork

TinyModel = Callable[..., Any]


def random_masks(model: Any, share: float = 0.2, seed: int = 0) -> dict[str, Mask]:
    chance = np.random.default_rng(seed)
    return {t.name: Mask.from_dropped(chance.random(t.shape) < share) for t in find_targets(model)}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([[5, 9, 17, 40, 8]])).logits
    return found


def test_zeros_where_dropped_and_every_other_bit_kept(tiny_model: TinyModel, architecture: str) -> None:
    model, _ = tiny_model(architecture)
    before = bits(model)
    masks = random_masks(model)
    found = masked_state_dict(model, find_targets(model), masks)
    assert same_bits(model, before)
    by_hand = copy.deepcopy(model)
    for target in find_targets(by_hand):
        target.weight[torch.from_numpy(masks[target.name].dropped_bool())] = 0.0
    expected = by_hand.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name].view(-1).view(torch.uint8), value.view(-1).view(torch.uint8)), name


def test_what_no_mask_touches_is_not_copied(tiny_model: TinyModel) -> None:
    model, _ = tiny_model("llama")
    targets = find_targets(model)
    masks = {t.name: Mask.full(t.shape) for t in targets}
    masks[targets[3].name] = Mask.from_positions(np.array([0, 5]), targets[3].shape)
    own = model.state_dict()
    found = masked_state_dict(model, targets, masks)
    assert [n for n in own if own[n].data_ptr() != found[n].data_ptr()] == [targets[3].name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "qwen3moe"])
def test_the_folder_loads_as_the_worn_model(
    tiny_model: TinyModel, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    model, tokenizer = tiny_model(name, dtype=dtype)
    masks = random_masks(model)
    folder = save_masked(model, tokenizer, masks, tmp_path / "disabled")
    read = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    with wearing(find_targets(model), masks):
        worn, weights = logits(model), {n: v.clone() for n, v in model.state_dict().items()}
    assert read.dtype == dtype
    assert all(torch.equal(value, weights[name]) for name, value in read.state_dict().items())
    if dtype == torch.float32:  # in bfloat16 the rotary frequencies of the tiny model are rounded, those read are not
        assert torch.equal(logits(read), worn)
    assert not torch.equal(worn, logits(model))
    assert fingerprint(find_targets(read)) != fingerprint(find_targets(model))
    note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    assert note["fingerprint"] == fingerprint(find_targets(model))
    assert note["dropped"] == sum(m.dropped for m in masks.values())
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template


def test_tied_embeddings_stay_tied(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama", tie_word_embeddings=True)
    masks = random_masks(model)
    read = AutoModelForCausalLM.from_pretrained(save_masked(model, tokenizer, masks, tmp_path / "a"))
    assert read.get_output_embeddings().weight is read.get_input_embeddings().weight
    with wearing(find_targets(model), masks):
        assert torch.equal(logits(read), logits(model))


def test_refused_while_a_persona_is_worn(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    targets = find_targets(model)
    identity = ModelIdentity(
        id="tiny", fingerprint=fingerprint(targets), architecture="x", dtype="float32",
        targets={t.name: t.shape for t in targets},
    )  # fmt: skip
    masks = random_masks(model)
    persona = Subnetwork("loud", masks, Provenance(method="random", sparsity=0.2))
    actor = PersonaModel(model, tokenizer)
    actor.add_personas(Artefact(identity, {"loud": persona}))
    with actor.persona("loud"), pytest.raises(PersonaInUseError, match="a masked checkpoint"):
        save_masked(model, tokenizer, masks, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_masks_of_another_model_are_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    for masks in ({"no.such": Mask.full((2, 2))}, {find_targets(model)[0].name: Mask.full((2, 2))}):
        with pytest.raises(MaskMismatchError):
            save_masked(model, tokenizer, masks, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_an_old_checkpoint_is_replaced_and_nothing_else(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    folder = tmp_path / "a"
    folder.mkdir()
    save_masked(model, tokenizer, random_masks(model, seed=1), folder)  # an empty folder
    listed = json.loads((folder / NOTE).read_text(encoding="utf-8"))["files"]
    assert listed == sorted(p.name for p in folder.iterdir())
    (folder / "converted.gguf").write_text("made from it by another program")
    old = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(OptionError, match=r"other files, which would be lost \(converted.gguf\)"):
        save_masked(model, tokenizer, random_masks(model, seed=2), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == old
    (folder / "converted.gguf").unlink()
    save_masked(model, tokenizer, random_masks(model, seed=2), folder)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    read = AutoModelForCausalLM.from_pretrained(folder)
    with wearing(find_targets(model), random_masks(model, seed=2)):
        assert torch.equal(logits(read), logits(model))


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_checkpoint(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    model, tokenizer = tiny_model("llama")
    folder = save_masked(model, tokenizer, random_masks(model), tmp_path / "a")
    old = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fails(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(type(tokenizer), "save_pretrained", fails)
    with pytest.raises(ArtefactError if isinstance(failure, OSError) else KeyboardInterrupt):
        save_masked(model, tokenizer, random_masks(model, seed=1), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == old
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_failed_move_puts_the_old_checkpoint_back(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_model("llama")
    folder = save_masked(model, tokenizer, random_masks(model), tmp_path / "a")
    old = {p.name: p.read_bytes() for p in folder.iterdir()}
    rename = Path.rename
    moves = []

    def second_fails(self: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) == 2:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(ArtefactError, match="cannot write"):
        save_masked(model, tokenizer, random_masks(model, seed=1), folder)
    assert len(moves) == 3
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == old
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_folders_that_are_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    own = tmp_path / "own"
    model.save_pretrained(own)
    model.config._name_or_path = str(own)
    for folder, says in (
        (tmp_path / "file", "is a file"), (tmp_path / "full", "holds other files"), (own, "would replace the model"),
        (tmp_path / "no" / "where", "no folder that can be written to"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=says):
            check_folder(folder, model, "--checkpoint")
        with pytest.raises(OptionError, match=says):
            save_masked(model, tokenizer, {}, folder)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "x"
