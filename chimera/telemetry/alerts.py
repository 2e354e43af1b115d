"""What happened while nobody watched: alerts that stay until they are acknowledged, and marks for charts.

Pure logic over snapshots; all times are those of the snapshots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chimera.domain.readings import Missing, number

from .reasons import BY_ID, Weight, describe_xid

if TYPE_CHECKING:
    from chimera.domain.telemetry import GpuInfo, GpuSample, HostSample, ServerSample, Snapshot

THROTTLED_SHARE = 0.01
"""A reason that held for more of the window than this counts."""
VRAM_FULL = 0.97
MARGIN_C = 3.0
MEMORY_PRESSURE = 10.0
"""Percent of the last ten seconds in which a task waited for memory."""
MEMORY_LEFT = 0.05
FOREIGN_SM_PERCENT = 5.0

HOLD_S = 5.0
"""A condition that is back within this time is the same episode."""
_LONGEST_STEP_S = 10.0  # of a longer pause between snapshots (a suspended machine) only so much is counted
_MOST_ALERTS = 200
_MOST_MARKS = 500


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that went wrong, once or again and again."""

    key: str
    """Tells alerts apart: cause and GPU."""
    code: str
    """Stable kind: `throttle`, `gpu-lost`, `vram-full`, `memory-pressure`, `hot`, `foreign-gpu`, `xid`."""
    title: str
    severity: Weight
    first: float
    """Monotonic seconds of the first and the last time that it was seen."""
    last: float
    total_s: float
    """How long it held, in all."""
    worst: float | None
    """The worst value, in `unit`; None where there is no measure."""
    unit: str
    count: int
    """Episodes."""
    active: bool
    acknowledged: bool = False
    gpu: str | None = None
    """UUID."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment to be drawn on charts."""

    at: float
    kind: str
    """`alert`, `model`, or what the caller marks: `preset`, ..."""
    text: str


@dataclass(frozen=True, slots=True)
class _Condition:
    """Something that is wrong now."""

    key: str
    code: str
    title: str
    severity: Weight
    value: float | None = None
    unit: str = ""
    low: bool = False
    """The lower the value, the worse."""
    seconds: float | None = None
    """For how long it held since the last snapshot, where that is known better than by looking."""
    gpu: str | None = None
    since: float | None = None
    """When it began, where that is known better than by looking."""
    event: bool = False
    """It happened and is over at once."""


