"""What others do: the CPU, the GPU, the server's slots, its queue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, median

from chimera.domain.finding import Cause, Evidence, Finding, Remedy, Severity
from chimera.domain.readings import number
from chimera.domain.telemetry import GpuSample

from .causes import cause, first_supported, ranked
from .evidence import EvidenceSet, Request
from .remedies import threads
from .thresholds import limit
from .views import (
    by_time,
    crowds,
    duration,
    engine_gpus,
    focus,
    foreign_share,
    gpu_load,
    host_load,
    numbers,
    options_in_force,
    percent,
    placement,
    plain,
    rate_fell,
    seconds,
    seen,
    server_load,
)


def on_cpu(evidence: EvidenceSet) -> bool:
    """The model runs on the CPU, at least in part: others' CPU time then costs tokens."""
    if not evidence.gpu_infos:
        return True
    lies = placement(evidence)
    if lies is not None:
        return not lies.whole
    return evidence.server is not None and evidence.server.kind == "embedded"


def foreign_load(evidence: EvidenceSet) -> Iterator[Finding]:
    """Other programs, clients or guests took a share of what the requests needed."""
    fell, rate = rate_fell(evidence)
    cpu = _cpu(evidence)
    gpu = _gpu(evidence)
    steal = _above(evidence, "steal", "CPU time that the hypervisor gave to others")
    memory = _memory(evidence)
    stall = shared_batch(evidence)
    clients = _clients(evidence)
    causes = ranked(
        [
            cause("foreign-load/cpu", cpu, share=_value(cpu) / 100) if cpu is not None else None,
            cause("foreign-load/threads", _threads(evidence), cpu, share=0.1)
            if cpu is not None and _threads(evidence) is not None
            else None,
            *gpu,
            cause("foreign-load/steal", steal, share=_value(steal) / 100) if steal is not None else None,
            cause("foreign-load/memory", *memory, share=0.2) if memory else None,
            cause("foreign-load/shared-batch", stall, share=0.5) if stall is not None else None,
            cause("foreign-load/client", *clients, share=0.4) if clients else None,
        ]
    )
    if not causes:
        return
    heavy = (
        (cpu is not None and on_cpu(evidence) and _value(cpu) >= limit("foreign-cpu-heavy"))
        or any(_value(each.speaks_for[0]) >= limit("foreign-sm-heavy") for each in gpu)
        or (steal is not None and _value(steal) >= limit("foreign-cpu-heavy"))
        or stall is not None
        or bool(fell)
    )
    severity: Severity = "warn" if heavy else "notice"
    first = causes[0]
    share = _value(first.speaks_for[0])
    titles = {
        "foreign-load/cpu": f"Other programs used {share:.0f} % of the CPU while requests ran",
        "foreign-load/gpu": f"Other programs used {share:.0f} % of the GPU while requests ran",
        "foreign-load/steal": f"The hypervisor gave {share:.0f} % of the CPU to other guests",
        "foreign-load/memory": "The machine is short of memory while requests run",
        "foreign-load/shared-batch": "Another client's prompt stopped the stream for " + seconds(share),
        "foreign-load/client": "Another client used the server meanwhile",
        "foreign-load/threads": "Threads wait for cores that other programs use",
    }
    remedies: list[Remedy] = []
    names = {each.id for each in causes}
    if cpu is not None:
        remedies.append(Remedy("End or pause the other programs; `top` names them."))
        if on_cpu(evidence):
            remedies.extend(threads(evidence, _value(cpu)))
    if "foreign-load/gpu" in names:
        remedies.append(Remedy("End the other GPU programs, or move them to another GPU (CUDA_VISIBLE_DEVICES)."))
    if "foreign-load/memory" in names:
        remedies.append(Remedy("Free memory: close programs, or take a smaller model or window."))
    if stall is not None:
        remedies.append(
            Remedy("A smaller batch shortens the stops; a server of its own ends them.", {"num_batch": 128})
        )
    if clients:
        remedies.append(Remedy("Measure while no other client uses the server, or start one of your own."))
    if steal is not None:
        remedies.append(Remedy("A guest with cores of its own; nothing on this side helps."))
    yield Finding(
        "foreign-load",
        severity,
        titles[first.id],
        tuple(
            each
            for each in (*first.speaks_for, *(c.speaks_for[0] for c in causes[1:] if c.speaks_for), rate)
            if each is not None
        ),
        cause=first.id,
        causes=causes,
        remedies=tuple(remedies),
    )


def _value(evidence: Evidence | None) -> float:
    return float(evidence.value) if evidence is not None and isinstance(evidence.value, int | float) else 0.0


