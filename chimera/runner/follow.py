"""Follow a run through its journal: what every view of a run reads, whoever works on it."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from chimera.domain.finding import Finding
from chimera.domain.measurement import Measurement
from chimera.domain.run import COMPARING, ENDED, Progress, Run, Session, SessionState, Statistic, Trial
from chimera.domain.server import Effective
from chimera.domain.verdict import Metric, Verdict
from chimera.store.blame import blame, blame_words

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
    compared: Compared | None = None
    """Of a run that compares candidates; None of any other."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison as it stands, by candidate."""

    metric: Metric
    """The objective."""
    verdicts: tuple[Verdict, ...]
    """Of the objective, in the plan's order."""
    figures: Mapping[str, Statistic]
    """Of the objective over the sessions that are done, in its own unit."""
    sessions: Mapping[str, int]
    void: Mapping[str, int]
    blame: Mapping[str, str] = field(default_factory=dict)
    """What held the newest session of a candidate back, in one line."""


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
        self._requests: dict[int, list[Measurement]] = {}
        """Of the sessions that have not ended."""
        self._ended = 0
        """The newest session of those that have ended: they change no more, so each is looked at once."""
        self._count: dict[SessionState, Counter[str]] = {"done": Counter(), "void": Counter()}
        self._costs: dict[str, list[dict[Metric, float]]] = {}
        self._blame: dict[str, str] = {}
        self._compared: Compared | None = None

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
        # Before the requests: those of a session that has ended are then all among them.
        sessions = self.journal.sessions(self.run_id, after=self._ended) if run.kind in COMPARING else []
        new = tuple(self.journal.measurements(self.run_id, after=self._row))
        events = tuple(self.journal.events(self.run_id, after=self._event))
        self._row = new[-1].id if new else self._row
        self._event = events[-1].id if events else self._event
        progress = self.journal.progress(self.run_id)
        trials = tuple(self.journal.trials(self.run_id))
        candidate = progress.candidate if progress and progress.candidate else (trials[0].candidate if trials else "")
        effective = self.journal.effective(self.run_id, candidate) if candidate else None
        for row in new if run.kind in COMPARING else ():
            self._requests.setdefault(row.session, []).append(row.measurement)
        ended = list(takewhile(lambda one: one.state in {"done", "void"}, sessions))
        self._take(ended, run.workload.output_tokens)
        if run.kind in COMPARING and (first or new or events or ended):
            self._compared = self._compare(run)
        return Update(run, progress, trials, effective, new, events, first, self._checked(run), self._compared)

    def _take(self, ended: Sequence[Session], output_tokens: int) -> None:
        """Keep of sessions what a table shows of them, and let go of their requests."""
        from .costs import costs_of

        newest: dict[str, tuple[Session, list[Measurement]]] = {}
        for session in ended:
            requests = self._requests.pop(session.seq, [])
            self._ended = session.seq
            self._count[session.state][session.candidate] += 1
            if session.state == "done":
                self._costs.setdefault(session.candidate, []).append(costs_of(session, requests, output_tokens))
                newest[session.candidate] = (session, requests)
        self._blame |= {name: blame_words(blame(*seen)) for name, seen in newest.items()}

    def _compare(self, run: Run) -> Compared:
        """What a table of candidates shows; verdicts are read, never made here."""
        stages: list[dict[str, Any]] = run.plan.get("stages", [run.plan])
        rules: dict[str, Any] = next((one["rules"] for one in reversed(stages) if "rules" in one), {})
        metric: Metric = rules.get("objective", "decode_tok_s")
        figures: dict[str, Statistic] = {}
        for name, costs in self._costs.items():
            if seen := [one[metric] for one in costs if metric in one]:
                figures[name] = _statistic(metric, seen)
        verdicts = tuple(row for row in self.journal.verdicts(self.run_id) if row.metric == metric)
        done, void = Counter(self._count["done"]), Counter(self._count["void"])
        return Compared(metric, verdicts, figures, done, void, dict(self._blame))

    def _checked(self, run: Run) -> tuple[Finding, ...] | None:
        """The run's findings, read once a second: they carry curves, and change every few seconds only."""
        ended = run.state in ENDED
        if ended or time.monotonic() - self._findings_at >= FINDINGS_S:
            self._findings_at = time.monotonic()
            found = tuple(self.journal.findings(self.run_id))
            # No row can also mean that nobody has looked yet; the first look comes within some seconds.
            self._findings = found if found or ended or self._findings is not None or self._row else None
        return self._findings


def _statistic(metric: Metric, costs: Sequence[float]) -> Statistic:
    """Over the sessions, in the metric's own unit."""
    from chimera.tuning.statistics import natural

    values = [natural(metric, cost) for cost in costs]
    spread = statistics.stdev(values) / statistics.fmean(values) if len(values) > 1 else None
    return Statistic(statistics.median(values), spread, len(values))
