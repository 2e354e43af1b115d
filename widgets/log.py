"""What happened, line by line."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import ClassVar

from textual.binding import Binding, BindingType

from chimera.domain.finding import Severity

from . import format
from .panel import Panel
from .rows import Line, Row, Tone, clean, wrap

CAPACITY = 500
SIGNS: dict[Severity, tuple[str, Tone]] = {
    "info": (" ", "text"),
    "notice": ("•", "notice"),
    "warn": ("▲", "warn"),
    "error": ("!", "error"),
}
"""Sign and tone of each severity, the same in every panel."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the log."""

    at: float
    """Wall clock."""
    text: str
    severity: Severity = "info"
    times: int = 1
    """How often in a row it came."""


class EventLog(Panel):
    """The last events, newest at the bottom; scrolls when it has the focus."""

    TITLE = "Log"
    HELP: ClassVar[str | None] = """\
## Log

What happened, newest at the bottom: `!` errors, `▲` warnings, `•` notices. A line that came several times in a row is
counted. Scroll with the arrow keys and page keys; `end` follows the newest again.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "scroll_lines(1)", "Older", show=False),
        Binding("down", "scroll_lines(-1)", "Newer", show=False),
        Binding("pageup", "scroll_pages(1)", "Page up", show=False),
        Binding("pagedown", "scroll_pages(-1)", "Page down", show=False),
        Binding("home", "oldest", "Oldest", show=False),
        Binding("end", "newest", "Newest", show=False),
    ]

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._entries: deque[Entry] = deque(maxlen=CAPACITY)
        self._back = 0
        """Lines between the newest and the last one shown."""

    def write(self, text: str, *, at: float, severity: Severity = "info") -> None:
        """Add a line that happened at the wall clock `at`; the same again is counted, not repeated."""
        text = clean(text)
        last = self._entries[-1] if self._entries else None
        if last is not None and (last.text, last.severity) == (text, severity):
            self._entries[-1] = replace(last, at=at, times=last.times + 1)
        else:
            self._entries.append(Entry(at, text, severity))
            if self._back:
                self._back = min(self._back + 1, len(self._entries) - 1)
        self.redraw()

    def clear(self) -> None:
        """Forget all lines."""
        self._entries.clear()
        self._back = 0
        self.redraw()

    def build(self, width: int, height: int) -> list[Row]:
        """As many of the newest lines as fit, or those that were scrolled to."""
        entries = list(self._entries)
        if not entries:
            return [Line(width).add("Nothing has happened yet", "muted").row()]
        self._back = min(self._back, max(len(entries) - height, 0))
        last = len(entries) - self._back
        shown = entries[max(last - height, 0) : last]
        rows = [row for entry in shown for row in self._lines(entry, width)][-height:]
        if self._back and rows:
            rows[-1] = Line(width).add(f"↓ {self._back + 1} newer, end follows them", "muted").row()
        return rows

    @staticmethod
    def _lines(entry: Entry, width: int) -> list[Row]:
        sign, tone = SIGNS[entry.severity]
        indent = 11
        text = f"{entry.text} ×{entry.times}" if entry.times > 1 else entry.text
        first, *others = wrap(text, width - indent, 3) or [""]
        words: Tone = "error" if tone == "error" else "text"
        line = Line(width).add(format.clock(entry.at), "muted").gap(1).add(f"{sign} ", tone).add(first, words)
        return [line.row(), *(Line(width).gap(indent).add(part, words).row() for part in others)]

    def _go(self, back: int) -> None:
        self._back = min(max(back, 0), max(len(self._entries) - self.size.height, 0))
        self.redraw()

    def on_mouse_scroll_up(self) -> None:
        """Go back by three lines."""
        self._go(self._back + 3)

    def on_mouse_scroll_down(self) -> None:
        """Go on by three lines."""
        self._go(self._back - 3)

    def action_scroll_lines(self, lines: int) -> None:
        """Go back by so many lines, or on where negative."""
        self._go(self._back + lines)

    def action_scroll_pages(self, pages: int) -> None:
        """Go back by so many pages, or on where negative."""
        self._go(self._back + pages * max(self.size.height - 1, 1))

    def action_oldest(self) -> None:
        """Go to the oldest line."""
        self._go(len(self._entries))

    def action_newest(self) -> None:
        """Follow the newest line."""
        self._go(0)
