from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli_helpers import files_of
from personae import PersonaModel, load
from personae.models import find_targets


@pytest.fixture
def made(cli, contrast, llama, here):
    """A .persona file with two personas of the tiny model."""
    path = here / "made.persona"
    ended = cli("discover", contrast, "--model", llama, "--method", "wanda", "--sparsity", "0.3", "-o", path)
    assert ended.code == 0, ended.err
    return path


def test_a_folder_that_transformers_loads_is_the_worn_persona(cli, made, llama, here) -> None:
    ended = cli("export", made, "-p", "loud", "--model", llama, "-o", here / "loud", "--json")
    assert ended.code == 0, ended.err
    masks = load(made).personas["loud"].masks
    assert ended.json["dropped"] == sum(mask.dropped for mask in masks.values()) > 0
    exported = AutoModelForCausalLM.from_pretrained(here / "loud")
    tokenizer = AutoTokenizer.from_pretrained(here / "loud")
    actor = PersonaModel(AutoModelForCausalLM.from_pretrained(llama), tokenizer)
    actor.add_personas(made)
    ids = tokenizer("What would you do on a free Saturday?", return_tensors="pt").input_ids
    with actor.persona("loud"), torch.no_grad():
        wanted = actor.model(ids).logits
    with torch.no_grad():
        assert torch.equal(exported(ids).logits, wanted)
    zeros = sum(int((target.weight == 0).sum()) for target in find_targets(exported))
    assert zeros >= ended.json["dropped"]


def test_exported_again_it_replaces_the_folder(cli, made, llama, here) -> None:
    for persona in ("loud", "quiet"):
        assert cli("export", made, "-p", persona, "--model", llama, "-o", here / "out").code == 0
    assert json.loads((here / "out" / "masked.json").read_text(encoding="utf-8"))["dropped"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "holds 2 personas (loud, quiet): choose one by --persona"),
        (("-p", "lound"), "no persona 'lound'; there are: loud, quiet"),
    ],
)
def test_which_persona(cli, made, llama, here, options, words) -> None:
    before = files_of(here)
    ended = cli("export", made, *options, "--model", llama, "-o", here / "out")
    assert ended.code == 2
    assert words in " ".join(ended.err.split())
    assert files_of(here) == before


def test_another_model_is_refused(cli, made, other_llama, here) -> None:
    before = files_of(here)
    ended = cli("export", made, "-p", "loud", "--model", other_llama, "-o", here / "out")
    assert ended.code == 2
    assert files_of(here) == before


def test_a_folder_of_other_files_survives(cli, made, llama, here) -> None:
    (here / "out").mkdir()
    (here / "out" / "thesis.txt").write_text("all my work", encoding="utf-8")
    before = files_of(here)
    ended = cli("export", made, "-p", "loud", "--model", llama, "-o", here / "out")
    assert ended.code == 2
    assert "holds other files" in " ".join(ended.err.split())
    assert files_of(here) == before
