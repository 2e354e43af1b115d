"""The GPUs of this host through NVML: one long-lived connection, read by one thread about once a second.

`nvidia-ml-py` is imported when the first reading is asked for. A GPU that is lost, asleep or unreadable is a state of
that GPU; the others go on, and no error gets out of `NvmlCollector.read`.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chimera.domain.readings import Missing, MissingReason, number
from chimera.domain.telemetry import GpuCounters, GpuInfo, GpuSample, GpuState
from chimera.domain.text import plain

from .allowance import Allowance
from .asking import NOT_FOUND, TIMEOUT, Asker, DeviceLost, DriverGone, code_of, words_of
from .gpu import RARE_S, Device, absent
from .processes import Processes

BACK_OFF_S = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Waits between attempts to open the driver again."""

TICK_S = 1.0
_OPENING_CALLS = 16
"""About each GPU, before its first reading is done."""
_SLACK_S = 0.15  # a tick that comes a little early still counts as the next one
_EVENTS_EVERY_S = 5.0
_XIDS_KEPT = 100
_XID_EVENT = 0x8

_NO_PERMISSION = 4
_NO_DRIVER = 9
_NO_LIBRARY = 12
_MISMATCH = 18

_REST_AFTER_S = 60.0
_REST_TRIED_S = 20.0
_REST_AGAIN_S = 600.0

_ASLEEP = "asleep: its power is off until something uses it"
_RESTING = "idle: left alone so that it can go to sleep"


