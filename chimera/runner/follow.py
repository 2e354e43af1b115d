"""Follow a run through its journal: what every view of a run reads, whoever works on it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chimera.domain.finding import Finding
from chimera.domain.run import ENDED, Progress, Run, Trial
from chimera.domain.server import Effective

FINDINGS_S = 1.0

if TYPE_CHECKING:
    from chimera.store.journal import Event, Journal, Row


@dataclass(frozen=True, slots=True)
class Update:
    """A run as it stands, and what is new since the last look."""

    run: Run
    progress: Progress | None
    trials: tuple[Trial, ...]
    effective: Effective | None
    """Of the configuration in work, or of the last one."""
    new: tuple[Row, ...]
    """Measurements that have ended since the last look, oldest first."""
    events: tuple[Event, ...]
    first: bool
    """Nothing was shown of this run before."""
    findings: tuple[Finding, ...] | None = None
    """What the rules have found, worst first; None before they were asked."""


class Follower:
    """Remembers what it has shown of a run."""

    def __init__(self, journal: Journal, run_id: str) -> None:
        self.journal = journal
        self.run_id = run_id
        self._row = 0
        self._event = 0
        self._changes: int | None = None
        self._state: str | None = None
        self._findings: tuple[Finding, ...] | None = None
        self._findings_at = 0.0

    def look(self) -> Update | None:
        """What is new, or None where nothing changed. Cheap enough for 5 times a second."""
        changes = self.journal.changes()
        first = self._changes is None
        if changes == self._changes:
            # A crash writes nothing: it shows only in the lock that became free.
            if self._state not in {"running", "paused", "queued"}:
                return None
            if self.journal.is_held(self.run_id):
                return None
        run = self.journal.run(self.run_id)
        if changes == self._changes and run.state == self._state:
            return None
        self._changes, self._state = changes, run.state
        new = tuple(self.journal.measurements(self.run_id, after=self._row))
        events = tuple(self.journal.events(self.run_id, after=self._event))
        self._row = new[-1].id if new else self._row
        self._event = events[-1].id if events else self._event
        progress = self.journal.progress(self.run_id)
        trials = tuple(self.journal.trials(self.run_id))
        candidate = progress.candidate if progress and progress.candidate else (trials[0].candidate if trials else "")
        effective = self.journal.effective(self.run_id, candidate) if candidate else None
        return Update(run, progress, trials, effective, new, events, first, self._checked(run))

    def _checked(self, run: Run) -> tuple[Finding, ...] | None:
        """The run's findings, read once a second: they carry curves, and change every few seconds only."""
        ended = run.state in ENDED
        if ended or time.monotonic() - self._findings_at >= FINDINGS_S:
            self._findings_at = time.monotonic()
            found = tuple(self.journal.findings(self.run_id))
            # No row can also mean that nobody has looked yet; the first look comes within some seconds.
            self._findings = found if found or ended or self._findings is not None or self._row else None
        return self._findings
