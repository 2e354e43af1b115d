"""All panels on one screen, moved by one call a tick: what the tests look at and the benchmark measures."""

from __future__ import annotations

from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical

from chimera.widgets import (
    EventLog,
    FindingsPanel,
    GpuPanel,
    HostPanel,
    RunPanel,
    ServerPanel,
    ThroughputPanel,
    TtftPanel,
)

from . import data


class Board(App[None]):
    """A dashboard without any logic."""

    AUTO_FOCUS = None
    BINDINGS: ClassVar[list[BindingType]] = [("q", "quit", "Quit")]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - Textual declares it so
    CSS = """
    #top, #middle, #bottom { height: 1fr; }
    #top { height: 15; }
    #bottom { height: 10; }
    .column { width: 1fr; }
    .-narrow #top { height: 1fr; }
    .-narrow #middle { height: 12; }
    .-narrow #bottom { display: none; }
    """

    def __init__(self, gpu_count: int = 1, interval: float | None = None, still: bool = False) -> None:
        super().__init__()
        self.gpu_count = gpu_count
        self.interval = interval
        self.still = still
        self.now = 0.0

    def compose(self) -> ComposeResult:
        with Horizontal(id="top"):
            yield ThroughputPanel(id="throughput", window_s=120)
            yield GpuPanel(id="gpu")
        with Horizontal(id="middle"):
            with Vertical(classes="column"):
                yield RunPanel(id="run", hint="1-5 start a preset")
                yield FindingsPanel(id="findings")
            with Vertical(classes="column"):
                yield TtftPanel(id="ttft")
        with Horizontal(id="bottom"):
            yield ServerPanel(id="server")
            yield HostPanel(id="host")
            yield EventLog(id="log")

    def on_mount(self) -> None:
        for index in range(60):
            self.query_one(ThroughputPanel).plot.append(
                100.0 + index - 60, None if 20 <= index < 28 else data.wave(index, 96, 99)
            )
        self.query_one(ThroughputPanel).mark(100.0 - 40, "a")
        self.query_one(FindingsPanel).update(data.FINDINGS)
        log = self.query_one(EventLog)
        log.write("Ollama 0.33.0 answered at http://127.0.0.1:11434", at=data.WALL - 125)
        log.write("run k7f2 started: single-agent", at=data.WALL - 90, severity="notice")
        log.write("request 4 is void: cache-hit", at=data.WALL - 30, severity="warn")
        log.write("GPU 0 slows down because of heat", at=data.WALL - 12, severity="error")
        self.tick()
        if self.interval:
            self.set_interval(self.interval, self.step)

    def step(self) -> None:
        """A second later."""
        self.now += 0 if self.still else 1
        self.tick()

    def tick(self) -> None:
        """Give every panel the data of the moment."""
        now = self.now
        self.query_one(GpuPanel).update(data.gpus(self.gpu_count, now), data.PARTS if self.gpu_count == 1 else None)
        self.query_one(HostPanel).update(data.host(now))
        self.query_one(ThroughputPanel).update(
            100.0 + now, data.wave(now, 96, 99), label="this request, server's clock",
            rates=[each.rate for each in data.MEASUREMENTS if each.valid and each.rate is not None],
            baseline=97.1, roof=131.0,
        )  # fmt: skip
        self.query_one(TtftPanel).update(data.MEASUREMENTS)
        self.query_one(RunPanel).update(
            data.RUN, data.progress(now), effective=data.EFFECTIVE, valid=7, cold=0, voids={"cache-hit": 1}
        )
        self.query_one(ServerPanel).update(
            data.SERVER, data.MODEL, effective=data.EFFECTIVE, sample=data.server_sample(now)
        )


if __name__ == "__main__":
    Board(interval=1.0).run()
