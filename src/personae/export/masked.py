"""A model with masks baked in, as an ordinary checkpoint: dropped weights are zeros, and nothing else differs.

Such a folder loads with transformers alone. It has another fingerprint than the model it was made from, so that masks
found on the one are not worn on the other by mistake.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import personae
from personae.errors import ArtefactError, OptionError
from personae.files import TEMPORARY
from personae.models import Target, find_targets, fingerprint, quiet_transformers
from personae.runtime import check_base
from personae.runtime.switch import Drop, check_masks, storage_positions
from personae.subnetwork import Mask

__all__ = ["NOTE", "check_folder", "masked_state_dict", "save_masked"]

NOTE = "masked.json"  # beside the weights: what they were made from


def masked_state_dict(
    model: PreTrainedModel, targets: Sequence[Target], masks: Mapping[str, Mask]
) -> dict[str, torch.Tensor]:
    """The model's state dict with w ⊙ M in place of w: exact zeros where a mask drops, all else bit for bit.

    Parameters that a mask touches are copies, all others the model's own memory; the model itself is not changed.
    Errors: `PersonaInUseError` while a persona is worn; `MaskMismatchError` for masks of another model; `ModelError`
    for weights that are no plain numbers (quantised or offloaded).
    """
    check_base(model, "a masked checkpoint", reads=False)
    by_name = {target.name: target for target in targets}
    check_masks(by_name, masks)
    copies: dict[int, torch.Tensor] = {}
    for name in sorted(masks):
        drop = Drop(by_name[name], masks[name])  # which refuses what cannot be masked
        if not drop.changed:
            continue
        stored = drop.parameter
        if id(stored) not in copies:  # the experts of a fused parameter share one copy
            copies[id(stored)] = stored.detach().clone()
        places = torch.from_numpy(storage_positions(drop.target, drop.mask)).to(stored.device)
        copies[id(stored)].view(-1).index_fill_(0, places, 0)
    # With keep_vars the values are the parameters themselves, so weights that go by two names stay one tensor.
    return {name: copies.get(id(value), value.detach()) for name, value in model.state_dict(keep_vars=True).items()}


def save_masked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    masks: Mapping[str, Mask],
    folder: str | os.PathLike[str],
) -> Path:
    """Write the model under `masks`, with its tokenizer, as a folder that `from_pretrained` reads; returns the folder.

    The folder is replaced as a whole: it is made beside its place and moved there, and an old checkpoint survives any
    failure. `NOTE` in it names the model, its fingerprint and how many weights are dropped. Errors: those of
    `masked_state_dict` and `check_folder`; `ArtefactError` when it cannot be written.
    """
    path = Path(folder)
    check_folder(path, model)
    targets = find_targets(model)
    weights = masked_state_dict(model, targets, masks)
    note = {
        "made_from": str(getattr(model.config, "_name_or_path", "") or type(model).__name__),
        "fingerprint": fingerprint(targets),
        "dropped": sum(mask.dropped for mask in masks.values()),
        "target_weights": sum(target.size for target in targets),
        "personae": personae.__version__,
    }
    try:
        with _replacing(path) as made, quiet_transformers():
            model.save_pretrained(made, state_dict=weights)
            tokenizer.save_pretrained(made)
            note["files"] = sorted([NOTE, *(str(p.relative_to(made)) for p in made.rglob("*") if p.is_file())])
            (made / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        raise ArtefactError(f"cannot write {path}: {error}. Free some space, or name another folder.") from error
    return path


def check_folder(folder: Path, model: PreTrainedModel | None = None, option: str = "the checkpoint") -> None:
    """Refuse what `save_masked` could not write, or should not replace: whatever holds files but is no checkpoint, and
    the folder that `model` was read from. To be called before hours of work. Errors: `OptionError`.
    """
    parent = folder.resolve().parent
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{option} {folder} is a file; name a folder.")
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OptionError(f"{option} {folder}: {parent} is no folder that can be written to; make it, or name another.")
    source = getattr(getattr(model, "config", None), "_name_or_path", "")
    if source and folder.exists() and os.path.exists(source) and os.path.samefile(folder, source):
        raise OptionError(f"{option} {folder} would replace the model that is read from it; name another folder.")
    if folder.is_dir() and (others := _others(folder)):
        raise OptionError(
            f"{option} {folder} holds other files, which would be lost ({', '.join(others[:3])}); name an empty or a "
            "new folder."
        )


def _others(folder: Path) -> list[str]:
    """Files in a folder that no earlier export wrote into it, by its `NOTE`."""
    there = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())
    try:
        written = json.loads((folder / NOTE).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):  # no export, or one from before the files were listed
        return there
    return [name for name in there if not isinstance(written, list) or name not in written]


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder`; when the block ends well it takes its place.

    A folder cannot replace a full one by one rename, so the old one steps aside first and back if that fails.
    """
    final = Path(os.path.realpath(folder))
    made, old = (final.with_name(f".{secrets.token_hex(8)}{TEMPORARY}") for _ in range(2))
    made.mkdir()
    try:
        yield made
        try:
            if final.exists():
                final.rename(old)
            made.rename(final)
        except BaseException:
            if old.exists() and not final.exists():
                old.rename(final)
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if final.exists():  # else the old one is all there is
            shutil.rmtree(old, ignore_errors=True)
