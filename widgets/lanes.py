"""Several agents at once: a lane each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from chimera.domain.run import Lane

from . import format
from .panel import Panel
from .rows import Line, Row, Tone, meter

STATES: dict[str, tuple[str, Tone]] = {
    "waiting": ("waits", "muted"),
    "loading": ("loading", "notice"),
    "queued": ("queued", "warn"),
    "prefill": ("prefill", "notice"),
    "decoding": ("decoding", "accent"),
    "done": ("done", "good"),
}
_BAR = 12
_CELL = 12
"""Cells that a lane needs which shares its row with others."""
_MOST = 18
"""Cells that it gets at most."""


class LanesPanel(Panel):
    """What each agent does now, how fast, and how long it waited for its first token."""

    TITLE = "Agents"
    HELP: ClassVar[str | None] = """\
## Agents

A lane for each agent of the run:

* **waits**: for its turn or in its think time. **loading**: its server loads the model.
* **queued**: sent, and the server has not begun with it; some servers tell that only with the first token.
* **prefill**: its prompt is read. **decoding**: tokens come. **done**: answered.

The rate is its own over the last second, on **our** clock; the bar shows its answer. The chart has all
of them together. Where there are more agents than rows several share one, with the rate of those that decode.
"""

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._lanes: tuple[Lane, ...] = ()
        self._planned = 0

    def update(self, lanes: Sequence[Lane], planned: int = 0) -> None:
        """Show these lanes; `planned` tokens are asked for in each answer, 0 where that is not known."""
        if (tuple(lanes), planned) != (self._lanes, self._planned):
            self._lanes, self._planned = tuple(lanes), planned
            self.redraw()

    def build(self, width: int, height: int) -> list[Row]:
        """A heading where there is room, then the lanes, several a row if need be; what does not fit is counted."""
        if not self._lanes:
            return [Line(width).add("No agents at work", "muted").row()]
        if len(self._lanes) > height and (columns := width // _CELL) > 1:
            return self._grid(width, height, columns)
        shown = self._lanes if len(self._lanes) <= height else self._lanes[: max(height - 1, 1)]
        rows = [self._head(width)] if height > len(shown) and len(shown) == len(self._lanes) else []
        rows += [self._lane(lane, width) for lane in shown]
        if left := len(self._lanes) - len(shown):
            rows.append(Line(width).add(f"and {left} more", "muted").row())
        return rows

    def _grid(self, width: int, height: int, columns: int) -> list[Row]:
        """The lanes column by column, each in a few cells."""
        rows = min(height, -(-len(self._lanes) // columns))
        shown = self._lanes if len(self._lanes) <= rows * columns else self._lanes[: rows * columns - 1]
        lines = [Line(width) for _ in range(rows)]
        cell = width // -(-len(self._lanes) // rows) if shown is self._lanes else width // columns
        for number, lane in enumerate(shown):
            word, tone = STATES[lane.state]
            if lane.state == "decoding" and lane.rate is not None:
                word = f"{format.rate(lane.rate)} t/s"
            line = lines[number % rows].add(str(lane.agent + 1), "strong", 2, "right").gap(1)
            line.add(word, tone, min(cell, _MOST) - 3)
        if left := len(self._lanes) - len(shown):
            lines[-1].add(f"+{left} more", "muted")
        return [line.row() for line in lines]

    def _head(self, width: int) -> Row:
        line = Line(width).add("#", "muted", 3, "right").gap(1).add("state", "muted", 9)
        return line.add("tok/s", "muted", 7, "right").add("TTFT", "muted", 9, "right").row()

    def _lane(self, lane: Lane, width: int) -> Row:
        word, tone = STATES[lane.state]
        rate = "" if lane.rate is None or lane.state != "decoding" else format.rate(lane.rate)
        first = "" if lane.ttft_s is None else format.seconds(lane.ttft_s)
        line = Line(width).add(str(lane.agent + 1), "strong", 3, "right").gap(1).add(word, tone, 9)
        line.add(rate, "text", 7, "right").add(first, "text", 9, "right")
        if self._planned and line.left >= _BAR + 2:
            share = min(lane.tokens / self._planned, 1.0)
            line.gap(2).spans(meter(share, min(line.left - 2, 40)))
        return line.row()
