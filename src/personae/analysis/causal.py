"""Where in the model a persona's mask does its work: one part given back at a time, and one part worn at a time.

1. Both answers to every question under the bare model and under the whole mask.
2. For each part (a block, a kind, a projection, a block's attention or MLP): under the whole mask with this part's
   weights restored (necessity), and under this part's mask alone (sufficiency).
3. For each part alone, as many weights drawn at random in the same matrices.
4. Differences over the same questions, with paired intervals; Holm over the parts of a level.

What is read depends only on the weights that are dropped, so parts that come to the same are read once: with two kinds,
restoring one is wearing the other alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.analysis.causal_parts import Part, check_levels, parts_of
from personae.analysis.causal_readings import Plan, Readings, masks_hash
from personae.analysis.causal_result import CausalMap, Cell
from personae.analysis.weights import weights_hash, writing
from personae.discovery import Progress, silent
from personae.errors import DataError, OptionError, UnknownPersonaError
from personae.evaluation import Difference, difference, holm, interval
from personae.evaluation.bootstrap import too_few
from personae.evaluation.kept import Kept
from personae.evaluation.poles import overlap_warning
from personae.evaluation.scoring import doubts, encode_items, wins
from personae.evaluation.suites.faithfulness_readings import share_of
from personae.models import find_targets
from personae.personas import Contrast, split
from personae.runtime import PersonaModel, check_base
from personae.subnetwork import Artefact, Mask, load

__all__ = ["ITEMS", "Plan", "causal_map"]

Floats = NDArray[np.float64]
Masks = Mapping[str, Mask]

ITEMS = 48  # a reading is a pass over all of them, and there are hundreds of readings
RESAMPLES = 10_000  # of 2,000 no p is below 0.05 after Holm over 60 cells; these are enough for 210 projections


def causal_map(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    artefact: Artefact | str | PathLike[str],
    contrast: Contrast,
    *,
    persona: str | None = None,
    by: Sequence[str] = ("cell",),
    items: int | None = ITEMS,
    split_seed: int | None = 0,
    random_seeds: int = 1,
    resamples: int = RESAMPLES,
    seed: int = 0,
    allow_other_weights: bool = False,
    resume: Path | None = None,
    planned: Callable[[Plan], None] | None = None,
    progress: Progress = silent,
) -> CausalMap:
    """Restore, and wear alone, one part at a time of a persona's mask, on test items of the contrast it is a pole of.

    persona: which pole of the artefact; None: the positive one where it is there, else the negative. by: of `LEVELS`,
    one or several. items: at most so many, None: all. split_seed: of the split whose test part is read; None: all of
    the contrast. random_seeds: of the control; 0: none, a third fewer readings. resume: folder of finished readings.
    planned: told what it will take, once the first two readings are done. The model is left as it was, bit for bit.

    Errors: `OptionError`; `DataError` for an unpaired contrast; `UnknownPersonaError` for a persona that is not in the
    artefact or no pole; `MaskMismatchError` for another model's; `PersonaInUseError` while one is worn.
    """
    check_base(model, "a causal map")
    levels = check_levels(by)
    for option, number, least in (
        ("--items", items if items is not None else 1, 1), ("--random-seeds", random_seeds, 0),
        ("--resamples", resamples, 1),
    ):  # fmt: skip
        if number < least:
            raise OptionError(f"{option} is {number}: it must be {least} or more.")
    if not contrast.paired:
        raise DataError(f"'{contrast.name}' is not paired: a causal map scores both poles' answers to one question.")
    made = artefact if isinstance(artefact, Artefact) else load(artefact)
    name = _pole(made, contrast, persona)
    targets = find_targets(model)
    PersonaModel(model, tokenizer, targets=targets).add_personas(
        made, names=[name], allow_other_weights=allow_other_weights
    )
    test = contrast if split_seed is None else split(contrast, seed=split_seed).test
    warned = overlap_warning(made[name].provenance.calibration, contrast, test, split_seed)
    test = test if items is None else test.take(min(items, len(test)), seed)
    encoded = encode_items(model, tokenizer, test)
    masks = {n: mask for n, mask in made[name].masks.items() if mask.dropped}
    if not masks:
        raise OptionError(f"the mask of '{name}' drops nothing: there is nothing to map.")

    frame = [weights_hash(model), str(model.dtype), writing(tokenizer), test.sha256, masks_hash(masks)]
    kept = Kept(None if resume is None else resume.expanduser(), frame)
    readings = Readings(model, targets, encoded, masks, 1.0 if name == contrast.positive else -1.0, seed, kept)
    parts = [part for level in levels for part in parts_of(targets, level)]
    needed = readings.needed(parts, random_seeds)
    base, worn = readings.first_two(needed)
    if planned is not None:
        planned(readings.plan(needed))
    with progress("readings", len(needed)) as tick:
        for key in needed:
            readings.read(key)
            tick(1)

    def figures(part: Part) -> Cell:
        return _cell(part, readings, base, worn, random_seeds, resamples, seed)

    cells = _adjusted([figures(part) for part in parts])
    return CausalMap(
        persona=name,
        rival=next(pole for pole in contrast.poles if pole != name),
        contrast=contrast.name,
        items=len(encoded),
        tied_items=int(encoded.tied.sum()),
        base_margin=interval(base, resamples=resamples, seed=seed),
        base_alignment=interval(wins(base), resamples=resamples, seed=seed),
        worn_margin=interval(worn, resamples=resamples, seed=seed),
        worn_alignment=interval(wins(worn), resamples=resamples, seed=seed),
        gain=difference(worn, base, resamples=resamples, seed=seed),
        gain_alignment=difference(wins(worn), wins(base), resamples=resamples, seed=seed),
        dropped=made[name].dropped,
        weights=sum(target.size for target in targets),
        cells=cells,
        readings=len(needed),
        random_seeds=random_seeds,
        resamples=resamples,
        seed=seed,
        notes=_notes(warned, doubts(test), cells, resamples),
    )


def _pole(artefact: Artefact, contrast: Contrast, persona: str | None) -> str:
    """The persona that is worn. Errors: `UnknownPersonaError`."""
    there = [pole for pole in contrast.poles if pole in artefact.names]
    if persona is None and there:
        return there[0]
    if persona is None or persona not in artefact.names:
        raise UnknownPersonaError(
            f"the artefact holds {', '.join(artefact.names) or 'no persona'}, but "
            + (f"not '{persona}'." if persona else f"neither pole of '{contrast.name}' ({', '.join(contrast.poles)}).")
        )
    if persona not in contrast.poles:
        raise UnknownPersonaError(
            f"'{persona}' is no pole of '{contrast.name}' ({', '.join(contrast.poles)}): give the contrast that it was "
            "found from."
        )
    return persona


# --- figures --------------------------------------------------------------------------------------------------


def _cell(
    part: Part, readings: Readings, base: Floats, worn: Floats, random_seeds: int, resamples: int, seed: int
) -> Cell:
    restored, alone = readings.read(readings.restored(part)), readings.read(readings.alone(part))

    def compared(first: Floats, second: Floats) -> Difference:
        return difference(first, second, resamples=resamples, seed=seed)

    random = over = None
    if random_seeds:
        drawn = np.mean([readings.read(readings.alone(part, s)) for s in range(random_seeds)], axis=0)
        random, over = compared(drawn, base), compared(alone, drawn)
    necessity, sufficiency = compared(worn, restored), compared(alone, base)
    return Cell(
        level=part.level,
        part=part.name,
        block=part.block,
        kind=part.kind,
        target=part.target,
        targets=len(part.targets),
        weights=sum(target.size for target in part.targets),
        dropped=sum(readings.masks[name].dropped for name in readings.alone(part).targets),
        restored_margin=interval(restored, resamples=resamples, seed=seed),
        restored_alignment=interval(wins(restored), resamples=resamples, seed=seed),
        alone_margin=interval(alone, resamples=resamples, seed=seed),
        alone_alignment=interval(wins(alone), resamples=resamples, seed=seed),
        necessity=necessity,
        sufficiency=sufficiency,
        necessity_alignment=compared(wins(worn), wins(restored)),
        sufficiency_alignment=compared(wins(alone), wins(base)),
        necessity_share=share_of(worn - restored, worn - base, seed),
        sufficiency_share=share_of(alone - base, worn - base, seed),
        random=random,
        over_random=over,
        necessity_p_holm=necessity.p,
        sufficiency_p_holm=sufficiency.p,
    )


def _adjusted(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """With p after Holm over the cells of each level."""
    done: list[Cell] = []
    for level in dict.fromkeys(cell.level for cell in cells):
        group = [cell for cell in cells if cell.level == level]
        necessity, sufficiency = (
            holm([cell.necessity.p for cell in group]), holm([cell.sufficiency.p for cell in group]),
        )  # fmt: skip
        done += [
            replace(cell, necessity_p_holm=n, sufficiency_p_holm=s)
            for cell, n, s in zip(group, necessity, sufficiency, strict=True)
        ]
    return tuple(done)


def _notes(warned: str | None, doubtful: Sequence[str], cells: Sequence[Cell], resamples: int) -> tuple[str, ...]:
    notes = [*doubtful] if warned is None else [warned, *doubtful]
    if any(cell.necessity_share is None for cell in cells):
        notes.append("what the whole mask gains in margin is not clear of zero, so shares of it are left out.")
    for level in dict.fromkeys(cell.level for cell in cells):
        number = sum(cell.level == level for cell in cells)
        said = too_few(number, resamples, f"{number} parts of level '{level}'")
        notes += [] if said is None else [said]
    return tuple(notes)
