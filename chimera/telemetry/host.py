"""This machine: processor, memory, pressure, disk, power and limits, each read alone.

psutil does what it can on every system; what only Linux tells is read from /proc and /sys, whose places can be given
for machines that keep them elsewhere.
"""

from __future__ import annotations

import os
import sys as _sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from chimera.domain.readings import PENDING, Missing, Reading
from chimera.domain.telemetry import HostSample, ProcessShare
from chimera.domain.text import plain

T = TypeVar("T")

TICK_S = 1.0
SLOW_S = 5.0
_SLACK_S = 0.15
_NAMED_FROM_PERCENT = 10.0  # of all cores: below that, looking for names costs more than it tells
_NAMED = 5
_FREQUENCIES = 16  # as many cores' clocks are read; reading hundreds takes milliseconds
_NO_LIMIT = 2**60  # version 1 writes a huge number where there is no limit


class _Row(Protocol):
    """A processor's times, as psutil gives them."""

    def _asdict(self) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True)
class _Times:
    """Processor seconds since the start."""

    busy: float
    total: float
    steal: float | None


class HostCollector:
    """Reads this machine about once a second, from one thread. `read` never raises."""

    def __init__(self, *, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._proc = proc
        self._sys = sys
        self._engine: frozenset[int] = frozenset()
        self._own: frozenset[int] = frozenset({os.getpid()})
        self._lock = threading.Lock()
        self._cpu: tuple[_Times, ...] = ()
        self._disk: tuple[float, float] | None = None
        self._used: dict[int, float] = {}
        self._used_at: float | None = None
        self._tree: tuple[frozenset[int], float] = (frozenset(), 0.0)
        """Our own processes at the last look, and what they and all that they have started had used by then."""
        self._processes: dict[int, tuple[float, str]] = {}
        self._processes_at = float("-inf")
        self._foreign: tuple[ProcessShare, ...] = ()
        self._slow_at = float("-inf")
        self._slow: HostSample | None = None
        self._last: HostSample | None = None
        self.quiet = False
        """While a request is timed: the list of processes is left alone."""

    def watch(self, *, engine: Iterable[int] = (), own: Iterable[int] = ()) -> None:
        """Say whose processor time is whose.

        Args:
            engine: Pids of the model server's processes.
            own: Pids of Chimera's further processes (workers); this one is always counted.
        """
        self._engine = frozenset(engine)
        self._own = frozenset({os.getpid(), *own}) - self._engine

    def read(self, now: float) -> HostSample:
        """This machine as it is now; a call that comes too early returns the last sample.

        Args:
            now: Monotonic seconds.
        """
        with self._lock:
            if self._last is not None and 0 <= now - self._last.at < TICK_S - _SLACK_S:
                return self._last
            self._last = self._read(now)
            return self._last

    def _read(self, now: float) -> HostSample:
        percent, per_core, steal = self._processor()
        engine, own, children = self._shares(now)
        cores = max(1, len(per_core))
        foreign: Reading = percent
        if not isinstance(percent, Missing):
            known = [0.0 if isinstance(share, Missing) else share for share in (engine, own, children)]
            foreign = max(0.0, percent - sum(known) / cores)
        if engine is PENDING:  # its share is not known yet, and would be told as another program's
            foreign = PENDING
        if now - self._slow_at >= SLOW_S - _SLACK_S or self._slow is None:
            self._slow_at = now
            self._slow = self._read_slow(now)
        if not self.quiet and now - self._processes_at >= SLOW_S - _SLACK_S:
            busy = not isinstance(foreign, Missing) and foreign >= _NAMED_FROM_PERCENT
            self._foreign = self._foreign_processes(now) if busy else ()
        slow = self._slow
        total, used, swap_total, swap_used = self._memory()
        return HostSample(
            at=now,
            cpu_percent=percent,
            per_core_percent=per_core,
            load_1m=_reading(lambda: os.getloadavg()[0]),
            memory_total_bytes=total,
            memory_used_bytes=used,
            swap_used_bytes=swap_used,
            swap_total_bytes=swap_total,
            pressure_cpu=self._pressure("cpu"),
            pressure_memory=self._pressure("memory"),
            pressure_io=self._pressure("io"),
            disk_read_bytes_s=self._disk_rate(now),
            cpu_mhz=slow.cpu_mhz,
            governor=slow.governor,
            steal_percent=steal,
            on_battery=slow.on_battery,
            power_profile=slow.power_profile,
            cpu_limit_cores=slow.cpu_limit_cores,
            memory_limit_bytes=slow.memory_limit_bytes,
            engine_cpu_percent=engine,
            foreign_cpu_percent=foreign,
            own_cpu_percent=own,
            foreign=self._foreign,
        )

    # -- processor -------------------------------------------------------------------------------------------------

    def _processor(self) -> tuple[Reading, tuple[float, ...], Reading]:
        """Percent of all cores, percent of each, and percent that the host of this virtual machine took away."""
        try:
            import psutil

            rows = psutil.cpu_times(percpu=True)
            times = tuple(_times(row) for row in rows)
        except Exception as error:  # noqa: BLE001 - each reading stands alone
            missing = _missing(error)
            return missing, (), missing
        before, self._cpu = self._cpu, times
        if len(before) != len(times):
            return PENDING, (), PENDING
        spans = [max(0.0, now.total - then.total) for now, then in zip(times, before, strict=True)]
        work = [max(0.0, now.busy - then.busy) for now, then in zip(times, before, strict=True)]
        whole = sum(spans)
        if whole <= 0:
            return PENDING, (), PENDING
        per_core = tuple(min(100.0, 100 * part / span) if span else 0.0 for part, span in zip(work, spans, strict=True))
        steal: Reading = Missing("unsupported", "this system does not tell it")
        stolen = [(now.steal, then.steal) for now, then in zip(times, before, strict=True)]
        if all(a is not None and b is not None for a, b in stolen):
            steal = min(100.0, 100 * sum(max(0.0, (a or 0.0) - (b or 0.0)) for a, b in stolen) / whole)
        return min(100.0, 100 * sum(work) / whole), per_core, steal

    def _shares(self, now: float) -> tuple[Reading, Reading, float]:
        """Processor use of the engine, of Chimera, and of what else Chimera has started, in percent of one core.

        The last is an engine that is just loading, or was just ended: its pid is known only while it serves.
        """
        import psutil

        used: dict[int, float] = {}
        ours = self._own | self._started()
        whole = 0.0
        denied = False
        for pid in self._engine | ours:
            try:
                times = psutil.Process(pid).cpu_times()
                seconds = float(times.user + times.system)
                if pid in self._engine | self._own:
                    used[pid] = seconds
                if pid in ours:  # with its children that have ended, which are among its living ones no more
                    whole += seconds + float(times.children_user + times.children_system)
            except psutil.AccessDenied:
                denied = True
            except (psutil.Error, OSError, ValueError):
                continue
        before, self._used = self._used, used
        at, self._used_at = self._used_at, now
        (roots, so_far), self._tree = self._tree, (self._own, whole)
        if at is None or now <= at:
            return (PENDING if self._engine else _NO_ENGINE), PENDING, 0.0

        def share(pids: frozenset[int]) -> float:
            return (
                sum(max(0.0, used[pid] - before[pid]) for pid in pids & used.keys() & before.keys()) / (now - at) * 100
            )

        engine: Reading = _NO_ENGINE
        if self._engine:
            engine = PENDING
            if self._engine & used.keys() & before.keys():
                engine = share(self._engine)
            elif denied:
                engine = Missing("denied", "the server's processes belong to another user")
            elif not self._engine & used.keys():
                engine = Missing("lost", "the server's processes have ended", now)
        more = 0.0
        if roots == self._tree[0]:
            more = max(0.0, (whole - so_far) / (now - at) * 100 - share(self._own | (self._engine & ours)))
        return engine, share(self._own) if self._own & used.keys() & before.keys() else PENDING, more

    def _started(self) -> frozenset[int]:
        """What our own processes have started and what that has started, as far as it lives; only Linux tells it."""
        found: set[int] = set()
        asked = list(self._own)
        while asked:
            for file in (self._proc / str(asked.pop()) / "task").glob("*/children"):
                text = _text(file)
                fresh = {int(pid) for pid in text.split()} - found if isinstance(text, str) else set()
                found |= fresh
                asked += fresh
        return frozenset(found)

    def _foreign_processes(self, now: float) -> tuple[ProcessShare, ...]:
        """Who else uses the processor, from two looks some seconds apart."""
        import psutil

        seen: dict[int, tuple[float, str]] = {}
        try:
            for process in psutil.process_iter():
                try:
                    with process.oneshot():
                        times = process.cpu_times()
                        seen[process.pid] = (float(times.user + times.system), process.name())
                except (psutil.Error, OSError, ValueError):
                    continue
        except (psutil.Error, OSError):
            return ()
        before, self._processes = self._processes, seen
        span, self._processes_at = now - self._processes_at, now
        if not before or span > 3 * SLOW_S:
            return ()
        shares = [
            ProcessShare(pid, plain(name) or "?", (used - before[pid][0]) / span * 100)
            for pid, (used, name) in seen.items()
            if pid in before and pid not in self._engine and pid not in self._own and used > before[pid][0]
        ]
        return tuple(sorted(shares, key=lambda one: -one.cpu_percent)[:_NAMED])

    # -- memory, pressure, disk ------------------------------------------------------------------------------------

    def _memory(self) -> tuple[Reading, Reading, Reading, Reading]:
        """Memory in all and used, swap in all and used."""
        import psutil

        memory = _try(psutil.virtual_memory)
        swap = _try(psutil.swap_memory)
        return (
            memory if isinstance(memory, Missing) else float(memory.total),
            memory if isinstance(memory, Missing) else float(memory.total - memory.available),
            swap if isinstance(swap, Missing) else float(swap.total),
            swap if isinstance(swap, Missing) else float(swap.used),
        )

    def _pressure(self, what: str) -> Reading:
        text = _text(self._proc / "pressure" / what)
        if isinstance(text, Missing):
            return text
        for line in text.splitlines():
            words = line.split()
            if words and words[0] == "some":
                for word in words[1:]:
                    name, _, figure = word.partition("=")
                    if name == "avg10":
                        return _reading(lambda: float(figure))  # noqa: B023 - called at once
        return Missing("unsupported", "the kernel gives no pressure figures")

    def _disk_rate(self, now: float) -> Reading:
        import psutil

        counters = _try(psutil.disk_io_counters)
        if isinstance(counters, Missing):
            return counters
        if counters is None:
            return Missing("unsupported", "no disks are visible here")
        last, self._disk = self._disk, (float(counters.read_bytes), now)
        if last is None or now <= last[1] or counters.read_bytes < last[0]:
            return PENDING
        return (counters.read_bytes - last[0]) / (now - last[1])

    # -- what seldom changes ---------------------------------------------------------------------------------------

    def _read_slow(self, now: float) -> HostSample:
        governor = _text(self._sys / "devices/system/cpu/cpu0/cpufreq/scaling_governor")
        profile = _text(self._sys / "firmware/acpi/platform_profile")
        cpu, memory = self._limits()
        return HostSample(
            at=now,
            cpu_mhz=self._frequency(),
            governor=None if isinstance(governor, Missing) else plain(governor) or None,
            on_battery=self._on_battery(),
            power_profile=None if isinstance(profile, Missing) else plain(profile) or None,
            cpu_limit_cores=cpu,
            memory_limit_bytes=memory,
        )

    def _frequency(self) -> Reading:
        """Mean clock of the cores, in MHz."""
        policies = sorted((self._sys / "devices/system/cpu/cpufreq").glob("policy*/scaling_cur_freq"))[:_FREQUENCIES]
        values = [value for value in (_reading(lambda: int(path.read_text()) / 1000) for path in policies)]  # noqa: B023 - called at once, in the same turn of the loop
        clocks = [value for value in values if not isinstance(value, Missing) and value > 0]
        if clocks:
            return sum(clocks) / len(clocks)
        if _sys.platform == "linux":
            text = _text(self._proc / "cpuinfo")
            if not isinstance(text, Missing):
                lines = [line.partition(":")[2] for line in text.splitlines() if line.startswith("cpu MHz")]
                found = [value for value in (_reading(lambda: float(line)) for line in lines) if value]  # noqa: B023 - called at once, in the same turn of the loop
                clocks = [value for value in found if not isinstance(value, Missing)]
                if clocks:
                    return sum(clocks) / len(clocks)
            return Missing("unsupported", "the kernel gives no clocks")
        import psutil

        frequency = _try(psutil.cpu_freq)
        if isinstance(frequency, Missing):
            return frequency
        return float(frequency.current) if frequency else Missing("unsupported", "this system gives no clocks")

    def _on_battery(self) -> bool | None:
        """True without mains, False with, None where there is no battery or no telling."""
        supplies = self._sys / "class/power_supply"
        if not supplies.is_dir():
            import psutil

            sensor = _try(lambda: psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None)
            if isinstance(sensor, Missing) or sensor is None or sensor.power_plugged is None:
                return None
            return not sensor.power_plugged
        kinds: dict[str, list[Path]] = {}
        for supply in sorted(supplies.iterdir()):
            kind = _text(supply / "type")
            scope = _text(supply / "scope")
            if not isinstance(kind, Missing) and scope != "Device":  # mice have batteries too
                kinds.setdefault(kind, []).append(supply)
        mains = [_text(supply / "online") for kind in ("Mains", "USB") for supply in kinds.get(kind, [])]
        batteries = [_text(supply / "status") for supply in kinds.get("Battery", [])]
        if not batteries:
            return None
        if "1" in mains:
            return False
        if "Discharging" in batteries:
            return True
        return None if not mains else "0" in mains

    def _limits(self) -> tuple[Reading, Reading]:
        """Cores and bytes that the control group allows, the tightest of this group and those above it."""
        none = Missing("unsupported", "no control group sets a limit")
        text = _text(self._proc / "self/cgroup")
        if isinstance(text, Missing):
            return none, none
        root = self._sys / "fs/cgroup"
        cores: list[float] = []
        memory: list[float] = []
        for line in text.splitlines():
            parts = line.split(":", 2)
            if len(parts) != 3:
                continue
            _, controllers, path = parts
            if not controllers:
                for group in _upwards(root, path):
                    cores += _cpu_max(_text(group / "cpu.max")) + _cpu_set(_text(group / "cpuset.cpus.effective"))
                    memory += _bytes_max(_text(group / "memory.max"))
                continue
            names = controllers.split(",")
            if "cpu" in names:
                for group in _upwards(root / controllers, path, root / "cpu"):
                    quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
                    if not isinstance(quota, Missing) and not isinstance(period, Missing):
                        cores += _cpu_max(f"{'max' if quota.startswith('-') else quota} {period}")
            if "cpuset" in names:
                for group in _upwards(root / controllers, path, root / "cpuset"):
                    cores += _cpu_set(_text(group / "cpuset.effective_cpus"))
            if "memory" in names:
                for group in _upwards(root / controllers, path, root / "memory"):
                    memory += _bytes_max(_text(group / "memory.limit_in_bytes"))
        online = os.cpu_count() or 0
        tight = [limit for limit in cores if not online or limit < online]
        return (min(tight) if tight else none), (min(memory) if memory else none)


_NO_ENGINE = Missing("unreachable", "the server's processes are not known on this host")


def _times(row: _Row) -> _Times:
    """Busy is all but idle and waiting for disks; guests are counted within user time already."""
    values = row._asdict()
    total = sum(value for name, value in values.items() if name not in {"guest", "guest_nice"})
    return _Times(total - values.get("idle", 0.0) - values.get("iowait", 0.0), total, values.get("steal"))


def _upwards(root: Path, path: str, other: Path | None = None) -> Sequence[Path]:
    """The group and those above it. In a container the path may be one of the host that does not exist here."""
    base = root if root.is_dir() or other is None else other
    parts = [part for part in path.split("/") if part and part != ".."]
    groups = [base.joinpath(*parts[:length]) for length in range(len(parts), -1, -1)]
    return [group for group in groups if group.is_dir()]


def _cpu_max(text: str | Missing) -> list[float]:
    if isinstance(text, Missing):
        return []
    quota, _, period = text.partition(" ")
    try:
        return [] if quota == "max" else [int(quota) / int(period)]
    except (ValueError, ZeroDivisionError):
        return []


def _cpu_set(text: str | Missing) -> list[float]:
    """`0-3,8` means five cores."""
    if isinstance(text, Missing) or not text:
        return []
    count = 0
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            count += int(last or first) - int(first) + 1
    except ValueError:
        return []
    return [float(count)]


def _bytes_max(text: str | Missing) -> list[float]:
    if isinstance(text, Missing) or text == "max":
        return []
    try:
        limit = int(text)
    except ValueError:
        return []
    return [float(limit)] if limit < _NO_LIMIT else []


def _text(path: Path) -> str | Missing:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except PermissionError:
        return Missing("denied", f"{path.name} may not be read")
    except OSError:
        return Missing("unsupported", f"this system has no {path.name}")


def _try(question: Callable[[], T]) -> T | Missing:
    try:
        return question()
    except Exception as error:  # noqa: BLE001 - each reading stands alone
        return _missing(error)


def _reading(question: Callable[[], float]) -> Reading:
    return _try(question)


def _missing(error: Exception) -> Missing:
    denied = isinstance(error, PermissionError) or type(error).__name__ == "AccessDenied"
    return Missing("denied" if denied else "unsupported", type(error).__name__)
