"""From files to parts: one a file, in the order given, and before them what several files say together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from personae.analysis.report_artefact import artefact_part
from personae.analysis.report_audit import audit_part
from personae.analysis.report_causal import causal_part
from personae.analysis.report_dynamics import dynamics_part
from personae.analysis.report_evaluation import evaluation_part, joint_frontiers
from personae.analysis.report_frontier import frontier_part
from personae.analysis.report_overlap import compare_part, overlap_part
from personae.analysis.report_pieces import Part
from personae.analysis.report_read import Given
from personae.analysis.report_suites import suite_part
from personae.analysis.report_trace import trace_part

__all__ = ["parts_of"]

_READERS: Mapping[str, Callable[[Given], Part]] = {
    "artefact": artefact_part,
    "audit": audit_part,
    "causal-map": causal_part,
    "compare": compare_part,
    "dynamics": dynamics_part,
    "evaluation": evaluation_part,
    "frontier": frontier_part,
    "suite": suite_part,
    "trace": trace_part,
}


def parts_of(files: Sequence[Given]) -> tuple[Part, ...]:
    """Errors: `DataError` naming file and field where a file lacks what its format promises."""
    own = [_READERS[given.kind](given) for given in files]
    return (*_together(files), *own)


def _together(files: Sequence[Given]) -> list[Part]:
    """Figures that compare files, each within one model: never across two."""
    groups: dict[Any, list[Given]] = {}
    for given in files:
        if given.model is not None:
            groups.setdefault(given.model.fingerprint, []).append(given)
    found: list[Part] = []
    for group in groups.values():
        found += joint_frontiers([given for given in group if given.kind == "evaluation"])
        artefacts = [given for given in group if given.kind == "artefact"]
        if sum(len(given.artefact or ()) for given in artefacts) > 1:
            found.append(overlap_part(artefacts))
    return found
