"""This machine: how busy its processors are and with whose work, and how full its memory is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from chimera.domain.readings import Reading, number

from . import format
from .grid import LABEL, VALUE, Grid
from .panel import Panel
from .rows import Line, Row, Tone, cells, clean

if TYPE_CHECKING:
    from chimera.domain.telemetry import HostSample

LEVELS = "▁▂▃▄▅▆▇█"
CALM_GOVERNORS = frozenset({"performance", "schedutil", "ondemand"})
"""Frequency governors that let the processor run fast when it is busy."""
PRESSURE_WARN = 10.0
"""Percent of time with a task waiting from which pressure stands out."""


def core_bars(percents: tuple[float, ...], width: int) -> str:
    """One block a core; where there are more cores than columns, the mean of neighbours."""
    if not percents or width <= 0:
        return ""
    group = -(-len(percents) // width)
    bars = []
    for start in range(0, len(percents), group):
        some = percents[start : start + group]
        mean = sum(some) / len(some)
        bars.append(LEVELS[min(max(int(mean / 100 * len(LEVELS)), 0), len(LEVELS) - 1)])
    return "".join(bars)


class HostPanel(Panel):
    """CPU, memory and what else on this machine makes a model slow."""

    TITLE = "Host"
    HELP: ClassVar[str | None] = """\
## Host

