"""From text to masks: the whole method on one page.

1. Split the contrast by question: calibration for scores, dev for choices, test is never read here.
2. Encode; gather generic text (half calibrates cheapness, half measures capability loss).
3. Statistics and gradients, streamed (`session`).
4. For each pole: as many weights as asked, or as many as the capability budget allows (`choose`).
5. Both poles with their provenance as one artefact.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import personae
from personae.discovery.calibration import against_base, encode_contrast
from personae.discovery.choice import choose
from personae.discovery.generic import READ_ANSWERS, GenericText, generic_text
from personae.discovery.metering import metered
from personae.discovery.progress import Progress, silent
from personae.discovery.resume import Checkpoint, sweep
from personae.discovery.session import Session, to_masks
from personae.discovery.settings import Settings
from personae.errors import OptionError
from personae.models import cache_directory, find_targets, fingerprint, surroundings
from personae.personas import Contrast, Persona, split
from personae.runtime import check_base
from personae.subnetwork import Artefact, CalibrationIdentity, Mask, ModelIdentity, Provenance, Subnetwork

DEV_ITEMS = 96  # items of the dev part that choose between cheap shares; more costs time and decides no better


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
