"""The keys at the bottom: as many as the terminal has room for, none of them cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

from rich.segment import Segment
from textual import events
from textual.strip import Strip
from textual.widget import Widget

from .rows import cells

if TYPE_CHECKING:
    from textual.screen import Screen

ALWAYS = frozenset({"question_mark", "escape"})
"""Keys that have the first claim on the room: the way out, and the page that lists all others."""


class Key(NamedTuple):
    """One of them."""

    key: str
    display: str
    does: str
    about: str

    @property
    def width(self) -> int:
        """Columns that it takes, with the blank behind it."""
        return cells(self.display) + cells(self.does) + 2


class KeyBar(Widget):
    """Leaves out what does not fit: first what stands last, which the app's own keys do.

    Textual's footer is a widget for each key, all made anew when any of them changes, and comes after the first paint.
    """

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {"keybar--key", "keybar--text"}
    DEFAULT_CSS = """
    KeyBar {
        dock: bottom;
        height: 1;
        background: $footer-background;
        & > .keybar--key { color: $footer-key-foreground; background: $footer-key-background; text-style: bold; }
        & > .keybar--text { color: $footer-description-foreground; background: $footer-description-background; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: list[Key] = []

    def on_mount(self) -> None:
        """Hear of other keys."""
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def on_unmount(self) -> None:
        """Hear no more of them."""
        self.screen.bindings_updated_signal.unsubscribe(self)

    def _changed(self, screen: Screen[object]) -> None:
        if self._fitting() != self._shown:
            self.refresh()

    def _fitting(self) -> list[Key]:
        """The keys in force for which there is room; of several for one action the first."""
        by_action: dict[str, Key] = {}
        for active in self.screen.active_bindings.values():
            bound = active.binding
            if bound.show and bound.action not in by_action:
                shown = self.app.get_key_display(bound)
                by_action[bound.action] = Key(bound.key, shown, bound.description, active.tooltip)
        keys = list(by_action.values())
        room = self.size.width - sum(one.width for one in keys if one.key in ALWAYS)
        fitting = []
        for one in keys:
            if one.key not in ALWAYS:
                room -= one.width
            if one.key in ALWAYS or room >= 0:
                fitting.append(one)
        return fitting

    def render_line(self, y: int) -> Strip:
        """The one line that it is."""
        self._shown = self._fitting()
        key, text = (self.get_component_rich_style(f"keybar--{part}") for part in ("key", "text"))
        segments = [
            piece
            for one in self._shown
            for piece in (Segment(one.display, key), Segment(f" {one.does}", text), Segment(" ", self.rich_style))
        ]
        return Strip(segments).adjust_cell_length(self.size.width, self.rich_style)

    def _under(self, x: int) -> Key | None:
        """The key in a column."""
        for one in self._shown:
            if 0 <= x < one.width - 1:
                return one
            x -= one.width
        return None

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Tell what the key under the mouse does."""
        key = self._under(event.x)
        about = key.about if key is not None else None
        if about != self.tooltip:
            self.tooltip = about

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """A click presses a key."""
        key = self._under(event.x)
        if key is not None:
            self.app.simulate_key(key.key)
