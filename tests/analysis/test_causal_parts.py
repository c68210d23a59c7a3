"""Parts of a causal map: names of projections in every architecture, and that each level covers the model once."""

from __future__ import annotations

from typing import Any

import pytest

from personae.analysis.causal_parts import check_levels, parts_of, projections
from personae.analysis.causal_result import LEVELS
from personae.errors import OptionError
from personae.models import find_targets


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt2", {"c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"}),
        ("mixtral", {"q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2", "w3"}),
    ],
)
def test_projections(tiny_model: Any, architecture: str, expected: set[str]) -> None:
    targets = find_targets(tiny_model(architecture)[0])
    assert set(projections(targets).values()) == expected
    assert {part.name for part in parts_of(targets, "target")} == expected


def test_every_level_covers_every_target_once(tiny_model: Any, architecture: str) -> None:
    targets = find_targets(tiny_model(architecture)[0])
    for level in LEVELS:
        parts = parts_of(targets, level)
        names = [target.name for part in parts for target in part.targets]
        assert sorted(names) == sorted(target.name for target in targets)
        assert len({part.name for part in parts}) == len(parts)
    blocks = [part.block for part in parts_of(targets, "block")]
    assert blocks == sorted({target.block for target in targets})


def test_levels_are_checked_and_ordered() -> None:
    assert check_levels(["cell", "kind"]) == ("kind", "cell")
    with pytest.raises(OptionError, match="unknown --by 'head': choose block, kind, target, cell"):
        check_levels(["head"])
