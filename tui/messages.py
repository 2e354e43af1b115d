"""What reaches the app from its threads: frozen facts, past events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from textual.message import Message

from chimera.domain.readings import Reading
from chimera.domain.run import Progress, Run, Target
from chimera.domain.server import ModelInfo, ServerInfo
from chimera.telemetry.loaded import Loaded

if TYPE_CHECKING:
    from chimera.diagnosis.evidence import EngineStart
    from chimera.domain.telemetry import ServerSample, Snapshot, VramParts
    from chimera.runner.follow import Update


@dataclass
class SnapshotTaken(Message):
    """A new reading of GPUs, host and server is in, with what follows from it for the model that runs."""

    snapshot: Snapshot
    parts: Mapping[str, VramParts] = field(default_factory=dict)
    """What fills each GPU's memory, by UUID."""
    roof: Reading | None = None
    """What the bandwidth allows, tokens a second."""
    starts: tuple[EngineStart, ...] = ()
    """Engines of the server that were not there before."""


@dataclass
class ServerSeen(Message):
    """The server was looked at; it has a rate of its own."""

    sample: ServerSample

    def can_replace(self, message: Message) -> bool:
        """Only the newest look matters."""
        return isinstance(message, ServerSeen)


@dataclass
class RunChanged(Message):
    """The followed run has something new."""

    update: Update


@dataclass
class ServersFound(Message):
    """Detection has ended."""

    found: tuple[ServerInfo, ...]
    explanation: str
    """What was tried and what came back, for a person."""


@dataclass
class ModelsListed(Message):
    """A server has told what it could serve."""

    server: ServerInfo
    models: tuple[ModelInfo, ...]
    problem: str | None = None


@dataclass
class Inspected(Message):
    """A server has told about itself, its model, and what runs."""

    target: Target
    loaded: Loaded


@dataclass
class Told(Message):
    """Something for the log: what was done, or why it was not."""

    text: str
    level: str = "info"


@dataclass
class LeftChanged(Message):
    """A run that was killed has left a server with its settings; they can be put back."""

    run_id: str
    server_url: str


@dataclass
class Worked(Message):
    """What is at work, whoever started it, is another thing or in another stage."""

    run: Run | None
    """The run that is being worked on."""
    progress: Progress | None
    used: Run | None = None
    """A run that has ended and that somebody uses: its answers are read, or a server is put back."""


class TerminalLost(Message):
    """Nobody can see or type any more."""
