"""What went wrong, also while nobody looked: each thing stays until it is acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType

from chimera.telemetry.alerts import Alert

from . import format
from .panel import Panel
from .rows import Line, Row, Tone

SIGNS: dict[str, tuple[str, Tone]] = {
    "info": ("  ", "muted"),
    "notice": ("• ", "notice"),
    "warning": ("▲ ", "warn"),
    "error": ("! ", "error"),
}


class AlertsPanel(Panel):
    """The alerts, what holds now first; one of them is under the cursor."""

    TITLE = "Alerts"
    HELP: ClassVar[str | None] = """\
## Alerts

What went wrong since this screen was opened: slowed clocks, a lost GPU, errors that the driver reports, full memory,
strangers on the GPU. An alert stays until you take note of it, also when it is long over.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
    ]

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._alerts: tuple[Alert, ...] = ()
        self._epoch = 0.0
        self._at = ""

    def update(self, alerts: Sequence[Alert], epoch: float) -> None:
        """Show these alerts; `epoch` is the wall clock at 0 on their clock."""
        self._alerts, self._epoch = tuple(alerts), epoch
        self.redraw()

    @property
    def chosen(self) -> str | None:
        """Key of the alert under the cursor."""
        return self._alerts[self._index].key if self._alerts else None

    @property
    def _index(self) -> int:
        # The cursor stays on its alert while the order changes.
        return next((index for index, alert in enumerate(self._alerts) if alert.key == self._at), 0)

    def build(self, width: int, height: int) -> list[Row]:
        """Two lines an alert: what, and when, how long, how bad, how often."""
        if not self._alerts:
            return [Line(width).add("Nothing has gone wrong since this screen was opened", "muted").row()]
        fit = max(height // 2, 1)
        first = max(min(self._index - fit + 1, len(self._alerts) - fit), 0)
        rows = [row for alert in self._alerts[first : first + fit] for row in self._rows_of(alert, width)]
        rest = len(self._alerts) - first - fit
        if rest > 0 and height > 2 * fit:
            rows.append(Line(width).add(f"  {rest} more below", "muted").row())
        return rows

    def _rows_of(self, alert: Alert, width: int) -> tuple[Row, Row]:
        sign, tone = SIGNS[alert.severity]
        here = alert.key == self.chosen
        head = Line(width).add("› " if here else "  ", "accent").add(sign, tone)
        if alert.acknowledged:
            state, state_tone = "noted, holds on", "muted"
        else:
            state, state_tone = ("holds now", tone) if alert.active else ("over", "muted")
        head.add(alert.title, "strong" if here else "text", max(width - len(state) - 6, 10))
        head.end(state, state_tone)  # type: ignore[arg-type]  # both branches give a tone
        begun, last = (format.clock(self._epoch + at) for at in (alert.first, alert.last))
        facts = [begun if begun == last else f"{begun} – {last}"]
        if alert.total_s >= 0.5:
            facts.append(f"{format.duration(alert.total_s)} in all")
        elif alert.total_s > 0:
            facts.append(f"{format.seconds(alert.total_s)} in all")
        if alert.worst is not None:
            facts.append(f"worst {alert.worst:.0f} {alert.unit}")
        if alert.count > 1:
            facts.append(f"{alert.count} times")
        return head.row(), Line(width).add("    " + " · ".join(facts), "muted").row()

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        if self._alerts:
            self._at = self._alerts[min(max(self._index + by, 0), len(self._alerts) - 1)].key
            self.redraw()
