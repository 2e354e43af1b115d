"""Heat, power and clocks: by time counters first, by reason bits where there are none, by the rate in the end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from chimera.domain.finding import Cause, Evidence, Finding, Remedy, Severity
from chimera.domain.readings import number
from chimera.domain.telemetry import GpuSample

from .causes import cause, first_supported, ranked
from .evidence import EvidenceSet
from .remedies import cooling
from .thresholds import limit
from .views import (
    gpu_load,
    gpu_name,
    gpu_numbers,
    info_of,
    inside,
    is_virtual,
    load_windows,
    local,
    percent,
    rate_fell,
    seconds,
    seen,
    span,
    wall,
)

BITS: dict[str, int] = {
    "power-cap": 0x4,
    "hw-slowdown": 0x8,
    "sync-boost": 0x10,
    "sw-thermal": 0x20,
    "hw-thermal": 0x40,
    "power-brake": 0x80,
}
IDLE, LOCKED, SYNC, DISPLAY = 0x1, 0x2, 0x10, 0x100


@dataclass(frozen=True, slots=True)
class Held:
    """How long one reason held clocks down under load."""

    share: float
    seconds: float
    window_s: float
    via: str
    since: float | None = None
    """Monotonic."""
    series: tuple[tuple[float, float], ...] = ()

    def evidence(self, what: str, over: str) -> Evidence:
        """As a piece of evidence."""
        return seen(
            what,
            self.share,
            over=over,
            window_s=self.window_s,
            via=self.via,
            series=self.series,
            source="measured" if self.via != "session totals" else "derived",
        )


def held(evidence: EvidenceSet) -> dict[str, dict[str, Held]]:
    """By GPU and reason, the part of the time under load in which it held clocks down; only reasons that did.

    Counters miss nothing between samples; bits must stand in two samples in a row. Where no samples are at hand, the
    totals of the sessions count, under the GPU id "".
    """
    if not local(evidence):
        return {}
    windows = load_windows(evidence)
    tracks: dict[str, list[GpuSample]] = {}
    for each in evidence.gpu_samples:
        tracks.setdefault(each.uuid, []).append(each)
    found: dict[str, dict[str, Held]] = {}
    for uuid, samples in tracks.items():
        pairs = [(a, b) for a, b in itertools.pairwise(samples) if b.at > a.at and _busy(evidence, a, b, windows)]
        for reason in BITS:
            share = _one(reason, pairs)
            if share is not None:
                found.setdefault(uuid, {})[reason] = share
    if not found and not evidence.gpu_samples:
        totals: dict[str, list[float]] = {}
        for session in evidence.sessions:
            for reason, part in session.throttle_shares.items():
                totals.setdefault(reason, []).append(part)
        every = len(evidence.sessions)
        shares = {
            reason: Held(sum(parts) / every, 0.0, 0.0, "session totals")
            for reason, parts in totals.items()
            if sum(parts) > 0
        }
        if shares:
            found[""] = shares
    return found


def _busy(evidence: EvidenceSet, a: GpuSample, b: GpuSample, windows: Sequence[tuple[float, float]]) -> bool:
    if windows:
        middle = (a.at + b.at) / 2
        return inside(middle, windows)
    if evidence.requests and evidence.clock_offset_s is not None:
        return False
    return (number(b.utilization) or 0.0) >= limit("busy-utilization")


def _one(reason: str, pairs: Sequence[tuple[GpuSample, GpuSample]]) -> Held | None:
    window = sum(b.at - a.at for a, b in pairs)
    if window <= 0:
        return None
    took, counted, since, via = 0.0, False, None, "reason bits"
    series: list[tuple[float, float]] = []
    streak: list[float] = []
    for a, b in pairs:
        length = b.at - a.at
        part = _counter(reason, a, b)
        if part is not None:
            counted = True
        else:
            told = [each for each in b.throttles if each.reason == reason and each.source == "counter"]
            if told:
                part, counted = told[0].share * length, True
        if part is None:
            bits = number(b.reasons)
            if bits is not None and int(bits) & BITS[reason]:
                streak.append(length)
                # A bit counts from its second sample in a row on, and then for the first one too.
                enough = len(streak) == limit("bit-samples")
                part = sum(streak) if enough else length if len(streak) > limit("bit-samples") else 0.0
            else:
                streak.clear()
                part = 0.0
        if part > 0 and since is None:
            since = a.at
        took += part
        series.append((b.at, min(1.0, part / length)))
    if took <= 0:
        return None
    if counted:
        via = "NVML time counters"
    return Held(min(1.0, took / window), took, window, via, since, tuple(series))


def _counter(reason: str, a: GpuSample, b: GpuSample) -> float | None:
    before, after = number(a.throttle_s.get(reason)), number(b.throttle_s.get(reason))
    if before is None or after is None:
        return None
    # A counter that goes back was reset with the driver; it cannot hold longer than the time that passed.
    return min(max(0.0, after - before), b.at - a.at)


def _temperature(samples: Sequence[GpuSample]) -> Evidence | None:
    values = gpu_numbers(samples, lambda each: each.temperature_c)
    if not values:
        return None
    return seen(
        "highest temperature",
        max(value for _, value in values),
        over="hot",
        unit="°C",
        via="NVML",
        window_s=span(samples),
        series=values,
    )


def _clock(samples: Sequence[GpuSample]) -> Evidence | None:
    values = gpu_numbers(samples, lambda each: each.sm_mhz)
    if not values:
        return None
    lowest, peak = min(value for _, value in values), max(value for _, value in values)
    return seen(
        "lowest SM clock", lowest, threshold=peak, unit="MHz", via="NVML", window_s=span(samples), series=values
    )


def thermal_throttling(evidence: EvidenceSet) -> Iterator[Finding]:
    """Clocks held down by heat for more than 1 % of the time under load; without reasons, hot with falling clocks."""
    shares, loads = held(evidence), gpu_load(evidence)
    fell, rate = rate_fell(evidence)
    for uuid in {**shares, **loads}:
        reasons = shares.get(uuid, {})
        samples = loads.get(uuid, [])
        software, hardware = reasons.get("sw-thermal"), reasons.get("hw-thermal")
        total = min(1.0, sum(each.share for each in (software, hardware) if each is not None))
        shown = [_temperature(samples), _clock(samples), rate]
        name = gpu_name(evidence, uuid)
        if total > limit("thermal-share"):
            worst = max((each for each in (software, hardware) if each is not None), key=lambda each: each.share)
            memory = _memory_heat(samples) if software is not None else None
            causes = ranked(
                [
                    cause(
                        "thermal-throttling/hardware",
                        hardware.evidence("time in hardware thermal slowdown", "thermal-share"),
                    )
                    if hardware is not None and hardware.share > 0
                    else None,
                    cause("thermal-throttling/memory-heat", memory) if memory is not None else None,
                    cause(
                        "thermal-throttling/software",
                        software.evidence("time in software thermal slowdown", "thermal-share"),
                    )
                    if software is not None
                    else None,
                ]
            )
            severity: Severity = "error" if hardware is not None and hardware.share > limit("thermal-share") else "warn"
            if fell is False and severity == "warn":
                severity = "notice"
            cost = "" if fell is not False else "; the rate held"
            yield Finding(
                "thermal-throttling",
                severity,
                f"Heat held {name}'s clocks down for {percent(total)} of the time under load{cost}",
                tuple(
                    each
                    for each in (worst.evidence("time in thermal slowdown", "thermal-share"), *shown)
                    if each is not None
                ),
                cause=first_supported(causes),
                causes=causes,
                remedies=tuple(cooling(evidence)),
                since=wall(evidence, worst.since),
                subject=uuid,
            )
        elif not _has_reasons(samples) and (run := _hot_and_slow(samples)):
            causes = (
                cause(
                    "thermal-throttling/falling-clock",
                    _temperature(run),
                    _clock(run),
                    check="A driver that gives reasons or time counters would tell heat from power.",
                ),
            )
            yield Finding(
                "thermal-throttling",
                "notice" if fell is False else "warn",
                f"{name[0].upper()}{name[1:]} is hot and its clock falls; the driver gives no reason",
                tuple(each for each in (_temperature(run), _clock(samples), rate) if each is not None),
                cause=causes[0].id,
                causes=causes,
                remedies=tuple(cooling(evidence)),
                since=wall(evidence, run[0].at),
                subject=uuid,
            )


def _has_reasons(samples: Sequence[GpuSample]) -> bool:
    return any(
        number(each.reasons) is not None or any(number(v) is not None for v in each.throttle_s.values())
        for each in samples
    )


def _hot_and_slow(samples: Sequence[GpuSample]) -> list[GpuSample]:
    clocks = [value for _, value in gpu_numbers(samples, lambda each: each.sm_mhz)]
    if not clocks:
        return []
    peak = max(clocks)
    run: list[GpuSample] = []
    for each in samples:
        temperature, clock = number(each.temperature_c), number(each.sm_mhz)
        if (
            temperature is not None
            and clock is not None
            and temperature >= limit("hot")
            and clock < limit("hot-clock") * peak
        ):
            run.append(each)
            if len(run) >= limit("hot-samples"):
                return run
        else:
            run = []
    return []


def _memory_heat(samples: Sequence[GpuSample]) -> Evidence | None:
    """The core is cool while the driver slows down for heat: its other reason is the memory's temperature."""
    core = [value for _, value in gpu_numbers(samples, lambda each: each.temperature_c)]
    memory = [value for _, value in gpu_numbers(samples, lambda each: each.memory_temperature_c)]
    if memory and max(memory) >= 95:
        return seen("highest memory temperature", max(memory), threshold=95.0, unit="°C", via="NVML")
    if core and max(core) < 75 and not memory:
        return seen("highest core temperature", max(core), threshold=75.0, unit="°C", via="NVML", source="derived")
    return None


