"""Rounds of `directed` under its own mask (`--regrow`), beside the headline's masks: strength and loss on other text.

    python -m benchmarks.regrow power                    # p⁺, one core, about 50 minutes in bfloat16
    python -m benchmarks.regrow wealth --pole 1

`ROUNDS` rounds with the headline's calibration pairs, generic text and budget. On `DEV_ITEMS` dev items: accuracy,
mean log σ of the margin; capability loss on the final text, which no search has read. Beside the rounds stand the
headline's mask, and the first round's order cut to as many weights as the last round has: what is left is what the new
gains and costs bring. Most of these pairs are told apart by a yes or no at the start of the answer, so every row says
how likely the mask makes 'Yes' and 'No' as the first word of an answer to `NEUTRAL` requests that ask for neither. No
test item is read, and no choice is made here. Writes benchmarks/results/regrow_<set>_<pole>.json anew after each row;
an interrupted run goes on with the next one.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from benchmarks.ai_persona import BUDGET, SETS, contrast_of, prepared
from benchmarks.common import machine, texts, write
from benchmarks.headline import taken_up
from benchmarks.suites import headline_masks
from personae import load_model
from personae.cli.console import bar
from personae.discovery import (
    Calibration,
    Session,
    Settings,
    capability,
    encode_contrast,
    mean_log_probabilities,
    open_session,
    regrow,
    to_masks,
    versions,
)
from personae.discovery.selection import Dropped
from personae.evaluation import CapabilityText, interval
from personae.evaluation.scoring import wins
from personae.models import fingerprint
from personae.personas import is_tied, split
from personae.runtime import wearing

ROUNDS = 3
DEV_ITEMS = 100
CHEAP_SHARE = 0.6
NEUTRAL = 100  # instructions of the final text's chat answers


class Judge:
    """Dev items and the final text under masks."""

    def __init__(
        self, session: Session, dev: Calibration, tied: list[bool], final: CapabilityText, sign: float
    ) -> None:
        words = [session.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No")]
        self.words, self.neutral = words, [torch.tensor([e.prompt]) for e in final.chat[:NEUTRAL]]
        self.session, self.dev, self.tied, self.sign = session, dev, np.array(tied), sign
        self.text = final.generic
        self.base = capability(session.model, self.text)

    def reading(self, dropped: Dropped) -> dict[str, Any]:
        """The row of a mask; intervals over items, standard errors over texts."""
        with wearing(self.session.targets, to_masks(dropped)):
            read = mean_log_probabilities(self.session.model, self.dev)
            (plain, _), (chat, error) = capability(self.session.model, self.text).rises(self.base)
            yes, no = self.openings()
        margins = self.sign * (read[:, 0] - read[:, 1]).numpy()
        won = wins(margins)
        acc, tied, own = (interval(v) for v in (won, won[self.tied], -np.logaddexp(0, -margins)))
        return {
            "dropped": sum(int(mask.sum()) for mask in dropped.values()), "acc": [acc.value, acc.low, acc.high],
            "acc_tied": [tied.value, tied.low, tied.high], "log_sigmoid": [own.value, own.low, own.high],
            "margin": float(margins.mean()), "plain": plain, "chat": chat, "chat_error": error,
            "opens_with_yes": yes, "opens_with_no": no,
        }  # fmt: skip

    @torch.no_grad()
    def openings(self) -> list[float]:
        """Mean probability of 'Yes' and of 'No' as the first token of an answer to the neutral requests."""
        last = [self.session.model(input_ids=ids, logits_to_keep=1).logits[0, -1] for ids in self.neutral]
        found: list[float] = torch.stack(last).float().softmax(dim=-1).mean(dim=0)[self.words].tolist()
        return found


def main() -> None:
    """The headline's mask, and the rounds."""
    parser = argparse.ArgumentParser(description="Rounds with gains anew under the mask.")
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--pole", type=int, default=0, choices=(0, 1))
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    name, pole = options.set, options.pole
    model, tokenizer = load_model(dtype=options.dtype)
    contrast = prepared(contrast_of(name))
    parts = split(contrast)
    generic, final = texts(tokenizer)
    session = open_session(model, tokenizer, parts.calibration, generic=generic, progress=bar)
    dev = parts.dev.take(min(DEV_ITEMS, len(parts.dev)))
    tied = [is_tied(p.positive, p.negative) for p in dev.pairs]
    judge = Judge(session, encode_contrast(model, tokenizer, dev), tied, final, 1.0 if pole == 0 else -1.0)
    persona = (contrast.positive, contrast.negative)[pole]
    headline = {n: torch.from_numpy(m.dropped_bool()) for n, m in headline_masks((name,))[0][persona].masks.items()}
    frame = {
        "set": name, "persona": persona, "budget": BUDGET, "dev_items": len(dev), "dev_sha256": dev.sha256,
        "calibration_sha256": parts.calibration.sha256, "final_text_sha256": final.sha256, "dtype": options.dtype,
        "model": fingerprint(session.targets), "versions": versions(),
    }  # fmt: skip
    rows: dict[str, Any] = taken_up(f"regrow_{name}_{pole}", frame, "rows") or {}
    command = f"python -m benchmarks.regrow {name}" + " --pole 1" * pole

    def add(title: str, dropped: Dropped, **said: Any) -> None:
        if title not in rows:
            rows[title] = {**judge.reading(dropped), **said}
            result = {**frame, "machine": machine(), "command": command, "rows": rows}
            print(title, rows[title], write(f"regrow_{name}_{pole}", result), flush=True)

    add("base", {n: torch.zeros_like(mask) for n, mask in headline.items()})
    add("headline", headline)
    settings = Settings(max_capability_loss=BUDGET, regrow=ROUNDS).checked()
    base = capability(model, session.generic.held_out.read)
    last = 0
    rounds = regrow(session, settings, pole, CHEAP_SHARE, headline, base)
    for number, found in enumerate(rounds, start=1):
        said = {"fit": found.fit, "step": found.step, "searched_loss": found.cost.loss(base)}
        add(f"round {number}", found.dropped, **said)
        last = rows[f"round {number}"]["dropped"]
    add("as many, first order", session.family(settings, pole, CHEAP_SHARE).at(last))
    session.forget()


if __name__ == "__main__":
    main()
