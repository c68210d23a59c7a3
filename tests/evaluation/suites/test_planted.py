"""The planted models of three architectures, and a suite that reports what it measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from discovery_data import bits, same_bits
from personae.discovery import Session, Settings
from personae.errors import OptionError
from personae.evaluation.suites import SuiteContext, planted, suite_to_markdown
from personae.evaluation.suites.planted import SCORES, UNDIRECTED, measured, run
from personae.evaluation.suites.planted_models import ARCHITECTURES, Planted, make_planted


@pytest.fixture(scope="module", params=ARCHITECTURES)
def made(request: pytest.FixtureRequest) -> Planted:
    return make_planted(architecture=request.param)


@pytest.mark.filterwarnings("ignore:no token of")
def test_directed_finds_the_plant_that_is_the_persona(made: Planted) -> None:
    before = bits(made.model)
    found = measured(made)
    assert same_bits(made.model, before)
    assert found["acc"] > 0.85
    assert abs(found["margin without the plant"]) < 0.25 * found["margin"]
    assert found["planted"] == round(0.01 * found["weights"])
    assert all(t.block == 1 for t in made.targets if made.plant[t.name].any())
    assert list(found["auc"]) == list(SCORES)
    assert found["auc"]["directed"] > 0.9
    assert found["auc"]["directed/price"] > 0.8
    assert max(found["auc"][m] for m in UNDIRECTED) < found["auc"]["directed"] - 0.2
    assert abs(found["auc"]["random"] - 0.5) < 0.1


@pytest.mark.filterwarnings("ignore:no token of")
def test_scores_rank_as_the_session_does(made: Planted) -> None:
    """The AUC by counting couples, on the orders that the session itself drops by."""
    session = Session(made.model, None, made.targets, made.calibration, made.generic)  # type: ignore[arg-type]
    settings = Settings(method="directed-forward", rank_by="gain")
    writers = {w.target.name for w in session.writers}
    lean = session._forward_order(settings, 1)
    gains = session.signed_gains(Settings(), 1)
    priced = {n: session.by_price(n, h, "gain-per-price") for n, h in gains.items()}
    found = measured(made)["auc"]
    for name, order, among in (("directed-forward/lean", lean, writers), ("directed/price", priced, set(priced))):
        values = torch.cat([order[n].flatten() for n in sorted(among)]).double()
        truth = torch.cat([made.plant[n].flatten() for n in sorted(among)])
        pairs = values[truth][:, None] - values[~truth][None, :]
        assert found[name] == pytest.approx(float(((pairs > 0) + 0.5 * (pairs == 0)).mean(dtype=torch.float64)))


def fake(values: dict[tuple[str, int], float]) -> Any:
    def measure(made: tuple[str, int], seed: int) -> dict[str, Any]:
        scores = {s: values[made] if s == "directed" else 0.5 for s in SCORES}
        return {"auc": scores, "acc": 1.0, "margin": 1.0, "margin without the plant": 0.0, "planted": 1, "weights": 9}

    return measure


def test_run_reports_mean_and_range(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {("llama", 0): 0.9, ("llama", 1): 0.7, ("gpt2", 0): 0.8, ("gpt2", 1): 1.0}
    monkeypatch.setattr(planted, "make_planted", lambda seed, architecture: (architecture, seed))
    monkeypatch.setattr(planted, "measured", fake(values))
    result = run(architectures=("llama", "gpt2"), seeds=(0, 1))
    assert result.figures["planted.directed_auc"] == pytest.approx(0.85)
    assert result.figures["planted.directed_auc.lowest"] == 0.7
    assert result.figures["planted.undirected_auc.highest"] == 0.5
    assert result.figures["planted.gpt2.directed"] == pytest.approx(0.9)
    assert ("llama", "directed", pytest.approx(0.8), 0.7, 0.9) in result.tables[0].rows
    assert not result.tables[1].warnings
    assert "| gpt2 | directed | 0.900 | 0.800 | 1.000 |" in suite_to_markdown(result)


def test_a_plant_that_is_not_the_persona_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    part = fake({("llama", 0): 0.9})
    monkeypatch.setattr(planted, "make_planted", lambda seed, architecture: (architecture, seed))
    monkeypatch.setattr(planted, "measured", lambda m, s: {**part(m, s), "margin without the plant": -0.5})
    assert "llama, seed 0" in run(architectures=("llama",), seeds=(0,)).tables[1].warnings[0]


def test_run_resumes(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "make_planted", lambda seed, architecture: (architecture, seed))
    monkeypatch.setattr(planted, "measured", fake({("llama", 0): 0.9}))
    context = SuiteContext(*tiny_model("llama"), tmp_path, parts=tmp_path)
    first = run(context, architectures=("llama",), seeds=(0,))
    monkeypatch.setattr(planted, "make_planted", lambda seed, architecture: pytest.fail("trained again"))
    assert run(context, architectures=("llama",), seeds=(0,)).figures == first.figures


def test_a_limit_trains_fewer_models_which_the_whole_run_takes_up(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []

    def make(seed: int, architecture: str) -> tuple[str, int]:
        trained.append((architecture, seed))
        return architecture, seed

    monkeypatch.setattr(planted, "make_planted", make)
    monkeypatch.setattr(planted, "measured", fake({(a, s): 0.9 for a in ("llama", "gpt2") for s in range(3)}))
    context = SuiteContext(*tiny_model("llama"), tmp_path, parts=tmp_path, limit=1)
    look = run(context, architectures=("llama", "gpt2"))
    assert trained == [("llama", 0), ("gpt2", 0)]
    assert (look.settings["limit"], look.settings["seeds"]) == (1, [0])
    assert look.notes == ("A quick look: 1 of 3 seeds an architecture.",)
    assert context.limit == 1
    whole = run(replace(context, limit=None), architectures=("llama", "gpt2"))
    assert trained[2:] == [("llama", 1), ("llama", 2), ("gpt2", 1), ("gpt2", 2)]
    assert (whole.settings["limit"], whole.settings["seeds"], whole.notes) == (None, [0, 1, 2], ())
    assert run(replace(context, limit=5), architectures=("llama", "gpt2")).notes == ()
    assert len(trained) == 6


def test_bad_options() -> None:
    with pytest.raises(OptionError, match="at least one"):
        run(seeds=())
    with pytest.raises(OptionError, match="'mamba': choose llama"):
        make_planted(architecture="mamba")


def test_training_is_seeded_and_leaves_the_random_state() -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, second = make_planted(seed=4), make_planted(seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(first.targets, second.targets, strict=True))
    assert all(torch.equal(first.plant[n], second.plant[n]) for n in first.plant)
