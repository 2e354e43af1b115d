"""What the journal, or a live look, has for the rules: joined into one `EvidenceSet`.

The journal is the single source of truth: `evidence_of` gives the same evidence for a run while it goes on, at its end,
and from another process a year later.
"""

from __future__ import annotations

import itertools
import re
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chimera.backends.base import Backend
from chimera.diagnosis.evidence import (
    EngineStart,
    EvidenceSet,
    Failure,
    LogLine,
    Neighbour,
    PastRun,
    Request,
    SessionFacts,
)
from chimera.diagnosis.thresholds import limit
from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.readings import Missing, number
from chimera.domain.run import Run, RunKind, Session
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.domain.telemetry import GpuInfo, GpuSample, HostSample, ServerSample, Snapshot
from chimera.errors import ConfigError
from chimera.model.memory import forecast, kv_cache
from chimera.model.roofline import roof_tok_s
from chimera.model.shape import ModelShape
from chimera.telemetry.serverlog import service_lines, telling

if TYPE_CHECKING:
    from chimera.store.journal import Journal, Row
    from chimera.telemetry.loaded import Loaded

PAST_RUNS = 12
"""Earlier runs that a baseline is taken from, the newest ones."""
_LOOKED_AT = 60
_STEADY: frozenset[RunKind] = frozenset({"run", "sweep", "tune", "validate"})
"""Kinds of runs whose rates are a baseline: no clients beside each other, no heat on purpose, nobody else's file."""
_ONE_CLOCK_S = 1.0
_SLEPT_S = 30.0
"""The monotonic clock stands still while a machine sleeps: by so much the wall clock then runs ahead of it."""


# -- samples -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of the journal's telemetry, in the words of the domain again."""

    at: float
    """Wall clock."""
    snapshot: Snapshot
    tok_s: float | None = None
    """Decode rate of the request of ours that was in flight."""
    engines: tuple[EngineStart, ...] = ()
    """Engines that were first seen with this sample."""

    @property
    def offset(self) -> float:
        """Wall clock minus the monotonic clock of the readings."""
        return self.at - self.snapshot.at


def read_sample(at: float, data: Mapping[str, Any]) -> Sample:
    """What `sampler.encode` and its sampler wrote; fields that this version does not know are left out."""
    from chimera.store.codec import decode

    rate = data.get("tok_s")
    starts = [
        EngineStart(at, one.get("pid"), {str(flag): str(value) for flag, value in one.get("args", {}).items()})
        for one in data.get("engines", ())
    ]
    return Sample(at, decode(Snapshot, data), float(rate) if isinstance(rate, int | float) else None, tuple(starts))


def read_samples(
    journal: Journal, run_id: str | None, *, after: float = 0.0, until: float | None = None
) -> list[Sample]:
    """A run's telemetry after a moment of the wall clock, or the live monitor's own; all on one monotonic clock.

    Samples of before a sleep or a restart of the machine are moved onto the clock of the last one.
    """
    return _one_clock([read_sample(at, data) for at, data in journal.samples(run_id, after=after, until=until)])


def _one_clock(read: list[Sample]) -> list[Sample]:
    if not read:
        return []
    reference = read[-1].offset
    return [one if abs(one.offset - reference) <= _ONE_CLOCK_S else _moved(one, reference) for one in read]


def _moved(sample: Sample, reference: float) -> Sample:
    by = sample.offset - reference
    shot = sample.snapshot
    samples = tuple(
        replace(one, at=one.at + by, processes_at=None if one.processes_at is None else one.processes_at + by)
        for one in shot.gpus.samples
    )
    gpus = replace(shot.gpus, at=shot.gpus.at + by, samples=samples)
    host = replace(shot.host, at=shot.host.at + by)
    server = None if shot.server is None else replace(shot.server, at=shot.server.at + by)
    return replace(sample, snapshot=replace(shot, at=shot.at + by, gpus=gpus, host=host, server=server))


@dataclass(frozen=True, slots=True)
class _Read:
    """What samples give, by kind."""

    gpu_infos: tuple[GpuInfo, ...] = ()
    gpu_samples: tuple[GpuSample, ...] = ()
    gpu_missing: Missing | None = None
    host: tuple[HostSample, ...] = ()
    server: tuple[ServerSample, ...] = ()
    pids: frozenset[int] = frozenset()
    offset: float | None = None

    @property
    def driver(self) -> str | None:
        return next((one.driver for one in self.gpu_infos if one.driver), None)


