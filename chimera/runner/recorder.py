"""Writes a run into the journal while it goes on, without ever holding up a timestamp.

Finished things (measurements, sessions, effective settings) are written between requests. Live progress and telemetry
are written by threads of their own at their own pace.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from chimera.backends.base import Backend
from chimera.domain.measurement import Measurement
from chimera.domain.readings import number
from chimera.domain.run import Lane, Progress, Run, Session
from chimera.domain.server import Effective, ServerInfo
from chimera.errors import BackendError
from chimera.measure.live import LiveRequest
from chimera.measure.request import Timed
from chimera.measure.session import SessionStage

from .checkup import Checkup
from .sampler import Sampler
from .study import measured_before
from .thermal import seconds_of

if TYPE_CHECKING:
    from chimera.store.journal import Journal

PROGRESS_S = 0.2
YIELD_S = 300.0
"""Longest wait for another client of the server to finish; after it the request is sent, and void by rule."""


class Gate:
    """Pause, resume and stop, as asked through the journal."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()

    @property
    def paused(self) -> bool:
        """Work waits at its next checkpoint, or does so already."""
        return not self._open.is_set()

    def pause(self) -> None:
        """Wait at the next checkpoint."""
        self._open.clear()

    def resume(self) -> None:
        """Go on."""
        self._open.set()

    async def passed(self) -> None:
        """Returns when work may go on."""
        await self._open.wait()


class ProgressWriter:
    """Writes `Progress` about 5 times a second from a thread of its own, and only when it changed."""

    def __init__(self, journal: Journal, run_id: str, live: LiveRequest) -> None:
        self._journal = journal
        self._run_id = run_id
        self._live = live
        self._base = Progress("starting", time.time())
        self.lanes: tuple[LiveRequest, ...] = ()
        """The agents of the session in work, where there are several."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, name="progress", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def show(self, base: Progress) -> None:
        """What holds until the next call; the counters of the request in flight are added at each writing."""
        self._base = base

    @property
    def base(self) -> Progress:
        """What was last shown."""
        return self._base

    def stop(self) -> None:
        """Write once more and end."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _write(self) -> None:
        last: Progress | None = None
        while True:
            ended = self._ended.wait(PROGRESS_S)
            base, live = self._base, self._live
            now = base
            if lanes := self.lanes:
                now = together(base, lanes)
            elif base.stage in {"warmup", "measuring"}:
                now = replace(base, tokens=live.tokens, rate=live.rate, ttft_s=live.ttft_s)
            if now != last:
                last = now
                self._journal.set_progress(self._run_id, replace(now, at=time.time(), worker=os.getpid()))
            if ended:
                return


def together(base: Progress, lanes: Sequence[LiveRequest]) -> Progress:
    """The progress of several agents: a lane each, and their rates and tokens added up."""
    rates = [one.rate for one in lanes if one.state == "decoding" and one.rate is not None]
    return replace(
        base,
        tokens=sum(one.tokens for one in lanes),
        tokens_planned=base.tokens_planned * len(lanes),
        rate=sum(rates) if rates else None,
        lanes=tuple(Lane(number, one.state, one.tokens, one.rate, one.ttft_s) for number, one in enumerate(lanes)),
    )


class SameSettings(Exception):
    """What a session has loaded was measured as another candidate already, which is named."""


