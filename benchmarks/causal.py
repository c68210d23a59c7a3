"""Which blocks and kinds the masks of two rounds need, and which are enough: the causal map of the default model.

    python -m benchmarks.causal power wealth             # some 20 minutes of one core each, by its 184 readings

The mask of the positive pole (`python -m benchmarks.ai_persona`) on its own contrast's test items, float32; kinds and
cells (one kind in one block), one draw of random weights in each. Writes benchmarks/results/causal_<set>.json in the
format of `personae causal-map -o`; finished readings are kept under benchmarks/.parts.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from benchmarks.ai_persona import SETS, contrast_of
from benchmarks.common import RESULTS, ROOT, machine, write
from benchmarks.suites import committed_masks
from personae import load_model
from personae.analysis import causal_map
from personae.analysis.results import Record, said
from personae.cli.console import bar
from personae.evaluation.suites import SuiteContext

ITEMS = 16
LEVELS = ("kind", "cell")


def figures(name: str, found: Any) -> dict[str, Any]:
    """Flat keys: the gain of the whole mask, and of each kind what is lost without it and what it brings alone."""
    flat: dict[str, Any] = {f"causal.{name}.gain": found.gain.value}
    for kind in ("attention", "mlp"):
        flat[f"causal.{name}.{kind}.necessity"] = found[kind].necessity.value
        flat[f"causal.{name}.{kind}.sufficiency"] = found[kind].sufficiency.value
    return flat


def main() -> None:
    """Map the sets that are asked for."""
    from personae.cli.causal_map import to_rich
    from personae.cli.console import out

    parser = argparse.ArgumentParser(description="Causal maps of the masks of two rounds.")
    parser.add_argument("sets", nargs="+", choices=SETS)
    parser.add_argument("--items", type=int, default=ITEMS)
    options = parser.parse_args()
    model, tokenizer = load_model(dtype="float32")
    for name in options.sets:
        contrast, made = contrast_of(name), committed_masks((name,))[0]
        found = causal_map(
            model, tokenizer, made, contrast, by=LEVELS, items=options.items,
            resume=ROOT / "benchmarks" / ".parts" / "causal", progress=bar,
        )  # fmt: skip
        out.print(to_rich(found))
        masks = RESULTS / f"ai_persona_{name}.persona"
        record = Record(
            kind="causal-map", command=f"python -m benchmarks.causal {name} --items {options.items}",
            model=SuiteContext(model, tokenizer, Path()).record(),
            inputs={masks.name: hashlib.sha256(masks.read_bytes()).hexdigest(), contrast.name: contrast.sha256},
            settings={"items": options.items, "by": list(LEVELS), "persona": contrast.positive, "dtype": "float32"},
            notes=found.notes,
        )  # fmt: skip
        flat = {**figures(name, found), **said(record, found.to_dict()), "machine": machine()}
        print(write(f"causal_{name}", flat), flush=True)


if __name__ == "__main__":
    main()
