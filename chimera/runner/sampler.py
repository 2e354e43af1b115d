"""Telemetry beside a run: one snapshot a second into the journal, from a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from chimera.diagnosis.thresholds import limit
from chimera.diagnosis.views import engine_gpus
from chimera.domain.measurement import Measurement
from chimera.domain.readings import PENDING, Reading, number
from chimera.domain.server import ServerInfo
from chimera.domain.telemetry import INACTIVE, GpuCounters, GpuInfo, GpuProcess, GpuSample, ServerSample, Snapshot
from chimera.measure.live import LiveRequest

if TYPE_CHECKING:
    from chimera.store.journal import Journal
    from chimera.telemetry.collector import Collector

SAMPLE_S = 1.0
_log = logging.getLogger(__name__)
_PENDING = asdict(PENDING)
_OF_THE_TIME = frozenset({"throttle_shares", "throttled_share", "power_capped_share", "energy_j", "energy_j_per_token"})
"""Facts that count all the time from the first request to the last one."""


class Sampler:
    """Reads GPUs, host and server while a run goes on; costly reads pause while a request is timed.

    Args:
        journal: Where samples are kept.
        run_id: Whose.
        live: The request in flight.
        instances: Servers of the run; of several only the first one's engine is known, also when it works alone.
    """

    def __init__(self, journal: Journal, run_id: str, live: LiveRequest | None = None, instances: int = 1) -> None:
        self._journal = journal
        self._run_id = run_id
        self._live = live
        self._instances = instances
        self._engines = Engines()
        self._gpus: tuple[GpuInfo, ...] = ()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="telemetry", daemon=True)
        self._collector: Collector | None = None
        self._quiet = False
        self._lock = threading.Lock()
        self._session: list[Snapshot] = []
        self._before: tuple[GpuCounters, ...] = ()
        self._since = float("-inf")
        self._interrupted = False
        self._server: ServerInfo | None = None
        self._engine: tuple[int, ...] = ()
        self._engines_so_far: set[int] = set()
        """Of the whole run: a list of the GPU's processes may tell of an engine before this session's."""

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def quiet(self, timing: bool) -> None:
        """A request of ours is being timed, or has ended."""
        self._quiet = timing
        if self._collector is not None:
            self._collector.quiet = timing

    @property
    def gpus(self) -> tuple[GpuInfo, ...]:
        """The GPUs as they were last seen."""
        return self._gpus

    def watch(self, server: ServerInfo | None, engine_pid: int | None) -> None:
        """What is watched from now on."""
        self._server = server
        self._engine = (engine_pid,) if engine_pid else ()
        self._engines_so_far.update(self._engine)

    def free_bytes(self) -> float | None:
        """Free memory of all GPUs at this moment; None where it is not known."""
        return self._collector.free_bytes() if self._collector is not None else None

    def begin_session(self) -> None:
        """What is read from now on belongs to a new session."""
        with self._lock:
            self._engines_so_far |= _engines(self._session)  # of one that had no end: found equal, or failed
            self._session, self._before, self._since, self._interrupted = [], (), float("-inf"), False

    def begin_requests(self) -> None:
        """All that the session needs is loaded: energy, throttling, memory and other programs count from now on.

        Asks the driver: not for an event loop.
        """
        if self._collector is None:
            return
        before = self._collector.counters()
        with self._lock:
            self._before, self._since = before, time.monotonic()

    def interrupted(self) -> None:
        """The session's requests waited, paused or for another client: what the time between took is not theirs."""
        self._interrupted = True

    def end_session(self, measurements: Sequence[Measurement]) -> dict[str, Any]:
        """What was seen of the GPUs and the host since the session began; see `session_facts`. Asks the driver."""
        after = self._collector.counters() if self._collector is not None else ()
        with self._lock:
            seen, self._session = self._session, []
            before, self._before = self._before, ()
            since, interrupted = self._since, self._interrupted
            self._engines_so_far |= _engines(seen)
            ours = frozenset(self._engines_so_far)
        tokens = sum(one.completion_tokens or 0 for one in measurements)
        engine = frozenset(self._engine)
        instances = max(self._instances, len({one.instance for one in measurements}))
        facts = session_facts(seen, tokens, before, after, engine=engine, ours=ours, since=since, instances=instances)
        return {name: value for name, value in facts.items() if not (interrupted and name in _OF_THE_TIME)}

    def stop(self) -> None:
        """End; waits for a reading in flight, but not for ever."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _sample(self) -> None:
        from chimera.telemetry.collector import Collector
        from chimera.telemetry.serverwatch import ServerWatch

        self._collector = collector = Collector()
        collector.quiet = self._quiet
        watched: ServerInfo | None = None
        told: list[dict[str, Any]] = []
        try:
            while True:
                if self._server != watched:
                    watched = self._server
                    if collector.server is not None:
                        collector.server.close()
                    collector.server = ServerWatch(watched.kind, watched.url) if watched else None
                collector.engine_pids = self._engine
                snapshot = collector.snapshot()
                # Both clocks are read at once, so that any sample tells their difference (`evidence.read_sample`).
                at = time.time() - time.monotonic() + snapshot.at
                with self._lock:
                    self._session.append(snapshot)
                self._gpus = snapshot.gpus.infos or self._gpus
                kept = encode(snapshot)
                # The driver is asked for a few of them at each tick: the first ones are not complete.
                if (infos := kept["gpus"].get("infos")) and infos != told:
                    self._journal.identify(self._run_id, gpus=infos)
                    told = infos
                self._journal.add_samples(self._run_id, [(at, kept | self._more(snapshot))])
                if self._ended.wait(SAMPLE_S):
                    return
        except Exception:  # noqa: BLE001 - a run must not end because watching it failed
            _log.exception("telemetry ended")
        finally:
            collector.close()

    def _more(self, snapshot: Snapshot) -> dict[str, Any]:
        """What stands beside a snapshot: our own rate just now, and the flags of engines that were started."""
        more: dict[str, Any] = {}
        live = self._live
        if self._quiet and live is not None and live.rate is not None:
            more["tok_s"] = live.rate
        started = [{"pid": pid, "args": args} for pid, args in self._engines.fresh(snapshot.server)]
        return more | ({"engines": started} if started else {})


_FLAGS: tuple[tuple[str, ...], ...] = (
    ("-c", "--ctx-size"), ("-ngl", "--gpu-layers", "--n-gpu-layers"), ("-b", "--batch-size"), ("-ub", "--ubatch-size"),
    ("-t", "--threads"), ("-np", "--parallel"), ("--flash-attn", "-fa"), ("--cache-type-k", "-ctk"),
    ("--main-gpu", "-mg"),
)  # fmt: skip
"""Load options as an engine's process shows them; the first name is the one that rules know."""


