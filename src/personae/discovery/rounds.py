"""Further rounds of `directed`, under its own mask: give back what hurts, add what helps, by a step that pays.

The first round orders weights by what each would bring alone to the mean margin of the bare model. Under a mask made
of the first thousands of them that order is out of date: pairs that are won by far count in it like those that are
lost, and it knows neither what weights do together nor what they cost together. So each round here takes both anew at
the masked point. Dropping and growing connections by gradients is how sparse networks are trained (RigL, Evci et al.
2020, arXiv:1911.11134); here no weight is trained, and what drops and grows is the mask.

At a mask M, of the pole it is for:

1. Δ_i, the margins of up to `PAIRS` calibration pairs under M, drawn anew; H = −w·∂/∂w of the mean of log σ(Δ_i),
   pairs with σ(−Δ_i) below `LEAST_SLOPE` left out;
2. C = −w·∂K/∂w, K the divergence a token from the base model on generic text (`Session.divergence`);
3. V = (H − μ·C)/√D, μ = `LOSS_PRICE`·log 2 / budget; C at least 0 for weights not dropped (mending the mask is no
   reason to drop more);
4. a step t gives back the worst t·|{M: V < 0}| of the dropped and adds the best t·`GROWTH`·|M| of the candidates;
5. J(t) = mean log σ(Δ) on up to `JUDGES` other calibration pairs − μ·loss on the text of the budget. Of the steps tried
   the best is taken, among those that keep the budget by its upper bound; where none is better than 0 the mask stays.

First order holds for small steps only, which is why steps are tried out (docs/experiments.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch

from personae.discovery.attribution import Gradients, WeightedQuestion
from personae.discovery.budget import Capability, capability
from personae.discovery.calibration import Calibration, mean_log_probabilities
from personae.discovery.generic import GenericText
from personae.discovery.resume import Checkpoint
from personae.discovery.selection import Dropped, Ranking, rank
from personae.discovery.session import Pole, Session, hash_of, to_masks
from personae.discovery.settings import Settings
from personae.models import Encoded
from personae.runtime import wearing

START = 0.15  # of the first round's number of weights: what the rounds begin with
PAIRS = 256
JUDGES = 96  # pairs that judge steps; at most a quarter of all
LEAST_SLOPE = 0.05
LOSS_PRICE = 0.07  # of log 2 over the budget, in nats of mean log σ a nat of loss
GROWTH = 0.7  # of the mask's number of weights, in a whole step
FIRST_STEP, LARGER, SMALLER = 0.5, (1.0,), (0.2, 0.08)
FRUITLESS = 2  # rounds without a step after which it ends: other pairs may see one, but not for ever


@dataclass(frozen=True)
class Round:
    """A mask after a round. step: t, 0 where the mask stayed. fit: mean log σ(Δ) on the pairs that judged, nats. cost:
    capability on the text of the budget."""

    dropped: Dropped
    step: float
    fit: float
    cost: Capability


def regrow(
    session: Session, settings: Settings, pole: Pole, cheap_share: float, first: Dropped, base: Capability
) -> Iterator[Round]:
    """The masks after each of `settings.regrow` rounds from `START` of the mask `first`, those within the budget.

    first: of `directed` within the budget. base: capability of the bare model on `session.generic.held_out.read`.
    Unpaired data have one margin, the difference of the poles' means, for all of their answers. What a round found is
    kept for the case of a kill, its sums (each as large as the targets) only until then.
    """
    judge = _Judge(session, settings, pole, base)
    worn = session.family(settings, pole, cheap_share).at(round(START * count_of(first)))
    last = Round(worn, 0.0, 0.0, judge.cost_of(worn))
    fruitless = 0
    for number in range(settings.regrow or 0):
        drawn, judges = _drawn(session.calibration, number, settings.seed)
        before = session.passes
        kept = session.checkpoint_of(
            "regrown", number, pole, cheap_share, asdict(settings), hash_of(to_masks(last.dropped)),
            session.generic.sha256, session.generic.answers, [[_ids(part) for part in (drawn, judges)]],
        )  # fmt: skip
        found = _taken_up(kept, last.dropped)
        if found is None:
            title = f"pole {pole + 1}, regrown {number + 1}"
            values = _values(session, settings, pole, last.dropped, drawn, number, judge.price, title)
            step = _Step(last.dropped, session.candidates(cheap_share), values)
            del values
            found = judge.best(step, last, judges, title)
            if kept is not None:
                session.forget(since=before + 1)
                kept.save(1, _tensors(found))
        last = found
        if judge.worth(last) > -math.inf:
            yield last
        fruitless = 0 if last.step else fruitless + 1
        if fruitless == FRUITLESS:
            break


class _Judge:
    """J of masks, and the best step of a round."""

    def __init__(self, session: Session, settings: Settings, pole: Pole, base: Capability) -> None:
        assert settings.max_capability_loss is not None
        self.session, self.pole, self.base, self.budget = session, pole, base, settings.max_capability_loss
        self.price = LOSS_PRICE * math.log(2) / self.budget

    def cost_of(self, mask: Dropped) -> Capability:
        """Capability under a mask, on the text of the budget."""
        with wearing(self.session.targets, to_masks(mask)):
            return capability(self.session.model, self.session.generic.held_out.read)

    def worth(self, read: Round) -> float:
        """J; minus infinity over the budget."""
        within = read.cost.loss_bound(self.base) <= self.budget
        return read.fit - self.price * max(read.cost.loss(self.base), 0.0) if within else -math.inf

    def best(self, step: _Step, last: Round, judges: Calibration, title: str) -> Round:
        """The round that the best step gives, a step of 0 among them."""

        def fit(mask: Dropped) -> float:
            margins = _margins(self.session, judges, self.pole, mask)
            return float(torch.nn.functional.logsigmoid(margins).mean())

        stay = best = Round(last.dropped, 0.0, fit(last.dropped), last.cost)
        with self.session.progress(f"steps ({title})", 1 + len(SMALLER)) as tick:
            steps = [FIRST_STEP]
            while steps:
                t = steps.pop(0)
                mask = step.at(t)
                read = Round(mask, t, fit(mask), self.cost_of(mask))
                pays = self.worth(read) > self.worth(stay)
                if t == FIRST_STEP:
                    steps = list(LARGER if pays else SMALLER)
                elif pays:
                    steps = []
                best = max(best, read, key=self.worth)
                tick(1)
        return best


def count_of(dropped: Dropped) -> int:
    """How many weights a mask drops."""
    return sum(int(mask.sum()) for mask in dropped.values())


class _Step:
    """The masks on the way from one mask to what its values would have."""

    def __init__(self, worn: Dropped, candidates: Dropped, values: Gradients) -> None:
        self.worn = worn
        self.more: Ranking = rank(values, {n: inside & ~worn[n] for n, inside in candidates.items()})
        self.less: Ranking = rank({n: -v for n, v in values.items()}, worn)
        self.most = GROWTH * count_of(worn)

    def at(self, t: float) -> Dropped:
        """The mask after a step t in (0, 1]."""
        added, given_back = self.more.drop(round(t * self.most)), self.less.drop(round(t * len(self.less)))
        return {n: mask & ~given_back[n] | added[n] for n, mask in self.worn.items()}


def _drawn(calibration: Calibration, number: int, seed: int) -> tuple[Calibration, Calibration]:
    """The pairs that a round's gains read, and others that judge its steps; unpaired data whole, twice."""
    pairs = calibration.paired
    if not pairs:
        return calibration, calibration
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1009 * seed + number)).tolist()
    judges = min(JUDGES, max(len(pairs) // 4, 1))
    read = order[judges:][:PAIRS] or order
    first, second = (Calibration(tuple(pairs[i] for i in some), (), ()) for some in (read, order[:judges]))
    return first, second


def _margins(session: Session, drawn: Calibration, pole: Pole, worn: Dropped) -> torch.Tensor:
    """Δ of a pole under a mask, (pairs,) float64; of unpaired data (1,)."""
    with wearing(session.targets, to_masks(worn)):
        read = mean_log_probabilities(session.model, drawn)
    return (read[:, 0] - read[:, 1]) * (1.0 if pole == 0 else -1.0)


def _values(
    session: Session, settings: Settings, pole: Pole, worn: Dropped, drawn: Calibration, number: int, price: float,
    title: str,
) -> Gradients:  # fmt: skip
    """V of every weight, (out, in) float32 on the CPU."""
    slopes = torch.sigmoid(-_margins(session, drawn, pole, worn))
    gains = session.gains_under(worn, _weighted(drawn, pole, slopes, settings.own_weight), title)
    costs = session.divergence(_texts(session.generic, number), worn)
    for target in session.targets:  # in place: a further float32 copy of the model is not needed
        name, cost = target.name, costs.pop(target.name)
        cost.mul_(target.weight.to("cpu", torch.float32)).neg_()
        value = gains[name].sub_(price * torch.where(worn[name], cost, cost.clamp(min=0)))
        gains[name] = session.by_price(name, value, settings.rank_by)
    return gains


def _weighted(drawn: Calibration, pole: Pole, slopes: torch.Tensor, own_weight: float) -> list[WeightedQuestion]:
    """Questions whose weighted log-probabilities have the gradient of mean log σ(Δ)."""
    if not drawn.paired:
        return [
            WeightedQuestion(q.question, tuple(float(slopes[0]) * w for w in q.weights))
            for q in drawn.objective(pole, own_weight=own_weight)
        ]
    some = (slopes > LEAST_SLOPE).nonzero().flatten().tolist() or [int(slopes.argmax())]
    kept = Calibration(tuple(drawn.paired[i] for i in some), (), ())
    scale = float(slopes[some].sum()) / len(slopes)  # the objective scales the weights of pairs to a sum of one
    return [
        WeightedQuestion(q.question, tuple(scale * w for w in q.weights))
        for q in kept.objective(pole, own_weight=own_weight, pair_weights=slopes[some].tolist())
    ]


def _texts(generic: GenericText, number: int) -> tuple[Encoded, ...]:
    """What the divergence of a round reads: as many as a probe of the budget, others from round to round."""
    cheap, read = generic.cheap, generic.cheap.read
    turned = replace(
        cheap,
        plain=_turned(cheap.plain, number * len(read.plain)),
        chat=_turned(cheap.chat, number * len(read.chat)),
    ).read
    return turned.chat + turned.plain


def _turned(items: tuple[Encoded, ...], by: int) -> tuple[Encoded, ...]:
    by = by % max(len(items), 1)
    return items[by:] + items[:by]


def _ids(items: Calibration) -> list[object]:
    """Token ids, as JSON."""
    return [[q.prompt, q.answers] for q in items.paired] or [
        [[e.prompt, e.answer] for e in pole] for pole in (items.positive, items.negative)
    ]


def _tensors(found: Round) -> dict[str, torch.Tensor]:
    """A round as tensors: the mask as positions in each target."""
    masks = {f"mask.{name}": mask.flatten().nonzero().flatten() for name, mask in found.dropped.items()}
    said = torch.tensor([found.step, found.fit], dtype=torch.float64)
    return {**masks, "said": said, "plain": found.cost.plain_texts, "chat": found.cost.chat_texts}


def _taken_up(kept: Checkpoint | None, like: Dropped) -> Round | None:
    """The round that an earlier run kept, if it did."""
    read = kept.load() if kept is not None else None
    if read is None:
        return None
    tensors = read[1]
    dropped = {name: torch.zeros_like(mask) for name, mask in like.items()}
    for name, mask in dropped.items():
        mask.view(-1)[tensors[f"mask.{name}"]] = True
    step, fit = tensors["said"].tolist()
    return Round(dropped, step, fit, Capability(tensors["plain"], tensors["chat"]))
