"""Curves as text: a braille cell is two dots wide and four high, so a row holds four levels."""

from __future__ import annotations

import math
from collections.abc import Iterable

BLANK = 0x2800
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bit of each dot by column (left, right) and row from the top."""

Point = tuple[float, float | None]
"""Where and how much; None is a gap."""


def curve(
    points: Iterable[Point],
    *,
    width: int,
    height: int,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    gap: float = math.inf,
) -> list[str]:
    """The points as a connected curve in `height` rows of `width` cells, a blank where nothing is drawn.

    Two neighbours are connected unless a None stands between them or they are more than `gap` apart in x. Points
    outside `x_range` are left out; values outside `y_range` are drawn at its edge.
    """
    columns, levels = width * 2, height * 4
    cells = [bytearray(width) for _ in range(height)]
    x_low, x_high = x_range
    y_low, y_high = y_range
    if columns <= 0 or levels <= 0 or x_high <= x_low or y_high <= y_low:
        return [" " * max(width, 0)] * max(height, 0)
    x_scale = columns / (x_high - x_low)
    y_scale = (levels - 1) / (y_high - y_low)

    def upright(column: int, first: int, last: int) -> None:
        """Set the dots of a column between two levels, counted from the bottom."""
        cell, bits = column >> 1, DOTS[column & 1]
        if first > last:
            first, last = last, first
        for level in range(first, last + 1):
            from_top = levels - 1 - level
            cells[from_top >> 2][cell] |= bits[from_top & 3]

    before: tuple[float, int, int] | None = None
    for x, y in points:
        if y is None or not math.isfinite(y) or not x_low <= x <= x_high:
            before = None
            continue
        column = min(int((x - x_low) * x_scale), columns - 1)
        level = round((min(max(y, y_low), y_high) - y_low) * y_scale)
        if before is None or x - before[0] > gap or column < before[1]:
            upright(column, level, level)
        else:
            _, last_column, last_level = before
            steps = column - last_column
            reached = last_level
            for step in range(1, steps + 1):
                aim = last_level + round((level - last_level) * step / steps)
                # One dot on from what was reached, so that a rise is joined but not drawn twice.
                first = reached + (aim > reached) - (aim < reached)
                upright(last_column + step, first, aim)
                reached = aim
            if steps == 0:
                upright(column, last_level, level)
        before = (x, column, level)
    return ["".join(chr(BLANK + bits) if bits else " " for bits in row) for row in cells]


def nice_step(span: float, count: int) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that cuts `span` into at most `count` steps."""
    if span <= 0 or count < 1:
        return 1.0
    least = span / count
    power = 10.0 ** math.floor(math.log10(least))
    for factor in (1.0, 2.0, 2.5, 5.0):
        if factor * power >= least * (1 - 1e-9):
            return factor * power
    return 10.0 * power


TOPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


def nice_top(value: float) -> float:
    """The round end of a scale from 0 that holds `value` with a little room above."""
    if not math.isfinite(value) or value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((top * power for top in TOPS if top * power >= value * 1.04), 12 * power)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from `low` to `high`, at most `count + 1` of them."""
    step = nice_step(high - low, count)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_text(value: float, step: float) -> str:
    """A number of an axis with as many decimals as its step needs."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
    if step and not float(step * 10**decimals + 1e-9).is_integer() and abs(step * 10**decimals % 1 - 0.5) < 1e-6:
        decimals += 1
    return f"{value:.{decimals}f}"
