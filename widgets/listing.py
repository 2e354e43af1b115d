"""A list with a cursor, and a page of rows that scrolls: what the screens of many things are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from .panel import Panel
from .rows import EMPTY, Line, Row, Span, Tone, fit, text_of, wrap

_MOVES: list[BindingType] = [
    Binding("up,k", "move(-1)", "Up", show=False),
    Binding("down,j", "move(1)", "Down", show=False),
    Binding("pageup", "page(-1)", "Page up", show=False),
    Binding("pagedown", "page(1)", "Page down", show=False),
    Binding("home", "move(-1000000)", "First", show=False),
    Binding("end", "move(1000000)", "Last", show=False),
]


class Picker(Panel):
    """Keyed items, a row each, one of them under the cursor, which stays on its item while others come and go."""

    BINDINGS: ClassVar[list[BindingType]] = _MOVES
    UNFOCUSED: ClassVar[Tone | None] = "strong"
    """How the row under the cursor looks while something else has the focus; None: like the others."""

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
        """The cursor is near the last item: more may be wanted."""

    def __init__(
        self, *, empty: str = "", name: str | None = None, id: str | None = None, classes: str | None = None
    ) -> None:
        """`empty` is what to say where there is no item."""
        super().__init__(name=name, id=id, classes=classes)
        self._keys: tuple[str, ...] = ()
        self._head: Callable[[int], Row] | None = None
        self._row: Callable[[str, int], Row] = lambda _key, _width: EMPTY
        self._empty = empty
        self._cursor = 0
        self._top = 0

    def _set(self, keys: Sequence[str], row: Callable[[str, int], Row], head: Callable[[int], Row] | None) -> None:
        before = self.chosen
        self._keys, self._row, self._head = tuple(keys), row, head
        self._put(self._keys.index(before) if before in self._keys else self._cursor)
        self.redraw()
        if self.chosen != before:
            self.post_message(self.Moved(self.chosen))
        self._tell_end()

    def _put(self, place: int) -> None:
        """Put the cursor there; the rows on the screen go with it no further than they must."""
        self._cursor = min(max(place, 0), max(len(self._keys) - 1, 0))
        if self.size.height:
            self._top = self._first(self.size.height)

    @property
    def chosen(self) -> str | None:
        """Key of the item under the cursor."""
        return self._keys[self._cursor] if self._keys else None

    @property
    def on_screen(self) -> tuple[str, ...]:
        """Keys of the items on the screen."""
        first = self._first(self.size.height)
        return self._keys[first : first + self._room(self.size.height)]

    def _room(self, height: int) -> int:
        return max(height - (self._head is not None), 1)

    def _first(self, height: int) -> int:
        """Place of the first item on a screen of this height."""
        room = self._room(height)
        return min(max(self._top, self._cursor - room + 1), self._cursor, max(len(self._keys) - room, 0))

    def build(self, width: int, height: int) -> list[Row]:
        """A heading and as many items as fit around the cursor."""
        if not self._keys:
            return [Line(width).add(self._empty, "muted").row()]
        first, room = self._first(height), self._room(height)
        rows = [self._head(width)] if self._head is not None else []
        for place, key in enumerate(self._keys[first : first + room], first):
            row = self._row(key, width)
            # Seen without colours as well.
            tone = ("cursor" if self.has_focus else self.UNFOCUSED) if place == self._cursor else None
            rows.append(row if tone is None else (Span(fit(text_of(row), width), tone),))
        return rows

    def _go(self, place: int) -> None:
        before = self._cursor
        self._put(place)
        if self._cursor != before:
            self.redraw()
            self.post_message(self.Moved(self.chosen))
        self._tell_end()

    def _tell_end(self) -> None:
        if self._keys and self._cursor + self._room(self.size.height) >= len(self._keys):
            self.post_message(self.Ended())

    def action_move(self, rows: int) -> None:
        """Move the cursor by so many items."""
        self._go(self._cursor + rows)

    def action_page(self, pages: int) -> None:
        """Move the cursor by so many pages."""
        self._go(self._cursor + pages * self._room(self.size.height))

    def action_choose(self) -> None:
        """Pick the item under the cursor."""
        if self.chosen is not None:
            self.post_message(self.Chosen(self.chosen))

    def watch_has_focus(self, has_focus: bool) -> None:
        """Show where the cursor is."""
        super().watch_has_focus(has_focus)
        self.redraw()

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the item that was clicked; a second click picks it."""
        offset = event.get_content_offset(self)
        row = -1 if offset is None else offset.y - (self._head is not None)
        if row < 0:
            return
        place = self._first(self.size.height) + row
        if place == self._cursor:
            self.action_choose()
        else:
            self._go(place)

    def on_mouse_scroll_down(self) -> None:
        """Move down."""
        self._go(self._cursor + 1)

    def on_mouse_scroll_up(self) -> None:
        """Move up."""
        self._go(self._cursor - 1)


class Listing(Picker):
    """A list of whatever its rows say."""

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
        self._empty = empty
        self._set(keys, row, head)


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

    def update(self, what: object, make: Callable[[int], Sequence[Row]]) -> None:
        """Show the rows that `make` gives for a width; another `what` starts at its top."""
        if what != self._what:
            self._what, self._top = what, 0
        self._make = make
        self.redraw()

    def build(self, width: int, height: int) -> list[Row]:
        """The rows from where it was scrolled to."""
        rows = list(self._make(width))
        top = min(self._top, max(len(rows) - height, 0))
        below = len(rows) - top - height
        shown = rows[top : top + height]
        if below > 0:
            hint = f": {self._hint}" if self._hint and not self.has_focus else ""
            shown[-1] = Line(width).add(f"▼ {below + 1} more lines{hint}", "muted").row()
        return shown

    def action_move(self, rows: int) -> None:
        """Scroll by so many rows."""
        last = max(len(self._make(max(self.size.width - 2, 0))) - self.size.height, 0)
        top = min(max(min(self._top, last) + rows, 0), last)
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
