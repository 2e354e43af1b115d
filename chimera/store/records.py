"""What the journal returns beside the words of the domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from chimera.domain.finding import Severity
from chimera.domain.measurement import Measurement
from chimera.domain.run import SessionPhase

Command = Literal["pause", "resume", "stop"]
"""What a worker can be asked."""
Level = Severity


@dataclass(frozen=True, slots=True)
class Row:
    """A measurement with its place in the run."""

    id: int
    """Grows with each measurement of a journal; a follower asks for what is after the last one it has seen."""
    session: int
    candidate: str
    round: int
    phase: SessionPhase
    measurement: Measurement


@dataclass(frozen=True, slots=True)
class Tally:
    """How many requests of a run count, and how many do not."""

    valid: int = 0
    void: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log of what happened."""

    id: int
    at: float
    """Wall clock."""
    text: str
    level: Level = "info"
    run: str | None = None
    """Id of the run, None where it belongs to none."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """Settings of a server that a run changed and that were not put back."""

    run: str
    server_url: str
    data: dict[str, Any]
    """As the backend gave them; `Backend.restore` takes them back."""
    at: float
    """Wall clock when they were read, before the run changed anything."""
