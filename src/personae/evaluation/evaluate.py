"""One table of all conditions on the test items: base, system prompt, persona masks, controls.

1. The test part of the split; items are encoded once.
2. Base: log-probabilities and capability, read once; everything else is compared with them.
3. Each condition: its masks on, both answers scored, both capability texts read, masks off.
4. Controls with as many weights as the first persona row, chosen without the persona.
5. Figures with intervals; each persona's claims over the best control; what in the items gives to doubt.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery import METHODS, Progress, Session, Settings, silent, versions
from personae.errors import OptionError
from personae.evaluation.bench import Bench
from personae.evaluation.bootstrap import RESAMPLES
from personae.evaluation.capability_texts import CapabilityText, unread_text
from personae.evaluation.conditions import make_row, with_claims
from personae.evaluation.controls import (
    CONTROLS,
    MATCHES,
    NOT_DIRECTED,
    SLOW_CONTROLS,
    control_conditions,
    other_controls,
)
from personae.evaluation.finetune import check_finetune
from personae.evaluation.poles import check_artefact, discovered, from_artefact, read_before, settings_for
from personae.evaluation.results import DataRecord, Evaluation, ModelRecord, TextRecord
from personae.evaluation.rivals import RIVALS, check_prompted, rival_conditions
from personae.evaluation.scoring import ItemScores, baselines, doubts, encode_items
from personae.evaluation.shared import Shared, check_apart, check_unread
from personae.models import Target, answer_lead, find_targets, fingerprint, render_prompt
from personae.personas import Contrast, split
from personae.runtime import PersonaModel, check_base
from personae.subnetwork import Artefact


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contrast: Contrast,
    artefact: Artefact | None = None,
    *,
    methods: Sequence[str] = (),
    controls: Sequence[str] = CONTROLS,
    split_seed: int | None = 0,
    calibration: Contrast | None = None,
    dev: Contrast | None = None,
    random_seeds: int = 5,
    match: Sequence[str] = ("sparsity",),
    session: Session | None = None,
    capability_text: CapabilityText | None = None,
    bench: Bench | None = None,
    max_capability_loss: float | None = None,
    system_prompt: bool = True,
    rivals: Sequence[str] = (),
    other: Artefact | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    allow_other_weights: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Score the test items of a paired contrast under every condition.

    artefact: its two poles make a row. methods: each is discovered now on the calibration part, with the artefact's
    budget (or share) where there is one. controls: of CONTROLS, at the number of weights that the first persona row
    drops; 'loss' in match adds `magnitude` and `generic` at its capability loss. rivals: of RIVALS, what else could
    make the model answer so, from the same calibration part. other: another artefact, whose masks are controls.
    split_seed: of the 60/20/20 split; None scores all items. calibration, dev: with None, what calibrates and what
    chooses instead of the parts of a split, of the same poles; no question of them may be tested. session: statistics
    and gradients to share; one is opened where none is given. Where anything is found in it, no tested question may be
    among its own (`OptionError`).
    max_capability_loss: budget of `methods` (default: the artefact's). capability_text: by default the generic
    text that no budget search has read. bench: the base model's readings of the same items and text, where an earlier
    call has taken them already (`Bench`). resamples, seed: of the bootstrap.

    What a reader should know (test items that calibrated, another generic text) is warned of and noted in the
    result, and so is what the test items themselves give to doubt (`scoring.doubts`). The model is left with its base
    weights, bit for bit. Errors: `DataError` (unpaired or empty sets, calibration items that are tested),
    `OptionError`, `UnknownPersonaError` and `MaskMismatchError` (another persona's or model's artefact), `ModelError`.
    """
    _check(methods, controls, match, rivals, random_seeds, resamples)
    _check_parts(methods, controls, rivals, split_seed, calibration, dev)
    _check_rows(contrast, artefact, methods, controls, rivals)
    check_base(model, "evaluation")
    test = contrast if split_seed is None else split(contrast, seed=split_seed).test
    for use, part in (("calibration", calibration), ("dev", dev)):
        if part is not None:
            check_apart(test, part, use)
    items = encode_items(model, tokenizer, test)
    every = find_targets(model)
    notes: list[str] = []
    if artefact is not None:
        check_artefact(artefact, contrast, model, every, allow_other_weights=allow_other_weights)
        for doubt in dict.fromkeys(read_before(artefact, contrast, test, split_seed, calibration)):
            _warn(notes, doubt)
    if other is not None:
        PersonaModel(model, targets=every).add_personas(other, allow_other_weights=allow_other_weights)  # checks it
    calibrating = [*methods, *(set(rivals) - {"mask + prompt"}), *(set(controls) & set(SLOW_CONTROLS))]
    if session is not None and calibrating:
        check_unread(session, items.questions)
    shared = Shared(model, tokenizer, contrast, artefact, split_seed, progress, session, calibration, dev)
    targets = shared.targets(every)
    text = capability_text or unread_text(shared.session.generic)
    if bench is None:
        bench = Bench(model, targets, items, text, progress)
    elif bench.items.questions != items.questions or bench.text.sha256 != text.sha256 or bench.model is not model:
        raise OptionError("the bench was read on another model, on other items or on another text.")
    elif [t.name for t in bench.targets] != [t.name for t in targets]:
        raise OptionError("the bench was made for other targets: make it anew, or leave it out.")

    conditions = [bench.bare()]
    if system_prompt:
        if test.positive_prompt and test.negative_prompt:
            conditions.append(bench.prompted(tokenizer, test))
        else:
            notes.append(f"no row for the system prompt: '{contrast.name}' has none for both of its poles.")
    personas = [] if artefact is None else [from_artefact(artefact, contrast)]
    for method in methods:
        name = f"{method} (found anew)" if method in [p.name for p in personas] else method
        personas.append(
            discovered(shared.session, settings_for(method, artefact, contrast, max_capability_loss), shared.dev, name)
        )
    read = [bench.persona(poles) for poles in personas]
    if rivals:
        measured = read[0].loss.worst if read and read[0].loss else None
        poles = personas[0] if personas else None
        conditions += rival_conditions(bench, shared, tokenizer, test, rivals, poles=poles, measured=measured)
    conditions += read
    if personas and (controls or rivals):
        _warn(notes, shared.other_text())
    if personas and controls:
        conditions += control_conditions(
            bench, shared, personas[0], read[0], controls=controls, match=match, random_seeds=random_seeds
        )
    if other is not None:
        conditions += other_controls(bench, other)
    if controls and not personas:
        notes.append("no controls: they drop as many weights as a persona does, and there is no persona here.")
    if session is None:
        shared.session.forget()
    rows = [make_row(c, bench.base, resamples=resamples, seed=seed) for c in conditions]
    return Evaluation(
        model=_model_record(model, targets),
        data=_data_record(
            shared, test, bench.base, render_prompt(tokenizer, test.pairs[0].prompt) + answer_lead(tokenizer)
        ),
        text=TextRecord(
            text.name, text.sha256, len(text.plain), len(text.chat), bench.capability.plain, bench.capability.chat
        ),
        baselines=baselines(test),
        rows=with_claims(rows, conditions, resamples=resamples, seed=seed),
        notes=tuple(notes),
        resamples=resamples,
        seed=seed,
        versions={**versions(), "numpy": np.__version__},
        warnings=doubts(test),
    )