class AlertBook:
    """Keeps alerts and marks over snapshots.

    Args:
        own_pids: Chimera's processes that may use a GPU: engines that it started.
    """

    def __init__(self, own_pids: Iterable[int] = ()) -> None:
        self.own_pids = frozenset(own_pids)
        self._alerts: dict[str, Alert] = {}
        self._marks: deque[Mark] = deque(maxlen=_MOST_MARKS)
        self._at: float | None = None
        self._over: set[str] = set()  # what no longer held at the last look, and may yet come back
        self._models: frozenset[str] | None = None
        self._xids: dict[str, tuple[int, ...]] = {}

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """All that is not yet acknowledged or still holds: what holds now first, then the newest."""
        return tuple(sorted(self._alerts.values(), key=lambda alert: (not alert.active, -alert.last)))

    @property
    def marks(self) -> tuple[Mark, ...]:
        """Moments for charts, oldest first."""
        return tuple(self._marks)

    def mark(self, at: float, kind: str, text: str) -> None:
        """Mark a moment: a preset that was switched, a run that began."""
        self._marks.append(Mark(at, kind, text))

    def acknowledge(self, key: str | None = None) -> None:
        """Take note of one alert, or of all: what is over goes, what still holds stays until it ends."""
        for alert in list(self._alerts.values()):
            if key is None or alert.key == key:
                if alert.active:
                    self._alerts[alert.key] = replace(alert, acknowledged=True)
                else:
                    del self._alerts[alert.key]

    def see(self, snapshot: Snapshot) -> tuple[Alert, ...]:
        """Take a snapshot; gives the alerts whose episode begins with it."""
        step = 0.0 if self._at is None else min(max(0.0, snapshot.at - self._at), _LONGEST_STEP_S)
        self._at = snapshot.at
        self._note_models(snapshot)
        self._end_old(snapshot.at)
        begun = []
        now = set()
        for condition in self._conditions(snapshot):
            now.add(condition.key)
            alert, new = self._hold(condition, snapshot.at, step)
            self._alerts[condition.key] = alert
            if new:
                begun.append(alert)
                self._marks.append(Mark(snapshot.at, "alert", alert.title))
        self._over = {key for key, alert in self._alerts.items() if alert.active and key not in now}
        self._end_old(snapshot.at)
        while len(self._alerts) > _MOST_ALERTS:
            del self._alerts[min(self._alerts.values(), key=lambda alert: alert.last).key]
        return tuple(begun)

    def _hold(self, condition: _Condition, at: float, step: float) -> tuple[Alert, bool]:
        known = self._alerts.get(condition.key)
        seconds = condition.seconds if condition.seconds is not None else step
        if known is None or not known.active:
            begun = condition.since if condition.since is not None else at
            first = begun if known is None else known.first
            held = (known.total_s if known else 0.0) + (condition.seconds or 0.0)
            worst = condition.value if known is None else _worse(known.worst, condition)
            count = 1 if known is None else known.count + 1
            return (
                Alert(
                    condition.key, condition.code, condition.title, condition.severity, first, at, held, worst,
                    condition.unit, count, active=not condition.event, gpu=condition.gpu,
                ),
                True,
            )  # fmt: skip
        return (
            replace(
                known,
                title=condition.title,
                last=at,
                total_s=known.total_s + seconds,
                worst=_worse(known.worst, condition),
            ),
            False,
        )

    def _end_old(self, at: float) -> None:
        """What did not hold at the last look, and has not for a while, is over."""
        for key in self._over:
            alert = self._alerts.get(key)
            if alert is None or at - alert.last <= HOLD_S:
                continue
            if alert.acknowledged:
                del self._alerts[key]
            else:
                self._alerts[key] = replace(alert, active=False)

    # -- what is wrong ---------------------------------------------------------------------------------------------

    def _conditions(self, snapshot: Snapshot) -> Iterator[_Condition]:
        several = sum(info.parent is None for info in snapshot.gpus.infos) > 1
        for info, sample in zip(snapshot.gpus.infos, snapshot.gpus.samples, strict=False):
            name = f"GPU {info.index}" if several else "GPU"
            yield from self._of_xids(name, info, sample)
            if sample.lost is not None:
                if sample.lost.reason == "lost":
                    yield _Condition(
                        f"gpu-lost {info.uuid}", "gpu-lost", f"{name} is lost ({sample.lost.detail})", "error",
                        gpu=info.uuid, since=sample.lost.since,
                    )  # fmt: skip
                continue
            yield from self._of_gpu(name, info, sample)
            yield from self._of_processes(name, info, sample, snapshot.server)
        yield from self._of_host(snapshot.host)

    def _of_xids(self, name: str, info: GpuInfo, sample: GpuSample) -> Iterator[_Condition]:
        known = self._xids.get(info.uuid, ())
        self._xids[info.uuid] = sample.xids
        longer = sample.xids[: len(known)] == known
        for xid in sample.xids[len(known) :] if longer else sample.xids[-1:]:
            yield _Condition(
                f"xid {xid} {info.uuid}", "xid", f"{name}: {describe_xid(xid)}", "error", gpu=info.uuid, event=True
            )

    def _of_gpu(self, name: str, info: GpuInfo, sample: GpuSample) -> Iterator[_Condition]:
        for throttle in sample.throttles:
            reason = BY_ID.get(throttle.reason)
            if reason is None or reason.severity not in {"warning", "error"} or throttle.share <= THROTTLED_SHARE:
                continue
            yield _Condition(
                f"throttle {throttle.reason} {info.uuid}",
                "throttle",
                f"{name}: {reason.words}",
                reason.severity,
                throttle.share * 100,
                "% of the time",
                seconds=throttle.seconds,
                gpu=info.uuid,
            )
        margin = number(sample.margin_c)
        if margin is not None and margin <= MARGIN_C:
            yield _Condition(
                f"hot {info.uuid}", "hot", f"{name} is close to slowing down because of heat", "warning", margin,
                "°C left", low=True, gpu=info.uuid,
            )  # fmt: skip
        total, used = number(sample.vram_total_bytes), number(sample.vram_used_bytes)
        if total and used is not None and not info.integrated:
            share = (used + (number(sample.vram_reserved_bytes) or 0.0)) / total
            if share >= VRAM_FULL:
                yield _Condition(
                    f"vram-full {info.uuid}", "vram-full", f"{name}: its memory is nearly full", "notice",
                    share * 100, "%", gpu=info.uuid,
                )  # fmt: skip

    def _of_processes(
        self, name: str, info: GpuInfo, sample: GpuSample, server: ServerSample | None
    ) -> Iterator[_Condition]:
        engine = self.own_pids | frozenset(server.engine_pids if server else ())
        if isinstance(sample.processes, Missing) or not engine:
            return  # without the engine's pids nobody can be called a stranger
        for process in sample.processes:
            share = number(process.sm_percent)
            if share is None or share < FOREIGN_SM_PERCENT or process.pid in engine or process.name == "?":
                continue
            yield _Condition(
                f"foreign-gpu {process.pid} {info.uuid}",
                "foreign-gpu",
                f"{name} is shared with {process.name} (pid {process.pid})",
                "warning",
                share,
                "% of the GPU",
                gpu=info.uuid,
            )

    def _of_host(self, host: HostSample) -> Iterator[_Condition]:
        pressure = number(host.pressure_memory)
        total, used = number(host.memory_total_bytes), number(host.memory_used_bytes)
        if pressure is not None and pressure >= MEMORY_PRESSURE:
            yield _Condition(
                "memory-pressure", "memory-pressure", "tasks wait for memory on this host", "warning", pressure,
                "% of the time",
            )  # fmt: skip
        elif total and used is not None and 1 - used / total < MEMORY_LEFT:
            yield _Condition(
                "memory-left", "memory-pressure", "this host's memory is nearly used up", "warning",
                (1 - used / total) * 100, "% left", low=True,
            )  # fmt: skip

    def _note_models(self, snapshot: Snapshot) -> None:
        """Marks for models that were loaded or left."""
        models = snapshot.server.models if snapshot.server is not None else None
        if models is None or isinstance(models, Missing):
            return
        names = frozenset(model.name for model in models)
        before, self._models = self._models, names
        if before is None:
            return
        for name in sorted(names - before):
            self.mark(snapshot.at, "model", f"{name} loaded")
        for name in sorted(before - names):
            self.mark(snapshot.at, "model", f"{name} unloaded")


def _worse(known: float | None, condition: _Condition) -> float | None:
    if known is None or condition.value is None:
        return condition.value if known is None else known
    return min(known, condition.value) if condition.low else max(known, condition.value)
