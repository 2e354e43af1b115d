"""What the screens show: the newest of everything, kept by the app, painted by whichever screen is on top."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from chimera.domain.measurement import Measurement
from chimera.domain.readings import Missing, Reading
from chimera.domain.run import ENDED, Target
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.domain.telemetry import Snapshot
from chimera.runner.follow import Update

from .messages import Inspected


@dataclass(slots=True)
class LiveState:
    """Mutable, on the UI's thread only."""

    target: Target | None = None
    """Where the next run goes."""
    servers: tuple[ServerInfo, ...] = ()
    explanation: str = "looking for a server …"
    snapshot: Snapshot | None = None
    update: Update | None = None
    """The followed run's newest state."""
    measurements: list[Measurement] = field(default_factory=list)
    """Of the followed run, oldest first."""
    inspected: Inspected | None = None
    """What the server of `target` has told of itself."""
    reload_agreed: bool = False
    """The user agreed, in this UI, that a server that is not ours reloads."""

    @property
    def running(self) -> bool:
        """The followed run is being worked on."""
        return self.update is not None and self.update.run.state in {"running", "paused", "queued"}

    @property
    def _of_run(self) -> bool:
        """The followed run tells more of the server than what was asked before it."""
        if self.update is None or self.update.run.server is None:
            return False
        return self.running or self.target is None or self.update.run.target.url == self.target.url

    @property
    def _here(self) -> Inspected | None:
        """What was inspected, as long as it is of the target."""
        return self.inspected if self.inspected is not None and self.inspected.target == self.target else None

    @property
    def server(self) -> ServerInfo | None:
        """The server to show: the followed run's while it goes on, else the one for the next run."""
        if self.update is not None and self._of_run:
            return self.update.run.server
        if self.target is None:
            return None
        known = self._here.server if self._here is not None else None
        known = known or next((one for one in self.servers if one.url == self.target.url), None)
        return known or ServerInfo(self.target.kind, self.target.url or "")

    @property
    def model(self) -> ModelInfo | None:
        """The model to show."""
        if self.update is not None and self._of_run and self.update.run.model is not None:
            return self.update.run.model
        if self._here is not None and self._here.model is not None:
            return self._here.model
        return ModelInfo(self.target.model) if self.target is not None and self.target.model else None

    @property
    def effective(self) -> Effective | None:
        """What runs, as far as anybody has told."""
        if self.update is not None and self._of_run and self.update.effective is not None:
            return self.update.effective
        return self._here.effective if self._here is not None else None

    @property
    def problem(self) -> str:
        """Why there is no server to show."""
        if self.target is None:
            return self.explanation
        return (self._here.problem or "") if self._here is not None else ""

    def take(self, update: Update) -> bool:
        """Take in what is new of a run; True where it is another run than before."""
        other = self.update is None or self.update.run.id != update.run.id or update.first
        if other:
            self.measurements = []
        self.update = update
        self.measurements += [row.measurement for row in update.new]
        return other

    def rate(self) -> tuple[Reading | None, str]:
        """The rate to show now, and whose it is."""
        update = self.update
        if update is not None and update.run.state == "running" and update.progress is not None:
            progress = update.progress
            if progress.stage in {"measuring", "warmup"} and progress.rate is not None:
                which = "first request, discarded" if progress.stage == "warmup" else f"request {progress.request}"
                return progress.rate, f"{which}, client's clock"
            words = {"loading": "loading the model", "measuring": "reading the prompt", "warmup": "reading the prompt"}
            return None, words.get(progress.stage, progress.stage)
        sample = self.snapshot.server if self.snapshot else None
        if sample is not None:
            if not isinstance(sample.rate, Missing) and sample.rate > 0:
                return sample.rate, f"all clients, by {sample.via}"
            return None, sample.note or "nothing is being generated"
        if update is not None and update.run.state in ENDED:
            return None, f"run {update.run.id} {update.run.state}"
        return None, "nothing is being generated"

    def rates(self) -> list[float]:
        """Decode rates of the followed run's valid measurements, the server's clock where it tells."""
        return [one.rate for one in self.measurements if one.valid and one.rate is not None]

    def counts(self) -> tuple[int, int, Counter[str]]:
        """Valid, cold, and void by reason."""
        valid = sum(one.valid for one in self.measurements)
        cold = sum(one.cold for one in self.measurements)
        return valid, cold, Counter(one.void_reason for one in self.measurements if one.void_reason)
