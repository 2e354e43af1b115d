"""The GPU itself: gone, not found, not used, badly connected."""

from __future__ import annotations

import re
from collections.abc import Iterator
from statistics import fmean, median

from chimera.domain.finding import Cause, Evidence, Finding, Remedy, Severity
from chimera.domain.readings import Missing, number

from .causes import cause, first_supported, ranked
from .evidence import EvidenceSet
from .thresholds import limit
from .views import (
    gpu_load,
    gpu_name,
    gpu_numbers,
    info_of,
    local,
    own_baseline,
    placement,
    seen,
    span,
    steady_rates,
    wall,
)

XIDS: dict[int, tuple[str, str, Severity]] = {
    13: ("gpu-lost/application-fault", "kernel fault", "notice"),
    31: ("gpu-lost/application-fault", "memory page fault", "notice"),
    43: ("gpu-lost/application-fault", "channel reset", "notice"),
    45: ("gpu-lost/application-fault", "clean-up after an earlier error or a kill", "info"),
    48: ("gpu-lost/memory-errors", "double-bit memory error", "error"),
    61: ("gpu-lost/reset-required", "micro-controller halt", "error"),
    62: ("gpu-lost/reset-required", "micro-controller halt", "error"),
    63: ("gpu-lost/memory-errors", "memory row remapped", "notice"),
    64: ("gpu-lost/memory-errors", "memory row could not be remapped", "error"),
    74: ("gpu-lost/reset-required", "NVLink error", "error"),
    79: ("gpu-lost/fallen-off-bus", "fallen off the bus", "error"),
    92: ("gpu-lost/memory-errors", "many single-bit memory errors", "notice"),
    94: ("gpu-lost/memory-errors", "contained memory error", "warn"),
    95: ("gpu-lost/memory-errors", "uncontained memory error", "error"),
    109: ("gpu-lost/application-fault", "context switch timeout", "warn"),
    119: ("gpu-lost/reset-required", "system processor timeout", "error"),
    120: ("gpu-lost/reset-required", "system processor error", "error"),
    154: ("gpu-lost/reset-required", "recovery needed", "error"),
}
"""Cause, meaning and severity of the driver's critical errors that are seen with compute programs."""
_MISMATCH = re.compile(r"mismatch|LIB_RM_VERSION", re.IGNORECASE)
_LOST_CURE: dict[str, str] = {
    "gpu-lost/fallen-off-bus": "Power the machine off and on; look at the card's power cables, riser and temperature.",
    "gpu-lost/reset-required": "Reset the GPU with no program on it (`nvidia-smi --gpu-reset`), or reboot.",
    "gpu-lost/application-fault": "Restart the server; if it comes back, report it with the server's log.",
    "gpu-lost/memory-errors": "`nvidia-smi -q -d ECC,ROW_REMAPPER` shows the errors; a card that gathers them "
    "is failing.",
    "gpu-lost/suspend": "Reload the module nvidia_uvm (`rmmod nvidia_uvm`, `modprobe nvidia_uvm`), restart the server; "
    "the driver can preserve video memory over suspend.",
    "gpu-lost/container": "Restart the container; a cgroup reload took its GPU. The container tool's cgroup setting "
    "prevents it.",
    "gpu-lost/unknown": "The kernel's log names the driver's error; restart the server, else reboot.",
}


def gpu_lost(evidence: EvidenceSet) -> Iterator[Finding]:
    """A GPU that went away, asked for help with an Xid, or that the server lost over sleep or by its container."""
    for uuid in dict.fromkeys(each.uuid for each in evidence.gpu_samples):
        samples = [each for each in evidence.gpu_samples if each.uuid == uuid]
        last = samples[-1]
        lost = next(
            (
                reading
                for reading in (last.utilization, last.vram_used_bytes, last.temperature_c)
                if isinstance(reading, Missing) and reading.reason == "lost"
            ),
            None,
        )
        xids = list(dict.fromkeys(each for each in last.xids if isinstance(each, int)))
        if lost is None and not xids:
            continue
        name = gpu_name(evidence, uuid)
        causes = ranked([*_by_xid(xids), _container(evidence, lost) if lost is not None and not xids else None])
        known = [XIDS[each] for each in xids if each in XIDS]
        severity: Severity = (
            "error"
            if lost is not None
            else max((each[2] for each in known), key=("info", "notice", "warn", "error").index, default="notice")
        )
        told = seen("the driver says", str(lost), via="NVML") if lost is not None else None
        what = "is lost" if lost is not None else "reported " + _words(xids)
        first = first_supported(causes)
        yield Finding(
            "gpu-lost",
            severity,
            f"{name[0].upper()}{name[1:]} {what}",
            tuple(
                each
                for each in (told, seen("Xid", _words(xids), via="driver events") if xids else None)
                if each is not None
            ),
            cause=first,
            causes=causes,
            subject=uuid,
            remedies=(Remedy(_LOST_CURE[first or "gpu-lost/unknown"]),),
            since=wall(evidence, lost.since if lost is not None and lost.since is not None else last.at),
        )
    if evidence.gpu_missing is not None and evidence.gpu_missing.reason == "lost":
        gone = seen("the driver says", str(evidence.gpu_missing), via="NVML")
        causes = ranked([_container(evidence, evidence.gpu_missing)])
        first = first_supported(causes)
        yield Finding(
            "gpu-lost",
            "error",
            "The GPU went away",
            (gone,),
            cause=first,
            causes=causes,
            since=wall(evidence, evidence.gpu_missing.since),
            remedies=(Remedy(_LOST_CURE[first or "gpu-lost/unknown"]),),
        )
    yield from _fell_to_cpu(evidence)


