"""Short steps of `directed`: gains of a few pairs at a time, each under the mask that the steps before have made.

One pass over all pairs at the bare model orders weights by what each would bring alone, to pairs that are won by far as
much as to those that are lost, and it knows nothing of what weights do together. Here the order is made in T steps
instead; with T = pairs / `STEP_PAIRS` they read each pair as often as that pass, for each pole. A mask M_t, empty at
first; at step t, for the pole it is for:

1. Δ_i, the margins of the next `STEP_PAIRS` pairs under M_t; H = −w·∂/∂w of the mean of log σ(Δ_i). Pairs that are won
   by far count little in it, and those with σ(−Δ_i) below `LEAST_SLOPE` are left out.
2. K, the divergence a token from the base model on the next few generic texts under M_t; C = −w·∂K/∂w
   (`divergence_step`).
3. Scores add up: S ← S + (H − μ_t·C)/√D on the candidates (by 'gain': without √D), C at least 0 for weights not dropped
   (mending the mask is no reason to drop more). What one batch says by chance goes under in the sum; what stays true
   under the mask stays.
4. M_{t+1}: the weights with the largest S > 0, `step_share` of the targets (`SHARE`) by half of the steps, and less
   before in proportion. So a step drops and gives back.
5. μ, between μ₀ = `PRICE`·log 2 / budget and `DEAREST` times that: it rises while the loss is above `AIM` of the budget
   and falls while it is below, by e^`RATE` a step at most. The loss is the rise of the negative log-likelihood on the
   texts of the last `WINDOW` steps, the larger of chat answers and plain text.

The last S orders a family of masks that ends a little beyond what steps have worn, at `BEYOND` times that, where the
order still holds; the budget takes the largest of them that keeps its bound.

Scores that collect gradients while the mask they make is worn are how subnetworks are found in networks that are not
trained (edge-popup, Ramanujan et al. 2020, arXiv:1911.13299); there and here no weight changes. Unpaired answers are
coupled by chance, and Δ is then the margin's rise over the base model, for the two have no question in common.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from personae.discovery.attribution import Gradients, WeightedQuestion, attribute
from personae.discovery.divergence import divergence_step
from personae.discovery.generic import GenericText
from personae.discovery.selection import Dropped, count, rank
from personae.discovery.session import Family, Pole, Session, to_masks
from personae.discovery.settings import Settings
from personae.models import Encoded, Question, score_continuations
from personae.runtime import wearing

STEP_PAIRS = 8
CHAT, EVERY = 4, 2  # chat answers a step; a window of plain text every second one
LEAST_SLOPE = 0.05
SHARE = 0.0004  # of the target weights: the largest mask that steps wear where the settings name none
BEYOND = 1.25  # times that: the largest mask that they give
AIM, WINDOW = 0.6, 8  # of the budget, whose bound lies higher than the loss; steps
PRICE, DEAREST, RATE = 0.07, 40.0, 0.15


def family_of(session: Session, settings: Settings, pole: Pole, cheap_share: float | None = None) -> Family:
    """The nested masks of a method for one pole, in short steps where the settings ask for them."""
    if settings.steps and cheap_share is not None:
        return stepped(session, settings, pole, cheap_share)
    return session.family(settings, pole, cheap_share)


def stepped(session: Session, settings: Settings, pole: Pole, cheap_share: float) -> Family:
    """The nested masks that `settings.steps` short steps order, up to `BEYOND` times the share that steps wear.

    The sums are kept now and then, and a killed search goes on from there.
    """
    assert settings.steps is not None
    assert settings.max_capability_loss is not None
    couples = _Couples.of(session, pole, settings)
    candidates = session.candidates(cheap_share)
    session.prepare_price(settings.rank_by)  # before the steps hold gradients
    share = settings.step_share or SHARE
    most = max(count(share, session.size), 1)
    lowest = PRICE * math.log(2) / settings.max_capability_loss
    sums = {t.name: torch.zeros(t.shape) for t in session.targets}
    kept = session.checkpoint_of(
        "steps",
        pole,
        cheap_share,
        asdict(settings),
        session.tokens,
        session.generic.sha256,
        session.generic.answers,
        couples.ids,
    )
    found = kept.load() if kept is not None else None
    done, price, losses = 0, lowest, torch.full((WINDOW, 2, 2), 0.0, dtype=torch.float64)
    if found is not None:
        done, price, losses = found[0], float(found[1].pop("price")), found[1].pop("losses")
        sums.update(found[1])

    def state() -> Gradients:
        return {**sums, "price": torch.tensor(price, dtype=torch.float64), "losses": losses}

    with session.progress(f"short steps (pole {pole + 1})", settings.steps) as tick:
        tick(done)
        for step in range(done, settings.steps):
            worn = _highest(sums, _number(step, settings.steps, most))
            gains = _gradients(session, couples.at(step), couples, worn)
            chat, plain = _texts(session.generic, step)
            costs, rises = divergence_step(session.model, session.targets, to_masks(worn), chat + plain)
            for target in session.targets:
                name, weight = target.name, target.weight.to("cpu", torch.float32)
                gain, cost = gains.pop(name).mul_(weight).neg_(), costs.pop(name).mul_(weight).neg_()
                value = gain.sub_(price * torch.where(worn[name], cost, cost.clamp(min=0)))
                value = session.by_price(name, value, settings.rank_by).nan_to_num_(0.0, 0.0, 0.0)  # float16 overflows
                sums[name] += value * candidates[name]
            losses[step % WINDOW] = torch.stack([rises[: len(chat)].sum(0), rises[len(chat) :].sum(0)])
            price = _next_price(price, _loss(losses) / (AIM * settings.max_capability_loss), lowest)
            if kept is not None and kept.due():
                kept.save(step + 1, state())
            tick(1)
    if kept is not None:
        kept.finish(settings.steps, state())
    ranking = rank(sums, candidates)
    return Family(ranking.drop, min(max(count(BEYOND * share, session.size), 1), len(ranking)), session.size)


@dataclass(frozen=True)
class _Couples:
    """An own and a rival answer each: the pairs of a calibration, or couples drawn from unpaired answers.

    couples: own answer first. base: margins to subtract, (couples,) float64: 0 for pairs.
    """

    couples: tuple[tuple[Question, ...], ...]
    base: torch.Tensor
    own_weight: float

    @staticmethod
    def of(session: Session, pole: Pole, settings: Settings) -> _Couples:
        """In an order drawn by the seed."""
        calibration, generator = session.calibration, torch.Generator().manual_seed(settings.seed)
        if calibration.paired:
            order = torch.randperm(len(calibration.paired), generator=generator).tolist()
            pairs = [calibration.paired[i] for i in order]
            turned = [Question(q.prompt, q.answers if pole == 0 else q.answers[::-1]) for q in pairs]
            none = torch.zeros(len(pairs), dtype=torch.float64)
            return _Couples(tuple((q,) for q in turned), none, settings.own_weight)
        sides = calibration.positive, calibration.negative
        drawn = [torch.randperm(len(side), generator=generator).tolist() for side in sides]
        coupled = [
            tuple(Question(e.prompt, (e.answer,)) for e in (sides[i][drawn[i][n % len(drawn[i])]] for i in (0, 1)))
            for n in range(max(len(side) for side in sides))
        ]
        turned_round = tuple(c if pole == 0 else c[::-1] for c in coupled)
        alone = _Couples(turned_round, torch.zeros(len(coupled), dtype=torch.float64), settings.own_weight)
        return replace(alone, base=alone.margins(session, range(len(coupled))))

    def at(self, step: int) -> list[int]:
        """The couples of a step: the next `STEP_PAIRS`, again from the first after the last; all of a smaller set."""
        number = len(self.couples)
        return [(step * STEP_PAIRS + i) % number for i in range(min(STEP_PAIRS, number))]

    def margins(self, session: Session, some: Sequence[int]) -> torch.Tensor:
        """Δ of couples under whatever the model wears, less `base`, (some,) float64."""
        flat = [q for i in some for q in self.couples[i]]
        read = [float(a.double().mean()) for answers in score_continuations(session.model, flat) for a in answers]
        own, rival = torch.tensor(read, dtype=torch.float64).reshape(-1, 2).unbind(1)
        return own - rival - self.base[list(some)]

    def weighted(self, some: Sequence[int], slopes: torch.Tensor) -> list[WeightedQuestion]:
        """Questions whose weighted log-probabilities have the gradient of Σ σ(−Δ)·(Δ + β·log p(own)) / pairs, σ held.

        Without β that is the gradient of mean log σ(Δ). Couples under `LEAST_SLOPE` are left out whole.
        """
        found = []
        for i, slope in zip(some, slopes.tolist(), strict=True):
            if not slope >= LEAST_SLOPE:  # or no number: the model overflowed under the mask
                continue
            both = ((1.0 + self.own_weight) * slope / len(some), -slope / len(some))
            couple = self.couples[i]
            if len(couple) == 1:
                found.append(WeightedQuestion(couple[0], both))
            else:
                found += [WeightedQuestion(q, (w,)) for q, w in zip(couple, both, strict=True)]
        return found

    @property
    def ids(self) -> list[object]:
        """Token ids, as JSON."""
        return [[[q.prompt, q.answers] for q in couple] for couple in self.couples]


def _gradients(session: Session, some: Sequence[int], couples: _Couples, worn: Dropped) -> Gradients:
    """∂/∂W of the mean of log σ(Δ) of some couples at the masked point, (out, in) float32 on the CPU."""
    with wearing(session.targets, to_masks(worn)):
        questions = couples.weighted(some, torch.sigmoid(-couples.margins(session, some)))
        if not questions:  # all are won by far
            return {t.name: torch.zeros(t.shape) for t in session.targets}
        return attribute(session.model, session.targets, questions)


def _number(step: int, steps: int, most: int) -> int:
    """Weights worn at a step: none at the first, `most` from half of the steps on."""
    return round(most * min(1.0, 2 * step / steps))


def _highest(sums: Gradients, number: int) -> Dropped:
    """The `number` weights with the largest positive sums, as masks."""
    if not number:
        return {name: torch.zeros_like(s, dtype=torch.bool) for name, s in sums.items()}
    # tens of millions need not be sorted: a sample tells what lies surely among the first
    sample = torch.cat([s.flatten()[::_SAMPLED] for s in sums.values()])
    among = min(2 * number // _SAMPLED + 16, len(sample))
    floor = max(float(sample.kthvalue(len(sample) - among + 1).values), 0.0)
    above = {name: s > floor for name, s in sums.items()}
    if sum(int(a.sum()) for a in above.values()) < number:
        above = {name: s > 0 for name, s in sums.items()}
    return rank(sums, above).drop(number)


_SAMPLED = 64


def _loss(losses: torch.Tensor) -> float:
    """The larger rise of the two kinds of text, nats a token. losses: (rise, tokens) a step and kind, (steps, 2, 2)."""
    total = losses.sum(0)  # torch's max passes on what is no number
    return float((total[:, 0] / total[:, 1].clamp(min=1)).max())


def _next_price(price: float, used: float, lowest: float) -> float:
    """μ after a step; used: the loss over what is aimed at, no number where the model overflowed."""
    used = used if math.isfinite(used) else math.inf
    return min(max(price * math.exp(RATE * min(max(used - 1.0, -1.0), 1.0)), lowest), DEAREST * lowest)


def _texts(generic: GenericText, step: int) -> tuple[tuple[Encoded, ...], tuple[Encoded, ...]]:
    """(chat answers, plain text) that a step reads of the calibrating half: the next ones in turn."""
    text = generic.cheap
    chat = tuple(text.chat[(step * CHAT + i) % len(text.chat)] for i in range(min(CHAT, len(text.chat))))
    plain = (text.plain[step // EVERY % len(text.plain)],) if text.plain and step % EVERY == 0 else ()
    return chat, plain
