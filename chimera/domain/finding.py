"""A symptom that was seen, with what shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .readings import Source

FindingCode = Literal[
    "low-throughput", "high-ttft", "vram-exhaustion", "inconsistent-performance", "thermal-throttling",
    "power-throttling", "cpu-offload", "reload-thrash", "context-truncation", "clamped-settings", "cold-load",
    "queueing", "prompt-cache-hit", "foreign-load", "gpu-lost", "gpu-unused", "driver-mismatch", "low-clocks",
    "pcie-bottleneck", "server-regression", "measurement-noise",
]  # fmt: skip
Severity = Literal["info", "notice", "warn", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "notice", "warn", "error")


@dataclass(frozen=True, slots=True)
class Evidence:
    """One figure that speaks for a finding."""

    what: str
    value: float | str | None
    threshold: float | str | None = None
    window_s: float | None = None
    source: Source = "measured"
    unit: str = ""
    via: str = ""
    """Where it was read: `own timings`, `/api/ps`, `NVML counters`, `journal`, ..."""
    series: tuple[tuple[float, float], ...] = ()
    """The points behind the figure, (seconds, value) with the first at 0, where a little chart helps."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """What helps; where it is a setting, `options` says which."""

    text: str
    options: dict[str, int | float | str] | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """A possible cause with what speaks for and against it."""

    id: str
    """Stable, under its family's code: `high-ttft/cold-load`."""
    title: str
    speaks_for: tuple[Evidence, ...] = ()
    speaks_against: tuple[Evidence, ...] = ()
    share: float | None = None
    """Part of the symptom that it explains, 0 to 1, where that can be told."""
    check: str = ""
    """What would tell, where the evidence at hand cannot."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One symptom seen in the evidence."""

    code: FindingCode
    severity: Severity
    title: str
    evidence: tuple[Evidence, ...]
    cause: str | None = None
    """Id of the first cause, where the evidence supports one."""
    causes: tuple[Cause, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    since: float | None = None
    """Wall clock when it was first seen."""
    session: int | None = None
    subject: str = ""
    """What it is about where there are several of a kind: a GPU's UUID."""
