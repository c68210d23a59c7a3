"""One calibration, many methods: statistics, gains and cheapness are computed once and shared.

`discover`, the controls of `personae eval` and the benchmarks all take their masks from here, so a
control differs from a method in its score and in nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery import scores
from personae.discovery.attribution import (
    Gradients,
    WeightedQuestion,
    attribute,
    attribution_batch_tokens,
    squared_gradients,
)
from personae.discovery.calibration import Calibration, mean_log_probabilities
from personae.discovery.divergence import divergence_gradient
from personae.discovery.forward import Writer, directions, forward_gains, residual_writers
from personae.discovery.generic import READ_ANSWERS, GenericText
from personae.discovery.progress import Progress, silent
from personae.discovery.resume import Checkpoint
from personae.discovery.selection import Dropped, count, drop_lowest, drop_n_of_m, drop_ranked, rank, rank_lines
from personae.discovery.settings import Settings
from personae.discovery.statistics import Statistics, collect_statistics, site
from personae.errors import ModelError, OptionError
from personae.models import Encoded, Target
from personae.subnetwork import Mask

COST_WEIGHT = 0.3  # λ of `Session.refined`, chosen on dev: 1 gave up more gain than it saved

_NO_TEXT = ("magnitude", "random")  # methods whose scores read none

Pole = int  # 0 the positive pole, 1 the negative one


@dataclass
class Session:
    """A model, a calibration set and a generic text, with everything that is computed from them kept."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    targets: list[Target]
    calibration: Calibration
    generic: GenericText
    tokens: str = "answer"
    checkpoint: Checkpoint | None = None
    progress: Progress = silent
    _other_gains: dict[tuple[str, float, Pole], Gradients] = field(default_factory=dict)
    _base: dict[Calibration, torch.Tensor] = field(default_factory=dict)
    _candidates: dict[float, Dropped] = field(default_factory=dict)
    _kept: list[Checkpoint] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Number of target weights."""
        return sum(t.size for t in self.targets)

    def checkpoint_of(self, *content: object) -> Checkpoint | None:
        """Where a pass keeps its sums, under all that decides them: texts, options, batch size, versions.

        content: JSON values. None where nothing is kept.
        """
        if self.checkpoint is None:
            return None
        frame = json.dumps([content, torch.__version__, transformers.__version__])
        self._kept.append(
            Checkpoint(self.checkpoint.folder, [self.checkpoint.key, hashlib.sha256(frame.encode()).hexdigest()])
        )
        return self._kept[-1]

    @property
    def seconds_before(self) -> float:
        """Seconds that killed runs spent on the passes which this one took up; their other work is not known."""
        first = {kept.path: kept.before for kept in reversed(self._kept)}  # later ones may hold what this run made
        return sum(first.values())

    def with_calibration(self, calibration: Calibration) -> Session:
        """The same model, generic text and what is computed from it, with other calibration items."""
        other = replace(self, calibration=calibration, _other_gains={}, _base=dict(self._base))
        for name in ("generic_statistics", "generic_wanda", "fisher"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        return other

    def forget(self) -> None:
        """Remove what was kept for the case of a kill: what it was for is done."""
        for checkpoint in self._kept:
            checkpoint.clear()
        self._kept.clear()

    # --- what is computed once ---------------------------------------------------------------------------

    @cached_property
    def generic_statistics(self) -> Statistics:
        """Statistics of the calibrating half of the generic text."""
        text = self.generic.cheap
        return self._statistics("generic text", text.plain + text.chat)

    @cached_property
    def pole_statistics(self) -> tuple[Statistics, Statistics]:
        """Statistics of the answers of either pole."""
        return (
            self._statistics("positive answers", self.calibration.positive),
            self._statistics("negative answers", self.calibration.negative),
        )

    def _statistics(self, title: str, texts: tuple[Encoded, ...], *, gram: bool = False) -> Statistics:
        with self.progress(f"statistics: {title}", len(texts)) as tick:
            result = collect_statistics(
                self.model, self.targets, texts, tokens=self.tokens, gram=gram, tick=tick,
                checkpoint=self.checkpoint_of("statistics", [[t.prompt, t.answer] for t in texts], self.tokens, gram),
            )  # fmt: skip
        _warn_of({t.name for t in self.targets if not result[site(t)].tokens}, title)
        return result

    @cached_property
    def gains(self) -> Gradients:
        """H = −w·g of the mean margin for every target; positive where dropping helps the positive pole."""
        return self._gains_of(self.calibration.objective(), "margin")

    def signed_gains(self, settings: Settings, pole: Pole) -> Gradients:
        """H of the objective for one pole: positive where dropping helps this pole.

        The plain margin of the negative pole is minus that of the positive one, so one backward pass
        serves both; 'log-sigmoid' and a weight on the own answers need a pass a pole.
        """
        if settings.objective == "margin" and not settings.own_weight:
            return self.gains if pole == 0 else {n: -h for n, h in self.gains.items()}
        key = (settings.objective, settings.own_weight, pole)
        if key not in self._other_gains:
            weights = None
            if settings.objective == "log-sigmoid":
                # d log σ(Δ) = σ(−Δ) dΔ: pairs the base model already answers our way count less
                if not self.calibration.paired:
                    raise OptionError("--objective log-sigmoid weighs pairs; these data are unpaired.")
                scored = self.base_log_probabilities(self.calibration)
                margins = (scored[:, 0] - scored[:, 1]) * (1.0 if pole == 0 else -1.0)
                if not margins.isfinite().all():
                    raise ModelError(
                        "the model's log-probabilities of some calibration answers are no finite numbers: load it in "
                        "bfloat16 or float32."
                    )
                weights = torch.sigmoid(-margins).tolist()
            questions = self.calibration.objective(pole, own_weight=settings.own_weight, pair_weights=weights)
            self._other_gains.clear()  # one float32 copy of the targets at a time
            title = f"{settings.objective}, own weight {settings.own_weight}, pole {pole}"
            self._other_gains[key] = self._gains_of(questions, title)
        return self._other_gains[key]

    def base_log_probabilities(self, items: Calibration) -> torch.Tensor:
        """`mean_log_probabilities` of the model without a mask, computed once for the same items."""
        if items not in self._base:
            with self.progress("answers under the base model", len(items.paired)) as tick:
                self._base[items] = mean_log_probabilities(self.model, items, tick=tick)
        return self._base[items]

    def _gains_of(self, questions: list[WeightedQuestion], title: str) -> Gradients:
        body = [[q.question.prompt, q.question.answers, q.weights] for q in questions]
        checkpoint = self.checkpoint_of("attribution", body, attribution_batch_tokens(self.model))
        with self.progress(f"attribution ({title})", len(questions)) as tick:
            gradients = attribute(self.model, self.targets, questions, tick=tick, checkpoint=checkpoint)
        experts = {t.name for t in self.targets if t.expert is not None}
        _warn_of({n for n in experts if not gradients[n].any()}, "calibration answers")
        for target in self.targets:  # in place: a second float32 copy of the model is not needed
            gradients[target.name].mul_(target.weight.to("cpu", torch.float32)).neg_()
        return gradients

    @cached_property
    def generic_wanda(self) -> dict[str, torch.Tensor]:
        """|w|·sqrt(mean x²) on generic text, (out, in): the control `generic`."""
        return {t.name: scores.wanda(t.weight, self.generic_statistics[site(t)], "l2").cpu() for t in self.targets}

    @cached_property
    def fisher(self) -> Gradients:
        """F of the calibrating half of the generic text: what dropping a weight costs, w²·F, to second order."""
        # One backward pass a text, and the order of candidates hardly changes with more of them.
        text = replace(self.generic.cheap, answers=min(self.generic.answers, READ_ANSWERS)).read
        texts = text.chat + text.plain
        with self.progress("price of weights on generic text", len(texts)) as tick:
            checkpoint = self.checkpoint_of("price", [[t.prompt, t.answer] for t in texts])
            return squared_gradients(self.model, self.targets, texts, tick=tick, checkpoint=checkpoint)

    def candidates(self, cheap_share: float) -> Dropped:
        """True where cheapness u < c, per row; experts that generic text never reached offer none."""
        if cheap_share not in self._candidates:
            result: Dropped = {}
            for target in self.targets:
                x = self.generic_statistics[site(target)]
                mask = scores.cheapest(target.weight, x, cheap_share).cpu()
                result[target.name] = mask if x.tokens else torch.zeros_like(mask)
            self._candidates[cheap_share] = result
        return self._candidates[cheap_share]

    # --- masks -------------------------------------------------------------------------------------------

    def family(self, settings: Settings, pole: Pole, cheap_share: float | None = None) -> Family:
        """The nested masks of a method for one pole: from a number of weights to the weights dropped."""
        if settings.by_candidates or (settings.method == "random" and cheap_share is not None):
            assert cheap_share is not None
            return self._inside_budget(settings, pole, cheap_share)
        scored, ties = self.scores(settings, pole)
        spared = self._spared(settings.method, pole)
        keep = {n: s for n, s in scored.items() if n not in spared}
        size = sum(s.numel() for s in keep.values())
        ranked: dict[str, dict[str, torch.Tensor]] = {}

        def at(number: int) -> Dropped:
            if number <= 0:
                return self._completed({})
            if settings.n_m:
                return self._completed(drop_n_of_m(keep, *settings.n_m, ties=ties))
            if settings.selection == "global":
                return self._completed(drop_lowest(keep, number / size, "global", ties))
            if "ranks" not in ranked:  # sorted once, however many numbers are tried
                ranked["ranks"] = rank_lines(keep, settings.selection, ties)
            return self._completed(drop_ranked(keep, ranked["ranks"], number / size, ties))

        return Family(at, count(0.95, size), size)

    def _inside_budget(self, settings: Settings, pole: Pole, cheap_share: float) -> Family:
        """Candidates in the order of their gain (`directed`, `directed-forward`) or of chance (`random`)."""
        candidates = self.candidates(cheap_share)
        if settings.method == "random":
            offset = settings.seed * 100_003 + pole
            order = {t.name: scores.random(t.weight, offset * 1009 + i) + 1e-9 for i, t in enumerate(self.targets)}
        elif settings.method == "directed-forward":
            order = self._forward_order(settings, pole)
        else:
            gains = self.signed_gains(settings, pole)
            order = {n: self.by_price(n, h, settings.rank_by) for n, h in gains.items()}
        ranking = rank(order, candidates)
        return Family(ranking.drop, len(ranking), self.size)

    @cached_property
    def writers(self) -> list[Writer]:
        """The targets that write to the residual stream, with the norm that reads it next."""
        with self.progress("targets that write to the residual stream", len(self.targets)) as tick:
            return residual_writers(self.model, self.targets, self.calibration.positive[0], tick)

    @cached_property
    def directions(self) -> dict[str, torch.Tensor]:
        """The persona direction behind each norm, p⁺ minus p⁻."""
        both = self.calibration.positive, self.calibration.negative
        with self.progress("persona directions", len(both[0]) + len(both[1])) as tick:
            return directions(self.model, self.writers, *both, tick=tick)

    def _forward_order(self, settings: Settings, pole: Pole) -> dict[str, torch.Tensor]:
        """H of `directed-forward`, zero elsewhere; its price is the generic Wanda score |w|·rms(x)."""
        gains = forward_gains(self.writers, self.directions, *self.pole_statistics, settings.forward)
        # 'separation' is the same from either pole: direction and difference of means turn together
        sign = 1.0 if pole == 0 or settings.forward == "separation" else -1.0
        if settings.rank_by == "gain-per-price":
            gains = {n: h / self.generic_wanda[n].clamp(min=1e-9) for n, h in gains.items()}
        return {t.name: sign * gains[t.name] if t.name in gains else torch.zeros(t.shape) for t in self.targets}

    def divergence(self, texts: Sequence[Encoded], worn: Dropped) -> Gradients:
        """∂K/∂W under a mask, K the mean KL divergence a token from the base model on these texts."""
        masks = to_masks(worn)
        checkpoint = self.checkpoint_of("divergence", [[t.prompt, t.answer] for t in texts], hash_of(masks))
        with self.progress("divergence on generic text", len(texts)) as tick:
            return divergence_gradient(self.model, self.targets, masks, texts, tick=tick, checkpoint=checkpoint)

    def refined(self, settings: Settings, pole: Pole, cheap_share: float, worn: Dropped) -> Family:
        """`directed` once more, with what dropping each weight costs beside the others that `worn` drops.

        cost = −w·∂K/∂w at the masked point, K the divergence from the base model on generic text (`divergence`);
        zero where dropping would lower it. Candidates are ordered by (H − μ·cost)/√D (by 'gain': H − μ·cost) with
        μ = λ·ΣH/Σcost, sums over what `worn` drops, λ = `COST_WEIGHT`. worn: a mask of about the size wanted.
        """
        text = self.generic.cheap.read
        costs = self.divergence(text.chat + text.plain, worn)
        for target in self.targets:  # in place, as for the gains
            costs[target.name].mul_(target.weight.to("cpu", torch.float32)).neg_()
        gains = self.signed_gains(settings, pole)
        gained = sum(float(h[worn[n]].double().sum()) for n, h in gains.items())
        spent = sum(float(c[worn[n]].double().sum()) for n, c in costs.items())
        weight = COST_WEIGHT * gained / spent if spent > 0 else 0.0
        order = {n: self.by_price(n, h - weight * costs[n].clamp(min=0), settings.rank_by) for n, h in gains.items()}
        ranking = rank(order, self.candidates(cheap_share))
        return Family(ranking.drop, len(ranking), self.size)

    def prepare_price(self, rank_by: str) -> None:
        """Compute now what `by_price` needs."""
        if rank_by != "gain":
            _ = self.fisher

    def by_price(self, name: str, gain: torch.Tensor, rank_by: str) -> torch.Tensor:
        """What orders candidates: gain/√D, or the gain itself. The model must wear no mask."""
        if rank_by == "gain":
            return gain
        return gain / self.root_price(name)

    def root_price(self, name: str) -> torch.Tensor:
        """sqrt(D) = |w|·sqrt(F), (out, in), kept away from zero; infinite where F is 0, which is no price.

        The price reads fewer texts than cheapness: an expert that none of them reached would cost nothing, and its
        weights would go first. Made anew each time: kept, it would be one more float32 copy of the targets.
        """
        fisher, weight = self.fisher[name], self._by_name[name].weight
        root = fisher.sqrt().mul_(weight.detach().abs().to("cpu", torch.float32)).clamp_(min=1e-9)
        return root.masked_fill_(fisher == 0, math.inf)

    @cached_property
    def _by_name(self) -> dict[str, Target]:
        return {t.name: t for t in self.targets}

    def isolated(self, settings: Settings, pole: Pole, weight: float) -> Dropped:
        """A whole subnetwork at `sparsity`: per row, drop first by u − λ·sign(H)·r, r the rank of |H| in its row."""
        gains = self.signed_gains(settings, pole)
        keep: dict[str, torch.Tensor] = {}
        spared = self._spared("directed", pole)
        for target in self.targets:
            if target.name in spared:
                continue
            cheap = scores.cheapness(target.weight, self.generic_statistics[site(target)]).cpu()
            gain = gains[target.name]
            keep[target.name] = cheap - weight * gain.sign() * row_ranks(gain.abs())
        assert settings.sparsity is not None
        return self._completed(drop_lowest(keep, settings.sparsity, "row"))

    def scores(self, settings: Settings, pole: Pole) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
        """(scores, tie-breakers) of a method of docs/methods.md section 3 for one pole; the lowest are dropped."""
        method = settings.method
        if method == "random":
            base = settings.seed * 100_003 + pole
            return {t.name: scores.random(t.weight, base * 1009 + i) for i, t in enumerate(self.targets)}, None
        if method == "magnitude":
            return {t.name: scores.magnitude(t.weight).cpu() for t in self.targets}, None
        if method == "generic":
            return self.generic_wanda, None
        if method == "sparsegpt":
            return self._sparsegpt(pole), None
        own, rival = self.pole_statistics if pole == 0 else self.pole_statistics[::-1]
        wanda = {t.name: scores.wanda(t.weight, own[site(t)], settings.statistic).cpu() for t in self.targets}
        if method == "wanda":
            return wanda, None
        if method == "contrastive-wanda":
            return {
                t.name: scores.contrastive_wanda(t.weight, own[site(t)], rival[site(t)], phi=settings.phi).cpu()
                for t in self.targets
            }, wanda
        assert method == "contrastive-sparse", method
        return {
            t.name: scores.contrastive_sparse(t.weight, own[site(t)], rival[site(t)]).cpu() for t in self.targets
        }, wanda

    def _sparsegpt(self, pole: Pole) -> dict[str, torch.Tensor]:
        texts = self.calibration.positive if pole == 0 else self.calibration.negative
        own = self._statistics("answers with their second moments", texts, gram=True)
        return {t.name: scores.sparsegpt(t.weight, own[site(t)]).cpu() for t in self.targets}

    def _spared(self, method: str, pole: Pole) -> set[str]:
        """Targets that keep all weights: no token of the text that the score reads reached them. Experts, and whole
        towers that text never runs through (a vision model's): there every score ties, and means nothing.

        `magnitude` and `random` read no text; as controls they spare experts that the pole's own text never reached.
        """
        asked = [t for t in self.targets if t.expert is not None or method not in _NO_TEXT]
        if not asked:
            return set()  # before any pass over a text
        if method in {"generic", "directed"}:
            read: tuple[Statistics, ...] = (self.generic_statistics,)
        elif method.startswith("contrastive"):
            read = self.pole_statistics
        else:
            read = (self.pole_statistics[pole],)
        return {t.name for t in asked if not all(s[site(t)].tokens for s in read)}

    def _completed(self, dropped: Dropped) -> Dropped:
        """With an empty mask for every target that is not there."""
        return {t.name: dropped.get(t.name, torch.zeros(t.shape, dtype=torch.bool)) for t in self.targets}


@dataclass(frozen=True)
class Family:
    """Nested masks: `at(n)` drops n of `size` weights, 0 <= n <= most (in rows: up to the rounding of each row)."""

    at: Callable[[int], Dropped]
    most: int
    size: int


def hash_of(masks: Mapping[str, Mask]) -> str:
    """SHA-256 of names and bits."""
    digest = hashlib.sha256()
    for name in sorted(masks):
        digest.update(name.encode() + masks[name].packed().tobytes())
    return digest.hexdigest()


def _warn_of(unreached: set[str], text: str) -> None:
    if unreached:
        names = sorted(unreached)
        warnings.warn(
            f"no token of the {text} reached {len(names)} matrices (experts, or a tower that text does not run "
            f"through); they keep all their weights: {', '.join(names)}", stacklevel=4,
        )  # fmt: skip


def row_ranks(values: torch.Tensor) -> torch.Tensor:
    """Rank of each value within its row, scaled to [0, 1); equal values rank by column."""
    order = values.argsort(dim=1, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(values.shape[1]).expand_as(order))
    return ranks.float() / values.shape[1]


def to_masks(dropped: Mapping[str, torch.Tensor]) -> dict[str, Mask]:
    """Masks of the artefact from boolean tensors (True = dropped)."""
    return {name: Mask.from_dropped(d.cpu().numpy()) for name, d in dropped.items()}
