"""What the screens show: the newest of everything, kept by the app, painted by whichever screen is on top."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from chimera.domain.measurement import Measurement
from chimera.domain.readings import Missing, Reading, number
from chimera.domain.run import ENDED, Progress, Run, RunState, Target
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.domain.text import plain
from chimera.telemetry.alerts import AlertBook, Mark
from chimera.telemetry.loaded import Loaded

from .feeds import ACTIVE, Watched

if TYPE_CHECKING:
    from chimera.diagnosis.evidence import EngineStart
    from chimera.domain.telemetry import ServerSample, Snapshot, VramParts
    from chimera.runner.follow import Update

OVER: frozenset[RunState] = ENDED | {"crashed"}
"""States in which a run stays until somebody does something."""
Known = tuple[str, str | None, str | None]
Ended = tuple[str, RunState, float | None]
"""A run at an end of its; it may be resumed, and then has another one."""
Asked = tuple[str, str]
"""A run, and its candidate that answers beside the baseline; empty for the one that it recommends."""
RECENT = 600
STARTS = 20


def _same(one: str | None, other: str | None) -> bool:
    from chimera.backends.address import same_server

    return same_server(one, other)


def _key(target: Target) -> Known:
    return (target.kind, target.url, target.model)


@dataclass(slots=True)
class Draft:
    """The comparison that is thought out on the Tune screen; it stays while other screens are looked at."""

    values: dict[str, str] = field(default_factory=dict)
    """What was typed for each parameter that is compared."""
    objective: str = "rate"
    said: str = ""
    """What stands in the place of its plan."""
    of: tuple[str, ...] = ()
    """What that speaks of: the comparison as the command line takes it."""
    drawn: Mapping[str, Any] | None = None
    """The plan of it, as the command line gave it."""
    left: str | None = None
    """A run that the user has turned away from, to plan another one."""

    def say(self, text: str, of: tuple[str, ...]) -> None:
        """Put a text in the plan's place; the plan of another comparison than this one is dropped."""
        if of != self.of:
            self.drawn = None
        self.said, self.of = text, of


@dataclass(frozen=True, slots=True)
class Work:
    """A command of our own that has not ended."""

    goes_on: str = ""
    """What to say of it to somebody who leaves."""
    engine: bool = True
    """It loads an engine or begins a run: beside it nothing else that does so is begun."""


