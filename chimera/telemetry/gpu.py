"""One GPU, read metric by metric: each is a number or the reason why there is none.

Rates follow what the calls cost the driver: seven to nine calls a second, by what the driver tells together and how
wide its counters are; the dearer ones every five seconds, what hardly changes every fifty, what never does once; all
but the first as far as the allowance goes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from chimera.domain.readings import PENDING, Missing, Reading, number
from chimera.domain.telemetry import INACTIVE, GpuCounters, GpuInfo, GpuProcess, GpuSample
from chimera.domain.text import plain

from .allowance import WINDOW_S, Allowance
from .asking import NOT_FOUND, Asker, available, code_of, within
from .processes import Processes
from .reasons import BY_ID, REASONS
from .throttling import Throttling

MEMORY_CLOCK_S = 2.0  # it changes with the P-state, not with the load
SLOW_S = 5.0
RARE_S = 50.0
_ONCE = float("inf")
_NEVER = float("-inf")
_INSTANCES_CALLS = 23
"""To find the MIG instances of a GPU for the first time: there are seven at most."""
_ENDS_CALLS = 3
"""A second, kept free for the ends of sessions: with a session every 4 seconds each end can be told of."""
_SWIFT_INSTANCES = 3
"""So many MIG instances of a GPU are read at the pace of the slow tier; more take longer turns."""
_STALE_PERIODS = 3
"""A value that could not be refreshed for so many periods is no longer shown as one."""

_WAVER_C = 2.0
"""A temperature of slowdown that is derived differs by so much from one time to the next."""

_SLACK_S = 0.1  # a caller's tick is never exact

_INTEGRATED = re.compile(r"GB10|\bThor\b|Orin|Xavier|Tegra|Jetson|nvgpu", re.IGNORECASE)
_BANDWIDTH_BY_NAME: tuple[tuple[str, float], ...] = (("GB10", 273.0),)
"""Where NVML knows no bus width: LPDDR5X, from the maker's data sheet."""

ARCHITECTURES: dict[int, str] = {
    2: "Kepler",
    3: "Maxwell",
    4: "Pascal",
    5: "Volta",
    6: "Turing",
    7: "Ampere",
    8: "Ada",
    9: "Hopper",
    10: "Blackwell",
    13: "Rubin",
}
_ADA = 8

# NVML field ids.
_MEMORY_TEMPERATURE = 82
_ENERGY = 83
_POWER_AVERAGE = 185
_POWER_INSTANT = 186
_SLOWDOWN_LIMIT = 194
_PCIE_TX = 197
_PCIE_RX = 198
_TIMES = {reason.field: reason.id for reason in REASONS if reason.field is not None}
_POLICIES = {reason.policy: reason.id for reason in REASONS if reason.policy is not None}
_WRAP = 2**32
_MOMENT_S = 0.003
"""From one look at a counter of 32 bits to the next: a link of 64 GB/s fills it in 67 ms."""
_FASTEST_LINK = 128e9
"""Bytes a second one way over PCIe 6 with 16 lanes."""
_WRAPPED = Missing("pending", "its counter began anew too often since the last look")
_FAST_FIELDS = (_MEMORY_TEMPERATURE, _ENERGY, _POWER_AVERAGE, _POWER_INSTANT, *_TIMES, _PCIE_TX, _PCIE_RX)
_COUNTER_FIELDS = (_ENERGY, *_TIMES)

_CLOCK_SM, _CLOCK_MEM = 1, 2
_MIG_SHARED = Missing("unsupported", "told for the whole GPU only, not for a MIG instance")
_SHARED_MEMORY = Missing("unsupported", "this GPU shares the host's memory")
_PAUSED = "paused while a request is timed"
_LATE = "not read again yet"


def bandwidth_gb_s(bus_width_bits: float, memory_mhz: float) -> float:
    """Theoretical memory bandwidth in GB/s (10^9 bytes).

    NVML reports the clock at which two transfers a cycle and pin happen, for GDDR and HBM alike:
    `bits / 8 x MHz x 2 / 1000`.
    """
    return bus_width_bits / 8 * memory_mhz * 2 / 1000


