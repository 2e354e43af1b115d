"""A reading is a number, or the reason why there is none. Never 0 for unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["measured", "derived", "estimated", "unknown"]
"""How a figure is known: read off, computed from what was read off, guessed by a stated rule, or not at all."""

MissingReason = Literal["unsupported", "stale", "lost", "denied", "unreachable", "pending"]


@dataclass(frozen=True, slots=True)
class Missing:
    """Why there is no number."""

    reason: MissingReason
    """`unsupported` by this hardware or server, `stale` since `since`, `lost` with its device, `denied` by
    permissions, `unreachable` from here, or `pending`: not read yet."""
    detail: str = ""
    """One short clause for a person, e.g. `NVML: Not Supported`."""
    since: float | None = None
    """Monotonic seconds since when there is none, where that is known."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


Reading = float | Missing
"""A number in the unit that the field's name or docstring gives, or the reason why there is none."""

PENDING = Missing("pending")


def number(reading: Reading | None) -> float | None:
    """The number, or None where there is none."""
    return None if reading is None or isinstance(reading, Missing) else reading
