"""From text to masks: statistics, attribution, scores, selection, budget, and the method that joins them."""

from personae.discovery.attribution import WeightedQuestion, attribute
from personae.discovery.budget import Capability, capability, largest_within, loss_bound_of
from personae.discovery.calibration import (
    Calibration,
    against_base,
    encode_contrast,
    margin,
    mean_log_probabilities,
)
from personae.discovery.choice import Choice, choose, measure
from personae.discovery.discover import DEV_ITEMS, discover, open_session, versions
from personae.discovery.divergence import divergence_gradient
from personae.discovery.forward import Writer, directions, forward_gains, residual_writers
from personae.discovery.generic import READ_ANSWERS, GenericText, generic_text, windows
from personae.discovery.metering import Cost, metered
from personae.discovery.progress import Progress, silent
from personae.discovery.resume import Checkpoint
from personae.discovery.selection import drop_highest, drop_lowest, drop_n_of_m
from personae.discovery.session import Family, Session, to_masks
from personae.discovery.settings import DEFAULT_BUDGET, DEFAULT_ROUNDS, METHODS, Settings
from personae.discovery.statistics import InputStatistics, collect_statistics, merge, site
from personae.discovery.steps import STEP_PAIRS, family_of, stepped

__all__ = [
    "DEFAULT_BUDGET",
    "DEFAULT_ROUNDS",
    "DEV_ITEMS",
    "METHODS",
    "READ_ANSWERS",
    "STEP_PAIRS",
    "Calibration",
    "Capability",
    "Checkpoint",
    "Choice",
    "Cost",
    "Family",
    "GenericText",
    "InputStatistics",
    "Progress",
    "Session",
    "Settings",
    "WeightedQuestion",
    "Writer",
    "against_base",
    "attribute",
    "capability",
    "choose",
    "collect_statistics",
    "directions",
    "discover",
    "divergence_gradient",
    "drop_highest",
    "drop_lowest",
    "drop_n_of_m",
    "encode_contrast",
    "family_of",
    "forward_gains",
    "generic_text",
    "largest_within",
    "loss_bound_of",
    "margin",
    "mean_log_probabilities",
    "measure",
    "merge",
    "metered",
    "open_session",
    "residual_writers",
    "silent",
    "site",
    "stepped",
    "to_masks",
    "versions",
    "windows",
]
