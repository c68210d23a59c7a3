"""Look inside: overlap against chance, token trace, audit, dynamics over checkpoints, causal map, one report."""
