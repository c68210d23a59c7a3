"""docs/evidence.md: every committed result in one report, and what has not been measured.

    python -m benchmarks.report [--check]

Reads benchmarks/results only; nothing is computed here but rounding.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from benchmarks.ai_persona import STEPS
from benchmarks.begun import conditions_left, points_left
from benchmarks.common import RESULTS, ROOT
from benchmarks.readme import HEADINGS, SETS, rounds_table, row_of, table
from benchmarks.report_inside import inside
from benchmarks.report_targets import targets
from benchmarks.rivals import CONDITIONS
from benchmarks.run import PARTS
from personae.evaluation.bootstrap import Estimate
from personae.evaluation.results import ModelRecord
from personae.evaluation.suites import SuiteResult, Table, suite_to_markdown

PAGE = ROOT / "docs" / "evidence.md"
HEAD = """# Evidence

Made by `python -m benchmarks.report` from `benchmarks/results/`; the command that made a section stands under it.
Figures are defined in [methods.md](methods.md), section 7, and [suites.md](suites.md); what was tried and dropped is
told in [experiments.md](experiments.md).
"""
FORMS = {"_steps": "short steps", "": "two rounds (float32)"}
FIGURES = {"acc": "acc", "acc_opposite": "acc_opposite (turned)", "tied_separation": "tied separation"}
COSTS = (  # key of the summary, what must hold, what it is
    ("discovery.statistics_over_forward", "", "statistics of one pole over its plain forwards"),
    ("discovery.attribution_over_forward", "", "attribution over its plain forwards"),
    ("switch.sparse02_over_copy", "≤ 0.2", "0.2 % of the weights off and back, over one copy of all target weights"),
    ("switch.sparse1_over_copy", "≤ 0.5", "the same for 1 %"),
    ("switch.dense50_over_copy", "≤ 3", "the same for 50 %"),
    ("switch.reload_over_sparse1", "≥ 50", "reloading the model over the switch of 1 %"),
    ("mixed.eight_over_none", "≤ 1.3", "a decoding step of 8 rows under 8 personas over the same rows without"),
    ("mixed.thirty_two_over_none", "≤ 1.3", "the same with 32 rows"),
    ("mixed.peft_over_ours", "> 1", "PEFT's mixed LoRA, rank 16, over ours"),
    ("serve.eight_over_one", "≥ 0.8", "tokens a second of 32 clients over eight personas, over the same with one"),
    ("serve.ours_over_transformers", "≥ 1", "without personas, over `transformers serve`"),
    ("serve.failed", "0", "requests that failed"),
    ("serve.leaks", "0", "answers that another one's persona has changed"),
    ("file.over_entropy", "≤ 1.15", "size of a `.persona` file over its entropy, the worst of three"),
    ("file.sixteen_over_one", "≤ 4", "sixteen related masks over one"),
    ("file.fuzz_crashes", "0", "crashes of the reader on hostile files"),
    ("trace.cost_over_forward_a_persona", "≤ 2", "a trace of two personas over a forward for each"),
    ("compare.seconds", "≤ 1", "seconds to compare two subnetworks"),
    ("audit.minutes", "≤ 25", "minutes to audit four hazards on two cores"),
)


def report() -> str:
    """The whole page."""
    return (
        "\n".join(
            [
                HEAD,
                *_missing(),
                *targets(_read),
                *_headlines(),
                *_rivals(),
                *_frontiers(),
                *_costs(),
                *inside(_read),
                *_suites(),
            ]
        ).rstrip()
        + "\n"
    )


def _missing() -> Iterator[str]:
    absent = [name for name in PARTS if _read(name) is None]
    if absent:
        yield "**Not measured yet**: " + ", ".join(absent) + ".\n"


def _headlines() -> Iterator[str]:
    yield "## Headline: `directed` within 0.05 nats, controls, and the paper's scores within the same budget\n"
    for name in SETS:
        if found := _read(f"ai_persona_{name}_steps"):
            yield f"{table(name)}\n\n`{found['command']}`\n"
    for name in SETS:
        if found := _read(f"ai_persona_{name}"):
            yield f"## Two rounds, the default, with controls of their size: {SETS[name]}\n"
            yield f"{rounds_table(name)}\n\n`{found['command']}`\n"


def _lacking(absent: Sequence[str], form: str) -> Iterator[str]:
    """What a file that was begun does not hold. form: of `FORMS`; two rounds were the headline once."""
    if absent and form:
        yield "**Not measured yet**: " + ", ".join(absent) + ".\n"
    elif absent:
        yield "Left as it was when short steps, above, took the place of two rounds. Not measured beside these:"
        yield ", ".join(absent) + ".\n"


def _rivals() -> Iterator[str]:
    for (form, masks), (name, title) in product(FORMS.items(), SETS.items()):
        found = _read(f"rivals_{name}{form}")
        if not found:
            continue
        yield f"## Rivals and further controls beside {masks}: {title}\n"
        yield from _lacking(conditions_left(found["made"]), form)
        yield from HEADINGS
        for rows in found["made"].values():
            yield from (row_of(row) for row in rows)
        yield "\nWhat each costs: passes over calibration pairs; seconds of discovery, on one core of two beside other"
        yield "work; peak memory on top of the model; more tokens of a prompt.\n"
        yield "| condition | cost | seconds | peak memory, MB | prompt tokens |"
        yield "|---|---|---|---|---|"
        for rows in found["made"].values():
            yield from (_price_of(row) for row in rows if row["kind"] != "control")
        yield f"\n`directed` ({masks}) minus each, paired over items; p after Holm over the table:\n"
        yield "| condition | " + " | ".join(FIGURES.values()) + " |"
        yield "|---|" + "---|" * len(FIGURES)
        for condition, figures in found["minus"].items():
            yield f"| {condition} | " + " | ".join(_difference(figures[key]) for key in FIGURES) + " |"
        yield ""
        yield from (f"- {row['name']}: {row['note']}" for rows in found["made"].values() for row in rows)
        # The file is made by several runs: the command that would make all of it, not that of the last one.
        asked = [which for which in found["made"] if which in CONDITIONS]
        only = ["--only", *asked] if asked else []
        yield f"\n`python -m benchmarks.rivals {shlex.join([name, *['--steps'] * bool(form), *only])}`\n"


def _price_of(row: dict[str, Any]) -> str:
    seconds = "–" if row["seconds"] is None else f"{row['seconds']:.0f}"
    peak = "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}"
    return f"| {row['name']} | {row['cost']} | {seconds} | {peak} | {row['extra_prompt_tokens']:.0f} |"


def _difference(gap: dict[str, float]) -> str:
    return f"{gap['value']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}], p {gap['p_holm']:.3f}"


def _frontiers() -> Iterator[str]:
    for (form, masks), (name, title) in product(FORMS.items(), SETS.items()):
        found = _read(f"frontier_{name}{form}")
        if not found:
            continue
        yield f"## Frontier of {masks}: {title}\n"
        yield from _lacking(points_left(found["points"], name, STEPS if form else None), form)
        yield "| condition | pole | dropped | acc of the pole | acc_tied | loss plain | loss chat |"
        yield "|---|---|---|---|---|---|---|"
        for p in found["points"]:
            losses = (f"{p[k]:+.3f} ± {1.96 * p[k + '_error']:.3f}" for k in ("plain", "chat"))
            figures = (f"{p[k][0]:.2f} [{p[k][1]:.2f}, {p[k][2]:.2f}]" for k in ("acc", "acc_tied"))
            yield f"| {p['condition']} | {p['pole']} | {p['share']:.2%} | " + " | ".join((*figures, *losses)) + " |"
        yield f"\n`{found['command']}`\n"


def _costs() -> Iterator[str]:
    found = _read("summary") or {}
    yield "## What it costs\n"
    yield "Ratios within one run, on machines of two cores; the command of each is in its result file.\n"
    yield "| figure | target | measured | |"
    yield "|---|---|---|---|"
    for key, target, meaning in COSTS:
        if key in found:
            yield f"| `{key}` | {target} | {found[key]:.3g} | {meaning} |"
    yield ""


def _suites() -> Iterator[str]:
    for name in PARTS:
        found = _read(name)
        if found is None or found.get("format") != "personae.suite/1":
            continue
        tables = tuple(
            Table(t["title"], tuple(t["columns"]), tuple(tuple(map(_cell, r)) for r in t["rows"]), tuple(t["notes"]),
                  tuple(t["warnings"]))
            for t in found["tables"]
        )  # fmt: skip
        result = SuiteResult(
            name.removeprefix("suite_"), ModelRecord(**found["model"]), {}, {}, {}, tables, tuple(found["notes"])
        )
        for line in suite_to_markdown(result).splitlines():
            yield f"#{line}" if line.startswith("#") else line
        yield f"\n`{found['command']}`\n"


def _cell(cell: Any) -> Any:
    return Estimate(cell["value"], cell["low"], cell["high"]) if isinstance(cell, dict) else cell


def _read(name: str) -> Any:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def main() -> None:
    """Write the page, or check that it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    made = report()
    if parser.parse_args().check:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == made
        sys.exit(None if same else "docs/evidence.md differs from the result files: python -m benchmarks.report")
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
