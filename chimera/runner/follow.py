"""Follow a run through its journal: what every view of a run reads, whoever works on it."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chimera.domain.finding import Finding
from chimera.domain.measurement import Measurement
from chimera.domain.run import ENDED, Progress, Run, RunKind, Session, Statistic, Trial
from chimera.domain.server import Effective
from chimera.domain.verdict import Metric, Verdict
from chimera.store.blame import blame, blame_words

FINDINGS_S = 1.0
COMPARES: frozenset[RunKind] = frozenset({"sweep", "tune", "validate", "agents"})

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
        new = tuple(self.journal.measurements(self.run_id, after=self._row))
        events = tuple(self.journal.events(self.run_id, after=self._event))
        self._row = new[-1].id if new else self._row
        self._event = events[-1].id if events else self._event
        progress = self.journal.progress(self.run_id)
        trials = tuple(self.journal.trials(self.run_id))
        candidate = progress.candidate if progress and progress.candidate else (trials[0].candidate if trials else "")
        effective = self.journal.effective(self.run_id, candidate) if candidate else None
        for row in new:
            self._requests.setdefault(row.session, []).append(row.measurement)
        if run.kind in COMPARES and (first or new or events):
            self._compared = self._compare(run)
        return Update(run, progress, trials, effective, new, events, first, self._checked(run), self._compared)

    def _compare(self, run: Run) -> Compared:
        """What a table of candidates shows; verdicts are read, never made here."""
        stages: list[dict[str, Any]] = run.plan.get("stages", [run.plan])
        rules: dict[str, Any] = next((one["rules"] for one in reversed(stages) if "rules" in one), {})
        metric: Metric = rules.get("objective", "decode_tok_s")
        done, void = Counter[str](), Counter[str]()
        values: dict[str, list[float]] = {}
        lines: dict[str, str] = {}
        for session in self.journal.sessions(self.run_id):
            if session.state == "void":
                void[session.candidate] += 1
            elif session.state == "done":
                done[session.candidate] += 1
                seen = _values(metric, session, self._requests.get(session.seq, []), run.workload.output_tokens)
                lines[session.candidate] = blame_words(blame(session, self._requests.get(session.seq, [])))
                if seen:
                    values.setdefault(session.candidate, []).append(statistics.median(seen))
        figures = {name: _statistic(seen) for name, seen in values.items()}
        verdicts = tuple(row for row in self.journal.verdicts(self.run_id) if row.metric == metric)
        return Compared(metric, verdicts, figures, done, void, lines)

    def _checked(self, run: Run) -> tuple[Finding, ...] | None:
        """The run's findings, read once a second: they carry curves, and change every few seconds only."""
        ended = run.state in ENDED
        if ended or time.monotonic() - self._findings_at >= FINDINGS_S:
            self._findings_at = time.monotonic()
            found = tuple(self.journal.findings(self.run_id))
            # No row can also mean that nobody has looked yet; the first look comes within some seconds.
            self._findings = found if found or ended or self._findings is not None or self._row else None
        return self._findings


def _values(metric: Metric, session: Session, requests: Sequence[Measurement], output_tokens: int) -> list[float]:
    """What the valid requests of a session gave in a metric; of memory and energy the session's own figure."""
    if metric == "vram_bytes":
        return [session.facts["vram_peak_bytes"]] if session.facts.get("vram_peak_bytes") else []
    if metric == "energy_j_per_token":
        return [session.facts["energy_j_per_token"]] if session.facts.get("energy_j_per_token") else []
    if metric == "aggregate_tok_s":
        from chimera.tuning.concurrency import figures

        found = figures(requests)
        return [found.aggregate_tok_s] if found is not None else []
    valid = [one for one in requests if one.valid]
    if metric == "completion_s":
        return [one.ttft_s + (output_tokens - 1) / one.rate for one in valid if one.ttft_s is not None and one.rate]
    if metric == "ttft_s":
        return [one.ttft_s for one in valid if one.ttft_s is not None]
    return [one.rate for one in valid if one.rate is not None]


def _statistic(values: Sequence[float]) -> Statistic:
    spread = statistics.stdev(values) / statistics.fmean(values) if len(values) > 1 else None
    return Statistic(statistics.median(values), spread, len(values))
