"""Do gains averaged over gates, or budgets of blocks, choose better weights than first order does? On dev.

    python -m benchmarks.orders wealth --dtype bfloat16        # one core, 20 to 35 minutes a set

The seeking pole of a public set, PAIRS of its calibration pairs, `directed` in one pass. Each order of the same
candidates gives its largest mask within the budget on the same search text, and dev reads it:

- `plain`: by H/√D, first order at the whole model (METHODS section 4). The orders below start from its mask M.
- `second round`: costs taken anew under M, the default of discovery.
- `gates averaged`: H = −w·mean of ∂E[Δ]/∂w over models that wear M at strengths GATES, the midpoints of as many equal
  parts of the way to M: integrated gradients along the path that the gates of M take from 1 to 0, by which the H of
  M's weights sum to what M does to the mean margin (Sundararajan et al. 2017, arXiv 1703.01365).
- `means put back`: plain's order, and for each dropped weight w_ij·E[x_j] on generic text as a bias, in the search too
  (`suites/ablation.py`): does what that saves of the budget buy a mask that does more?
- `even blocks`: each block drops as many weights, the best of its own.
- `blocks by separation`: block b drops in proportion to max(s_b, 0), s_b the gain in mean log σ(margin) that the part
  of M in block b alone brings on HELD calibration pairs which none of the gains has read.

Per order: acc and acc_tied of the pole, mean log σ of the margin and its difference from `plain` (paired over items),
rise of own answers, loss on the search text and its upper bound. Writes benchmarks/results/orders_<set>.json after each
order; an interrupted run goes on with the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.ai_persona import BUDGET, contrast_of
from benchmarks.common import texts
from benchmarks.gates import figures
from benchmarks.headline import run_sets, taken_up, write_framed
from personae import load_model
from personae.cli.console import bar
from personae.discovery import (
    Session,
    Settings,
    attribute,
    capability,
    encode_contrast,
    largest_within,
    loss_bound_of,
    measure,
    open_session,
    to_masks,
    versions,
)
from personae.discovery.attribution import Gradients
from personae.discovery.calibration import Calibration
from personae.discovery.selection import Dropped, rank
from personae.discovery.settings import DEFAULT_CHEAP_SHARES
from personae.evaluation.bootstrap import difference
from personae.evaluation.scoring import encode_items, score_encoded
from personae.evaluation.suites.ablation import mean_ablated
from personae.evaluation.suites.mbti_blocks import places
from personae.models import fingerprint
from personae.personas import Contrast, split
from personae.runtime import wearing

POLE = 0  # the seeking one: on dev its masks win fewer items than those of its opposite, on both sets
PAIRS, HELD, ANSWERS = 128, 48, 32
GATES = (1 / 6, 1 / 2, 5 / 6)
START = 0.0005  # share of the weights at which the search for the budget begins
[CHEAP_SHARE] = DEFAULT_CHEAP_SHARES


@dataclass(frozen=True)
class Trial:
    """A session on PAIRS pairs, the pairs that are held out of it, and plain's mask M."""

    session: Session
    settings: Settings
    held: Calibration
    mask: Dropped

    def second_round(self) -> Callable[[int], Dropped]:
        """Costs anew under M."""
        return self.session.refined(self.settings, POLE, CHEAP_SHARE, self.mask).at

    def gates_averaged(self) -> Callable[[int], Dropped]:
        """Gains averaged on the way to M."""
        return _in_order(self.session, self.settings, averaged_gains(self.session, self.mask))

    def plain_again(self) -> Callable[[int], Dropped]:
        """The order that M is of."""
        return self.session.family(self.settings, POLE, CHEAP_SHARE).at

    def even_blocks(self) -> Callable[[int], Dropped]:
        """As many weights in every block."""
        place = places(self.session.model, self.session.targets)
        return self._by_block(np.ones(max(place.values()) + 1))

    def blocks_by_separation(self) -> Callable[[int], Dropped]:
        """In proportion to what each block's part of M does on held-out pairs."""
        return self._by_block(np.maximum(self.separations(), 0))

    def separations(self) -> np.ndarray[Any, Any]:
        """s_b: the gain in mean log σ(margin) that the part of M in block b alone brings on held-out pairs."""
        place = places(self.session.model, self.session.targets)
        nothing = {n: torch.zeros_like(d) for n, d in self.mask.items()}
        before, found = measure(self.session, nothing, self.held, POLE)["dev_log_sigmoid"], []
        for block in range(max(place.values()) + 1):
            part = {n: d if place[n] == block else nothing[n] for n, d in self.mask.items()}
            found.append(measure(self.session, part, self.held, POLE)["dev_log_sigmoid"] - before)
            print(f"block {block}: {found[-1]:+.4f}", flush=True)
        return np.array(found)

    def _by_block(self, shares: np.ndarray[Any, Any]) -> Callable[[int], Dropped]:
        gains, candidates = self.session.signed_gains(self.settings, POLE), self.session.candidates(CHEAP_SHARE)
        order = {n: self.session.by_price(n, h, self.settings.rank_by) for n, h in gains.items()}
        place = places(self.session.model, self.session.targets)
        return rank(shared_out(order, candidates, place, shares / max(shares.sum(), 1e-12)), candidates).drop


ORDERS: dict[str, Callable[[Trial], Callable[[int], Dropped]]] = {
    "second round": Trial.second_round,
    "gates averaged": Trial.gates_averaged,
    "means put back": Trial.plain_again,
    "even blocks": Trial.even_blocks,
    "blocks by separation": Trial.blocks_by_separation,
}
PLAIN = "plain"
WITH_MEANS = ("means put back",)