def _words(xids: list[int]) -> str:
    return ", ".join(f"Xid {each} ({XIDS[each][1]})" if each in XIDS else f"Xid {each}" for each in xids[:5])


def _by_xid(xids: list[int]) -> Iterator[Cause]:
    groups: dict[str, list[int]] = {}
    for each in xids:
        groups.setdefault(XIDS[each][0] if each in XIDS else "gpu-lost/unknown", []).append(each)
    for name, members in groups.items():
        worst = max(("info", "notice", "warn", "error").index(XIDS[each][2]) if each in XIDS else 1 for each in members)
        yield cause(name, seen("Xid", _words(members), via="driver events"), share=0.3 + 0.2 * worst)


def _container(evidence: EvidenceSet, lost: Missing) -> Cause:
    told = seen("the driver says", str(lost), via="NVML")
    if evidence.container:
        return cause("gpu-lost/container", told, seen("runs in a container", "yes", via="this host"))
    return cause("gpu-lost/unknown", told, check="The kernel's log (`dmesg | grep -i xid`) names the driver's error.")


def _fell_to_cpu(evidence: EvidenceSet) -> Iterator[Finding]:
    """The model was on the GPU, then a later load put it on the CPU although GPU memory was free."""
    if not local(evidence) or (evidence.requested is not None and evidence.requested.num_gpu == 0):
        return
    shares: list[tuple[float, float]] = []
    for sample in evidence.server_samples:
        if not isinstance(sample.models, tuple):
            continue
        for each in sample.models:
            size, vram = number(each.size_bytes), number(each.vram_bytes)
            if size and vram is not None and (evidence.model is None or each.name == evidence.model.name):
                shares.append((sample.at, vram / size))
    was = next((share for _, share in shares if share > 0), None)
    if was is None or not shares or shares[-1][1] > 0:
        return
    since = next(at for at, share in reversed(shares) if share > 0)
    newest = evidence.gpu_samples[-1] if evidence.gpu_samples else None
    total = number(newest.vram_total_bytes) if newest is not None else None
    free = number(newest.vram_free_bytes) if newest is not None else None
    if total is not None and free is not None and free < 0.5 * total:
        return
    shown = seen("model in GPU memory", shares[-1][1], threshold=was, via="/api/ps", series=shares)
    woke = evidence.resumed_at
    start = wall(evidence, since)
    slept = woke is not None and start is not None and woke >= start - 60
    causes = ranked(
        [
            cause("gpu-lost/suspend", seen("the machine slept", "yes", via="this host")) if slept else None,
            cause("gpu-lost/container", seen("runs in a container", "yes", via="this host"))
            if evidence.container
            else None,
            cause(
                "gpu-lost/unknown",
                shown,
                check="The server's log says at its start which devices it found (`inference compute`).",
            ),
        ]
    )
    first = "gpu-lost/suspend" if slept else "gpu-lost/container" if evidence.container else "gpu-lost/unknown"
    causes = tuple(sorted(causes, key=lambda each: each.id != first))
    yield Finding(
        "gpu-lost",
        "error",
        "The server fell from the GPU to the CPU although GPU memory is free",
        (shown,),
        cause=first,
        causes=causes,
        remedies=(Remedy(_LOST_CURE[first]),),
        since=start,
    )


