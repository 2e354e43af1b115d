"""What the rules may look at. All is optional: where evidence is missing, a rule is silent or names the check."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar, cast

from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.readings import Missing
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.domain.telemetry import GpuInfo, GpuSample, HostSample, ServerSample
from chimera.domain.workload import Workload


@dataclass(frozen=True, slots=True)
class Request:
    """A measurement with its place in the run."""

    measurement: Measurement
    session: int = 0
    candidate: str = ""
    round: int = 0
    requested: Options | None = None
    """What was asked with it, where that can differ from one request to the next."""
    tokens_sent: int | None = None
    """Length of the prompt as counted before it was sent."""
    output_tokens: int | None = None
    """Length of the answer that was asked for."""
    answer_s: float | None = None
    """Send to the first token that is not thinking."""


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What was seen around one session."""

    seq: int
    candidate: str = ""
    round: int = 0
    requested: Options | None = None
    effective: Effective | None = None
    load_s: float | None = None
    started_at: float | None = None
    """Wall clock."""
    ended_at: float | None = None
    throttle_shares: Mapping[str, float] = field(default_factory=dict)
    """Part of the time inside its requests, 0 to 1, by the ids of `Throttle.reason`; from time counters."""
    foreign_gpu_percent: float | None = None
    """Mean share of the GPU that programs other than the engine computed on, by the lists read at its two ends."""


@dataclass(frozen=True, slots=True)
class PastRun:
    """An earlier run of the same machine, from the journal."""

    run: str
    at: float
    """Wall clock when it ended."""
    decode_tok_s: float | None = None
    """Median of its baseline (or only) configuration, warm."""
    ttft_s: float | None = None
    cv: float | None = None
    n: int = 0
    """Measurements behind the median."""
    version: str | None = None
    """Of the server."""
    driver: str | None = None
    model: str | None = None
    digest: str | None = None
    options: Options | None = None
    """Effective ones."""
    prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class EngineStart:
    """The server started an engine for a model (an Ollama child, a llama-server)."""

    at: float
    """Wall clock."""
    pid: int | None = None
    args: Mapping[str, str] = field(default_factory=dict)
    """Its flags: `-c`, `-np`, `-ngl`, `-b`, `-t`, ..."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A load or request that failed."""

    text: str
    """The server's own words."""
    at: float | None = None
    """Wall clock."""
    status: int | None = None
    at_load: bool = False
    options: Options | None = None


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of the server's log."""

    text: str
    at: float | None = None
    """Wall clock."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A model that another server on this host holds."""

    server: str
    model: str = ""
    vram_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class EvidenceSet:
    """All that is known when the rules are asked."""

    requests: tuple[Request, ...] = ()
    """In the order in which they were sent."""
    sessions: tuple[SessionFacts, ...] = ()
    failures: tuple[Failure, ...] = ()
    gpu_infos: tuple[GpuInfo, ...] = ()
    gpu_samples: tuple[GpuSample, ...] = ()
    """Of all GPUs, in and around the requests, oldest first."""
    gpu_missing: Missing | None = None
    """Why there is no GPU to see, where there is none."""
    driver: str | None = None
    host_samples: tuple[HostSample, ...] = ()
    server_samples: tuple[ServerSample, ...] = ()
    clock_offset_s: float | None = None
    """Wall clock minus the monotonic clock of the samples: places samples inside requests."""
    server: ServerInfo | None = None
    local: bool | None = None
    """The server runs on this host; None = by its address."""
    model: ModelInfo | None = None
    workload: Workload | None = None
    requested: Options | None = None
    effective: Effective | None = None
    baseline_tok_s: float | None = None
    """Decode rate that this configuration had before; None = taken from `history`."""
    baseline_ttft_s: float | None = None
    history: tuple[PastRun, ...] = ()
    """Earlier runs, oldest first, without the one that is judged."""
    roof_tok_s: float | None = None
    """Decode rate that memory bandwidth allows with all weights on the GPU."""
    forecast_bytes: float | None = None
    """GPU memory that the requested configuration needs with every layer on the GPU."""
    kv_bytes_per_token: float | None = None
    """GPU memory that one more token of window costs, over all slots."""
    installed: tuple[ModelInfo, ...] = ()
    """Models that the server could load, for remedies."""
    neighbours: tuple[Neighbour, ...] = ()
    engine_starts: tuple[EngineStart, ...] = ()
    engine_pids: frozenset[int] = frozenset()
    """Processes of the server, on this host."""
    own_pids: frozenset[int] = frozenset()
    """Processes of Chimera."""
    log: tuple[LogLine, ...] = ()
    platform: str = ""
    """`linux`, `wsl`, `windows`, `macos`; empty = unknown."""
    container: bool | None = None
    physical_cores: int | None = None
    resumed_at: float | None = None
    """Wall clock when the machine last woke from sleep."""
    slept_s: float | None = None
    """Time that it has slept since it was started; None = unknown."""
    focus: str | None = None
    """Candidate that is judged; None = the only one, else the baseline, else the newest."""


