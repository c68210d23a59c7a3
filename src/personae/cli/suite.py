"""`personae eval --suite NAME`: a whole protocol on the user's model and data, as JSON and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from personae.cli.console import (
    bar,
    check_writable,
    command_line,
    json_text,
    load,
    out,
    print_json,
    short_warnings,
    tell,
    write_text,
)
from personae.errors import OptionError

_ON_A_CONTRAST = ("faithfulness", "isolated-grid", "activation", "generation")
SUITES = ("ai-persona", "mbti", "roleplay", "big-five", "capability", *_ON_A_CONTRAST, "planted")
_WITH_PERSONAS = {"big-five", "capability", "generation"}
_WITH_A_SECOND_MODEL = "ai-persona"
_WITHOUT_DATA = {*_ON_A_CONTRAST, "planted"}


def run_suite(
    name: str,
    *,
    contrast: str | None,
    data: Path | None,
    personas: Sequence[Path],
    limit: int | None,
    steps: int | None,
    dimensions: Sequence[str],
    output: Path | None,
    model: str | None,
    second_model: str | None,
    dtype: str,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Check, load, run, write OUTPUT and its Markdown, print. Finished parts are kept, so a killed suite goes on."""
    from personae.evaluation.suites import SuiteContext, suite_to_dict, suite_to_markdown, suite_to_rich
    from personae.models import cache_directory
    from personae.subnetwork import load as load_artefact

    _check(name, contrast, data, personas, limit)
    chosen = _of_mbti(name, steps, dimensions)
    if second_model is not None and name != _WITH_A_SECOND_MODEL:
        raise OptionError(f"--second-model goes with a contrast or with --suite {_WITH_A_SECOND_MODEL}, not {name}.")
    path = (output or Path(f"{name}.json")).expanduser()
    if path.suffix.lower() == ".md":  # where the page goes, which would replace the JSON
        raise OptionError(
            f"--output {path} is where the Markdown goes: name the JSON, such as {path.with_suffix('.json')}, and the "
            "Markdown is written beside it."
        )
    page = path.with_suffix(".md")
    for each in (path, page):
        check_writable(each, "--output", contrast, *personas)
    with short_warnings():
        artefacts = [load_artefact(p) for p in personas]
        lm, tokenizer = load(model, dtype, device)
        stronger = None if second_model is None else load(second_model, dtype, device)
        context = SuiteContext(
            lm, tokenizer, data or Path(), parts=cache_directory() / "suites", seed=seed, limit=limit, progress=bar
        )
        result = _run(name, context, contrast, artefacts, stronger, chosen)
        said = {**suite_to_dict(result), "command": command_line()}
        write_text(path, json_text(said))
        write_text(page, suite_to_markdown(result))
    if as_json:
        print_json(said)
        return
    out.print(suite_to_rich(result))
    tell(f"written: {escape(str(path))}, {escape(str(page))}")


def _check(name: str, contrast: str | None, data: Path | None, personas: Sequence[Path], limit: int | None) -> None:
    if name not in SUITES:
        raise OptionError(f"unknown --suite {name!r}: choose {', '.join(SUITES)}.")
    if data is None and name not in _WITHOUT_DATA:
        raise OptionError(f"--suite {name} needs --data FOLDER, the folder of the public data (docs/data.md).")
    if data is not None and not data.is_dir():
        raise OptionError(f"--data {data} is no folder.")
    if contrast is None and name in _ON_A_CONTRAST:
        raise OptionError(f"--suite {name} needs a contrast: personae eval --suite {name} CONTRAST.")
    if contrast is not None and name not in _ON_A_CONTRAST:
        raise OptionError(f"--suite {name} brings its own data; leave {contrast!r} out (masks: --persona FILE).")
    if personas and name not in _WITH_PERSONAS:
        raise OptionError(
            f"--persona belongs to --suite {' and '.join(sorted(_WITH_PERSONAS))}; {name} finds its masks."
        )
    if name == "generation" and len(personas) != 1:
        raise OptionError("--suite generation reads one artefact with both poles of the contrast: --persona FILE.")
    if limit is not None and limit < 1:
        raise OptionError(f"--limit is {limit}: at least 1 is needed.")


def _of_mbti(name: str, steps: int | None, dimensions: Sequence[str]) -> dict[str, Any]:
    """What --steps and --dimension say to the suite. Errors: `OptionError` beside another suite, or out of range."""
    given = ["--steps"] * (steps is not None) + ["--dimension"] * bool(dimensions)
    if not given:
        return {}
    if name != "mbti":
        raise OptionError(f"{' and '.join(given)} with --suite: only mbti takes that, {name} has its own protocol.")
    from personae.evaluation.suites.mbti import SHORT_STEPS
    from personae.evaluation.suites.mbti_data import DIMENSIONS

    chosen: dict[str, Any] = {}
    if dimensions:
        unknown = sorted(set(dimensions) - set(DIMENSIONS))
        if unknown:
            raise OptionError(f"unknown --dimension {', '.join(unknown)}: choose {', '.join(DIMENSIONS)}.")
        chosen["dimensions"] = [d for d in DIMENSIONS if d in dimensions]
    if steps is not None:
        if steps < 1:
            raise OptionError(f"--steps is {steps}: it must be 1 or more.")
        chosen |= {"steps": steps, **SHORT_STEPS}
    return chosen


def _run(
    name: str,
    context: Any,
    contrast: str | None,
    artefacts: Sequence[Any],
    stronger: Any,
    of_mbti: Mapping[str, Any],
) -> Any:
    if name == "ai-persona":
        from personae.evaluation.suites.ai_persona import run as ai_persona

        return ai_persona(context, stronger=stronger)
    if name == "mbti":
        from personae.discovery import DEFAULT_BUDGET
        from personae.evaluation.suites.mbti import run as mbti

        # A share fixed beforehand can cost far more than the product's budget; docs/experiments.md has a case.
        return mbti(context, cheap_share=None, drop_share=None, max_capability_loss=DEFAULT_BUDGET, **of_mbti)
    if name == "roleplay":
        from personae.discovery import DEFAULT_BUDGET, Settings
        from personae.evaluation.suites.roleplay import run as roleplay

        # By the margin alone most masks of a play made all of its lines less likely, the character's own too.
        return roleplay(context, settings=Settings(max_capability_loss=DEFAULT_BUDGET, rounds=1, own_weight=1.0))
    if name == "big-five":
        from personae.evaluation.suites.big_five import run as big_five

        return big_five(context, artefacts)
    if name == "capability":
        from personae.evaluation.suites.capability import run as capability

        return capability(context, artefacts)
    if name == "planted":
        from personae.evaluation.suites.planted import run as planted

        return planted(context)
    from personae.personas import load_contrast

    pairs = load_contrast(str(contrast))
    if name == "isolated-grid":
        from personae.evaluation.suites.isolated_grid import run as isolated_grid

        return isolated_grid(context, pairs)
    if name == "activation":
        from personae.evaluation.suites.activation import run as activation
        from personae.evaluation.suites.activation_readings import CONDITIONS

        if pairs.positive_prompt:
            return activation(context, pairs)
        tell(f"{escape(pairs.name)} has no system prompt of {escape(pairs.positive)}: that condition is left out")
        return activation(context, pairs, [c for c in CONDITIONS if c != "system-prompt"])
    if name == "generation":
        from personae.evaluation.suites.generation import run as generation

        return generation(context, artefacts[0], pairs)
    from personae.evaluation.suites.faithfulness import run as faithfulness

    return faithfulness(context, pairs)
