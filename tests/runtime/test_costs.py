from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from personae.models import find_targets
from personae.runtime import costs
from personae.runtime.costs import Costs, cheaper, measure

SOME = Costs(dense=1.0, sparse=4.0, call=10.0)


def decide(nonzeros: int, touched: int, given: Costs = SOME) -> bool:
    """For a model of 10 targets with 1000 weights of 4 bytes."""
    return cheaper(nonzeros, touched, weights=1000, targets=10, size=4000, costs=given)


def test_a_sparse_look_is_cheaper_and_a_dense_one_is_not() -> None:
    assert decide(nonzeros=10, touched=10)
    assert decide(nonzeros=125, touched=10), "an eighth of the weights takes a quarter of their memory"
    assert not decide(nonzeros=126, touched=10)
    roomy = dataclasses.replace(SOME, share=math.inf)
    assert decide(nonzeros=249, touched=10, given=roomy)
    assert not decide(nonzeros=250, touched=10, given=roomy)
    assert decide(nonzeros=250, touched=9, given=roomy), "the tenth target costs nothing"


def test_where_there_is_no_sparse_product_only_channels_are_cheaper() -> None:
    none = dataclasses.replace(SOME, sparse=math.inf)
    assert not decide(nonzeros=1, touched=1, given=none)
    assert decide(nonzeros=0, touched=10, given=none)


@given(st.integers(0, 300), st.integers(0, 10), st.integers(0, 300), st.integers(0, 10))
def test_less_is_never_dearer(nonzeros: int, touched: int, more: int, further: int) -> None:
    if decide(nonzeros + more, min(10, touched + further)):
        assert decide(nonzeros, touched)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_what_this_machine_does_is_measured(tiny_model, architecture, dtype) -> None:
    model, _ = tiny_model(architecture, dtype=dtype)
    found = measure(find_targets(model))
    assert all(0 < seconds < 1 for seconds in (found.dense, found.sparse, found.call))


def test_a_machine_without_sparse_products(tiny_model, monkeypatch) -> None:
    def refused(*arguments: object) -> torch.Tensor:
        raise NotImplementedError("no CSR here")

    monkeypatch.setattr(costs, "csr", refused)
    assert measure(find_targets(tiny_model("llama")[0])).sparse == math.inf