def power_throttling(evidence: EvidenceSet) -> Iterator[Finding]:
    """Clocks held down by power: the cap alone is only reported, a power brake or hardware slowdown is a fault."""
    shares, loads = held(evidence), gpu_load(evidence)
    fell, rate = rate_fell(evidence)
    for uuid, reasons in shares.items():
        samples = loads.get(uuid, [])
        name = gpu_name(evidence, uuid)
        brake, slow, cap = reasons.get("power-brake"), reasons.get("hw-slowdown"), reasons.get("power-cap")
        heat = reasons.get("hw-thermal")
        over = limit("power-share")
        if brake is not None and brake.share > over:
            causes = (cause("power-throttling/power-brake", brake.evidence("time in power brake", "power-share")),)
            yield Finding(
                "power-throttling",
                "error",
                f"The power supply made {name} slow down for {percent(brake.share)} of the time under load",
                tuple(
                    each
                    for each in (brake.evidence("time in power brake", "power-share"), _clock(samples), rate)
                    if each is not None
                ),
                cause=causes[0].id,
                causes=causes,
                since=wall(evidence, brake.since),
                subject=uuid,
                remedies=(Remedy("Check power supply, cables and adapters of the card, and the mains."),),
            )
        elif slow is not None and slow.share > over and (heat is None or heat.share < slow.share / 2):
            causes = (
                cause(
                    "power-throttling/hardware-slowdown",
                    slow.evidence("time in hardware slowdown", "power-share"),
                    check="The bits for heat and power brake name the origin where the card has them.",
                ),
            )
            yield Finding(
                "power-throttling",
                "error",
                f"The hardware cut {name}'s clocks for {percent(slow.share)} of the time under load",
                tuple(
                    each
                    for each in (slow.evidence("time in hardware slowdown", "power-share"), _clock(samples), rate)
                    if each is not None
                ),
                cause=causes[0].id,
                causes=causes,
                since=wall(evidence, slow.since),
                subject=uuid,
                remedies=(Remedy("Check power supply and cables, then the card's cooling."),),
            )
        elif cap is not None and cap.share > over:
            shown = [cap.evidence("time at the power limit", "power-share"), _power(samples), rate]
            causes = (cause("power-throttling/cap", *shown[:2], against=[rate] if fell is False else []),)
            yield Finding(
                "power-throttling",
                "warn" if fell else "info",
                f"{name[0].upper()}{name[1:]} ran at its power limit for {percent(cap.share)} of the time under load"
                + (", and the rate fell" if fell else ""),
                tuple(each for each in shown if each is not None),
                cause=causes[0].id,
                causes=causes,
                since=wall(evidence, cap.since),
                subject=uuid,
                remedies=(
                    (Remedy("Raise the power limit (`nvidia-smi -pl`) if cooling and supply allow it."),)
                    if fell
                    else (Remedy("Nothing to do: the memory clock, which decode needs, stays up at the limit."),)
                ),
            )


