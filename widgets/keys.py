"""The keys at the bottom: as many as the terminal has room for, none of them cut."""

from __future__ import annotations

from textual import events
from textual.app import ComposeResult
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

from .rows import cells

ALWAYS = frozenset({"question_mark", "escape"})
"""Keys that have the first claim on the room: the way out, and the page that lists all others."""


class KeyBar(Footer):
    """A footer that leaves out what does not fit: first what stands last, which the app's own keys do."""

    def __init__(self) -> None:
        super().__init__(show_command_palette=False, compact=True)
        self._wide = 0

    def compose(self) -> ComposeResult:
        """The keys in force."""
        self._wide = self.app.size.width
        keys = [one for one in super().compose() if isinstance(one, FooterKey)]
        room = self._wide - sum(_width(one) for one in keys if one.key.split(",")[0] in ALWAYS)
        for one in keys:
            if one.key.split(",")[0] not in ALWAYS:
                room -= _width(one)
                if room < 0:
                    continue
            yield one

    async def on_resize(self, event: events.Resize) -> None:
        """Another width has room for others."""
        if self._wide and self.app.size.width != self._wide:
            await self.recompose()


def _width(key: FooterKey) -> int:
    return cells(key.key_display) + cells(key.description) + 2
