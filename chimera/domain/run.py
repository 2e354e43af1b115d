"""What the user started: a run, its trials and their sessions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .measurement import VoidReason
from .options import Options
from .readings import Source
from .server import ModelInfo, ServerInfo, ServerKind
from .workload import Workload

RunKind = Literal["run", "sweep", "tune", "validate", "agents", "thermal", "import"]
RunState = Literal["queued", "running", "paused", "done", "stopped", "failed", "crashed"]
"""`crashed` is never stored: a run that is running or paused, or was queued a while ago, whose worker's lock is free.
`stopped`: by the user; `failed`: by an error that `Run.error` names. Stopped, failed and crashed can be resumed."""
ENDED: frozenset[RunState] = frozenset({"done", "stopped", "failed"})
COMPARING: frozenset[RunKind] = frozenset({"sweep", "tune", "validate", "agents"})
"""Kinds of runs that follow a plan of rounds."""
RESUMABLE: frozenset[RunState] = frozenset({"stopped", "failed", "crashed"})

TrialRole = Literal["baseline", "candidate", "current"]
SessionPhase = Literal["measure", "preflight", "screen", "confirm"]
SessionState = Literal["planned", "running", "done", "void"]


@dataclass(frozen=True, slots=True)
class Target:
    """Which server and model a run is for, as far as it was fixed when the run was created."""

    kind: ServerKind
    url: str | None = None
    """None for the embedded engine and for a llama-server that the worker starts."""
    model: str | None = None
    """Name on the server; None = what is loaded, or the first one."""
    command: tuple[str, ...] = ()
    """For a llama-server that the worker starts: the binary and its fixed flags."""
    folder: str | None = None
    """Where that command was given: its paths are seen from there, and a worker is at home."""
    assume_yes: bool = False
    """The user agreed that a server that is not ours may be made to reload."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate configuration of a run."""

    candidate: str
    """`c0`, `c1`, ...; c0 is the baseline wherever there is one."""
    role: TrialRole
    requested: Options
    effective: Options | None = None
    """As read back or derived; None until it was loaded."""
    merged: tuple[str, ...] = ()
    """Other candidates with the same effect, which are not run again."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """One load of one configuration: a discarded full-length request, then measured ones."""

    seq: int
    """Order in the run, from 1; never used twice, a repeated session gets a new one."""
    candidate: str
    round: int = 1
    phase: SessionPhase = "measure"
    state: SessionState = "planned"
    void_reason: VoidReason | None = None
    started_at: float | None = None
    ended_at: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """What was seen around it: clocks, throttle shares, energy, VRAM peak, other tenants, load time."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the journal keeps it."""

    id: str
    """Four or more characters of a-z and 2-9, short enough to type."""
    kind: RunKind
    state: RunState
    created_at: float
    """Wall clock, seconds since the epoch, like all times of a run."""
    target: Target
    workload: Workload
    seed: int
    preset: str | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    """Settings of the protocol that the kind needs: rounds, phases, axes, band."""
    server: ServerInfo | None = None
    """Known once the worker has reached it."""
    model: ModelInfo | None = None
    host: dict[str, Any] = field(default_factory=dict)
    gpus: tuple[dict[str, Any], ...] = ()
    started_at: float | None = None
    ended_at: float | None = None
    error: str | None = None
    name: str | None = None
    seq: int = 0
    """Order of creation in its journal, from 1; the key for paging through older runs. 0 = not from a journal."""

    @property
    def resumable(self) -> bool:
        """Something is left that a worker can do; what an import lacks is only in its file."""
        return self.state in RESUMABLE and self.kind != "import"

    @property
    def several(self) -> bool:
        """Several agents at once are among what it measures."""
        return self.kind == "agents" or self.workload.agents > 1


@dataclass(frozen=True, slots=True)
class Lane:
    """One agent of a run, as it stands now."""

    agent: int
    state: Literal["queued", "loading", "prefill", "decoding", "done", "waiting"]
    tokens: int = 0
    """Of its request in flight, so far."""
    rate: float | None = None
    """Tokens a second over about the last second."""
    ttft_s: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands now; written by its worker about 5 times a second while it works."""

    stage: Literal["starting", "loading", "warmup", "measuring", "cooling", "paused", "finishing"]
    at: float
    """Wall clock of this writing."""
    session: int = 0
    sessions: int = 0
    """Planned in all, as far as known; 0 = unknown."""
    request: int = 0
    """1-based, within the session; 0 = the discarded one or none."""
    requests: int = 0
    candidate: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    """Requested options of the configuration in work."""
    tokens: int = 0
    """Of the request in flight, so far."""
    tokens_planned: int = 0
    rate: float | None = None
    """Current decode rate of the request in flight, tokens a second over about the last second."""
    ttft_s: float | None = None
    """Of the request in flight, once its first token came."""
    eta_s: float | None = None
    url: str | None = None
    """Address of the server that the worker started."""
    pid: int | None = None
    """The engine that the worker started."""
    text: str = ""
    """One line for a person."""
    lanes: tuple[Lane, ...] = ()
    """The agents, where there are several."""
    worker: int | None = None
    """The process that works on the run."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """A figure of a trial over its sessions."""

    median: float
    cv: float | None
    n: int
    source: Source = "measured"
