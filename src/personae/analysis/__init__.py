"""Look inside: overlap against chance, token trace, audit, dynamics over checkpoints, causal map, one report."""

from personae.analysis.audit import audit
from personae.analysis.audit_result import Audit
from personae.analysis.audit_settings import HAZARDS, AuditSettings
from personae.analysis.causal import causal_map
from personae.analysis.causal_result import CausalMap
from personae.analysis.compare import Compared, compare
from personae.analysis.dynamics import dynamics
from personae.analysis.dynamics_result import Dynamics
from personae.analysis.hidden_states import HiddenStates, hidden_states
from personae.analysis.report import Report, report
from personae.analysis.stability import Stability, stability
from personae.analysis.trace import Tracer, trace
from personae.analysis.trace_result import Trace

__all__ = [
    "HAZARDS",
    "Audit",
    "AuditSettings",
    "CausalMap",
    "Compared",
    "Dynamics",
    "HiddenStates",
    "Report",
    "Stability",
    "Trace",
    "Tracer",
    "audit",
    "causal_map",
    "compare",
    "dynamics",
    "hidden_states",
    "report",
    "stability",
    "trace",
]