def _check(
    methods: Sequence[str],
    controls: Sequence[str],
    match: Sequence[str],
    rivals: Sequence[str],
    random_seeds: int,
    resamples: int,
) -> None:
    for option, given, known in (
        ("--method", methods, METHODS),
        ("--control", controls, CONTROLS + SLOW_CONTROLS),
        ("--match", match, MATCHES),
        ("--rival", rivals, RIVALS),
    ):
        if isinstance(given, str):
            raise OptionError(f"{option} takes a sequence of names, not the text {given!r}: write ({given!r},).")
        for name in given:
            if name not in known:
                raise OptionError(f"unknown {option} {name!r}: choose {', '.join(known)}.")
        if len(set(given)) < len(given):
            raise OptionError(f"{option}: {', '.join(given)} names one thing twice.")
    if random_seeds < 1:
        raise OptionError(f"--random-seeds is {random_seeds}: at least 1 is needed.")
    if resamples < 1:
        raise OptionError(f"--resamples is {resamples}: at least 1 is needed.")


def _check_parts(
    methods: Sequence[str],
    controls: Sequence[str],
    rivals: Sequence[str],
    split_seed: int | None,
    calibration: Contrast | None,
    dev: Contrast | None,
) -> None:
    """What calibrates has items to calibrate on, and what chooses has items to choose on, none of them tested."""
    if split_seed is not None:
        if calibration is not None or dev is not None:
            raise OptionError("calibration and dev stand instead of a split: give split_seed=None with them.")
        return
    if calibration is None:
        if dev is not None:
            raise OptionError("dev items choose between what calibration items found: give calibration too.")
        where = "needs a split, or calibration items of its own"
        if set(rivals) - {"mask + prompt"}:
            raise OptionError(f"--rival: all but 'mask + prompt' calibrate; each of them {where}.")
        if set(controls) & set(SLOW_CONTROLS):
            raise OptionError(f"--control shuffled {where}: else it would fit the items that are tested.")
        if methods:
            raise OptionError(f"--method {where}: give --split-seed, or an artefact alone.")
    elif dev is None and (methods or "steering" in rivals):
        raise OptionError("--method and --rival steering choose on dev items: give dev beside calibration.")