def _cpu(evidence: EvidenceSet) -> Evidence | None:
    values = foreign_share(evidence)
    if not values or (len(values) < 2 and len(evidence.requests) > 2):
        return None
    share = fmean(value for _, value in values)
    over = "foreign-cpu" if on_cpu(evidence) else "foreign-cpu-gpu"
    if share < limit(over):
        return None
    return seen(
        "CPU used by other programs",
        share,
        over=over,
        unit="% of all cores",
        via="processes of this host",
        window_s=values[-1][0] - values[0][0],
        series=values,
    )


def _threads(evidence: EvidenceSet) -> Evidence | None:
    asked = options_in_force(evidence).num_thread
    cores = evidence.physical_cores
    if asked is None or cores is None or asked < cores or cores < 2 or not on_cpu(evidence):
        return None
    return seen("threads in force", float(asked), threshold=float(cores - 1), via="settings", source="derived")


def _gpu(evidence: EvidenceSet) -> list[Cause]:
    """Compute processes that are not the server's; none where the server's own are not known, as of several servers."""
    if not evidence.engine_pids or (evidence.workload is not None and evidence.workload.instances > 1):
        return []
    ours = evidence.engine_pids | evidence.own_pids
    found: list[Cause] = []
    names: set[str] = set()
    busy = gpu_load(evidence)
    lists = {
        uuid: [one.processes for one in samples if isinstance(one.processes, tuple)] for uuid, samples in busy.items()
    }
    for uuid in engine_gpus(lists, evidence.engine_pids):
        looks = _foreign_sm(busy[uuid], ours)
        mine = {name for _, value, name in looks if value > 0}
        names |= mine
        if len(looks) >= 2 and (share := fmean(value for _, value, _ in looks)) >= limit("foreign-sm"):
            series = [(at, value) for at, value, _ in looks]
            found.append(_foreign_gpu(share, mine, window_s=looks[-1][0] - looks[0][0], series=series))
    # Lists are not read while a request is timed: of a short run there are those of its sessions' ends.
    ends = [one.foreign_gpu_percent for one in evidence.sessions if one.foreign_gpu_percent is not None]
    if not found and ends and (share := fmean(ends)) >= limit("foreign-sm"):
        found.append(_foreign_gpu(share, names))
    return found


def _foreign_gpu(
    share: float, names: set[str], *, window_s: float | None = None, series: Sequence[tuple[float, float]] = ()
) -> Cause:
    return cause(
        "foreign-load/gpu",
        seen(
            "GPU used by other programs",
            share,
            over="foreign-sm",
            via="NVML processes",
            window_s=window_s,
            series=series,
        ),
        seen("they are", ", ".join(plain(each, 40) for each in sorted(names)[:3]), via="NVML processes")
        if names
        else None,
        share=share / 100,
    )


def _foreign_sm(samples: Sequence[GpuSample], ours: frozenset[int]) -> list[tuple[float, float, str]]:
    """When a list of processes was read, what others computed by it, and the one that did most; each list once."""
    found: dict[float, tuple[float, float, str]] = {}
    for sample in samples:
        at = sample.at if sample.processes_at is None else sample.processes_at
        if not isinstance(sample.processes, tuple) or at in found:
            continue
        others = [
            (value, each.name or f"pid {each.pid}")
            for each in sample.processes
            # One that cannot be tied to a process seen from here may be the engine itself.
            if each.pid not in ours and each.name != "?" and (value := number(each.sm_percent)) is not None
        ]
        # The driver's rows can be garbage: no sum is above the whole GPU.
        total = min(100.0, sum(value for value, _ in others if value <= 100))
        found[at] = (at, total, max(others)[1] if others else "")
    return list(found.values())


def _above(evidence: EvidenceSet, over: str, what: str) -> Evidence | None:
    values = numbers(host_load(evidence), lambda each: each.steal_percent)
    if len(values) < 2:
        return None
    share = fmean(value for _, value in values)
    if share < limit(over):
        return None
    return seen(what, share, over=over, via="this host", window_s=values[-1][0] - values[0][0], series=values)


def _memory(evidence: EvidenceSet) -> list[Evidence]:
    samples = host_load(evidence)
    pressure = numbers(samples, lambda each: each.pressure_memory)
    if len(pressure) < 2 or fmean(value for _, value in pressure) < limit("memory-pressure"):
        return []
    found = [
        seen(
            "time in which a task waited for memory",
            fmean(value for _, value in pressure),
            via="PSI",
            over="memory-pressure",
            window_s=pressure[-1][0] - pressure[0][0],
            series=pressure,
        )
    ]
    swap = numbers(samples, lambda each: each.swap_used_bytes)
    if swap:
        found.append(seen("swap in use", swap[-1][1], unit="bytes", via="this host"))
    return found


