"""What was read of GPUs, the host and the server: frozen and complete, so that it may cross a thread."""

from __future__ import annotations

from dataclasses import dataclass, field

from .readings import PENDING, Missing, Reading, Source


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """What does not change while a GPU is there."""

    uuid: str
    """The key everywhere; the index is not stable across reboots and is not CUDA's."""
    index: int
    name: str
    architecture: str = ""
    driver: str = ""
    bus_width_bits: Reading = PENDING
    max_sm_mhz: Reading = PENDING
    max_mem_mhz: Reading = PENDING
    bandwidth_gb_s: Reading = PENDING
    """Theoretical: bus width / 8 x highest memory clock x 2 / 1000."""
    slowdown_c: Reading = PENDING
    """Temperature at which the hardware slows down."""
    pcie_max_gen: Reading = PENDING
    pcie_max_width: Reading = PENDING
    power_default_w: Reading = PENDING
    power_min_w: Reading = PENDING
    power_max_w: Reading = PENDING
    integrated: bool = False
    """Shares the host's memory."""
    mig: bool = False
    parent: str | None = None
    """UUID of the GPU that this MIG instance belongs to."""
    bus_id: str = ""
    """PCI address as the kernel writes it, `0000:01:00.0`; empty where there is none."""
    persistence: bool | None = None
    """Persistence mode; off, each first opening of the GPU costs a driver start of a second or more."""
    slices: int | None = None
    """Of a MIG instance: its share of the GPU's compute slices."""


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that computes on a GPU."""

    pid: int
    name: str
    """`?` where the pid cannot be tied to a process seen from here (containers, WSL): never act on such a pid."""
    vram_bytes: Reading = PENDING
    sm_percent: Reading = PENDING
    """Of the multiprocessors; `INACTIVE` where the driver tells of others and not of this one."""


INACTIVE = Missing("stale", "not active in the last samples")


@dataclass(frozen=True, slots=True)
class Throttle:
    """One reason for lowered clocks, over a window."""

    reason: str
    """Stable id: `power-cap`, `sw-thermal`, `hw-thermal`, `power-brake`, `hw-slowdown`, `sync-boost`, ..."""
    share: float
    """Part of the window, 0 to 1."""
    source: str
    """`counter` (monotonic time counters: nothing is missed) or `bits` (seen in samples)."""
    seconds: float | None = None
    """Within the window; None where only samples tell."""


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One reading of one GPU. A field is a number, or the reason why there is none."""

    uuid: str
    at: float
    """Seconds on the monotonic clock."""
    utilization: Reading = PENDING
    """Percent of the last sampling period in which a kernel ran."""
    memory_utilization: Reading = PENDING
    """Percent of time in which memory was read or written; not fullness."""
    vram_total_bytes: Reading = PENDING
    vram_used_bytes: Reading = PENDING
    """Without the reserved part."""
    vram_reserved_bytes: Reading = PENDING
    vram_free_bytes: Reading = PENDING
    temperature_c: Reading = PENDING
    margin_c: Reading = PENDING
    """Degrees left to slowdown."""
    memory_temperature_c: Reading = PENDING
    sm_mhz: Reading = PENDING
    mem_mhz: Reading = PENDING
    pstate: Reading = PENDING
    power_w: Reading = PENDING
    power_limit_w: Reading = PENDING
    """The enforced one."""
    energy_j: Reading = PENDING
    """Monotonic counter."""
    fan_percent: Reading = PENDING
    pcie_gen: Reading = PENDING
    pcie_width: Reading = PENDING
    pcie_tx_bytes_s: Reading = PENDING
    pcie_rx_bytes_s: Reading = PENDING
    reasons: Reading = PENDING
    """Bit mask of clock event reasons, as NVML gives it."""
    throttle_s: dict[str, Reading] = field(default_factory=dict)
    """Seconds each reason has held, monotonic counters by the ids of `Throttle.reason`."""
    throttles: tuple[Throttle, ...] = ()
    """Over the time since the last sample, most severe first; a GPU that merely idles is not among them."""
    window_s: float = 0.0
    """Length of that time; 0 for a first sample."""
    lost: Missing | None = None
    """Set where the whole GPU is gone or asleep: why, and since when."""
    ecc_errors: Reading = PENDING
    remapped_rows: Reading = PENDING
    xids: tuple[int, ...] = ()
    """Critical errors that the driver reported since the collector started, oldest first."""
    processes: tuple[GpuProcess, ...] | Missing = PENDING
    processes_at: float | None = None
    """When that list was read, which is not done at each tick and not while a request is timed; None: with the rest."""


@dataclass(frozen=True, slots=True)
class GpuCounters:
    """What is read of one GPU at the two ends of a session: the monotonic counters, and who computed on it."""

    uuid: str
    at: float
    energy_j: Reading = PENDING
    throttle_s: dict[str, Reading] = field(default_factory=dict)
    """As in `GpuSample.throttle_s`."""
    processes: tuple[GpuProcess, ...] | Missing = PENDING
    """Shares are of the time since the list was read before, of its last seconds where that is long ago."""


