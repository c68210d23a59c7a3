"""One session, many methods: each mask is its score's, each number exact, and nothing depends on what ran before."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from discovery_data import small_contrast, small_generic
from personae.discovery import (
    METHODS,
    Checkpoint,
    Session,
    Settings,
    collect_statistics,
    divergence_gradient,
    drop_highest,
    drop_lowest,
    drop_n_of_m,
    encode_contrast,
    mean_log_probabilities,
    open_session,
    scores,
    site,
    to_masks,
)
from personae.discovery.selection import Dropped, count
from personae.discovery.session import COST_WEIGHT, row_ranks
from personae.errors import ModelError, OptionError

TinyModel = Callable[..., tuple[Any, Any]]


def session_on(tiny_model: TinyModel, name: str = "llama", *, paired: bool = True, **config: Any) -> Session:
    model, tokenizer = tiny_model(name, **config)
    contrast = small_contrast(5, paired=paired)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_session(model, tokenizer, contrast, generic=small_generic(), resume=False)


def equal(a: Dropped, b: Dropped) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def total(dropped: Dropped) -> int:
    return sum(int(d.sum()) for d in dropped.values())


@pytest.mark.parametrize("pole", [0, 1])
def test_each_method_drops_the_lowest_of_its_score(tiny_model: TinyModel, pole: int) -> None:
    session = session_on(tiny_model)
    targets = session.targets
    sides = (session.calibration.positive, session.calibration.negative)
    own, rival = (collect_statistics(session.model, targets, side) for side in (sides if pole == 0 else sides[::-1]))
    text = session.generic.cheap
    generic = collect_statistics(session.model, targets, text.plain + text.chat)
    grams = collect_statistics(session.model, targets, sides[pole], gram=True)
    wanda = {t.name: scores.wanda(t.weight, own[site(t)]) for t in targets}
    expected: dict[str, Any] = {
        "wanda": wanda,
        "generic": {t.name: scores.wanda(t.weight, generic[site(t)], "l2") for t in targets},
        "magnitude": {t.name: t.weight.abs() for t in targets},
        "sparsegpt": {t.name: scores.sparsegpt(t.weight, grams[site(t)]) for t in targets},
        "contrastive-wanda": {
            t.name: scores.contrastive_wanda(t.weight, own[site(t)], rival[site(t)]) for t in targets
        },
        "contrastive-sparse": {
            t.name: scores.contrastive_sparse(t.weight, own[site(t)], rival[site(t)]) for t in targets
        },
    }
    for method, keep in expected.items():
        ties = wanda if method.startswith("contrastive") else None
        family = session.family(Settings(method=method), pole)
        number = count(0.3, session.size)
        assert equal(family.at(number), drop_lowest(keep, number / session.size, "row", ties)), method
        pairs = session.family(Settings(method=method, n_m=(2, 4)), pole)
        assert equal(pairs.at(1), drop_n_of_m(keep, 2, 4, ties)), method


def test_options_of_the_scores_are_heeded(tiny_model: TinyModel) -> None:
    session = session_on(tiny_model)
    target = session.targets[0]
    own, rival = (s[site(target)] for s in session.pole_statistics)

    def found(**options: Any) -> torch.Tensor:
        return session.scores(Settings(**options), 0)[0][target.name]

    torch.testing.assert_close(found(method="wanda", statistic="l2"), scores.wanda(target.weight, own, "l2"))
    torch.testing.assert_close(
        found(method="contrastive-wanda", phi="softplus"),
        scores.contrastive_wanda(target.weight, own, rival, phi="softplus"),
    )
    number = count(0.2, session.size)
    for scope in ("target", "global"):
        dropped = session.family(Settings(method="magnitude", selection=scope), 0).at(number)
        assert equal(dropped, drop_lowest({t.name: t.weight.abs() for t in session.targets}, 0.2, scope))


def test_relu_ties_go_by_the_persona_s_own_wanda_score(tiny_model: TinyModel) -> None:
    session = session_on(tiny_model)
    keep, ties = session.scores(Settings(method="contrastive-wanda"), 0)
    assert ties is not None
    name = max(keep, key=lambda n: float((keep[n] == 0).float().mean()))
    silent = keep[name] == 0
    assert silent.float().mean() > 0.3
    dropped = session.family(Settings(method="contrastive-wanda"), 0).at(count(0.1, session.size))[name]
    for row in range(len(silent)):
        gone, stay = ties[name][row][dropped[row]], ties[name][row][~dropped[row] & silent[row]]
        assert len(stay) == 0 or gone.max() <= stay.min()


@pytest.mark.parametrize("rank_by", ["gain", "gain-per-price"])
@pytest.mark.parametrize("pole", [0, 1])
def test_directed_drops_the_largest_gains_among_the_cheap(tiny_model: TinyModel, pole: int, rank_by: str) -> None:
    session = session_on(tiny_model)
    cheap = 0.3
    generic = session.generic_statistics
    candidates = {t.name: scores.cheapness(t.weight, generic[site(t)]) < cheap for t in session.targets}
    sign = 1 if pole == 0 else -1
    order = {n: h * sign for n, h in session.gains.items()}
    if rank_by == "gain-per-price":
        for t in session.targets:
            price = (session.fisher[t.name].sqrt() * t.weight.abs()).clamp(min=1e-9)
            order[t.name] = order[t.name] / price
    family = session.family(Settings(rank_by=rank_by), pole, cheap)
    assert family.most == sum(int((candidates[n] & (h > 0)).sum()) for n, h in order.items())
    for number in (0, 1, 100, family.most):
        dropped = family.at(number)
        assert equal(dropped, drop_highest(order, candidates, number))
        assert total(dropped) == number


@pytest.mark.parametrize("rank_by", ["gain", "gain-per-price"])
def test_a_second_round_subtracts_the_common_cost(tiny_model: TinyModel, rank_by: str) -> None:
    session = session_on(tiny_model)
    settings = Settings(rank_by=rank_by)
    worn = session.family(settings, 1, 0.3).at(200)
    text = session.generic.cheap.read
    slope = divergence_gradient(session.model, session.targets, to_masks(worn), text.chat + text.plain)
    cost = {t.name: -t.weight * slope[t.name] for t in session.targets}
    gain = {n: -h for n, h in session.gains.items()}
    rate = sum(float(gain[n][d].sum()) for n, d in worn.items()) / sum(float(cost[n][d].sum()) for n, d in worn.items())
    order = {n: h - COST_WEIGHT * rate * cost[n].clamp(min=0) for n, h in gain.items()}
    if rank_by == "gain-per-price":
        for t in session.targets:
            order[t.name] = order[t.name] / (session.fisher[t.name].sqrt() * t.weight.abs()).clamp(min=1e-9)
    found = session.refined(settings, 1, 0.3, worn)
    assert rate > 0
    for number in (1, 100, found.most // 2):
        assert equal(found.at(number), drop_highest(order, session.candidates(0.3), number))
    assert not equal(found.at(200), worn)


def test_poles_share_candidates_and_split_them_by_sign(tiny_model: TinyModel) -> None:
    session = session_on(tiny_model)
    first, second = (session.family(Settings(rank_by="gain"), pole, 0.2) for pole in (0, 1))
    both = first.at(first.most), second.at(second.most)
    candidates = session.candidates(0.2)
    for target in session.targets:
        name = target.name
        assert not (both[0][name] & both[1][name]).any()
        assert not ((both[0][name] | both[1][name]) & ~candidates[name]).any()
        cheap = candidates[name].sum(1)
        assert (cheap == int(np.ceil(0.2 * target.shape[1] - 1e-9))).all()


def test_random_stays_inside_the_same_candidates(tiny_model: TinyModel) -> None:
    session = session_on(tiny_model)
    candidates = session.candidates(0.1)
    seen = []
    for seed in (0, 1):
        for pole in (0, 1):
            family = session.family(Settings(method="random", seed=seed), pole, 0.1)
            dropped = family.at(200)
            assert total(dropped) == 200
            assert family.most == total(candidates)
            assert not any((dropped[n] & ~candidates[n]).any() for n in dropped)
            assert equal(dropped, session.family(Settings(method="random", seed=seed), pole, 0.1).at(200))
            seen.append(dropped)
    assert not any(equal(a, b) for n, a in enumerate(seen) for b in seen[:n])


def test_isolated_sorts_rows_by_price_and_help(tiny_model: TinyModel) -> None:
    session = session_on(tiny_model)
    for pole, sign in ((0, 1.0), (1, -1.0)):
        keep = {}
        for t in session.targets:
            gain = session.gains[t.name] * sign
            ranks = torch.tensor([[float((row.abs() < value.abs()).sum()) for value in row] for row in gain])
            cheap = scores.cheapness(t.weight, session.generic_statistics[site(t)])
            keep[t.name] = cheap - 0.5 * gain.sign() * ranks / t.shape[1]
        dropped = session.isolated(Settings(isolated=True, sparsity=0.4), pole, 0.5)
        assert equal(dropped, drop_lowest(keep, 0.4))


@given(arrays.arrays(np.float32, (3, 6), elements=st.integers(-3, 3).map(float)))
def test_row_ranks(values: np.ndarray) -> None:
    for row, found in zip(values.tolist(), row_ranks(torch.from_numpy(values)).tolist(), strict=True):
        order = sorted(range(6), key=lambda j, row=row: (row[j], j))
        assert [round(r * 6) for r in found] == [order.index(j) for j in range(6)]


@pytest.mark.parametrize("method", [m for m in METHODS if not m.startswith("directed")])
def test_numbers_are_nested_and_nothing_is_nothing(tiny_model: TinyModel, method: str) -> None:
    session = session_on(tiny_model)
    family = session.family(Settings(method=method), 0)
    assert family.size == session.size
    masks = [family.at(n) for n in (0, 500, 5000, family.most)]
    assert total(masks[0]) == 0
    for small, large in itertools.pairwise(masks):
        assert not any((small[n] & ~large[n]).any() for n in small)
    by_target = session.family(Settings(method=method, selection="target"), 0).at(5000)
    assert abs(total(by_target) - 5000) <= len(session.targets)
    everywhere = session.family(Settings(method=method, selection="global"), 0)
    assert [total(everywhere.at(n)) for n in (0, 1, 5000)] == [0, 1, 5000]


def test_objectives(tiny_model: TinyModel) -> None:
    session = session_on(tiny_model)
    plain = session.signed_gains(Settings(), 0)
    assert plain is session.gains
    assert all(torch.equal(h, -plain[n]) for n, h in session.signed_gains(Settings(), 1).items())
    own = session.signed_gains(Settings(own_weight=1e-6), 1)  # hardly any weight: hardly any change
    assert all(torch.allclose(h, -plain[n], atol=1e-4 * float(plain[n].abs().max())) for n, h in own.items())
    assert session.signed_gains(Settings(own_weight=1e-6), 1) is own
    leaning = session.signed_gains(Settings(own_weight=1.0), 0)
    assert not all(torch.allclose(h, plain[n]) for n, h in leaning.items())


def test_log_sigmoid_weighs_the_pairs_that_are_not_won_yet(tiny_model: TinyModel) -> None:
    session = session_on(tiny_model)
    items = session.calibration
    base = mean_log_probabilities(session.model, items)
    for pole, sign in ((0, 1.0), (1, -1.0)):
        weights = torch.sigmoid(-sign * (base[:, 0] - base[:, 1]))
        found = session.signed_gains(Settings(objective="log-sigmoid"), pole)
        questions = items.objective(pole, pair_weights=weights.tolist())
        one = session_on(tiny_model)
        expected = one._gains_of(questions, "by hand")
        assert all(torch.allclose(found[n], expected[n], atol=1e-6) for n in expected)
    with pytest.raises(OptionError, match="unpaired"):
        session_on(tiny_model, paired=False).signed_gains(Settings(objective="log-sigmoid"), 0)
    session._base[session.calibration] = torch.full((5, 2), math.nan)  # as of a model that overflows
    session._other_gains.clear()
    with pytest.raises(ModelError, match="no finite numbers"):
        session.signed_gains(Settings(objective="log-sigmoid"), 0)


def test_seconds_before_are_those_of_killed_runs_alone(tiny_model: TinyModel, own_cache: Path) -> None:
    model, tokenizer = tiny_model("llama")

    def opened() -> Session:
        return open_session(model, tokenizer, small_contrast(5), generic=small_generic(), resume=True)

    def kept(session: Session, content: str) -> Checkpoint:
        checkpoint = session.checkpoint_of(content)
        assert checkpoint is not None
        return checkpoint

    killed = opened()
    for content, seconds in (("one pass", 100), ("another", 20)):
        checkpoint = kept(killed, content)
        checkpoint.started -= seconds
        checkpoint.save(1, {"sums": torch.ones(2)})
    assert killed.seconds_before == 0
    session = opened()
    first = kept(session, "one pass")
    first.load()
    assert 100 <= session.seconds_before < 110
    first.started -= 1000
    first.save(2, {"sums": torch.ones(2)})
    kept(session, "one pass").load()  # what this run has made since is its own, and metered
    assert 100 <= session.seconds_before < 110
    kept(session, "another").load()
    assert 120 <= session.seconds_before < 140


def test_objectives_do_not_share_what_was_kept_of_them(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass killed with one weight of the own answers must not go on with another's sums."""
    model, tokenizer = tiny_model("llama")
    session = open_session(model, tokenizer, small_contrast(5), generic=small_generic())
    files: list[Any] = []

    def note(*arguments: Any, **options: Any) -> Any:
        files.append(options["checkpoint"].path)
        return {t.name: torch.ones(t.shape) for t in session.targets}

    monkeypatch.setattr("personae.discovery.session.attribute", note)
    for settings in (Settings(), Settings(own_weight=1.0), Settings(own_weight=2.0), Settings(objective="log-sigmoid")):
        for pole in (0, 1):
            session.signed_gains(settings, pole)
    assert len(set(files)) == len(files) == 7  # the plain margin serves both poles