class Counter:
    """Turns a monotonic counter into a rate."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def rate(self, value: Reading, at: float, *, wraps: bool = False) -> Reading:
        """Per second since the last value; Missing for a first one, and where the counter ran backwards.

        One that `wraps` begins anew after 2^32 and is taken to have done so once at most.
        """
        if isinstance(value, Missing):
            self._last = None
            return value
        last, self._last = self._last, (value, at)
        if last is None or at <= last[1]:
            return PENDING
        if value < last[0] and not wraps:
            return Missing("pending", "the counter started anew")
        return (value - last[0]) % _WRAP / (at - last[1]) if wraps else (value - last[0]) / (at - last[1])

    def span(self, at: float) -> float:
        """Seconds since the last value; none for a first one."""
        return 0.0 if self._last is None else at - self._last[1]


@dataclass(slots=True)
class _Read:
    """Something that is not read at each tick."""

    name: str
    every_s: float
    calls: int
    """What it costs the driver, at most."""
    ask: Callable[[float], Any]
    costly: bool = False
    """Paused while a request is timed."""
    at: float = _NEVER
    """When it was read last."""

    @property
    def due(self) -> float:
        return self.at if self.at == _NEVER else self.at + self.every_s - _SLACK_S


@dataclass(frozen=True, slots=True)
class Instance:
    """A MIG instance of a GPU."""

    uuid: str
    name: str
    handle: Any


class Device:
    """One GPU, or one MIG instance of it, that the driver has a handle for."""

    def __init__(
        self,
        nvml: Any,
        handle: Any,
        *,
        index: int,
        driver: str,
        processes: Processes,
        count: Callable[[int], None],
        allowance: Allowance,
        now: float,
        instance: Instance | None = None,
        parent: GpuInfo | None = None,
    ) -> None:
        """Ask who it is; what else does not change is read when there is room for it.

        Args:
            nvml: The binding.
            handle: The driver's.
            index: Of the GPU, as the driver counts.
            driver: Its version.
            processes: Names of processes.
            count: Is told of each driver call.
            allowance: Of this GPU, or of the one that this instance is a part of.
            now: Monotonic seconds.
            instance: Where it is one of MIG: which.
            parent: And of which GPU.

        Raises:
            DeviceLost: It is gone already.
        """
        self._nvml = nvml
        self.handle = handle
        self.allowance = allowance
        allowance.begin(now)
        self._count = count
        self.asker = Asker(self.spend)
        self.processes = processes
        self._parent = parent
        self._slow: dict[str, tuple[float, Any]] = {}
        self._pcie = {_PCIE_TX: Counter(), _PCIE_RX: Counter()}
        self._narrow: dict[int, int] = {}  # fields of 32 bits: when the driver read them, by its clock
        self._moments: dict[int, float | None] = {}  # the rates of those at the last look; None where it could not tell
        self._throttling = Throttling()
        self._policy_at: dict[str, float] = {}
        self._last_at: float | None = None
        self._counted_at = _NEVER
        self._process_stamp = 0
        self._driver_us = 0  # the driver's own clock, microseconds
        self._temperature: Reading = PENDING
        self._limit_margin: Reading = PENDING
        self._process_call = "nvmlDeviceGetComputeRunningProcesses_v3"
        self._clock_reasons = "nvmlDeviceGetCurrentClocksEventReasons"
        self.lost: Missing | None = None
        self._arch = 0
        if instance is not None and parent is not None:
            self.info = self._describe_instance(instance, parent)
            reads = self._instance_reads()
        else:
            self.info = self._describe(index, driver, now)
            reads = self._whole_reads()
        self._reads = {read.name: read for read in reads}

    def spend(self, calls: int) -> None:
        """Note driver calls about this GPU."""
        self._count(calls)
        self.allowance.spend(calls)

    @property
    def all_unknown(self) -> bool:
        """Whether the last sample got nothing but `Unknown Error`."""
        return self.asker.unknown > 0 and self.asker.answered == 0

    # -- what does not change --------------------------------------------------------------------------------------

    def _describe(self, index: int, driver: str, now: float) -> GpuInfo:
        nvml, handle = self._nvml, self.handle
        uuid = self._text("uuid", now, nvml.nvmlDeviceGetUUID) or f"gpu-{index}"
        name = self._text("name", now, nvml.nvmlDeviceGetName) or f"GPU {index}"
        arch = self.asker.ask("architecture", now, lambda: nvml.nvmlDeviceGetArchitecture(handle))
        self._arch = arch if isinstance(arch, int) and available(arch) else 0
        return GpuInfo(
            uuid=uuid,
            index=index,
            name=name,
            architecture=ARCHITECTURES.get(self._arch, ""),
            driver=driver,
            integrated=bool(_INTEGRATED.search(name)),
            bus_id=self._bus_id(now),
        )

    @staticmethod
    def _describe_instance(instance: Instance, parent: GpuInfo) -> GpuInfo:
        shared = _MIG_SHARED
        return GpuInfo(
            uuid=instance.uuid,
            index=parent.index,
            name=instance.name,
            architecture=parent.architecture,
            driver=parent.driver,
            mig=True,
            parent=parent.uuid,
            bus_width_bits=shared,
            slowdown_c=shared,
            pcie_max_gen=shared,
            pcie_max_width=shared,
            power_default_w=shared,
            power_min_w=shared,
            power_max_w=shared,
        )

    def _read_bandwidth(self, now: float) -> None:
        nvml, handle = self._nvml, self.handle
        bus_width = self._number("bus width", now, lambda: nvml.nvmlDeviceGetMemoryBusWidth(handle), 1, 65536, "bits")
        top = self._number("max mem", now, lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, _CLOCK_MEM), 1, 1e5, "MHz")
        gb_s = self._bandwidth(self.info.name, bus_width, top)
        self.info = replace(self.info, bus_width_bits=bus_width, max_mem_mhz=top, bandwidth_gb_s=gb_s)

    def _read_max_sm(self, now: float) -> None:
        nvml, handle = self._nvml, self.handle
        top = self._number("max sm", now, lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, _CLOCK_SM), 1, 1e5, "MHz")
        self.info = replace(self.info, max_sm_mhz=top)

    def _read_pcie_max(self, now: float) -> None:
        nvml, handle = self._nvml, self.handle
        gen = self._number("max gen", now, lambda: nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle), 1, 9, "")
        width = self._number("max width", now, lambda: nvml.nvmlDeviceGetMaxPcieLinkWidth(handle), 1, 32, "")
        self.info = replace(self.info, pcie_max_gen=gen, pcie_max_width=width)

    def _read_power_range(self, now: float) -> None:
        nvml, handle = self._nvml, self.handle
        default = self._milli("power default", now, lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle), "W")
        limits = self.asker.ask("power limits", now, lambda: nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle))
        low, high = (limits, limits) if isinstance(limits, Missing) else (_milli(limit, "W") for limit in limits)
        self.info = replace(self.info, power_default_w=default, power_min_w=low, power_max_w=high)

    def _read_persistence(self, now: float) -> None:
        mode = self.asker.ask("persistence", now, lambda: self._nvml.nvmlDeviceGetPersistenceMode(self.handle))
        self.info = replace(self.info, persistence=None if isinstance(mode, Missing) else bool(mode))

    def _read_slices(self, now: float) -> None:
        """Of a MIG instance."""
        attributes = self.asker.ask("attributes", now, lambda: self._nvml.nvmlDeviceGetAttributes_v2(self.handle))
        slices = None if isinstance(attributes, Missing) else int(attributes.gpuInstanceSliceCount)
        self.info = replace(self.info, slices=slices if slices is not None and available(slices) else None)

    def _bus_id(self, now: float) -> str:
        pci = self.asker.ask("pci", now, lambda: self._nvml.nvmlDeviceGetPciInfo_v3(self.handle))
        if isinstance(pci, Missing):
            return ""
        # NVML writes the domain with eight digits, the kernel with four.
        return f"{int(pci.domain):04x}:{int(pci.bus):02x}:{int(pci.device):02x}.0"

    @staticmethod
    def _bandwidth(name: str, bus_width: Reading, max_mem: Reading) -> Reading:
        for part, gb_s in _BANDWIDTH_BY_NAME:
            if part in name:
                return gb_s
        if isinstance(bus_width, Missing):
            return bus_width
        return max_mem if isinstance(max_mem, Missing) else bandwidth_gb_s(bus_width, max_mem)

    def _read_instances(self, now: float) -> tuple[Instance, ...]:
        """The MIG instances that there are now."""
        nvml, handle = self._nvml, self.handle
        before = self.allowance.spent
        mode = self.asker.ask("mig", now, lambda: nvml.nvmlDeviceGetMigMode(handle))
        on = not isinstance(mode, Missing) and mode[0] == 1
        self.info = replace(self.info, mig=on)
        most = self.asker.ask("mig count", now, lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle)) if on else 0
        names = {instance.uuid: instance.name for instance in self.instances}
        found = []
        for slot in range(0 if isinstance(most, Missing) else min(int(most), 64)):
            try:
                self.spend(1)
                own = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
                self.spend(1)
                uuid = plain(str(nvml.nvmlDeviceGetUUID(own)))
                if uuid not in names:
                    self.spend(1)
                    names[uuid] = plain(str(nvml.nvmlDeviceGetName(own)))
                found.append(Instance(uuid, names[uuid], own))
            except Exception:  # noqa: BLE001, S112 - holes in the row of instances are normal
                continue
        self._reads["instances"].calls = max(1, self.allowance.spent - before)
        return tuple(found)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The MIG instances, as far as they were looked for."""
        entry = self._slow.get("instances")
        return entry[1] if entry is not None else ()

    def look_for_instances(self) -> None:
        """One of the known MIG instances is gone: look again as soon as there is room."""
        self._reads["instances"].at = _NEVER

    # -- asking ----------------------------------------------------------------------------------------------------

    def _number(
        self, name: str, now: float, question: Callable[[], float], low: float, high: float, unit: str
    ) -> Reading:
        return within(self.asker.ask(name, now, question), low, high, unit)

    def _milli(self, name: str, now: float, question: Callable[[], float], unit: str) -> Reading:
        return _milli(self.asker.ask(name, now, question), unit)

    def _text(self, name: str, now: float, question: Callable[[Any], str | bytes]) -> str:
        answer = self.asker.ask(name, now, lambda: question(self.handle))
        if isinstance(answer, Missing):
            return ""
        return plain(answer.decode(errors="replace") if isinstance(answer, bytes) else answer)

    # -- a sample --------------------------------------------------------------------------------------------------

    def sample(self, now: float, stamp: Callable[[], float], xids: tuple[int, ...] = (), *, quiet: bool) -> GpuSample:
        """Read what is due. Raises `DeviceLost` or `DriverGone`, nothing else.

        Args:
            now: Time of the tick, monotonic seconds.
            stamp: The same clock at the moment of the call: with slow drivers a tick takes long.
            xids: Critical errors so far.
            quiet: Leave out what costs the driver most; the last values stand until they are too old.
        """
        self.asker.begin()
        self.allowance.begin(now)
        if self._parent is not None:
            self._catch_up(now, quiet=quiet)
            return self._instance(now)
        sample = self._fast(now, stamp)
        self._temperature = sample.temperature_c
        self.allowance.regular = self.asker.lasting
        self.allowance.ends = _ENDS_CALLS if now - self._counted_at < WINDOW_S else 0
        self._catch_up(now, quiet=quiet)
        processes = self._kept("processes", now)
        margin, slowdown = self._margin(sample.temperature_c, now)
        if _is_news(self.info.slowdown_c, slowdown):
            self.info = replace(self.info, slowdown_c=slowdown)
        return replace(
            self._unified(sample, processes),
            margin_c=margin,
            mem_mhz=self._kept("mem clock", now),
            pstate=self._kept("pstate", now),
            power_limit_w=self._kept("power limit", now),
            fan_percent=self._kept("fan", now),
            pcie_gen=_SHARED_MEMORY if self.info.integrated else self._kept("pcie gen", now),
            pcie_width=_SHARED_MEMORY if self.info.integrated else self._kept("pcie width", now),
            ecc_errors=self._kept("ecc", now),
            remapped_rows=self._kept("remapped", now),
            processes=processes,
            processes_at=self._read_at("processes"),
            xids=xids,
        )

    def _fast(self, now: float, stamp: Callable[[], float]) -> GpuSample:
        nvml, handle = self._nvml, self.handle
        rates = self.asker.ask("utilization", now, lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        total, used, reserved, free = self._memory(now)
        temperature = self._number("temperature", now, lambda: nvml.nvmlDeviceGetTemperature(handle, 0), 0, 200, "°C")
        sm = self._number("sm clock", now, lambda: nvml.nvmlDeviceGetClockInfo(handle, _CLOCK_SM), 0, 1e5, "MHz")
        reasons = self._reasons(now)
        at = stamp()
        fields = self._fields(_FAST_FIELDS, now)
        power = fields[_POWER_AVERAGE]
        if isinstance(power, Missing):
            power = fields[_POWER_INSTANT]
        power = (
            self._milli("power", now, lambda: nvml.nvmlDeviceGetPowerUsage(handle), "W")
            if isinstance(power, Missing)
            else _milli(power, "W")
        )
        energy = self._energy(fields, now)
        times = self._held(fields, now)
        window = 0.0 if self._last_at is None else at - self._last_at
        throttles = self._throttling.see(at, times, reasons, self._policy_at)
        self._last_at = at
        shared = self.info.integrated
        traffic = {} if shared else self._traffic(fields, at, now)
        return GpuSample(
            uuid=self.info.uuid,
            at=at,
            utilization=rates if isinstance(rates, Missing) else within(rates.gpu, 0, 100, "%"),
            memory_utilization=rates if isinstance(rates, Missing) else within(rates.memory, 0, 100, "%"),
            vram_total_bytes=total,
            vram_used_bytes=used,
            vram_reserved_bytes=reserved,
            vram_free_bytes=free,
            temperature_c=temperature,
            memory_temperature_c=within(fields[_MEMORY_TEMPERATURE], 1, 200, "°C"),
            sm_mhz=sm,
            power_w=power,
            energy_j=energy,
            pcie_tx_bytes_s=_SHARED_MEMORY if shared else traffic[_PCIE_TX],
            pcie_rx_bytes_s=_SHARED_MEMORY if shared else traffic[_PCIE_RX],
            reasons=reasons,
            throttle_s=times,
            throttles=throttles,
            window_s=window,
        )

    def _instance(self, now: float) -> GpuSample:
        """A MIG instance: the driver tells memory and processes, the rest only of the whole GPU."""
        memory = self._kept("memory", now)
        total, used, reserved, free = (memory,) * 4 if isinstance(memory, Missing) else memory
        shared = _MIG_SHARED
        return GpuSample(
            uuid=self.info.uuid,
            at=now,
            utilization=shared,
            memory_utilization=shared,
            vram_total_bytes=total,
            vram_used_bytes=used,
            vram_reserved_bytes=reserved,
            vram_free_bytes=free,
            temperature_c=shared,
            margin_c=shared,
            memory_temperature_c=shared,
            sm_mhz=shared,
            mem_mhz=shared,
            pstate=shared,
            power_w=shared,
            power_limit_w=shared,
            energy_j=shared,
            fan_percent=shared,
            pcie_gen=shared,
            pcie_width=shared,
            pcie_tx_bytes_s=shared,
            pcie_rx_bytes_s=shared,
            reasons=shared,
            ecc_errors=shared,
            remapped_rows=shared,
            processes=self._kept("processes", now),
            processes_at=self._read_at("processes"),
        )

    def share(self, whole: GpuInfo, total: Reading, own: Reading) -> None:
        """Of a MIG instance: what it has of its GPU. Its part of the bandwidth is that of the memory, in eighths."""
        part, of, gb_s = number(own), number(total), number(whole.bandwidth_gb_s)
        bandwidth: Reading = Missing("unsupported", "the whole GPU's memory or bus width is not told here")
        if PENDING in (own, total, whole.bandwidth_gb_s):
            bandwidth = PENDING
        elif part is not None and of and gb_s is not None:
            bandwidth = gb_s * min(8, max(1, round(part / of * 8))) / 8
        self.info = replace(
            self.info, max_sm_mhz=whole.max_sm_mhz, max_mem_mhz=whole.max_mem_mhz, bandwidth_gb_s=bandwidth
        )

    # -- memory ----------------------------------------------------------------------------------------------------

    def _memory(self, now: float) -> tuple[Reading, Reading, Reading, Reading]:
        """Total, used, reserved, free. Version 2 keeps the reserved part apart, version 1 counts it as used."""
        nvml, handle = self._nvml, self.handle
        answer = self.asker.ask(
            "memory v2", now, lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        )
        if not isinstance(answer, Missing):
            return (
                _bytes(answer.total, positive=True),
                _bytes(answer.used),
                _bytes(answer.reserved),
                _bytes(answer.free),
            )
        if answer.reason != "unsupported":
            return answer, answer, answer, answer
        old = self.asker.ask("memory", now, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        if isinstance(old, Missing):
            return old, old, old, old
        folded = Missing("unsupported", "this driver counts the reserved part as used")
        return _bytes(old.total, positive=True), _bytes(old.used), folded, _bytes(old.free)

    def free_bytes(self, now: float) -> Reading:
        """Free memory alone, now. Raises `DeviceLost` or `DriverGone`, nothing else."""
        self.allowance.begin(now)
        total, _, _, free = self._memory(now)
        sample = GpuSample(self.info.uuid, now, vram_total_bytes=total, vram_free_bytes=free)
        return self._unified(sample, PENDING).vram_free_bytes

    def _unified(self, sample: GpuSample, processes: tuple[GpuProcess, ...] | Missing) -> GpuSample:
        """Memory of a GPU that shares the host's: only where NVML tells none and the name says integrated."""
        missing = sample.vram_total_bytes
        if not (self.info.integrated and isinstance(missing, Missing) and missing.reason == "unsupported"):
            return sample
        import psutil

        try:
            memory = psutil.virtual_memory()
        except (OSError, ValueError, RuntimeError):
            return sample
        used: Reading = Missing("unsupported", "the driver does not tell its processes' memory")
        if not isinstance(processes, Missing):
            parts = [number(process.vram_bytes) for process in processes]
            if None not in parts:
                used = float(sum(part or 0.0 for part in parts))
        return replace(
            sample,
            vram_total_bytes=float(memory.total),
            vram_used_bytes=used,
            vram_reserved_bytes=_SHARED_MEMORY,
            vram_free_bytes=float(memory.available),
        )

    # -- temperature -----------------------------------------------------------------------------------------------

    def _margin(self, temperature: Reading, now: float) -> tuple[Reading, Reading]:
        """Degrees left to slowdown, and the temperature at which it begins."""
        slowdown = self._kept("slowdown", now)
        if isinstance(slowdown, Missing):
            return slowdown, slowdown
        if isinstance(temperature, Missing):
            return temperature, slowdown
        return slowdown - temperature, slowdown

    def _read_slowdown(self, now: float) -> Reading:
        """The temperature of slowdown: Ada and later tell a distance, earlier ones the temperature."""
        ways = (self._by_margin, self._by_threshold)
        found: Reading = PENDING
        for way in ways if self._arch >= _ADA else reversed(ways):
            answer = way(now)
            if not isinstance(answer, Missing):
                return answer
            found = answer if found is PENDING else found
        return found

    def _by_threshold(self, now: float) -> Reading:
        nvml, handle = self._nvml, self.handle
        known = self._slow.get("threshold")
        if known is not None:
            return float(known[1])
        answer = self._number(
            "threshold", now, lambda: nvml.nvmlDeviceGetTemperatureThreshold(handle, 1), 20, 200, "°C"
        )
        if not isinstance(answer, Missing):
            self._slow["threshold"] = (now, answer)
        return answer

    def _by_margin(self, now: float) -> Reading:
        """Now + degrees left to the operating limit - (slowdown limit, which lies below zero past that limit)."""
        nvml, handle = self._nvml, self.handle
        margin = self._number("margin", now, lambda: nvml.nvmlDeviceGetMarginTemperature(handle), -150, 200, "°C")
        if isinstance(margin, Missing):
            return margin
        temperature = self._temperature
        if isinstance(temperature, Missing):
            return temperature
        if isinstance(self._limit_margin, Missing):
            self._limit_margin = within(self._fields((_SLOWDOWN_LIMIT,), now)[_SLOWDOWN_LIMIT], -100, 100, "°C")
        limit = number(self._limit_margin)
        return temperature + margin - (limit if limit is not None else 0.0)

    # -- throttling ------------------------------------------------------------------------------------------------

    def _reasons(self, now: float) -> Reading:
        answer = self.asker.ask("reasons", now, lambda: getattr(self._nvml, self._clock_reasons)(self.handle))
        if isinstance(answer, Missing) and self._clock_reasons.endswith("EventReasons"):
            # The same bits under the name that drivers before R535 know.
            older = "nvmlDeviceGetCurrentClocksThrottleReasons"
            answer = self.asker.ask("older reasons", now, lambda: getattr(self._nvml, older)(self.handle))
        if isinstance(answer, Missing):
            return answer
        return float(answer) if available(answer) else Missing("unsupported", "NVML: no value")

    def _held(self, fields: dict[int, Reading], now: float) -> dict[str, Reading]:
        """Seconds that each reason has held, from the counters that this driver has."""
        times: dict[str, Reading] = {}
        for field, reason in _TIMES.items():
            value = fields[field]
            times[reason] = value if isinstance(value, Missing) else value / 1e9
        for policy, reason in _POLICIES.items():
            if isinstance(times[reason], Missing):
                kept = self._slow.get(f"policy {policy}")
                if kept is not None and not isinstance(kept[1], Missing):
                    times[reason] = kept[1]
                    self._policy_at[reason] = kept[0]
            else:
                self._policy_at.pop(reason, None)
        if not isinstance(times["sw-thermal"], Missing) or not isinstance(times["hw-thermal"], Missing):
            # The newer pair tells the same time more finely.
            times.pop("thermal")
        return times

    def _read_policy(self, policy: int, now: float) -> Reading:
        """Seconds that a reason has held, for drivers that do not give them as a field."""
        nvml, handle = self._nvml, self.handle
        reason = _POLICIES[policy]
        newer = "sw-thermal" if reason == "thermal" else reason
        if not all(self.asker.dropped(f"field {BY_ID[name].field}", now) for name in (reason, newer)):
            return PENDING
        answer = self.asker.ask(
            f"policy {policy}", now, lambda: nvml.nvmlDeviceGetViolationStatus(handle, policy).violationTime
        )
        value = within(answer, 0, 2**63, "ns")
        return value if isinstance(value, Missing) else value / 1e9

    # -- fields ----------------------------------------------------------------------------------------------------

    def _fields(self, ids: tuple[int, ...], now: float) -> dict[int, Reading]:
        """Several fields in one driver call; each has its own return code."""
        result: dict[int, Reading] = {}
        wanted: list[int] = []
        for field in ids:
            if missing := self.asker.dropped(f"field {field}", now):
                result[field] = missing
            else:
                wanted.append(field)
        if not wanted:
            return result
        result |= self._answered(wanted, now)
        left = [field for field in wanted if field not in result]
        if left and left != wanted:
            result |= self._answered(left, now)  # what the driver refused is no longer among them
        for field in left:
            result.setdefault(field, Missing("unsupported", "NVML: no value"))
        return result

    def _answered(self, wanted: list[int], now: float) -> dict[int, Reading]:
        """What the driver answers to one call, without the fields that it passes over."""
        values = self.asker.ask("fields", now, lambda: self._nvml.nvmlDeviceGetFieldValues(self.handle, wanted))
        if isinstance(values, Missing):
            return dict.fromkeys(wanted, values)
        result: dict[int, Reading] = {}
        for field, value in zip(wanted, values, strict=False):
            code = int(value.nvmlReturn)
            if not code and not value.timestamp and not value.valueType:
                # One field that is not supported makes driver 580 leave others as they were handed in: zeros, no error.
                continue
            self._driver_us = max(self._driver_us, int(value.timestamp))
            if int(value.valueType) == 1:
                self._narrow[field] = int(value.timestamp)
            if code:
                words = str(self._nvml.NVMLError(code))
                result[field] = self.asker.refuse(f"field {field}", code, words, now)
                continue
            self.asker.accept(f"field {field}", now)
            figure = _union(value, signed=field == _SLOWDOWN_LIMIT)
            result[field] = float(figure) if available(figure) else Missing("unsupported", "NVML: no value")
        return result

    def _traffic(self, fields: dict[int, Reading], at: float, now: float) -> dict[int, Reading]:
        """Bytes a second over PCIe each way: the mean since the last tick, or of a moment where that cannot be told.

        Counters of 32 bits wrap several times a tick on a link that is really used, and what is left is no rate. So
        each is looked at twice: where this tick or the one before finds the link that fast, the moment's rate is given.
        A link that is idle at both ticks and was that busy between them cannot be told from one that was not.
        """
        narrow = tuple(field for field in self._pcie if field in self._narrow and number(fields[field]) is not None)
        span = {field: counter.span(at) for field, counter in self._pcie.items()}
        rates = {field: counter.rate(fields[field], at, wraps=field in narrow) for field, counter in self._pcie.items()}
        if not narrow:
            return rates
        before = dict(self._narrow)
        time.sleep(_MOMENT_S)
        after = self._fields(narrow, now)
        for field in narrow:
            moment = _moment(fields[field], after[field], self._narrow[field] - before[field])
            looks = (self._moments.get(field), moment)
            self._moments[field] = moment
            # Half of what fills it: the mean may be above what a moment shows.
            if span[field] > 0 and any(one is None or one >= _WRAP / 2 / span[field] for one in looks):
                rates[field] = _WRAPPED if moment is None else moment
        return rates

    def _energy(self, fields: dict[int, Reading], now: float) -> Reading:
        energy = fields[_ENERGY]
        if isinstance(energy, Missing):
            energy = self.asker.ask("energy", now, lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))
        if isinstance(energy, Missing):
            return energy
        return energy / 1000 if available(energy) else Missing("unsupported", "NVML: no value")

    def counters(self, now: float, stamp: Callable[[], float], *, processes: bool) -> GpuCounters:
        """The monotonic counters, by one driver call where it has them as fields, and the processes if it may be asked.

        No request is timed at this moment, so the list costs nobody anything; read when a configuration runs, it makes
        the next one tell of the time since then, as far as somebody computed by then. What the allowance has no room
        for is pending: a value of some earlier moment would be no end of a session.
        """
        at = stamp()
        read = self._reads["processes"]
        self.allowance.begin(now)
        # Energy is one of the fields, or a call of its own.
        calls = 2 if self.asker.dropped(f"field {_ENERGY}", now) else 1
        if processes and self.allowance.room(at_end=True) >= read.calls + calls:
            read.at = at
            self._keep(read.name, at, self._read_processes(at))
        kept_at, listed = self._slow.get(read.name, (_NEVER, PENDING))
        for policy in _POLICIES:
            if self.allowance.room() > 0:
                self._keep(f"policy {policy}", at, self._read_policy(policy, at))
        if self.allowance.room(at_end=True) < calls:
            return GpuCounters(self.info.uuid, at, processes=listed if kept_at == at else PENDING)
        self._counted_at = now
        fields = self._fields(_COUNTER_FIELDS, now)
        times = {
            reason: PENDING if number(value) is not None and self._policy_at.get(reason, at) != at else value
            for reason, value in self._held(fields, now).items()
        }
        return GpuCounters(self.info.uuid, at, self._energy(fields, now), times, listed if kept_at == at else PENDING)

    # -- the slower tiers ------------------------------------------------------------------------------------------

    def _whole_reads(self) -> list[_Read]:
        """What is not read at each tick, the first of them first where all are due."""
        nvml, handle, number = self._nvml, self.handle, self._number
        reads = [
            _Read("instances", RARE_S, _INSTANCES_CALLS, self._read_instances),
            _Read("slowdown", SLOW_S, 3, self._read_slowdown),
            _Read(
                "mem clock", MEMORY_CLOCK_S, 1,
                lambda now: number("mem clock", now, lambda: nvml.nvmlDeviceGetClockInfo(handle, 2), 0, 1e5, "MHz"),
            ),
            _Read(
                "power limit", SLOW_S, 1,
                lambda now: self._milli("power limit", now, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle), "W"),
            ),
            _Read("bandwidth", _ONCE, 2, self._read_bandwidth),
            _Read("max sm", _ONCE, 1, self._read_max_sm),
            *(_Read(f"policy {policy}", SLOW_S, 1, partial(self._read_policy, policy)) for policy in _POLICIES),
            _Read(
                "pstate", SLOW_S, 1,
                lambda now: number("pstate", now, lambda: nvml.nvmlDeviceGetPerformanceState(handle), 0, 15, ""),
            ),
            _Read("processes", SLOW_S, 4, self._read_processes, costly=True),
            _Read(
                "fan", SLOW_S, 1,
                lambda now: number("fan", now, lambda: nvml.nvmlDeviceGetFanSpeed(handle), 0, 200, "%"), costly=True,
            ),
        ]  # fmt: skip
        if not self.info.integrated:
            reads += [
                _Read(
                    "pcie gen", SLOW_S, 1,
                    lambda now: number("gen", now, lambda: nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle), 1, 9, ""),
                    costly=True,
                ),
                _Read(
                    "pcie width", SLOW_S, 1,
                    lambda now: number("width", now, lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(handle), 1, 32, ""),
                    costly=True,
                ),
            ]  # fmt: skip
        return [
            *reads,
            _Read("pcie max", _ONCE, 2, self._read_pcie_max),
            _Read("power range", _ONCE, 2, self._read_power_range),
            _Read("persistence", _ONCE, 1, self._read_persistence),
            _Read("ecc", RARE_S, 1, self._read_ecc),
            _Read("remapped", RARE_S, 1, self._read_remapped),
        ]

    def _instance_reads(self) -> list[_Read]:
        """Of a MIG instance; `follow` sets how often."""
        return [
            _Read("memory", SLOW_S, 2, self._memory),
            _Read("slices", _ONCE, 1, self._read_slices),
            _Read("processes", 2 * SLOW_S, 2, self._read_processes, costly=True),
        ]

    def follow(self, handle: Any, siblings: int) -> None:
        """Of a MIG instance: its handle now, and how many share the allowance of their GPU."""
        self.handle = handle
        every_s = SLOW_S * max(1.0, siblings / _SWIFT_INSTANCES)
        self._reads["memory"].every_s, self._reads["processes"].every_s = every_s, 2 * every_s

    def _catch_up(self, now: float, *, quiet: bool) -> None:
        """Read what is due, the longest overdue first, as far as the allowance goes; the rest at the next tick."""
        due = [read for read in self._reads.values() if read.due <= now and not (quiet and read.costly)]
        for read in sorted(due, key=lambda read: read.due):
            # Where sessions are short, what takes many calls, as MIG instances do, would keep all behind it waiting.
            late = now - read.due > WINDOW_S
            if read.calls > self.allowance.room(late=late):
                if late:
                    continue
                return
            read.at = now
            self._keep(read.name, now, read.ask(now))

    def _keep(self, name: str, now: float, value: Any) -> None:
        self._slow[name] = (now, value)

    def _kept(self, name: str, now: float) -> Any:
        """The last value of something that is not read at each tick, or since when there is none."""
        entry = self._slow.get(name)
        if entry is None:
            return PENDING
        at, value = entry
        read = self._reads[name]
        if isinstance(value, Missing) or now - at <= _STALE_PERIODS * max(read.every_s, SLOW_S):
            return value
        return Missing("stale", _PAUSED if read.costly else _LATE, at)

    def _read_at(self, name: str) -> float | None:
        entry = self._slow.get(name)
        return entry[0] if entry is not None else None

    def _read_ecc(self, now: float) -> Reading:
        """Uncorrected errors since the board was made; corrected ones are the memory doing its work."""
        errors = self.asker.ask("ecc", now, lambda: self._nvml.nvmlDeviceGetTotalEccErrors(self.handle, 1, 1))
        return within(errors, 0, 2**63, "")

    def _read_remapped(self, now: float) -> Reading:
        rows = self.asker.ask("remapped", now, lambda: self._nvml.nvmlDeviceGetRemappedRows(self.handle))
        return rows if isinstance(rows, Missing) else within(rows[0] + rows[1], 0, 2**31, "")

    def _read_processes(self, now: float) -> tuple[GpuProcess, ...] | Missing:
        nvml, handle = self._nvml, self.handle
        rows = self.asker.ask("processes", now, lambda: getattr(nvml, self._process_call)(handle), calls=2)
        if isinstance(rows, Missing) and rows.reason == "unsupported" and self._process_call.endswith("_v3"):
            # Drivers before R510 know version 2 of the same list.
            older = self.asker.ask(
                "older processes", now, lambda: nvml.nvmlDeviceGetComputeRunningProcesses_v2(handle), calls=2
            )
            rows = older if not isinstance(older, Missing) else rows
        if isinstance(rows, Missing):
            return rows
        shares = self._process_shares(now)
        found = []
        for row in rows:
            memory = row.usedGpuMemory
            found.append(
                GpuProcess(
                    pid=int(row.pid),
                    name=self.processes.name(int(row.pid), now),
                    vram_bytes=Missing("unsupported", "the driver does not tell it here")
                    if memory is None
                    else _bytes(memory),
                    sm_percent=shares if isinstance(shares, Missing) else shares.get(int(row.pid), INACTIVE),
                )
            )
        return tuple(found)

    def _process_shares(self, now: float) -> dict[int, Reading] | Missing:
        """Share of the multiprocessors by pid, over the samples since the last look."""
        if self._parent is not None:
            return _MIG_SHARED

        # From the beginning of its memory it would give the mean over ten seconds and more, long after the work.
        stamp = self._process_stamp or max(0, self._driver_us - int(SLOW_S * 1e6))

        def since() -> Any:
            try:
                return self._nvml.nvmlDeviceGetProcessUtilization(self.handle, stamp)
            except self._nvml.NVMLError as error:
                # Nobody was active: not a failure. The binding raises code 0 where the list is empty.
                if code_of(error) in {0, NOT_FOUND}:
                    return ()
                raise

        rows = self.asker.ask("process utilization", now, since, calls=2)
        if isinstance(rows, Missing):
            return rows
        newest = max((int(row.timeStamp) for row in rows), default=0)
        sums: dict[int, list[int]] = {}
        for row in rows:
            recent = int(row.timeStamp) > newest - SLOW_S * 1e6
            if recent and row.smUtil <= 100:  # rows of garbage happen
                sums.setdefault(int(row.pid), []).append(int(row.smUtil))
        self._process_stamp = max(self._process_stamp, newest)
        return {pid: sum(values) / len(values) for pid, values in sums.items()}

    def lose(self, words: str, now: float) -> Missing:
        """Latch that this GPU is gone, and since when."""
        if self.lost is None:
            self.lost = Missing("lost", f"NVML: {words}", now)
        return self.lost


