"""The base of every panel: rows of text as data, of which only what changed is painted."""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.dom import DOMNode
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from .rows import EMPTY, Row, Tone, changed_columns, clean, margins

FEW_COLOURS: dict[Tone, str] = {"error": "#ff5555", "warn": "#ffff55", "notice": "#55ffff", "good": "#00aa00"}
"""Where a terminal has 16 colours, those of its own: a theme's tints are pale, and the nearest to its red is grey."""
NATURAL_ROWS = 60
"""As many rows as a panel may ask for where its height is left to itself."""


class Panel(Widget, can_focus=True):
    """Shows rows of text; subclasses say which in `build`, and call `redraw` when their data changed.

    An update never lays out: it compares rows with what is on the screen and asks for a repaint of the columns that
    differ, so that nothing is sent when nothing changed. While its screen is covered a panel builds nothing.
    """

    ALLOW_SELECT = False

    DEFAULT_CSS = """
    Panel {
        width: 1fr;
        height: 1fr;
        border: round $foreground 25%;
        border-title-color: $foreground;
        border-title-style: bold;
        border-subtitle-color: $text-muted;
        &:focus { border: round $primary; }
        & > .panel--text { color: $foreground; }
        & > .panel--muted { color: $text-muted; }
        & > .panel--strong { color: $foreground; text-style: bold; }
        & > .panel--accent { color: $text-primary; text-style: bold; }
        & > .panel--good { color: $text-success; }
        & > .panel--notice { color: $text-secondary; }
        & > .panel--warn { color: $text-warning; text-style: bold; }
        & > .panel--error { color: $text-error; text-style: bold; }
        & > .panel--chart { color: $text-primary; }
        & > .panel--guide { color: $text-muted; }
        & > .panel--bar { color: $text-primary; }
        & > .panel--track { color: $foreground 30%; }
        & > .panel--part1 { color: $text-primary; }
        & > .panel--part2 { color: $text-success; }
        & > .panel--part3 { color: $text-secondary; }
        & > .panel--part4 { color: $text-muted; }
        & > .panel--cursor { text-style: reverse; }
        &:nocolor > .panel--warn, &:nocolor > .panel--error { color: $foreground; }
    }
    """

    TITLE: ClassVar[str] = ""
    """Stands in the border."""
    HELP: ClassVar[str | None] = None

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self.border_title = self.TITLE
        self._rows: tuple[Row, ...] = ()
        self._built_for: Size | None = None
        self._stale = True
        self._tones: dict[Tone, Style] = {}
        self._caption: dict[str, str] = {}

    def caption(self, *, title: str | None = None, subtitle: str | None = None) -> None:
        """Put text into the border; what stands there already is not set again, which would paint the whole panel."""
        for place, text in (("border_title", title), ("border_subtitle", subtitle)):
            if text is not None and self._caption.get(place) != text:
                self._caption[place] = text
                setattr(self, place, clean(text).replace("[", "\\["))

    def build(self, width: int, height: int) -> list[Row]:
        """The rows to show in `width` x `height` cells; what does not fit is cut."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Show the data as they are now; paints only what looks different."""
        if not self.is_attached or not self.size:
            return
        if not self._seen():
            if not self._stale:
                self._stale = True
                self.refresh()
            return
        if self._stale or self._built_for != self.size:
            self._stale = True
            self.refresh()
            return
        old = self._rows
        self._rows = new = self._build()
        regions = []
        for y in range(max(len(old), len(new))):
            columns = changed_columns(old[y] if y < len(old) else EMPTY, new[y] if y < len(new) else EMPTY)
            if columns is not None:
                regions.append(Region(columns[0], y, columns[1] - columns[0], 1))
        if regions:
            self.refresh(*regions)

    def _seen(self) -> bool:
        """Its screen is in front, or shines through what is in front of it."""
        front = self.app.screen
        return self.screen is front or (front.styles.background.a < 1 and self.screen.is_current)

    def _build(self) -> tuple[Row, ...]:
        width, height = self.size
        self._built_for = self.size
        self._stale = False
        inner = max(width - 2, 0)
        # The margin of a cell left and right is part of the row: padding in CSS would cost a style a row.
        rows = self.build(inner, height)[:height] if inner and height else []
        return tuple(margins(row, width) for row in rows)

    def render_lines(self, crop: Region) -> list[Strip]:
        """Strips of the visible part; rows that were not kept up to date while covered are built first."""
        if self._stale or self._built_for != self.size:
            self._rows = self._build()
            self._styles_cache.clear()
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """One row as a strip: a segment a span."""
        width = self.size.width
        row = self._rows[y] if y < len(self._rows) else EMPTY
        if not row:
            return Strip.blank(width, self.tone_style("text"))
        return Strip([Segment(clean(text), self.tone_style(tone)) for text, tone in row], width)

    def tone_style(self, tone: Tone) -> Style:
        """The style of a tone under the theme in force."""
        style = self._tones.get(tone)
        if style is None:
            # Not one of `COMPONENT_CLASSES`: Textual works out all of those, 17 here, for each panel and each time that
            # its own style changes, which was a third of the time to the first paint. A panel uses a few.
            part = DOMNode(classes=f"panel--{tone}")
            part._attach(self)
            self.app.stylesheet.apply(part)
            style = part.rich_style
            if tone in FEW_COLOURS and self.app.console.color_system == "standard" and not self.app.no_color:
                style += Style(color=FEW_COLOURS[tone])
            self._tones[tone] = style
        return style

    def notify_style_update(self) -> None:
        """Forget styles of the old theme."""
        self._tones.clear()
        super().notify_style_update()

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Rows that the panel would fill, where its height is left to itself."""
        return len(self.build(max(width - 2, 0), NATURAL_ROWS))