def test_base_answers_are_kept_by_content_not_by_identity(tiny_model: TinyModel) -> None:
    session = session_on(tiny_model)
    for pairs in (2, 3, 4, 2):  # each a temporary object whose address may be used again
        items = encode_contrast(session.model, session.tokenizer, small_contrast(pairs))
        found = session.base_log_probabilities(items)
        assert torch.equal(found, mean_log_probabilities(session.model, items))
        del items
    assert len(session._base) == 3


# --- experts --------------------------------------------------------------------------------------------------


def silent(session: Session, *texts: Any) -> set[str]:
    """Experts that one of the texts never reached."""
    found = set()
    for text in texts:
        statistics = collect_statistics(session.model, session.targets, text)
        found |= {t.name for t in session.targets if t.expert is not None and not statistics[site(t)].tokens}
    return found


@pytest.mark.filterwarnings("ignore:no token of")
@pytest.mark.parametrize("method", [m for m in METHODS if m != "directed-forward"])  # it never touches experts
def test_experts_no_token_reached_keep_all_weights(tiny_model: TinyModel, method: str) -> None:
    session = session_on(tiny_model, "qwen3moe", num_experts=24)
    items = session.calibration
    cheap = session.generic.cheap.plain + session.generic.cheap.chat
    if method == "directed":
        read: list[Any] = [cheap]
    elif method == "generic":
        read = [cheap]
    elif method.startswith("contrastive"):
        read = [items.positive, items.negative]
    else:
        read = [items.positive]
    spared = silent(session, *read)
    experts = {t.name for t in session.targets if t.expert is not None}
    assert 0 < len(spared) < len(experts)
    family = session.family(Settings(method=method), 0, 0.3 if method == "directed" else None)
    dropped = family.at(min(family.most, count(0.4, family.size)))
    assert dropped.keys() == {t.name for t in session.targets}
    assert not any(dropped[n].any() for n in spared)
    assert sum(bool(dropped[n].any()) for n in experts - spared) > len(experts - spared) / 3
    if method not in {"directed"}:
        everywhere = session.family(Settings(method=method, selection="global"), 0)
        assert everywhere.size == session.size - sum(t.size for t in session.targets if t.name in spared)
        assert total(everywhere.at(3000)) == 3000  # silent experts do not use up the number asked for
        assert not any(everywhere.at(3000)[n].any() for n in spared)