def absent(uuid: str, at: float, why: Missing, xids: tuple[int, ...] = ()) -> GpuSample:
    """A sample of a GPU of which nothing can be read now."""
    return GpuSample(
        uuid=uuid,
        at=at,
        utilization=why,
        memory_utilization=why,
        vram_total_bytes=why,
        vram_used_bytes=why,
        vram_reserved_bytes=why,
        vram_free_bytes=why,
        temperature_c=why,
        margin_c=why,
        memory_temperature_c=why,
        sm_mhz=why,
        mem_mhz=why,
        pstate=why,
        power_w=why,
        power_limit_w=why,
        energy_j=why,
        fan_percent=why,
        pcie_gen=why,
        pcie_width=why,
        pcie_tx_bytes_s=why,
        pcie_rx_bytes_s=why,
        reasons=why,
        lost=why,
        ecc_errors=why,
        remapped_rows=why,
        xids=xids,
        processes=why,
    )


def _union(value: Any, *, signed: bool) -> float:
    """The member of NVML's value union that its type names; limits are signed whatever their type says."""
    if signed:
        return int(value.value.siVal)
    members = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
    kind = int(value.valueType)
    figure: float = getattr(value.value, members[kind] if kind < len(members) else "ullVal")
    return figure


def _is_news(known: Reading, slowdown: Reading) -> bool:
    """Whether a temperature of slowdown tells more than what is known: where it is derived it wavers by a degree."""
    before, after = number(known), number(slowdown)
    if before is None:
        return slowdown != known
    return after is not None and abs(after - before) > _WAVER_C


def _moment(first: Reading, second: Reading, spent_us: int) -> float | None:
    """Rate of a counter of 32 bits between two looks; None where it may have wrapped twice, or there is no second."""
    if isinstance(first, Missing) or isinstance(second, Missing) or spent_us <= 0:
        return None
    return (second - first) % _WRAP / spent_us * 1e6 if spent_us * _FASTEST_LINK < _WRAP * 1e6 else None


def _milli(value: float | Missing, unit: str) -> Reading:
    """Thousandths, as NVML counts power."""
    if isinstance(value, Missing):
        return value
    return within(value / 1000, 0, 100_000, unit) if available(value) else Missing("unsupported", "NVML: no value")


def _bytes(value: int, *, positive: bool = False) -> Reading:
    return within(value, 1 if positive else 0, 2**60, "bytes")