class Engines:
    """The engines of a server, each told once, with its flags, when it is first seen."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    def fresh(self, server: ServerSample | None) -> list[tuple[int, dict[str, str]]]:
        """Those that were not there before; without those that show no flags."""
        pids = [pid for pid in (server.engine_pids if server is not None else ()) if pid not in self._known]
        self._known.update(pids)
        return [(pid, flags) for pid in pids if (flags := engine_flags(pid))]


def engine_flags(pid: int) -> dict[str, str]:
    """Load options among a process's arguments; empty where it is no llama.cpp server, or is gone."""
    import psutil

    from chimera.backends.ollama_child import argument

    try:
        argv = psutil.Process(pid).cmdline()
    except psutil.Error:
        return {}
    values = {names[0]: argument(argv, *names) for names in _FLAGS}
    return {name: value for name, value in values.items() if value is not None}


_THERMAL = ("sw-thermal", "hw-thermal", "power-brake", "hw-slowdown")
_POWER = ("power-cap",)


def session_facts(
    seen: Sequence[Snapshot],
    tokens: int,
    before: Sequence[GpuCounters] = (),
    after: Sequence[GpuCounters] = (),
    *,
    engine: frozenset[int] = frozenset(),
    ours: frozenset[int] = frozenset(),
    since: float = float("-inf"),
    instances: int = 1,
) -> dict[str, Any]:
    """The blame line of a session: what held it back, and what it took.

    Shares are of the session, or where its ends were not read of the time between the first and the last reading, from
    the driver's own monotonic counters where it has them; of several GPUs the worst, for energy and memory their sum. A
    figure that nothing is known of is left out.

    Args:
        seen: Snapshots of the session, oldest first.
        tokens: Tokens generated in it, the discarded request's included, for the energy of one.
        before: The GPUs' counters before its first request; a second without them is much of a short session.
        after: And when it ended.
        engine: The engine that it started itself, where it did.
        ours: Every engine of the run so far.
        since: When its first request was sent; memory that was in use before may be another one's.
        instances: How many the run has; of several the engine of one is known, so others cannot be told from them.
    """
    facts: dict[str, Any] = {}
    foreign = [value for one in seen if (value := number(one.host.foreign_cpu_percent)) is not None]
    if foreign:
        facts["foreign_cpu_percent"] = sum(foreign) / len(foreign)
    own = [value for one in seen if (value := number(one.host.own_cpu_percent)) is not None]
    if own:
        facts["own_cpu_percent"] = sum(own) / len(own)
    if len(seen) > 1 and (span := seen[-1].at - seen[0].at) > 0:
        facts["nvml_calls_s"] = (seen[-1].cost.nvml_calls - seen[0].cost.nvml_calls) / span
    engines = _engines(seen) | engine
    engines = engines | ours if engines else engines
    by_gpu: dict[str, list[GpuSample]] = {}
    for snapshot in seen:
        for sample in snapshot.gpus.samples:
            by_gpu.setdefault(sample.uuid, []).append(sample)
    if not by_gpu:
        return facts
    thermal, power, energy, vram, sm = [], [], [], [], []
    held: dict[str, float] = {}
    ends = {one.uuid: one for one in after}
    edges = {one.uuid: (one, ends[one.uuid]) for one in before if one.uuid in ends}
    for uuid, samples in by_gpu.items():
        first, last = edges.get(uuid, (samples[0], samples[-1]))
        wall = last.at - first.at
        if wall > 0:
            for name in last.throttle_s:
                if (share := _held(first, last, name, wall)) is not None:
                    held[name] = max(held.get(name, 0.0), share)
            thermal += [share for name in _THERMAL if (share := _held(first, last, name, wall)) is not None]
            power += [share for name in _POWER if (share := _held(first, last, name, wall)) is not None]
        used = [value for one in samples if one.at >= since and (value := number(one.vram_used_bytes)) is not None]
        vram += [max(used)] if used else []
        joules = (number(first.energy_j), number(last.energy_j))
        if wall > 0 and joules[0] is not None and joules[1] is not None and joules[1] >= joules[0]:
            energy.append(joules[1] - joules[0])
        sm += [value for one in samples if (value := number(one.sm_mhz)) is not None]
    limits = [value for one in by_gpu.values() if (value := number(one[-1].power_limit_w)) is not None]
    if limits:
        facts["power_limit_w"] = sum(limits)
    begun = {one.uuid: one for one in before}
    lists = {uuid: _lists(samples, begun.get(uuid), ends.get(uuid)) for uuid, samples in by_gpu.items()}
    told = {uuid: _with_ended(found, begun.get(uuid)) for uuid, found in lists.items()}
    others = [
        share
        for uuid in engine_gpus(told, engines)
        if instances == 1
        and not _unnamed(lists, engines)
        and not _silent(by_gpu[uuid], lists[uuid])
        and (share := _others(told[uuid], engines)) is not None
    ]
    if others:
        facts["foreign_gpu_percent"] = max(others)
    starts = [value for one in by_gpu.values() if (value := number(one[0].temperature_c)) is not None]
    if starts:
        facts["start_c"] = max(starts)
    if thermal:
        facts["throttled_share"] = max(thermal)
    if power:
        facts["power_capped_share"] = max(power)
    if held:
        facts["throttle_shares"] = held
    if vram:
        facts["gpu_vram_peak_bytes"] = sum(vram)
    if energy and tokens:
        facts["energy_j"] = sum(energy)
        facts["energy_j_per_token"] = sum(energy) / tokens
    if sm:
        facts["sm_mhz_mean"], facts["sm_mhz_min"] = sum(sm) / len(sm), min(sm)
    return facts