def shared_batch(evidence: EvidenceSet) -> Evidence | None:
    """A stream stood still while another slot of the server computed a prompt."""
    offset = evidence.clock_offset_s
    if offset is None:
        return None
    worst: tuple[float, Request] | None = None
    for each in evidence.requests:
        longest, usual = each.measurement.itl_max_s, each.measurement.itl_p50_s
        if longest is None or usual is None or usual <= 0:
            continue
        if longest < limit("stall") or longest < limit("stall-ratio") * usual:
            continue
        start = each.measurement.started_at - offset
        end = start + each.measurement.total_s
        others = any(
            sum(slot.busy for slot in sample.slots) > 1 and any(slot.busy and not slot.decoded for slot in sample.slots)
            for sample in evidence.server_samples
            if start <= sample.at <= end
        )
        if others and (worst is None or longest > worst[0]):
            worst = (longest, each)
    if worst is None:
        return None
    return seen(
        "longest gap between two tokens",
        worst[0],
        over="stall",
        via="own timings, /slots",
        window_s=worst[1].measurement.total_s,
    )


def _clients(evidence: EvidenceSet) -> list[Evidence]:
    """Requests that were void because of another client, or more busy slots than we had requests in flight."""
    shown: list[Evidence] = []
    void = [each for each in evidence.requests if each.measurement.void_reason == "foreign-client"]
    if void:
        shown.append(
            seen(
                "requests with another client beside them",
                float(len(void)),
                threshold=0.0,
                via="own timings, /slots",
                window_s=duration(list(evidence.requests)),
            )
        )
    if evidence.requests and evidence.clock_offset_s is not None:
        agents = evidence.workload.agents if evidence.workload is not None else 1
        busy = [(sample.at, value) for sample in server_load(evidence) if (value := number(sample.busy)) is not None]
        extra = [value for _, value in busy if value > agents]
        if len(extra) >= 2 and len(extra) >= 0.2 * len(busy):
            shown.append(
                seen(
                    "requests that the server worked on", max(extra), threshold=float(agents), via="/slots", series=busy
                )
            )
    return shown


def queueing(evidence: EvidenceSet) -> Iterator[Finding]:
    """Requests waited for a slot for a felt part of their time to first token, or the server turned them away."""
    several = crowds(evidence)
    name = max(several, key=lambda one: _waited(evidence, one)) if several else focus(evidence)
    counted = _queued(evidence, name)
    waits = [(each, each.measurement.queue_s or 0.0) for each in counted]
    long = [
        (each, wait)
        for each, wait in waits
        if wait >= limit("queue-seconds")
        and wait >= limit("queue-share") * (each.measurement.ttft_s or each.measurement.total_s)
    ]
    refused = [each for each in evidence.failures if each.status == 503 or "server busy" in each.text.lower()]
    loading = [each for each in refused if "loading" in each.text.lower()]
    refused = [each for each in refused if each not in loading]
    waiting = [
        (sample.at, value) for sample in evidence.server_samples if (value := number(sample.waiting)) is not None
    ]
    queued = [value for _, value in waiting if value > 0]
    felt = len(long) >= max(2, 0.1 * len(waits)) or (len(waits) == 1 and len(long) == 1)
    seen_waiting = len(queued) >= 3 and len(queued) >= 0.2 * len(waiting)
    unequal = _unequal(evidence, name if felt else None)
    if not felt and not refused and not seen_waiting and not unequal:
        return
    agents = several.get(name) or (evidence.workload.agents if evidence.workload is not None else 1)
    slots = _slots(evidence, name)
    shown: list[Evidence] = []
    if felt:
        typical = median(wait for _, wait in long)
        part = median(wait / max(wait, each.measurement.ttft_s or each.measurement.total_s) for each, wait in long)
        shown.append(
            seen(
                "wait for a slot",
                typical,
                over="queue-seconds",
                via="own timings",
                source="derived",
                unit="s",
                window_s=duration(counted),
                series=by_time(waits),
            )
        )
        shown.append(
            seen("its part of the time to first token", part, over="queue-share", via="own timings", source="derived")
        )
        title = f"{len(long)} of {len(waits)} requests waited for a slot, typically {seconds(typical)}"
    elif refused:
        title = "The server turned requests away because it is busy"
    elif unequal and not seen_waiting:
        title = "Agents with the same work get unequal shares of the server"
    else:
        title = f"Up to {max(queued):.0f} requests wait in the server's queue"
    if refused:
        shown.append(seen("the server said", refused[-1].text, via="server's answer"))
    if queued:
        shown.append(seen("requests in the queue", max(queued), threshold=0.0, via="server", series=waiting))
    shown += unequal
    clients = _clients(evidence)
    slot = seen("slots", float(slots), threshold=float(agents), via="settings") if slots is not None else None
    causes = ranked(
        [
            cause(
                "queueing/slots",
                seen("own clients at once", float(agents), threshold=float(slots or 1), via="workload"),
                slot,
                share=0.8,
            )
            if agents > (slots or 1) and (felt or refused or seen_waiting)
            else None,
            cause("queueing/foreign-client", *clients, share=0.7)
            if clients
            else cause("queueing/foreign-client", check="The server's /slots show who holds them while we wait.")
            if agents <= (slots or 1) and felt
            else None,
            cause("queueing/server-busy", seen("the server said", refused[-1].text, via="server's answer"), share=0.9)
            if refused
            else None,
            cause(
                "queueing/slots",
                seen("requests in the queue", max(queued), threshold=0.0, via="server"),
                slot,
                share=0.6,
            )
            if queued and not felt and agents <= (slots or 1)
            else None,
            cause("queueing/unfair", *unequal, share=0.5) if unequal else None,
        ]
    )
    remedies: list[Remedy] = []
    wanted = min(4, max(2, agents))
    if (felt or refused or seen_waiting) and (slots is None or slots < wanted):
        remedies.append(
            Remedy(
                f"{wanted} slots serve that many requests at once; compare the aggregate rate, each gets slower.",
                {"num_parallel": wanted},
            )
        )
    if unequal:
        remedies.append(Remedy("Compare the agents' instances: same GPU layers, same window, nothing beside them."))
    remedies.append(Remedy("A second server doubles the weights in memory; measure both ways."))
    if refused:
        ollama = evidence.server is not None and evidence.server.kind == "ollama"
        more = "; OLLAMA_MAX_QUEUE allows more to wait" if ollama else ""
        remedies.append(Remedy(f"Wait a little and send again{more}."))
    share = (
        sum(wait for _, wait in long) / max(1e-9, sum(each.measurement.total_s for each, _ in waits)) if waits else 0
    )
    yield Finding(
        "queueing",
        "warn" if refused or len(long) >= 2 else "notice",
        title + (f" ({percent(share)} of all time)" if felt else ""),
        tuple(shown),
        cause=first_supported(causes),
        causes=causes,
        remedies=tuple(remedies),
    )


