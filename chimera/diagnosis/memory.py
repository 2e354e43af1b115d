"""GPU memory: what does not fit, what lies on the CPU, what spills."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from chimera.domain.finding import Cause, Evidence, Finding, Remedy, Severity
from chimera.domain.readings import number
from chimera.domain.telemetry import GpuSample

from .causes import cause, first_supported, ranked
from .evidence import EvidenceSet, Failure
from .remedies import (
    automatic_layers,
    fewer_layers,
    foreign_vram,
    free_vram,
    make_room,
    missing_bytes,
    programs_on_gpu,
    window,
)
from .thresholds import limit
from .views import (
    Placement,
    duration,
    gib,
    gpu_load,
    gpu_numbers,
    info_of,
    layers_in_all,
    local,
    options_in_force,
    percent,
    placement,
    plain,
    seen,
    span,
    steady_rates,
)

OOM = (
    "out of memory",
    "out of device memory",
    "cudamalloc failed",
    "hipmalloc failed",
    "failed to allocate",
    "unable to allocate",
    "allocation failed",
    "not enough memory",
    "insufficient memory",
    "requires more system memory",
    "memory layout cannot be allocated",
    "erroroutofdevicememory",
    "vk_error_out_of_device_memory",
)
"""How servers say that memory did not suffice."""


def is_oom(failure: Failure) -> bool:
    """The server's words say that memory did not suffice."""
    text = failure.text.lower()
    return any(each in text for each in OOM)


def _fullness(evidence: EvidenceSet) -> tuple[GpuSample, float] | None:
    """The fullest GPU by its newest sample, with the part in use; the reserved part counts as used."""
    newest = {each.uuid: each for each in evidence.gpu_samples}
    best: tuple[GpuSample, float] | None = None
    for each in newest.values():
        total, used, free = number(each.vram_total_bytes), number(each.vram_used_bytes), number(each.vram_free_bytes)
        if total is None or total <= 0 or ((info := info_of(evidence, each.uuid)) is not None and info.integrated):
            continue
        if free is not None:
            part = 1 - min(1.0, free / total)
        elif used is not None:
            part = min(1.0, used / total)
        else:
            continue
        if best is None or part > best[1]:
            best = (each, part)
    return best


