"""chimera presets: list, show, check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chimera.domain.preset import Preset

from .options import Embedded, Json, Model, Server
from .output import emit, emit_json, emit_table, say
from .targets import find_target

if TYPE_CHECKING:
    from chimera.runner.honesty import Here, PresetRow

app = typer.Typer(help="Named configurations.", rich_markup_mode=None, no_args_is_help=True)


def _facts(preset: Preset) -> dict[str, object]:
    from dataclasses import asdict

    return {**asdict(preset), "options": preset.options.as_dict(), "workload": preset.workload.as_dict()}


@app.command("list")
def list_(server: Server = None, model: Model = None, embedded: Embedded = False, json: Json = False) -> None:
    """All presets: the guide's on 1-5, yours on 6-9; with a server named, what is effective and measured there."""
    from chimera.presets.loader import all_presets

    book = all_presets()
    here, rows = _rows(book.presets, server, model, embedded)
    if json:
        emit_json({
            "schema_version": 1,
            "presets": [_facts(preset) | _row_facts(rows.get(preset.name)) for preset in book.presets],
            "problems": [str(problem) for problem in book.problems],
        } | _here_facts(here))  # fmt: skip
    elif here is not None:
        say(f"on {here.model.name}, {here.server.title if here.server else here.kind}")
        emit_table(
            ["key", "name", "runs as", "against the default", "expectations"],
            [
                (
                    row.preset.digit,
                    row.preset.name,
                    "refused" if row.effective is None else str(row.effective.options),
                    row.against_default,
                    _counted(row),
                )
                for row in rows.values()
            ],
        )
        for row in rows.values():
            if row.words:
                say(f"  {row.preset.name}: {row.words}")
    else:
        emit_table(
            ["key", "name", "title", "sets", "strategy"],
            [(one.digit, one.name, one.title, str(one.options), one.strategy) for one in book.presets],
        )
    for problem in book.problems:
        say(str(problem))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name or digit.")],
    server: Server = None,
    model: Model = None,
    embedded: Embedded = False,
    json: Json = False,
) -> None:
    """One preset: what it sets, what its author expects, what is known of it; with a server, what is true there."""
    from chimera.presets.loader import all_presets, find

    preset = find(name)
    here, rows = _rows(all_presets().presets, server, model, embedded)
    row = rows.get(preset.name)
    if json:
        emit_json({"schema_version": 1, "preset": _facts(preset) | _row_facts(row)} | _here_facts(here))
        return
    emit(f"{preset.title} ({preset.name}{f', key {preset.digit}' if preset.digit else ''})")
    for head, words in (
        ("sets", str(preset.options)),
        ("strategy", preset.strategy),
        ("use", preset.use_case),
        ("needs", "; ".join(preset.requirements)),
        ("expects", expectation(preset)),
        ("known", preset.note),
        ("from", preset.origin),
    ):
        if words:
            emit(f"  {head:9} {words}")
    if row is None or here is None:
        return
    emit(f"on {here.model.name}, {here.server.title if here.server else here.kind}")
    if row.effective is not None:
        emit(f"  {'runs as':9} {row.effective.options}")
        for note in row.effective.notes:
            emit(f"  {'':9} {note}")
    if row.words:
        emit(f"  {'effect':9} {row.words}")
    emit(f"  {'verdict':9} {row.against_default or 'not measured against the default here'}")
    for one in row.expectations:
        emit(f"  {_WHAT[one.what]:9} {one.promised}: {one.became}")


_WHAT = {"decode_tok_s": "tok/s", "ttft_s": "TTFT s", "vram_gb": "VRAM GB", "efficiency": "effic."}


def _rows(
    presets: Sequence[Preset], server: str | None, model: str | None, embedded: bool
) -> tuple[Here | None, dict[str, PresetRow]]:
    """What is true on the server that is named; nothing where none is."""
    if not (server or model or embedded):
        return None, {}
    import asyncio

    from chimera.runner.honesty import look, measured_here, preset_rows
    from chimera.store.journal import Journal

    here = asyncio.run(look(find_target(server, model, embedded=embedded)))
    journal = Journal.open()
    try:
        rows = preset_rows(presets, here, measured_here(journal, here))
    finally:
        journal.close()
    return here, {row.preset.name: row for row in rows}


def _here_facts(here: Here | None) -> dict[str, Any]:
    if here is None:
        return {}
    return {"server": {"kind": here.kind, "version": here.server.version if here.server else None},
            "model": {"name": here.model.name, "block_count": here.model.block_count}}  # fmt: skip


def _row_facts(row: PresetRow | None) -> dict[str, Any]:
    """What is true of a preset here, beside what it is."""
    from dataclasses import asdict

    if row is None:
        return {}
    return {
        "effective": None if row.effective is None else row.effective.options.as_dict(),
        "notes": [] if row.effective is None else list(row.effective.notes),
        "refused": row.refused,
        "same_as": list(row.same_as),
        "same_load_as": list(row.same_load_as),
        "like_default": row.like_default,
        "verdict": None if row.verdict is None else asdict(row.verdict) | {"run": row.verdict_run,
                                                                          "about": row.verdict_scope},
        "measured": None if row.measured is None else {
            "run": row.measured.run, "decode_tok_s": row.measured.decode_tok_s, "ttft_s": row.measured.ttft_s,
            "vram_gb": row.measured.vram_gb,
        },
        "expectations": [asdict(one) for one in row.expectations],
    }  # fmt: skip


def _counted(row: PresetRow) -> str | None:
    """How many of its author's expectations came to what."""
    words = [one.word for one in row.expectations]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words)) or None


def expectation(preset: Preset) -> str:
    """What the preset's author expects, in one line, with where it was measured."""
    from chimera.runner.honesty import spread

    expects = preset.expects
    parts = [
        f"{spread(bounds)} {unit}"
        for bounds, unit in (
            (expects.decode_tok_s, "tok/s"),
            (expects.ttft_s, "s TTFT"),
            (expects.vram_gb, "GB VRAM"),
        )
        if bounds
    ]
    if expects.efficiency is not None:
        parts.append(f"{expects.efficiency:.2%} efficiency by the guide's formula")
    where = f" (on {expects.measured_on})" if expects.measured_on and parts else ""
    return ", ".join(parts) + where


@app.command()
def check(file: Annotated[Path, typer.Argument(help="A preset's TOML file.")], json: Json = False) -> None:
    """Say what is wrong with a preset file: line, field, and what to do."""
    from chimera.presets.loader import check_file

    problems = check_file(file)
    if json:
        emit_json({"schema_version": 1, "file": str(file), "problems": [str(problem) for problem in problems]})
    else:
        for problem in problems:
            emit(str(problem))
        if not problems:
            emit(f"{file}: good")
    if problems:
        raise typer.Exit(2)
