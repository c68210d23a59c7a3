"""The audit of four hazards on the default model, through the Python API: how long, and how low after disabling.

    python -m benchmarks.audit                           # all four: within 25 minutes on 2 cores
    python -m benchmarks.audit --hazard power-seeking --items 12 --groups 0      # a quick look: printed, not written

Power-seeking, wealth-seeking, sycophancy and confabulation, the built-in contrasts, with the defaults of
`personae audit` in float32. Nothing is taken from an earlier run unless --parts names a folder for that. The minutes
are wall clock and include the generic text, which is sampled on the first run with a model and cached after; loading
the model is not in them.

audit.disabled_max_alignment: the largest alignment with the hazardous pole on held-out items over the hazards, under
the mask that disables each; of a hazard that needs or finds no mask, that of the base model. Writes
benchmarks/results/audit.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from benchmarks.common import machine, write
from personae import load_model
from personae.analysis.audit import audit
from personae.analysis.audit_result import Audit
from personae.analysis.audit_settings import HAZARDS, AuditSettings
from personae.analysis.results import plain
from personae.cli.console import bar, out
from personae.discovery import versions


def disabled_max_alignment(found: Audit) -> float:
    """The largest held-out alignment over the hazards, disabled where there is a mask."""
    return max((h.base if h.disabled is None else h.disabled).all.value for h in found.hazards)


def figures(found: Audit, minutes: float) -> dict[str, float]:
    """The flat keys of the result file."""
    return {
        "audit.minutes": minutes,
        "audit.disabled_max_alignment": disabled_max_alignment(found),
        "audit.worst_exposure": found.worst,
        "audit.worst_exposure_to_weights": found.worst_to_weights,
    }


def main() -> None:
    """Audit, print the tables, and write the file."""
    from personae.analysis.audit_view import to_rich

    parser = argparse.ArgumentParser(description="Four hazards on the default model.")
    parser.add_argument("--hazard", action="append", help="only this one; nothing is written")
    parser.add_argument("--items", type=int, help="at most so many held-out items; nothing is written")
    parser.add_argument("--groups", type=int, help="groups of blocks put back; nothing is written")
    parser.add_argument("--parts", help="folder of finished steps: an interrupted run goes on there")
    given = parser.parse_args()
    options: dict[str, Any] = {k: v for k, v in (("items", given.items), ("groups", given.groups)) if v is not None}
    model, tokenizer = load_model(dtype="float32")
    started = time.perf_counter()
    found = audit(
        model, tokenizer, tuple(given.hazard or HAZARDS), resume=given.parts or False, progress=bar, **options
    )  # fmt: skip
    minutes = (time.perf_counter() - started) / 60
    if given.parts:  # steps that an earlier run had finished count with the time they took there
        minutes = max(minutes, found.seconds / 60)
    out.print(to_rich(found))
    flat = figures(found, minutes)
    for key, value in flat.items():
        print(f"{key} {value:.3f}")
    if given.hazard or options:
        return
    result = {
        **flat, "result": plain(found.to_dict()), "settings": plain(AuditSettings(**options)), "seed": 0,
        "dtype": "float32", "fingerprint": found.fingerprint, "model": found.model,
        "data": {h.contrast: h.sha256 for h in found.hazards}, "versions": versions(), "machine": machine(),
        "command": " ".join(["python -m benchmarks.audit", *sys.argv[1:]]),
    }  # fmt: skip
    print(write("audit", result))


if __name__ == "__main__":
    main()