class Recorder:
    """Observes a session for the journal (an `Observer` of `chimera.measure.session`)."""

    def __init__(
        self,
        journal: Journal,
        run: Run,
        backend: Backend,
        progress: ProgressWriter,
        gate: Gate,
        sampler: Sampler,
        checkup: Checkup | None = None,
    ) -> None:
        self._journal = journal
        self._run = run
        self._backend = backend
        self._progress = progress
        self._gate = gate
        self._sampler = sampler
        self._checkup = checkup
        self._ends: float | None = None
        self._session = Session(0, "")
        self.same_as: str | None = None
        """A candidate that was measured before and runs what this session has loaded."""
        self._sessions = 0
        self._noted: set[tuple[str, str]] = set()
        self._request_s: list[float] = []
        self._session_s: list[float] = []
        self._begun = 0.0
        self._stage: SessionStage = "loading"
        self._request = 0
        self._requesting = False
        """The session's first request was announced."""

    async def begin(self, session: Session, sessions: int, options: dict[str, object]) -> None:
        """A session begins; `sessions` are planned in all."""
        self._session, self._sessions, self.same_as = session, sessions, None
        self._requesting = False
        self._begun = time.monotonic()
        seconds = seconds_of(self._run)
        self._ends = None if seconds is None else self._begun + seconds
        await asyncio.to_thread(
            self._journal.begin_session, self._run.id, replace(session, state="running", started_at=time.time())
        )
        self._progress.show(
            Progress(
                "loading",
                time.time(),
                session=min(sessions, session.seq) if sessions else session.seq,
                sessions=sessions,
                requests=self._requests if seconds is None else 0,
                candidate=session.candidate,
                options=dict(options),
                tokens_planned=self._run.workload.output_tokens,
                url=self._progress.base.url,
                pid=self._progress.base.pid,
            )
        )

    async def end(self, session: Session) -> None:
        """A session has ended; it is complete in the journal from now on."""
        self._session_s.append(time.monotonic() - self._begun)
        await asyncio.to_thread(
            self._journal.end_session,
            self._run.id,
            session.seq,
            session.state,
            void_reason=session.void_reason,
            facts=session.facts,
        )

    async def stage(self, stage: SessionStage, request: int) -> None:
        """A stage of the session begins."""
        if stage != "loading" and not self._requesting:
            self._requesting = True
            await asyncio.to_thread(self._sampler.begin_requests)
        self._stage, self._request = stage, request
        self._sampler.quiet(stage != "loading")
        self._progress.show(
            replace(self._progress.base, stage=stage, request=request, eta_s=self._eta(request), text="", tokens=0)
        )

    async def loaded(self, effective: Effective) -> None:
        """The configuration runs. Raises `SameSettings` where another candidate was measured with the same."""
        url = self._backend.url
        self._progress.show(replace(self._progress.base, url=url, pid=effective.pid))
        self._sampler.watch(ServerInfo(self._backend.kind, url) if url else None, effective.pid)
        await asyncio.to_thread(self._journal.set_effective, self._run.id, self._session.candidate, effective)
        for note in effective.notes:
            if (self._session.candidate, note) not in self._noted:  # once a candidate, not once a load
                self._noted.add((self._session.candidate, note))
                await asyncio.to_thread(self._journal.log, self._run.id, note, "notice")
        found = await asyncio.to_thread(
            measured_before, self._journal, self._run.id, self._session.candidate, effective
        )
        if found is not None:
            self.same_as, is_baseline = found
            if not is_baseline:
                raise SameSettings(self.same_as)

    async def measured(self, timed: Timed) -> None:
        """A request has ended."""
        self._sampler.quiet(any(one.state not in {"done", "waiting"} for one in self._progress.lanes))
        self._request_s.append(timed.measurement.total_s)
        await asyncio.to_thread(self._journal.add_measurement, self._run.id, self._session.seq, timed.measurement)
        word = _words(timed.measurement, self._request, agents=self._run.workload.agents)
        await asyncio.to_thread(
            self._journal.log, self._run.id, word, "warn" if timed.measurement.void_reason else "info"
        )
        if self._progress.lanes and timed.measurement.role == "measure":
            self._request = min(self._requests, self._request + 1)
            self._progress.show(replace(self._progress.base, request=self._request, eta_s=self._eta(self._request)))

    async def checkpoint(self) -> None:
        """Wait while paused, and while another client uses a server that is not ours."""
        if self._gate.paused:
            before = self._progress.base
            await asyncio.to_thread(self._journal.set_state, self._run.id, "paused")
            self._progress.show(replace(before, stage="paused", eta_s=None, text="paused: space or `chimera resume`"))
            await self._gate.passed()
            self._interrupted()
            await asyncio.to_thread(self._journal.set_state, self._run.id, "running")
            self._progress.show(before)
        if self._checkup is not None and self._run.workload.agents == 1:
            await self._checkup.between()
        if not self._backend.owned:
            await self._give_way()

    def _interrupted(self) -> None:
        if self._requesting:
            self._sampler.interrupted()

    async def _give_way(self) -> None:
        began = time.monotonic()
        said = False
        while time.monotonic() - began < YIELD_S:
            try:
                activity = await self._backend.activity()
            except BackendError:
                return
            if not number(activity.busy):
                return
            if not said:
                said = True
                self._interrupted()
                text = "waiting: another client is using the server"
                self._progress.show(replace(self._progress.base, text=text))
                await asyncio.to_thread(self._journal.log, self._run.id, text, "notice")
            await asyncio.sleep(0.5)

    def _eta(self, request: int) -> float | None:
        """Seconds left, from what sessions and requests have taken so far in this run; None until one has ended."""
        if self._ends is not None:
            return max(0.0, self._ends - time.monotonic())
        left_here = self._requests + 1 - request
        if not self._request_s:
            return None
        at_once = max(1, len(self._progress.lanes))
        here = statistics.median(self._request_s) * left_here / at_once
        sessions_left = max(0, self._sessions - self._session.seq)
        each = statistics.median(self._session_s) if self._session_s else None
        if sessions_left and each is None:
            each = statistics.median(self._request_s) * (self._requests + 1) / at_once
        return here + sessions_left * (each or 0.0)

    @property
    def _requests(self) -> int:
        """Measured ones of a session; several agents do the same work in all, however many take part."""
        return self._run.workload.requests * self._run.workload.agents


def _words(measurement: Measurement, request: int, *, agents: int = 1) -> str:
    """One line for the log."""
    which = f"request {request}" if measurement.role == "measure" else "first request (discarded)"
    if agents > 1:
        which = f"agent {measurement.agent + 1}, {which}"
    if measurement.void_reason:
        return f"{which}: void, {measurement.void_reason}" + (f" — {measurement.error}" if measurement.error else "")
    rate = f"{measurement.rate:.1f} tok/s" if measurement.rate is not None else "no rate"
    ttft = f", TTFT {measurement.ttft_s:.3f} s" if measurement.ttft_s is not None else ""
    return f"{which}: {rate}{ttft}, {measurement.completion_tokens} tokens in {measurement.total_s:.2f} s"
