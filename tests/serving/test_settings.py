"""The operator's decisions."""

from __future__ import annotations

import pytest

from personae.errors import OptionError
from personae.serving import Settings


@pytest.mark.parametrize("name", ["", " ", "a:b", "a\nb"])
def test_names_that_no_model_id_can_hold(name: str) -> None:
    with pytest.raises(OptionError, match="cannot name the model"):
        Settings(name)


@pytest.mark.parametrize("limit", ["max_tokens", "max_body", "max_upload"])
def test_limits_are_at_least_one(limit: str) -> None:
    with pytest.raises(OptionError, match="at least 1"):
        Settings("owner/model", **{limit: 0})  # type: ignore[arg-type]
    assert getattr(Settings("owner/model", **{limit: 1}), limit) == 1  # type: ignore[arg-type]
