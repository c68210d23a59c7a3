"""From text to masks: the whole method on one page.

1. Split the contrast by question: calibration for scores, dev for choices, test is never read here.
2. Encode; gather generic text (half calibrates cheapness, half measures capability loss).
3. Statistics and gradients, streamed (`session`).
4. For each pole: as many weights as asked, or as many as the capability budget allows (`choose`).
5. Both poles with their provenance as one artefact.
"""

from __future__ import annotations

import json
import math
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import personae
from personae.discovery.budget import FEWEST, Capability, capability, largest_within
from personae.discovery.calibration import (
    Calibration,
    against_base,
    encode_contrast,
    margin,
    mean_log_probabilities,
)
from personae.discovery.generic import READ_ANSWERS, GenericText, generic_text
from personae.discovery.metering import metered
from personae.discovery.progress import Progress, silent
from personae.discovery.resume import Checkpoint, sweep
from personae.discovery.selection import Dropped, count
from personae.discovery.session import Family, Session, to_masks
from personae.discovery.settings import DEFAULT_CHEAP_SHARES, FIXED_CHEAP_SHARE, Settings
from personae.discovery.steps import family_of
from personae.errors import ModelError, OptionError
from personae.models import cache_directory, find_targets, fingerprint, surroundings
from personae.personas import Contrast, Persona, split
from personae.runtime import check_base, wearing
from personae.subnetwork import Artefact, CalibrationIdentity, Mask, ModelIdentity, Provenance, Subnetwork

ISOLATED_WEIGHTS = (0.25, 0.5, 1.0)  # λ of the isolated form, chosen on dev
DEV_ITEMS = 96  # items of the dev part that choose between cheap shares; more costs time and decides no better
ROOM = 0.5  # of a budget: where short steps leave more of it, they say so
FIRST_PROBE = 0.001  # share of weights the search for the budget tries first


