"""Do prompts, examples and fine-tuning activate what is there? What they gain without the weights that carry the pole.

On the test part of a paired contrast, for one pole at a time. The weights that *carry* a pole are those that the other
pole's mask of `directed` drops: their removal helps the rival. A condition C (system prompt, retrieval, a LoRA trained
on the pole's answers, the pole's own mask) gains margin over base; under an ablation A, zeros in the carrying weights,

    gain(C) = mean[margin under C − margin of base],  gain_A(C) = mean[margin under C and A − margin under A alone],
    lost(C) = 1 − gain_A(C)/gain(C),

against the same with as many random candidates for A. gain_A is taken from A alone, so what A costs every condition
alike is no loss. lost ≈ 0: the condition does not go through these weights; lost ≈ 1: it does. The claim is lost minus
lost by random, Holm over the conditions; a condition that does not move the base model makes none.

Three cautions. Margins can saturate: a condition gains less where little is left to gain, and more from further down,
so a difference of gains need not be one of mechanism. Hence every share also on log σ(margin), which flattens where an
item is won and is linear where it is lost; a claim that turns with the scale is about the scale. The random weights are
equal in number and cheapness, not in what dropping them costs the model. And a LoRA brings weights of its own: lost ≈ 0
says that it does not need these base weights, not that it needs none.

Cost on the default model (0.21 GFLOP a token, 0.06 more where it is scored): 100 items of power-seeking-inclination
take 2,300 GFLOP in one reading of base, LoRA or mask, 3,500 with a system prompt, 8,500 after four examples. With 5
draws each is read 7 times: 133,000. Masks from 200 pairs take 25,000 with statistics and price, the LoRA 16,000. In all
175,000 GFLOP, 49 minutes of a core of 60 GFLOP/s, 25 on two; a second pole adds 150,000.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from personae.discovery import GenericText, encode_contrast, open_session
from personae.discovery.selection import check_share
from personae.discovery.settings import FIXED_CHEAP_SHARE
from personae.errors import DataError, OptionError
from personae.evaluation.bootstrap import difference, holm, interval
from personae.evaluation.finetune import Recipe
from personae.evaluation.scoring import doubts, wins
from personae.evaluation.suites.activation_readings import BASE, CONDITIONS, Bench, Crossed, Lost, lost
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.faithfulness import DROP_SHARE
from personae.evaluation.suites.faithfulness_readings import Readings
from personae.evaluation.suites.report import Cell, SuiteResult, Table, warned
from personae.evaluation.suites.texts import identity
from personae.personas import Contrast, split

POLES = ("positive", "negative")
LORA = Recipe(pairs=4)  # 64 steps on 128 pairs; the 16 of `Recipe` would hardly begin
LEVEL = 0.05  # of a claim, after Holm

Key = tuple[str, str]  # pole, condition


def run(
    context: SuiteContext,
    contrast: Contrast,
    conditions: Sequence[str] = CONDITIONS,
    *,
    poles: Sequence[str] = ("positive",),
    pairs: int = 200,
    items: int = 100,
    draws: int = 5,
    lora_pairs: int = 128,
    recipe: Recipe = LORA,
    drop_share: float = DROP_SHARE,
    generic: GenericText | str | Path | None = None,
) -> SuiteResult:
    """What each condition gains with and without the weights that carry the pole, on the context's model.

    conditions: of CONDITIONS. poles: of POLES. pairs: calibration pairs at most, which masks and examples come from;
    lora_pairs: how many of them the LoRA learns from, at full scale. items: test items at most. draws: of random
    candidates; they are averaged. drop_share: of the weights, among candidates of cheap share 0.3. generic: generic
    text, or its source; by default sampled from the model.

    Figures: 'POLE.CONDITION.FIGURE' with gain, gain_ablated, gain_random, lost, lost_random, lost_minus_random, p_holm,
    the same shares under 'log_sigmoid_…', margin, margin_ablated, margin_random, acc, acc_ablated, acc_random; of
    'POLE.base' the margins and accs, and 'margin_lost_minus_random'. Shares and p are None for a condition that does
    not gain clearly. Errors: `DataError` for an unpaired contrast, or one without the system prompt that is asked for;
    `OptionError` for an unknown or repeated name, a number below 1, a share that is none, or LoRA without peft.
    """
    _check(contrast, conditions, poles, (pairs, items, draws, lora_pairs), drop_share)
    parts, most = split(contrast, seed=context.seed), context.limit or len(contrast)
    calibration = parts.calibration.take(min(pairs, most, len(parts.calibration)))
    test = parts.test.take(min(items, most, len(parts.test)))
    lora = calibration.take(min(lora_pairs, len(calibration)))
    session = open_session(
        context.model, context.tokenizer, calibration, generic=generic, seed=context.seed, progress=context.progress
    )
    frame = {
        "contrast": contrast.name, "calibration": calibration.sha256, "test": test.sha256,
        "generic_text": identity(session.generic), "drop_share": drop_share, "cheap_share": FIXED_CHEAP_SHARE,
    }  # fmt: skip
    encoded = encode_contrast(context.model, context.tokenizer, test)
    readings = Readings(context, session, encoded, encoded, frame, FIXED_CHEAP_SHARE, drop_share)
    learnt = encode_contrast(context.model, context.tokenizer, lora)
    bench = Bench(readings, calibration, test, learnt, recipe, draws)
    read: dict[Key, Crossed] = {}
    for pole in poles:
        for name in (BASE, *conditions):
            with bench.way(name, POLES.index(pole)) as way:
                read[pole, name] = bench.crossed(way, POLES.index(pole))
    session.forget()
    figures, tables = results(read, dict(zip(POLES, contrast.poles, strict=True)), context.seed)
    return SuiteResult(
        suite="activation",
        model=context.record(),
        data={**context.read, contrast.name: contrast.sha256},
        settings={
            **frame, "conditions": list(conditions), "poles": list(poles), "pairs": len(calibration),
            "items": len(test), "draws": draws, "lora_pairs": len(lora), "recipe": asdict(recipe),
            "limit": context.limit, "generic_source": session.generic.source,
        },
        figures=figures,
        tables=warned(tables, doubts(test)),
        notes=(
            f"{len(test)} test items, {len(calibration)} calibration pairs, of which a LoRA learns from {len(lora)}; "
            f"directed, {100 * drop_share:g} % of the weights; margins in nats a token; 95 % intervals over items.",
        ),
        seed=context.seed,
        versions=context.versions(),
    )  # fmt: skip


def results(
    read: Mapping[Key, Crossed], names: Mapping[str, str], seed: int
) -> tuple[dict[str, Cell], tuple[Table, ...]]:
    """Figures and tables of all readings. names: what the poles are called."""
    found = {key: lost(read[key[0], BASE], crossed, seed=seed) for key, crossed in read.items() if key[1] != BASE}
    claims = {key: each.over.p for key, each in found.items() if each.over is not None}
    adjusted = dict(zip(claims, holm(list(claims.values())), strict=True))
    figures: dict[str, Cell] = {}
    tables: list[Table] = []
    for pole in dict.fromkeys(pole for pole, _ in read):
        own, base = {name: crossed for (p, name), crossed in read.items() if p == pole}, read[pole, BASE]
        rows: list[tuple[Cell, ...]] = []
        for name in (n for n in own if n != BASE):
            one, p = found[pole, name], adjusted.get((pole, name))
            flat = lost(base.log_sigmoid(), own[name].log_sigmoid(), seed=seed)
            counts = one.over is not None
            cells: dict[str, Cell] = {
                "gain": one.gain, "gain_ablated": one.ablated, "gain_random": one.random, "lost": one.share,
                "lost_random": one.share_random, "lost_minus_random": one.over, "p_holm": p,
                "log_sigmoid_lost": flat.share if counts else None,
                "log_sigmoid_lost_random": flat.share_random if counts else None,
                "log_sigmoid_lost_minus_random": flat.over if counts else None,
            }  # fmt: skip
            shown = {k: v for k, v in cells.items() if k not in ("log_sigmoid_lost", "log_sigmoid_lost_random")}
            rows.append((name, *shown.values(), verdict(one, p, flat)))
            figures |= {f"{pole}.{name}.{key}": cell for key, cell in cells.items()}
        tables.append(_gains(f"{names[pole]}: gains without the weights that carry it", rows))
        levels, more = _levels(f"{names[pole]}: margins and accuracies", own, seed)
        tables.append(levels)
        figures |= {f"{pole}.{key}": cell for key, cell in more.items()}
    return figures, tuple(tables)


def verdict(found: Lost, p_holm: float | None, flat: Lost | None = None) -> str:
    """What a row says, in words. flat: the same on log σ(margin), which may take a claim back."""
    if found.gain.high < 0:
        return "moves the base model away from the pole: no claim"
    if found.over is None or p_holm is None:
        return "does not move the base model: no claim"
    if p_holm >= LEVEL:
        return "no more lost than by random weights, as far as these items show"
    other = None if flat is None else flat.over
    if other is not None and (other.high < 0 < found.over.value or found.over.value < 0 < other.low):
        return "turns round on log σ: a difference of scale, no claim"
    return "goes through these weights" if found.over.value > 0 else "loses less than by random weights"


def _gains(title: str, rows: Sequence[tuple[Cell, ...]]) -> Table:
    columns = (
        "condition", "gain", "gain ablated", "gain random", "lost", "lost by random", "difference", "p (Holm)",
        "difference, log σ", "reading",
    )  # fmt: skip
    notes = (
        "ablated: the weights that the rival pole's mask drops are zero; random: as many of the same candidates, mean "
        "of the draws. gain: margin over base; ablated and random: over base with the same weights dropped.",
        "lost: 1 − gain ablated/gain, over the same resamples; near 0 the condition does not go through these "
        "weights, near 1 it does, below 0 it gains more without them. difference: lost minus lost by random, the "
        "claim.",
        "log σ: the same difference with log σ(margin) for the margin. Margins saturate: where the two scales "
        "disagree, the difference is one of scale.",
    )
    return Table(title, columns, tuple(rows), notes)


def _levels(title: str, own: Mapping[str, Crossed], seed: int) -> tuple[Table, dict[str, Cell]]:
    """Margins and accuracies of base and of every condition; and what the ablation costs the base model."""
    rows: list[tuple[Cell, ...]] = []
    figures: dict[str, Cell] = {}
    for name, crossed in own.items():
        chance = crossed.random
        cells: dict[str, Cell] = {
            "margin": interval(crossed.whole, seed=seed),
            "margin_ablated": interval(crossed.ablated, seed=seed),
            "margin_random": interval(np.mean(chance, axis=0), seed=seed),
            "acc": interval(wins(crossed.whole), seed=seed),
            "acc_ablated": interval(wins(crossed.ablated), seed=seed),
            "acc_random": interval(np.mean(wins(chance), axis=0), seed=seed),
        }
        rows.append((name, *cells.values()))
        figures |= {f"{name}.{key}": cell for key, cell in cells.items()}
    costs = difference(np.mean(own[BASE].random, axis=0), own[BASE].ablated, seed=seed)
    figures[f"{BASE}.margin_lost_minus_random"] = costs
    warnings: tuple[str, ...] = ()
    if costs.low <= 0:
        warnings = (
            "on these items the weights do not carry the pole: dropping them costs the base model no more margin than "
            "dropping random ones, and no share above says anything about it.",
        )
    columns = ("condition", "margin", "ablated", "random", "acc", "acc ablated", "acc random")
    return Table(title, columns, tuple(rows), warnings=warnings), figures


def _check(
    contrast: Contrast, conditions: Sequence[str], poles: Sequence[str], numbers: Sequence[int], drop_share: float
) -> None:
    if not contrast.paired:
        raise DataError(
            f"contrast '{contrast.name}' is not paired: gains are measured by the margin between two answers to one "
            "question. Give pairs (load_contrast(…, paired=True) joins two sets that share their questions)."
        )
    for option, given, known in (("condition", conditions, CONDITIONS), ("pole", poles, POLES)):
        if not given:
            raise OptionError(f"the activation suite needs at least one {option}: choose of {', '.join(known)}.")
        for name in given:
            if name not in known:
                raise OptionError(f"unknown {option} {name!r}: choose of {', '.join(known)}.")
        if len(set(given)) < len(given):
            raise OptionError(f"{option}: {', '.join(given)} names one thing twice.")
    if "system-prompt" in conditions:
        prompts = dict(zip(POLES, (contrast.positive_prompt, contrast.negative_prompt), strict=True))
        for pole in poles:
            if not prompts[pole]:
                raise DataError(
                    f"'{contrast.name}' has no system prompt of its {pole} pole: give one, or leave the condition "
                    "'system-prompt' out."
                )
    if "lora-sft" in conditions and find_spec("peft") is None:
        raise OptionError('lora-sft needs the extra: pip install "personae[finetune]"; or leave the condition out.')
    if min(numbers) < 1:
        raise OptionError(f"pairs, items, draws and lora_pairs must be at least 1, found {tuple(numbers)}.")
    check_share(drop_share, "--drop-share")
