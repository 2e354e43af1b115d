"""A screen as plain text, for snapshots whose difference reads like the screen, and what it costs to paint."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode
from textual._compositor import CompositorUpdate
from textual.app import App, ComposeResult
from textual.screen import Screen
from textual.widget import Widget


class ScreenText(SingleFileSnapshotExtension):
    """Keeps a screen as plain text, one file a test."""

    file_extension = "txt"
    _write_mode = WriteMode.TEXT


def screen_text(app: App[Any]) -> str:
    """What the screen shows, without colours."""
    strips = app.screen._compositor.render_strips()  # private: this is the one place that needs it
    return "\n".join(strip.text.rstrip() for strip in strips) + "\n"


def recorded(target: object, method: str) -> list[tuple[object, ...]]:
    """The arguments of every later call of a method, which still does its work."""
    calls: list[tuple[object, ...]] = []
    real = getattr(target, method)

    def record(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return real(*args, **kwargs)

    setattr(target, method, record)
    return calls


class Counting(App[None]):
    """Counts what would be written to a terminal, which a headless app does not write."""

    written = 0
    last_write = ""

    def _display(self, screen: Screen[object], renderable: RenderableType | None) -> None:
        super()._display(screen, renderable)
        if isinstance(renderable, CompositorUpdate):
            self.last_write = renderable.render_segments(self.console)
            self.written += len(self.last_write.encode())


class Alone(Counting):
    """One panel that fills the screen."""

    AUTO_FOCUS = None

    def __init__(self, panel: Widget) -> None:
        super().__init__()
        self.panel = panel

    def compose(self) -> ComposeResult:
        yield self.panel