def _check_rows(
    contrast: Contrast,
    artefact: Artefact | None,
    methods: Sequence[str],
    controls: Sequence[str],
    rivals: Sequence[str],
) -> None:
    """What a row needs is there: asked before hours of work, not when its turn comes."""
    if "mask + prompt" in rivals:
        check_prompted(contrast, masks=artefact is not None or bool(methods))
    if any(rival.startswith("lora-") for rival in rivals):
        check_finetune()
    if "shuffled" in controls and (artefact is not None or methods):
        parts = [] if artefact is None else [artefact[pole] for pole in contrast.poles if pole in artefact.names]
        ways = [part.provenance.method for part in parts] or list(methods[:1])
        if not all(way in METHODS and Settings(method=way).by_candidates for way in ways):
            raise OptionError(NOT_DIRECTED)


def _warn(notes: list[str], note: str | None) -> None:
    if note is not None:
        notes.append(note)
        warnings.warn(note, stacklevel=3)


def _model_record(model: PreTrainedModel, targets: Sequence[Target]) -> ModelRecord:
    return ModelRecord(
        id=str(getattr(model.config, "_name_or_path", "") or type(model).__name__),
        revision=getattr(model.config, "_commit_hash", None),
        fingerprint=fingerprint(targets),
        architecture=type(model).__name__,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        weights=sum(t.size for t in targets),
    )


def _data_record(shared: Shared, test: Contrast, base: ItemScores, rendered: str) -> DataRecord:
    contrast, calibration, dev = shared.contrast, shared.own_calibration, shared.own_dev
    return DataRecord(
        contrast=contrast.name,
        positive=contrast.positive,
        negative=contrast.negative,
        source=contrast.source,
        licence=contrast.licence,
        sha256=contrast.sha256,
        test_sha256=test.sha256,
        split_seed=shared.split_seed,
        items=len(base),
        tied_items=int(base.tied.sum()),
        rendered_prompt=rendered,
        ids=base.ids,
        tokens=tuple((int(a), int(b)) for a, b in base.tokens),
        bytes=tuple((int(a), int(b)) for a, b in base.bytes),
        tied=tuple(bool(t) for t in base.tied),
        calibration_sha256=None if calibration is None else calibration.sha256,
        dev_sha256=None if dev is None else dev.sha256,
    )
