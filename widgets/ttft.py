"""Where the time to the first token goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from chimera.domain.measurement import Measurement

from . import format
from .panel import Panel
from .rows import Line, Row, Tone, stacked

HISTORY = 50
"""Requests kept."""


@dataclass(frozen=True, slots=True)
class Part:
    """One share of the time to the first token; `seconds` None where the server does not tell it apart."""

    name: str
    glyph: str
    tone: Tone
    seconds: float | None


def split(measurement: Measurement) -> list[Part]:
    """The parts of a TTFT; what no part accounts for is `other`, or `unknown` where the server does not tell a part."""
    ttft = measurement.ttft_s
    # A client that times prefill itself can't tell it from queue and load, so it isn't called prefill here.
    prefill = measurement.prefill_s if measurement.timing_source == "server" else None
    parts = [
        Part("queue", "▒", "part3", measurement.queue_s),
        Part("load", "█", "part2", measurement.load_s),
        Part("prefill", "▓", "part1", prefill),
    ]
    if ttft is None:
        return parts
    rest = max(ttft - sum(part.seconds or 0.0 for part in parts), 0.0)
    complete = all(part.seconds is not None for part in parts)
    parts.append(Part("other", "░", "part4", rest) if complete else Part("unknown", "╌", "muted", rest))
    return parts


class TtftPanel(Panel):
    """The last time to first token split into queue, load and prefill, and the requests before it."""

    TITLE = "Time to first token"
    HELP: ClassVar[str | None] = """\
## Time to first token

From sending the request to the first token of any kind, on **our** clock, and where it went:

* `▒` **queue**: waiting for the server. `█` **load**: the model was loaded. `▓` **prefill**: reading the prompt.
* `░` **other**: what nobody accounts for: HTTP, the first sample.
* `╌` **unknown**: this server does not tell the parts apart.

Below: the last requests. A void one gives its reason and counts for nothing. **Other clients**: their newest request,
seen by looking at the server now and then, so only as exact as that.
"""

    def __init__(self, *, name: str | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self._measurements: tuple[Measurement, ...] = ()
        self._count = 0
        self._others: tuple[float, str] | None = None

    def update(self, measurements: Sequence[Measurement], others: tuple[float, str] | None = None) -> None:
        """Show these requests of a run, oldest first, and the TTFT of other clients with where it was seen."""
        kept, count = tuple(measurements[-HISTORY:]), len(measurements)
        if (kept, count, others) != (self._measurements, self._count, self._others):
            self._measurements, self._count, self._others = kept, count, others
            self.redraw()

    def build(self, width: int, height: int) -> list[Row]:
        """The last request as a bar with its legend, then a table of the last ones."""
        last = next((each for each in reversed(self._measurements) if each.ttft_s is not None), None)
        others = self._of_others(width)
        if last is None:
            return [*others, Line(width).add("No request of ours has been answered yet", "muted").row()]
        rows = [*others, self._headline(last, width)]
        parts = split(last)
        if height > len(rows):
            rows.append(_bar(parts, last.ttft_s or 0.0, width))
        rows += self._legend(parts, last.ttft_s or 0.0, width, height - len(rows))
        if height - len(rows) >= 3:
            rows += self._table(width, height - len(rows))
        return rows

    def _of_others(self, width: int) -> list[Row]:
        if self._others is None:
            return []
        seconds, via = self._others
        line = Line(width).add(format.seconds(seconds), "accent", 8, "right").gap(2).add("other clients")
        return [line.end(f"seen in {via}" if via else "", "muted").row()]

    def _headline(self, last: Measurement, width: int) -> Row:
        line = Line(width).add(format.seconds(last.ttft_s or 0.0), "accent", 8, "right")
        valid = [each.ttft_s for each in self._measurements if each.valid and each.ttft_s is not None]
        line.gap(2).add("last request", "text")
        if last.void_reason:
            line.add(f"  void: {last.void_reason}", "warn")
        elif last.cold:
            line.add("  cold", "notice")
        elif last.role == "warmup":
            line.add("  warm-up", "muted")
        if valid:
            text = f"median {format.seconds(median(valid))} of {len(valid)}"
            if line.left > len(text) + 3:
                line.gap(3).add(text, "muted")
        return line.row()

    def _legend(self, parts: list[Part], ttft: float, width: int, room: int) -> list[Row]:
        shown = [part for part in parts if part.seconds is not None]
        unknown = [part.name for part in parts if part.seconds is None]
        if room <= 0:
            return []
        per_row = max(min(width // 24, len(shown)), 1)
        column = min(width // per_row, 30)
        if room == 1 and per_row < len(shown):
            # No room to stand in columns: shares alone say the most.
            line = Line(width)
            for part in shown:
                share = (part.seconds or 0.0) / ttft if ttft else 0.0
                line.add(f"{part.glyph} ", part.tone).add(f"{part.name} ", "muted").add(format.share(share)).gap(2)
            return [line.row()]
        rows = []
        for start in range(0, len(shown), per_row):
            line = Line(width)
            for index, part in enumerate(shown[start : start + per_row]):
                share = (part.seconds or 0.0) / ttft if ttft else 0.0
                line.to(index * column).add(f"{part.glyph} ", part.tone).add(part.name, "muted", 8)
                line.add(format.seconds(part.seconds or 0.0), "text", 7, "right")
                line.add(format.share(share), "text", 6, "right")
            rows.append(line.row())
        if unknown:
            rows.append(Line(width).add(f"not told by this server: {', '.join(unknown)}", "muted").row())
        return rows[:room]

    def _table(self, width: int, room: int) -> list[Row]:
        columns = [("queue", 9), ("load", 9), ("prefill", 9), ("other", 9), ("tok/s", 8)]
        head = Line(width).add("#", "muted", 4, "right").add("TTFT", "muted", 9, "right")
        while columns and 13 + sum(size for _, size in columns) + 12 > width:
            columns.pop(0)
        for name, size in columns:
            head.add(name, "muted", size, "right")
        rows = [head.row()]
        first = self._count - len(self._measurements)
        newest = list(enumerate(self._measurements, first + 1))[:-room:-1]
        for seq, each in newest:
            line = Line(width).add(str(seq), "muted", 4, "right").add(_time(each.ttft_s), "text", 9, "right")
            parts = {part.name: part.seconds for part in split(each)}
            for name, size in columns:
                if name == "tok/s":
                    text = "?" if each.rate is None else format.rate(each.rate)
                else:
                    text = _time(parts.get(name))
                line.add(text, "text" if each.valid else "muted", size, "right")
            note, tone = _remark(each)
            rows.append(line.gap(2).add(note, tone).row())
        return rows


def _bar(parts: Sequence[Part], ttft: float, width: int) -> Row:
    return stacked([((part.seconds or 0.0) / ttft if ttft else 0.0, part.glyph, part.tone) for part in parts], width)


def _time(value: float | None) -> str:
    return "?" if value is None else format.seconds(value)


def _remark(measurement: Measurement) -> tuple[str, Tone]:
    if measurement.void_reason:
        return f"void: {measurement.void_reason}", "warn"
    if measurement.role == "warmup":
        return "warm-up", "muted"
    return ("cold", "notice") if measurement.cold else ("", "text")