def _by_kind(snapshots: Sequence[Snapshot], offset: float | None) -> _Read:
    if not snapshots:
        return _Read()
    infos = {info.uuid: info for shot in snapshots for info in shot.gpus.infos}
    server: dict[float, ServerSample] = {shot.server.at: shot.server for shot in snapshots if shot.server is not None}
    return _Read(
        tuple(infos.values()),
        tuple(one for shot in snapshots for one in shot.gpus.samples),
        snapshots[-1].gpus.missing,
        tuple(shot.host for shot in snapshots),
        tuple(server.values()),
        frozenset(pid for one in server.values() for pid in one.engine_pids),
        offset,
    )


def woke(clocks: Iterable[tuple[float, float]]) -> float | None:
    """When the machine last woke from sleep, by the wall clock.

    `clocks` are monotonic times, each with what the wall clock was ahead of it then.
    """
    found = None
    for (before, old), (after, new) in itertools.pairwise(clocks):
        if after >= before and new - old > _SLEPT_S:
            found = after + new
    return found


# -- a run -------------------------------------------------------------------------------------------------------------


def evidence_of(
    journal: Journal,
    run: Run,
    *,
    window_s: float | None = None,
    history: tuple[PastRun, ...] | None = None,
    focus: str | None = None,
) -> EvidenceSet:
    """All that the journal has of a run.

    Args:
        journal: Where it lies.
        run: The run; may still be going on.
        window_s: Only so many of the last seconds of samples, for looks while it goes on; None = all of them.
        history: From `history_of`, where it was read before; it does not change while a run goes on.
        focus: Only what this candidate did; None = all of them, judged by the baseline or the only one.
    """
    run = journal.run(run.id)
    trials = {trial.candidate: trial for trial in journal.trials(run.id)}
    alone = focus
    if focus is None:
        focus = "c0" if "c0" in trials else next(iter(trials), None)
    requested = trials[focus].requested if focus is not None else None
    effective = {name: journal.effective(run.id, name) for name in trials}
    runs_as = effective[focus] if focus is not None else None
    sessions = [one for one in journal.sessions(run.id) if alone in (None, one.candidate)]
    rows = [one for one in journal.measurements(run.id) if alone in (None, one.candidate)]
    newest = max((one.measurement.started_at + one.measurement.total_s for one in rows), default=0.0)
    newest = max(newest, run.started_at or 0.0, sessions[-1].started_at or 0.0 if sessions else 0.0)
    after = 0.0 if window_s is None else newest - window_s
    written = [read_sample(at, data) for at, data in journal.samples(run.id, after=after)]
    if alone is not None:
        spans = [(one.started_at, one.ended_at or one.started_at) for one in sessions if one.started_at is not None]
        written = [one for one in written if any(start <= one.at <= end for start, end in spans)]
    samples = _one_clock(written)
    seen = _by_kind([one.snapshot for one in samples], samples[-1].offset if samples else None)
    needed: dict[str, float] = next((one.facts["needs"] for one in reversed(sessions) if _told(one, focus)), {})
    progress = journal.progress(run.id)
    pids = {one.pid for one in effective.values() if one is not None and one.pid is not None} | seen.pids
    if progress is not None and progress.pid is not None:
        pids.add(progress.pid)
    infos = seen.gpu_infos or _stored_infos(run)
    return EvidenceSet(
        requests=_requests(run, rows, sessions),
        sessions=tuple(
            _facts(one, trials[one.candidate].requested, effective[one.candidate])
            for one in sessions
            if one.candidate in trials
        ),
        failures=_failures(run, rows, sessions, {name: one.requested for name, one in trials.items()}),
        gpu_infos=infos,
        gpu_samples=seen.gpu_samples,
        gpu_missing=seen.gpu_missing,
        driver=seen.driver or next((one.driver for one in infos if one.driver), None),
        host_samples=seen.host,
        server_samples=seen.server,
        clock_offset_s=seen.offset,
        server=run.server,
        local=None if run.target.url is not None else True,
        model=run.model,
        workload=run.workload,
        requested=requested,
        effective=runs_as,
        history=history_of(journal, run) if history is None else history,
        roof_tok_s=needed.get("roof_tok_s"),
        forecast_bytes=needed.get("forecast_bytes"),
        kv_bytes_per_token=needed.get("kv_bytes_per_token"),
        installed=_installed(run.host),
        neighbours=_twins(run, sessions, effective),
        engine_starts=tuple(start for one in samples for start in one.engines),
        log=tuple(LogLine(str(text), one.ended_at) for one in sessions for text in one.facts.get("log", ())),
        engine_pids=frozenset(pids),
        platform=str(run.host.get("platform") or ""),
        container=run.host.get("container"),
        physical_cores=run.host.get("cores"),
        resumed_at=woke([(one.snapshot.at, one.offset) for one in written]),
        slept_s=run.host.get("slept_s"),
    )


