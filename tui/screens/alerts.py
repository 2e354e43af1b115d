"""What went wrong while nobody looked, to be taken note of."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from chimera.widgets.alerts import AlertsPanel

if TYPE_CHECKING:
    from ..state import LiveState


class Alerts(ModalScreen[None]):
    """The alerts over the dashboard."""

    DEFAULT_CSS = """
    Alerts { align: center middle; }
    Alerts > AlertsPanel {
        width: 96; max-width: 96%; height: 24; max-height: 90%; background: $surface;
        &:focus { border: round $accent; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,n", "note", "Noted"),
        Binding("N", "note_all", "All noted"),
        Binding("escape,l,q", "leave", "Back"),
    ]

    def __init__(self, state: LiveState) -> None:
        super().__init__()
        self._state = state

    def compose(self) -> ComposeResult:
        """One panel."""
        yield AlertsPanel(id="alerts")

    def on_mount(self) -> None:
        """Show what there is at once."""
        panel = self.query_one(AlertsPanel)
        panel.border_subtitle = "↑↓ move · n noted · N all noted · esc leaves"
        panel.focus()
        self.paint(self._state, 0.0)

    def paint(self, state: LiveState, now: float) -> None:
        """Show the newest of everything."""
        self.query_one(AlertsPanel).update(state.book.alerts, state.epoch)

    def action_note(self) -> None:
        """Take note of the one under the cursor."""
        chosen = self.query_one(AlertsPanel).chosen
        if chosen is not None:
            self._state.book.acknowledge(chosen)
        self.paint(self._state, 0.0)

    def action_note_all(self) -> None:
        """Take note of all."""
        self._state.book.acknowledge()
        self.paint(self._state, 0.0)

    def action_leave(self) -> None:
        """Close it."""
        self.dismiss()
