"""chimera runs: list, show, export, import."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from chimera.domain.run import RunKind
from chimera.domain.text import plain
from chimera.errors import ConfigError

from . import summary
from .options import Json, Measurements, RunRef
from .output import emit_json, emit_table, say

if TYPE_CHECKING:
    from chimera.domain.server import ServerKind
    from chimera.runner.importing import Knowledge

KINDS: tuple[str, ...] = get_args(RunKind)
app = typer.Typer(help="History of runs.", rich_markup_mode=None, no_args_is_help=True)


class Form(StrEnum):
    """What an import is read as."""

    CSV = "csv"
    LLAMA_BENCH = "llama-bench"
    OLLAMA_BENCH = "ollama-bench"
    JSON = "json"


class ServerWord(StrEnum):
    """A kind of server."""

    OLLAMA = "ollama"
    LLAMA_SERVER = "llama_server"
    OPENAI = "openai"
    EMBEDDED = "embedded"


class Format(StrEnum):
    """What an export is written as."""

    JSON = "json"
    CSV = "csv"
    BENCHSTAT = "benchstat"


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Option(help=f"{', '.join(KINDS)}.")] = None,
    model: Annotated[str | None, typer.Option(help="Model name.")] = None,
    text: Annotated[str | None, typer.Option("--search", help="Part of an id, name, preset or model.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The most that are listed.")] = 20,
    json: Json = False,
) -> None:
    """The newest runs first."""
    from chimera.store.document import run_document
    from chimera.store.journal import Journal

    if kind is not None and kind not in KINDS:
        raise ConfigError(f"--kind {kind}: takes {', '.join(KINDS)}.")
    journal = Journal.open()
    try:
        found = journal.runs(kind=kind, model=model, text=text, limit=limit)  # type: ignore[arg-type]  # one of them
        if json:
            emit_json({"schema_version": 1, "runs": [run_document(run) for run in found]})
            return
        if not found:
            if kind or model or text:
                say("No run is like that; without options all are listed.")
            else:
                say("No run yet: `chimera run --embedded` makes one without any server.")
            return
        emit_table(
            ["id", "started", "kind", "preset", "name", "state", "server", "model"],
            [
                (
                    run.id,
                    datetime.fromtimestamp(run.created_at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                    run.kind,
                    run.preset,
                    run.name,
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
    from chimera.runner.facts import facts_of
    from chimera.store.journal import Journal

    journal = Journal.open()
    try:
        facts = facts_of(journal, journal.run(ref), measurements=measurements or not json)
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
    from chimera.runner.facts import exported, write_export
    from chimera.store.journal import Journal

    journal = Journal.open()
    try:
        found = journal.run(ref)
        if output is None:
            sys.stdout.write(exported(journal, found, format_.value))
            return
        write_export(journal, found, format_.value, output)
    finally:
        journal.close()
    say(f"run {found.id} written to {output}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="The file.")],
    format_: Annotated[Form | None, typer.Option("--format", help="What it is; else told by its content.")] = None,
    model_info: Annotated[
        Path | None, typer.Option("--model-info", help="The body of Ollama's /api/show of the model, as a file.")
    ] = None,
    blocks: Annotated[int | None, typer.Option(min=1, max=4096, help="Blocks of the model, without output.")] = None,
    vision: Annotated[bool, typer.Option("--vision", help="The model takes pictures as well.")] = False,
    trained_ctx: Annotated[int | None, typer.Option(min=1, help="Context that the model was trained for.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    kind: Annotated[
        ServerWord | None, typer.Option("--kind", help="Server whose rules hold; else as the file tells, or Ollama.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help='What to compare with, like "num_gpu=35 num_ctx=2048" or "default".')
    ] = None,
    output_tokens: Annotated[
        int | None, typer.Option(min=2, help="Length of the answers, if the file lacks it.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name for the run; else the file's.")] = None,
    measurements: Measurements = False,
    json: Json = False,
) -> None:
    """A set from a file as a run: the same rules, verdicts where its data carry them."""
    from chimera.runner.importing import import_file
    from chimera.store.document import document
    from chimera.store.journal import Journal

    known = _knowledge(model_info, blocks, vision, trained_ctx, model, kind)
    journal = Journal.open()
    try:
        imported = import_file(
            journal,
            file,
            format_=format_.value if format_ else None,
            known=known,
            baseline=baseline,
            output_tokens=output_tokens,
            name=name,
        )
        say(f"run {imported.run.id}: imported from {plain(str(file))}")
        if imported.baseline:
            say(f"  compared with {imported.baseline}")
        for note in imported.notes:
            say(f"  {note}")
        facts = document(journal, imported.run, measurements=measurements)
        if json:
            emit_json(facts)
        else:
            summary.emit_run(facts)
    finally:
        journal.close()
    if not facts["counts"]["valid"]:
        raise typer.Exit(5)


def _knowledge(
    model_info: Path | None,
    blocks: int | None,
    vision: bool,
    trained_ctx: int | None,
    name: str | None,
    kind: ServerWord | None,
) -> Knowledge:
    """What the options say of the model. Raises `ConfigError` where they contradict each other, or for the file."""
    from dataclasses import replace

    from chimera.domain.server import ModelInfo
    from chimera.runner.importing import Knowledge, model_of

    told: ServerKind | None = kind.value if kind else None
    if model_info is not None:
        if blocks or vision or trained_ctx:
            raise ConfigError("--model-info tells blocks, vision and context itself: leave the others out.")
        info = model_of(model_info)
        return Knowledge(info, replace(info, name=name) if name else info, told)
    if blocks or vision or trained_ctx:
        info = ModelInfo(name or "model", block_count=blocks, trained_ctx=trained_ctx, vision=vision)
        return Knowledge(info, info, told)
    return Knowledge(None, ModelInfo(name) if name else None, told)
