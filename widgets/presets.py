"""Presets told honestly: a line each, and one of them with what is true of it on this model."""

from __future__ import annotations

from chimera.domain.preset import Preset
from chimera.runner.honesty import Expected, PresetRow

from . import format
from .listing import facts
from .rows import EMPTY, Line, Row, Tone, wrap

WORDS: dict[str, tuple[str, Tone]] = {
    "met": ("✓ met", "good"),
    "missed": ("✗ missed", "warn"),
    "not comparable here": ("· not comparable here", "muted"),
}
_FIGURES = {"decode_tok_s": "tok/s", "ttft_s": "s TTFT", "vram_gb": "GB VRAM", "efficiency": "efficiency"}


def preset_line(preset: Preset, row: PresetRow | None, width: int) -> Row:
    """A preset in one line: its key, its title, and its verdict where it has one."""
    line = Line(width).add(str(preset.digit) if preset.digit else "·", "accent", 2).add(preset.title)
    if row is not None and row.refused:
        return line.end("refused", "warn").row()
    return line.end(row.verdict.verdict if row is not None and row.verdict is not None else "", "muted").row()


def preset_page(preset: Preset, row: PresetRow | None, where: str, width: int) -> list[Row]:
    """A preset in full.

    Args:
        preset: It.
        row: What is true of it on the model; None where that is not known.
        where: The model and server, or why nothing is known of them.
        width: Columns.
    """
    work = preset.workload
    agents = f", {work.agents} agents at once" if work.agents > 1 else ""
    rows = facts(
        [
            ("asks", str(preset.options)),
            ("requests", f"{work.prompt_tokens} tokens in, {work.output_tokens} out, {work.requests} of them{agents}"),
        ],
        width,
    )
    rows += [EMPTY, *_here(row, where, width)]
    if row is not None and row.expectations:
        rows += [EMPTY, *_promises(preset, row.expectations, width)]
    rows += [EMPTY]
    rows += facts(
        [
            ("strategy", preset.strategy),
            ("use", preset.use_case),
            ("needs", "; ".join(preset.requirements)),
        ],
        width,
    )
    if preset.note:
        rows += [EMPTY, *facts([("known", preset.note)], width)]
    return [*rows, *facts([("from", format.homely(preset.origin))], width)]


def _here(row: PresetRow | None, where: str, width: int) -> list[Row]:
    """What it is and was on this model."""
    rows = [Line(width).add(line, "strong" if row is not None else "muted").row() for line in wrap(where, width, 6)]
    if row is None:
        return rows
    effect = [("verdict", row.against_default or "not measured against the default here: v does that")]
    if row.effective is not None:
        effect.append(("runs as", str(row.effective.options)))
        effect += [("", note) for note in row.effective.notes]
    if row.refused:
        effect.append(("refused", row.refused))
    if row.same_as:
        effect.append(("the same", f"as {', '.join(row.same_as)}: one setting on this model"))
    if row.same_load_as:
        effect.append(("the same", f"but for the sampling as {', '.join(row.same_load_as)}"))
    if row.like_default:
        effect.append(("the same", "but for the sampling as the server's default"))
    return [*rows, *facts(effect, width)]


def _promises(preset: Preset, expectations: tuple[Expected, ...], width: int) -> list[Row]:
    """What its author expects, and what became of each figure."""
    where = f" on {preset.expects.measured_on}" if preset.expects.measured_on else ""
    rows = [
        Line(width).add(f"{'The guide' if preset.origin == 'guide' else 'Its author'} expects{where}", "strong").row()
    ]
    for one in expectations:
        sign, tone = WORDS[one.word]
        line = Line(width).add(f"  {one.promised} {_FIGURES[one.what]}", "text", 20).add(sign, tone)
        if one.value is not None:
            line.add(f", {one.value:.3g} measured")
        rows.append(line.row())
        if one.reason:
            rows += [Line(width).to(4).add(text, "muted").row() for text in wrap(one.reason, width - 4, 4)]
    return rows
