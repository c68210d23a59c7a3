"""Which calibration objective? Margin, log-sigmoid of the margin, margin + β·log p(own answer), at equal loss.

    python -m benchmarks.objectives [--pairs 32]

Extravert against introvert answers of mbti/EI_dev, paired by instruction. Every objective gets the same pairs, the
same candidates and the same capability budget; the figures are of the dev part (this chooses a default, so the test
part stays untouched): acc, margin, and the change of log p of the persona's own answers, nats a token.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from benchmarks.common import data, machine, texts, write
from personae import load_contrast, load_model
from personae.cli.console import bar
from personae.discovery import GenericText, Settings, choose, encode_contrast, open_session, versions
from personae.models import fingerprint
from personae.personas import Contrast, split

OBJECTIVES: dict[str, dict[str, Any]] = {
    "margin": {},
    "log-sigmoid": {"objective": "log-sigmoid"},
    "margin + 0.5 own": {"own_weight": 0.5},
}
LONGEST = 500  # characters of an answer: both answers of a pair fit one batch


def main() -> None:
    """Run all objectives on one session."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--budget", type=float, default=0.05)
    options = parser.parse_args()
    model, tokenizer = load_model(dtype="float32")
    contrast = load_contrast(data("mbti/EI_dev.jsonl"), paired=True)
    short = tuple(p for p in contrast.pairs if max(len(p.positive), len(p.negative)) <= LONGEST)
    parts = split(dataclasses.replace(contrast, pairs=short))
    calibration: Contrast = parts.calibration.take(options.pairs)
    dev = encode_contrast(model, tokenizer, parts.dev.take(options.pairs))
    whole, _ = texts(tokenizer, ("SN", "JP"))  # not EI: its answers are what is calibrated and measured here
    generic = GenericText(whole.plain[:12], whole.chat[:24], whole.source)  # half prices weights, half keeps the budget
    session = open_session(model, tokenizer, calibration, generic=generic, progress=bar)
    rows = []
    for name, changed in OBJECTIVES.items():
        settings = Settings(max_capability_loss=options.budget, **changed).checked()
        for pole, choice in zip(contrast.poles, choose(session, settings, dev), strict=True):
            dropped = sum(int(d.sum()) for d in choice.dropped.values())
            rows.append({"objective": name, "pole": pole, "dropped": dropped, **choice.parameters, **choice.measured})
            print(rows[-1], flush=True)
    session.forget()
    result = {
        "rows": rows, "pairs": options.pairs, "budget": options.budget, "contrast": contrast.name, "dtype": "float32",
        "calibration_sha256": calibration.sha256, "fingerprint": fingerprint(session.targets),
        "generic_text": {"source": generic.source, "sha256": generic.sha256}, "machine": machine(),
        "versions": versions(),
        "command": f"python -m benchmarks.objectives --pairs {options.pairs} --budget {options.budget}",
    }  # fmt: skip
    print(write("objectives", result))


if __name__ == "__main__":
    main()