class NvmlCollector:
    """Reads all GPUs. For one thread, apart from `quiet`, `counters` and `close`."""

    def __init__(
        self,
        *,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.quiet = False
        """While a request is timed: process lists, PCIe link and fan are left alone."""
        self.calls = 0
        """Driver calls so far."""
        self._proc = proc
        self._sys = sys
        self._clock = clock
        self._lock = threading.RLock()
        self._nvml: Any = None
        self._pid = 0  # the process that opened the driver; 0 while it is not open
        self._driver = ""
        self._devices: list[Device] = []
        self._instances: dict[str, Device] = {}  # of MIG, by UUID
        self._allowances: defaultdict[int | str, Allowance] = defaultdict(Allowance)  # they outlive a connection
        self._absent: dict[str, tuple[GpuInfo, Missing]] = {}  # GPUs without a handle, by their PCI address or index
        self._slept: dict[str, float] = {}
        self._used_at = self._rest_from = float("-inf")
        self._resting_since: float | None = None
        self._xids: dict[str, tuple[int, ...]] = {}
        self._event_set: Any = None
        self._events_at = float("-inf")
        self._missing: Missing | None = None
        self._attempt = 0
        self._retry_at = float("-inf")
        self._state: GpuState | None = None
        self._closed = False

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, now: float) -> GpuState:
        """All GPUs as they are now; a call that comes too early returns the last state. Never raises.

        Args:
            now: Monotonic seconds; decides which tiers are due.
        """
        with self._lock:
            last = self._state
            if last is not None and (self._closed or 0 <= now - last.at < TICK_S - _SLACK_S):
                return last
            try:
                state = self._read(now)
            except DriverGone as gone:
                state = self._gone(now, str(gone))
            except Exception as error:  # noqa: BLE001 - the telemetry thread must outlive whatever a driver does
                state = self._gone(now, words_of(error))
            self._state = state
            return state

    def counters(self, now: float, *, processes: bool = True) -> tuple[GpuCounters, ...]:
        """Energy, throttle times and programs of each GPU that can be read, for the ends of a session. Never raises."""
        with self._lock:
            found = []
            started = self._clock()
            for device in self._devices if self._pid == os.getpid() else ():
                if device.lost is None:
                    try:
                        found.append(device.counters(now, lambda: now + self._clock() - started, processes=processes))
                    except (DeviceLost, DriverGone):
                        continue  # the next full reading finds out and says so
            return tuple(found)

    def free_bytes(self) -> float | None:
        """Free memory of all GPUs at this moment, one call a GPU; None where one does not tell, or there is none."""
        now = self._clock()
        with self._lock:
            if not self._devices or self._absent or self._pid != os.getpid():
                return None
            total = 0.0
            for device in self._devices:
                try:
                    free = number(device.free_bytes(now)) if device.lost is None else None
                except (DeviceLost, DriverGone):
                    free = None  # the next full reading finds out and says so
                if free is None:
                    return None
                total += free
            return total

    def reinit(self) -> None:
        """Forget all that is latched and open the driver anew at the next reading."""
        with self._lock:
            self._shut()
            self._state = self._missing = None
            self._attempt = 0
            self._retry_at = float("-inf")

    def close(self) -> None:
        """Let go of the driver; the last state stays. May be called twice."""
        with self._lock:
            self._closed = True
            self._shut()

    def _count(self, calls: int) -> None:
        self.calls += calls

    def _spend(self, calls: int) -> None:
        """Note driver calls that are about no GPU in particular."""
        self._count(calls)
        for allowance in self._allowances.values():
            allowance.spend(calls)

    def _read(self, now: float) -> GpuState:
        started = self._clock()  # opening the driver takes a second and more where nothing else holds it open
        if self._pid and self._pid != os.getpid():
            # The driver's state does not survive a fork: what was inherited is not ours to use.
            self._shut()
            self._attempt = 0
            self._retry_at = now
        self._watch_sleepers(now)
        if not self._pid and now >= self._retry_at - _SLACK_S and self._may_open(now):
            self._open(now)
        if not self._pid:
            return self._without_driver(now)
        infos: list[GpuInfo] = []
        samples: list[GpuSample] = []
        instances: dict[str, Device] = {}
        for device in self._devices:
            whole = self._sample(device, now, lambda: now + self._clock() - started)
            infos.append(device.info)
            samples.append(whole)
            for instance in self._instances_of(device, now):
                part = self._sample(instance, now, lambda: now + self._clock() - started)
                if part.lost is not None and device.lost is None:
                    device.look_for_instances()
                instance.share(device.info, whole.vram_total_bytes, part.vram_total_bytes)
                instances[instance.info.uuid] = instance
                infos.append(instance.info)
                samples.append(part)
        self._instances = instances
        read = list(samples)
        if any(device.lost is None and device.all_unknown for device in self._devices):
            # From a GPU that worked this means that the connection is dead: containers lose theirs like this.
            raise DriverGone("Unknown Error")
        if now - self._events_at >= _EVENTS_EVERY_S - _SLACK_S:
            self._events_at = now
            self._collect_events()
        for info, why in self._absent.values():
            infos.append(info)
            samples.append(self._nothing(info, now, why))
        self._attempt = 0
        state = GpuState(now, tuple(infos), tuple(samples), None, self._driver)
        self._let_rest(now, read)
        return state

    def _sample(self, device: Device, now: float, stamp: Callable[[], float]) -> GpuSample:
        if device.lost is not None:
            return self._nothing(device.info, now, device.lost)
        if self._suspended(device.info.bus_id):
            since = self._slept.setdefault(device.info.uuid, self._state.at if self._state else now)
            return self._nothing(device.info, now, Missing("stale", _ASLEEP, since))
        self._slept.pop(device.info.uuid, None)
        try:
            return device.sample(now, stamp, self._xids.get(device.info.uuid, ()), quiet=self.quiet)
        except DeviceLost as lost:
            return self._nothing(device.info, now, device.lose(str(lost), now))
        except DriverGone as gone:
            if device.info.parent is None:
                raise
            # The handle of a MIG instance dies with the instance; its GPU is well.
            return self._nothing(device.info, now, Missing("stale", f"NVML: {gone}", now))

    def _nothing(self, info: GpuInfo, now: float, why: Missing) -> GpuSample:
        return absent(info.uuid, now, why, self._xids.get(info.uuid, ()))

    def _without_driver(self, now: float) -> GpuState:
        """No connection: what was known of the GPUs stays, with the reason why there are no values."""
        if self._absent:
            pairs = tuple(self._absent.values())
            return GpuState(
                now,
                tuple(info for info, _ in pairs),
                tuple(self._nothing(info, now, why) for info, why in pairs),
                None,
                self._driver,
            )
        infos = self._state.infos if self._state else ()
        if self._missing is None or not infos:
            return GpuState(now, missing=self._missing or Missing("pending"), driver=self._driver)
        samples = tuple(self._nothing(info, now, self._missing) for info in infos)
        return GpuState(now, infos, samples, None, self._driver)

    def _gone(self, now: float, words: str) -> GpuState:
        """The connection broke: close it, and say when it is tried again."""
        self._shut()
        since = self._missing.since if self._missing is not None else now
        wait = self._back_off(now)
        self._missing = Missing(
            "lost",
            f"NVML: {words}. In a container, restart it; else look at the driver's log. Next attempt in {wait:g} s.",
            since,
        )
        return self._without_driver(now)

    def _back_off(self, now: float) -> float:
        wait = BACK_OFF_S[min(self._attempt, len(BACK_OFF_S) - 1)]
        self._attempt += 1
        self._retry_at = now + wait
        return wait

    # -- opening and closing ---------------------------------------------------------------------------------------

    def _may_open(self, now: float) -> bool:
        """Whether there is room to open the driver anew; the first time there is."""
        for allowance in self._allowances.values():
            allowance.begin(now)
        return all(allowance.room() >= _OPENING_CALLS for allowance in self._allowances.values())

    def _open(self, now: float) -> None:
        sleepers = [bus for bus in self._pci_gpus() if self._suspended(bus)]
        awake = [bus for bus in self._pci_gpus() if bus not in sleepers]
        self._absent = {bus: (self._sleeper(bus), Missing("pending", _ASLEEP, now)) for bus in sleepers}
        if sleepers and not awake:
            # Opening the driver would wake them.
            self._retry_at = float("inf")
            return
        try:
            import pynvml
        except Exception as error:  # noqa: BLE001 - a broken binding must not end the telemetry
            detail = f"The Python package nvidia-ml-py cannot be loaded ({type(error).__name__}): reinstall it."
            self._missing = Missing("unsupported", detail, now)
            self._retry_at = float("inf")
            return
        self._nvml = pynvml
        try:
            self._spend(1)
            pynvml.nvmlInit()
        except Exception as error:  # noqa: BLE001 - a driver may raise anything; the reason is shown
            self._refused(error, now)
            return
        self._pid = os.getpid()
        self._used_at = now
        general = Asker(self._spend)
        version = general.ask("driver", now, pynvml.nvmlSystemGetDriverVersion)
        self._driver = "" if isinstance(version, Missing) else plain(str(version))
        self._find_devices(awake if sleepers else None, now)
        if not self._devices and not self._absent:
            self._shut()
            detail = (
                f"The NVIDIA driver {self._driver} is loaded but shows no GPU. "
                "In a container: start it with access to the GPUs (`--gpus all`)."
            )
            self._missing = Missing("unsupported", detail, now)
            self._retry_at = now + BACK_OFF_S[-1]
            return
        self._missing = None
        self._listen(general, now)

    def _find_devices(self, buses: list[str] | None, now: float) -> None:
        """Open each GPU; only those at the given addresses where another one is asleep."""
        nvml = self._nvml
        processes = Processes(self._proc)
        self._devices = []
        if buses is None:
            self._spend(1)
            keys: list[int | str] = list(range(nvml.nvmlDeviceGetCount()))
        else:
            keys = list(buses)
        for position, key in enumerate(keys):
            allowance = self._allowances[key]
            allowance.begin(now)
            self._count(1)
            allowance.spend(1)
            try:
                if isinstance(key, int):
                    handle, index = nvml.nvmlDeviceGetHandleByIndex(key), key
                else:
                    handle = nvml.nvmlDeviceGetHandleByPciBusId(key.encode())
                    index = int(nvml.nvmlDeviceGetIndex(handle))
                device = Device(
                    nvml,
                    handle,
                    index=index,
                    driver=self._driver,
                    processes=processes,
                    count=self._count,
                    allowance=allowance,
                    now=now,
                )
            except Exception as error:  # noqa: BLE001 - one dead GPU must not hide the others
                if not isinstance(error, DeviceLost) and code_of(error) == NOT_FOUND:
                    continue
                lost = isinstance(error, DeviceLost) or code_of(error) in {15, 16}
                words = str(error) if isinstance(error, DeviceLost) else words_of(error)
                why = Missing(
                    "lost" if lost else "denied" if code_of(error) == _NO_PERMISSION else "unreachable",
                    f"NVML: {words}",
                    now,
                )
                self._absent[f"index {position}"] = (
                    GpuInfo(uuid=f"gpu-{position}", index=position, name=f"GPU {position}", driver=self._driver),
                    why,
                )
                continue
            self._devices.append(device)

    def _refused(self, error: Exception, now: float) -> None:
        """The driver could not be opened: say why in plain words, and when it is tried again."""
        code = code_of(error)
        reason: MissingReason = "unreachable"
        since = self._missing.since if self._missing is not None else now
        if code == _NO_LIBRARY:
            here = "This machine has an NVIDIA GPU but no driver for it" if self._pci_gpus() else "No NVIDIA driver"
            detail, reason = f"{here}: libnvidia-ml.so.1 is not installed.", "unsupported"
        elif code == _MISMATCH:
            running = self._kernel_driver()
            detail = (
                f"{words_of(error)}: the NVIDIA driver was updated under a running kernel module"
                f"{f' ({running})' if running else ''}. Reboot, or reload the nvidia modules."
            )
        elif code == _NO_DRIVER:
            detail = "The NVIDIA kernel module is not loaded (`modprobe nvidia` loads it)."
        elif code == _NO_PERMISSION:
            detail, reason = "This user may not open the NVIDIA devices (/dev/nvidia*).", "denied"
        else:
            detail = f"NVML cannot be opened: {words_of(error)}. In a container, restart it."
        self._missing = Missing(reason, detail, since)
        if code in {_NO_LIBRARY, _MISMATCH}:
            self._retry_at = now + BACK_OFF_S[-1]
        else:
            self._back_off(now)

    def _shut(self) -> None:
        """Close the connection, or drop it where it belongs to the process that this one was forked from."""
        if self._pid:
            # After a fork this only makes the binding and the library count from zero again.
            try:
                if self._event_set is not None and self._pid == os.getpid():
                    self._nvml.nvmlEventSetFree(self._event_set)
                self._nvml.nvmlShutdown()
            except Exception:  # noqa: BLE001, S110 - it is gone either way
                pass
        self._pid = 0
        self._devices = []
        self._instances = {}
        self._absent = {}
        self._resting_since = None
        self._slept = {}
        self._event_set = None

    # -- laptops ---------------------------------------------------------------------------------------------------

    def _watch_sleepers(self, now: float) -> None:
        """Open the driver when a sleeping GPU has been woken by somebody, or one left alone does not fall asleep."""
        buses = list(self._absent)
        if self._resting_since is not None:
            if all(self._suspended(bus) for bus in buses):
                asleep = Missing("stale", _ASLEEP, self._resting_since)
                self._absent = {bus: (info, asleep) for bus, (info, _) in self._absent.items()}
                self._resting_since = None
            elif now - self._resting_since > _REST_TRIED_S:
                self._rest_from = now + _REST_AGAIN_S  # something else keeps it awake
                self._shut()
                self._retry_at = now
        elif any(why.detail == _ASLEEP and not self._suspended(bus) for bus, (_, why) in self._absent.items()):
            self._shut()
            self._retry_at = now

    def _let_rest(self, now: float, samples: list[GpuSample]) -> None:
        """Close the connection while nothing uses the GPUs of a laptop: held open, it keeps them awake."""
        infos = [device.info for device in self._devices]
        idle = all(sample.utilization == 0 and sample.processes == () for sample in samples)
        if not idle or not infos or self._absent or not all(self._can_sleep(info.bus_id) for info in infos):
            self._used_at = now
        elif now - self._used_at >= _REST_AFTER_S and now >= self._rest_from:
            self._shut()
            resting = Missing("stale", _RESTING, now)
            self._absent = {info.bus_id: (info, resting) for info in infos}
            self._resting_since = now
            self._retry_at = float("inf")

    def _can_sleep(self, bus: str) -> bool:
        """Whether the driver switches this GPU off while nobody uses it."""
        power = _read(self._proc / "driver/nvidia/gpus" / bus / "power") if bus else ""
        return re.search(r"^Runtime D3 status:\s*Enabled", power, re.MULTILINE) is not None

    # -- MIG -------------------------------------------------------------------------------------------------------

    def _instances_of(self, device: Device, now: float) -> list[Device]:
        """The MIG instances of a GPU; known ones keep their state."""
        found = []
        for one in device.instances if device.lost is None else ():
            instance = self._instances.get(one.uuid) or Device(
                self._nvml,
                one.handle,
                index=device.info.index,
                driver=self._driver,
                processes=device.processes,
                count=self._count,
                allowance=device.allowance,
                now=now,
                instance=one,
                parent=device.info,
            )
            instance.follow(one.handle, len(device.instances))
            found.append(instance)
        return found

    # -- critical errors -------------------------------------------------------------------------------------------

    def _listen(self, general: Asker, now: float) -> None:
        """Ask the driver to keep critical errors for us; many systems and containers offer none."""
        nvml = self._nvml
        event_set = general.ask("event set", now, nvml.nvmlEventSetCreate)
        if isinstance(event_set, Missing):
            return
        listening = False
        for device in self._devices:
            try:
                types = device.asker.ask("events", now, lambda: nvml.nvmlDeviceGetSupportedEventTypes(device.handle))  # noqa: B023 - called at once, in the same turn of the loop
                if isinstance(types, Missing) or not int(types) & _XID_EVENT:
                    continue
                done = device.asker.ask(
                    "register",
                    now,
                    lambda: nvml.nvmlDeviceRegisterEvents(device.handle, _XID_EVENT, event_set),  # noqa: B023 - called at once, in the same turn of the loop
                )
                listening = listening or not isinstance(done, Missing)
            except DeviceLost as lost:
                device.lose(str(lost), now)
        if listening:
            self._event_set = event_set

    def _collect_events(self) -> None:
        """Take what the driver has kept since the last time, without waiting for more."""
        import ctypes

        for _ in range(16):
            if self._event_set is None:
                return
            self._spend(1)
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._event_set, 1)
            except Exception as error:  # noqa: BLE001 - a driver may raise anything; the reason is shown
                if code_of(error) in {3, 13}:
                    self._event_set = None
                elif code_of(error) != TIMEOUT:
                    self._events_at += RARE_S  # e.g. the GPU is lost: its other readings tell
                return
            if int(event.eventType) != _XID_EVENT:
                continue
            sender = ctypes.cast(event.device, ctypes.c_void_p).value
            for device in self._devices:
                if ctypes.cast(device.handle, ctypes.c_void_p).value == sender:
                    known = self._xids.get(device.info.uuid, ())
                    self._xids[device.info.uuid] = (*known, int(event.eventData))[-_XIDS_KEPT:]

    # -- what the kernel knows -------------------------------------------------------------------------------------

    def _pci_gpus(self) -> list[str]:
        """PCI addresses of NVIDIA's display and compute devices; empty where the kernel does not show them."""
        try:
            devices = sorted((self._sys / "bus/pci/devices").iterdir())
        except OSError:
            return []
        return [
            device.name
            for device in devices
            if _read(device / "vendor") == "0x10de" and _read(device / "class").startswith("0x03")
        ]

    def _suspended(self, bus_id: str) -> bool:
        """Whether a laptop's GPU has been switched off by the kernel; asking NVML would wake it."""
        return bool(bus_id) and _read(self._sys / "bus/pci/devices" / bus_id / "power/runtime_status") == "suspended"

    def _sleeper(self, bus: str) -> GpuInfo:
        """What is known of a GPU without waking it."""
        about = _read(self._proc / "driver/nvidia/gpus" / bus / "information")
        model = re.search(r"^Model:\s*(.+)$", about, re.MULTILINE)
        uuid = re.search(r"^GPU UUID:\s*(GPU-[0-9a-f-]+)$", about, re.MULTILINE)
        return GpuInfo(
            uuid=uuid[1] if uuid else f"pci-{bus}",
            index=self._pci_gpus().index(bus),
            name=plain(model[1]) if model else f"GPU at {bus}",
            bus_id=bus,
        )

    def _kernel_driver(self) -> str:
        match = re.search(r"Module\s+(?:for \S+\s+)?([0-9]+(?:\.[0-9]+)+)", _read(self._proc / "driver/nvidia/version"))
        return match[1] if match else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
