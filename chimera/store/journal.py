"""The journal of runs: what was started, measured, found, and where each run stands.

One short transaction a method, usable from several threads and processes at once. Times are wall clock, seconds since
the epoch. Methods that name a run by its id raise `ConfigError` where there is none.
"""

from __future__ import annotations

import difflib
import itertools
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Integer,
    Select,
    Table,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy import (
    Row as SqlRow,
)
from sqlalchemy import cast as cast_
from sqlalchemy.exc import IntegrityError

from chimera.domain.finding import Finding
from chimera.domain.measurement import Measurement, VoidReason
from chimera.domain.options import Options
from chimera.domain.run import ENDED, Progress, Run, RunKind, RunState, Session, SessionState, Target, Trial
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.domain.verdict import Verdict
from chimera.domain.workload import Workload
from chimera.errors import ConfigError, JournalError

from . import codec, database, schema
from .home import home
from .lock import WorkerLock, is_held
from .records import Command, Event, Level, Remembered, Row, Tally

__all__ = ["Command", "Event", "Journal", "Level", "Remembered", "Row", "Tally"]

SAMPLES_KEPT = 7200
"""Telemetry samples a run, or of the live monitor: two hours at 1 Hz; of more, the older half gets thinner."""
EVENTS_KEPT = 2000
"""Lines of the log a run, or of no run; of more, the oldest go."""
QUEUED_S = 30.0
"""A worker that has not taken its lock this long after its run was queued will not come."""

_FIRST_LETTERS = "abcdefghjkmnpqrstuvwxyz"
_LETTERS = _FIRST_LETTERS + "23456789"
_ACTIVE: tuple[RunState, ...] = ("queued", "running", "paused")
_MEASUREMENT_FIELDS = tuple(field.name for field in fields(Measurement))


def new_id(length: int, choose: Callable[[str], str] = secrets.choice) -> str:
    """An id to type: lower case without i, l and o, a letter first so that nothing takes it for a number."""
    return choose(_FIRST_LETTERS) + "".join(choose(_LETTERS) for _ in range(length - 1))


