"""chimera presets: list, show, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chimera.domain.preset import Preset

from .output import emit, emit_json, emit_table, say
from .work import Json

app = typer.Typer(help="Named configurations.", rich_markup_mode=None, no_args_is_help=True)


def _facts(preset: Preset) -> dict[str, object]:
    from dataclasses import asdict

    return {**asdict(preset), "options": preset.options.as_dict(), "workload": preset.workload.as_dict()}


@app.command("list")
def list_(json: Json = False) -> None:
    """All presets: the guide's on 1-5, yours on 6-9."""
    from chimera.presets.loader import all_presets

    book = all_presets()
    if json:
        emit_json({
            "schema_version": 1,
            "presets": [_facts(preset) for preset in book.presets],
            "problems": [str(problem) for problem in book.problems],
        })  # fmt: skip
    else:
        emit_table(
            ["key", "name", "title", "sets", "strategy"],
            [(one.digit, one.name, one.title, str(one.options), one.strategy) for one in book.presets],
        )
    for problem in book.problems:
        say(str(problem))


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name or digit.")], json: Json = False) -> None:
    """One preset: what it sets, what its author expects, what is known of it."""
    from chimera.presets.loader import find

    preset = find(name)
    if json:
        emit_json({"schema_version": 1, "preset": _facts(preset)})
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


def expectation(preset: Preset) -> str:
    """What the preset's author expects, in one line, with where it was measured."""
    expects = preset.expects
    parts = [
        f"{_range(bounds)} {unit}"
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


def _range(bounds: tuple[float | None, float | None]) -> str:
    low, high = bounds
    if low is None:
        return f"under {high:g}"
    if high is None:
        return f"over {low:g}"
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


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