def _told(session: Session, focus: str | None) -> bool:
    return session.candidate == focus and bool(session.facts.get("needs"))


def _stored_infos(run: Run) -> tuple[GpuInfo, ...]:
    from chimera.store.codec import decode

    return tuple(decode(GpuInfo, one) for one in run.gpus if {"uuid", "index", "name"} <= one.keys())


def _installed(host: Mapping[str, Any]) -> tuple[ModelInfo, ...]:
    from chimera.store.codec import decode

    return tuple(decode(ModelInfo, one) for one in host.get("installed", ()))


def _requests(run: Run, rows: Sequence[Row], sessions: Sequence[Session]) -> tuple[Request, ...]:
    sent = {one.seq: list(one.facts.get("tokens_sent", ())) for one in sessions}
    answered = {one.seq: list(one.facts.get("answer_s", ())) for one in sessions}
    found = []
    for row in rows:
        lengths = sent.get(row.session)
        length = lengths.pop(0) if lengths else None
        answers = answered.get(row.session)
        answer = answers.pop(0) if answers else None
        found.append(
            Request(
                row.measurement,
                row.session,
                row.candidate,
                row.round,
                requested=_asked(run, row.candidate, row.measurement.agent),
                tokens_sent=length if isinstance(length, int) else None,
                output_tokens=run.workload.output_tokens,
                answer_s=answer if isinstance(answer, int | float) else None,
            )
        )
    return tuple(found)


def _asked(run: Run, candidate: str, agent: int) -> Options | None:
    """What an agent asks for, where agents differ in that."""
    each = run.plan.get("arms", {}).get(candidate, {}).get("each", ())
    return Options.of(each[agent % len(each)]) if each else None


def _twins(run: Run, sessions: Sequence[Session], effective: Mapping[str, Effective | None]) -> tuple[Neighbour, ...]:
    """What a first instance held where a further one of ours could not be loaded beside it."""
    arms = run.plan.get("arms", {})
    failed = [one for one in sessions if one.facts.get("error") and arms.get(one.candidate, {}).get("instances", 1) > 1]
    held = next((one.vram_bytes for one in effective.values() if one is not None and one.vram_bytes), None)
    if not failed or held is None:
        return ()
    server = run.server.title if run.server is not None else run.target.kind
    return (Neighbour(f"the first instance ({server})", run.model.name if run.model else "", float(held)),)


def _facts(session: Session, requested: Options, effective: Effective | None) -> SessionFacts:
    shares = session.facts.get("throttle_shares")
    return SessionFacts(
        seq=session.seq,
        candidate=session.candidate,
        round=session.round,
        requested=requested,
        effective=effective,
        load_s=session.facts.get("load_s"),
        started_at=session.started_at,
        ended_at=session.ended_at,
        throttle_shares=shares if isinstance(shares, Mapping) else {},
        foreign_gpu_percent=session.facts.get("foreign_gpu_percent"),
    )


_STATUS = re.compile(r"\bstatus (\d{3})\b")


def _failures(
    run: Run, rows: Sequence[Row], sessions: Sequence[Session], asked: Mapping[str, Options]
) -> tuple[Failure, ...]:
    """Loads and requests that failed, in the server's own words, in the order in which they did."""
    found = [
        _failure(str(one.facts["error"]), one.ended_at, True, asked.get(one.candidate))
        for one in sessions
        if one.facts.get("error")
    ]
    found += [
        _failure(one.error, one.started_at + one.total_s, False, asked.get(row.candidate))
        for row in rows
        if (one := row.measurement).error
    ]
    if run.error and run.state == "failed" and not found:
        found.append(_failure(run.error, run.ended_at, True, None))
    return tuple(sorted(found, key=lambda one: one.at or 0.0))