_SIGNED = frozenset({"margin_c", "num_gpu", "temperature_c", "memory_temperature_c", "clock_offset_s", "at"})
_LIMIT = 1e16
"""Above every byte count, counter and wall clock that a machine can show."""
_ABSURD = Missing("unsupported", "the value makes no sense")
_CEILINGS = {
    "utilization": 100.0, "memory_utilization": 100.0, "cpu_percent": 100.0, "foreign_cpu_percent": 100.0,
    "temperature_c": 200.0, "memory_temperature_c": 200.0, "sm_mhz": 20_000.0, "mem_mhz": 100_000.0,
    "power_w": 100_000.0, "share": 1.0, "total_s": 1e8, "ttft_s": 1e8, "num_ctx": 1e9, "decode_tok_s": 1e7,
    "client_decode_tok_s": 1e7, "reasons": 2.0**64,
}  # fmt: skip
"""Largest values that are believed; a driver that reports 9e18 % is not."""


@lru_cache(maxsize=64)
def _shape(kind: type) -> tuple[tuple[str, str], ...]:
    return tuple((each.name, str(each.type)) for each in fields(kind))


def _believable(name: str, value: float) -> bool:
    try:
        number = float(value)
    except OverflowError:
        return False
    if not math.isfinite(number) or abs(number) > _CEILINGS.get(name, _LIMIT):
        return False
    return number >= 0 or name in _SIGNED


class _Drop:
    """Marks an object that makes no sense without the value that was refused."""


_DROP = _Drop()


def _clean(name: str, kind: str, value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, str | Missing | frozenset):
        return value
    if isinstance(value, int | float):
        if _believable(name, value):
            return value
        if "Reading" in kind:
            return _ABSURD
        return None if "None" in kind else _DROP
    if isinstance(value, tuple):
        cleaned = [_clean(name, kind.removeprefix("tuple["), each) for each in value]
        if all(new is old for new, old in zip(cleaned, value, strict=True)):
            return value
        return tuple(each for each in cleaned if each is not _DROP)
    if isinstance(value, Mapping):
        pairs = [(key, _clean(str(key), kind, each)) for key, each in value.items()]
        return {key: each for key, each in pairs if each is not _DROP}
    if is_dataclass(value) and not isinstance(value, type):
        changes: dict[str, Any] = {}
        for inner, inner_kind in _shape(type(value)):
            old = getattr(value, inner)
            new = _clean(inner, inner_kind, old)
            if new is _DROP:
                return None if "None" in kind else _DROP
            if new is not old:
                changes[inner] = new
        return replace(value, **changes) if changes else value
    return value


_T = TypeVar("_T")


def sane(evidence: EvidenceSet) -> EvidenceSet:
    """The same evidence without values that cannot be: NaN, infinities, negative times, 9e18 %.

    An absurd reading becomes missing, an absurd optional figure None; an object whose required figure is absurd (a
    measurement without a believable duration) is left out. Samples are put in order of time.
    """
    cleaned = cast(EvidenceSet, _clean("", "", evidence))

    def in_order(samples: tuple[_T, ...]) -> tuple[_T, ...]:
        times = [each.at for each in samples]  # type: ignore[attr-defined]  # samples have a time
        if all(a <= b for a, b in itertools.pairwise(times)):
            return samples
        return tuple(sorted(samples, key=lambda each: each.at))  # type: ignore[attr-defined]  # as above

    return replace(
        cleaned,
        gpu_samples=in_order(cleaned.gpu_samples),
        host_samples=in_order(cleaned.host_samples),
        server_samples=in_order(cleaned.server_samples),
        history=in_order(cleaned.history),
    )