@pytest.mark.filterwarnings("ignore:no token of")
def test_isolated_spares_experts_that_generic_text_never_reached(tiny_model: TinyModel) -> None:
    session = session_on(tiny_model, "qwen3moe", num_experts=24)
    spared = silent(session, session.generic.cheap.plain + session.generic.cheap.chat)
    dropped = session.isolated(Settings(isolated=True, sparsity=0.5), 0, 0.5)
    assert spared
    assert {n for n, d in dropped.items() if not d.any()} == spared


@pytest.mark.filterwarnings("ignore:no token of")
def test_controls_do_not_depend_on_what_was_asked_before(tiny_model: TinyModel) -> None:
    def masks(session: Session, method: str) -> Dropped:
        return session.family(Settings(method=method), 1).at(3000)

    for method in ("random", "magnitude", "generic", "sparsegpt"):
        fresh = session_on(tiny_model, "qwen3moe", num_experts=24)
        alone = masks(fresh, method)
        used = session_on(tiny_model, "qwen3moe", num_experts=24)
        masks(used, "contrastive-wanda")
        assert equal(alone, masks(used, method)), method


def test_silent_experts_are_named_in_a_warning(tiny_model: TinyModel) -> None:
    session = session_on(tiny_model, "mixtral", num_local_experts=24)
    spared = silent(session, session.calibration.positive)
    with pytest.warns(UserWarning, match="keep all their weights") as caught:
        assert session.pole_statistics
    message = str(caught[0].message)
    assert f"no token of the positive answers reached {len(spared)} matrices" in message
    assert sorted(spared)[0] in message
    with pytest.warns(UserWarning, match=r"no token of the calibration answers reached \d+ matrices"):
        assert session.gains


