"""`personae discover`: what it finds, prints and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import Cli, write_contrast
from personae import discovery
from personae.cli.discover import parse_n_m
from personae.discovery import METHODS
from personae.errors import OptionError
from personae.personas import Contrast, cross_fit
from personae.subnetwork import load

SHARES = ("--cheap-share", "0.3", "--drop-share", "0.05")  # quick: no search for the budget


def test_the_default_is_a_search_inside_the_capability_budget(
    cli: Cli, llama: Path, contrast: Path, here: Path
) -> None:
    ended = cli("discover", contrast, "--model", llama)
    assert ended.code == 0, ended.err
    assert "loud: " in ended.out
    assert "quiet: " in ended.out
    assert "capability budget" in ended.err
    made = load(here / "loud-quiet.persona")
    assert made.names == ("loud", "quiet")
    for name in made:
        assert made[name].provenance.parameters["max_capability_loss"] == 0.05
        assert made[name].provenance.measured["capability_loss_searched"] <= 0.05  # type: ignore[operator]
    assert [p.name for p in here.iterdir()] == ["loud-quiet.persona"]


def test_short_steps_keep_the_budget(cli: Cli, llama: Path, contrast: Path, here: Path) -> None:
    ended = cli("discover", contrast, "--model", llama, "--steps", "4", "--max-capability-loss", "0.5")
    assert ended.code == 0, ended.err
    assert "short steps (pole 2)" in ended.err
    made = load(here / "loud-quiet.persona")
    for name in made:
        assert made[name].provenance.parameters["steps"] == 4
        assert made[name].provenance.parameters["objective"] == "log-sigmoid"
        assert made[name].dropped > 0
        assert made[name].provenance.measured["capability_loss_bound"] <= 0.5  # type: ignore[operator]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_drops_what_was_asked(cli: Cli, llama: Path, contrast: Path, here: Path, method: str) -> None:
    share = {"directed": 0.05, "directed-forward": 0.02}.get(method)  # the latter has fewer candidates
    asked = ("--cheap-share", "0.3", "--drop-share", str(share)) if share else ("--sparsity", "0.3")
    ended = cli("discover", contrast, "--model", llama, "--method", method, *asked, "--json")
    assert ended.code == 0, ended.err
    result = ended.json
    assert result["artefact"] == str(here / "loud-quiet.persona")
    made = load(result["artefact"])
    for name in ("loud", "quiet"):
        shown = result["personas"][name]
        assert shown["method"] == method
        assert shown["sparsity"] == made[name].sparsity  # what came out: rows round 0.3
        assert shown["sparsity"] == pytest.approx(share or 0.3, abs=0.02)
        assert shown["dropped"] == made[name].dropped
    assert (made["loud"].masks != made["quiet"].masks) == (method not in {"magnitude", "generic"})


def test_isolated_keeps_half_of_every_row(cli: Cli, llama: Path, contrast: Path, here: Path) -> None:
    ended = cli("discover", contrast, "--model", llama, "--isolated", "--sparsity", "0.5", "--json")
    assert ended.code == 0, ended.err
    made = load(here / "loud-quiet.persona")
    for name in made:
        for mask in made[name].masks.values():
            assert mask.dropped_bool().mean(axis=1) == pytest.approx(0.5)


def test_n_of_m(cli: Cli, llama: Path, contrast: Path, here: Path) -> None:
    assert cli("discover", contrast, "--model", llama, "--method", "wanda", "--n-m", "2:4").code == 0
    for mask in load(here / "loud-quiet.persona")["loud"].masks.values():
        assert (mask.dropped_bool().reshape(-1, 4).sum(axis=1) == 2).all()


def test_parse_n_m() -> None:
    assert parse_n_m(None) is None
    assert parse_n_m("2:4") == (2, 4)
    for wrong in ("2", "2:4:8", "a:b", "4:2", "0:4", "4:4", "-1:4"):
        with pytest.raises(OptionError, match="--n-m"):
            parse_n_m(wrong)


def test_cross_fit_measures_each_fold_and_then_calibrates_on_everything(cli: Cli, llama: Path, here: Path) -> None:
    small = write_contrast(here / "small.jsonl", pairs=11)
    ended = cli(
        "discover",
        small,
        "--model",
        llama,
        "--isolated",
        "--sparsity",
        "0.5",
        "--cross-fit",
        "5",
        "--json",
        "-o",
        "small.persona",
    )
    assert ended.code == 0, ended.err
    folds = ended.json["cross_fit"]
    assert [f["fold"] for f in folds] == [1, 2, 3, 4, 5]
    assert sum(f["items"] for f in folds) == 11
    assert all(0 <= f[key] <= 1 for f in folds for key in ("acc", "acc_opposite"))
    made = load(here / "small.persona")
    assert made.metadata["cross_fit"] == folds
    calibration = made["loud"].provenance.calibration
    assert calibration is not None
    assert calibration.items == 11


def test_no_fold_reads_what_it_is_measured_on(
    cli: Cli, llama: Path, contrast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Contrast] = []
    held: list[Contrast] = []
    discover, encode = discovery.discover, discovery.encode_contrast

    def finds(model: Any, tokenizer: Any, items: Contrast, **options: Any) -> Any:
        given.append(items)
        assert options.get("split_seed") is None
        assert "dev" not in options
        return discover(model, tokenizer, items, **options)

    monkeypatch.setattr(discovery, "discover", finds)
    monkeypatch.setattr(discovery, "encode_contrast", lambda m, t, c, **o: held.append(c) or encode(m, t, c, **o))
    quick = ("--model", llama, "--method", "magnitude", "--sparsity", "0.3", "--cross-fit", "3", "-o", "x.persona")
    assert cli("discover", contrast, *quick).code == 0
    assert len(given) == 4  # three folds, and everything
    assert len(held) == 3
    for calibration, fold in zip(given, held, strict=False):
        assert not set(calibration.prompts) & set(fold.prompts)
        assert set(calibration.prompts) | set(fold.prompts) == set(given[-1].prompts)


def test_cross_fit_is_printed(cli: Cli, llama: Path, contrast: Path) -> None:
    ended = cli("discover", contrast, "--model", llama, "--method", "wanda", "--sparsity", "0.3", "--cross-fit", "2")
    assert ended.code == 0, ended.err
    assert "fold 2: acc " in ended.out
    assert "30 items, which calibrated it too" in ended.out


def test_the_split_seed_deals_the_folds(
    cli: Cli, llama: Path, contrast: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dealt: list[list[tuple[Contrast, Contrast]]] = []

    def deal(*given: Any, **options: Any) -> list[tuple[Contrast, Contrast]]:
        dealt.append(cross_fit(*given, **options))
        return dealt[-1]

    monkeypatch.setattr("personae.personas.cross_fit", deal)
    quick = ("--model", llama, "--method", "magnitude", "--sparsity", "0.3", "--cross-fit", "2", "-o", "x.persona")
    for seed in (0, 7):
        assert cli("discover", contrast, *quick, "--split-seed", str(seed)).code == 0
        assert load(here / "x.persona").metadata["cross_fit_seed"] == seed
    assert dealt[0][0][1].prompts != dealt[1][0][1].prompts


def test_one_sided_data_take_the_base_models_answers_for_a_rival(cli: Cli, llama: Path, here: Path) -> None:
    rows = [{"prompt": f"What about part {n}?", "answer": f"I would sing, and {n} times."} for n in range(6)]
    (here / "singer.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ended = cli("discover", "singer.jsonl", "--model", llama, *SHARES, "--all-items", "--json")
    assert ended.code == 0, ended.err
    assert "singer.jsonl is one-sided" in ended.err
    assert list(ended.json["personas"]) == ["singer"]
    refused = cli("discover", "singer.jsonl", "--model", llama, "--method", "contrastive-wanda", "--sparsity", "0.3")
    assert refused.code == 2
    assert "one-sided" in refused.err
    named = cli("discover", "singer.jsonl", "--model", llama, "--positive", "Ann", "--negative", "Ben")
    assert named.code == 2
    assert "--positive and --negative would name poles, but singer.jsonl is read as one persona" in named.err
    folded = cli("discover", "singer.jsonl", "--model", llama, "--cross-fit", "3")
    assert folded.code == 2
    assert "--cross-fit needs both poles" in folded.err


def test_roles_of_a_role_play_file(cli: Cli, llama: Path, here: Path) -> None:
    rows = [
        {"role": role, "question": f"What about part {n}?", "generated": [f"{role} says {n}."]}
        for n in range(6)
        for role in ("Ann", "Ben", "Cy")
    ]
    (here / "roles.jsonl").write_text("\n".join(map(json.dumps, rows)))
    quick = ("--method", "wanda", "--sparsity", "0.3", "--all-items")
    both = cli("discover", "roles.jsonl", "--model", llama, *quick, "--role", "Ann", "--against", "Cy", "--json")
    assert list(both.json["personas"]) == ["Ann", "Cy"]
    alone = cli("discover", "roles.jsonl", "--model", llama, *quick, "--role", "Ben", "--json")
    assert list(alone.json["personas"]) == ["Ben"]
    named = cli("discover", "roles.jsonl", "--model", llama, *quick, "--role", "Ben", "--positive", "Benjamin")
    assert named.code == 2
    assert "--positive would name poles, but roles.jsonl is read as one persona, 'Ben': leave it out" in named.err


def test_output_goes_where_it_is_told_and_pairs_limits_the_data(
    cli: Cli, llama: Path, contrast: Path, tmp_path: Path, here: Path
) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    ended = cli(
        "discover", contrast, "--model", llama, *SHARES, "--pairs", "20", "--all-items", "--target", "*mlp*",
        "-o", elsewhere / "my.persona",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert f"saved to {elsewhere / 'my.persona'}" in ended.out  # in one piece, however long
    assert not list(here.iterdir())
    made = load(elsewhere / "my.persona")
    assert all("mlp" in name for name in made.model.targets)
    calibration = made["loud"].provenance.calibration
    assert calibration is not None
    assert calibration.items == 20


def test_a_home_directory_is_understood(
    cli: Cli, llama: Path, contrast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli("discover", contrast, "--model", llama, *SHARES, "--output=~/home.persona").code == 0
    assert (tmp_path / "home.persona").is_file()


def test_names_that_look_like_markup_are_printed_as_they_are(cli: Cli, llama: Path, here: Path) -> None:
    data = write_contrast(here / "odd[red].jsonl", positive="[bold]loud", negative="quiet [INST]")
    ended = cli("discover", data, "--model", llama, *SHARES, "-o", "odd[red].persona")
    assert ended.code == 0, ended.err
    assert "[bold]loud: " in ended.out
    assert "quiet [INST]: " in ended.out
    assert "saved to odd[red].persona" in ended.out
    listed = cli("list", "odd[red].persona")
    assert listed.code == 0
    assert "[bold]loud" in listed.out
    worn = cli(
        "chat", "odd[red].persona", "--model", llama, "--max-new-tokens", "2",
        stdin='/persona quiet [INST]\n/persona "quiet [INST]" 0.5\n/list\n',
    )  # fmt: skip
    assert worn.code == 0
    assert "[bold]loud, quiet [INST]" in worn.out
    assert "'[INST]' is not a strength" in worn.err