@dataclass(frozen=True, slots=True)
class VramParts:
    """What fills a GPU's memory, as people think of it, in bytes, or why that is unknown."""

    weights_bytes: Reading = PENDING
    kv_bytes: Reading = PENDING
    compute_bytes: Reading = PENDING
    """Buffers of the engine other than weights and KV cache."""
    foreign_bytes: Reading = PENDING
    """Of processes that are not the model server's."""
    engine_bytes: Reading = PENDING
    """Of the model server's processes, all parts together."""
    source: Source = "derived"
    """Of weights, KV cache and buffers: no driver tells them apart."""
    held_source: Source = "measured"
    """Of `engine_bytes` and `foreign_bytes`: `measured` by the driver's list of processes, or `derived` from what the
    server says it holds."""


@dataclass(frozen=True, slots=True)
class GpuState:
    """All GPUs at one moment, or why there are none."""

    at: float
    infos: tuple[GpuInfo, ...] = ()
    samples: tuple[GpuSample, ...] = ()
    """In the order of `infos`."""
    missing: Missing | None = None
    """Why there is no GPU to show: no driver, a driver that does not match its library, none installed."""
    driver: str = ""


@dataclass(frozen=True, slots=True)
class ProcessShare:
    """A process that uses the processor."""

    pid: int
    name: str
    cpu_percent: float
    """In percent of one core."""


@dataclass(frozen=True, slots=True)
class HostSample:
    """One reading of this machine."""

    at: float
    cpu_percent: Reading = PENDING
    """Of all cores together, 0 to 100."""
    per_core_percent: tuple[float, ...] = ()
    load_1m: Reading = PENDING
    memory_total_bytes: Reading = PENDING
    memory_used_bytes: Reading = PENDING
    """Total minus what could be had at once."""
    swap_used_bytes: Reading = PENDING
    swap_total_bytes: Reading = PENDING
    pressure_cpu: Reading = PENDING
    """PSI `some avg10`, percent of time in which a task waited."""
    pressure_memory: Reading = PENDING
    pressure_io: Reading = PENDING
    disk_read_bytes_s: Reading = PENDING
    cpu_mhz: Reading = PENDING
    governor: str | None = None
    steal_percent: Reading = PENDING
    on_battery: bool | None = None
    power_profile: str | None = None
    cpu_limit_cores: Reading = PENDING
    """Cores that the control group allows."""
    memory_limit_bytes: Reading = PENDING
    engine_cpu_percent: Reading = PENDING
    """Of the model server's processes, in percent of one core."""
    foreign_cpu_percent: Reading = PENDING
    """Of everything that is neither the engine nor Chimera, in percent of all cores."""
    own_cpu_percent: Reading = PENDING
    """Of Chimera itself, in percent of one core."""
    foreign: tuple[ProcessShare, ...] = ()
    """Who the foreign users are, largest first; looked up only while their share is worth it."""


@dataclass(frozen=True, slots=True)
class SlotState:
    """One slot of a server, as seen from outside."""

    id: int
    busy: bool
    task: int | None = None
    """Changes with each request."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    decoded: int | None = None
    remaining: int | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that a server holds in memory."""

    name: str
    size_bytes: Reading = PENDING
    vram_bytes: Reading = PENDING
    context: Reading = PENDING
    expires_at: float | None = None
    """Wall clock, or None: never, or unknown."""


@dataclass(frozen=True, slots=True)
class ServerSample:
    """What a server does for all its clients at one moment."""

    at: float
    rate: Reading = PENDING
    """Tokens a second over all slots."""
    ttft_s: Reading = PENDING
    """Of the newest request that any client has had answered, at polling resolution."""
    busy: Reading = PENDING
    waiting: Reading = PENDING
    slots: tuple[SlotState, ...] = ()
    models: tuple[LoadedModel, ...] | Missing = PENDING
    loading: bool = False
    sleeping: bool = False
    via: str = ""
    """Where it was read: `/slots`, `/metrics`, `child /slots`, `/api/ps`."""
    note: str = ""
    """What cannot be seen, and why."""
    reachable: bool = True
    """It answered, or is known to be at work on a prompt and too busy to answer."""
    prefilling: bool = False
    """At least one slot reads a prompt: its rate is 0 for that reason."""
    rate_window_s: float = 0.0
    """Time over which `rate` was taken; 0 where there is none."""
    tokens_total: Reading = PENDING
    """Tokens seen generated since the watch began, for all clients."""
    engine_pids: tuple[int, ...] = ()
    """Processes of this server on this host, where they are known."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What watching itself costs, so that it can stand beside a result."""

    nvml_calls: int = 0
    """Driver calls since the start."""
    gpu_s: float = 0.0
    """Wall time of the last GPU reading."""
    host_s: float = 0.0
    server_s: float = 0.0
    cpu_s: float = 0.0
    """Processor time of the telemetry thread for the last snapshot."""
    quiet: bool = False
    """Costly reads were paused because a request was being timed."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that was read at one tick."""

    at: float
    gpus: GpuState
    host: HostSample
    server: ServerSample | None = None
    cost: Cost = Cost()