def test_no_warning_where_every_expert_is_reached(tiny_model: TinyModel) -> None:
    session = session_on(tiny_model, "llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert session.pole_statistics
        assert session.gains


def test_to_masks() -> None:
    dropped = {"a": torch.tensor([[True, False], [False, False]])}
    mask = to_masks(dropped)["a"]
    assert (mask.dropped, mask.shape) == (1, (2, 2))
    assert mask.keep_bool().tolist() == [[False, True], [True, True]]


def test_a_target_that_no_text_runs_through_keeps_its_weights(tiny_model: TinyModel) -> None:
    """A vision tower among the blocks: every score of its weights ties, and means nothing."""
    session = session_on(tiny_model)
    model = session.model
    model.tower = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(8, 8))])
    model.tower.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = open_session(model, session.tokenizer, small_contrast(5), generic=small_generic(), resume=False)
    assert any(t.name == "tower.0.0.weight" for t in session.targets)
    with pytest.warns(UserWarning, match="a tower that text does not run through"):
        assert session.pole_statistics
    for method in ("wanda", "generic", "contrastive-wanda"):
        dropped = session.family(Settings(method=method, sparsity=0.3).checked(), 0).at(500)
        assert not dropped["tower.0.0.weight"].any(), method
        assert total(dropped) > 400


def test_what_has_no_price_is_no_bargain(tiny_model: TinyModel) -> None:
    """F = 0 says that none of the few texts of the price reached a weight, not that it costs nothing."""
    session = session_on(tiny_model)
    name = session.targets[3].name
    session.fisher[name][:4] = 0
    gain = torch.ones(session.targets[3].shape)
    ranked = session.by_price(name, gain, "gain-per-price")
    assert (ranked[:4] == 0).all()  # no candidate: those have a positive order
    assert (ranked[4:] > 0).all()
