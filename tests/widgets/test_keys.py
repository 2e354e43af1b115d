"""The keys at the bottom: none is cut, and the way out and to the others is always there."""

from __future__ import annotations

from typing import ClassVar

import pytest
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType

from chimera.widgets import KeyBar

from .screens import recorded, screen_text


class Keys(App[None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "a", "First of them"),
        Binding("b", "b", "Second of them", tooltip="What the second does"),
        Binding("c", "c", "Third of them"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("escape", "back", "Back"),
    ]

    def compose(self) -> ComposeResult:
        yield KeyBar()


class Pressed(Keys):
    def __init__(self) -> None:
        super().__init__()
        self.third = False
        self.done: list[str] = []

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.third if action == "c" else True

    def action_b(self) -> None:
        self.done.append("b")


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


async def test_a_click_presses_the_key_under_the_mouse_and_the_mouse_is_told_what_it_does() -> None:
    app = Pressed()
    async with app.run_test(size=(80, 3)) as pilot:
        await pilot.pause()
        bar = app.query_one(KeyBar)
        second = screen_text(app).splitlines()[-1].index("Second")
        await pilot.hover(KeyBar, offset=(second, 0))
        assert bar.tooltip == "What the second does"
        await pilot.click(KeyBar, offset=(second, 0))
        await pilot.click(KeyBar, offset=(79, 0))
        await pilot.pause()
        assert app.done == ["b"]
        await pilot.hover(KeyBar, offset=(79, 0))
        assert bar.tooltip is None


async def test_a_key_comes_with_its_action_and_nothing_is_painted_where_none_has_changed() -> None:
    app = Pressed()
    async with app.run_test(size=(80, 3)) as pilot:
        await pilot.pause()
        assert "Third" not in screen_text(app)
        painted = recorded(app.query_one(KeyBar), "render_line")
        app.refresh_bindings()
        await pilot.pause()
        assert painted == []
        app.third = True
        app.refresh_bindings()
        await pilot.pause()
        assert "c Third of them" in screen_text(app)
