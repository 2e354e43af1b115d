"""The keys at the bottom: none is cut, and the way out and to the others is always there."""

from __future__ import annotations

from typing import ClassVar

import pytest
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType

from chimera.widgets import KeyBar

from .screens import screen_text


class Keys(App[None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "a", "First of them"),
        Binding("b", "b", "Second of them"),
        Binding("c", "c", "Third of them"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("escape", "back", "Back"),
    ]

    def compose(self) -> ComposeResult:
        yield KeyBar()


@pytest.mark.parametrize("width", range(20, 80, 3))
async def test_a_key_is_there_whole_or_not_at_all(width: int) -> None:
    app = Keys()
    async with app.run_test(size=(width, 3)) as pilot:
        await pilot.pause()
        line = screen_text(app).splitlines()[-1]
        assert "? Help" in line
        assert "esc Back" in line
        left = line
        for whole in ("a First of them", "b Second of them", "c Third of them", "? Help", "esc Back"):
            left = left.replace(whole, "")
        assert not left.strip(), f"{left.strip()!r} is a piece of a key"


async def test_a_wider_terminal_shows_more_of_them() -> None:
    app = Keys()
    async with app.run_test(size=(40, 3)) as pilot:
        await pilot.pause()
        assert "Third" not in screen_text(app)
        await pilot.resize_terminal(100, 3)
        await pilot.pause()
        assert "c Third of them" in screen_text(app)
        await pilot.resize_terminal(40, 3)
        await pilot.pause()
        assert "Third" not in screen_text(app)
