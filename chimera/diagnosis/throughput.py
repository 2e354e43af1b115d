"""Low throughput: against this machine's own baseline and the bandwidth roof; then what explains it."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, median

from chimera.domain.finding import Cause, Evidence, Finding, Remedy, Severity
from chimera.domain.readings import number

from .causes import cause, first_supported, ranked
from .evidence import EvidenceSet, Request
from .history import changes_since
from .load import on_cpu
from .remedies import cooling, make_room, threads
from .thermal import held, low_clocks
from .thresholds import REFERENCES, limit
from .views import (
    by_time,
    duration,
    foreign_share,
    gpu_load,
    gpu_numbers,
    host_load,
    local,
    numbers,
    options_in_force,
    own_baseline,
    percent,
    placement,
    seen,
    steady_rates,
)


def low_throughput(evidence: EvidenceSet) -> Iterator[Finding]:
    """15 % under the own baseline, under 60 % of the roof, or under a report for just this model and card."""
    pairs = steady_rates(evidence)
    if not pairs:
        return
    now = median(rate for _, rate in pairs)
    base = own_baseline(evidence, "decode_tok_s")
    shown: list[Evidence] = []
    severity: Severity = "warn"
    window = duration([each for each, _ in pairs])
    if base is not None and len(pairs) >= limit("history-n") and now < (1 - limit("rate-drop")) * base.value:
        title = f"{now:.3g} tok/s where there were {base.value:.3g}: {percent(1 - now / base.value)} less"
        shown.append(
            seen(
                "decode rate",
                now,
                threshold=(1 - limit("rate-drop")) * base.value,
                unit="tok/s",
                via=base.via,
                window_s=window,
                series=by_time(pairs),
            )
        )
    elif (roof := _roof(evidence)) is not None and now < limit("roof-share") * roof and not _explained(base, now):
        title = f"{now:.3g} tok/s is {percent(now / roof)} of what memory bandwidth allows"
        severity = "notice"
        shown.append(
            seen(
                "part of the bandwidth roof",
                now / roof,
                over="roof-share",
                source="derived",
                via="memory bandwidth and bytes read a token",
                window_s=window,
            )
        )
    elif (reference := _reference(evidence)) is not None and now < reference[0] and not _explained(base, now):
        title = f"{now:.3g} tok/s; a report for this card and model has {reference[0]:.0f} and more"
        severity = "notice"
    else:
        return
    reference = _reference(evidence)
    if reference is not None and now < reference[0]:
        shown.append(seen("decode rate against a report", now, threshold=reference[0], unit="tok/s", via=reference[1]))
    causes = ranked(_causes(evidence, pairs))
    first = first_supported(causes)
    yield Finding(
        "low-throughput",
        severity,
        title,
        tuple(shown),
        cause=first,
        causes=causes,
        remedies=tuple(_remedies(evidence, first)),
    )


def _explained(base: object, now: float) -> bool:
    """An own baseline that is kept speaks louder than a roof or a report."""
    value = getattr(base, "value", None)
    return isinstance(value, float) and now >= (1 - limit("rate-drop")) * value


def _roof(evidence: EvidenceSet) -> float | None:
    """The roof, where it says something: one stream, on a GPU, and not so high that fixed costs hide it."""
    roof = evidence.roof_tok_s
    if roof is None or roof <= 0 or roof > limit("roof-applies-below") or not evidence.gpu_infos:
        return None
    one = evidence.workload is None or evidence.workload.agents == 1
    return roof if one and local(evidence) else None


def _reference(evidence: EvidenceSet) -> tuple[float, str] | None:
    if evidence.model is None or not local(evidence):
        return None
    for info in evidence.gpu_infos:
        total = next((number(each.vram_total_bytes) for each in evidence.gpu_samples if each.uuid == info.uuid), None)
        for each in REFERENCES:
            if each.min_tok_s is not None and each.matches(evidence.model.name, info.name, total):
                return each.min_tok_s, each.source
    return None


_SLOW_QUANTISED = frozenset({"Kepler", "Maxwell", "Pascal"})
"""Old cards, whose kernels for a quantised KV cache are slow."""


def _causes(evidence: EvidenceSet, pairs: list[tuple[Request, float]]) -> Iterator[Cause | None]:
    lies = placement(evidence)
    loads = gpu_load(evidence)
    busy = [value for samples in loads.values() for _, value in gpu_numbers(samples, lambda each: each.utilization)]
    usage = (
        seen("GPU utilisation while requests run", fmean(busy), over="busy-utilization", via="NVML") if busy else None
    )
    idle = usage is not None and fmean(busy) < limit("busy-utilization")
    foreign = [value for _, value in foreign_share(evidence)]
    if evidence.gpu_infos and local(evidence):
        if lies is not None and not lies.whole:
            yield cause(
                "low-throughput/cpu-offload",
                lies.evidence,
                usage if idle else None,
                against=[usage if not idle else None],
                share=0.5 + 0.5 * (1 - lies.on_gpu),
            )
        elif lies is None:
            yield cause(
                "low-throughput/cpu-offload",
                usage if idle else None,
                share=0.5,
                check="The server's list of loaded models (size against size in GPU memory), or its log line "
                "`offloaded N/M layers`, tells how many layers are on the CPU.",
            )
    if foreign and fmean(foreign) >= limit("foreign-cpu") and on_cpu(evidence):
        yield cause(
            "low-throughput/foreign-load",
            seen("CPU used by other programs", fmean(foreign), over="foreign-cpu", via="processes of this host"),
            share=min(0.9, fmean(foreign) / 50),
        )
    elif not foreign and local(evidence):
        yield cause("low-throughput/foreign-load", check="`top` while a request runs names programs on the same cores.")
    for reasons in held(evidence).values():
        slow = {
            name: each
            for name, each in reasons.items()
            if name in ("sw-thermal", "hw-thermal", "power-brake", "hw-slowdown", "power-cap")
            and each.share > limit("thermal-share")
        }
        if slow:
            name, worst = max(slow.items(), key=lambda pair: pair[1].share)
            yield cause(
                "low-throughput/throttling",
                seen(f"time in {name}", worst.share, over="thermal-share", via=worst.via, window_s=worst.window_s),
                share=worst.share * (0.4 if name == "power-cap" else 0.9),
            )
    stuck = next(low_clocks(evidence), None)
    if stuck is not None:
        yield cause("low-throughput/low-clocks", stuck.evidence[0], share=0.7)
    yield _long_context(pairs)
    yield from _thread_causes(evidence)
    kv = options_in_force(evidence).kv_cache_type
    old = [each for each in evidence.gpu_infos if each.architecture in _SLOW_QUANTISED]
    if kv in ("q8_0", "q4_0") and local(evidence) and (on_cpu(evidence) or old):
        yield cause(
            "low-throughput/kv-quantised",
            seen("KV cache type in force", str(kv), threshold="f16", via="settings"),
            seen("architecture of the card", old[0].architecture, via="NVML") if old else None,
            share=0.3,
        )
    for what, before, after in changes_since(evidence):
        if what != "settings":
            yield cause(
                "low-throughput/server-regression",
                seen(f"{what} before", before, threshold=after, via="journal"),
                share=0.45,
            )
    pressure = numbers(host_load(evidence), lambda each: each.pressure_memory)
    if len(pressure) >= 2 and fmean(value for _, value in pressure) >= limit("memory-pressure"):
        yield cause(
            "low-throughput/memory-pressure",
            seen(
                "time in which a task waited for memory",
                fmean(value for _, value in pressure),
                over="memory-pressure",
                via="PSI",
                series=pressure,
            ),
            share=0.6,
        )
    newest = evidence.host_samples[-1] if evidence.host_samples else None
    if (
        newest is not None
        and local(evidence)
        and (
            newest.on_battery
            or (
                newest.governor == "powersave"
                and on_cpu(evidence)
                and newest.power_profile in ("power-saver", "low-power")
            )
        )
    ):
        yield cause(
            "low-throughput/power-saving",
            seen("power source", "battery", via="this host")
            if newest.on_battery
            else seen("power profile", newest.power_profile or "", via="this host"),
            share=0.35,
        )
    if evidence.platform == "windows" and local(evidence):
        yield cause(
            "low-throughput/background-class",
            check="Task Manager shows 'Efficiency mode' or a low priority of the server's process.",
        )
    split = [
        uuid for uuid, samples in loads.items() if any((number(each.vram_used_bytes) or 0) > 1e9 for each in samples)
    ]
    if len(split) > 1 and evidence.roof_tok_s:
        yield cause(
            "low-throughput/pcie",
            check="With one GPU only (CUDA_VISIBLE_DEVICES) the rate tells whether the "
            "split costs more than it brings.",
        )


def _long_context(pairs: list[tuple[Request, float]]) -> Cause | None:
    """The rate falls with the length of the context that is really used."""
    lengths = sorted(
        (float((each.measurement.prompt_tokens or 0) + (each.measurement.completion_tokens or 0)), rate)
        for each, rate in pairs
        if each.measurement.prompt_tokens
    )
    if len(lengths) < 6:
        return None
    third = len(lengths) // 3
    short, long = lengths[:third], lengths[-third:]
    if median(x for x, _ in long) < limit("context-span") * median(x for x, _ in short):
        return None
    ratio = median(rate for _, rate in long) / median(rate for _, rate in short)
    if ratio >= 1 - limit("rate-drop"):
        return None
    return cause(
        "low-throughput/long-context",
        seen(
            "rate with long context against short",
            ratio,
            threshold=1 - limit("rate-drop"),
            source="derived",
            via="own timings",
            series=lengths,
        ),
        share=0.6,
    )


def _thread_causes(evidence: EvidenceSet) -> Iterator[Cause]:
    asked, cores = options_in_force(evidence).num_thread, evidence.physical_cores
    newest = evidence.host_samples[-1] if evidence.host_samples else None
    allowed = number(newest.cpu_limit_cores) if newest is not None else None
    room = min((each for each in (cores, allowed) if each), default=None)
    if not on_cpu(evidence) or not local(evidence):
        return
    if asked is not None and room is not None and asked > room:
        yield cause(
            "low-throughput/threads",
            seen("threads in force", float(asked), threshold=float(room), via="settings", source="derived"),
            share=0.55,
        )
    elif (
        asked is None
        and room is not None
        and newest is not None
        and newest.per_core_percent
        and len(newest.per_core_percent) > room
    ):
        yield cause(
            "low-throughput/threads",
            check=f"A run with num_thread {int(room)} against the automatic value tells whether threads share cores.",
        )


def _remedies(evidence: EvidenceSet, first: str | None) -> Iterator[Remedy]:
    match first:
        case "low-throughput/cpu-offload":
            yield from make_room(evidence)
        case "low-throughput/foreign-load":
            share = [value for _, value in foreign_share(evidence)]
            yield Remedy("End or pause the other programs; `top` names them.")
            yield from threads(evidence, fmean(share) if share else None)
        case "low-throughput/throttling":
            yield from cooling(evidence)
        case "low-throughput/low-clocks":
            yield Remedy("End all programs on the GPU and start them again; else reload the driver or reboot.")
        case "low-throughput/long-context":
            yield Remedy("A shorter prompt or history: only context in use costs time, an unused window does not.")
            yield Remedy("Flash attention reads long contexts faster.", {"flash_attention": "on"})
        case "low-throughput/threads":
            yield from threads(evidence)
        case "low-throughput/kv-quantised":
            yield Remedy(
                "A KV cache of type f16: a quantised one saves memory and costs speed here.", {"kv_cache_type": "f16"}
            )
        case "low-throughput/server-regression":
            yield Remedy("Go back to the version before and measure again; if that helps, report it with the bundle.")
        case "low-throughput/memory-pressure":
            yield Remedy("Free memory: close programs, or take a smaller model or window.")
        case "low-throughput/power-saving":
            yield Remedy("Plug the machine in, and choose a power profile for performance.")
        case _:
            yield Remedy(
                "Measure once more with nothing else running; what does not come back has a cause that the "
                "checks below find."
            )


RULES = (low_throughput,)
