"""The planted model, for the tests of discovery: see `personae.evaluation.suites.planted_models`."""

from __future__ import annotations

from personae.evaluation.suites.planted_models import Planted, auc, make_planted

__all__ = ["Planted", "auc", "make_planted"]