def _power(samples: Sequence[GpuSample]) -> Evidence | None:
    watts = gpu_numbers(samples, lambda each: each.power_w)
    caps = [value for _, value in gpu_numbers(samples, lambda each: each.power_limit_w)]
    if not watts:
        return None
    return seen(
        "power under load",
        fmean(value for _, value in watts),
        threshold=caps[-1] if caps else None,
        unit="W",
        via="NVML",
        window_s=span(samples),
        series=watts,
    )


def low_clocks(evidence: EvidenceSet) -> Iterator[Finding]:
    """Under load for 10 s below 80 % of the highest SM clock, cool, under the power limit, and no reason for it."""
    shares = held(evidence)
    for uuid, samples in gpu_load(evidence).items():
        info = info_of(evidence, uuid)
        highest = number(info.max_sm_mhz) if info is not None else None
        if info is None or highest is None or highest <= 0 or info.mig:
            continue
        run = _longest_low(samples, highest)
        if not run or span(run) < limit("low-clock-seconds"):
            continue
        slowed = shares.get(uuid, {})
        if any(each.share > 0.05 for reason, each in slowed.items() if reason != "sync-boost"):
            continue
        clock = fmean(value for _, value in gpu_numbers(run, lambda each: each.sm_mhz))
        shown = seen(
            "SM clock under load",
            clock,
            threshold=limit("low-clock") * highest,
            unit="MHz",
            via="NVML",
            window_s=span(run),
            series=gpu_numbers(run, lambda each: each.sm_mhz),
        )
        masks = [int(value) for _, value in gpu_numbers(run, lambda each: each.reasons)]
        states = [value for _, value in gpu_numbers(run, lambda each: each.pstate)]
        pstate = seen("performance state", max(states), threshold=2.0, via="NVML") if states else None
        name = gpu_name(evidence, uuid)
        if masks and all(mask & LOCKED for mask in masks):
            found = cause(
                "low-clocks/locked",
                seen("reason bit 0x2, application or locked clocks", "set in all samples", via="NVML"),
            )
            yield _low(
                evidence,
                uuid,
                "notice",
                f"Someone locked the clocks of {name}",
                shown,
                pstate,
                found,
                Remedy("`nvidia-smi -rgc` and `nvidia-smi -rac` give the clocks back to the driver."),
                run,
            )
        elif masks and all(mask & (SYNC | DISPLAY) for mask in masks):
            found = cause(
                "low-clocks/held-by-others", seen("reason bit 0x10 or 0x100", "set in all samples", via="NVML")
            )
            yield _low(
                evidence,
                uuid,
                "notice",
                f"{name[0].upper()}{name[1:]} is held to the clocks of others",
                shown,
                pstate,
                found,
                Remedy("Look at the other GPUs' reasons, or at the display's settings."),
                run,
            )
        elif is_virtual(info) or (not masks and states and not gpu_numbers(run, lambda each: each.power_w)):
            found = cause(
                "low-clocks/vgpu-licence",
                seen("name of a virtual GPU", info.name, source="derived", via="driver") if is_virtual(info) else None,
                check="`nvidia-smi -q` shows the licence status of a virtual GPU.",
            )
            yield _low(
                evidence,
                uuid,
                "warn",
                f"{name[0].upper()}{name[1:]} is virtual and its clocks stay low",
                shown,
                pstate,
                found,
                Remedy("A virtual GPU without a licence slows down after about 20 minutes: renew the licence."),
                run,
            )
        elif masks and not any(masks) and _cool_and_under_power(run, info.slowdown_c):
            found = cause("low-clocks/stuck", shown, pstate, seen("reason bits", "none", via="NVML"))
            yield _low(
                evidence,
                uuid,
                "warn",
                f"{name[0].upper()}{name[1:]} runs at {clock / highest:.0%} of its clock for no reason that the "
                "driver gives: a stuck performance state",
                shown,
                pstate,
                found,
                Remedy(
                    "End all programs on the GPU and start them again; else reload the driver or reboot. "
                    "Persistence mode keeps it from happening at each start."
                ),
                run,
            )