@dataclass(slots=True)
class LiveState:
    """Mutable, on the UI's thread only."""

    target: Target | None = None
    """Where the next run goes."""
    servers: tuple[ServerInfo, ...] = ()
    explanation: str = "looking for a server …"
    snapshot: Snapshot | None = None
    recent: deque[Snapshot] = field(default_factory=lambda: deque(maxlen=RECENT))
    """The last ten minutes, for the Doctor."""
    starts: deque[EngineStart] = field(default_factory=lambda: deque(maxlen=STARTS))
    """The last engines that the server for the next run has started, for others than a run of ours."""
    seen: ServerSample | None = None
    """The newest look at the server, oftener than the snapshot's."""
    parts: Mapping[str, VramParts] = field(default_factory=dict)
    roof: Reading | None = None
    update: Update | None = None
    """The followed run's newest state."""
    busy: Run | None = None
    """The run that is worked on, as the journal was last asked, whoever started it and whichever is shown."""
    busy_with: Progress | None = None
    used: Run | None = None
    """A run that has ended and whose settings somebody loads all the same, as the journal was last asked."""
    disturbed_at: float = float("-inf")
    """Newest reading with something of ours at work, on the readings' clock."""
    measurements: list[Measurement] = field(default_factory=list)
    """Of the followed run, oldest first."""
    inspected: dict[Known, Loaded] = field(default_factory=dict)
    """What servers have told of themselves."""
    draft: Draft = field(default_factory=Draft)
    figures: dict[Ended, Mapping[str, Any]] = field(default_factory=dict)
    """Of runs with several agents that have ended; nothing where none could be computed."""
    steered: tuple[str, RunState, str] | None = None
    """The run that was last paused or resumed here, its state then, and which of both; None once that has shown."""
    working: dict[str, Work] = field(default_factory=dict)
    """Commands of our own that have not ended, by name."""
    answers: dict[Asked, Mapping[str, Any]] = field(default_factory=dict)
    """The newest answers of two settings to one prompt, as the command line gave them."""
    unread: Asked | None = None
    """Those of them that nobody has seen yet."""
    reload_agreed: bool = False
    """The user agreed, in this UI, that a server that is not ours reloads."""
    book: AlertBook = field(default_factory=AlertBook)
    epoch: float = field(default_factory=lambda: time.time() - time.monotonic())
    """Wall clock at 0 on the monotonic clock."""
    _drawn: Mark | None = None

    @property
    def running(self) -> bool:
        """The followed run is being worked on."""
        return self.update is not None and self.update.run.state in ACTIVE

    @property
    def at_work(self) -> Run | None:
        """The run that is worked on: the followed one, else another, which disturbs and is disturbed all the same."""
        followed = self.update.run if self.update is not None else None
        if followed is not None and (self.running or self.busy is None or self.busy.id == followed.id):
            return followed if self.running else None
        return self.busy

    def paused(self, run: Run) -> bool:
        """A run waits, or will as soon as its request has ended: what was last asked of it counts."""
        if self.steered is not None and self.steered[:2] == (run.id, run.state):
            return self.steered[2] == "pause"
        return run.state == "paused"

    @property
    def engaged(self) -> tuple[str, str] | None:
        """What is at work on an engine here, in words, and what it is that will end; None where nothing is."""
        run = self.at_work
        if run is not None:
            return "A run goes on", run.id
        name = next((name for name, work in self.working.items() if work.engine), None)
        if name is not None:
            return f"The {plain(name)} is still at work", "that"
        return None if self.used is None else (f"Another program of ours uses run {self.used.id}", "that")

    @property
    def calm(self) -> tuple[Snapshot, ...]:
        """Readings of the last ten minutes since anything of ours was at work: that is not this machine's own state.

        The share of the processor in a reading is that of the time since the one before it.
        """
        return tuple(one for one in self.recent if one.at > self.disturbed_at)[self.disturbed_at > float("-inf") :]

    def see(self, snapshot: Snapshot) -> None:
        """Take in a reading."""
        self.snapshot = snapshot
        self.recent.append(snapshot)
        if self.engaged is not None or self.working:
            self.disturbed_at = snapshot.at

    @property
    def timing(self) -> bool:
        """A request of ours is in flight: what costs much waits."""
        followed = self.update.run.id if self.update is not None else None
        others = self.busy_with if self.busy is not None and self.busy.id != followed else None
        return any(one is not None and one.stage in {"warmup", "measuring"} for one in (self.progress, others))

    @property
    def progress(self) -> Progress | None:
        """Of the followed run while it is being worked on."""
        return self.update.progress if self.update is not None and self.running else None

    @property
    def _of_run(self) -> bool:
        """The followed run tells more of the server than what was asked before it."""
        if self.update is None or self.update.run.server is None:
            return False
        return self.running or self.target is None or _same(self.update.run.target.url, self.target.url)

    @property
    def _here(self) -> Loaded:
        """What was told by the server that is shown."""
        target = self.update.run.target if self.update is not None and self._of_run else self.target
        return self.inspected.get(_key(target), Loaded()) if target is not None else Loaded()

    @property
    def server(self) -> ServerInfo | None:
        """The server to show: the followed run's while it goes on, else the one for the next run."""
        if self.update is not None and self._of_run:
            return self.update.run.server
        if self.target is None:
            return None
        known = self._here.server or next((one for one in self.servers if _same(one.url, self.target.url)), None)
        return known or ServerInfo(self.target.kind, self.target.url or "")

    @property
    def model(self) -> ModelInfo | None:
        """The model to show."""
        if self.update is not None and self._of_run and self.update.run.model is not None:
            return self.update.run.model
        if self._here.model is not None:
            return self._here.model
        return ModelInfo(self.target.model) if self.target is not None and self.target.model else None

    @property
    def effective(self) -> Effective | None:
        """What runs, as far as anybody has told."""
        if self.update is not None and self._of_run and self.update.effective is not None:
            return self.update.effective
        return self._here.effective

    @property
    def watched(self) -> Watched:
        """What telemetry is to look at: the run's own engine while it runs, else the server for the next run."""
        server, progress = self.server, self.progress
        if progress is not None and progress.url:
            server = replace(server or ServerInfo(self.update.run.target.kind, ""), url=progress.url)  # type: ignore[union-attr]  # there is progress
        elif self.update is not None and self._of_run and self.update.run.target.url is None and server is not None:
            server = replace(server, url="")  # an engine of a run's own ends with its session
        loaded = Loaded(server, self.model, self._here.shape, self.effective)
        pids = (progress.pid,) if progress is not None and progress.pid else ()
        workers = (one.worker for one in (progress, self.busy_with) if one is not None and one.worker is not None)
        return Watched(loaded, pids, tuple(workers), quiet=self.timing)

    @property
    def problem(self) -> str:
        """Why there is no server to show."""
        return self.explanation if self.target is None else self._here.problem

    def knows(self, target: Target) -> bool:
        """This server has been asked already."""
        return _key(target) in self.inspected

    def inspect(self, target: Target, loaded: Loaded) -> None:
        """Take in what a server told."""
        self.inspected[_key(target)] = loaded

    def hear(self, run: Run | None, progress: Progress | None, used: Run | None) -> None:
        """Take in what is at work."""
        self.busy, self.busy_with, self.used = run, progress, used
        self._settle(run)

    def _settle(self, run: Run | None) -> None:
        """What was asked of this run has shown, or something else has."""
        if self.steered is not None and run is not None and run.id == self.steered[0] and run.state != self.steered[1]:
            self.steered = None

    def new_marks(self) -> list[Mark]:
        """Moments for the charts that were not handed out before."""
        marks = self.book.marks
        place = next((index for index in range(len(marks) - 1, -1, -1) if marks[index] is self._drawn), -1)
        self._drawn = marks[-1] if marks else None
        return list(marks[place + 1 :])

    def take(self, update: Update) -> bool:
        """Take in what is new of a run; True where it is another run than before."""
        other = self.update is None or self.update.run.id != update.run.id
        if other:
            self.draft.left = None
        other = other or update.first
        if other:
            self.measurements = []
        self.update = update
        self._settle(update.run)
        self.measurements += [row.measurement for row in update.new]
        return other

    def rate(self) -> tuple[Reading | None, str]:
        """The rate to show now, and whose it is."""
        update = self.update
        if update is not None and update.run.state == "running" and update.progress is not None:
            progress = update.progress
            if progress.stage in {"measuring", "warmup"} and progress.rate is not None:
                which = "first request, discarded" if progress.stage == "warmup" else f"request {progress.request}"
                if progress.lanes:
                    which = f"{len(progress.lanes)} agent{'s' if len(progress.lanes) > 1 else ''} together"
                return progress.rate, f"{which}, client's clock"
            words = {"loading": "loading the model", "measuring": "reading the prompt", "warmup": "reading the prompt"}
            return None, words.get(progress.stage, progress.stage)
        sample = self.seen
        if sample is not None:
            if sample.loading:
                return None, "loading a model"
            if isinstance(sample.rate, Missing):
                if sample.rate.reason == "pending":
                    return None, sample.rate.detail or "looking at the server …"
                return sample.rate, "all clients"
            if sample.rate > 0:
                return sample.rate, f"all clients, by {sample.via}"
            return None, "reading a prompt" if sample.prefilling else "nothing is being generated"
        if update is not None and update.run.state in ENDED:
            return None, f"run {update.run.id} {update.run.state}"
        return None, "nothing is being generated"

    def others_ttft(self) -> tuple[float, str] | None:
        """Newest time to first token of other clients and where it was seen; None while a run of ours is among them."""
        value = number(self.seen.ttft_s) if self.seen is not None and not self.running else None
        return None if value is None or self.seen is None else (value, self.seen.via)

    def rates(self) -> list[float]:
        """Decode rates of the followed run's valid measurements, the server's clock where it tells.

        None of a run with several agents, also between its sessions: theirs are each for itself, the rate that is shown
        is of all together.
        """
        if self.update is not None and self.update.run.several:
            return []
        return [one.rate for one in self.measurements if one.valid and one.rate is not None]

    def counts(self) -> tuple[int, int, Counter[str]]:
        """Valid, cold, and void by reason."""
        valid = sum(one.valid for one in self.measurements)
        cold = sum(one.cold for one in self.measurements)
        return valid, cold, Counter(one.void_reason for one in self.measurements if one.void_reason)
