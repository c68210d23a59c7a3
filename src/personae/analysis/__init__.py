"""Look inside: overlap against chance, token trace, audit, dynamics over checkpoints, causal map, one report."""

from personae.analysis.compare import Compared, compare
from personae.analysis.hidden_states import HiddenStates, hidden_states
from personae.analysis.stability import Stability, stability

__all__ = ["Compared", "HiddenStates", "Stability", "compare", "hidden_states", "stability"]