class Journal:
    """An open journal."""

    def __init__(self, engine: Engine, path: Path | None, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        """The file, or None where a database server holds it."""
        self._clock = clock
        self._reader = engine
        self._writer = engine.execution_options(writes=True)
        self._locks = (path.parent if path else home()) / "locks"
        self._seqs: dict[str, int] = {}
        self._added: dict[tuple[str, int | None], int] = {}
        self._watch: sqlite3.Connection | None = None
        self._watch_lock = threading.Lock()
        self._polls = itertools.count(1)

    @classmethod
    def open(cls, url: str | None = None, *, clock: Callable[[], float] = time.time) -> Journal:
        """The journal at `url`, else at `$CHIMERA_DB`, else in `home()`; made or migrated where that is needed.

        Raises:
            JournalError: it cannot be used; the sentence says what to do.
        """
        address = database.parse_url(url) if url else database.default_url()
        return cls(database.open_engine(address), database.file_of(address), clock)

    def close(self) -> None:
        """Close all connections; may be called twice."""
        with self._watch_lock:
            if self._watch is not None:
                self._watch.close()
                self._watch = None
        self._reader.dispose()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with database.explained(self.path), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with database.explained(self.path), self._writer.begin() as connection:
            yield connection

    def _seq(self, run_id: str) -> int:
        seq = self._seqs.get(run_id)
        if seq is None:
            with self._reading() as connection:
                seq = connection.scalar(select(schema.run.c.seq).where(schema.run.c.id == run_id))
            if seq is None:
                raise self._unknown(run_id)
            self._seqs[run_id] = seq
        return seq

    def _unknown(self, ref: str) -> ConfigError:
        with self._reading() as connection:
            ids = list(connection.scalars(select(schema.run.c.id).order_by(schema.run.c.seq.desc()).limit(2000)))
        if not ids:
            return ConfigError(f"There is no run {ref!r}: the journal is empty.")
        near = difflib.get_close_matches(ref, ids, n=3, cutoff=0.5)
        hint = f"Near it: {', '.join(near)}." if near else f"The newest ones: {', '.join(ids[:3])}."
        return ConfigError(f"There is no run {ref!r}. {hint} `chimera runs list` shows them all.")

    # Runs

    def create_run(
        self,
        kind: RunKind,
        target: Target,
        workload: Workload,
        *,
        seed: int,
        trials: Sequence[Trial],
        preset: str | None = None,
        plan: dict[str, Any] | None = None,
        name: str | None = None,
    ) -> Run:
        """A new run, queued, with its trials."""
        now = self._clock()
        values: dict[str, Any] = {
            "kind": kind,
            "state": "queued",
            "state_at": now,
            "created_at": now,
            "name": name,
            "preset": preset,
            "model": target.model,
            "seed": seed,
            "target": asdict(target),
            "workload": asdict(workload),
            "plan": plan or {},
            "host": {},
            "gpus": [],
        }
        for length in itertools.count(4):
            run_id = new_id(length)
            with self._writing() as connection:
                if connection.scalar(select(schema.run.c.seq).where(schema.run.c.id == run_id)) is not None:
                    continue
                result = connection.execute(insert(schema.run).values(id=run_id, **values))
                seq: int = result.inserted_primary_key[0]  # type: ignore[index]  # an insert has a key
                _write_trials(connection, seq, trials)
                self._seqs[run_id] = seq
                break
        return Run(
            id=run_id,
            kind=kind,
            state="queued",
            created_at=now,
            target=target,
            workload=workload,
            seed=seed,
            preset=preset,
            plan=codec.clean(plan or {}),
            name=name,
            seq=seq,
        )

    def run(self, ref: str) -> Run:
        """The run with this id, or whose id alone starts so; `last` is the newest.

        Raises:
            ConfigError: there is none, or several; the sentence names near ones.
        """
        ref = ref.strip().lower()
        table = schema.run
        with self._reading() as connection:
            row = connection.execute(select(table).where(table.c.id == ref)).first()
            if row is None and ref == "last":
                row = connection.execute(select(table).order_by(table.c.seq.desc()).limit(1)).first()
            elif row is None and ref:
                starts = table.c.id.startswith(ref, autoescape=True)
                rows = connection.execute(select(table).where(starts).order_by(table.c.seq.desc()).limit(6)).all()
                if len(rows) > 1:
                    ids = ", ".join(row.id for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
                    raise ConfigError(f"Several runs start with {ref!r}: {ids}. Give more of the id.")
                row = rows[0] if rows else None
        if row is None:
            raise self._unknown(ref)
        return self._runs([row])[0]

    def runs(
        self,
        *,
        kind: RunKind | None = None,
        state: RunState | None = None,
        model: str | None = None,
        text: str | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[Run]:
        """Runs, the newest first; `before` is the `Run.seq` of the last one of the page before.

        `text` is looked for in id, name, preset, model, kind and error.
        """
        query = select(schema.run).order_by(schema.run.c.seq.desc()).limit(limit)
        query = query.where(*self._filters(kind, state, model, text))
        if before is not None:
            query = query.where(schema.run.c.seq < before)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return self._runs(rows)

    def count_runs(
        self,
        *,
        kind: RunKind | None = None,
        state: RunState | None = None,
        model: str | None = None,
        text: str | None = None,
    ) -> int:
        """How many runs `runs` would give in all."""
        query = select(func.count()).select_from(schema.run).where(*self._filters(kind, state, model, text))
        with self._reading() as connection:
            return connection.scalar(query) or 0

    def tallies(self, runs: Sequence[Run]) -> dict[str, Tally]:
        """Counts of requests, by id, of the runs that a page shows: they cost more than the runs themselves."""
        table = schema.measurement
        kept = table.c.void_reason.is_(None)
        query = (
            select(
                table.c.run,
                func.count().filter(kept, table.c.role == "measure").label("valid"),
                func.count().filter(~kept).label("void"),
            )
            .where(table.c.run.in_([run.seq for run in runs]))
            .group_by(table.c.run)
        )
        with self._reading() as connection:
            found = {row.run: Tally(row.valid, row.void) for row in connection.execute(query)}
        return {run.id: found.get(run.seq, Tally()) for run in runs}

    def _filters(
        self, kind: RunKind | None, state: RunState | None, model: str | None, text: str | None
    ) -> list[ColumnElement[bool]]:
        columns = schema.run.c
        found: list[ColumnElement[bool]] = []
        if kind is not None:
            found.append(columns.kind == kind)
        if model is not None:
            found.append(columns.model == model)
        if text:
            places = (columns.id, columns.name, columns.preset, columns.model, columns.kind, columns.error)
            found.append(or_(*(place.icontains(text, autoescape=True) for place in places)))
        if state in _ACTIVE or state == "crashed":
            with self._reading() as connection:
                active = connection.execute(_states().where(columns.state.in_(_ACTIVE))).all()
            crashed = self._crashed(active)
            if state == "crashed":
                found.append(columns.seq.in_(crashed))
            else:
                found += [columns.state == state, columns.seq.not_in(crashed)]
        elif state is not None:
            found.append(columns.state == state)
        return found

    def _runs(self, rows: Sequence[SqlRow[Any]]) -> list[Run]:
        crashed = self._crashed([row for row in rows if row.state in _ACTIVE])
        return [_run(row, crashed=row.seq in crashed) for row in rows]

    def _crashed(self, active: Sequence[SqlRow[Any]]) -> list[int]:
        """Of runs that are stored as active, those (by `seq`) whose worker is gone."""
        now = self._clock()
        suspects = {
            row.seq: row.state
            for row in active
            if (row.state != "queued" or now - row.state_at > QUEUED_S) and not self.is_held(row.id)
        }
        if not suspects:
            return []
        # A worker writes the end of its run before it lets go of the lock. Seeing the lock free says nothing of a
        # state that was read before, so the state is read once more.
        with self._reading() as connection:
            again = connection.execute(_states().where(schema.run.c.seq.in_(suspects))).all()
        return [row.seq for row in again if row.state == suspects[row.seq]]

    def set_state(self, run_id: str, state: RunState, error: str | None = None) -> None:
        """Note where the run is; `running` stamps its start once and clears an earlier end, an end stamps the end."""
        if state == "crashed":
            raise ValueError("crashed is seen, never stored")
        now = self._clock()
        values: dict[str, Any] = {"state": state, "state_at": now}
        if state in ENDED:
            values |= {"ended_at": now, "error": error}
        else:
            values |= {"ended_at": None, "error": error}
        if state == "running":
            values["started_at"] = func.coalesce(schema.run.c.started_at, now)
        self._update_run(run_id, values)

    def identify(
        self,
        run_id: str,
        *,
        server: ServerInfo | None = None,
        model: ModelInfo | None = None,
        host: dict[str, Any] | None = None,
        gpus: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        """Note what the run met; None leaves what is there."""
        values: dict[str, Any] = {}
        if server is not None:
            values["server"] = asdict(server)
        if model is not None:
            values |= {"model_info": asdict(model), "model": model.name}
        if host is not None:
            values["host"] = host
        if gpus is not None:
            values["gpus"] = list(gpus)
        if values:
            self._update_run(run_id, values)

    def set_plan(self, run_id: str, plan: dict[str, Any]) -> None:
        """Replace the plan."""
        self._update_run(run_id, {"plan": plan})

    def rename(self, run_id: str, name: str | None) -> None:
        """Give the run a name of the user's, or take it away."""
        self._update_run(run_id, {"name": name})

    def _update_run(self, run_id: str, values: dict[str, Any]) -> None:
        seq = self._seq(run_id)
        with self._writing() as connection:
            found = connection.execute(update(schema.run).where(schema.run.c.seq == seq).values(**values)).rowcount
        if not found:
            raise self._unknown(run_id)

    def delete(self, run_id: str) -> None:
        """Remove the run and all that belongs to it.

        Raises:
            ConfigError: it has a worker.
        """
        seq = self._seq(run_id)
        if self.is_held(run_id):
            raise ConfigError(f"Run {run_id} is at work. End it first with `chimera stop {run_id}`.")
        with self.worker_lock(run_id), self._writing() as connection:
            connection.execute(delete(schema.run).where(schema.run.c.seq == seq))
        self._seqs.pop(run_id, None)

    # Trials and sessions

    def trials(self, run_id: str) -> list[Trial]:
        """In the order in which they were added."""
        table = schema.trial
        query = select(table).where(table.c.run == self._seq(run_id)).order_by(table.c.place)
        with self._reading() as connection:
            return [_trial(row) for row in connection.execute(query)]

    def add_trials(self, run_id: str, trials: Sequence[Trial]) -> None:
        """Add candidates; one that is there already gets the new words and keeps what was read back."""
        seq = self._seq(run_id)
        with self._writing() as connection:
            _write_trials(connection, seq, trials)

    def add_cohort(self, run_id: str, trials: Sequence[Trial], plan: dict[str, Any]) -> None:
        """Add candidates and the plan that holds them, both or neither: a plan names all its trials."""
        seq = self._seq(run_id)
        with self._writing() as connection:
            _write_trials(connection, seq, trials)
            connection.execute(update(schema.run).where(schema.run.c.seq == seq).values(plan=plan))

    def set_effective(self, run_id: str, candidate: str, effective: Effective) -> None:
        """Note what the server really ran for a candidate."""
        table = schema.trial
        here = (table.c.run == self._seq(run_id), table.c.candidate == candidate)
        with self._writing() as connection:
            query = update(table).where(*here).values(effective=asdict(effective))
            if not connection.execute(query).rowcount:
                raise ConfigError(f"Run {run_id} has no candidate {candidate!r}.")

    def effective(self, run_id: str, candidate: str) -> Effective | None:
        """What the server really ran for a candidate, None until it was noted."""
        table = schema.trial
        query = select(table.c.effective).where(table.c.run == self._seq(run_id), table.c.candidate == candidate)
        with self._reading() as connection:
            return codec.decode_known(Effective, connection.scalar(query))

    def begin_session(self, run_id: str, session: Session) -> None:
        """Note that a session runs from now on (or from its own `started_at`).

        Raises:
            JournalError: the run had one with this number.
        """
        values = self._session_row(run_id, session)
        try:
            with self._writing() as connection:
                connection.execute(insert(schema.session).values(**values))
        except IntegrityError as error:
            raise JournalError(
                f"Session {session.seq} of run {run_id} cannot begin: the run has one with this number, or is deleted."
            ) from error

    def _session_row(self, run_id: str, session: Session) -> dict[str, Any]:
        return {
            "run": self._seq(run_id),
            "seq": session.seq,
            "candidate": session.candidate,
            "round": session.round,
            "phase": session.phase,
            "state": "running" if session.state == "planned" else session.state,
            "void_reason": session.void_reason,
            "started_at": self._clock() if session.started_at is None else session.started_at,
            "ended_at": session.ended_at,
            "facts": session.facts,
        }

    def add_sessions(self, run_id: str, sessions: Sequence[tuple[Session, Sequence[Measurement]]]) -> None:
        """Keep sessions that have ended elsewhere, each with its requests: all of them or none.

        Raises:
            JournalError: two have one number, the run had one with it, or a figure that each request has is missing.
        """
        rows = [self._session_row(run_id, session) for session, _ in sessions]
        requests = [
            {"run": self._seq(run_id), "session": session.seq} | asdict(one)
            for session, measurements in sessions
            for one in measurements
        ]
        try:
            with self._writing() as connection:
                for table, values in ((schema.session, rows), (schema.measurement, requests)):
                    if values:
                        connection.execute(insert(table), values)
        except IntegrityError as error:
            raise JournalError(
                f"The sessions of run {run_id} could not be kept: two have one number, a figure that each request has "
                "is missing, or the run is deleted."
            ) from error

    def end_session(
        self,
        run_id: str,
        seq: int,
        state: SessionState,
        *,
        void_reason: VoidReason | None = None,
        facts: dict[str, Any] | None = None,
        ended_at: float | None = None,
    ) -> None:
        """Note how a session ended; `facts` replace those that it began with."""
        values: dict[str, Any] = {
            "state": state,
            "void_reason": void_reason,
            "ended_at": self._clock() if ended_at is None else ended_at,
        }
        if facts is not None:
            values["facts"] = facts
        table = schema.session
        query = update(table).where(table.c.run == self._seq(run_id), table.c.seq == seq).values(**values)
        with self._writing() as connection:
            if not connection.execute(query).rowcount:
                raise ConfigError(f"Run {run_id} has no session {seq}.")

    def sessions(self, run_id: str, *, after: int = 0) -> list[Session]:
        """In the order in which they were begun; `after` is a `Session.seq`."""
        table = schema.session
        query = select(table).where(table.c.run == self._seq(run_id), table.c.seq > after).order_by(table.c.seq)
        with self._reading() as connection:
            return [
                Session(
                    seq=row.seq,
                    candidate=row.candidate,
                    round=row.round,
                    phase=row.phase,
                    state=row.state,
                    void_reason=row.void_reason,
                    started_at=row.started_at,
                    ended_at=row.ended_at,
                    facts=row.facts,
                )
                for row in connection.execute(query)
            ]

    def interrupt(self, run_id: str) -> int:
        """Void the sessions that a worker left open, with their requests; returns how many sessions.

        A request that was void before keeps its own reason.
        """
        run = self._seq(run_id)
        sessions, requests = schema.session, schema.measurement
        open_ones = select(sessions.c.seq).where(sessions.c.run == run, sessions.c.state == "running")
        with self._writing() as connection:
            connection.execute(
                update(requests)
                .where(requests.c.run == run, requests.c.session.in_(open_ones), requests.c.void_reason.is_(None))
                .values(void_reason="interrupted")
            )
            return connection.execute(
                update(sessions)
                .where(sessions.c.run == run, sessions.c.state == "running")
                .values(state="void", void_reason="interrupted", ended_at=self._clock())
            ).rowcount

    # Measurements

    def add_measurement(self, run_id: str, session_seq: int, measurement: Measurement) -> None:
        """Keep one request of a session that has begun."""
        self.add_measurements(run_id, session_seq, (measurement,))

    def add_measurements(self, run_id: str, session_seq: int, measurements: Sequence[Measurement]) -> None:
        """Keep several requests of one session at once.

        Raises:
            JournalError: the run has no such session.
        """
        if not measurements:
            return
        place = {"run": self._seq(run_id), "session": session_seq}
        try:
            with self._writing() as connection:
                connection.execute(insert(schema.measurement), [place | asdict(item) for item in measurements])
        except IntegrityError as error:
            raise JournalError(
                f"A request of run {run_id} could not be kept: session {session_seq} was never begun, "
                "or a figure that each request has is missing."
            ) from error

    def measurements(self, run_id: str, *, after: int = 0, session: int | None = None) -> list[Row]:
        """Requests in the order in which they came, void and discarded ones too; `after` is a `Row.id`."""
        requests, sessions = schema.measurement, schema.session
        query = (
            select(requests, sessions.c.candidate, sessions.c.round, sessions.c.phase)
            .join(sessions, (sessions.c.run == requests.c.run) & (sessions.c.seq == requests.c.session))
            .where(requests.c.run == self._seq(run_id), requests.c.id > after)
            .order_by(requests.c.id)
        )
        if session is not None:
            query = query.where(requests.c.session == session)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        found = []
        for row in rows:
            values = row._mapping
            measured = Measurement(**{name: values[name] for name in _MEASUREMENT_FIELDS})
            found.append(Row(row.id, row.session, row.candidate, row.round, row.phase, measured))
        return found

    # Live

    def set_progress(self, run_id: str, progress: Progress) -> None:
        """Replace where the run stands."""
        table = schema.progress
        seq = self._seq(run_id)
        data = asdict(progress)
        with self._writing() as connection:
            if not connection.execute(update(table).where(table.c.run == seq).values(data=data)).rowcount:
                self._insert(connection, run_id, table, {"run": seq, "data": data})

    def progress(self, run_id: str) -> Progress | None:
        """Where the run stands, None before its worker has said so."""
        query = select(schema.progress.c.data).where(schema.progress.c.run == self._seq(run_id))
        with self._reading() as connection:
            data = connection.scalar(query)
        return codec.decode_known(Progress, data)

    def send(self, run_id: str, command: Command) -> None:
        """Ask the run's worker for something; it takes it within its next step."""
        with self._writing() as connection:
            values = {"run": self._seq(run_id), "command": command, "at": self._clock()}
            self._insert(connection, run_id, schema.command, values)

    def take_commands(self, run_id: str) -> list[str]:
        """What was asked since the last call, oldest first; each is given once."""
        table = schema.command
        query = select(table.c.id, table.c.command).where(table.c.run == self._seq(run_id)).order_by(table.c.id)
        # Workers ask often and find nothing most times: that costs no write.
        with self._reading() as connection:
            if connection.execute(query.limit(1)).first() is None:
                return []
        with self._writing() as connection:
            rows = connection.execute(query).all()
            connection.execute(delete(table).where(table.c.id.in_([row.id for row in rows])))
        return [row.command for row in rows]

    def changes(self) -> int:
        """A token that differs from the one before when anything was written, by whomever; microseconds.

        A worker that dies writes nothing: followers of a run still look at its state every second or so. On a database
        server there is no such token, each call then gives another one.
        """
        if self.path is None:
            return next(self._polls)
        with database.explained(self.path), self._watch_lock:
            if self._watch is None:
                # Its own for good: the token means something on one and the same connection only.
                fairy = self._reader.raw_connection()
                fairy.detach()
                self._watch = cast("sqlite3.Connection", fairy.dbapi_connection)
            # It tells of all commits of other connections, and nothing is ever written on this one.
            return int(self._watch.execute("PRAGMA data_version").fetchone()[0])

    def log(self, run_id: str | None, text: str, level: Level = "info") -> None:
        """Add a line to the log of a run, or to the one of no run."""
        seq = None if run_id is None else self._seq(run_id)
        table = schema.event
        with self._writing() as connection:
            values = {"run": seq, "at": self._clock(), "level": level, "text": text}
            self._insert(connection, run_id, table, values)
            if self._is_time_to_count(table, seq, 1, EVENTS_KEPT):
                kept = select(table.c.id).where(table.c.run.is_not_distinct_from(seq)).order_by(table.c.id.desc())
                oldest = connection.scalar(kept.offset(EVENTS_KEPT - 1).limit(1))
                if oldest is not None:
                    connection.execute(delete(table).where(table.c.run.is_not_distinct_from(seq), table.c.id < oldest))

    def events(self, run_id: str | None, *, after: int = 0, limit: int = 200) -> list[Event]:
        """The newest `limit` lines after the event with id `after`, oldest first."""
        table = schema.event
        seq = None if run_id is None else self._seq(run_id)
        query = (
            select(table)
            .where(table.c.run.is_not_distinct_from(seq), table.c.id > after)
            .order_by(table.c.id.desc())
            .limit(limit)
        )
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return [Event(row.id, row.at, row.text, row.level, run_id) for row in reversed(rows)]

    def add_samples(self, run_id: str | None, samples: Sequence[tuple[float, dict[str, Any]]]) -> None:
        """Keep telemetry: (wall clock, JSON-able readings); None = the live monitor's own.

        Of more than `SAMPLES_KEPT` the older half is thinned to one sample a span, evenly over all its time.
        """
        if not samples:
            return
        seq = None if run_id is None else self._seq(run_id)
        table = schema.sample
        with self._writing() as connection:
            values = [{"run": seq, "at": at, "data": data} for at, data in samples]
            self._insert(connection, run_id, table, values)
            if self._is_time_to_count(table, seq, len(samples), SAMPLES_KEPT):
                self._thin(connection, seq)

    def _thin(self, connection: Connection, seq: int | None) -> None:
        # The older half is cut into as many equal spans of time as may be left of it, and the first sample of each
        # stays. Dropping every second one instead would halve the oldest again and again until none is left.
        table = schema.sample
        here = table.c.run.is_not_distinct_from(seq)
        count = connection.scalar(select(func.count()).where(here)) or 0
        if count <= SAMPLES_KEPT:
            return
        times = select(table.c.at).where(here).order_by(table.c.at, table.c.id)
        first = connection.scalar(times.limit(1)) or 0.0
        middle = connection.scalar(times.offset(count // 2).limit(1)) or 0.0
        span = cast_((table.c.at - first) / ((middle - first) / (SAMPLES_KEPT // 4) or 1.0), Integer)
        place = func.row_number().over(partition_by=span, order_by=(table.c.at, table.c.id)).label("place")
        numbered = select(table.c.id, place).where(here, table.c.at < middle).subquery()
        connection.execute(delete(table).where(table.c.id.in_(select(numbered.c.id).where(numbered.c.place > 1))))

    def _is_time_to_count(self, table: Table, seq: int | None, added: int, kept: int) -> bool:
        """Counting each time would cost more than writing; so it is done once in a twentieth of what is kept."""
        key = (table.name, seq)
        self._added[key] = self._added.get(key, 0) + added
        if self._added[key] < kept // 20:
            return False
        self._added[key] = 0
        return True

    def samples(
        self, run_id: str | None, *, after: float = 0.0, until: float | None = None
    ) -> list[tuple[float, dict[str, Any]]]:
        """Telemetry with after < time <= until, oldest first."""
        table = schema.sample
        seq = None if run_id is None else self._seq(run_id)
        query = select(table.c.at, table.c.data).where(table.c.run.is_not_distinct_from(seq), table.c.at > after)
        if until is not None:
            query = query.where(table.c.at <= until)
        with self._reading() as connection:
            rows = connection.execute(query.order_by(table.c.at, table.c.id)).all()
        return [(row.at, row.data) for row in rows]

    # What the data say

    def set_verdicts(self, run_id: str, verdicts: Sequence[Verdict]) -> None:
        """Replace the run's verdicts."""
        rows = []
        for verdict in verdicts:
            values = asdict(verdict)
            values["ci_low"], values["ci_high"] = values.pop("ci") or (None, None)
            rows.append(values)
        self._replace(run_id, schema.verdict, rows)

    def verdicts(self, run_id: str) -> list[Verdict]:
        """In the order in which they were given."""
        table = schema.verdict
        query = select(table).where(table.c.run == self._seq(run_id)).order_by(table.c.place)
        with self._reading() as connection:
            return [
                Verdict(
                    candidate=row.candidate,
                    against=row.against,
                    metric=row.metric,
                    verdict=row.verdict,
                    effect=row.effect,
                    ci=None if row.ci_low is None or row.ci_high is None else (row.ci_low, row.ci_high),
                    level=row.level,
                    n=row.n,
                    reason=row.reason,
                )
                for row in connection.execute(query)
            ]

    def set_findings(self, run_id: str, findings: Sequence[Finding]) -> None:
        """Replace the run's findings."""
        rows = [{"code": item.code, "severity": item.severity, "data": asdict(item)} for item in findings]
        self._replace(run_id, schema.finding, rows)

    def findings(self, run_id: str) -> list[Finding]:
        """In the order in which they were given."""
        table = schema.finding
        query = select(table.c.data).where(table.c.run == self._seq(run_id)).order_by(table.c.place)
        with self._reading() as connection:
            return [codec.decode(Finding, data) for data in connection.scalars(query)]

    def _replace(self, run_id: str, table: Table, rows: list[dict[str, Any]]) -> None:
        seq = self._seq(run_id)
        with self._writing() as connection:
            connection.execute(delete(table).where(table.c.run == seq))
            values = [{"run": seq, "place": place, **row} for place, row in enumerate(rows)]
            if values:
                self._insert(connection, run_id, table, values)

    def _insert(
        self, connection: Connection, run_id: str | None, table: Table, values: dict[str, Any] | list[dict[str, Any]]
    ) -> None:
        try:
            connection.execute(insert(table), values)
        except IntegrityError as error:
            self._seqs.pop(run_id or "", None)
            raise JournalError(f"Run {run_id} was deleted meanwhile.") from error

    # Settings to put back

    def remember(self, run_id: str, server_url: str, data: dict[str, Any]) -> None:
        """Keep a server's settings before the run changes them.

        What is kept for a server and was not put back yet stays: a resumed run would else remember its own changes.
        """
        table = schema.remembered
        seq = self._seq(run_id)
        here = (table.c.run == seq, table.c.server_url == server_url)
        with self._writing() as connection:
            connection.execute(delete(table).where(*here, table.c.restored_at.is_not(None)))
            if connection.execute(select(table.c.run).where(*here)).first() is None:
                values = {"run": seq, "server_url": server_url, "data": data, "at": self._clock()}
                self._insert(connection, run_id, table, values)

    def remembered(self, run_id: str) -> list[Remembered]:
        """What the run has kept and not put back."""
        return self._remembered(schema.remembered.c.run == self._seq(run_id))

    def restored(self, run_id: str, server_url: str) -> None:
        """Note that what the run had kept of a server was put back."""
        table = schema.remembered
        mine = (table.c.run == self._seq(run_id), table.c.server_url == server_url)
        query = update(table).where(*mine, table.c.restored_at.is_(None))
        with self._writing() as connection:
            connection.execute(query.values(restored_at=self._clock()))

    def unrestored(self) -> list[Remembered]:
        """What was not put back by runs whose worker is gone, oldest first."""
        return [item for item in self._remembered() if not self.is_held(item.run)]

    def _remembered(self, *where: ColumnElement[bool]) -> list[Remembered]:
        table = schema.remembered
        query = (
            select(schema.run.c.id, table.c.server_url, table.c.data, table.c.at)
            .join(schema.run, schema.run.c.seq == table.c.run)
            .where(table.c.restored_at.is_(None), *where)
            .order_by(table.c.at)
        )
        with self._reading() as connection:
            return [Remembered(row.id, row.server_url, row.data, row.at) for row in connection.execute(query)]

    # Locks

    def worker_lock(self, run_id: str) -> WorkerLock:
        """The lock that the run's worker holds for its life; `with` takes it and raises `ConfigError` if held."""
        self._seq(run_id)
        return WorkerLock(self._locks / f"{run_id}.lock", run_id)

    def is_held(self, run_id: str) -> bool:
        """Whether the run has a living worker on this machine; disturbs none that starts at this moment."""
        return is_held(self._locks / f"{run_id}.lock")

    def held(self) -> list[Run]:
        """Every run whose lock somebody on this machine holds, the newest first: its worker, or who else uses it."""
        ids = [path.stem for path in self._locks.glob("*.lock") if is_held(path)]
        with self._reading() as connection:
            rows = connection.execute(
                select(schema.run).where(schema.run.c.id.in_(ids)).order_by(schema.run.c.seq.desc())
            ).all()
        return self._runs(rows)


def _states() -> Select[Any]:
    return select(schema.run.c.seq, schema.run.c.id, schema.run.c.state, schema.run.c.state_at)


def _run(row: SqlRow[Any], *, crashed: bool) -> Run:
    return Run(
        id=row.id,
        kind=row.kind,
        state="crashed" if crashed else row.state,
        created_at=row.created_at,
        target=codec.decode(Target, row.target),
        workload=codec.decode(Workload, row.workload),
        seed=row.seed,
        preset=row.preset,
        plan=row.plan,
        server=codec.decode_known(ServerInfo, row.server),
        model=codec.decode_known(ModelInfo, row.model_info),
        host=row.host,
        gpus=tuple(row.gpus),
        started_at=row.started_at,
        ended_at=row.ended_at,
        error=row.error,
        name=row.name,
        seq=row.seq,
    )


def _trial(row: SqlRow[Any]) -> Trial:
    effective = codec.decode_known(Effective, row.effective)
    return Trial(
        candidate=row.candidate,
        role=row.role,
        requested=Options.of(row.requested),
        effective=None if effective is None else effective.options,
        merged=tuple(row.merged),
        notes=tuple(row.notes),
    )


def _write_trials(connection: Connection, seq: int, trials: Sequence[Trial]) -> None:
    table = schema.trial
    there = set(connection.scalars(select(table.c.candidate).where(table.c.run == seq)))
    place = itertools.count(len(there))
    for trial in trials:
        values: dict[str, Any] = {
            "role": trial.role,
            "requested": trial.requested.as_dict(),
            "merged": list(trial.merged),
            "notes": list(trial.notes),
        }
        if trial.candidate in there:
            here = (table.c.run == seq, table.c.candidate == trial.candidate)
            connection.execute(update(table).where(*here).values(**values))
            continue
        if trial.effective is not None:
            options = trial.effective
            derived = Effective(options, sources=dict.fromkeys(options.as_dict(), "derived"))
            values["effective"] = asdict(derived)
        connection.execute(insert(table).values(run=seq, candidate=trial.candidate, place=next(place), **values))
        there.add(trial.candidate)
