"""`personae report`: result files and artefacts as one page that needs no network, and as figures for papers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from personae.cli.console import JsonOption, check_writable, out, print_json, short_warnings, tell
from personae.errors import OptionError


def report(
    files: Annotated[list[Path], typer.Argument(help="Result files of eval, its suites and the analyses, frontiers of the benchmarks, .persona files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "personae report",
    figures: Annotated[Path | None, typer.Option("--figures", help="Also write every figure as a file into this folder.")] = None,
    figure_format: Annotated[str | None, typer.Option(help="Of --figures: svg (default), png or pdf.")] = None,
    allow_mixed: Annotated[bool, typer.Option("--allow-mixed", help="Take files of different models; no figure compares across them.")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Write one HTML page with summary, tables, figures, every parameter and the commands that make it all again."""
    from personae.analysis.report import report as run
    from personae.analysis.report_matplotlib import FORMATS

    form = figure_format or FORMATS[0]
    if figure_format is not None and figures is None:
        raise OptionError("--figure-format goes with --figures FOLDER.")
    if form not in FORMATS:
        raise OptionError(f"--figure-format is {form!r}: choose {', '.join(FORMATS)}.")
    output = output.expanduser()
    check_writable(output, "--output", *files)
    if figures is not None:
        figures = figures.expanduser()
        if figures.exists() and not figures.is_dir():
            raise OptionError(f"--figures {figures} is a file; name a folder.")
    with short_warnings():
        made = run(files, title=title, allow_mixed=allow_mixed)
        drawn = () if figures is None else made.figures(figures, form)
        made.save(output)
    if as_json:
        print_json({**made.to_dict(), "output": str(output), "figures": [str(path) for path in drawn]})
        return
    for part in made.parts:
        out.print(f"[bold]{escape(part.title)}[/] ({escape(part.source)})", soft_wrap=True, highlight=False)
        for line in (*(f"warning: {warning}" for warning in part.warnings), *part.findings):
            out.print(f"  {escape(line)}", soft_wrap=True, highlight=False)
    tell(f"written: {escape(str(output))}" + (f", {len(drawn)} figures in {escape(str(figures))}" if figures else ""))
