"""Every GPU: how busy, how full, how hot, and what holds it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from chimera.domain.readings import Missing, Reading, Source, number
from chimera.telemetry.reasons import BY_ID, describe_xid, severity_order

from . import format
from .grid import LABEL, VALUE, Grid
from .panel import Panel
from .rows import EMPTY, Line, Row, Tone, meter, stacked, wrap

if TYPE_CHECKING:
    from chimera.domain.telemetry import GpuInfo, GpuSample, GpuState, Throttle, VramParts

SHORT: dict[str, str] = {
    "app-clocks": "clocks set by hand",
    "power-cap": "power limit",
    "hw-slowdown": "hardware slowdown",
    "sync-boost": "a slower GPU",
    "sw-thermal": "heat",
    "hw-thermal": "overheating",
    "power-brake": "power supply brake",
    "display-clocks": "display clocks",
    "board-limit": "board limit",
    "reliability": "voltage limit",
    "thermal": "heat",
}
"""A word or two for each reason for lowered clocks; what they mean is told by `chimera.telemetry.reasons`."""
IDLE = "gpu-idle"
WEIGHTS: dict[str, Tone] = {"info": "muted", "notice": "notice", "warning": "warn", "error": "error"}
SEVERITY: tuple[Tone, ...] = ("muted", "notice", "warn", "error")
PARTS: tuple[Tone, ...] = ("part1", "part2", "part3", "part4")
SIGNS: dict[Tone, str] = {"warn": "▲ ", "error": "! "}
LEFT_WARN_C, LEFT_ERROR_C = 8, 3
"""Degrees left to slowdown below which a temperature stands out."""
DETAIL_ROWS, HALF_ROWS = 6, 4
"""Fewest rows for a GPU in full and in short."""
MANY = 4
"""With more GPUs than this a table compares them better."""
BETWEEN = 4
"""Columns between GPUs that stand side by side."""
REMARK = 18
"""Columns kept for the reasons of lowered clocks in a table of GPUs."""
NARROW = 34
"""In fewer columns than this words give way to numbers."""
FULL = 0.95
"""Share of VRAM from which it counts as full."""


def throttle_words(throttles: tuple[Throttle, ...]) -> tuple[str, Tone]:
    """The reasons for lowered clocks in words, worst first, and the worst one's tone."""
    words: list[str] = []
    worst: Tone = "muted"
    for each in sorted(throttles, key=lambda throttle: (severity_order(throttle.reason), -throttle.share)):
        if each.reason == IDLE or each.share <= 0:
            continue
        known = BY_ID.get(each.reason)
        words.append(f"{SHORT.get(each.reason, each.reason.replace('-', ' '))} {format.share(each.share)}")
        worst = max(worst, WEIGHTS[known.severity] if known else "notice", key=SEVERITY.index)
    return ", ".join(words), worst


def temperature_tone(margin: Reading) -> Tone:
    """How a temperature stands, by the degrees left to slowdown."""
    left = number(margin)
    if left is None or left > LEFT_WARN_C:
        return "text"
    return "warn" if left > LEFT_ERROR_C else "error"