def _queued(evidence: EvidenceSet, name: str) -> list[Request]:
    """Measured requests of a candidate whose wait for a slot is known."""
    return [
        each
        for each in evidence.requests
        if each.candidate == name and each.measurement.role == "measure" and each.measurement.queue_s is not None
    ]


def _waited(evidence: EvidenceSet, name: str) -> float:
    waits = [each.measurement.queue_s or 0.0 for each in _queued(evidence, name)]
    return fmean(waits) if waits else 0.0


def _slots(evidence: EvidenceSet, name: str) -> int | None:
    """Slots that a candidate ran with."""
    for each in reversed(evidence.sessions):
        if each.candidate == name and each.effective is not None and each.effective.options.num_parallel is not None:
            return each.effective.options.num_parallel
    return options_in_force(evidence).num_parallel


def _unequal(evidence: EvidenceSet, only: str | None) -> list[Evidence]:
    """That agents of one candidate (any, or this one) got unequal shares, in the median session; empty else.

    Fairness is Jain's index, (sum x)^2 / (n sum x^2), over what each agent got a second; one that got no answer at all
    is a failure and has its own finding.
    """
    found: list[tuple[float, float, float]] = []
    for name in crowds(evidence):
        if only is not None and name != only:
            continue
        seen_here = sorted(_shares(evidence, name))
        if seen_here:
            found.append(seen_here[len(seen_here) // 2])
    if not found or min(found)[0] >= limit("fair-share"):
        return []
    index, least, most = min(found)
    return [
        seen("fairness of the agents' shares", index, over="fair-share", via="own timings", source="derived"),
        seen("least share", least, threshold=most, unit="tok/s", via="own timings", source="derived"),
    ]


def _shares(evidence: EvidenceSet, name: str) -> Iterator[tuple[float, float, float]]:
    """Jain's index, least and largest rate of the agents in each session of a candidate."""
    sessions: dict[int, dict[int, list[Request]]] = {}
    for each in evidence.requests:
        if each.candidate == name and each.measurement.valid:
            sessions.setdefault(each.session, {}).setdefault(each.measurement.agent, []).append(each)
    for agents in sessions.values():
        rates = [
            sum(each.measurement.completion_tokens or 0 for each in mine) / span_s
            for mine in agents.values()
            if (span_s := duration(mine))
        ]
        squares = sum(rate * rate for rate in rates)
        if len(rates) > 1 and squares > 0:
            yield sum(rates) ** 2 / (len(rates) * squares), min(rates), max(rates)


RULES = (foreign_load, queueing)