def _collapse(evidence: EvidenceSet) -> Evidence | None:
    """Decode at long contexts against short ones, where it is three times slower or worse."""
    pairs = [
        (float((each.measurement.prompt_tokens or 0) + (each.measurement.completion_tokens or 0)), rate)
        for each, rate in steady_rates(evidence)
        if each.measurement.prompt_tokens
    ]
    if len(pairs) < 4:
        return None
    pairs.sort()
    third = max(1, len(pairs) // 3)
    short, long = pairs[:third], pairs[-third:]
    if median(x for x, _ in long) < limit("context-span") * median(x for x, _ in short):
        return None
    times = median(rate for _, rate in short) / median(rate for _, rate in long)
    if times < limit("context-collapse"):
        return None
    return seen(
        "decode with short context against long",
        times,
        over="context-collapse",
        via="own timings",
        source="derived",
        series=pairs,
    )


def fewer_asked(evidence: EvidenceSet) -> bool:
    """Fewer layers on the GPU than the model has were asked for."""
    asked = evidence.requested.num_gpu if evidence.requested is not None else None
    every = layers_in_all(evidence)
    return asked is not None and asked >= 0 and (every is None or asked < every)


def vram_exhaustion(evidence: EvidenceSet) -> Iterator[Finding]:
    """A load that ran out of memory, a forecast above what is there, a spill; a full GPU alone is no symptom."""
    failed = [each for each in evidence.failures if is_oom(each)]
    lies, full = placement(evidence), _fullness(evidence)
    part = seen("GPU memory in use", full[1], over="vram-full", via="NVML") if full is not None else None
    on_windows = evidence.platform in ("windows", "wsl")
    collapse = _collapse(evidence)
    shown: list[Evidence | None] = []
    severity: Severity
    if failed:
        severity, title = "error", "GPU memory ran out while the model was loaded"
        if not failed[-1].at_load:
            title = "GPU memory ran out"
        shown = [seen("the server said", failed[-1].text, via="server's answer"), part]
    elif (
        lies is not None
        and not lies.whole
        and full is not None
        and full[1] >= limit("vram-full")
        and not fewer_asked(evidence)
    ):
        severity, title = "warn", f"GPU memory is full and {percent(1 - lies.on_gpu)} of the model did not fit"
        shown = [part, lies.evidence]
    elif collapse is not None and (full is None or full[1] >= limit("vram-full")):
        severity, title = "warn", f"Decode is {collapse.value:.1f} times slower with long contexts than with short ones"
        shown = [collapse, part]
    elif on_windows and full is not None and full[1] >= limit("vram-full-windows") and _spill(evidence) is not None:
        severity, title = "warn", f"GPU memory is {percent(full[1])} full and data crosses the bus while decoding"
        shown = [part, _spill(evidence)]
    elif lies is None and (lacking := missing_bytes(evidence)):
        severity, title = "warn", f"The model is expected to lack {gib(lacking)} of GPU memory"
        shown = [
            seen(
                "forecast",
                evidence.forecast_bytes,
                threshold=free_vram(evidence),
                unit="bytes",
                source="estimated",
                via="model file and settings",
            ),
            part,
        ]
    elif moved := _made_room(evidence):
        severity, title = "notice", "The server made room for the model: others were thrown out or its window shrank"
        shown = [moved, part]
    else:
        return
    causes = ranked(_memory_causes(evidence, lies, failed, collapse))
    remedies = [*fewer_layers(evidence), *make_room(evidence)]
    if not failed and any(each.id == "vram-exhaustion/made-room" for each in causes):
        remedies.insert(0, Remedy("Smaller windows or fewer models at once, so that all of them stay loaded."))
    if any(each.id == "vram-exhaustion/system-memory" for each in causes):
        remedies.insert(0, Remedy("Switch the driver's system-memory fallback off for this program (NVIDIA settings)."))
    if any(each.id == "vram-exhaustion/two-servers" for each in causes):
        remedies.insert(0, Remedy("Load one server after the other, and give the first time to settle."))
    yield Finding(
        "vram-exhaustion",
        severity,
        title,
        tuple(each for each in shown if each is not None),
        cause=first_supported(causes),
        causes=causes,
        remedies=tuple(remedies),
        since=failed[-1].at if failed else None,
        subject=full[0].uuid if full is not None and not failed else "",
    )


def _memory_causes(
    evidence: EvidenceSet, lies: Placement | None, failed: list[Failure], collapse: Evidence | None
) -> Iterator[Cause | None]:
    force = options_in_force(evidence)
    asked = failed[-1].options if failed and failed[-1].options is not None else evidence.requested
    layers = asked.num_gpu if asked is not None else None
    every = layers_in_all(evidence)
    if failed and layers is not None and layers > 0:
        yield cause(
            "vram-exhaustion/explicit-layers",
            seen("num_gpu asked for", float(layers), threshold=every, source="derived", via="settings"),
        )
    total = max((value for each in evidence.gpu_samples if (value := number(each.vram_total_bytes))), default=None)
    weights = evidence.model.size_bytes if evidence.model is not None else None
    if weights and total is not None and weights > total - limit("vram-margin"):
        yield cause(
            "vram-exhaustion/weights",
            seen("model file", float(weights), threshold=total, unit="bytes", via="server"),
            share=min(1.0, weights / (lies.size_bytes if lies and lies.size_bytes else weights)),
        )
    now, each_token = window(evidence), evidence.kv_bytes_per_token
    if now is not None and each_token is not None and weights and now * each_token > 0.25 * weights:
        yield cause(
            "vram-exhaustion/window",
            seen(
                "KV cache of the window",
                now * each_token,
                threshold=0.25 * weights,
                unit="bytes",
                source="estimated",
                via=f"{now} tokens x {force.num_parallel or 1} slots",
            ),
            share=now * each_token / (now * each_token + weights),
        )
    elif weights and lies is not None and lies.size_bytes is not None and lies.size_bytes > 1.5 * weights:
        yield cause(
            "vram-exhaustion/window",
            seen("memory of the loaded model", lies.size_bytes, threshold=1.5 * weights, unit="bytes", via=lies.via),
            share=1 - weights / lies.size_bytes,
        )
    others = foreign_vram(evidence)
    if others and total is not None and sum(size for _, size in others) > 0.05 * total:
        held = sum(size for _, size in others)
        yield cause(
            "vram-exhaustion/other-processes",
            seen("GPU memory of other programs", held, threshold=0.05 * total, unit="bytes", via="NVML"),
            share=held / total,
        )
    elif not evidence.engine_pids and evidence.gpu_infos:
        held_by = ", ".join(
            f"{plain(name, 40)} {gib(size)}" for name, size in programs_on_gpu(evidence, evidence.own_pids)[:3]
        )
        yield cause(
            "vram-exhaustion/other-processes",
            check=(f"On the GPU: {held_by}" if held_by else "`nvidia-smi` lists the programs on the GPU")
            + "; which of them is the server is not known here.",
        )
    twins = [each for each in evidence.neighbours if (each.vram_bytes or 0) > 0]
    if twins:
        yield cause(
            "vram-exhaustion/two-servers",
            seen(
                f"GPU memory held by {plain(twins[0].server, 60)}",
                twins[0].vram_bytes,
                unit="bytes",
                via="/api/ps of that server",
            ),
        )
    if evidence.platform in ("windows", "wsl"):
        yield cause(
            "vram-exhaustion/system-memory",
            _spill(evidence),
            check="Task Manager shows 'shared GPU memory': it grows when the driver spills.",
        )
    if collapse is not None:
        yield cause(
            "vram-exhaustion/context-collapse",
            collapse,
            check="Shared GPU memory (Windows) or PCIe traffic that grows with the context would prove it.",
        )
    if moved := _made_room(evidence):
        yield cause("vram-exhaustion/made-room", moved)
    free = free_vram(evidence)
    if failed and evidence.forecast_bytes is not None and free is not None and evidence.forecast_bytes < free:
        yield cause(
            "vram-exhaustion/estimate",
            seen(
                "forecast",
                evidence.forecast_bytes,
                threshold=free,
                unit="bytes",
                source="estimated",
                via="model file and settings",
            ),
            check="The log's lines `compute buffer size` show what the estimate left out.",
        )
    shown = _accounting(evidence, lies)
    if shown is not None:
        yield cause("vram-exhaustion/accounting", shown, share=0.02)


def _made_room(evidence: EvidenceSet) -> Evidence | None:
    """The server says that it threw a model out, or took a smaller window than it would have."""
    words = ("evicting", "reducing automatic context")
    moved = [each for each in evidence.log if any(word in each.text for word in words)]
    return seen("the server's log", moved[-1].text, via="server log") if moved else None


def _accounting(evidence: EvidenceSet, lies: Placement | None) -> Evidence | None:
    """The driver shows more for the engine's processes than the server counts: CUDA's own context."""
    if lies is None or lies.vram_bytes is None or not evidence.engine_pids:
        return None
    newest = {each.uuid: each for each in evidence.gpu_samples}
    held = sum(
        size
        for sample in newest.values()
        if isinstance(sample.processes, tuple)
        for each in sample.processes
        if each.pid in evidence.engine_pids and (size := number(each.vram_bytes)) is not None
    )
    if held - lies.vram_bytes <= limit("accounting-gap"):
        return None
    return seen(
        "driver's figure above the server's",
        held - lies.vram_bytes,
        over="accounting-gap",
        via="NVML, /api/ps",
        source="derived",
        unit="bytes",
    )


def _spill(evidence: EvidenceSet) -> Evidence | None:
    """Much is read over PCIe while tokens are decoded; a model that is whole on the GPU needs almost nothing."""
    for samples in gpu_load(evidence).values():
        values = gpu_numbers(samples, lambda each: each.pcie_rx_bytes_s)
        if len(values) >= 3 and median(value for _, value in values) > 1e9:
            return seen(
                "read over PCIe while decoding",
                median(value for _, value in values),
                threshold=1e9,
                unit="bytes/s",
                via="NVML",
                window_s=span(samples),
                series=values,
            )
    return None


def cpu_offload(evidence: EvidenceSet) -> Iterator[Finding]:
    """A part of the model runs on the CPU although this machine has a GPU."""
    lies = placement(evidence)
    if lies is None or lies.whole or lies.on_gpu <= 0 or not evidence.gpu_infos or not local(evidence):
        return
    asked = evidence.requested.num_gpu if evidence.requested is not None else None
    every = layers_in_all(evidence)
    explicit = fewer_asked(evidence)
    loads = gpu_load(evidence)
    busy = [value for samples in loads.values() for _, value in gpu_numbers(samples, lambda each: each.utilization)]
    idle = (
        seen("GPU utilisation while requests run", sum(busy) / len(busy), over="busy-utilization", via="NVML")
        if busy and sum(busy) / len(busy) < limit("busy-utilization")
        else None
    )
    lacking = missing_bytes(evidence)
    causes = ranked(
        [
            cause(
                "cpu-offload/layers-are-not-gpus",
                seen("num_gpu asked for", float(asked), threshold=every, via="settings"),
            )
            if explicit and asked is not None and asked <= 2 and (every or 99) > 4
            else None,
            cause("cpu-offload/layers-asked", seen("num_gpu asked for", float(asked), threshold=every, via="settings"))
            if explicit and asked is not None and (asked > 2 or (every or 99) <= 4)
            else None,
            cause(
                "cpu-offload/not-enough-memory",
                seen("GPU memory that is missing", lacking, source="derived", unit="bytes", via=lies.via)
                if lacking
                else None,
                check="The server's log says how much memory it found free when it placed the layers.",
            )
            if not explicit
            else None,
        ]
    )
    pairs = steady_rates(evidence)
    severity: Severity = "info" if explicit and (asked or 0) > 2 else "warn"
    where = (
        f"{lies.layers_in_all - lies.layers} of {lies.layers_in_all} layers"
        if lies.layers is not None and lies.layers_in_all is not None
        else percent(1 - lies.on_gpu) + " of the model"
    )
    remedies: list[Remedy] = []
    if explicit:
        remedies.append(automatic_layers(evidence))
        if every is not None and missing_bytes(evidence) == 0:
            remedies.append(Remedy(f"All {every} layers on the GPU.", {"num_gpu": every}))
    else:
        remedies.extend(make_room(evidence))
    yield Finding(
        "cpu-offload",
        severity,
        f"{where} run on the CPU" + (", as asked" if severity == "info" else ""),
        tuple(
            each
            for each in (
                lies.evidence,
                idle,
                seen(
                    "decode rate",
                    median(rate for _, rate in pairs),
                    unit="tok/s",
                    via="own timings",
                    window_s=duration([each for each, _ in pairs]),
                )
                if pairs
                else None,
            )
            if each is not None
        ),
        cause=first_supported(causes),
        causes=causes,
        remedies=tuple(remedies),
    )


RULES = (vram_exhaustion, cpu_offload)
