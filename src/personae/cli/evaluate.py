"""`personae eval`: one table of a persona, its rivals and its controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from personae.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    SeedOption,
    bar,
    check_split,
    check_writable,
    command_line,
    json_text,
    load,
    out,
    print_json,
    short_warnings,
    typed,
    write_text,
)
from personae.cli.discover import read_data
from personae.cli.suite import SUITES, run_suite
from personae.errors import DataError, OptionError

# What --suite takes; every other option shapes the table of one contrast, and a suite would drop it without a word.
_OF_SUITES = (
    "contrast", "artefact", "model", "second_model", "suite", "data_folder", "persona", "limit", "steps", "dimension",
    "output", "dtype", "device", "seed", "as_json",
)  # fmt: skip


def evaluate(
    context: typer.Context,
    contrast: Annotated[str | None, typer.Argument(help="Built-in name, file, or hub:owner/name.")] = None,
    artefact: Annotated[Path | None, typer.Argument(help="A .persona file with both poles.")] = None,
    model: ModelOption = None,
    method: Annotated[list[str] | None, typer.Option(help="Also discover by this method; may be repeated.")] = None,
    control: Annotated[list[str] | None, typer.Option(help="random, magnitude, generic, opposite, shuffled (default: the first four).")] = None,
    other: Annotated[Path | None, typer.Option(help="Another .persona file, whose masks are controls too.")] = None,
    rival: Annotated[list[str] | None, typer.Option(help="'mask + prompt', retrieval, steering, lora-sft, lora-dpo; may be repeated.")] = None,
    calibration: Annotated[str | None, typer.Option(help="What --rival, --method and the controls calibrate on, instead of a part of CONTRAST, all of which is then tested: a source like CONTRAST, split as `discover` splits it.")] = None,
    second_model: Annotated[str | None, typer.Option(help="Also a second model on the same items: bare, with system prompts, with retrieval.")] = None,
    match: Annotated[list[str] | None, typer.Option(help="Controls at equal sparsity and/or equal loss.")] = None,
    max_capability_loss: Annotated[
        float | None, typer.Option(help="Budget of --method, nats a token. Default: the artefact's, else 0.05.")
    ] = None,
    random_seeds: Annotated[int, typer.Option(help="Seeds of the random control.")] = 5,
    plain_text: Annotated[Path | None, typer.Option(help="Text file for capability loss.")] = None,
    chat_text: Annotated[Path | None, typer.Option(help="jsonl of ordinary answers for capability loss.")] = None,
    generic_text: Annotated[str | None, typer.Option(help="Generic text of discovery and of the controls.")] = None,
    positive: Annotated[str | None, typer.Option(help="Name of the positive pole.")] = None,
    negative: Annotated[str | None, typer.Option(help="Name of the negative pole.")] = None,
    data_format: Annotated[str | None, typer.Option("--format", help="Format of the file.")] = None,
    split_seed: Annotated[int, typer.Option(help="Seed of the split, of --calibration where it is given; else the test part is scored.")] = 0,
    all_items: Annotated[bool, typer.Option("--all-items", help="Score every item, not just the test part.")] = False,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 2000,
    allow_other_weights: Annotated[bool, typer.Option(help="Same names and shapes, other weights.")] = False,
    suite: Annotated[str | None, typer.Option(help=f"A whole protocol instead: {', '.join(SUITES)}.")] = None,
    data_folder: Annotated[Path | None, typer.Option("--data", help="Folder of the public data, for --suite.")] = None,
    persona: Annotated[list[Path] | None, typer.Option(help="A .persona file for --suite capability, big-five (may be repeated) and generation (exactly one).")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many items a set, for --suite.")] = None,
    steps: Annotated[int | None, typer.Option(help="Masks of --suite mbti in so many short steps, in the last third of the blocks, instead of in one round.")] = None,
    dimension: Annotated[list[str] | None, typer.Option(help="EI, SN, TF or JP, for --suite mbti; may be repeated. Default: all four.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the JSON here as well; with --suite also its Markdown.")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Score two answers a question under base, system prompt, masks and controls, with intervals."""
    from personae.evaluation import capability_text, to_dict, to_rich
    from personae.evaluation import evaluate as run
    from personae.evaluation.poles import check_artefact
    from personae.evaluation.second_model import beside
    from personae.models import context_length, find_targets
    from personae.personas import Contrast, split
    from personae.subnetwork import load as load_artefact

    if suite is not None:
        if artefact is not None:
            raise OptionError(f"--suite {suite} takes no artefact; masks go with --persona FILE.")
        _refuse_others(context, suite)
        run_suite(
            suite, contrast=contrast, data=data_folder, personas=tuple(persona or ()), limit=limit, steps=steps,
            dimensions=tuple(dimension or ()), output=output, model=model, second_model=second_model, dtype=dtype,
            device=device, seed=seed, as_json=as_json,
        )  # fmt: skip
        return
    of_suites = {
        "--data": data_folder, "--persona": persona, "--limit": limit, "--steps": steps, "--dimension": dimension,
    }  # fmt: skip
    for option, given in of_suites.items():
        if given:
            raise OptionError(f"{option} goes with --suite.")
    if contrast is None:
        raise OptionError("name a contrast (see `personae list`), or a --suite.")
    check_split(context, all_items)
    if calibration is not None and all_items:
        raise OptionError("--calibration tests every item of CONTRAST already; leave --all-items out.")
    if second_model is not None and all_items:
        raise OptionError("--second-model shows calibration items as examples: give a split, or --calibration FILE.")
    with short_warnings():
        if output is not None:
            output = output.expanduser()
            read = (contrast, artefact, other, calibration, plain_text, chat_text, generic_text)
            check_writable(output, "--output", *read)
        data = read_data(contrast, positive=positive, negative=negative, format=data_format)
        if not isinstance(data, Contrast):
            raise DataError(f"{contrast} is one-sided; evaluation compares two answers a question.")
        made = load_artefact(artefact) if artefact is not None else None
        own = dev = None
        if calibration is not None:
            shown = second_model is not None or "retrieval" in (rival or ())
            own, dev = _own_items(calibration, data, made, split_seed, examples=shown)
        every = all_items or own is not None
        parts = None if every else split(data, seed=split_seed)
        test, part = (data, own or data) if parts is None else (parts.test, parts.calibration)
        lm, tokenizer = load(model, dtype, device)
        if made is not None:
            check_artefact(made, data, lm, find_targets(lm), allow_other_weights=allow_other_weights)
        second = None
        if second_model is not None:  # read first: a name that cannot be loaded is told before hours of work
            second = _second(second_model, test, part, dtype, device, resamples, seed)
        session, text = None, None
        if plain_text or chat_text or generic_text:
            session = _session(lm, tokenizer, part, data.positive, made, generic_text, seed)
            text = capability_text(
                tokenizer, session.generic, plain_file=plain_text, chat_file=chat_text, context=context_length(lm)
            )
        result = run(
            lm, tokenizer, data, made, methods=tuple(method or ()),
            controls=tuple(control) if control else ("random", "magnitude", "generic", "opposite"),
            match=tuple(match or ("sparsity",)), rivals=tuple(rival or ()),
            other=load_artefact(other) if other is not None else None, split_seed=None if every else split_seed,
            calibration=own, dev=dev, random_seeds=random_seeds, max_capability_loss=max_capability_loss,
            session=session, capability_text=text, resamples=resamples, seed=seed, allow_other_weights=allow_other_weights, progress=bar,
        )  # fmt: skip
        if session is not None:
            session.forget()
        if second is not None:
            result = beside(result, second)
        said = {**to_dict(result), "command": command_line()}
        if output is not None:
            write_text(output, json_text(said))
    if as_json:
        print_json(said)
    else:
        out.print(to_rich(result))