def _failure(text: str, at: float | None, at_load: bool, options: Options | None) -> Failure:
    status = _STATUS.search(text)
    return Failure(text, at, int(status[1]) if status else None, at_load, options)


# -- earlier runs ------------------------------------------------------------------------------------------------------


def history_of(journal: Journal, run: Run) -> tuple[PastRun, ...]:
    """Earlier runs of this model on this kind of server, oldest first, each by its baseline or only configuration."""
    name = run.model.name if run.model is not None else run.target.model
    if name is None:
        return ()
    return history(journal, run.target.kind, name, before=run.seq, agents=run.workload.agents)


def history(
    journal: Journal, kind: str, model: str, *, before: int | None = None, agents: int = 1
) -> tuple[PastRun, ...]:
    """Earlier runs of a model on a kind of server, oldest first; only warm, valid measurements count, at least 3."""
    found: list[PastRun] = []
    for run in journal.runs(state="done", model=model, before=before, limit=_LOOKED_AT):
        if run.kind not in _STEADY or run.target.kind != kind or run.workload.agents != agents:
            continue
        past = _past(journal, run)
        if past is not None:
            found.append(past)
        if len(found) == PAST_RUNS:
            break
    return tuple(reversed(found))


def _past(journal: Journal, run: Run) -> PastRun | None:
    trials = journal.trials(run.id)
    if not trials:
        return None
    trial = next((one for one in trials if one.candidate == "c0"), trials[0])
    rows = [one.measurement for one in journal.measurements(run.id) if one.candidate == trial.candidate]
    warm = [one for one in rows if one.valid and not one.cold]
    rates = [rate for one in warm if (rate := one.rate) is not None]
    if len(rates) < limit("history-n"):
        return None
    effective = journal.effective(run.id, trial.candidate)
    mean = statistics.fmean(rates)
    return PastRun(
        run=run.id,
        at=run.ended_at or run.created_at,
        decode_tok_s=statistics.median(rates),
        ttft_s=_median(warm, "ttft_s"),
        cv=statistics.stdev(rates) / mean if mean > 0 else None,
        n=len(rates),
        version=run.server.version if run.server is not None else None,
        driver=next((str(one["driver"]) for one in run.gpus if one.get("driver")), None),
        model=run.model.name if run.model is not None else None,
        digest=run.model.digest if run.model is not None else None,
        options=effective.options.over(trial.requested) if effective is not None else trial.requested,
        prompt_tokens=round(tokens) if (tokens := _median(warm, "prompt_tokens")) is not None else None,
    )


def _median(measurements: Iterable[Measurement], name: str) -> float | None:
    values = [value for one in measurements if (value := getattr(one, name)) is not None]
    return float(statistics.median(values)) if values else None


# -- now ---------------------------------------------------------------------------------------------------------------


def evidence_now(
    snapshots: Sequence[Snapshot],
    loaded: Loaded | None = None,
    *,
    clock_offset_s: float,
    history: tuple[PastRun, ...] = (),
    installed: tuple[ModelInfo, ...] = (),
    neighbours: Sequence[tuple[ServerInfo, ServerSample]] = (),
    host: Mapping[str, object] | None = None,
    own_pids: Iterable[int] = (),
    engine_starts: Iterable[EngineStart] = (),
    resumed_at: float | None = None,
    log: Iterable[str] = (),
) -> EvidenceSet:
    """What can be seen without a run of our own.

    Args:
        snapshots: Readings, oldest first.
        loaded: The server and its model, as they have told of themselves.
        clock_offset_s: Wall clock minus the monotonic clock of the readings.
        history: Earlier runs of the model.
        installed: What the server could load.
        neighbours: Other servers of this host with what they hold.
        host: From `machine_facts`.
        own_pids: Processes of Chimera.
        engine_starts: Engines that were seen to come up.
        resumed_at: When the machine last woke from sleep.
        log: Lines of the server's log that rules look for.
    """
    seen = _by_kind(snapshots, clock_offset_s)
    facts = host or {}
    cores, container, slept = facts.get("cores"), facts.get("container"), facts.get("slept_s")
    effective = loaded.effective if loaded is not None else None
    shape = loaded.shape if loaded is not None else None
    needed = needs(shape, effective.options if effective is not None else Options(), seen.gpu_infos)
    pids = seen.pids | ({effective.pid} if effective is not None and effective.pid is not None else set())
    return EvidenceSet(
        gpu_infos=seen.gpu_infos,
        gpu_samples=seen.gpu_samples,
        gpu_missing=seen.gpu_missing,
        driver=seen.driver,
        host_samples=seen.host,
        server_samples=seen.server,
        clock_offset_s=clock_offset_s,
        server=loaded.server if loaded is not None else None,
        local=None if loaded is None or loaded.server is None else not loaded.remote,
        model=loaded.model if loaded is not None else None,
        effective=effective,
        history=history,
        roof_tok_s=needed.get("roof_tok_s"),
        forecast_bytes=needed.get("forecast_bytes"),
        kv_bytes_per_token=needed.get("kv_bytes_per_token"),
        installed=installed,
        neighbours=tuple(
            Neighbour(server.title, model.name, number(model.vram_bytes))
            for server, sample in neighbours
            if isinstance(sample.models, tuple)
            for model in sample.models
        ),
        engine_starts=tuple(engine_starts),
        log=tuple(LogLine(line) for line in log),
        engine_pids=frozenset(pids),
        own_pids=frozenset(own_pids),
        platform=str(facts.get("platform") or ""),
        container=container if isinstance(container, bool) else None,
        physical_cores=cores if isinstance(cores, int) else None,
        resumed_at=resumed_at,
        slept_s=slept if isinstance(slept, float) else None,
    )