def driver_mismatch(evidence: EvidenceSet) -> Iterator[Finding]:
    """The driver's library and its kernel module are of different versions."""
    missing = evidence.gpu_missing
    if missing is None or _MISMATCH.search(missing.detail) is None:
        return
    told = seen("the driver says", missing.detail, via="NVML")
    causes = (cause("driver-mismatch/updated-under-kernel", told),)
    yield Finding(
        "driver-mismatch",
        "error",
        "The GPU's driver was updated under a running kernel module",
        (told,),
        cause=causes[0].id,
        causes=causes,
        remedies=(Remedy("Reboot, or end everything that uses the GPU and reload the nvidia kernel modules."),),
    )


def gpu_unused(evidence: EvidenceSet) -> Iterator[Finding]:
    """This machine has a GPU and the model runs without it, unasked."""
    if not evidence.gpu_infos or not local(evidence):
        return
    if evidence.requested is not None and evidence.requested.num_gpu == 0:
        return
    lies = placement(evidence)
    busy = [
        value for samples in gpu_load(evidence).values() for _, value in gpu_numbers(samples, lambda s: s.utilization)
    ]
    usage: Evidence | None = None
    if len(busy) >= limit("gpu-idle-samples"):
        usage = seen("GPU utilisation while requests run", fmean(busy), over="gpu-idle", via="NVML")
    idle = usage is not None and isinstance(usage.value, float) and usage.value < limit("gpu-idle")
    if lies is not None and lies.on_gpu > 0:
        return
    if lies is None and (not idle or not evidence.requests):
        return
    if lies is not None and usage is not None and not idle and lies.source != "measured":
        return
    if next(_fell_to_cpu(evidence), None) is not None:
        return
    embedded = evidence.server is not None and evidence.server.kind == "embedded"
    cpu_only = next(
        (each for each in evidence.log if "inference compute" in each.text and "library=cpu" in each.text.lower()), None
    )
    causes = ranked(
        [
            cause(
                "gpu-unused/cpu-build",
                seen("engine", "embedded", via="Chimera"),
                check="A GPU build of the engine, or a server that has one, would use it.",
            )
            if embedded
            else None,
            cause("gpu-unused/not-found", seen("the server's log", cpu_only.text, via="server log"))
            if cpu_only is not None
            else None,
            cause("gpu-unused/container", seen("runs in a container", "yes", via="this host"))
            if evidence.container
            else None,
            cause(
                "gpu-unused/suspend",
                seen("time that the machine slept", evidence.slept_s, unit="s", via="this host"),
                share=0.2,
                check="`modprobe -r nvidia_uvm && modprobe nvidia_uvm` and a restart of the server tell.",
            )
            if evidence.slept_s and evidence.platform == "linux" and not embedded
            else None,
            cause(
                "gpu-unused/not-found",
                check="The start of the server's log (`inference compute`) lists the devices that it found.",
            )
            if cpu_only is None and not embedded
            else None,
        ]
    )
    remedies = [Remedy("Check the driver (`nvidia-smi`), then restart the server and read the start of its log.")]
    if evidence.container:
        remedies.insert(0, Remedy("Start the container with the GPU (`--gpus all`)."))
    if any(each.id == "gpu-unused/suspend" for each in causes):
        remedies.insert(0, Remedy(_LOST_CURE["gpu-lost/suspend"]))
    if embedded:
        remedies = [
            Remedy(
                "The embedded engine from the package index runs on the CPU; a server built for this GPU is "
                "many times faster."
            )
        ]
    yield Finding(
        "gpu-unused",
        "notice" if embedded else "warn",
        "The model runs on the CPU although this machine has a GPU",
        tuple(each for each in (lies.evidence if lies is not None else None, usage) if each is not None),
        cause=first_supported(causes),
        causes=causes,
        remedies=tuple(remedies),
    )


_LANE_BYTES = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
"""Bytes a second of one PCIe lane by generation."""


