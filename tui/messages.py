"""What reaches the app from its threads: frozen facts, past events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message

from chimera.domain.run import Target
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.domain.telemetry import Snapshot
from chimera.runner.follow import Update

if TYPE_CHECKING:
    from chimera.model.shape import ModelShape


@dataclass
class SnapshotTaken(Message):
    """A new reading of GPUs, host and server is in."""

    snapshot: Snapshot

    def can_replace(self, message: Message) -> bool:
        """Only the newest reading matters."""
        return isinstance(message, SnapshotTaken)


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
    server: ServerInfo | None = None
    model: ModelInfo | None = None
    shape: ModelShape | None = None
    effective: Effective | None = None
    problem: str | None = None


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
