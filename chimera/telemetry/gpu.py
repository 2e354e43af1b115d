"""One GPU, read metric by metric: each is a number or the reason why there is none.

Rates follow what the calls cost the driver: about seven calls a second, the dearer ones every five seconds, what
hardly changes every fifty.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from chimera.domain.readings import PENDING, Missing, Reading, number
from chimera.domain.telemetry import GpuCounters, GpuInfo, GpuProcess, GpuSample
from chimera.domain.text import plain

from .asking import NOT_FOUND, Asker, available, code_of, within
from .processes import Processes
from .reasons import BY_ID, REASONS
from .throttling import Throttling

MEMORY_CLOCK_S = 2.0  # it changes with the P-state, not with the load
SLOW_S = 5.0
RARE_S = 50.0
STALE_AFTER_S = 3 * SLOW_S
"""A value of the slow tier that could not be refreshed for this long is no longer shown as one."""

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
_FAST_FIELDS = (_MEMORY_TEMPERATURE, _ENERGY, _POWER_AVERAGE, _POWER_INSTANT, *_TIMES, _PCIE_TX, _PCIE_RX)
_COUNTER_FIELDS = (_ENERGY, *_TIMES)

_CLOCK_SM, _CLOCK_MEM = 1, 2
_MIG_SHARED = Missing("unsupported", "told for the whole GPU only, not for a MIG instance")
_SHARED_MEMORY = Missing("unsupported", "this GPU shares the host's memory")
_PAUSED = "paused while a request is timed"


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

    def rate(self, value: Reading, at: float) -> Reading:
        """Per second since the last value; Missing for a first one, and where the counter ran backwards."""
        if isinstance(value, Missing):
            self._last = None
            return value
        last, self._last = self._last, (value, at)
        if last is None or at <= last[1]:
            return PENDING
        if value < last[0]:
            return Missing("pending", "the counter started anew")
        return (value - last[0]) / (at - last[1])


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
        now: float,
        parent: GpuInfo | None = None,
        slot: int = 0,
    ) -> None:
        """Ask what does not change.

        Args:
            nvml: The binding.
            handle: The driver's.
            index: Of the GPU, as the driver counts.
            driver: Its version.
            processes: Names of processes.
            count: Is told of each driver call.
            now: Monotonic seconds.
            parent: Of a MIG instance: its GPU.
            slot: Of a MIG instance: its place there.

        Raises:
            DeviceLost: It is gone already.
        """
        self._nvml = nvml
        self.handle = handle
        self.asker = Asker(count)
        self.processes = processes
        self._parent = parent
        self._slow: dict[str, tuple[float, Any]] = {}
        self._memory_clock_at = self._slow_at = self._rare_at = float("-inf")
        self._pcie = {"tx": Counter(), "rx": Counter()}
        self._throttling = Throttling()
        self._policy_at: dict[str, float] = {}
        self._last_at: float | None = None
        self._instance_sample: GpuSample | None = None
        self._process_stamp = 0
        self._limit_margin: Reading = PENDING
        self._new_memory = True
        self._process_call = "nvmlDeviceGetComputeRunningProcesses_v3"
        self._clock_reasons = "nvmlDeviceGetCurrentClocksEventReasons"
        self.lost: Missing | None = None
        self._arch = 0
        self.info = self._describe(index, slot, driver, now)

    @property
    def all_unknown(self) -> bool:
        """Whether the last sample got nothing but `Unknown Error`."""
        return self.asker.unknown > 0 and self.asker.answered == 0

    # -- what does not change --------------------------------------------------------------------------------------

    def _describe(self, index: int, slot: int, driver: str, now: float) -> GpuInfo:
        nvml, handle = self._nvml, self.handle
        fallback = f"{self._parent.uuid}-{slot}" if self._parent else f"gpu-{index}"
        uuid = self._text("uuid", now, nvml.nvmlDeviceGetUUID) or fallback
        name = self._text("name", now, nvml.nvmlDeviceGetName) or f"GPU {index}"
        info = GpuInfo(uuid=uuid, index=index, name=name, driver=driver, integrated=bool(_INTEGRATED.search(name)))
        if self._parent is not None:
            attributes = self.asker.ask("attributes", now, lambda: nvml.nvmlDeviceGetAttributes_v2(handle))
            slices = None if isinstance(attributes, Missing) else int(attributes.gpuInstanceSliceCount)
            return replace(
                info,
                architecture=self._parent.architecture,
                mig=True,
                parent=self._parent.uuid,
                slices=slices if slices is not None and available(slices) else None,
                bus_width_bits=_MIG_SHARED,
                max_sm_mhz=self._parent.max_sm_mhz,
                max_mem_mhz=self._parent.max_mem_mhz,
                bandwidth_gb_s=PENDING,
                slowdown_c=_MIG_SHARED,
                pcie_max_gen=_MIG_SHARED,
                pcie_max_width=_MIG_SHARED,
                power_default_w=_MIG_SHARED,
                power_min_w=_MIG_SHARED,
                power_max_w=_MIG_SHARED,
            )
        arch = self.asker.ask("architecture", now, lambda: nvml.nvmlDeviceGetArchitecture(handle))
        self._arch = arch if isinstance(arch, int) and available(arch) else 0
        bus_width = self._number("bus width", now, lambda: nvml.nvmlDeviceGetMemoryBusWidth(handle), 1, 65536, "bits")
        max_mem = self._number(
            "max mem", now, lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, _CLOCK_MEM), 1, 1e5, "MHz"
        )
        limits = self.asker.ask("power limits", now, lambda: nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle))
        persistence = self.asker.ask("persistence", now, lambda: nvml.nvmlDeviceGetPersistenceMode(handle))
        return replace(
            info,
            architecture=ARCHITECTURES.get(self._arch, ""),
            bus_width_bits=bus_width,
            max_sm_mhz=self._number(
                "max sm", now, lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, _CLOCK_SM), 1, 1e5, "MHz"
            ),
            max_mem_mhz=max_mem,
            bandwidth_gb_s=self._bandwidth(name, bus_width, max_mem),
            pcie_max_gen=self._number(
                "max gen", now, lambda: nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle), 1, 9, ""
            ),
            pcie_max_width=self._number(
                "max width", now, lambda: nvml.nvmlDeviceGetMaxPcieLinkWidth(handle), 1, 32, ""
            ),
            power_default_w=self._milli(
                "power default", now, lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle), "W"
            ),
            power_min_w=limits if isinstance(limits, Missing) else _milli(limits[0], "W"),
            power_max_w=limits if isinstance(limits, Missing) else _milli(limits[1], "W"),
            bus_id=self._bus_id(now),
            persistence=None if isinstance(persistence, Missing) else bool(persistence),
        )

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
        slow = now - self._slow_at >= SLOW_S - _SLACK_S
        if slow:
            self._slow_at = now
        if self._parent is not None:
            return self._instance(now, slow=slow, quiet=quiet)
        sample = self._fast(now, stamp)
        if slow:
            self._read_slow(now, sample.temperature_c, quiet=quiet)
        rare = now - self._rare_at >= RARE_S - _SLACK_S
        if rare:
            self._rare_at = now
            self._read_rare(now)
        processes = self._kept("processes", now)
        margin, slowdown = self._margin(sample.temperature_c, now)
        if slowdown != self.info.slowdown_c:
            self.info = replace(self.info, slowdown_c=slowdown)
        return replace(
            self._unified(sample, processes),
            margin_c=margin,
            pstate=self._kept("pstate", now),
            power_limit_w=self._kept("power limit", now),
            fan_percent=self._kept("fan", now),
            pcie_gen=_SHARED_MEMORY if self.info.integrated else self._kept("pcie gen", now),
            pcie_width=_SHARED_MEMORY if self.info.integrated else self._kept("pcie width", now),
            ecc_errors=self._kept("ecc", now, RARE_S),
            remapped_rows=self._kept("remapped", now, RARE_S),
            processes=processes,
            xids=xids,
        )

    def _fast(self, now: float, stamp: Callable[[], float]) -> GpuSample:
        nvml, handle = self._nvml, self.handle
        rates = self.asker.ask("utilization", now, lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        total, used, reserved, free = self._memory(now)
        temperature = self._number("temperature", now, lambda: nvml.nvmlDeviceGetTemperature(handle, 0), 0, 200, "°C")
        sm = self._number("sm clock", now, lambda: nvml.nvmlDeviceGetClockInfo(handle, _CLOCK_SM), 0, 1e5, "MHz")
        if now - self._memory_clock_at >= MEMORY_CLOCK_S - _SLACK_S:
            self._memory_clock_at = now
            mem = self._number("mem clock", now, lambda: nvml.nvmlDeviceGetClockInfo(handle, _CLOCK_MEM), 0, 1e5, "MHz")
            self._keep("mem clock", now, mem)
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
            mem_mhz=self._kept("mem clock", now),
            power_w=power,
            energy_j=energy,
            pcie_tx_bytes_s=_SHARED_MEMORY if shared else self._pcie["tx"].rate(fields[_PCIE_TX], at),
            pcie_rx_bytes_s=_SHARED_MEMORY if shared else self._pcie["rx"].rate(fields[_PCIE_RX], at),
            reasons=reasons,
            throttle_s=times,
            throttles=throttles,
            window_s=window,
        )

    def _instance(self, now: float, *, slow: bool, quiet: bool) -> GpuSample:
        """A MIG instance: the driver tells memory and processes, the rest only of the whole GPU.

        There may be seven to a GPU, so they are read at the slow tier, and processes at every second time.
        """
        if not slow and self._instance_sample is not None:
            return self._instance_sample
        total, used, reserved, free = self._memory(now)
        entry = self._slow.get("processes")
        if not quiet and (entry is None or now - entry[0] >= 2 * SLOW_S - _SLACK_S):
            self._keep("processes", now, self._read_processes(now))
        shared = _MIG_SHARED
        self._instance_sample = GpuSample(
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
        )
        return self._instance_sample

    def share_bandwidth(self, whole: Reading, total: Reading, own: Reading) -> None:
        """Of a MIG instance: its part of the GPU's bandwidth is its part of the memory, in eighths."""
        part, of, gb_s = number(own), number(total), number(whole)
        if part is None or not of or gb_s is None:
            missing = Missing("unsupported", "the whole GPU's memory or bus width is not told here")
            self.info = replace(self.info, bandwidth_gb_s=missing)
            return
        eighths = min(8, max(1, round(part / of * 8)))
        self.info = replace(self.info, bandwidth_gb_s=gb_s * eighths / 8)

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
        slowdown = self._kept("slowdown", now, RARE_S)
        if isinstance(slowdown, Missing):
            return slowdown, slowdown
        if isinstance(temperature, Missing):
            return temperature, slowdown
        return slowdown - temperature, slowdown

    def _read_slowdown(self, temperature: Reading, now: float) -> Reading:
        """The temperature of slowdown: Ada and later tell a distance, earlier ones the temperature."""
        ways = (self._by_margin, self._by_threshold)
        found: Reading = PENDING
        for way in ways if self._arch >= _ADA else reversed(ways):
            answer = way(temperature, now)
            if not isinstance(answer, Missing):
                return answer
            found = answer if found is PENDING else found
        return found

    def _by_threshold(self, temperature: Reading, now: float) -> Reading:
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

    def _by_margin(self, temperature: Reading, now: float) -> Reading:
        """Now + degrees left to the operating limit - (slowdown limit, which lies below zero past that limit)."""
        nvml, handle = self._nvml, self.handle
        margin = self._number("margin", now, lambda: nvml.nvmlDeviceGetMarginTemperature(handle), -150, 200, "°C")
        if isinstance(margin, Missing):
            return margin
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

    def _read_policies(self, now: float) -> None:
        """For drivers that do not give the times as fields."""
        nvml, handle = self._nvml, self.handle
        for policy, reason in _POLICIES.items():
            field = BY_ID[reason].field
            if field is None or not self.asker.dropped(f"field {field}", now):
                continue
            if reason == "thermal" and not self.asker.dropped(f"field {BY_ID['sw-thermal'].field}", now):
                continue
            question = partial(nvml.nvmlDeviceGetViolationStatus, handle, policy)
            answer = self.asker.ask(f"policy {policy}", now, question)
            value: Reading = answer if isinstance(answer, Missing) else within(answer.violationTime, 0, 2**63, "ns")
            self._slow[f"policy {policy}"] = (now, value if isinstance(value, Missing) else value / 1e9)

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
        values = self.asker.ask("fields", now, lambda: self._nvml.nvmlDeviceGetFieldValues(self.handle, wanted))
        if isinstance(values, Missing):
            return result | dict.fromkeys(wanted, values)
        for field, value in zip(wanted, values, strict=False):
            code = int(value.nvmlReturn)
            if code:
                words = str(self._nvml.NVMLError(code))
                result[field] = self.asker.refuse(f"field {field}", code, words, now)
                continue
            self.asker.accept(f"field {field}", now)
            figure = _union(value, signed=field == _SLOWDOWN_LIMIT)
            result[field] = float(figure) if available(figure) else Missing("unsupported", "NVML: no value")
        for field in wanted:
            result.setdefault(field, Missing("unsupported", "NVML: no value"))
        return result

    def _energy(self, fields: dict[int, Reading], now: float) -> Reading:
        energy = fields[_ENERGY]
        if isinstance(energy, Missing):
            energy = self.asker.ask("energy", now, lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))
        if isinstance(energy, Missing):
            return energy
        return energy / 1000 if available(energy) else Missing("unsupported", "NVML: no value")

    def counters(self, now: float, stamp: Callable[[], float]) -> GpuCounters:
        """Only the monotonic counters, with one driver call where the driver has them as fields."""
        if self._parent is not None:
            return GpuCounters(self.info.uuid, now, _MIG_SHARED)
        at = stamp()
        self._read_policies(at)
        fields = self._fields(_COUNTER_FIELDS, now)
        return GpuCounters(self.info.uuid, at, self._energy(fields, now), self._held(fields, now))

    # -- the slower tiers ------------------------------------------------------------------------------------------

    def _keep(self, name: str, now: float, value: Any) -> None:
        self._slow[name] = (now, value)

    def _kept(self, name: str, now: float, tier_s: float = SLOW_S) -> Any:
        """The last value of a slower tier, or since when there is none."""
        entry = self._slow.get(name)
        if entry is None:
            return PENDING
        at, value = entry
        if isinstance(value, Missing) or now - at <= 3 * tier_s:
            return value
        return Missing("stale", _PAUSED, at)

    def _read_slow(self, now: float, temperature: Reading, *, quiet: bool) -> None:
        nvml, handle = self._nvml, self.handle
        self._keep("slowdown", now, self._read_slowdown(temperature, now))
        self._keep(
            "pstate", now, self._number("pstate", now, lambda: nvml.nvmlDeviceGetPerformanceState(handle), 0, 15, "")
        )
        self._keep(
            "power limit",
            now,
            self._milli("power limit", now, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle), "W"),
        )
        self._read_policies(now)
        if quiet:
            return
        self._keep("fan", now, self._number("fan", now, lambda: nvml.nvmlDeviceGetFanSpeed(handle), 0, 200, "%"))
        if not self.info.integrated:
            generation = self._number("gen", now, lambda: nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle), 1, 9, "")
            self._keep("pcie gen", now, generation)
            width = self._number("width", now, lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(handle), 1, 32, "")
            self._keep("pcie width", now, width)
        self._keep("processes", now, self._read_processes(now))

    def _read_rare(self, now: float) -> None:
        nvml, handle = self._nvml, self.handle
        # Uncorrected errors since the board was made; corrected ones are the memory doing its work.
        ecc = self.asker.ask("ecc", now, lambda: nvml.nvmlDeviceGetTotalEccErrors(handle, 1, 1))
        self._keep("ecc", now, within(ecc, 0, 2**63, ""))
        rows = self.asker.ask("remapped", now, lambda: nvml.nvmlDeviceGetRemappedRows(handle))
        self._keep("remapped", now, rows if isinstance(rows, Missing) else within(rows[0] + rows[1], 0, 2**31, ""))

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
                    sm_percent=shares if isinstance(shares, Missing) else shares.get(int(row.pid), _INACTIVE),
                )
            )
        return tuple(found)

    def _process_shares(self, now: float) -> dict[int, Reading] | Missing:
        """Share of the multiprocessors by pid, over the samples since the last look."""
        if self._parent is not None:
            return _MIG_SHARED

        def since() -> Any:
            try:
                return self._nvml.nvmlDeviceGetProcessUtilization(self.handle, self._process_stamp)
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


_INACTIVE = Missing("stale", "not active in the last samples")


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


def _milli(value: float | Missing, unit: str) -> Reading:
    """Thousandths, as NVML counts power."""
    if isinstance(value, Missing):
        return value
    return within(value / 1000, 0, 100_000, unit) if available(value) else Missing("unsupported", "NVML: no value")


def _bytes(value: int, *, positive: bool = False) -> Reading:
    return within(value, 1 if positive else 0, 2**60, "bytes")
