"""The command line: one Typer application, without Rich."""

from __future__ import annotations

import typer

from chimera import __version__

from . import agents, apply, doctor, outputs, presets, runs, status, sweep, work

app = typer.Typer(
    name="chimera",
    help="Watch a local LLM server and its GPU live, and tune it honestly. Without a command: the UI.",
    epilog="UI options: --server URL, --model NAME, --embedded (no server needed), --read-only. "
    "Exit codes: 0 done, 1 findings, 2 usage, 3 server, 4 interrupted with the run kept, 5 nothing measurable.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chimera {__version__}")
        raise typer.Exit


@app.callback()
def _main(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Say it.")) -> None:
    pass


work.register(app)
sweep.register(app)
apply.register(app)
outputs.register(app)
agents.register(app)
status.register(app)
doctor.register(app)
app.add_typer(runs.app, name="runs")
app.add_typer(presets.app, name="presets")
