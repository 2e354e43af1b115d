"""What all screens of this app have in common."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from textual.message import Message
from textual.screen import Screen

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
