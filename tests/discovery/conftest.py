"""A cache directory of its own for every test, and the planted model once a session."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from planted import Planted, make_planted


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is read from, or left in, the user's cache; a slow disk changes nothing of what is kept."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("personae.discovery.resume.SLOW_WRITE", math.inf)
    monkeypatch.setenv("PERSONAE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def planted() -> Planted:
    """Trained once; tests leave it as they found it."""
    return make_planted()