* **CPU**: all cores together; **engine** is the model server, **others** everything that is neither it nor Chimera.
* **others**: who else uses the processor, in cores, while it is worth a word.
* **cores**: a block for each core, or the mean of neighbours where there are many.
* **pressure**: share of time in which a task waited for CPU, memory or disk (Linux only).
* A battery, a saving power profile or a governor that keeps the clock low stand out: they cost tokens.
"""

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._sample: HostSample | None = None

    def update(self, sample: HostSample) -> None:
        """Show a reading of this machine."""
        self._sample = sample
        self.redraw()

    def build(self, width: int, height: int) -> list[Row]:
        """The most telling rows first, as many as fit."""
        sample = self._sample
        if sample is None:
            return [Line(width).add("Reading the host …", "muted").row()]
        grid = Grid(width)
        rows = [self._cpu(sample, grid)]
        memory = self._memory(sample, grid)
        warnings = self._warnings(sample, width)
        less_telling = (
            self._others(sample, width),
            self._load(sample, grid),
            self._pressure(sample, width),
            self._limit(sample, width),
        )
        rest = [row for row in less_telling if row]
        swap = self._swap(sample, grid)
        cores = self._cores(sample, grid)
        if cores and height >= 3 + len(warnings):
            rows.append(cores)
        rows.append(memory)
        if swap and height >= len(rows) + len(warnings) + 2:
            rows.append(swap)
        room = height - len(rows) - len(warnings)
        return rows + rest[: max(room, 0)] + warnings

    def _cpu(self, sample: HostSample, grid: Grid) -> Row:
        notes = []
        if (engine := number(sample.engine_cpu_percent)) is not None:
            notes.append(f"engine {engine / 100:.1f} cores")
        if (foreign := number(sample.foreign_cpu_percent)) is not None:
            notes.append(f"others {format.percent(foreign)}")
        return grid.row("CPU", sample.cpu_percent, format.percent, 100, notes, sample.at)

    def _cores(self, sample: HostSample, grid: Grid) -> Row | None:
        if not sample.per_core_percent:
            return None
        count = len(sample.per_core_percent)
        line = Line(grid.width).add("cores", "muted", LABEL).add(str(count), "text", VALUE, "right").gap(2)
        bars = core_bars(sample.per_core_percent, grid.bar or line.left)
        line.add(bars, "bar")
        if grid.bar:
            line.to(LABEL + VALUE + 4 + grid.bar)
            notes = []
            if (mhz := number(sample.cpu_mhz)) is not None:
                notes.append(f"{mhz / 1000:.1f} GHz")
            if (allowed := number(sample.cpu_limit_cores)) is not None and allowed < count:
                notes.append(f"{allowed:.1f} allowed")
            line.add(" · ".join(notes), "muted")
        return line.row()

    def _memory(self, sample: HostSample, grid: Grid) -> Row:
        return _fullness("memory", sample.memory_used_bytes, sample.memory_total_bytes, grid, sample.at, 0.95)

    def _swap(self, sample: HostSample, grid: Grid) -> Row | None:
        if not number(sample.swap_total_bytes):
            return None
        return _fullness("swap", sample.swap_used_bytes, sample.swap_total_bytes, grid, sample.at, 0.5)

    @staticmethod
    def _others(sample: HostSample, width: int) -> Row | None:
        """Who else uses the processor, as many as fit."""
        if not sample.foreign:
            return None
        line = Line(width).add("others", "muted", LABEL)
        for index, each in enumerate(sample.foreign):
            text = f"{clean(each.name)} {each.cpu_percent / 100:.1f}"
            if line.left < cells(text) + 8 and index:
                break
            line.gap(1 if index == 0 else 2).add(text, "notice")
        return line.gap(1).add("cores" if line.left > 6 else "", "muted").row()

    @staticmethod
    def _limit(sample: HostSample, width: int) -> Row | None:
        """What the control group allows, where that is less than there is."""
        limit, total = number(sample.memory_limit_bytes), number(sample.memory_total_bytes)
        if limit is None or (total is not None and limit >= total):
            return None
        return Line(width).add("limit", "muted", LABEL).gap(1).add(f"{format.gib(limit)} GiB of memory allowed").row()

    def _load(self, sample: HostSample, grid: Grid) -> Row | None:
        if number(sample.load_1m) is None:
            return None
        notes = ["1 min"]
        if (own := number(sample.own_cpu_percent)) is not None:
            notes.append(f"Chimera {format.percent(own)} of a core")
        cores = len(sample.per_core_percent) or None
        return grid.row("load", sample.load_1m, lambda value: f"{value:.2f}", cores, notes, sample.at)

    def _pressure(self, sample: HostSample, width: int) -> Row | None:
        named = [("CPU", sample.pressure_cpu), ("memory", sample.pressure_memory), ("disk", sample.pressure_io)]
        if all(number(value) is None for _, value in named):
            return None
        named.sort(key=lambda one: (number(one[1]) or 0.0) < PRESSURE_WARN)  # what stands out comes first
        line = Line(width).add("pressure", "muted", LABEL + 1)
        for name, value in named:
            percent = number(value)
            if percent is None:
                continue
            tone: Tone = "warn" if percent >= PRESSURE_WARN else "text"
            shown = f"{'▲ ' if tone == 'warn' else ''}{percent:.0f} %"
            size = max(5, len(shown))
            if line.left < len(name) + size + 2:  # what does not fit whole is left out
                break
            line.gap(1).add(f"{name} ", "muted").add(shown, tone, size, "right").gap(2)
        if (disk := number(sample.disk_read_bytes_s)) is not None and disk >= 1e6:
            reads = format.traffic(disk)
            if line.left >= len(reads) + 6:
                line.add("reads ", "muted").add(reads)
        return line.row()

    def _warnings(self, sample: HostSample, width: int) -> list[Row]:
        words = []
        if sample.on_battery:
            words.append("on battery")
        if sample.power_profile in ("power-saver", "low-power", "quiet"):
            words.append(f"power profile {sample.power_profile}")
        if sample.governor is not None and sample.governor not in CALM_GOVERNORS:
            words.append(f"governor {sample.governor}")
        if (steal := number(sample.steal_percent)) is not None and steal >= 1:
            words.append(f"{format.percent(steal)} stolen by the hypervisor")
        if not words:
            return []
        return [Line(width).add("power", "muted", LABEL).add("▲ " + " · ".join(words), "warn").row()]


def _fullness(name: str, used: Reading, total: Reading, grid: Grid, now: float, alarm: float) -> Row:
    """A row of something that fills up."""
    top, value = number(total), number(used)
    if value is None or not top:
        return grid.row(name, used, format.size, None, (), now)
    tone: Tone = "warn" if value / top >= alarm else "text"
    notes = (f"{format.gib(value)} of {format.gib(top)} GiB",)
    return grid.row(name, value, lambda _: format.share(value / top), top, notes, now, tone)