def _engines(seen: Sequence[Snapshot]) -> frozenset[int]:
    return frozenset(pid for one in seen if one.server is not None for pid in one.server.engine_pids)


def _lists(
    samples: Sequence[GpuSample], begun: GpuCounters | None, end: GpuCounters | None
) -> list[tuple[GpuProcess, ...]]:
    """The lists of a GPU's processes that were read in a session, each once: a sample repeats the last one for a while.

    They are read while the model loads and at the session's end, not while a request is timed. Each tells of the time
    since the list before it, at most of some seconds; where none could be read as the session began, the first one may
    so tell of some seconds before it.
    """
    read: dict[float, tuple[GpuProcess, ...]] = {}
    for sample in samples:
        at = sample.at if sample.processes_at is None else sample.processes_at
        if isinstance(sample.processes, tuple) and (at >= samples[0].at if begun is None else at > begun.at):
            read.setdefault(at, sample.processes)
    if end is not None and isinstance(end.processes, tuple):
        read.setdefault(end.at, end.processes)
    return list(read.values())


def _with_ended(lists: Sequence[tuple[GpuProcess, ...]], begun: GpuCounters | None) -> list[tuple[GpuProcess, ...]]:
    """Each list with the programs of the one before it, the one at the first request included, that have ended since.

    The driver tells nothing more of them, so they are taken to have computed on as they did when they were last seen:
    one that was at work as a session began and ended in it would be in no share at all.
    """
    earlier = [begun.processes if begun is not None and isinstance(begun.processes, tuple) else (), *lists]
    found = []
    for before, now in zip(earlier, lists, strict=False):
        named = {one.pid for one in now}
        found.append((*now, *(one for one in before if one.pid not in named)))
    return found