def worn(session: Session, order: str, dropped: Dropped) -> AbstractContextManager[None]:
    """The mask, of some orders with what it drops put back on average."""
    if order in WITH_MEANS:
        return mean_ablated(session.targets, to_masks(dropped), session.generic_statistics)
    return wearing(session.targets, to_masks(dropped))


def averaged_gains(session: Session, mask: Dropped) -> Gradients:
    """H = −w·mean over GATES of ∂E[Δ]/∂w under the mask at that strength, of the positive pole."""
    questions, masks = session.calibration.objective(), to_masks(mask)
    total: Gradients = {}
    for strength in GATES:
        with (
            wearing(session.targets, masks, strength),
            bar(f"attribution (strength {strength:.2f})", len(questions)) as tick,
        ):
            read = attribute(session.model, session.targets, questions, tick=tick)
        total = {n: g.add_(total[n]) for n, g in read.items()} if total else read
    for target in session.targets:
        total[target.name].mul_(target.weight.detach().to("cpu", torch.float32)).div_(-len(GATES))
    return total


def shared_out(
    order: Mapping[str, torch.Tensor], candidates: Dropped, place: Mapping[str, int], shares: Sequence[float]
) -> dict[str, torch.Tensor]:
    """An order whose first n take about n·share weights from each block, by the given order within it.

    The r-th best of block b (from 1) gets share_b/r: of two blocks that one is next which has taken less of its share.
    """
    found = {n: torch.zeros_like(o) for n, o in order.items()}
    for block, share in enumerate(shares):
        names = [n for n in order if place[n] == block]
        flat = torch.cat([(order[n] * candidates[n]).flatten() for n in names])
        at = (flat > 0).nonzero().flatten()
        at = at[flat[at].argsort(descending=True, stable=True)]
        keys = torch.zeros_like(flat)
        keys[at] = float(share) / torch.arange(1, len(at) + 1)
        for name, part in zip(names, keys.split([order[n].numel() for n in names]), strict=True):
            found[name] = part.reshape(order[name].shape)
    return found


def _in_order(session: Session, settings: Settings, gains: Gradients) -> Callable[[int], Dropped]:
    order = {n: session.by_price(n, h, settings.rank_by) for n, h in gains.items()}
    return rank(order, session.candidates(CHEAP_SHARE)).drop


def held_out(calibration: Contrast) -> tuple[Contrast, Contrast]:
    """PAIRS pairs that calibrate and HELD others, by the seeded choice of `Contrast.take`."""
    own, both = calibration.take(PAIRS), calibration.take(PAIRS + HELD)
    chosen = set(own.pairs)
    return own, replace(both, pairs=tuple(p for p in both.pairs if p not in chosen))


def run(name: str, dtype: str, only: Sequence[str]) -> None:
    """Every order of one set that its file does not hold yet, plain first."""
    model, tokenizer = load_model(dtype=dtype)
    parts = split(contrast_of(name))
    own, held = held_out(parts.calibration)
    generic, _ = texts(tokenizer, answers=ANSWERS)
    session = open_session(model, tokenizer, own, generic=generic, progress=bar)
    settings = Settings(max_capability_loss=BUDGET).checked()
    items = encode_items(model, tokenizer, parts.dev)
    base, text = score_encoded(model, items), generic.held_out.read
    before = capability(model, text)
    frame = {
        "set": name, "dtype": dtype, "budget": BUDGET, "fingerprint": fingerprint(session.targets),
        "pole": own.positive, "versions": versions(), "calibration_sha256": own.sha256, "held_out_sha256": held.sha256,
        "dev_sha256": parts.dev.sha256, "generic_sha256": generic.sha256, "cheap_share": CHEAP_SHARE,
        "gates": list(GATES),
    }  # fmt: skip
    rows: list[dict[str, Any]] = taken_up(f"orders_{name}", frame, "rows") or []

    def bound(order: str, dropped: Dropped) -> float:
        with worn(session, order, dropped):
            return loss_bound_of(model, text, before, BUDGET)

    def measured(order: str, at: Callable[[int], Dropped], start: int) -> None:
        number, _ = largest_within(lambda n: bound(order, at(n)), session.size // 20, BUDGET, start=start, steps=6)
        with worn(session, order, at(number)):
            scores, read = score_encoded(model, items), capability(model, text)
        rows.append({
            "order": order, "dropped": number, **figures(scores, base, POLE), "loss": read.loss(before),
            "bound": read.loss_bound(before), "margins": [round(float(m), 4) for m in scores.difference()],
        })  # fmt: skip
        minus = against_plain(rows)
        path = write_framed("orders", name, frame, rows=rows, minus_plain=minus)
        print({k: v for k, v in rows[-1].items() if k != "margins"}, minus.get(order), path, flush=True)

    plain = session.family(settings, POLE, CHEAP_SHARE).at
    if not rows:
        measured(PLAIN, plain, round(START * session.size))
    number = rows[0]["dropped"]
    trial = Trial(session, settings, encode_contrast(model, tokenizer, held), plain(number))
    for order in only:
        if all(row["order"] != order for row in rows):
            measured(order, ORDERS[order](trial), number)
    session.forget()


def against_plain(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean log σ(margin) of every other order minus plain's, paired over dev items."""
    values = {row["order"]: -np.logaddexp(0, -np.array(row["margins"])) for row in rows}
    gaps = {order: difference(v, values[PLAIN]) for order, v in values.items() if order != PLAIN}
    return {order: {"value": g.value, "low": g.low, "high": g.high, "p": g.p} for order, g in gaps.items()}


def main() -> None:
    """Run the sets that are asked for."""
    run_sets(run, "Orders of candidates, on dev.", tuple(ORDERS))


if __name__ == "__main__":
    main()
