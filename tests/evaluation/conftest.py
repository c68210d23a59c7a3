"""A small contrast, a tiny model, planted scores: what most tests of this room use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from personae.discovery import GenericText, windows
from personae.evaluation import ItemScores
from personae.models import encode, find_targets, fingerprint
from personae.personas import Contrast, Pair, split
from personae.subnetwork import Artefact, CalibrationIdentity, Mask, ModelIdentity, Provenance, Subnetwork

TOPICS = ("boats", "letters", "music", "walls", "bread", "maps", "trees", "roads", "clocks", "snow")
ANSWERS = (
    ("Yes, and I would go there at once.", "No, I stay where it is quiet."),
    ("I call all my friends.", "I read a long book at home."),
    ("No, that is far too little for me.", "Yes, a little is enough."),
    ("A crowd, a stage, a song.", "One friend and a cup of tea."),
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAE_CACHE", str(tmp_path_factory.getbasetemp() / "personae-cache"))


@pytest.fixture
def contrast() -> Contrast:
    """60 pairs; half of them tied in polarity."""
    pairs = []
    for number in range(60):
        positive, negative = ANSWERS[number % 4]
        topic = TOPICS[number % 10]
        pairs.append(
            Pair(f"Would you talk about {topic}, part {number}?", f"{positive} {topic}", f"{negative} {topic}")
        )
    return Contrast(
        "loud-quiet", "loud", "quiet", pairs=tuple(pairs), positive_prompt="You are loud.",
        negative_prompt="You are quiet and you like it.", licence="Apache-2.0", source="tests",
    )  # fmt: skip


@pytest.fixture
def model_and_tokenizer(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("llama")


@pytest.fixture
def generic(model_and_tokenizer: Any) -> GenericText:
    """Four plain windows and four chat answers."""
    _, tokenizer = model_and_tokenizer
    plain = windows(tokenizer, "The sea was calm and the boats lay still. " * 20, size=32, limit=4)
    chat = tuple(encode(tokenizer, f"Say {n} words.", "one two three four " * 3) for n in range(4))
    return GenericText(plain, chat, "four of each")


def make_artefact(
    model: Any, contrast: Contrast, *, share: float = 0.02, method: str = "directed", **parameters: Any
) -> Artefact:
    """Masks of random weights, with the provenance that discovery would write."""
    targets = find_targets(model)
    calibration = split(contrast, seed=0).calibration
    identity = CalibrationIdentity(
        name=contrast.name, sha256=calibration.sha256, items=len(calibration), licence="Apache-2.0",
        split="calibration of seed 0",
    )  # fmt: skip
    personas = {}
    for number, pole in enumerate(contrast.poles):
        generator = np.random.default_rng(10 + number)
        masks = {t.name: Mask.from_dropped(generator.random(t.shape) < share * (number + 1)) for t in targets}
        sparsity = sum(m.dropped for m in masks.values()) / sum(t.size for t in targets)
        record = Provenance(
            method=method, parameters=parameters, calibration=identity, seed=0, sparsity=sparsity,
            measured={"seconds_of_discovery": 3.5},
        )  # fmt: skip
        personas[pole] = Subnetwork(pole, masks, record)
    described = ModelIdentity(
        id="tiny", fingerprint=fingerprint(targets), architecture="LlamaForCausalLM", dtype="float32",
        targets={t.name: t.shape for t in targets},
    )  # fmt: skip
    return Artefact(described, personas, {"generic_text": {"source": "elsewhere", "sha256": "0"}})


@pytest.fixture
def artefact_of() -> Callable[..., Artefact]:
    return make_artefact


@pytest.fixture
def scores_of() -> Callable[..., ItemScores]:
    """`scores_of(differences, tied=…)`: answers of one token and two bytes with these margins."""

    def make(differences: Sequence[float], tied: Sequence[bool] | None = None) -> ItemScores:
        n = len(differences)
        log_p = np.stack([np.asarray(differences, dtype=np.float64) - 3, np.full(n, -3.0)], axis=1)
        return ItemScores(
            log_p, np.ones((n, 2)), np.full((n, 2), 2.0), np.array(tied or [False] * n),
            tuple(str(i) for i in range(n)),
        )  # fmt: skip

    return make
