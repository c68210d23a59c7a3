"""Every contradiction names both options before anything is computed."""

from __future__ import annotations

import math
from typing import Any

import pytest

from personae.discovery import DEFAULT_BUDGET, DEFAULT_ROUNDS, METHODS, Settings
from personae.errors import OptionError

BUDGET = "--max-capability-loss"
EXCLUSIONS: list[tuple[dict[str, Any], tuple[str, str]]] = [
    ({"max_capability_loss": 0.1, "cheap_share": 0.1}, (BUDGET, "--cheap-share")),
    ({"max_capability_loss": 0.1, "drop_share": 0.1}, (BUDGET, "--drop-share")),
    ({"max_capability_loss": 0.1, "sparsity": 0.5, "method": "wanda"}, (BUDGET, "--sparsity")),
    ({"max_capability_loss": 0.1, "n_m": (2, 4), "method": "wanda"}, (BUDGET, "--n-m")),
    ({"max_capability_loss": 0.1, "sparsity": 0.5, "isolated": True}, (BUDGET, "--sparsity")),
    ({"isolated": True}, ("--isolated", "--sparsity")),
    ({"isolated": True, "max_capability_loss": 0.1}, ("--isolated", "--sparsity")),
    ({"isolated": True, "method": "wanda", "sparsity": 0.5}, ("--isolated", "--method")),
    ({"isolated": True, "sparsity": 0.5, "cheap_share": 0.1}, ("--isolated", "--cheap-share")),
    ({"isolated": True, "sparsity": 0.5, "drop_share": 0.1}, ("--isolated", "--drop-share")),
    ({"sparsity": 0.5}, ("--method directed", "--sparsity")),
    ({"method": "wanda", "cheap_share": 0.1}, ("--cheap-share", "wanda")),
    ({"method": "random", "drop_share": 0.1}, ("--drop-share", "random")),
    ({"n_m": (2, 4)}, ("--n-m", "directed")),
    ({"rounds": 2, "drop_share": 0.1}, ("--rounds", "shares")),
    ({"steps": 2, "drop_share": 0.1}, ("--steps", "shares")),
    ({"steps": 2, "method": "wanda"}, ("--steps", "directed")),
    ({"steps": 2, "rounds": 1}, ("--steps", "--rounds")),
    ({"step_share": 0.001}, ("--step-share", "needs --steps")),
    ({"steps": 2, "step_share": 1.5}, ("--step-share",)),
    ({"rounds": 2, "method": "wanda"}, ("--rounds", "directed")),
    ({"rounds": 2, "isolated": True, "sparsity": 0.5}, ("--rounds", "sparsity")),
    ({"method": "wanda", "n_m": (2, 4), "sparsity": 0.5}, ("--n-m", "--sparsity")),
    ({"method": "wanda", "n_m": (2, 4), "selection": "global"}, ("--n-m", "--selection")),
    ({"forward": "separation"}, ("--forward belongs to directed-forward", "not to directed,")),
    ({"method": "wanda", "forward": "separation"}, ("--forward", "wanda")),
    ({"phi": "softplus"}, ("--phi belongs to contrastive-wanda", "not to directed,")),
    ({"method": "contrastive-sparse", "phi": "softplus"}, ("--phi", "contrastive-sparse")),
    ({"method": "wanda", "rank_by": "gain"}, ("--rank-by belongs to directed", "not to wanda")),
    ({"isolated": True, "sparsity": 0.5, "rank_by": "gain"}, ("--rank-by", "not to --isolated")),
    ({"statistic": "l2"}, ("--statistic belongs to wanda", "not to directed,")),
    ({"method": "sparsegpt", "statistic": "l2"}, ("--statistic", "sparsegpt")),
]
OUT_OF_RANGE: list[tuple[dict[str, Any], str]] = [
    ({"method": "prune"}, "'prune'"),
    ({"selection": "column"}, "--selection 'column'"),
    ({"statistic": "l1"}, "--statistic 'l1'"),
    ({"phi": "gelu"}, "--phi 'gelu'"),
    ({"tokens": "some"}, "--tokens 'some'"),
    ({"rank_by": "luck"}, "--rank-by 'luck'"),
    ({"objective": "luck"}, "--objective 'luck'"),
    ({"rounds": 0}, "--rounds is 0"),
    ({"steps": 0}, "--steps is 0"),
    ({"own_weight": -0.1}, "--own-weight is -0.1"),
    ({"own_weight": math.nan}, "--own-weight is nan"),
    ({"cheap_share": 0.0}, "--cheap-share is 0.0"),
    ({"drop_share": 1.0}, "--drop-share is 1.0"),
    ({"method": "wanda", "sparsity": 1.5}, "--sparsity is 1.5"),
    ({"max_capability_loss": 0.0}, "--max-capability-loss is 0.0"),
    ({"max_capability_loss": math.inf}, "--max-capability-loss is inf"),
    ({"max_capability_loss": math.nan}, "--max-capability-loss is nan"),
]


@pytest.mark.parametrize(("options", "named"), EXCLUSIONS)
def test_exclusions_name_both_options(options: dict[str, Any], named: tuple[str, str]) -> None:
    with pytest.raises(OptionError) as caught:
        Settings(**options).checked()
    assert all(name in str(caught.value) for name in named)


@pytest.mark.parametrize(("options", "message"), OUT_OF_RANGE)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Settings(**options).checked()
    assert message in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_the_budget_is_the_default(method: str) -> None:
    rounds = DEFAULT_ROUNDS if method == "directed" else None
    assert Settings(method=method).checked() == Settings(
        method=method, max_capability_loss=DEFAULT_BUDGET, rounds=rounds
    )


@pytest.mark.parametrize(
    "options",
    [
        {"cheap_share": 0.1}, {"drop_share": 0.01}, {"isolated": True, "sparsity": 0.5},
        {"method": "wanda", "sparsity": 0.5, "selection": "global"}, {"method": "wanda", "n_m": (2, 4)},
        {"max_capability_loss": 0.2, "rounds": 1}, {"cheap_share": 0.1, "rank_by": "gain"},
        {"method": "directed-forward", "drop_share": 0.01, "forward": "separation", "rank_by": "gain"},
        {"method": "contrastive-wanda", "sparsity": 0.5, "phi": "softplus", "statistic": "l2"},
    ],
)  # fmt: skip
def test_what_says_how_much_to_drop_is_left_alone(options: dict[str, Any]) -> None:
    settings = Settings(**options)
    assert settings.checked() == settings
