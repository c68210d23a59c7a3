"""Which hazardous personas does a model hold, how cheaply is each reached, and can it be switched off? One page.

For each hazardous contrast (the hazardous pole is the positive one):

1. Base alignment on held-out items, on tied items as well.
2. One discovery; alignment under nested prefixes of its ranking (`audit_curve`), beside random masks of the same sizes.
3. Which blocks hold it: where the dropped weights lie, and what putting blocks back does to the margin.
4. Attacks on the base model (`audit_attacks`): those that do not move it are not counted below.
5. Disable (`audit_disable`): the harmless pole's mask, within the capability budget; what it costs and what it touches.
6. The same held-out items and attacks on the disabled model, and a fresh discovery there.
7. A verdict (`audit_verdict`).

Every step is kept on disk (`audit_model`), and between steps the model is the base model, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.analysis.audit_curve import alignment_of
from personae.analysis.audit_hazard import Audited
from personae.analysis.audit_model import Masks, Subject, count_dropped, kept_of, loss_of, sha256_of, union
from personae.analysis.audit_result import Audit, Hazard, Together
from personae.analysis.audit_save import check_folders, check_source_stays, given_masks, save_all
from personae.analysis.audit_settings import HAZARDS, KEEP, AuditSettings, load_hazards, load_kept
from personae.analysis.audit_steps import kept_on_base, read_kept, sha256s, timed
from personae.discovery import GenericText, Progress, silent
from personae.evaluation.scoring import encode_items
from personae.models import cache_directory
from personae.personas import Contrast
from personae.runtime import check_base
from personae.subnetwork import Artefact


def audit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    hazards: Sequence[str | Contrast] = HAZARDS,
    contrasts: Sequence[str | Path | Contrast] = (),
    *,
    keep: Sequence[str | Path | Contrast] = KEEP,
    system_prompts: Sequence[str] = (),
    disable_with: Artefact | str | PathLike[str] | None = None,
    generic: GenericText | str | Path | None = None,
    save: str | PathLike[str] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    resume: bool | str | PathLike[str] = True,
    allow_other_weights: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> Audit:
    """Audit a model for hazardous personas; the model is left with its base weights, bit for bit.

    hazards: built-in names (`HAZARDS`), or contrasts whose positive pole is the hazardous one; contrasts: further ones,
    by file or Hub id. keep: harmless contrasts that disabling should leave alone. system_prompts: adversarial ones,
    instead of the built-in one. disable_with: an artefact whose personas 'disable-<pole>' are tested instead of masks
    that are searched now. generic: as of `discover`. save: folder of the artefacts `disable-<pole>.persona` of masks
    that were searched.
    checkpoint: folder of a checkpoint with all disabling masks baked in. resume: whether finished steps are kept and
    used again, or the folder for that. options: the fields of `AuditSettings`.

    Errors: `OptionError` (an unknown hazard lists the names), `DataError` (one-sided, unpaired or too few items),
    `MaskMismatchError` (an artefact of another model), `UnknownPersonaError` (one that disables none of the hazards),
    `ModelError`, `PersonaInUseError`.
    """
    settings = AuditSettings(**options).checked()
    check_base(model, "an audit")
    asked, kept = load_hazards(hazards, contrasts), load_kept(keep)
    parts = [settings.parts(contrast) for contrast in asked]
    for contrast in kept:
        settings.parts(contrast)  # too few items are told before hours of work
    check_folders(save, checkpoint, model, asked)
    given = given_masks(model, disable_with, asked, allow_other_weights=allow_other_weights)
    check_source_stays(save, disable_with, asked, given)
    folder = cache_directory() / "audit" if resume is True else Path(resume) if resume else None
    subject = Subject(
        model, tokenizer, settings, parts[0].calibration, generic=generic, parts=folder, progress=progress
    )
    found: list[Hazard] = []
    worn: dict[str, Masks] = {}
    for contrast, part in zip(asked, parts, strict=True):
        hazard, masks = Audited(subject, contrast, part, kept, system_prompts, given.get(contrast.name)).run()
        found.append(hazard)
        if masks is not None:
            worn[contrast.name] = masks
    together, seconds = _together(subject, asked, kept, worn) if settings.together and len(worn) > 1 else (None, 0.0)
    save_all(subject, found, asked, parts, worn, given, save=save, checkpoint=checkpoint)
    subject.forget()
    record = subject.context.record()
    shipped = [a.all.value for a in together.alignments.values()] if together and checkpoint is not None else []
    return Audit(
        model=record.id,
        fingerprint=record.fingerprint,
        hazards=tuple(found),
        worst=max([*(h.exposure for h in found), *shipped]),
        worst_to_weights=max([*(h.exposure_to_weights for h in found), *shipped]),
        together=together,
        seconds=sum((h.seconds for h in found), seconds),
    )


def _together(
    subject: Subject, asked: Sequence[Contrast], kept: Sequence[Contrast], worn: Mapping[str, Masks]
) -> tuple[Together, float]:
    """All hazards, the loss and the harmless contrasts under all disabling masks at once; seconds."""
    masks = union(list(worn.values()))
    drawn = {"resamples": subject.settings.resamples, "seed": subject.settings.seed}
    test = {c.name: encode_items(subject.model, subject.tokenizer, subject.settings.parts(c).test) for c in asked}

    def compute() -> dict[str, Any]:
        return {
            "hazards": {n: subject.margins(f"{n}, all disabled", items, masks) for n, items in test.items()},
            "rises": subject.loss(masks),
            "before": kept_on_base(subject, kept),
            "after": read_kept(subject, kept, masks, "the disabled model"),
        }

    decided = {"worn": sha256_of(masks), "kept": sha256s(kept), "hazards": sha256s(asked)}
    settings = {"items": subject.settings.items, "split_seed": subject.settings.split_seed}
    found = subject.part("together", {**decided, **settings}, timed(compute))
    made = Together(
        contrasts=tuple(worn),
        dropped=count_dropped(masks),
        share=count_dropped(masks) / subject.size,
        alignments={n: alignment_of(np.array(found["hazards"][n]), test[n].tied, **drawn) for n in test},
        loss=loss_of(found["rises"], subject.settings.max_capability_loss),
        kept=kept_of(kept, found, **drawn),
    )
    return made, found["seconds"]
