"""`personae discover`: from a contrast to a `.persona` file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from personae.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    SeedOption,
    bar,
    check_split,
    check_writable,
    load,
    out,
    print_json,
    short_warnings,
    tell,
)
from personae.errors import DataError, OptionError


def discover(
    context: typer.Context,
    contrast: Annotated[str, typer.Argument(help="Built-in name, file, or hub:owner/name; see `personae list`.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: CONTRAST.persona here.")] = None,
    model: ModelOption = None,
    method: Annotated[str, typer.Option(help="directed, directed-forward, wanda, contrastive-wanda, contrastive-sparse, sparsegpt, generic, magnitude, random.")] = "directed",
    max_capability_loss: Annotated[float | None, typer.Option(help="Budget in nats a token on generic text. Default: 0.05.")] = None,
    cheap_share: Annotated[float | None, typer.Option(help="c: candidates are the cheapest share of each row.")] = None,
    drop_share: Annotated[float | None, typer.Option(help="Share of all target weights to drop.")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Share of weights to drop, for the scores and --isolated.")] = None,
    isolated: Annotated[bool, typer.Option("--isolated", help="A whole subnetwork at --sparsity.")] = False,
    selection: Annotated[str, typer.Option(help="row, target or global.")] = "row",
    n_m: Annotated[str | None, typer.Option("--n-m", help="Keep N of every M inputs, such as 2:4.")] = None,
    statistic: Annotated[str, typer.Option(help="mean_abs (persona paper) or l2 (Wanda paper).")] = "mean_abs",
    phi: Annotated[str, typer.Option(help="relu or softplus, for contrastive-wanda.")] = "relu",
    tokens: Annotated[str, typer.Option(help="Which tokens statistics count: answer or all.")] = "answer",
    rank_by: Annotated[str, typer.Option(help="Order of directed's candidates: gain or gain-per-price.")] = "gain-per-price",
    forward: Annotated[str, typer.Option(help="Gain of directed-forward: lean or separation.")] = "lean",
    objective: Annotated[str, typer.Option(help="margin or log-sigmoid (of the margin).")] = "margin",
    own_weight: Annotated[float, typer.Option(help="β: added weight of the persona's own answers.")] = 0.0,
    rounds: Annotated[int | None, typer.Option(help="Rounds of directed within a budget. Default: 2.")] = None,
    steps: Annotated[int | None, typer.Option(help="Instead of rounds: so many short steps, each under the mask so far.")] = None,
    step_share: Annotated[float | None, typer.Option(help="The largest mask that steps wear, a share of the weights. Default: 0.0004.")] = None,
    pole: Annotated[str | None, typer.Option(help="Find the mask of this pole alone.")] = None,
    generic_text: Annotated[str | None, typer.Option(help="Text file, jsonl or hub:…; default: sampled from the model.")] = None,
    generic_answers: Annotated[int, typer.Option(help="Generic answers that each probe of the budget reads; the price reads 24 of them at most.")] = 24,
    targets: Annotated[list[str] | None, typer.Option("--target", help="Shell pattern on weight names; may be repeated.")] = None,
    pairs: Annotated[int | None, typer.Option(help="Use so many pairs of the data, chosen by seed.")] = None,
    positive: Annotated[str | None, typer.Option(help="Name of the positive pole.")] = None,
    negative: Annotated[str | None, typer.Option(help="Name of the negative pole.")] = None,
    role: Annotated[str | None, typer.Option(help="Role in a role-play file.")] = None,
    against: Annotated[str | None, typer.Option(help="Rival role in a role-play file.")] = None,
    data_format: Annotated[str | None, typer.Option("--format", help="Format of the file, if it is not recognised.")] = None,
    split_seed: Annotated[int, typer.Option(help="Seed of the 60/20/20 split by question; with --cross-fit of its folds.")] = 0,
    all_items: Annotated[bool, typer.Option("--all-items", help="Calibrate on everything; nothing is left to test on.")] = False,
    cross_fit: Annotated[int | None, typer.Option(help="Measure on K held-out folds first, then calibrate on everything (for small sets).")] = None,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on with a calibration that was killed.")] = True,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Find the subnetworks of both poles of a contrast (or of a one-sided persona) and save them."""
    from personae.discovery import Settings
    from personae.discovery import discover as run
    from personae.subnetwork.artefact import check_persona_name

    options: dict[str, Any] = {
        "method": method, "max_capability_loss": max_capability_loss, "cheap_share": cheap_share,
        "drop_share": drop_share, "sparsity": sparsity, "isolated": isolated, "selection": selection,
        "n_m": parse_n_m(n_m), "statistic": statistic, "phi": phi, "tokens": tokens, "rank_by": rank_by,
        "forward": forward, "objective": objective, "own_weight": own_weight, "rounds": rounds, "steps": steps,
        "step_share": step_share, "seed": seed,
    }  # fmt: skip
    Settings(**options).checked()  # before anything is loaded
    check_split(context, all_items)
    if cross_fit is not None and all_items:
        raise OptionError("--cross-fit calibrates on everything in the end; it excludes --all-items.")
    if cross_fit is not None and pole is not None:
        raise OptionError("--cross-fit measures the masks of both poles; it excludes --pole.")
    with short_warnings():
        data = read_data(contrast, positive=positive, negative=negative, role=role, against=against, format=data_format)
        _check_names(contrast, data, positive, negative)
        if pairs is not None:
            data = data.take(pairs, seed)
        path = (output or Path(f"{data.name}.persona")).expanduser()
        check_writable(path, "--output", contrast, generic_text)
        for name in getattr(data, "poles", (data.name,)):
            check_persona_name(name)  # a name that no file takes, before it costs hours
        parts = _folds(data, cross_fit, split_seed) if cross_fit is not None else None
        lm, tokenizer = load(model, dtype, device)
        folds = (
            _cross_fit(lm, tokenizer, parts, (generic_text, generic_answers), targets, options)
            if parts is not None
            else None
        )
        artefact = run(
            lm, tokenizer, data, generic=generic_text, generic_answers=generic_answers, targets=targets,
            split_seed=None if all_items or folds is not None else split_seed, pole=pole, resume=resume, progress=bar,
            **options,
        )  # fmt: skip
        if folds is not None:
            artefact = _with_folds(artefact, folds, split_seed)
        artefact.save(path)
    result = {
        "artefact": str(path.resolve()),
        "personas": {
            name: {
                **p.provenance.parameters,
                **p.provenance.measured,
                "sparsity": p.sparsity,  # what came out, not the share that was asked for
                "dropped": p.dropped,
            }
            for name, p in artefact.personas.items()
        },
        "cross_fit": folds,
    }
    if as_json:
        print_json(result)
        return
    items = "dev items" if folds is None and not all_items else "items, which calibrated it too,"
    for name, persona in artefact.personas.items():
        m = persona.provenance.measured
        out.print(
            f"[bold]{escape(name)}[/]: {persona.dropped:,} weights dropped ({persona.sparsity:.2%}); on {m['dev_items']} "
            f"{items} acc {m['dev_acc']:.2f}, margin {m['dev_margin']:+.2f} nats a token"
        )
    for fold in folds or []:
        out.print(f"fold {fold['fold']}: acc {fold['acc']:.2f}, acc_opposite {fold['acc_opposite']:.2f}")
    shown = escape(str(path))
    out.print(f"saved to [bold]{shown}[/]; try: personae chat {shown}", soft_wrap=True)