class GpuPanel(Panel):
    """All GPUs, in as much detail as the room allows, or the reason why there is none."""

    TITLE = "GPU"
    HELP: ClassVar[str | None] = """\
## GPU

* **util**: share of the last period in which anything ran on the GPU; 100 % says nothing of how well.
* **bus**: share of time in which its memory was read or written.
* **VRAM**: `█` weights, `▓` KV cache, `▒` compute buffers, `░` other processes and the rest, `·` free. Where the parts
  are not known: `█` used, `░` reserved by the driver. `~` marks what was derived from the model's shape or the server's
  own figure; the rest was measured by the driver.
* **temp**: with the degrees left until the hardware slows down.
* **power**: against the limit that is enforced now.
* **used by**: processes with the memory that they hold, and their share of the GPU's time.
* **slowed by**: reasons for lowered clocks with their share of the time since the last reading.

`n/a` always comes with its reason: a missing reading is never a zero.
"""

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._state: GpuState | None = None
        self._parts: Mapping[str, VramParts] = {}

    def update(self, state: GpuState, parts: Mapping[str, VramParts] | None = None) -> None:
        """Show a reading of all GPUs; `parts` says by UUID what fills their memory, where that is known."""
        self._state = state
        self._parts = parts or {}
        self.redraw()

    def build(self, width: int, height: int) -> list[Row]:
        """Full detail, four rows a GPU, or a row a GPU, by the room that there is."""
        if self._state is None:
            return [Line(width).add("Reading the GPUs …", "muted").row()]
        if self._state.missing is not None or not self._state.infos:
            return self._none(width)
        pairs = list(zip(self._state.infos, self._state.samples, strict=False))
        if len(pairs) <= MANY:
            for needed, narrowest, draw in ((DETAIL_ROWS, 30, self._detail), (HALF_ROWS, 34, self._half)):
                for columns in (1, 2, 3):
                    each = (width - (columns - 1) * BETWEEN) // columns
                    stacks = -(-len(pairs) // columns)
                    roomy = each >= (narrowest if columns == 1 else 50)
                    if roomy and columns <= len(pairs) and stacks * needed <= height:
                        return self._side_by_side(pairs, draw, columns, each, height // stacks)
        if len(pairs) == 1 and height >= HALF_ROWS and width < NARROW:
            return self._narrow(*pairs[0], width, height)
        return self._table(pairs, width, height)

    @staticmethod
    def _side_by_side(
        pairs: Sequence[tuple[GpuInfo, GpuSample]],
        draw: Callable[[GpuInfo, GpuSample, int, int], list[Row]],
        columns: int,
        width: int,
        height: int,
    ) -> list[Row]:
        """Blocks of `width` x `height` cells, in rows of so many columns."""
        rows: list[Row] = []
        for start in range(0, len(pairs), columns):
            blocks = [draw(info, sample, width, height) for info, sample in pairs[start : start + columns]]
            tallest = max(len(block) for block in blocks)
            if columns == 1:
                rows += blocks[0]
            else:
                for y in range(tallest):
                    line = Line(columns * (width + BETWEEN))
                    for index, block in enumerate(blocks):
                        line.to(index * (width + BETWEEN)).spans(block[y] if y < len(block) else EMPTY)
                    rows.append(line.row())
            rows += [EMPTY] * min(height - tallest, 1)
        return rows

    def _none(self, width: int) -> list[Row]:
        state = self._state
        why = state.missing if state else None
        text = why.detail or str(why) if why else "no GPU found"
        lines = [Line(width).add("No GPU readings", "strong").row()]
        lines += [Line(width).add(part, "muted").row() for part in wrap(text, width, 4)]
        return lines

    # one GPU in full

    def _detail(self, info: GpuInfo, sample: GpuSample, width: int, height: int) -> list[Row]:
        title = self._title(info, sample, width)
        if gone := _gone(sample):
            return [title, *(Line(width).add(part, gone[1]).row() for part in wrap(gone[0], width, 4))]
        grid = Grid(width)
        bus = _note("bus", sample.memory_utilization, format.percent)
        # In their order, each with what it is worth where there is no room for all.
        rows: list[tuple[int, Row | None]] = [
            (9, title),
            (6, grid.row("util", sample.utilization, format.percent, 100, [bus], sample.at)),
            (8, self._vram(info, sample, grid)),
            (1, self._legend(info, sample, width)),
            (7, self._temperature(info, sample, grid)),
            (5, self._power(sample, grid)),
            (4, self._clocks(info, sample, width)),
            (8, self._slowed(sample, width)),
            *((9, row) for row in self._trouble(sample, width)),
            (3, self._bus(info, sample, width)),
            (2, self._processes(sample, width)),
        ]
        worth = sorted((value for value, row in rows if row), reverse=True)[:height]
        return [row for value, row in rows if row and value >= worth[-1]][:height]

    def _title(self, info: GpuInfo, sample: GpuSample, width: int) -> Row:
        state = self._state
        many = state is not None and len(state.infos) > 1
        line = Line(width).add(f"GPU {info.index}  " if many else "", "strong").add(info.name, "strong")
        if info.mig:
            line.add("  MIG", "notice")
        return line.end(f"driver {info.driver}" if info.driver else "", "muted").row()

    def _vram(self, info: GpuInfo, sample: GpuSample, grid: Grid) -> Row:
        used, total = number(sample.vram_used_bytes), number(sample.vram_total_bytes)
        line = Line(grid.width).add("VRAM", "muted", LABEL)
        if used is None or not total:
            return line.add(format.reading(sample.vram_used_bytes, format.size, now=sample.at), "muted").row()
        filled = (used + (number(sample.vram_reserved_bytes) or 0.0)) / total
        sign, tone = _fullness(filled)
        line.add(sign + format.share(filled), tone, VALUE, "right").gap(2)
        if grid.bar >= 6:
            line.spans(stacked(self._portions(info, sample, total), grid.bar)).gap(2)
        line.add(f"{format.gib(used)} of {format.gib(total)} GiB")
        return line.row()

    def _portions(self, info: GpuInfo, sample: GpuSample, total: float) -> list[tuple[float, str, Tone]]:
        used = number(sample.vram_used_bytes) or 0.0
        reserved = number(sample.vram_reserved_bytes) or 0.0
        known = _parts_of(self._parts.get(info.uuid))
        named = sum(part.size for part in known)
        portions: list[tuple[float, str, Tone]] = [(part.size / total, part.glyph, part.tone) for part in known]
        portions.append((max(used - named, 0.0) / total, "░" if known else "█", "part4" if known else "part1"))
        portions.append((reserved / total, "░", "part4"))
        taken = sum(part[0] for part in portions)
        portions.append((max(1 - taken, 0.0), "·", "track"))
        return portions

    def _legend(self, info: GpuInfo, sample: GpuSample, width: int) -> Row | None:
        used, total = number(sample.vram_used_bytes), number(sample.vram_total_bytes)
        if used is None or not total:
            return None
        known = _parts_of(self._parts.get(info.uuid))
        reserved = number(sample.vram_reserved_bytes)
        free = number(sample.vram_free_bytes)
        items = list(known) or [Part("used", used, "█", "part1")]
        if free is not None:
            items.append(Part("free", free, "·", "track"))
        if known:
            rest = max(used - sum(part.size for part in known), 0.0) + (reserved or 0.0)
            items.append(Part("rest", rest, "░", "part4"))
        elif reserved is not None:
            items.append(Part("reserved", reserved, "░", "part4"))
        words = [f" {part.name} {part.sign}{format.gib(part.size)}" for part in items]
        whole = sum(len(text) + 3 for text in words)
        line = Line(width).add("", "muted", LABEL + VALUE + 2 if whole <= width - LABEL - VALUE - 2 else 2)
        for part, text in zip(items, words, strict=True):
            if line.left < len(text) + 1:
                break
            line.add(part.glyph, part.tone).add(text, "muted").gap(2)
        return line.row()

    def _temperature(self, info: GpuInfo, sample: GpuSample, grid: Grid) -> Row:
        tone = temperature_tone(sample.margin_c)
        margin, slowdown = number(sample.margin_c), number(info.slowdown_c)
        degrees = number(sample.temperature_c)
        notes = []
        if margin is not None:
            notes.append(f"{margin:.0f} °C left" if margin >= 0 else f"{-margin:.0f} °C past slowdown")
        memory = number(sample.memory_temperature_c)
        if memory is not None:
            notes.append(f"memory {memory:.0f} °C")
        if (fan := number(sample.fan_percent)) is not None:
            notes.append(f"fan {format.percent(fan)}")
        limit = slowdown or (degrees + margin if degrees is not None and margin is not None else None)
        return grid.row("temp", sample.temperature_c, lambda value: f"{value:.0f} °C", limit, notes, sample.at, tone)

    def _power(self, sample: GpuSample, grid: Grid) -> Row:
        limit = number(sample.power_limit_w)
        note = "limit " + format.reading(sample.power_limit_w, lambda value: f"{value:.0f} W", now=sample.at)
        return grid.row("power", sample.power_w, lambda value: f"{value:.0f} W", limit, [note], sample.at)

    def _clocks(self, info: GpuInfo, sample: GpuSample, width: int) -> Row:
        line = Line(width).add("clocks", "muted", LABEL)
        for name, now, best in (("SM", sample.sm_mhz, info.max_sm_mhz), ("memory", sample.mem_mhz, info.max_mem_mhz)):
            top = number(best)
            text = format.reading(now, lambda value: f"{value:.0f}", now=sample.at)
            if number(now) is not None:
                text += f" of {top:.0f} MHz" if top is not None else " MHz"
            if line.left > len(name) + len(text) + 3:
                line.add(f"{name} ", "muted").add(text).gap(3)
        if (pstate := number(sample.pstate)) is not None and line.left >= 4:
            line.add(f"P{pstate:.0f}", "muted")
        return line.row()

    def _slowed(self, sample: GpuSample, width: int) -> Row:
        line = Line(width).add("slowed", "muted", LABEL)
        words, tone = throttle_words(sample.throttles)
        if words:
            return line.add(f"{SIGNS.get(tone, '')}{words}", tone).row()
        if isinstance(sample.reasons, Missing) and not sample.throttle_s:
            return line.add(format.missing(sample.reasons, now=sample.at), "muted").row()
        return line.add("no", "muted").row()

    def _bus(self, info: GpuInfo, sample: GpuSample, width: int) -> Row | None:
        gen, lanes = number(sample.pcie_gen), number(sample.pcie_width)
        if gen is None and lanes is None:
            return None
        best_gen, best_lanes = number(info.pcie_max_gen), number(info.pcie_max_width)
        line = Line(width)
        for short in (False, True):  # what is at its best need not be said twice where room is short
            line = Line(width).add("PCIe", "muted", LABEL)
            if gen is not None:
                line.add(f"gen {gen:.0f}{_of(gen, best_gen, short=short)}").gap(2)
            if lanes is not None:
                line.add(f"x{lanes:.0f}{_of(lanes, best_lanes, short=short)}").gap(3)
            for name, traffic in (("in", sample.pcie_rx_bytes_s), ("out", sample.pcie_tx_bytes_s)):
                if (value := number(traffic)) is not None:
                    line.add(f"{name} ", "muted").add(format.traffic(value)).gap(2)
            if line.left:
                break
        return line.row()

    def _processes(self, sample: GpuSample, width: int) -> Row | None:
        line = Line(width).add("used by", "muted", LABEL)
        if isinstance(sample.processes, Missing):
            return line.add(format.missing(sample.processes, now=sample.at), "muted").row()
        by_size = sorted(sample.processes, key=lambda process: -(number(process.vram_bytes) or 0.0))
        for index, process in enumerate(by_size):
            text = f"{process.name} {format.reading(process.vram_bytes, format.size)}"
            if (share := number(process.sm_percent)) is not None:
                text += f" {format.percent(share)}"
            if line.left < len(text) + 2 and index:
                line.add("…", "muted")
                break
            line.add(text).gap(3)
        return line.add("" if by_size else "no process", "muted").row()

    def _trouble(self, sample: GpuSample, width: int) -> list[Row]:
        rows = []
        if sample.xids:
            before = f" ({len(sample.xids) - 1} before it)" if len(sample.xids) > 1 else ""
            text = f"! {describe_xid(sample.xids[-1])}{before}"
            rows.append(Line(width).add("errors", "muted", LABEL).add(text, "error").row())
        broken = [
            f"{count:.0f} {name}"
            for name, value in (("ECC errors", sample.ecc_errors), ("rows remapped", sample.remapped_rows))
            if (count := number(value))
        ]
        if broken:
            rows.append(Line(width).add("memory", "muted", LABEL).add("▲ " + ", ".join(broken), "warn").row())
        return rows

    # four rows a GPU

    def _half(self, info: GpuInfo, sample: GpuSample, width: int, height: int) -> list[Row]:
        rows = [self._title(info, sample, width)]
        if gone := _gone(sample):
            return [*rows, *(Line(width).add(part, gone[1]).row() for part in wrap(gone[0], width, 3))]
        used, total = number(sample.vram_used_bytes), number(sample.vram_total_bytes)
        busy = number(sample.utilization)
        line = Line(width).add("util ", "muted").add(_brief(sample.utilization, format.percent), "text", 6, "right")
        bar = max(min((width - 46) // 2, 30), 0)
        line.gap(1).spans(meter(None if busy is None else busy / 100, bar)).gap(2).add("VRAM ", "muted")
        if used is None or not total:
            line.add(format.reading(sample.vram_used_bytes, format.size, now=sample.at), "muted")
        else:
            filled = (used + (number(sample.vram_reserved_bytes) or 0.0)) / total
            sign, tone = _fullness(filled)
            if bar:
                line.add(sign + format.share(filled), tone, 6, "right").gap(1)
                line.spans(stacked(self._portions(info, sample, total), bar)).gap(1)
                sign = ""
            line.add(f"{sign}{format.gib(used)}/{format.gib(total)} GiB", "text" if bar else tone)
        rows.append(line.row())
        # Where it is narrow, units say what a number is.
        named = width >= 48
        line = Line(width).add("temp " if named else "", "muted")
        tone = temperature_tone(sample.margin_c)
        line.add(SIGNS.get(tone, "") + _brief(sample.temperature_c, lambda value: f"{value:.0f} °C"), tone)
        if (margin := number(sample.margin_c)) is not None:
            line.add(f", {margin:.0f} °C left", "muted")
        line.gap(2).add("power " if named else "", "muted").add(_ratio(sample.power_w, sample.power_limit_w, "W"))
        clock = _ratio(sample.sm_mhz, info.max_sm_mhz, "MHz")
        if line.left > len(clock) + 5:
            line.gap(2).add("SM ", "muted").add(clock)
        rows.append(line.row())
        trouble = self._trouble(sample, width)
        rows.append(trouble[0] if trouble else self._slowed(sample, width))
        return rows[:height]

    # one GPU in a narrow column

    def _narrow(self, info: GpuInfo, sample: GpuSample, width: int, height: int) -> list[Row]:
        rows = [self._title(info, sample, width)] if height > HALF_ROWS else []
        if gone := _gone(sample):
            return [*rows, *(Line(width).add(part, gone[1]).row() for part in wrap(gone[0], width, 3))]
        line = Line(width).add("util", "muted", 5).add(_brief(sample.utilization, format.percent), "text", 7, "right")
        if isinstance(sample.utilization, Missing):
            line = Line(width).add("util", "muted", 6).add(format.missing(sample.utilization, now=sample.at), "muted")
        rows.append(line.gap(2).add(_note("bus", sample.memory_utilization, format.percent), "muted").row())
        used, total = number(sample.vram_used_bytes), number(sample.vram_total_bytes)
        line = Line(width).add("VRAM", "muted", 5)
        if used is None or not total:
            line.gap(1).add(format.reading(sample.vram_used_bytes, format.size, now=sample.at), "muted")
        else:
            filled = (used + (number(sample.vram_reserved_bytes) or 0.0)) / total
            sign, tone = _fullness(filled)
            line.add(sign + format.share(filled), tone, 7, "right").gap(2)
            line.add(f"{format.gib(used)}/{format.gib(total)} GiB", "muted")
        rows.append(line.row())
        tone = temperature_tone(sample.margin_c)
        line = Line(width).add("temp", "muted", 5)
        line.add(SIGNS.get(tone, "") + _brief(sample.temperature_c, lambda value: f"{value:.0f} °C"), tone, 7, "right")
        line.gap(2).add(_ratio(sample.power_w, sample.power_limit_w, "W"))
        rows.append(line.row())
        trouble = self._trouble(sample, width)
        rows.append(trouble[0] if trouble else self._slowed(sample, width))
        return rows[:height]

    # a row a GPU

    def _table(self, pairs: list[tuple[GpuInfo, GpuSample]], width: int, height: int) -> list[Row]:
        bars = min((width - 60) // 2, 12) if width >= 76 else 0
        remark = REMARK if width >= NARROW else 2
        rows = []
        if height > len(pairs):
            head = Line(width).add("GPU", "muted", 4).add("util", "muted", 6, "right").gap(1 + bars)
            head.add("VRAM", "muted", 7, "right").gap(1 + bars)
            for name, size in (("temp", 6), ("left", 5), ("power W", 9), ("SM MHz", 11)):
                if head.left >= size + remark:
                    head.add(name, "muted", size, "right")
            rows.append(head.gap(2).add("slowed by" if head.left >= 11 else "", "muted").row())
        room = height - len(rows)
        shown = pairs
        if len(pairs) > room:
            # Those with the most trouble, in their order.
            worst = sorted(range(len(pairs)), key=lambda index: -_trouble_of(pairs[index][1]))[: max(room - 1, 0)]
            shown = [pairs[index] for index in sorted(worst)]
        rows += [self._line(info, sample, width, bars, remark) for info, sample in shown]
        if len(shown) < len(pairs):
            rows.append(Line(width).add(f"{len(pairs) - len(shown)} more GPUs do not fit here", "muted").row())
        return rows

    def _line(self, info: GpuInfo, sample: GpuSample, width: int, bars: int, remark: int) -> Row:
        # An instance of a divided GPU stands below it.
        line = Line(width).add(f"{info.index}" if info.parent is None else "MIG", "text", 4)
        if gone := _gone(sample):
            return line.add(*gone).row()
        busy = number(sample.utilization)
        line.add(_brief(sample.utilization, format.percent), "text", 6, "right").gap(1)
        line.spans(meter(None if busy is None else busy / 100, bars))
        used, total = number(sample.vram_used_bytes), number(sample.vram_total_bytes)
        if used is None or not total:
            line.add(_brief(sample.vram_used_bytes, format.gib), "muted", 7, "right").gap(1 + bars)
        else:
            filled = (used + (number(sample.vram_reserved_bytes) or 0.0)) / total
            sign, tone = _fullness(filled)
            line.add(sign + format.share(filled), tone, 7, "right").gap(1)
            line.spans(stacked(self._portions(info, sample, total), bars))
        warmth = temperature_tone(sample.margin_c)
        cells: list[tuple[str, Tone, int]] = [
            (SIGNS.get(warmth, "") + _brief(sample.temperature_c, lambda value: f"{value:.0f}°"), warmth, 6),
            (_brief(sample.margin_c, lambda value: f"{value:.0f}°"), warmth, 5),
            (_ratio(sample.power_w, sample.power_limit_w), "text", 9),
            (_ratio(sample.sm_mhz, info.max_sm_mhz), "text", 11),
        ]
        for text, tone, size in cells:
            if line.left >= size + remark:
                line.add(text, tone, size, "right")
        words, tone = throttle_words(sample.throttles)
        if sample.xids:
            words, tone = f"Xid {sample.xids[-1]} {words}".strip(), "error"
        elif not words:
            words = format.missing(sample.reasons, now=sample.at) if isinstance(sample.reasons, Missing) else "no"
        return line.gap(2).add(SIGNS.get(tone, "") + words, tone).row()


class Part(NamedTuple):
    """One thing that fills memory."""

    name: str
    size: float
    glyph: str
    tone: Tone
    sign: str = ""
    """`~` for a derived size."""


def _parts_of(parts: VramParts | None) -> list[Part]:
    """Each part that is known and there; the model as a whole where its own parts are not known."""
    if parts is None:
        return []
    sign, held = _sign(parts.source), _sign(parts.held_source)
    model = [
        ("weights", parts.weights_bytes, "█", PARTS[0]),
        ("KV", parts.kv_bytes, "▓", PARTS[1]),
        ("compute", parts.compute_bytes, "▒", PARTS[2]),
    ]
    if number(parts.weights_bytes) is None and number(parts.engine_bytes):
        model, sign = [("model", parts.engine_bytes, "█", PARTS[0])], held
    found = [Part(name, size, glyph, tone, sign) for name, reading, glyph, tone in model if (size := number(reading))]
    if foreign := number(parts.foreign_bytes):
        found.append(Part("others", foreign, "░", PARTS[3], held))
    return found


def _sign(source: Source) -> str:
    return "" if source == "measured" else "~"


def _fullness(filled: float) -> tuple[str, Tone]:
    """Sign and tone of a share of VRAM in use."""
    return ("▲ ", "warn") if filled >= FULL else ("", "text")


def _trouble_of(sample: GpuSample) -> int:
    """How much a GPU stands out, by the worst of its tones."""
    gone = _gone(sample)
    tones: list[Tone] = [temperature_tone(sample.margin_c), throttle_words(sample.throttles)[1]]
    tones += [gone[1]] if gone else []
    tones += ["error"] if sample.xids else []
    used, total = number(sample.vram_used_bytes), number(sample.vram_total_bytes)
    if used is not None and total:
        tones.append(_fullness((used + (number(sample.vram_reserved_bytes) or 0.0)) / total)[1])
    return max(SEVERITY.index(tone) if tone in SEVERITY else 0 for tone in tones)


def _gone(sample: GpuSample) -> tuple[str, Tone] | None:
    """Why the whole GPU gives no readings, where that is so: it is lost, or asleep."""
    why = sample.lost
    if why is None:
        return None
    if why.reason == "lost":
        return (f"! GPU lost: {why.detail}" if why.detail else "! GPU lost"), "error"
    return why.detail or str(why), "muted"


def _note(name: str, value: Reading, show: Callable[[float], str]) -> str:
    """`name value` where there is one; a note says nothing of what is missing."""
    found = number(value)
    return "" if found is None else f"{name} {show(found)}"


def _brief(value: Reading, show: Callable[[float], str]) -> str:
    """The number, or `n/a`: for columns too narrow for a reason."""
    found = number(value)
    return "n/a" if found is None else show(found)


def _of(value: float, best: float | None, *, short: bool) -> str:
    return "" if best is None or (short and value == best) else f" of {best:.0f}"


def _ratio(value: Reading, top: Reading, unit: str = "") -> str:
    """`148/150 W`; without a top the value alone."""
    found, most = number(value), number(top)
    if found is None:
        return "n/a"
    return (f"{found:.0f}" if most is None else f"{found:.0f}/{most:.0f}") + (f" {unit}" if unit else "")