# -- what a configuration needs, and the machine -----------------------------------------------------------------------


def needs(shape: ModelShape | None, options: Options, gpus: Sequence[GpuInfo], depth: int = 0) -> dict[str, float]:
    """Forecast of GPU memory, bytes a token of window, and the roof of the decode rate; what is unknown is left out.

    All for every layer on the GPUs, as the rules want it. Of several GPUs the fastest sets the roof: they work one
    after another, so that it stays a ceiling.
    """
    if shape is None:
        return {}
    found: dict[str, float] = {}
    window, slots = options.num_ctx, options.num_parallel or 1
    kind = options.kv_cache_type or "f16"
    try:
        if window is not None:
            wanted = forecast(
                shape,
                window,
                num_parallel=slots,
                kv_type=kind,
                num_batch=options.num_batch,
                flash_attention=options.flash_attention,
            )
            if wanted.gpu.bytes is not None:
                found["forecast_bytes"] = float(wanted.gpu.bytes)
            step = 256 * 16
            more, less = (
                kv_cache(shape, size, num_parallel=slots, kv_type=kind, num_batch=options.num_batch).total
                for size in (window + step, window)
            )
            found["kv_bytes_per_token"] = (more - less) / step
        bandwidths = [value for one in gpus if (value := number(one.bandwidth_gb_s))]
        if bandwidths:
            roof = roof_tok_s(shape, max(bandwidths), depth=depth, kv_type=kind)
            if roof is not None:
                found["roof_tok_s"] = roof
    except ConfigError:
        return found  # a cache type that does not go with this model: the load says so itself
    return found


def log_lines(backend: Backend, since: float) -> list[str]:
    """The lines that rules look for of our own engine's log, or of the Ollama service's since a moment (wall clock).

    Reads files and may ask the system's journal: not for the event loop.
    """
    from chimera.backends.llama_engine import OwnedEngine

    if isinstance(backend, OwnedEngine):
        return telling(backend.log)
    return service_lines(backend.kind, backend.url, since)


def machine_facts() -> dict[str, object]:
    """Where this process runs, as far as rules ask: `platform`, `container` or not, `slept_s` since it was started."""
    import platform

    system = {"linux": "linux", "darwin": "macos", "win32": "windows"}.get(sys.platform, sys.platform)
    if system == "linux" and "microsoft" in platform.release().lower():
        system = "wsl"
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    facts: dict[str, object] = {"platform": system, "container": any(mark.exists() for mark in marks)}
    if sys.platform == "linux":
        # The one clock goes on while the machine sleeps, the other stands still.
        slept = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
        facts["slept_s"] = slept if slept > _SLEPT_S else 0.0
    return facts


def installed_facts(models: Iterable[ModelInfo]) -> list[dict[str, Any]]:
    """Models that a server could load, as `Run.host["installed"]` keeps them."""
    kept = ("name", "digest", "quantization", "parameters", "size_bytes")
    return [{name: value for name, value in asdict(one).items() if name in kept} for one in models]
