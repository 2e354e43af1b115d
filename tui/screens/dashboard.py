"""The dashboard: what goes on now, at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.screen import Screen

from chimera.widgets.chart import zoom
from chimera.widgets.findings import FindingsPanel
from chimera.widgets.gpu import GpuPanel
from chimera.widgets.host import HostPanel
from chimera.widgets.keys import KeyBar
from chimera.widgets.lanes import LanesPanel
from chimera.widgets.log import EventLog
from chimera.widgets.progress import RunPanel
from chimera.widgets.server import ServerPanel
from chimera.widgets.throughput import ThroughputPanel
from chimera.widgets.trends import TRENDS, TrendChart, readings
from chimera.widgets.ttft import TtftPanel

if TYPE_CHECKING:
    from chimera.domain.telemetry import Snapshot
    from chimera.telemetry.alerts import Mark

    from ..state import LiveState

LETTERS = {"alert": "A", "model": "L", "load": "L", "preset": "P", "run": "R"}
CPU = next(index for index, trend in enumerate(TRENDS) if trend.key == "cpu")
HINT = "1-5 run the guide's presets, 6-9 your own; ? helps"


class Dashboard(Screen[None]):
    """Panels over the live state; they repaint what changed and nothing else."""

    AUTO_FOCUS = ""  # every key means what the footer says
    ALLOW_IN_MAXIMIZED_VIEW = "KeyBar"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f", "freeze", "Freeze", show=False, tooltip="Charts stand still; readings go on"),
        Binding("plus,equals_sign", "zoom(1)", "Longer", show=False, tooltip="The charts show a longer time"),
        Binding("minus", "zoom(-1)", "Shorter", show=False, tooltip="The charts show a shorter time"),
        Binding("c", "course", "Chart", show=False, tooltip="What the second chart shows"),
        Binding("z", "maximise", "Maximise", show=False, tooltip="The focused panel, or the chart, fills the screen"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._shown = 0.0
        """When the snapshot was taken that is on the screen; there are more paints than snapshots."""
        self._chosen = False
        """What the second chart shows has been decided."""
        self._ttft: object = None
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide"), (160, "-broad")]
        self.VERTICAL_BREAKPOINTS = [(0, "-low"), (32, "-high")]

    def compose(self) -> ComposeResult:
        """Rows of panels, by width and height of the terminal."""
        epoch: float = self.app.state.epoch  # type: ignore[attr-defined]  # the app is ChimeraApp
        with Horizontal(id="speed"):
            yield ThroughputPanel(id="throughput", epoch=epoch)
            yield TrendChart(id="trend", epoch=epoch)
            yield TtftPanel(id="ttft")
            yield LanesPanel(id="lanes")
        with Horizontal(id="machine"):
            yield GpuPanel(id="gpu")
            yield HostPanel(id="host")
            yield ServerPanel(id="server")
        with Horizontal(id="work"):
            yield RunPanel(id="run", hint=HINT)
            yield EventLog(id="log")
        yield FindingsPanel(id="findings")
        yield KeyBar()

    @property
    def has_panels(self) -> bool:
        """Its panels are there: a message may come between the screen's mounting and theirs."""
        return len(self.query("#throughput, #log, #run, #host")) == 4

    def paint(self, state: LiveState, now: float) -> None:
        """Show the newest of everything; a panel whose rows did not change sends nothing."""
        update, snapshot = state.update, state.snapshot
        rate, label = state.rate()
        self.query_one("#throughput", ThroughputPanel).update(
            now, rate, label=label, rates=state.rates(), roof=state.roof
        )
        others = state.others_ttft()
        self.query_one("#ttft", TtftPanel).update(state.measurements, others)
        self._agents(state)
        if snapshot is not None and snapshot.at != self._shown:
            self._shown = snapshot.at
            self.query_one("#gpu", GpuPanel).update(snapshot.gpus, state.parts)
            self.query_one("#host", HostPanel).update(snapshot.host)
            self._course(state, snapshot)
        for mark in state.new_marks():
            self._mark(mark, state.epoch)
        count = len(state.book.alerts)
        subtitle = f"▲ {count} alert{'s' if count > 1 else ''}: l" if count else ""
        self.query_one("#log", EventLog).caption(subtitle=subtitle)
        self.query_one("#server", ServerPanel).update(
            state.server,
            state.model,
            effective=state.effective,
            sample=state.seen,
            problem=state.problem,
        )
        found = update.findings if update is not None else None
        self.set_class(bool(found), "-sick")
        if found is not None:
            self.query_one("#findings", FindingsPanel).update(found)
        valid, cold, voids = state.counts()
        self.query_one("#run", RunPanel).update(
            update.run if update else None,
            update.progress if update else None,
            effective=update.effective if update else None,
            valid=valid,
            cold=cold,
            voids=voids,
        )

    def _agents(self, state: LiveState) -> None:
        """A lane for each agent in place of the last requests, while several are at work."""
        several = state.running and state.update is not None and state.update.run.workload.agents > 1
        if several is not self.has_class("-agents"):
            self.set_class(several, "-agents")
        if several:
            lanes = state.progress.lanes if state.progress is not None else ()
            self.query_one("#lanes", LanesPanel).update(lanes, state.update.run.workload.output_tokens)  # type: ignore[union-attr]  # there is a run

    def log_line(self, text: str, *, at: float, level: str) -> None:
        """A line for the log."""
        severity = {"warn": "warn", "error": "error", "notice": "notice"}.get(level, "info")
        self.query_one("#log", EventLog).write(text, at=at, severity=severity)  # type: ignore[arg-type]  # one of the four

    @property
    def _charts(self) -> tuple[ThroughputPanel, TrendChart]:
        return self.query_one("#throughput", ThroughputPanel), self.query_one("#trend", TrendChart)

    def _course(self, state: LiveState, snapshot: Snapshot) -> None:
        """Feed the second chart."""
        trend = self.query_one("#trend", TrendChart)
        if not self._chosen:
            # Without a GPU there is nothing to see in its curves.
            self._chosen = True
            trend.show(0 if snapshot.gpus.infos else CPU)
        values = readings(snapshot)
        # A time to first token is a point of its own, drawn once.
        ttft = len(state.measurements), state.others_ttft()
        if ttft != self._ttft:
            last = state.measurements[-1].ttft_s if state.measurements else None
            seconds = ttft[1][0] if ttft[1] is not None else last
            values["ttft"] = None if seconds is None else seconds * 1000
            self._ttft = ttft
        trend.feed(snapshot.at, values, gpus=sum(info.parent is None for info in snapshot.gpus.infos))

    def _mark(self, mark: Mark, epoch: float) -> None:
        """Draw a moment on the charts, and say in the log what it is."""
        letter = "U" if mark.text.endswith("unloaded") else LETTERS.get(mark.kind, "?")
        for chart in self._charts:
            chart.mark(mark.at, letter)
        if mark.kind == "model":
            self.log_line(mark.text, at=epoch + mark.at, level="info")

    def action_freeze(self) -> None:
        """Freeze or thaw the charts."""
        on = not self._charts[0].frozen
        for chart in self._charts:
            chart.frozen = on

    def action_zoom(self, steps: int) -> None:
        """Change the time that the charts show."""
        window_s = zoom(self._charts[0].window_s, steps)
        for chart in self._charts:
            chart.window_s = window_s

    def action_course(self) -> None:
        """Show the next reading; where there is room for one chart beside the first, requests take their turn."""
        trend = self.query_one("#trend", TrendChart)
        self._chosen = True
        if not (self.has_class("-broad") or self.has_class("-course")):
            self.add_class("-course")
            return
        following = (trend.shown + 1) % len(TRENDS)
        trend.show(following)
        if following == 0:
            self.remove_class("-course")

    def action_maximise(self) -> None:
        """The focused panel fills the screen, or goes back."""
        if self.maximized is not None:
            self.minimize()
        else:
            self.maximize(self.focused or self._charts[0])