def discover(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contrast: Contrast | Persona,
    *,
    generic: GenericText | str | Path | None = None,
    generic_answers: int = READ_ANSWERS,
    targets: str | Sequence[str] | None = None,
    split_seed: int | None = 0,
    dev: Contrast | None = None,
    pole: str | None = None,
    resume: bool = True,
    session: Session | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Artefact:
    """Find the subnetworks of a contrast's two poles (of a lone persona: its own; pole: of this one alone).

    options: the fields of `Settings` (method, max_capability_loss, cheap_share, drop_share, sparsity, isolated,
    selection, n_m, …). split_seed: the seed of the 60/20/20 split by question; calibration and dev are used
    here, test is left for evaluation. None: all of `contrast` calibrates, and `dev` (or the contrast itself)
    chooses. generic: generic text, or its source (see `generic_text`); default: sampled from the model.
    generic_answers: how many of its answers each probe of the budget reads (the price: 24 at most); more cost time, and
    make it likelier that the budget is kept on other text too. session: one that the caller has opened on the
    calibration part (`open_session`), to share its statistics with `evaluate` or another method; its own generic text
    and targets count.

    Returns an artefact with the poles, their provenance and what was measured on dev. The model is
    left with its base weights, bit for bit. Errors: `OptionError`, `DataError`, `ModelError`.
    """
    settings = Settings(**options).checked()
    check_base(model, "discovery")  # before a lone persona's rivals are written, and for a caller's session too
    if isinstance(contrast, Persona):
        if settings.method.startswith("contrastive"):
            raise OptionError(
                f"{settings.method} compares two personas, but {contrast.name!r} is one-sided: "
                "give a contrast, or use directed, wanda or sparsegpt."
            )
        lone = contrast
        if pole not in (None, lone.name):
            raise OptionError(f"{lone.name!r} is one persona and has no pole {pole!r}: leave the pole out.")
        with progress("answers of the base model", len(lone)) as tick:
            contrast = against_base(model, tokenizer, lone, tick)
    else:
        lone = None
    asked = (0,) if lone else (0, 1) if pole is None else (_place(contrast, pole),)
    if split_seed is None:
        calibration_part, dev_part, part = contrast, dev or contrast, None
    else:
        parts = split(contrast, seed=split_seed)
        calibration_part, dev_part, part = (
            parts.calibration,
            dev or parts.dev.take(min(DEV_ITEMS, len(parts.dev))),
            f"calibration of seed {split_seed}",
        )
    own = session is None
    if session is None:
        session = open_session(
            model, tokenizer, calibration_part, generic=generic, generic_answers=generic_answers, targets=targets,
            tokens=settings.tokens, seed=settings.seed, resume=resume, progress=progress,
        )  # fmt: skip
    else:
        _check_session(session, model, tokenizer, calibration_part, settings, generic=generic, targets=targets)
    before = session.seconds_before
    with metered(model.device) as cost:
        chosen = choose(session, settings, encode_contrast(model, tokenizer, dev_part), asked)
    identity = CalibrationIdentity(
        name=contrast.name, sha256=calibration_part.sha256, items=len(calibration_part), licence=contrast.licence,
        split=part,
    )  # fmt: skip
    found = [to_masks(choice.dropped) for choice in chosen]
    both = _kept_by_both(found, session.size)
    personas = []
    for side, choice, masks in zip(asked, chosen, found, strict=True):
        zeros = sum(m.dropped for m in masks.values())
        personas.append(
            Subnetwork(
                name=contrast.poles[side],
                masks=masks,
                provenance=Provenance(
                    method=settings.method,
                    parameters={**_parameters(settings), **choice.parameters},
                    calibration=identity,
                    seed=settings.seed,
                    sparsity=zeros / session.size,
                    sparsity_per_target={n: round(m.sparsity, 6) for n, m in masks.items()},
                    measured={
                        **choice.measured,
                        **both,
                        "seconds_of_discovery": round(cost.seconds + session.seconds_before - before, 1),
                        "peak_bytes_of_discovery": cost.peak_bytes,
                    },
                    versions=versions(),
                    licence=contrast.licence,
                ),
                description=contrast.description,
                system_prompt=(contrast.positive_prompt, contrast.negative_prompt)[side],
            )
        )
    if own:
        session.forget()
    return Artefact(
        model=model_identity(model, session),
        personas={p.name: p for p in personas},
        metadata={
            "contrast": contrast.name,
            "source": contrast.source,
            "generic_text": {
                "source": session.generic.source,
                "sha256": session.generic.sha256,
                "answers": session.generic.answers,
            },
        },
    )


def _place(contrast: Contrast, pole: str) -> int:
    if pole not in contrast.poles:
        raise OptionError(f"'{contrast.name}' has no pole {pole!r}: choose {' or '.join(contrast.poles)}.")
    return contrast.poles.index(pole)


def _check_session(
    session: Session, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: Contrast, settings: Settings,
    *, generic: object, targets: object,
) -> None:  # fmt: skip
    """Raise `OptionError` unless a session of the caller's is of this model, these items and these tokens."""
    if generic is not None or targets is not None:
        raise OptionError("a session has its own generic text and targets: give them to open_session().")
    if session.model is not model or session.calibration != encode_contrast(model, tokenizer, part):
        raise OptionError(f"the session was not opened on this model and the items of '{part.name}': open it on them.")
    if session.tokens != settings.tokens:
        raise OptionError(f"the session reads tokens={session.tokens!r}, not {settings.tokens!r}: open it with those.")


def _kept_by_both(poles: Sequence[Mapping[str, Mask]], size: int) -> dict[str, float]:
    """Share of target weights that both masks keep: 0 where they are disjoint, which below half sparsity none are."""
    if len(poles) != 2:
        return {}
    first, second = poles
    return {"kept_by_both": sum((first[n] & second[n]).kept for n in first) / size}


def open_session(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    calibration: Contrast,
    *,
    generic: GenericText | str | Path | None = None,
    generic_answers: int = READ_ANSWERS,
    targets: str | Sequence[str] | None = None,
    tokens: str = "answer",
    seed: int = 0,
    resume: bool = True,
    progress: Progress = silent,
) -> Session:
    """Targets, token ids and generic text of one calibration set; nothing is computed from them yet."""
    check_base(model, "discovery")
    found = find_targets(model, targets)
    encoded = encode_contrast(model, tokenizer, calibration)
    if not isinstance(generic, GenericText):
        with progress("generic text", 16 * generic_answers // 3) as tick:
            generic = generic_text(
                model, tokenizer, found, source=generic, answers=generic_answers, seed=seed, tick=tick
            )
    checkpoint = None
    if resume:
        key = [
            fingerprint(found),
            surroundings(model, found),
            str(model.dtype),
            calibration.sha256,
            [t.name for t in found],
            personae.__version__,
        ]
        folder = cache_directory() / "resume"
        sweep(folder)
        checkpoint = Checkpoint(folder, key)
    return Session(model, tokenizer, found, encoded, generic, tokens, checkpoint, progress)


@dataclass(frozen=True)
class Choice:
    """The weights dropped for one pole, how that number was chosen, and what dev says of it."""

    dropped: Dropped
    parameters: dict[str, Any]
    measured: dict[str, Any]


def choose(session: Session, settings: Settings, dev: Calibration, poles: Sequence[int] = (0, 1)) -> list[Choice]:
    """Masks of the poles: by the budget where one is set, else by the shares asked for."""
    if settings.max_capability_loss is not None:
        return _within_budget(session, settings, dev, poles)
    chosen = []
    for pole in poles:
        if settings.isolated:
            chosen.append(_best_isolated(session, settings, dev, pole))
            continue
        if settings.by_candidates:
            cheap = settings.cheap_share or FIXED_CHEAP_SHARE
            family = session.family(settings, pole, cheap)
            wanted = family.most if settings.drop_share is None else count(settings.drop_share, session.size)
            if wanted > family.most:
                raise OptionError(
                    f"--drop-share {settings.drop_share} asks for {wanted:,} weights, but only {family.most:,} "
                    f"candidates (--cheap-share {cheap}) help this pole; raise --cheap-share or lower --drop-share."
                )
            dropped = family.at(wanted)
            parameters: dict[str, Any] = {"cheap_share": cheap}
        else:
            share = settings.sparsity if settings.sparsity is not None else 0.5
            family = session.family(settings, pole)
            dropped = family.at(count(share, family.size))
            parameters = {}
        chosen.append(Choice(dropped, parameters, measure(session, dropped, dev, pole)))
    return chosen


def _within_budget(session: Session, settings: Settings, dev: Calibration, poles: Sequence[int]) -> list[Choice]:
    """Per pole, cheap share and round: the most that keeps the budget; what does best on dev wins."""
    text = session.generic.held_out.read
    if min(len(text.plain), len(text.chat)) < FEWEST:
        warnings.warn(
            f"the budget is kept on {len(text.plain)} plain windows and {len(text.chat)} answers: fewer than {FEWEST} "
            "tell no spread, so the bound says little of other text; give more text, or raise --generic-answers.",
            stacklevel=3,
        )  # fmt: skip
    with session.progress("capability of the base model", len(text.plain) + len(text.chat)) as tick:
        base = capability(session.model, text, tick)
    budget = settings.max_capability_loss
    assert budget is not None

    def within(family: Family, pole: int, parameters: dict[str, Any], start: int, title: str) -> Choice:
        with session.progress(f"capability budget ({title})", 7) as tick:
            read: dict[int, Capability] = {}
            probe = _bound(session, family, text, base, read, tick)
            number, bound = largest_within(probe, family.most, budget, start=start)
        if not family.most:
            warnings.warn(f"{settings.method} found no weight that it would drop ({title}): empty mask.", stacklevel=3)
        if settings.steps and number == family.most and 0 < bound < ROOM * budget:
            warnings.warn(
                f"short steps end at {number:,} weights ({title}), which cost at most {bound:.3f} of {budget:g} nats a "
                "token: a larger --step-share, or --rounds, can use the rest of the budget.", stacklevel=3,
            )  # fmt: skip
        if read and not number:
            least = min(read)
            costs, most = read[least].loss(base), read[least].loss_bound(base)
            warnings.warn(
                f"no mask of {settings.method} keeps {budget:g} nats a token ({title}): the smallest that was tried, "
                f"{least:,} weights, costs {costs:.3f} and may cost {most:.3f} on other text; "
                "the mask is empty. More generic answers make the bound tighter.", stacklevel=3,
            )  # fmt: skip
        dropped = family.at(number)
        loss = read[number].loss(base) if number else 0.0
        searched = {"capability_loss_searched": loss, "capability_loss_bound": bound}
        return Choice(dropped, parameters, {**measure(session, dropped, dev, pole), **searched})

    shares: Sequence[float | None] = DEFAULT_CHEAP_SHARES if settings.by_candidates else (None,)
    chosen: list[Choice] = []
    for pole in poles:
        tried: list[Choice] = []
        for cheap in shares:
            # a larger share of candidates spends the budget on fewer weights
            start = _number(tried[-1]) // 2 if tried else count(FIRST_PROBE, session.size)
            title = f"pole {pole + 1}, c={cheap}" if cheap else f"pole {pole + 1}"
            family = family_of(session, settings, pole, cheap)
            start = family.most if settings.steps else start  # steps have kept an eye on the budget
            tried.append(within(family, pole, {"cheap_share": cheap} if cheap else {}, max(start, 1), title))
        best = max(tried, key=_on_dev)
        for number in range(2, (settings.rounds or 1) + 1):
            cheap, before = best.parameters["cheap_share"], _number(best)
            if not before:
                break
            family = session.refined(settings, pole, cheap, best.dropped)
            again = within(
                family, pole, {"cheap_share": cheap, "round": number}, round(1.5 * before),
                f"pole {pole + 1}, round {number}",
            )  # fmt: skip
            if _on_dev(again) <= _on_dev(best):
                break  # first order does not hold for ever: a round is taken only if dev gains by it
            best = again
        chosen.append(best)
    return chosen


def _number(choice: Choice) -> int:
    return sum(int(d.sum()) for d in choice.dropped.values())


def _on_dev(choice: Choice) -> float:
    """What choices are made by: mean log σ of the margin. The mean margin itself is ruled by its largest items."""
    return float(choice.measured["dev_log_sigmoid"])


def _bound(
    session: Session, family: Family, text: GenericText, base: Capability, read: dict[int, Capability], tick: Any
) -> Any:
    def bound_at(number: int) -> float:
        with wearing(session.targets, to_masks(family.at(number))):
            read[number] = capability(session.model, text)
        tick(1)
        return read[number].loss_bound(base)

    return bound_at


def _best_isolated(session: Session, settings: Settings, dev: Calibration, pole: int) -> Choice:
    best: Choice | None = None
    for weight in ISOLATED_WEIGHTS:
        dropped = session.isolated(settings, pole, weight)
        measured = measure(session, dropped, dev, pole)
        choice = Choice(dropped, {"isolated_weight": weight}, measured)
        best = choice if best is None or _on_dev(choice) > _on_dev(best) else best
    assert best is not None
    return best


def measure(session: Session, dropped: Dropped, dev: Calibration, pole: int) -> dict[str, Any]:
    """What dev says: the share of items won by this pole, its mean margin, and the gain over base."""
    base = session.base_log_probabilities(dev)
    with wearing(session.targets, to_masks(dropped)):
        worn = mean_log_probabilities(session.model, dev)
    sign = 1 if pole == 0 else -1
    won, mean = margin(worn)
    _, before = margin(base)
    if not math.isfinite(mean):
        raise ModelError(
            "under this mask the model's log-probabilities on dev are no finite numbers: drop less (a smaller share or "
            "budget), or load it in bfloat16 or float32."
        )
    own = worn[:, pole].mean() - base[:, pole].mean()
    return {
        "dev_items": len(dev.paired) or len(dev.positive) + len(dev.negative),
        "dev_acc": won if pole == 0 else 1 - won,
        "dev_margin": sign * mean,
        "dev_margin_gain": sign * (mean - before),
        "dev_log_sigmoid": float(torch.nn.functional.logsigmoid(sign * (worn[:, 0] - worn[:, 1])).mean()),
        "dev_own_answers": float(own),  # change of log p on the persona's own answers, nats a token
    }


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    return {
        "personae": personae.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def model_identity(model: PreTrainedModel, session: Session) -> ModelIdentity:
    """Who the model is, for the artefact."""
    return ModelIdentity(
        id=str(getattr(model.config, "_name_or_path", "") or type(model).__name__),
        revision=getattr(model.config, "_commit_hash", None),
        fingerprint=fingerprint(session.targets),
        architecture=type(model).__name__,
        dtype=str(model.dtype).removeprefix("torch."),
        targets={t.name: t.shape for t in session.targets},
    )


def _parameters(settings: Settings) -> dict[str, Any]:
    return dict(json.loads(json.dumps({k: v for k, v in asdict(settings).items() if v is not None})))
