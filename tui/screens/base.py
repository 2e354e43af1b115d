"""What all screens of this app have in common."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.message import Message
from textual.screen import Screen
from textual.worker import Worker

from ..messages import Told

if TYPE_CHECKING:
    from ..app import ChimeraApp
    from ..feeds import Post
    from ..state import LiveState


class AppScreen(Screen[None]):
    """A screen over the live state, with threads that may outlive it."""

    PANELS: ClassVar[tuple[str, ...]] = ()
    """What it paints, as CSS names it."""

    def __init__(self, state: LiveState) -> None:
        super().__init__()
        self._state = state

    @property
    def chimera(self) -> ChimeraApp:
        """The app, by its own type."""
        from ..app import ChimeraApp

        assert isinstance(self.app, ChimeraApp)
        return self.app

    @property
    def has_panels(self) -> bool:
        """Its panels are there: a message may come between the screen's mounting and theirs, or after their end."""
        return all(self.query(panel) for panel in self.PANELS)

    @on(Worker.StateChanged)
    def _worker_changed(self, event: Worker.StateChanged) -> None:
        self.chimera.worker_changed(event)

    def folder(self) -> Path | None:
        """Where files are written, the current folder; None where it was deleted, which is then said."""
        try:
            return Path.cwd()
        except OSError:
            self.notify("The folder that Chimera was started in is gone: no file can be written.", severity="warning")
            return None

    def poster(self) -> Post:
        """What a thread of this screen tells it with, which also works when the screen, or the app, has gone."""
        # Taken now: a screen that has gone finds no way up to the app any more.
        tell = self.chimera.post

        def post(message: Message) -> None:
            if isinstance(message, Told):
                tell(message)
            elif self.is_attached:
                with suppress(RuntimeError):
                    self.post_message(message)

        return post