def _longest_low(samples: Sequence[GpuSample], highest: float) -> Sequence[GpuSample]:
    best, start = (0, 0), 0
    for i, each in enumerate(samples):
        clock, used, bits = number(each.sm_mhz), number(each.utilization), number(each.reasons)
        starved = bits is not None and int(bits) & IDLE
        idle = used is not None and used < limit("busy-utilization")
        if i > start and each.at - samples[i - 1].at > 5.0:
            start = i
        if clock is None or clock >= limit("low-clock") * highest or starved or idle:
            start = i + 1
        elif samples[i].at - samples[start].at > samples[max(best[0], best[1] - 1)].at - samples[best[0]].at:
            best = (start, i + 1)
    return samples[best[0] : best[1]]


def _cool_and_under_power(samples: Sequence[GpuSample], slowdown: object) -> bool:
    top = min(limit("hot"), slowdown - 10.0) if isinstance(slowdown, int | float) else limit("hot")
    hot = [value for _, value in gpu_numbers(samples, lambda each: each.temperature_c)]
    if hot and max(hot) >= top:
        return False
    watts = [value for _, value in gpu_numbers(samples, lambda each: each.power_w)]
    caps = [value for _, value in gpu_numbers(samples, lambda each: each.power_limit_w)]
    return not (watts and caps and fmean(watts) >= limit("power-room") * min(caps))


def _low(
    evidence: EvidenceSet,
    uuid: str,
    severity: Severity,
    title: str,
    clock: Evidence,
    pstate: Evidence | None,
    found: Cause,
    remedy: Remedy,
    run: Sequence[GpuSample],
) -> Finding:
    return Finding(
        "low-clocks",
        severity,
        title + f" ({seconds(span(run))})",
        tuple(each for each in (clock, pstate, _temperature(run), _power(run)) if each is not None),
        cause=found.id,
        causes=(found,),
        remedies=(remedy,),
        since=wall(evidence, run[0].at),
        subject=uuid,
    )


RULES = (thermal_throttling, power_throttling, low_clocks)
