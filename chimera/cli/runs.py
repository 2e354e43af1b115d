"""chimera runs: list, show, export."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from chimera.errors import ConfigError

from . import summary
from .output import emit_json, emit_table, say
from .work import Json, RunRef

app = typer.Typer(help="History of runs.", rich_markup_mode=None, no_args_is_help=True)


class Format(StrEnum):
    """What an export is written as."""

    JSON = "json"
    CSV = "csv"
    BENCHSTAT = "benchstat"


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Option(help="run, sweep, tune, validate, agents, thermal, import.")] = None,
    model: Annotated[str | None, typer.Option(help="Model name.")] = None,
    text: Annotated[str | None, typer.Option("--search", help="Part of an id, name, preset or model.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    json: Json = False,
) -> None:
    """The newest runs first."""
    from chimera.store.document import run_document
    from chimera.store.journal import Journal

    journal = Journal.open()
    try:
        found = journal.runs(kind=kind, model=model, text=text, limit=limit)  # type: ignore[arg-type]
        if json:
            emit_json({"schema_version": 1, "runs": [run_document(run) for run in found]})
            return
        if not found:
            say("No run yet: `chimera run --embedded` makes one without any server.")
            return
        emit_table(
            ["id", "started", "kind", "preset", "state", "server", "model"],
            [
                (
                    run.id,
                    datetime.fromtimestamp(run.created_at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                    run.kind,
                    run.preset,
                    run.state,
                    run.server.title if run.server else run.target.kind,
                    run.model.name if run.model else run.target.model,
                )
                for run in found
            ],
        )
    finally:
        journal.close()


@app.command()
def show(
    ref: RunRef = "last",
    measurements: Annotated[bool, typer.Option("--measurements", help="Every request, not only the medians.")] = False,
    json: Json = False,
) -> None:
    """One run with its figures."""
    from chimera.store.document import document
    from chimera.store.journal import Journal

    journal = Journal.open()
    try:
        facts = document(journal, journal.run(ref), measurements=measurements or not json)
        if json:
            emit_json(facts)
        else:
            summary.emit_run(facts, requests=True)
    finally:
        journal.close()


@app.command()
def export(
    ref: RunRef = "last",
    format_: Annotated[Format, typer.Option("--format", help="json, csv or benchstat.")] = Format.JSON,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file instead of stdout.")] = None,
) -> None:
    """Every measurement of a run, from which each figure can be computed anew."""
    from chimera.store import document
    from chimera.store.journal import Journal

    journal = Journal.open()
    try:
        found = journal.run(ref)
        write = {
            Format.JSON: document.export_json,
            Format.CSV: document.export_csv,
            Format.BENCHSTAT: document.export_benchstat,
        }[format_]
        text = write(journal, found)
    finally:
        journal.close()
    if output is None:
        sys.stdout.write(text)
        return
    try:
        part = output.with_name(f".{output.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(output)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error}") from error
    say(f"run {found.id} written to {output}")
