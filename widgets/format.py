"""Numbers as a person reads them: short, of constant width, with their unit, and never 0 for unknown."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from chimera.domain.readings import Missing, Reading

GIB = 1024**3
MIB = 1024**2


def missing(reason: Missing, *, now: float | None = None) -> str:
    """Why there is no number, in short: `n/a: unsupported`, `n/a: stale 12 s` (`now` on the monotonic clock)."""
    if reason.reason == "pending":
        return "…"
    if reason.reason == "stale" and reason.since is not None and now is not None:
        return f"n/a: stale {duration(max(now - reason.since, 0))}"
    return f"n/a: {reason.reason}"


def reading(value: Reading | None, show: Callable[[float], str], *, now: float | None = None) -> str:
    """The number by `show`, or the reason why there is none."""
    if value is None:
        return "n/a"
    return missing(value, now=now) if isinstance(value, Missing) else show(value)


def percent(value: float) -> str:
    """`87 %`; tenths only below ten where they tell something."""
    return f"{value:.1f} %" if 0 < abs(value) < 1 else f"{value:.0f} %"


def share(value: float) -> str:
    """A part of 1 as percent."""
    return percent(value * 100)


def gib(value: float) -> str:
    """Bytes as a bare number of GiB with one decimal, for columns that name the unit once."""
    return f"{value / GIB:.1f}"


def size(value: float) -> str:
    """Bytes in MiB or GiB."""
    if abs(value) < GIB:
        return f"{value / MIB:.0f} MiB"
    return f"{value / GIB:.1f} GiB"


def traffic(value: float) -> str:
    """Bytes a second in MB/s or GB/s (decimal, as buses are given)."""
    return f"{value / 1e9:.1f} GB/s" if value >= 1e9 else f"{value / 1e6:.0f} MB/s"


def seconds(value: float) -> str:
    """A short time with three digits: `0.42 ms`, `212 ms`, `1.24 s`, `12.4 s`, `124 s`."""
    if value == 0:
        return "0 ms"
    if abs(value) < 0.001:
        return f"{value * 1000:.2f} ms"
    if abs(value) < 0.0095:
        return f"{value * 1000:.1f} ms"
    if abs(value) < 0.9995:
        return f"{value * 1000:.0f} ms"
    if abs(value) < 9.995:
        return f"{value:.2f} s"
    return f"{value:.1f} s" if abs(value) < 99.95 else f"{value:.0f} s"


def duration(value: float) -> str:
    """A span of time to wait for: `45 s`, `4 min 20 s`, `1 h 12 min`, `3 d 4 h`."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def rate(value: float) -> str:
    """Tokens a second, bare: three digits or one decimal."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 999.5 else f"{value:.0f}"


def effect(ratio: float) -> str:
    """A ratio as its difference from 1: `+1.2 %`."""
    return f"{(ratio - 1) * 100:+.1f} %"


def homely(text: str) -> str:
    """A path, or a text with paths in it, with `~` for the user's home: shorter, and a picture of it names nobody."""
    try:
        home = str(Path.home())
    except RuntimeError:
        return text
    return text if len(home) < 2 else re.sub(rf"(?<![\w./~-]){re.escape(home)}(?![\w.-])", "~", text)


def parameters(count: int) -> str:
    """Parameters of a model: `268 M`, `4.3 B`."""
    return f"{count / 1e9:.1f} B" if count >= 999_500_000 else f"{count / 1e6:.0f} M"


def clock(wall: float, *, with_seconds: bool = True) -> str:
    """Local time of day of a wall clock in seconds since the epoch."""
    return time.strftime("%H:%M:%S" if with_seconds else "%H:%M", time.localtime(wall))
