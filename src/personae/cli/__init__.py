"""The command line: one file a subcommand; they parse, call, print."""

from __future__ import annotations

import typer

from personae.cli import (
    audit,
    causal_map,
    chat,
    compare,
    demo,
    discover,
    doctor,
    dynamics,
    evaluate,
    export,
    listing,
    lm_eval,
    report,
    serve,
    trace,
)
from personae.cli.console import errors_exit_with_2

app = typer.Typer(
    name="personae",
    help="Find the subnetwork of a persona inside a frozen language model, keep it as a mask, put it on and off.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("list")(listing.list_personas)
app.command("discover")(discover.discover)
app.command("eval")(evaluate.evaluate)
app.command("lm-eval", context_settings=lm_eval.SETTINGS)(lm_eval.lm_eval)
app.command("audit")(audit.audit)
app.command("chat")(chat.chat)
app.command("compare")(compare.compare)
app.command("dynamics")(dynamics.dynamics)
app.command("causal-map")(causal_map.causal_map)
app.command("export")(export.export)
app.command("trace")(trace.trace)
app.command("report")(report.report)
app.command("serve")(serve.serve)


def main() -> None:
    """Entry point: a `PersonaeError` becomes its message and exit code 2, Ctrl-C exit code 130."""
    with errors_exit_with_2():
        app()  # always ends in SystemExit


__all__ = ["app", "main"]
