"""A list with a cursor, and a page of rows that scrolls: what the screens of many things are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from .panel import Panel
from .rows import EMPTY, Line, Row, Span, fit, text_of, wrap

_MOVES: list[BindingType] = [
    Binding("up,k", "move(-1)", "Up", show=False),
    Binding("down,j", "move(1)", "Down", show=False),
    Binding("pageup", "page(-1)", "Page up", show=False),
    Binding("pagedown", "page(1)", "Page down", show=False),
    Binding("home", "move(-1000000)", "First", show=False),
    Binding("end", "move(1000000)", "Last", show=False),
]


class Listing(Panel):
    """Keyed items, a row each, one of them under the cursor, which stays on its item while others come and go."""

    BINDINGS: ClassVar[list[BindingType]] = _MOVES

    class Moved(Message):
        """Another item is under the cursor; None where there is no item."""

        def __init__(self, key: str | None) -> None:
            super().__init__()
            self.key = key

    class Chosen(Message):
        """The item under the cursor was clicked. Keys that pick one are the screen's, which shows them."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class Ended(Message):
        """The cursor has come near the last item: more may be wanted."""

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._keys: tuple[str, ...] = ()
        self._head: Callable[[int], Row] | None = None
        self._row: Callable[[str, int], Row] = lambda _key, _width: EMPTY
        self._empty = ""
        self._cursor = 0
        self._top = 0

    def update(
        self,
        keys: Sequence[str],
        row: Callable[[str, int], Row],
        *,
        head: Callable[[int], Row] | None = None,
        empty: str = "",
    ) -> None:
        """Show these items.

        Args:
            keys: What names each item, in their order.
            row: The row of an item in so many columns; asked for visible items only.
            head: The heading in so many columns.
            empty: What to say where there is none.
        """
        before = self.chosen
        self._keys, self._row, self._head, self._empty = tuple(keys), row, head, empty
        place = self._keys.index(before) if before in self._keys else min(self._cursor, max(len(self._keys) - 1, 0))
        self._cursor = place
        self.redraw()
        if self.chosen != before:
            self.post_message(self.Moved(self.chosen))

    @property
    def chosen(self) -> str | None:
        """Key of the item under the cursor."""
        return self._keys[self._cursor] if self._keys else None

    @property
    def on_screen(self) -> tuple[str, ...]:
        """Keys of the items on the screen."""
        return self._keys[self._top : self._top + self._room(self.size.height)]

    def _room(self, height: int) -> int:
        return max(height - (self._head is not None), 1)

    def build(self, width: int, height: int) -> list[Row]:
        """A heading and as many items as fit around the cursor."""
        if not self._keys:
            return [Line(width).add(self._empty, "muted").row()]
        room = self._room(height)
        self._top = min(max(self._top, self._cursor - room + 1), self._cursor, max(len(self._keys) - room, 0))
        rows = [self._head(width)] if self._head is not None else []
        for place, key in enumerate(self._keys[self._top : self._top + room], self._top):
            row = self._row(key, width)
            if place == self._cursor:
                # Seen without colours as well; a list that has not the focus keeps its place in plain sight.
                row = (Span(fit(text_of(row), width), "cursor" if self.has_focus else "strong"),)
            rows.append(row)
        return rows

    def _go(self, place: int) -> None:
        place = min(max(place, 0), max(len(self._keys) - 1, 0))
        if place != self._cursor and self._keys:
            self._cursor = place
            self.redraw()
            self.post_message(self.Moved(self._keys[place]))
            if place + self._room(self.size.height) >= len(self._keys):
                self.post_message(self.Ended())

    def action_move(self, rows: int) -> None:
        """Move the cursor by so many items."""
        self._go(self._cursor + rows)

    def action_page(self, pages: int) -> None:
        """Move the cursor by so many pages."""
        self._go(self._cursor + pages * self._room(self.size.height))

    def watch_has_focus(self, has_focus: bool) -> None:
        """Show where the cursor is."""
        super().watch_has_focus(has_focus)
        self.redraw()

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the item that was clicked; a second click picks it."""
        offset = event.get_content_offset(self)
        place = -1 if offset is None else self._top + offset.y - (self._head is not None)
        if offset is None or place < self._top:
            return
        if place == self._cursor and self.chosen is not None:
            self.post_message(self.Chosen(self.chosen))
        else:
            self._go(place)

    def on_mouse_scroll_down(self) -> None:
        """Move down."""
        self._go(self._cursor + 1)

    def on_mouse_scroll_up(self) -> None:
        """Move up."""
        self._go(self._cursor - 1)


class Page(Panel):
    """Rows that were made for its width; those that do not fit are reached by scrolling."""

    BINDINGS: ClassVar[list[BindingType]] = _MOVES

    def __init__(
        self, *, hint: str = "", name: str | None = None, id: str | None = None, classes: str | None = None
    ) -> None:
        """`hint` says how to scroll while something else has the focus."""
        super().__init__(name=name, id=id, classes=classes)
        self._hint = hint
        self._make: Callable[[int], Sequence[Row]] = lambda _width: ()
        self._what: object = None
        self._top = 0
        self._count = 0

    def update(self, what: object, make: Callable[[int], Sequence[Row]]) -> None:
        """Show the rows that `make` gives for a width; another `what` starts at its top."""
        if what != self._what:
            self._what, self._top = what, 0
        self._make = make
        self.redraw()

    def build(self, width: int, height: int) -> list[Row]:
        """The rows from where it was scrolled to."""
        rows = list(self._make(width))
        self._count = len(rows)
        self._top = min(self._top, max(len(rows) - height, 0))
        below = len(rows) - self._top - height
        shown = rows[self._top : self._top + height]
        if below > 0:
            hint = f": {self._hint}" if self._hint and not self.has_focus else ""
            shown[-1] = Line(width).add(f"▼ {below + 1} more lines{hint}", "muted").row()
        return shown

    def action_move(self, rows: int) -> None:
        """Scroll by so many rows."""
        top = min(max(self._top + rows, 0), max(self._count - self.size.height, 0))
        if top != self._top:
            self._top = top
            self.redraw()

    def action_page(self, pages: int) -> None:
        """Scroll by so many pages."""
        self.action_move(pages * max(self.size.height - 1, 1))

    def watch_has_focus(self, has_focus: bool) -> None:
        """Say how to scroll, or not."""
        super().watch_has_focus(has_focus)
        self.redraw()

    def on_mouse_scroll_down(self) -> None:
        """Scroll down."""
        self.action_move(2)

    def on_mouse_scroll_up(self) -> None:
        """Scroll up."""
        self.action_move(-2)


def facts(pairs: Sequence[tuple[str, str]], width: int, label: int = 10) -> list[Row]:
    """Labelled sentences, each broken between its words; an empty label goes on with the one before."""
    rows = []
    for name, text in pairs:
        if text:
            for number, line in enumerate(wrap(text, max(width - label, 10), 40)):
                rows.append(Line(width).add("" if number else name, "muted", label).add(line).row())
    return rows
