"""Many mixed requests at once, each answer against the one written alone: benchmarks/leaks.py, on a small scale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from personae.runtime import PersonaModel
from personae.runtime.prefixes import Prefixes


@pytest.fixture(scope="module")
def leaks() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2])
        from benchmarks import leaks

        yield leaks


@pytest.fixture(scope="module")
def actor(leaks: ModuleType) -> PersonaModel:
    return leaks.dressed(*leaks.tiny(), leaks.SHARES["tiny"])


def test_no_persona_leaks_into_an_answer_beside_it(leaks, actor) -> None:
    requests = leaks.mixed_requests(actor.tokenizer, 300, seed=1, longest=8)
    found = leaks.compare(actor, requests, seed=1)
    assert found["leaks"] == 0
    assert found["unclear"] < 30
    assert found["base_differs"] > 150  # or nothing would be seen
    assert found["engine"]["prefix_hits"] > 60
    assert found["outcomes"]["failed"] == found["outcomes"]["lost"] == 0
    assert found["outcomes"]["stop"] > 10


def test_no_leak_either_where_room_is_scarce(leaks, actor) -> None:
    """Few rows and slots, prompts in small pieces, prefixes that are dropped all the time."""
    requests = leaks.mixed_requests(actor.tokenizer, 30, seed=2, longest=8)
    found = leaks.compare(
        actor, requests, seed=2, max_batch=5, max_queue=4, max_slots=500, prefix_tokens=150, prefill_tokens=7
    )
    assert found["leaks"] == 0


def test_a_leak_would_be_seen(leaks, actor, monkeypatch) -> None:
    """The same with prefixes that forget who computed them."""
    longest, keep = Prefixes.longest, Prefixes.keep
    monkeypatch.setattr(Prefixes, "longest", lambda store, look, edition, prompt: longest(store, (), 0, prompt))
    monkeypatch.setattr(Prefixes, "keep", lambda store, look, edition, *rest: keep(store, (), 0, *rest))
    found = leaks.compare(actor, leaks.mixed_requests(actor.tokenizer, 60, seed=3, longest=8), seed=3)
    assert found["leaks"] > 3


def test_the_oracle_draws_as_the_sampler_does(leaks, actor) -> None:
    """Its margins are those of the very draws that `multinomial` takes."""
    from personae.runtime.decoding import Sampler
    from personae.runtime.generation import Options

    twin, sampler = torch.Generator().manual_seed(5), Sampler(0.9, 0.8, 5)
    for step in range(50):
        logits = torch.randn(200, generator=torch.Generator().manual_seed(step))
        token = int(sampler(torch.empty(0), logits[None]).argmax())
        lead = leaks._lead(logits, token, Options(temperature=0.9, top_p=0.8, seed=5), twin)
        assert lead > 0
