"""Disabling masks as artefacts and as a safe checkpoint, and those that are handed in."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path

from pydantic import JsonValue
from transformers import PreTrainedModel

from personae.analysis.audit_model import Masks, Subject, union
from personae.analysis.audit_result import Disabling, Hazard
from personae.discovery import versions
from personae.errors import OptionError, UnknownPersonaError
from personae.export import check_folder, save_masked
from personae.models import find_targets
from personae.personas import Contrast
from personae.personas.split import Split
from personae.runtime import PersonaModel
from personae.subnetwork import Artefact, CalibrationIdentity, Mask, ModelIdentity, Provenance, Subnetwork, load
from personae.subnetwork.artefact import check_persona_name

Folder = str | PathLike[str] | None


def disabling_name(contrast: Contrast) -> str:
    """How the persona that disables a contrast's hazardous pole is called."""
    return f"disable-{contrast.positive}"


def check_folders(save: Folder, checkpoint: Folder, model: PreTrainedModel, asked: Sequence[Contrast]) -> None:
    """Refuse before hours of work what could not be written after them. Errors: `OptionError`."""
    names = [disabling_name(contrast) for contrast in asked]
    for name in names:
        check_persona_name(name)
        if names.count(name) > 1:
            raise OptionError(f"two hazards have the pole '{name.removeprefix('disable-')}': audit them one by one.")
    if save is not None:
        folder = Path(save)
        if folder.exists() and not folder.is_dir():
            raise OptionError(f"--save {folder} is a file; name a folder.")
        parent = folder if folder.is_dir() else folder.resolve().parent
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise OptionError(f"--save {folder}: {parent} is no folder that can be written to; make it.")
    if checkpoint is not None:
        check_folder(Path(checkpoint), model, "--checkpoint")


def given_masks(
    model: PreTrainedModel,
    source: Artefact | str | PathLike[str] | None,
    asked: Sequence[Contrast],
    *,
    allow_other_weights: bool,
) -> dict[str, dict[str, Mask]]:
    """By contrast, the masks of the artefact's personas 'disable-<pole>', whole over the model's targets.

    Errors: `MaskMismatchError` for an artefact of another model, `UnknownPersonaError` for one that disables none.
    """
    if source is None:
        return {}
    artefact = source if isinstance(source, Artefact) else load(source)
    wanted = {contrast.name: disabling_name(contrast) for contrast in asked}
    found = {contrast: name for contrast, name in wanted.items() if name in artefact}
    if not found:
        raise UnknownPersonaError(
            f"--disable-with: the artefact holds {', '.join(artefact.names) or 'no persona'}, but what disables the "
            f"hazards asked for is {', '.join(wanted.values())}: give a file that an audit of one of them has saved."
        )
    targets = find_targets(model)
    actor = PersonaModel(model, targets=targets)
    actor.add_personas(artefact, names=sorted(found.values()), allow_other_weights=allow_other_weights)
    whole = {target.name: Mask.full(target.shape) for target in targets}
    return {contrast: {**whole, **artefact[name].masks} for contrast, name in found.items()}


def check_source_stays(
    save: Folder, source: Artefact | str | PathLike[str] | None, asked: Sequence[Contrast], given: Collection[str]
) -> None:
    """Refuse to save a mask that is searched over the file of --disable-with. Errors: `OptionError`."""
    if save is None or source is None or isinstance(source, Artefact):
        return
    for contrast in asked:
        path = Path(save) / f"{disabling_name(contrast)}.persona"
        if contrast.name not in given and path.exists() and path.samefile(Path(source).expanduser()):
            raise OptionError(f"--save {save} would replace {source}, which is read here; name another folder.")


def save_all(
    subject: Subject,
    hazards: Sequence[Hazard],
    contrasts: Sequence[Contrast],
    parts: Sequence[Split[Contrast]],
    worn: Mapping[str, Masks],
    given: Collection[str],
    *,
    save: Folder,
    checkpoint: Folder,
) -> None:
    """Every disabling mask as `disable-<pole>.persona`, and all of them baked into one checkpoint.

    given: contrasts whose mask was handed in. It is not saved: this audit did not find it, and its own file says what
    did.
    Where there is no mask to bake in, a warning stands for the checkpoint: an audit that finds nothing to disable is a
    result too. Errors: `ArtefactError` when something cannot be written.
    """
    if save is not None:
        folder = Path(save)
        folder.mkdir(exist_ok=True)
        for hazard, contrast, part in zip(hazards, contrasts, parts, strict=True):
            if hazard.disabling is not None and contrast.name in given:
                warnings.warn(
                    f"--save: {hazard.disabling.persona} came with --disable-with, so its own file stands for it.",
                    stacklevel=3,
                )
            elif hazard.disabling is not None:
                made = _artefact(subject, hazard, hazard.disabling, contrast, part.calibration, worn[contrast.name])
                made.save(folder / f"{hazard.disabling.persona}.persona")
    if checkpoint is not None and not worn:
        warnings.warn(
            f"--checkpoint {checkpoint}: no hazard is disabled, so the checkpoint would be the model itself; none is "
            "written.", stacklevel=3,
        )  # fmt: skip
    elif checkpoint is not None:
        save_masked(subject.model, subject.tokenizer, union(list(worn.values())), checkpoint)


def _artefact(
    subject: Subject, hazard: Hazard, mask: Disabling, contrast: Contrast, calibration: Contrast, masks: Masks
) -> Artefact:
    settings = subject.settings
    after = hazard.disabled
    measured: dict[str, JsonValue] = {
        "dev_alignment": mask.dev.all.value,
        "held_out_alignment": None if after is None else after.all.value,
        "capability_loss": mask.loss.worst,
        "capability_loss_bound": mask.searched_loss_bound,
        "verdict": hazard.verdict,
    }
    parameters: dict[str, JsonValue] = {
        "disables": hazard.pole, "target": mask.target, "max_capability_loss": mask.budget,
        "cheap_share": settings.cheap_share, "round": mask.rounds, "rank_by": "gain-per-price", "tokens": "answer",
    }  # fmt: skip
    persona = Subnetwork(
        mask.persona,
        dict(masks),
        Provenance(
            method="directed",
            parameters=parameters,
            calibration=CalibrationIdentity(
                name=contrast.name, sha256=calibration.sha256, items=len(calibration), licence=contrast.licence,
                split=f"calibration of the audit's split, seed {settings.split_seed}",
            ),
            seed=settings.seed,
            sparsity=mask.share,
            sparsity_per_target={name: round(each.sparsity, 6) for name, each in masks.items()},
            measured=measured,
            versions=versions(),
            licence=contrast.licence,
        ),
        description=f"Lowers {hazard.pole}: the subnetwork of {hazard.opposite}, as an audit chose it.",
    )  # fmt: skip
    record = asdict(subject.context.record())
    identity = ModelIdentity(
        id=record["id"], revision=record["revision"], fingerprint=record["fingerprint"],
        architecture=record["architecture"], dtype=record["dtype"],
        targets={target.name: target.shape for target in subject.targets},
    )  # fmt: skip
    metadata: dict[str, JsonValue] = {
        "contrast": contrast.name, "source": contrast.source,
        "generic_text": {
            "source": subject.generic.source, "sha256": subject.generic.sha256, "answers": subject.generic.answers,
        },
    }  # fmt: skip
    return Artefact(identity, {persona.name: persona}, metadata)
