"""The dashboard: what goes on now, at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.screen import Screen
from textual.widgets import Footer

from chimera.widgets.chart import zoom
from chimera.widgets.gpu import GpuPanel
from chimera.widgets.host import HostPanel
from chimera.widgets.log import EventLog
from chimera.widgets.progress import RunPanel
from chimera.widgets.server import ServerPanel
from chimera.widgets.throughput import ThroughputPanel
from chimera.widgets.ttft import TtftPanel

if TYPE_CHECKING:
    from ..state import LiveState

HINT = "1-5 run the guide's presets, 6-9 your own; ? helps"


class Dashboard(Screen[None]):
    """Panels over the live state; they repaint what changed and nothing else."""

    CSS_PATH = "dashboard.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f", "freeze", "Freeze", tooltip="Charts stand still; readings go on"),
        Binding("plus,equals_sign", "zoom(1)", "Longer", show=False, tooltip="The charts show a longer time"),
        Binding("minus", "zoom(-1)", "Shorter", show=False, tooltip="The charts show a shorter time"),
        Binding("z", "maximise", "Maximise", show=False, tooltip="The focused panel fills the screen"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide"), (160, "-broad")]
        self.VERTICAL_BREAKPOINTS = [(0, "-low"), (32, "-high")]

    def compose(self) -> ComposeResult:
        """Rows of panels, by width and height of the terminal."""
        with Horizontal(id="speed"):
            yield ThroughputPanel(id="throughput")
            yield TtftPanel(id="ttft")
        with Horizontal(id="machine"):
            yield GpuPanel(id="gpu")
            yield HostPanel(id="host")
            yield ServerPanel(id="server")
        with Horizontal(id="work"):
            yield RunPanel(id="run", hint=HINT)
            yield EventLog(id="log")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Nothing has the focus, so that every key means what the footer says."""
        self.set_focus(None)

    def paint(self, state: LiveState, now: float) -> None:
        """Show the newest of everything; a panel whose rows did not change sends nothing."""
        update, snapshot = state.update, state.snapshot
        rate, label = state.rate()
        self.query_one("#throughput", ThroughputPanel).update(now, rate, label=label, rates=state.rates())
        self.query_one("#ttft", TtftPanel).update(state.measurements)
        if snapshot is not None:
            self.query_one("#gpu", GpuPanel).update(snapshot.gpus)
            self.query_one("#host", HostPanel).update(snapshot.host)
        self.query_one("#server", ServerPanel).update(
            state.server,
            state.model,
            effective=state.effective,
            sample=snapshot.server if snapshot else None,
            problem=state.problem,
        )
        valid, cold, voids = state.counts()
        self.query_one("#run", RunPanel).update(
            update.run if update else None,
            update.progress if update else None,
            effective=update.effective if update else None,
            valid=valid,
            cold=cold,
            voids=voids,
        )

    def log_line(self, text: str, *, at: float, level: str) -> None:
        """A line for the log."""
        severity = {"warn": "warn", "error": "error", "notice": "notice"}.get(level, "info")
        self.query_one("#log", EventLog).write(text, at=at, severity=severity)  # type: ignore[arg-type]

    def other_run(self) -> None:
        """Another run is shown from now on."""
        self.query_one("#throughput", ThroughputPanel).clear()

    def mark(self, now: float, letter: str) -> None:
        """Mark a moment on the charts."""
        self.query_one("#throughput", ThroughputPanel).mark(now, letter)

    def action_freeze(self) -> None:
        """Freeze or thaw the charts."""
        panel = self.query_one("#throughput", ThroughputPanel)
        panel.frozen = not panel.frozen

    def action_zoom(self, steps: int) -> None:
        """Change the time that the charts show."""
        panel = self.query_one("#throughput", ThroughputPanel)
        panel.window_s = zoom(panel.window_s, steps)

    def action_maximise(self) -> None:
        """The focused panel fills the screen, or goes back."""
        if self.maximized is not None:
            self.minimize()
        elif self.focused is not None:
            self.maximize(self.focused)
