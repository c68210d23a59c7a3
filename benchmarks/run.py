"""`make bench`: run every benchmark whose result is missing (or all, with --again) and gather summary.json."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from benchmarks.common import RESULTS, write

PARTS = {
    "discovery_speed": ["benchmarks.discovery_speed"],
    "ai_persona_power": ["benchmarks.ai_persona", "power"],
    "ai_persona_wealth": ["benchmarks.ai_persona", "wealth"],
    "ai_persona_power_methods": ["benchmarks.ai_persona", "power", "--methods"],
    "ai_persona_wealth_methods": ["benchmarks.ai_persona", "wealth", "--methods"],
    "objectives": ["benchmarks.objectives"],
    "planted": ["benchmarks.planted"],
}


def summary() -> dict[str, float]:
    """The flat object of headline numbers, from the result files that are there."""
    flat: dict[str, float] = {}
    for name in ("power", "wealth"):
        found = _read(f"ai_persona_{name}")
        if found:
            row = next(r for r in found["evaluation"]["rows"] if r["name"] == "directed")
            for key in ("acc", "acc_opposite", "acc_tied", "acc_tied_opposite"):
                flat[f"{name}.directed.{key}"] = _value(row[key])
            flat[f"{name}.directed.capability_loss"] = row["capability_loss"]
    speed = _read("discovery_speed")
    if speed:
        flat["discovery.statistics_over_forward"] = speed["statistics_over_forward"]
        flat["discovery.attribution_over_forward"] = speed["attribution_over_forward"]
        flat["scoring.shared_prompt_speedup"] = speed["shared_prompt_speedup"]
        flat["memory.statistics_over_model"] = speed["memory.statistics_over_model"]
        flat["memory.attribution_over_model"] = speed["memory.attribution_over_model"]
    planted = _read("planted")
    if planted:
        flat["planted.directed_auc"] = _value(planted["figures"]["planted.directed_auc"])
    return flat


def _read(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _value(figure: Any) -> float:
    return float(figure["value"] if isinstance(figure, dict) else figure)


def main() -> None:
    """Run, then gather."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="run parts whose result is there already")
    parser.add_argument("--gather", action="store_true", help="run nothing, only gather")
    options = parser.parse_args()
    for name, command in PARTS.items():
        if not options.gather and (options.again or not (RESULTS / f"{name}.json").is_file()):
            subprocess.run([sys.executable, "-m", *command], check=True)
    print(write("summary", summary()))


if __name__ == "__main__":
    main()