def _refuse_others(context: typer.Context, suite: str) -> None:
    """Errors: `OptionError` for options given with --suite that belong to the table of one contrast."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in _OF_SUITES and typed(context, str(parameter.name))
    ]
    if given:
        belong = "belongs" if len(given) == 1 else "belong"
        raise OptionError(
            f"{', '.join(given)} {belong} to the table of one contrast; --suite {suite} has its own protocol "
            "(docs/suites.md says how to change its settings from Python)."
        )


def _own_items(source: str, data: Any, made: Any, split_seed: int, *, examples: bool) -> tuple[Any, Any]:
    """What calibrates and what chooses, from --calibration: split as `discover` splits it, or, where the artefact was
    calibrated on all of it, all of it for both. examples: whether anything shows its items as earlier turns.

    Errors: `DataError` for data that cannot be read, are one-sided or too small to split, or share a question with
    CONTRAST; `OptionError` for other poles.
    """
    from personae.discovery import DEV_ITEMS
    from personae.evaluation.shared import check_apart
    from personae.personas import Contrast, split

    try:
        whole = read_data(source, positive=data.positive, negative=data.negative)
        if not isinstance(whole, Contrast):
            raise DataError(f"{source} is one-sided; give both poles of '{data.name}'.")
        if examples and not whole.paired:
            raise DataError(f"{source} is not paired, but retrieval shows both poles' answers to the same questions.")
        records = [] if made is None else [p.provenance.calibration for p in made.personas.values()]
        if any(r is not None and r.sha256 in (whole.sha256, whole.swapped().sha256) for r in records):
            found = (whole, whole)
        else:
            parts = split(whole, seed=split_seed)
            found = (parts.calibration, parts.dev.take(min(DEV_ITEMS, len(parts.dev))))
        for use, part in zip(("calibration", "dev"), found, strict=True):
            check_apart(data, part, use)
    except (DataError, OptionError) as error:  # say which of the two sources it was
        raise type(error)(f"--calibration: {error}") from error
    return found


def _second(name: str, test: Any, calibration: Any, dtype: str, device: str, resamples: int, seed: int) -> Any:
    """The rows of --second-model, which is held no longer than it takes to read them."""
    from personae.evaluation.second_model import read_second_model

    label = Path(name).resolve().name if Path(name).exists() else name
    lm, tokenizer = load(name, dtype, device)
    return read_second_model(lm, tokenizer, test, calibration, label, resamples=resamples, seed=seed, progress=bar)


def _session(
    model: Any, tokenizer: Any, calibration: Any, positive: str, made: Any, generic: str | None, seed: int
) -> Any:
    """One session on the user's generic text, with the targets, tokens and seed that the artefact was made with."""
    from personae.discovery import READ_ANSWERS, open_session

    parameters = {} if made is None else made[positive].provenance.parameters
    text = {} if made is None else made.metadata.get("generic_text", {})
    return open_session(
        model, tokenizer, calibration, generic=generic, generic_answers=int(text.get("answers", READ_ANSWERS)),
        targets=None if made is None else list(made.model.targets),
        tokens=str(parameters.get("tokens", "answer")), seed=int(parameters.get("seed", seed)), progress=bar,
    )  # fmt: skip
