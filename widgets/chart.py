"""A value over time, drawn with a pen.

The window stands still while the curve grows, and moves on by a quarter when the pen has reached its right edge: a tick
repaints a few cells and not the whole picture.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from . import braille, format
from .panel import Panel
from .rows import Line, Row, Span, cells, clean, cut

CAPACITY = 7200
"""Points kept: two hours at one a second."""
MARKS = 200
BRAILLE, BRAILLE_END = "\u2800", "\u28ff"
MOST_RUNS = 15
"""Runs of colour in a row: each costs about 40 bytes on the wire."""
STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
WINDOWS_S = (30, 60, 120, 300, 900, 3600)
"""Windows that `zoom` walks through."""


@dataclass(frozen=True, slots=True)
class Guide:
    """A horizontal line to compare with."""

    label: str
    value: float


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a moment, named by one letter."""

    at: float
    letter: str


class Plot:
    """Points of one series and how to draw them; knows nothing of the screen."""

    def __init__(
        self, *, window_s: float = 120, gap_s: float = 5.0, top: float | None = None, epoch: float | None = None
    ) -> None:
        self.window_s = window_s
        self.gap_s = gap_s
        """A longer silence between two points is a gap."""
        self.top = top
        """Fixed upper end of the scale; None follows the data."""
        self.epoch = epoch
        """Wall clock at 0 on the points' clock, to label the time axis with the time of day; None counts from the
        first point."""
        self.guides: tuple[Guide, ...] = ()
        self._points: deque[braille.Point] = deque(maxlen=CAPACITY)
        self._marks: deque[Mark] = deque(maxlen=MARKS)
        self._origin: float | None = None
        self._start = 0.0
        self._top = 1.0
        self._frozen_at: float | None = None

    @property
    def frozen(self) -> bool:
        """The picture stands still; points are still taken in."""
        return self._frozen_at is not None

    def freeze(self, on: bool) -> None:
        """Let the picture stand still, or go on."""
        self._frozen_at = (self._points[-1][0] if self._points else 0.0) if on else None
        if not on and self._points:
            self._follow(self._points[-1][0])

    def append(self, at: float, value: float | None) -> None:
        """Take in a point; None is a gap. A time before the last one starts the series anew."""
        if self._points and at < self._points[-1][0]:
            self.clear()
        if self._origin is None:
            self._origin = self._start = at
        if value is not None and not math.isfinite(value):
            value = None
        self._points.append((at, value))
        if not self.frozen:
            self._follow(at)

    def mark(self, at: float, letter: str) -> None:
        """Put a letter at a moment."""
        self._marks.append(Mark(at, clean(letter)[:1] or "?"))

    def clear(self) -> None:
        """Forget points and marks."""
        self._points.clear()
        self._marks.clear()
        self._origin = None
        self._top = 1.0
        self._frozen_at = None

    def show_window(self, window_s: float) -> None:
        """Show this many seconds."""
        self.window_s = window_s
        if self._points and self._origin is not None:
            end = self._points[-1][0] if self._frozen_at is None else self._frozen_at
            self._start = max(self._origin, end - window_s * 0.75)

    @property
    def last(self) -> float | None:
        """The newest value, None where it is a gap."""
        return self._points[-1][1] if self._points else None

    def values(self) -> list[float]:
        """Values inside the window."""
        return [value for _, value in self._visible() if value is not None]

    def _follow(self, at: float) -> None:
        if at > self._start + self.window_s:
            quarter = self.window_s / 4
            self._start += math.ceil((at - self._start - self.window_s) / quarter) * quarter

    def _visible(self) -> list[braille.Point]:
        end = self._start + self.window_s
        if self._frozen_at is not None:
            end = min(end, self._frozen_at)
        found: list[braille.Point] = []
        for point in reversed(self._points):
            if point[0] < self._start:
                break
            if point[0] <= end:
                found.append(point)
        return found[::-1]

    def _scale(self, points: Sequence[braille.Point], rows: int) -> tuple[float, list[float]]:
        """Upper end of the scale and its round numbers."""
        count = max(min(rows // 2, 6), 1)
        if self.top is not None:
            return self.top, braille.ticks(0, self.top, count)
        highest = max((value for _, value in points if value is not None), default=0.0)
        # A guide that lies far above the data would press them flat; it is then named beside an arrow.
        near = [guide.value for guide in self.guides if guide.value <= 2 * highest or highest == 0]
        wanted = braille.nice_top(max([highest, *near]))
        # The scale grows at once and shrinks only when far too large, so that it does not flutter.
        if wanted > self._top or wanted <= self._top * 0.5:
            self._top = wanted
        return self._top, braille.ticks(0, self._top, count)

    def rows(self, width: int, height: int) -> list[Row]:
        """The chart in `width` x `height` cells: numbers at the left, the curve, the time below."""
        axis = 2 if height >= 8 else 1
        plot_rows = height - axis
        if plot_rows < 1 or width < 8:
            return []
        points = self._visible()
        top, numbers = self._scale(points, plot_rows)
        step = numbers[1] - numbers[0] if len(numbers) > 1 else top
        texts = {self._row_of(number, top, plot_rows): braille.tick_text(number, step) for number in numbers}
        label = max((len(text) for text in texts.values()), default=1)
        names = self._guide_names(top, plot_rows)
        side = min(max((cells(text) for text in names.values()), default=0), 18)
        if side and width - label - 2 - side < 24:
            side = 0
        plot_width = width - label - 1 - (side + 1 if side else 0)
        if plot_width < 4:
            return []
        span = (self._start, self._start + self.window_s)
        curve = braille.curve(
            points, width=plot_width, height=plot_rows, x_range=span, y_range=(0, top), gap=self.gap_s
        )
        marks = self._mark_columns(plot_width)
        rows = []
        for y, drawn in enumerate(curve):
            for column in marks:
                if drawn[column] == " ":
                    drawn = f"{drawn[:column]}┊{drawn[column + 1 :]}"
            if y in names and not names[y].startswith("↑"):
                drawn = "".join("╌" if char in " ┊" else char for char in drawn)
                tail = " " + cut(names[y], plot_width // 2)
                if not side and set(drawn[-cells(tail) :]) == {"╌"}:
                    drawn = drawn[: -cells(tail)] + tail
            line = Line(width).add(texts.get(y, ""), "muted", label, "right").add("┤" if y in texts else "│", "muted")
            line.spans(_toned(drawn))
            if side and y in names:
                line.add(" " + cut(names[y], side), "muted")
            rows.append(line.row())
        rows += self._time_axis(width, label, plot_width, marks, axis)
        return rows

    @staticmethod
    def _row_of(value: float, top: float, rows: int) -> int:
        level = round(value / top * (rows * 4 - 1))
        return (rows * 4 - 1 - level) // 4

    def _guide_names(self, top: float, rows: int) -> dict[int, str]:
        names: dict[int, str] = {}
        for guide in sorted(self.guides, key=lambda guide: -guide.value):
            if not math.isfinite(guide.value) or guide.value < 0:
                continue
            above = guide.value > top
            row = 0 if above else self._row_of(guide.value, top, rows)
            text = f"{'↑ ' if above else ''}{clean(guide.label)} {format.rate(guide.value)}"
            names[row] = f"{names[row]} {text}" if row in names else text
        return names

    def _mark_columns(self, width: int) -> dict[int, str]:
        found: dict[int, str] = {}
        for mark in self._marks:
            column = int((mark.at - self._start) / self.window_s * width)
            while column in found:
                column += 1  # marks of the same moment stand beside each other
            if 0 <= column < width and not (self._frozen_at is not None and mark.at > self._frozen_at):
                found[column] = mark.letter
        return found

    def _time_axis(self, width: int, label: int, plot_width: int, marks: dict[int, str], rows: int) -> list[Row]:
        origin = self._origin or 0.0
        zero = -self.epoch if self.epoch is not None else origin
        # The step leaves room for the longest label and a blank.
        step = next((s for s in STEPS_S if s / self.window_s * plot_width >= 11), STEPS_S[-1])
        ruler, times = ["─"] * plot_width, [" "] * (width - label)
        if rows == 1:
            for column, letter in marks.items():
                times[column + 1] = letter
        free = 0
        index = math.ceil((self._start - zero) / step)
        while self._origin is not None and (at := zero + index * step) < self._start + self.window_s:
            column = int((at - self._start) / self.window_s * plot_width)
            text = self._time_text(at - zero, step)
            begin = max(column + 1 - len(text) // 2, 0)
            ruler[column] = "┬"
            room = times[max(begin - 1, 0) : begin + len(text) + 1]
            if begin >= free and begin + len(text) <= len(times) and not "".join(room).strip():
                times[begin : begin + len(text)] = text
                free = begin + len(text) + 1
            index += 1
        for column, letter in marks.items():
            ruler[column] = letter
        lines = [Line(width).add("", "muted", label).add("".join(times), "muted").row()]
        if rows == 2:
            lines.insert(0, Line(width).add("", "muted", label).add("└" + "".join(ruler), "muted").row())
        return lines

    def _time_text(self, value: float, step: float) -> str:
        if self.epoch is not None:
            return format.clock(round(value), with_seconds=step < 60)
        whole = round(value)
        if whole < 60:
            return f"{whole} s"
        hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
        return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class PlotPanel(Panel):
    """A panel with a plot in it: what its window, its marks and standing still have in common."""

    FROZEN: ClassVar[str] = "frozen"
    """Stands in the border while the picture does."""
    plot: Plot

    def mark(self, at: float, letter: str) -> None:
        """Mark a moment with a letter."""
        self.plot.mark(at, letter)
        self.redraw()

    @property
    def window_s(self) -> float:
        """Seconds that the chart shows."""
        return self.plot.window_s

    @window_s.setter
    def window_s(self, seconds: float) -> None:
        self.plot.show_window(seconds)
        self.redraw()

    @property
    def frozen(self) -> bool:
        """The picture stands still."""
        return self.plot.frozen

    @frozen.setter
    def frozen(self, on: bool) -> None:
        self.plot.freeze(on)
        self.border_subtitle = self.FROZEN if on else None
        self.redraw()

    def clear(self) -> None:
        """Forget all points and marks."""
        self.plot.clear()
        self.border_subtitle = None
        self.redraw()


class TimeChart(PlotPanel):
    """One value over time with its axes, lines to compare with, and marks for what happened."""

    HELP: ClassVar[str | None] = """\
## A chart over time

The curve grows from left to right; at the right edge the window moves on by a quarter. **A gap is a gap:** there was
no reading. A dashed line is something to compare with, named at the right; `↑` says that it lies above the scale.
A letter on the time axis marks a moment that the log explains.
"""

    def __init__(
        self,
        title: str,
        unit: str = "",
        *,
        window_s: float = 120,
        gap_s: float = 5.0,
        top: float | None = None,
        epoch: float | None = None,
        name: str | None = None,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self.plot = Plot(window_s=window_s, gap_s=gap_s, top=top, epoch=epoch)
        self.border_title = clean(f"{title}, {unit}" if unit else title).replace("[", "\\[")

    def update(self, at: float, value: float | None) -> None:
        """Take in a point, `at` in monotonic seconds; None is a gap."""
        self.plot.append(at, value)
        self.redraw()

    def extend(self, points: Iterable[tuple[float, float | None]]) -> None:
        """Take in many points and draw once."""
        for at, value in points:
            self.plot.append(at, value)
        self.redraw()

    def set_guides(self, *guides: Guide) -> None:
        """Show these horizontal lines and no others."""
        self.plot.guides = guides
        self.redraw()

    def build(self, width: int, height: int) -> list[Row]:
        """The plot in the whole panel."""
        return self.plot.rows(width, min(height, 24))


def _toned(drawn: str) -> list[Span]:
    """The curve apart from what is behind it; all in one tone where they would alternate too often to be cheap."""
    runs = [(dots, "".join(chars)) for dots, chars in groupby(drawn, lambda char: BRAILLE <= char <= BRAILLE_END)]
    if len(runs) > MOST_RUNS:
        return [Span(drawn, "chart")]
    return [Span(text, "chart" if dots else "guide") for dots, text in runs]


def zoom(window_s: float, steps: int) -> float:
    """The next wider (`steps` > 0) or narrower window of `WINDOWS_S`."""
    nearest = min(range(len(WINDOWS_S)), key=lambda index: abs(WINDOWS_S[index] - window_s))
    return WINDOWS_S[min(max(nearest + steps, 0), len(WINDOWS_S) - 1)]
