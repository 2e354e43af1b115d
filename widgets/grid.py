"""Rows of name, value, bar and note that stand under each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chimera.domain.readings import Missing, Reading

from . import format
from .rows import Line, Row, Span, Tone, meter

LABEL, VALUE = 8, 8
"""Columns of a row's name and of its value."""
NOTE, BAR = 22, 48
"""Most columns that a note and a bar are given."""


class Grid:
    """Columns for a panel of this width: the bar takes what names, values and notes leave."""

    def __init__(self, width: int, note: int = NOTE) -> None:
        self.width = width
        after_value = max(width - LABEL - VALUE - 2, 0)
        if after_value >= note + 12:
            self.bar = min(after_value - note - 2, BAR)
        elif after_value >= 34:
            self.bar = 10
        else:
            self.bar = 0 if after_value > 8 else after_value

    def row(
        self,
        name: str,
        value: Reading,
        show: Callable[[float], str],
        top: float | None,
        notes: Sequence[str],
        now: float,
        tone: Tone = "text",
    ) -> Row:
        """A row of one reading.

        Args:
            name: What it is.
            value: The reading; a missing one gives its reason instead of a bar.
            show: The value in words.
            top: Where the bar is full.
            notes: More to say, the most telling first; what does not fit is left out.
            now: Monotonic seconds, to say how stale a missing one is.
            tone: How the value stands.
        """
        line = Line(self.width).add(name, "muted", LABEL)
        if isinstance(value, Missing):
            return line.add(format.missing(value, now=now), "muted").add(_detail(value), "muted").row()
        sign = {"warn": "▲ ", "error": "! "}.get(tone, "")
        line.add(sign + show(value), tone, VALUE, "right").gap(2)
        bar_tone: Tone = tone if tone in ("warn", "error") else "bar"
        return self.finish(line, meter(value / top if top else None, self.bar, bar_tone), notes)

    def finish(self, line: Line, bar: Sequence[Span], notes: Sequence[str]) -> Row:
        """The bar after name and value, then as many notes as fit."""
        line.spans(bar)
        between = "  " if self.bar else ""
        for note in notes:
            if note and line.left >= len(between) + len(note):
                line.add(between + note, "muted")
                between = " · "
        return line.row()


def _detail(value: Missing) -> str:
    return f" ({value.detail})" if value.detail else ""
