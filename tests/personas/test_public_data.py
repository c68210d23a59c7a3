"""Every row of the public files (not part of this repository) can be read, or is counted."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from personae.errors import DataError
from personae.personas import load_contrast, load_persona, read_trait, split

DATA = Path(os.environ.get("PERSONAE_DATA", Path(__file__).parents[3] / "shared" / "data"))
RISKS = "anthropic_evals/advanced-ai-risk/lm_generated_evals"
ROLES = "rolebench/rolebench-eng/role-generalization/role_specific/test.jsonl"


def public(path: str) -> Path:
    if not (DATA / path).exists():
        pytest.skip(f"public data {path} not found; set PERSONAE_DATA to the folder that holds it")
    return DATA / path


@pytest.mark.parametrize("name", ["power-seeking-inclination", "wealth-seeking-inclination"])
def test_anthropic_evals(name: str) -> None:
    path = public(f"{RISKS}/{name}.jsonl")
    with pytest.warns(UserWarning, match="4 of 1000 rows were left out.*no question"):
        contrast = load_contrast(path)
    assert (contrast.poles, len(contrast)) == ((name, f"not-{name}"), 996)
    assert min(len(part) for part in split(contrast)) >= 150
    # No letter is left in front of an answer, no heading behind a question.
    assert not [p for p in contrast.pairs if p.positive.startswith("(A)") or p.negative.startswith("(A)")]
    assert not [p for p in contrast.pairs if p.prompt.rstrip("*_ ").endswith(("\nChoices:", "\nOptions:"))]


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("generate/survival-instinct/generate_dataset.json", 903),
        ("generate/myopic-reward/generate_dataset.json", 950),
        ("generate/corrigible-neutral-HHH/generate_dataset.json", 290),
        ("test/survival-instinct/test_dataset_ab.json", 50),
        ("test/myopic-reward/test_dataset_ab.json", 50),
        ("test/corrigible-neutral-HHH/test_dataset_ab.json", 50),
        ("test/mmlu/mmlu.json", 570),
    ],
)
def test_caa(path: str, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_contrast(public(f"caa/Datasets/{path}"))) == count


def test_hallucination_and_its_control() -> None:
    path = public("ai_persona/hallucination_direct_authors_rows.jsonl")
    fiction, truth = load_contrast(path), load_contrast(path, variant="truth")
    assert len(fiction) == len(truth) == 900
    assert fiction.pairs[0].prompt != truth.pairs[0].prompt


@pytest.mark.parametrize(
    ("name", "poles", "counts"),
    [
        ("EI", ("introvert", "extravert"), (1514, 1509)),
        ("SN", ("intuitive", "sensing"), (606, 594)),
        ("TF", ("thinking", "feeling"), (3910, 3922)),
        ("JP", ("judging", "perceiving"), (594, 602)),
    ],
)
def test_machine_mindset(name: str, poles: tuple[str, str], counts: tuple[int, int]) -> None:
    contrast = load_contrast(public(f"mbti/{name}_dev.jsonl"))
    assert contrast.poles == poles
    assert (len(contrast.positive_samples), len(contrast.negative_samples)) == counts
    assert len(split(contrast).test) >= 100


def test_machine_mindset_pairs_by_instruction() -> None:
    with pytest.warns(UserWarning, match="of 3023 samples have no partner"):
        contrast = load_contrast(public("mbti/EI_dev.jsonl"), paired=True)
    assert 1300 < len(contrast) <= 1375  # 1,375 distinct instructions, a few answered alike


def test_rolebench() -> None:
    path = public(ROLES)
    assert len(load_persona(path, role="Jack Sparrow")) >= 286
    assert load_contrast(path, role="Jack Sparrow", against="Coriolanus").name == "Jack Sparrow-Coriolanus"


@pytest.mark.parametrize("name", ["evil", "sycophantic", "hallucinating"])
def test_persona_vectors(name: str) -> None:
    path = public(f"persona_vectors/data_generation/trait_data_extract/{name}.json")
    trait = read_trait(path)
    assert (trait.name, len(trait.positive_prompts), len(trait.questions)) == (name, 5, 20)
    with pytest.raises(DataError, match="generate answers first"):
        load_contrast(path)