def parse_n_m(text: str | None) -> tuple[int, int] | None:
    """'2:4' -> (2, 4). Errors: `OptionError`."""
    if text is None:
        return None
    try:
        n, m = (int(part) for part in text.split(":"))
    except ValueError as error:
        raise OptionError(f"--n-m {text!r}: write two numbers, such as 2:4.") from error
    if not 0 < n < m:
        raise OptionError(f"--n-m {text}: N must be at least 1 and smaller than M, as in 2:4.")
    return n, m


def read_data(source: str, *, role: str | None = None, against: str | None = None, **options: Any) -> Any:
    """A contrast; a lone persona where the data have one side only."""
    from personae.personas import load_contrast, load_persona

    if role is not None and against is None:
        return load_persona(source, role=role, format=options.get("format"))
    try:
        return load_contrast(source, role=role, against=against, **options)
    except DataError as error:
        try:
            persona = load_persona(source, format=options.get("format"))
        except (DataError, OptionError):
            raise error from None
        tell(f"{escape(source)} is one-sided: its rival is the base model's own answer.")
        return persona


def _check_names(source: str, data: Any, positive: str | None, negative: str | None) -> None:
    """Errors: `OptionError` for names of poles where there is one persona, which has its name from the data."""
    from personae.personas import Contrast

    given = [name for name, value in (("--positive", positive), ("--negative", negative)) if value is not None]
    if given and not isinstance(data, Contrast):
        raise OptionError(
            f"{' and '.join(given)} would name poles, but {source} is read as one persona, '{data.name}': leave "
            f"{'it' if len(given) == 1 else 'them'} out, or give both sides (of a role-play file --role and --against)."
        )


def _folds(data: Any, number: int, seed: int) -> list[tuple[Any, Any]]:
    """Couples (calibration, held out), each question held out once. Errors: `OptionError`, `DataError`."""
    from personae.personas import Contrast, cross_fit

    if not isinstance(data, Contrast):
        raise OptionError("--cross-fit needs both poles.")
    return cross_fit(data, number, seed=seed)


def _cross_fit(
    model: Any,
    tokenizer: Any,
    folds: list[tuple[Any, Any]],
    generic: tuple[str | None, int],
    targets: list[str] | None,
    options: Any,
) -> list[dict[str, Any]]:
    """K discoveries, each measured on the fold that it did not read, for its choices neither."""
    from personae.discovery import discover as run
    from personae.discovery import encode_contrast, margin, mean_log_probabilities
    from personae.models import find_targets
    from personae.runtime import wearing

    report = []
    for number, (calibration, held_out) in enumerate(folds, 1):
        tell(f"fold {number} of {len(folds)}")
        made = run(
            model, tokenizer, calibration, split_seed=None, generic=generic[0], generic_answers=generic[1],
            targets=targets, resume=False, progress=bar, **options,
        )  # fmt: skip
        encoded = encode_contrast(model, tokenizer, held_out)
        shares = []
        for name in held_out.poles:
            with wearing(find_targets(model, targets), made[name].masks):
                shares.append(margin(mean_log_probabilities(model, encoded))[0])
        report.append({"fold": number, "items": len(held_out), "acc": shares[0], "acc_opposite": shares[1]})
    return report


def _with_folds(artefact: Any, folds: list[dict[str, Any]], seed: int) -> Any:
    from personae.subnetwork import Artefact

    found = {"cross_fit": json.loads(json.dumps(folds)), "cross_fit_seed": seed}
    return Artefact(artefact.model, artefact.personas, {**artefact.metadata, **found})