def _silent(samples: Sequence[GpuSample], lists: Sequence[tuple[GpuProcess, ...]]) -> bool:
    """The driver names nobody on a GPU on which somebody computed: it cannot tell who (WSL, some containers)."""
    return not any(lists) and any((number(one.utilization) or 0.0) > 0 for one in samples)


def _unnamed(lists: Mapping[str, Sequence[Sequence[GpuProcess]]], engines: frozenset[int]) -> bool:
    """Others are named on GPUs and the engine on none: nobody can be told from it.

    It runs on the CPU, or is not the process that was taken for it, like the forwarder in front of a container.
    """
    named = {one.pid for looks in lists.values() for processes in looks for one in processes}
    return bool(named) and not named & engines


def _others(lists: Sequence[tuple[GpuProcess, ...]], engines: frozenset[int]) -> float | None:
    """Mean share of a GPU that programs other than the engine computed on; None where that is not known.

    A process that cannot be tied to one seen from here may be the engine itself, so it accuses nobody. A list in which
    no share of a tied one can be read (MIG, some containers) tells nothing; an empty one tells that nobody computed.
    """
    shares = []
    for processes in lists:
        tied = {one.pid: _percent(one.sm_percent) for one in processes if one.pid in engines or one.name != "?"}
        if not processes or any(share is not None for share in tied.values()):
            shares.append(min(100.0, sum(share or 0.0 for pid, share in tied.items() if pid not in engines)))
    return sum(shares) / len(shares) if engines and shares else None


def _percent(share: Reading) -> float | None:
    value = 0.0 if share == INACTIVE else number(share)
    return value if value is not None and value <= 100 else None


def shared(facts: Mapping[str, Any]) -> bool:
    """Whether another program computed on the GPU for more than a moment."""
    return (facts.get("foreign_gpu_percent") or 0.0) >= limit("foreign-sm")


def void_as_shared(facts: Mapping[str, Any], *, compared: bool, crews: bool) -> bool:
    """Whether a session is void because the GPU was shared: the one rule for sessions of our own and imported ones.

    Args:
        facts: Of the session.
        compared: It is compared with others; one that stands alone counts, and its finding says what disturbed it.
        crews: Different numbers of agents are compared: of several instances only one is watched, so another one's
            engine would look like a stranger.
    """
    return compared and not crews and shared(facts)


def _held(first: GpuSample | GpuCounters, last: GpuSample | GpuCounters, reason: str, wall: float) -> float | None:
    """Share of the time that one reason held, by its counter."""
    before, after = number(first.throttle_s.get(reason)), number(last.throttle_s.get(reason))
    if before is None or after is None or after < before:
        return None
    return min(1.0, (after - before) / wall)


def encode(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as the journal keeps it: what was not read is left out, a missing reading keeps its reason."""
    kept: dict[str, Any] = _without_pending(asdict(snapshot))
    return kept


def _without_pending(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_pending(one) for key, one in value.items() if one is not None and one != _PENDING}
    if isinstance(value, list | tuple):
        return [_without_pending(one) for one in value]
    return value
