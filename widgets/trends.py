"""One chart for many readings: one is shown, all are kept, so that changing over shows what was before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from chimera.domain.readings import Reading, number

from . import format
from .chart import Plot, TimeChart
from .rows import Line, Row, clean

if TYPE_CHECKING:
    from chimera.domain.telemetry import GpuSample, Snapshot

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Trend:
    """What can be shown over time."""

    key: str
    title: str
    unit: str
    top: float | None = None
    gap_s: float = 5.0


TRENDS = (
    Trend("util", "GPU utilisation", "%", 100),
    Trend("vram", "VRAM used", "GiB"),
    Trend("temp", "GPU temperature", "°C"),
    Trend("power", "GPU power", "W"),
    Trend("cpu", "CPU, all cores", "%", 100),
    Trend("ttft", "Time to first token", "ms", gap_s=120),
)
AMONG = {
    "util": "mean of {} GPUs",
    "vram": "{} GPUs together",
    "temp": "hottest of {} GPUs",
    "power": "{} GPUs together",
}
"""How several GPUs become one curve."""


def readings(snapshot: Snapshot) -> dict[str, float | None]:
    """A value for each trend but TTFT, which comes with requests; None is a gap.

    A sum over several GPUs has a gap where one of them gives no reading: without it the sum would seem to fall.
    """
    gpus = [
        sample for info, sample in zip(snapshot.gpus.infos, snapshot.gpus.samples, strict=False) if info.parent is None
    ]

    def known(read: Callable[[GpuSample], Reading]) -> list[float]:
        return [value for gpu in gpus if (value := number(read(gpu))) is not None]

    def total(values: list[float]) -> float | None:
        return sum(values) if values and len(values) == len(gpus) else None

    util = known(lambda gpu: gpu.utilization)
    vram = total(known(lambda gpu: gpu.vram_used_bytes))
    return {
        "util": sum(util) / len(util) if util else None,
        "vram": None if vram is None else vram / GIB,
        "temp": max(known(lambda gpu: gpu.temperature_c), default=None),
        "power": total(known(lambda gpu: gpu.power_w)),
        "cpu": number(snapshot.host.cpu_percent),
    }


class TrendChart(TimeChart):
    """Shows one of `TRENDS`."""

    HELP: ClassVar[str | None] = """\
## Course of a reading

`c` changes what is shown: GPU utilisation, VRAM, temperature, power, CPU, time to first token. Several GPUs are one
curve; the words above it say how. **A gap is a gap:** there was no reading, and a sum has one as soon as one part of it
is missing.
"""

    def __init__(
        self, *, window_s: float = 120, epoch: float | None = None, name: str | None = None, id: str | None = None
    ) -> None:
        super().__init__("", window_s=window_s, epoch=epoch, name=name, id=id)
        self._plots = [Plot(window_s=window_s, gap_s=one.gap_s, top=one.top, epoch=epoch) for one in TRENDS]
        self._gpus = 0
        self.show(0)

    @property
    def shown(self) -> int:
        """Place in `TRENDS` of what is shown."""
        return self._plots.index(self.plot)

    def show(self, index: int) -> None:
        """Show one of `TRENDS`."""
        self.plot = self._plots[index]
        self.border_title = clean(f"{TRENDS[index].title}, {TRENDS[index].unit}")
        self.redraw()

    def feed(self, at: float, values: Mapping[str, float | None], *, gpus: int) -> None:
        """Take in values by the keys of `TRENDS`; one that is not among them is left as it is."""
        self._gpus = gpus
        for trend, plot in zip(TRENDS, self._plots, strict=True):
            if trend.key in values:
                plot.append(at, values[trend.key])
        self.redraw()

    def mark(self, at: float, letter: str) -> None:
        """Mark a moment on all."""
        for plot in self._plots:
            plot.mark(at, letter)
        self.redraw()

    @property
    def window_s(self) -> float:
        """Seconds that the chart shows."""
        return self.plot.window_s

    @window_s.setter
    def window_s(self, seconds: float) -> None:
        for plot in self._plots:
            plot.show_window(seconds)
        self.redraw()

    @property
    def frozen(self) -> bool:
        """The picture stands still."""
        return self.plot.frozen

    @frozen.setter
    def frozen(self, on: bool) -> None:
        for plot in self._plots:
            plot.freeze(on)
        self.border_subtitle = "frozen" if on else None
        self.redraw()

    def build(self, width: int, height: int) -> list[Row]:
        """The newest value and the highest in sight in words, the plot below."""
        trend = TRENDS[self.shown]
        last, seen = self.plot.last, self.plot.values()
        line = Line(width).add(_value(last, trend), "accent" if last is not None else "muted", 8, "right")
        if seen:
            line.gap(3).add("highest in sight ", "muted").add(_value(max(seen), trend))
        if self._gpus > 1 and trend.key in AMONG:
            line.end(AMONG[trend.key].format(self._gpus), "muted")
        return [line.row(), *super().build(width, height - 1)]


def _value(value: float | None, trend: Trend) -> str:
    if value is None:
        return "n/a"
    if trend.key == "ttft":
        return format.seconds(value / 1000)
    return f"{value:.1f} {trend.unit}" if trend.key == "vram" else f"{value:.0f} {trend.unit}"