def pcie_bottleneck(evidence: EvidenceSet) -> Iterator[Finding]:
    """The bus is what binds: a model split without need, or a link that is narrow and really used under load."""
    loads = gpu_load(evidence)
    yield from _needless_split(evidence)
    for uuid, samples in loads.items():
        info = info_of(evidence, uuid)
        generations = gpu_numbers(samples, lambda each: each.pcie_gen)
        widths = gpu_numbers(samples, lambda each: each.pcie_width)
        traffic = [
            (each.at, max(number(each.pcie_rx_bytes_s) or 0.0, number(each.pcie_tx_bytes_s) or 0.0))
            for each in samples
            if number(each.pcie_rx_bytes_s) is not None or number(each.pcie_tx_bytes_s) is not None
        ]
        if not generations or not widths or len(traffic) < 3:
            continue
        generation, width = median(v for _, v in generations), median(v for _, v in widths)
        carries = _LANE_BYTES.get(int(generation), 0.0) * width
        if carries <= 0:
            continue
        used = median(value for _, value in traffic) / carries
        if used < limit("pcie-use"):
            continue
        widest = number(info.pcie_max_width) if info is not None else None
        newest = number(info.pcie_max_gen) if info is not None else None
        narrow = (widest is not None and width < widest) or (newest is not None and generation < newest)
        lies = placement(evidence)
        shown = seen(
            "use of the link under load", used, over="pcie-use", via="NVML", window_s=span(samples), series=traffic
        )
        link = seen(
            "link under load",
            f"generation {generation:.0f} x{width:.0f}",
            threshold=f"generation {newest:.0f} x{widest:.0f}" if newest and widest else None,
            via="NVML",
        )
        causes = ranked(
            [
                cause("pcie-bottleneck/narrow-link", link, shown, share=0.6) if narrow else None,
                cause(
                    "pcie-bottleneck/spill-traffic",
                    shown,
                    lies.evidence if lies is not None and not lies.whole else None,
                    share=0.5 if lies is not None and not lies.whole else 0.3,
                ),
            ]
        )
        yield Finding(
            "pcie-bottleneck",
            "warn",
            f"The link to {gpu_name(evidence, uuid)} is busy for {used:.0%} of what it carries",
            (shown, link),
            cause=first_supported(causes),
            causes=causes,
            subject=uuid,
            remedies=(
                *tuple([Remedy("Put the card into the slot with all lanes, or check the riser.")] if narrow else []),
                Remedy("Keep the whole model on one GPU: a smaller window, quant or model."),
            ),
        )


def _needless_split(evidence: EvidenceSet) -> Iterator[Finding]:
    """Engine memory on two GPUs though the larger could hold it all, and the rate is below what it was or could be."""
    if not evidence.engine_pids or not local(evidence):
        return
    newest = {each.uuid: each for each in evidence.gpu_samples}
    held: dict[str, float] = {}
    for sample in newest.values():
        if isinstance(sample.processes, tuple):
            part = sum(
                size
                for each in sample.processes
                if each.pid in evidence.engine_pids and (size := number(each.vram_bytes)) is not None
            )
            if part > 512 * 1024**2:
                held[sample.uuid] = part
    if len(held) < 2:
        return
    whole = sum(held.values())
    room = {
        uuid: (number(newest[uuid].vram_free_bytes) or 0.0) + part - limit("vram-margin") for uuid, part in held.items()
    }
    if max(room.values()) < whole:
        return
    rates = [rate for _, rate in steady_rates(evidence)]
    base = own_baseline(evidence, "decode_tok_s")
    slow: Evidence | None = None
    if rates and base is not None and median(rates) < (1 - limit("rate-drop")) * base.value:
        slow = seen("decode rate", median(rates), threshold=base.value, unit="tok/s", via=base.via)
    elif rates and evidence.roof_tok_s and median(rates) < limit("roof-share") * evidence.roof_tok_s:
        slow = seen(
            "decode rate",
            median(rates),
            threshold=limit("roof-share") * evidence.roof_tok_s,
            unit="tok/s",
            via="bandwidth roof",
        )
    shown = seen("GPUs that hold the model", float(len(held)), threshold=1.0, via="NVML")
    needed = seen("memory that it takes", whole, threshold=max(room.values()), unit="bytes", via="NVML")
    causes = (cause("pcie-bottleneck/needless-split", shown, needed, slow),)
    yield Finding(
        "pcie-bottleneck",
        "warn" if slow is not None else "notice",
        "The model is spread over several GPUs although one would hold it",
        tuple(each for each in (shown, needed, slow) if each is not None),
        cause=causes[0].id,
        causes=causes,
        remedies=(Remedy(_ONE_GPU.get(evidence.server.kind if evidence.server is not None else "", _ONE_GPU[""])),),
    )


_ONE_GPU = {
    "": "Show the server one GPU only (CUDA_VISIBLE_DEVICES).",
    "ollama": "Leave OLLAMA_SCHED_SPREAD off, or show the server one GPU only (CUDA_VISIBLE_DEVICES).",
    "llama_server": "Start it with `--split-mode none`, or show it one GPU only (CUDA_VISIBLE_DEVICES).",
}
"""What keeps a model on one GPU, by the kind of the server."""

RULES = (gpu_lost, driver_mismatch, gpu_unused, pcie_bottleneck)
