"""The table of known symptoms: for each row the cause that names it, evidence that fires it, and a near miss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from chimera.diagnosis.evidence import EngineStart, EvidenceSet, Failure, LogLine, Neighbour, Request
from chimera.diagnosis.rules import CODES, diagnose
from chimera.domain.finding import Severity
from chimera.domain.options import Options
from chimera.domain.readings import Missing
from chimera.domain.server import Effective, ServerInfo
from chimera.domain.telemetry import GpuProcess, SlotState
from chimera.domain.workload import Workload

from .builders import (
    GIB,
    GPU,
    MODEL,
    OFFSET,
    WALL,
    cpu_only,
    gpu,
    gpus,
    healthy,
    hosts,
    measurement,
    past,
    rates,
    requests,
    servers,
)


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the table."""

    row: str
    """`A1` to `F7`; `-` for codes that no row has."""
    names: str
    """A cause that something must speak for; with `?` at its end one whose check must be named."""
    fires: EvidenceSet
    miss: EvidenceSet
    """Near it, and yet not it."""
    severity: Severity | None = None
    """Of the finding that names it, where that tells it from its near miss."""


def names(evidence: EvidenceSet, case: Case) -> bool:
    cause = case.names.removesuffix("?")
    return any(
        each.id == cause and (bool(each.check) if case.names.endswith("?") else bool(each.speaks_for))
        for finding in diagnose(evidence)
        if case.severity in (None, finding.severity)
        for each in finding.causes
    )


def each_with(rows: Sequence[Request], *changes: dict[str, Any]) -> tuple[Request, ...]:
    """Each request's measurement with its own changes."""
    return tuple(
        replace(one, measurement=replace(one.measurement, **change)) for one, change in zip(rows, changes, strict=True)
    )


def log(*lines: str) -> tuple[LogLine, ...]:
    return tuple(LogLine(line) for line in lines)


def starts(*flags: dict[str, str]) -> tuple[EngineStart, ...]:
    return tuple(EngineStart(WALL + 20 * i, 100 + i, each) for i, each in enumerate(flags))


SLOW = requests(decode_tok_s=40.0, client_decode_tok_s=40.0)
SLOW_CPU = {"requests": SLOW, "baseline_tok_s": 80.0}
FULL = gpus(vram_used_bytes=11.7 * GIB, vram_free_bytes=0.2 * GIB)
OOM = Failure("llama-server process has terminated: cudaMalloc failed: out of memory", WALL, 500, True, Options())


def first_token(total: float = 3.0, **parts: Any) -> tuple[Request, ...]:
    return requests(5, gap_s=5.0, ttft_s=total, total_s=total + 1, **{"prefill_s": 0.1, **parts})


def out_of_memory(**changes: Any) -> EvidenceSet:
    return healthy(**{"requests": (), "failures": (OOM,), "server_samples": (), "effective": None, **changes})


def fell(**changes: Any) -> EvidenceSet:
    """On the GPU for six samples, then on the CPU although its memory is free."""
    samples = servers(6) + servers(12, vram=0.0)[6:]
    free = gpus(vram_free_bytes=11 * GIB)
    return healthy(**{"server_samples": samples, "gpu_samples": free, **changes})


def loads(*at: tuple[float, float]) -> tuple[Request, ...]:
    """Requests 100 s apart, those named with a load of so many seconds."""
    took = dict(at)
    rows = requests(8, gap_s=100.0)
    return each_with(
        rows, *({"load_s": took[i], "cold": True, "ttft_s": took[i] + 0.2} if i in took else {} for i in range(8))
    )


def reloads() -> tuple[Request, ...]:
    return each_with(
        requests(8, gap_s=6.0),
        *({"load_s": 3.0, "cold": True, "ttft_s": 3.2, "total_s": 4.0} if i > 3 else {} for i in range(8)),
    )


def windows(*contexts: float) -> tuple[Any, ...]:
    return tuple(
        replace(servers(1, context=context)[0], at=1000.0 + 5 * i) for i, context in enumerate(contexts)
    )  # fmt: skip


def before_first_load(there: bool) -> tuple[Any, ...]:
    """The server's list of models beside request 2, which loads: it was there, then (or not) gone, then there."""
    held = servers(1)[0]
    gone = replace(held, models=())
    return (
        replace(held, at=1010.0),
        replace(held if there else gone, at=1195.0),
        replace(held, at=1210.0),
    )


def lengths(*tokens: int, rate: Any = lambda i: 40.0) -> tuple[Request, ...]:
    rows = requests(len(tokens))
    return each_with(rows, *({"prompt_tokens": n, "decode_tok_s": rate(i)} for i, n in enumerate(tokens)))


TURNS = tuple(
    {"prompt_tokens": 2000 + 300 * i, "ttft_s": 4.0 + i, "prefill_s": 3.9 + i, "total_s": 6.0 + i} for i in range(5)
)
REUSED = tuple({**each, "cached_tokens": 190} for each in TURNS)
SPLIT = replace(GPU, uuid="GPU-2", index=1)


def two_gpus(held: float, **changes: Any) -> EvidenceSet:
    ours = gpus(processes=(GpuProcess(77, "llama-server", held),), **changes)
    pair = ours + tuple(replace(each, uuid="GPU-2") for each in ours)
    return healthy(gpu_infos=(GPU, SPLIT), gpu_samples=pair, requests=SLOW)


FROZEN = each_with(
    requests(8, gap_s=4.2), *({"itl_max_s": 3.5 if i == 3 else 0.02, "total_s": 4.0} for i in range(8))
)  # fmt: skip


def slots(second_busy: bool) -> tuple[Any, ...]:
    states = (SlotState(0, True, 1, 80, 0, 40), SlotState(1, second_busy, 2, 3000, 0, 0))
    return tuple(
        replace(servers(1)[0], at=1000.0 + i, busy=1.0 + second_busy, slots=states, models=Missing("unsupported"))
        for i in range(34)
    )


def counters(reason: str, step: float, **changes: Any) -> tuple[Any, ...]:
    return tuple(gpu(i, throttle_s={reason: step * i}, **changes) for i in range(12))


def clocks(*mhz: float, **changes: Any) -> tuple[Any, ...]:
    none = Missing("unsupported")
    return tuple(gpu(i, sm_mhz=each, reasons=none, throttle_s={}, **changes) for i, each in enumerate(mhz))


FALLING = requests(12, gap_s=1.0)
FALLING = each_with(FALLING, *({"decode_tok_s": 80.0 if i < 6 else 60.0} for i in range(12)))
LONG = requests(16)
SLOW_CLOCKS = gpus(16, sm_mhz=900.0, pstate=5.0, reasons=Missing("unsupported"), throttle_s={})


def failed(text: str) -> EvidenceSet:
    broken = Request(measurement(20.0, void_reason="error", error=text), 1, "c0", 1)
    return healthy(requests=(*requests(), broken))


CUT = tuple(
    replace(each, tokens_sent=902, output_tokens=64, measurement=replace(each.measurement, prompt_tokens=131))
    for each in requests(3)
)
SMALL = {"effective": Effective(Options(num_ctx=256)), "model": replace(MODEL, vision=False), "history": ()}
SHORT = tuple(replace(each, output_tokens=8) for each in requests(completion_tokens=8))
ENOUGH = tuple(replace(each, output_tokens=20) for each in requests(completion_tokens=20))
BUSY = {"host_samples": hosts(foreign_cpu_percent=45.0)}
OFFLOADED = {"requests": SLOW, "gpu_samples": gpus(utilization=30.0)}
XID = gpus(xids=(79,))

CASES = (
    # A: low throughput
    Case("A1", "low-throughput/cpu-offload", healthy(**OFFLOADED, server_samples=servers(vram=2.4e9)),
         healthy(**OFFLOADED)),
    Case("A1", "cpu-offload/not-enough-memory",
         healthy(server_samples=servers(vram=2.4e9), gpu_samples=FULL), healthy(gpu_samples=FULL)),
    Case("A2", "gpu-unused/not-found",
         healthy(server_samples=servers(vram=0.0), log=log('msg="inference compute" id=0 library=cpu')),
         healthy(server_samples=servers(vram=0.0), log=log('msg="inference compute" id=0 library=CUDA'))),
    Case("A2", "gpu-unused/container", healthy(server_samples=servers(vram=0.0), container=True),
         healthy(server_samples=servers(), container=True)),
    Case("A3", "gpu-lost/suspend", fell(resumed_at=OFFSET + 1006.0), fell(resumed_at=OFFSET + 100.0)),
    Case("A3", "gpu-unused/suspend", healthy(server_samples=servers(vram=0.0), slept_s=5000.0),
         healthy(server_samples=servers(vram=0.0), slept_s=0.0)),
    Case("A4", "gpu-lost/container", fell(container=True), fell(container=False)),
    Case("A5", "low-throughput/long-context",
         healthy(requests=lengths(*range(64, 6400, 700), rate=lambda i: 60.0 / (1 + i / 8)), baseline_tok_s=80.0),
         healthy(requests=lengths(*range(64, 6400, 700)), baseline_tok_s=80.0)),
    Case("A6", "pcie-bottleneck/needless-split", two_gpus(2 * GIB),
         two_gpus(5.4 * GIB, vram_free_bytes=1 * GIB)),
    Case("A7", "low-throughput/threads", cpu_only(**SLOW_CPU, requested=Options(num_thread=16)),
         cpu_only(**SLOW_CPU, requested=Options(num_thread=8))),
    Case("A7", "low-throughput/threads",
         cpu_only(**SLOW_CPU, requested=Options(num_thread=8), host_samples=hosts(cpu_limit_cores=2.0)),
         cpu_only(**SLOW_CPU, requested=Options(num_thread=2), host_samples=hosts(cpu_limit_cores=2.0))),
    Case("A7", "low-throughput/threads?", cpu_only(**SLOW_CPU, host_samples=hosts(per_core_percent=(50.0,) * 16)),
         cpu_only(**SLOW_CPU, host_samples=hosts(per_core_percent=(50.0,) * 8))),
    Case("A8", "server-regression/version", healthy(requests=SLOW, history=(past(80.0, version="0.32.0"),)),
         healthy(requests=requests(decode_tok_s=75.0), history=(past(80.0, version="0.32.0"),))),
    Case("A8", "low-throughput/server-regression", healthy(requests=SLOW, history=(past(80.0, version="0.32.0"),)),
         healthy(requests=SLOW, history=(past(80.0),))),
    Case("A9", "low-throughput/kv-quantised", cpu_only(**SLOW_CPU, requested=Options(kv_cache_type="q4_0")),
         cpu_only(**SLOW_CPU, requested=Options(kv_cache_type="f16"))),
    Case("A9", "low-throughput/kv-quantised",
         healthy(**SLOW_CPU, requested=Options(kv_cache_type="q8_0"),
                 gpu_infos=(replace(GPU, architecture="Pascal"),)),
         healthy(**SLOW_CPU, requested=Options(kv_cache_type="q8_0"),
                 gpu_infos=(replace(GPU, architecture="Ampere"),))),
    Case("A10", "low-throughput/foreign-load", cpu_only(**SLOW_CPU, **BUSY),
         cpu_only(**SLOW_CPU, host_samples=hosts(foreign_cpu_percent=10.0))),
    Case("A10", "foreign-load/gpu", healthy(gpu_samples=gpus(processes=(GpuProcess(9, "train", 1e9, 35.0),))),
         healthy(gpu_samples=gpus(processes=(GpuProcess(77, "llama-server", 1e9, 35.0),)))),
    Case("A11", "low-throughput/background-class?", healthy(**SLOW_CPU, platform="windows"),
         healthy(**SLOW_CPU, platform="linux")),
    # B: time to first token
    Case("B1", "reload-thrash/other-options",
         healthy(requests=reloads(), server_samples=windows(4096, 8192, 4096, 8192)),
         healthy(requests=reloads(), server_samples=windows(4096, 4096, 4096, 4096))),
    Case("B1", "reload-thrash/other-options",
         EvidenceSet(engine_starts=starts({"-c": "4096"}, {"-c": "8192"}, {"-c": "4096"})),
         EvidenceSet(engine_starts=starts({"-c": "4096"}, {"-c": "8192"}, {"-c": "16384"}))),
    Case("B1", "high-ttft/reload-thrash", healthy(requests=reloads(), history=()),
         healthy(requests=loads((0, 3.0)), history=(), clock_offset_s=None)),
    Case("B2", "reload-thrash/other-options?", healthy(requests=reloads()), healthy(requests=loads((3, 3.0)))),
    Case("B3", "cold-load/keep-alive", healthy(requests=loads((2, 3.0)), server_samples=before_first_load(False)),
         healthy(requests=requests(8, gap_s=100.0), server_samples=before_first_load(False))),
    Case("B3", "cold-load/keep-alive",
         healthy(requests=each_with(requests(2, gap_s=30.0), {}, {"load_s": 3.0, "cold": True}),
                 server_samples=(servers(1)[0], replace(servers(1)[0], at=1029.0, models=()))),
         healthy(requests=each_with(requests(2, gap_s=30.0), {}, {"load_s": 3.0, "cold": True}),
                 server_samples=(servers(1)[0], replace(servers(1)[0], at=1029.0)))),
    Case("B4", "cold-load/disk", healthy(requests=loads((2, 2.0), (5, 7.0))),
         healthy(requests=loads((2, 3.0), (5, 3.2)))),
    Case("B5", "queueing/slots", healthy(requests=first_token(queue_s=2.8), workload=Workload(agents=2)),
         healthy(requests=first_token(0.5, queue_s=0.1), workload=Workload(agents=2))),
    Case("B5", "high-ttft/queueing", healthy(requests=first_token(queue_s=2.8)),
         healthy(requests=first_token(prefill_s=2.8))),
    Case("B6", "queueing/server-busy", healthy(failures=(Failure("server busy, please try again.", WALL, 503),)),
         healthy(failures=(Failure("Loading model", WALL, 503),))),
    Case("B7", "high-ttft/no-prefix-reuse",
         healthy(requests=each_with(requests(5, gap_s=12.0), *TURNS), baseline_ttft_s=0.5),
         healthy(requests=each_with(requests(5, gap_s=12.0), *REUSED), baseline_ttft_s=0.5)),
    Case("B7", "high-ttft/no-prefix-reuse",
         healthy(requests=first_token(prefill_s=2.8), log=log("slot: forcing full prompt re-processing")),
         healthy(requests=first_token(queue_s=2.8), log=log("slot: forcing full prompt re-processing"))),
    Case("B8", "high-ttft/long-prompt",
         healthy(requests=first_token(prefill_s=2.8, prompt_tokens=4000), baseline_ttft_s=0.3),
         healthy(requests=first_token(queue_s=2.8, prompt_tokens=4000), baseline_ttft_s=0.3)),
    Case("B9", "high-ttft/thinking",
         healthy(requests=tuple(replace(each, answer_s=20.0) for each in first_token(prefill_s=2.8))),
         healthy(requests=tuple(replace(each, answer_s=3.1) for each in first_token(prefill_s=2.8)))),
    Case("B10", "high-ttft/not-streaming", healthy(requests=requests(ttft_s=0.99)),
         healthy(requests=requests(ttft_s=0.5))),
    # C: GPU memory
    Case("C1", "vram-exhaustion/explicit-layers",
         out_of_memory(failures=(replace(OOM, options=Options(num_gpu=80)),)), out_of_memory()),
    Case("C1", "vram-exhaustion/system-memory",
         healthy(gpu_samples=gpus(vram_free_bytes=0.1 * GIB, pcie_rx_bytes_s=6e9), platform="windows"),
         healthy(gpu_samples=gpus(vram_free_bytes=0.1 * GIB), platform="windows")),
    Case("C2", "vram-exhaustion/window",
         out_of_memory(requested=Options(num_ctx=65536), kv_bytes_per_token=136_000.0),
         out_of_memory(requested=Options(num_ctx=4096), kv_bytes_per_token=136_000.0)),
    Case("C3", "vram-exhaustion/two-servers", out_of_memory(neighbours=(Neighbour("http://h:2", "gemma3", 4e9),)),
         out_of_memory(neighbours=(Neighbour("http://h:2", "gemma3", 0.0),))),
    Case("C4", "vram-exhaustion/estimate", out_of_memory(forecast_bytes=5 * GIB),
         out_of_memory(forecast_bytes=9 * GIB)),
    Case("C5", "vram-exhaustion/accounting",
         healthy(gpu_samples=gpus(vram_free_bytes=0.2 * GIB, processes=(GpuProcess(77, "engine", 9.6e9),)),
                 server_samples=servers(size=13e9, vram=9e9)),
         healthy(gpu_samples=gpus(vram_free_bytes=0.2 * GIB, processes=(GpuProcess(77, "engine", 9.1e9),)),
                 server_samples=servers(size=13e9, vram=9e9))),
    Case("C6", "vram-exhaustion/context-collapse",
         healthy(requests=lengths(*[100] * 4, *[6000] * 4, rate=lambda i: 80.0 if i < 4 else 12.0), gpu_samples=FULL),
         healthy(requests=lengths(*[100] * 4, *[6000] * 4, rate=lambda i: 80.0 if i < 4 else 40.0),
                 gpu_samples=FULL)),
    Case("C7", "vram-exhaustion/made-room", healthy(log=log("msg=\"reducing automatic context and retrying once\"")),
         healthy(log=log("msg=\"vram-based default context\" default=4096"))),
    # D: inconsistency
    Case("D1", "cold-load/first-load", healthy(requests=loads((0, 3.0))),
         healthy(requests=each_with(requests(2), {"load_s": 0.3}, {}))),
    Case("D1", "inconsistent-performance/reloads",
         healthy(requests=each_with(requests(12), *({"load_s": 3.0 if i % 4 == 1 else 0.0, "cold": i % 4 == 1,
                                                     "ttft_s": 3.2 if i % 4 == 1 else 0.2} for i in range(12)))),
         healthy(requests=each_with(requests(12), *({"ttft_s": 0.2 + 0.01 * (i % 4)} for i in range(12))))),
    Case("D2", "prompt-cache-hit/shared-prefix", healthy(requests=requests(cached_tokens=30)),
         healthy(requests=requests(cached_tokens=1))),
    Case("D3", "measurement-noise/short-output", healthy(requests=SHORT), healthy(requests=ENOUGH)),
    Case("D4", "foreign-load/shared-batch", cpu_only(requests=FROZEN, server_samples=slots(True), history=()),
         cpu_only(requests=FROZEN, server_samples=slots(False), history=())),
    Case("D5", "inconsistent-performance/drift",
         healthy(requests=rates([80.0 - 2.5 * i for i in range(12)]), history=()),
         healthy(requests=rates([80.0 - 2.5 * (i % 2) for i in range(12)]), history=())),
    Case("D6", "inconsistent-performance/crash", failed("running the model: unexpected EOF"),
         failed("the answer was no JSON")),
    Case("D7", "foreign-load/threads", cpu_only(**BUSY, requested=Options(num_thread=8)),
         cpu_only(**BUSY, requested=Options(num_thread=4))),
    # E: heat and power
    Case("E1", "thermal-throttling/software", healthy(gpu_samples=counters("sw-thermal", 0.3)),
         healthy(gpu_samples=counters("sw-thermal", 0.005))),
    Case("E1", "thermal-throttling/hardware", healthy(gpu_samples=counters("hw-thermal", 0.3)),
         healthy(gpu_samples=counters("hw-thermal", 0.005))),
    Case("E1", "thermal-throttling/falling-clock",
         healthy(requests=requests(12), gpu_samples=clocks(*[1950.0] * 5, *[1700.0] * 5, temperature_c=84.0)),
         healthy(requests=requests(12), gpu_samples=clocks(*[1950.0] * 5, *[1700.0] * 5, temperature_c=75.0))),
    Case("E2", "power-throttling/cap",
         healthy(requests=FALLING, history=(), gpu_samples=counters("power-cap", 0.9, power_w=170.0)),
         healthy(history=(), gpu_samples=counters("power-cap", 0.9, power_w=170.0)), severity="warn"),
    Case("E3", "power-throttling/power-brake", healthy(gpu_samples=counters("power-brake", 0.2)),
         healthy(gpu_samples=counters("power-brake", 0.005))),
    Case("E3", "power-throttling/hardware-slowdown", healthy(gpu_samples=counters("hw-slowdown", 0.2)),
         healthy(gpu_samples=counters("hw-slowdown", 0.005))),
    Case("E4", "low-clocks/vgpu-licence",
         healthy(requests=LONG, gpu_samples=SLOW_CLOCKS, gpu_infos=(replace(GPU, name="GRID T4-16Q"),)),
         healthy(requests=LONG, gpu_samples=SLOW_CLOCKS, gpu_infos=(replace(GPU, name="NVIDIA A100-SXM4-40GB"),))),
    Case("E5", "thermal-throttling/software",
         healthy(requests=requests(12), history=(), gpu_samples=counters("sw-thermal", 0.3)),
         healthy(requests=FALLING, history=(), gpu_samples=counters("sw-thermal", 0.3)), severity="notice"),
    # F: settings
    Case("F1", "clamped-settings/num-gpu",
         healthy(requested=Options(num_gpu=80), effective=Effective(Options(num_gpu=35))),
         healthy(requested=Options(num_gpu=35), effective=Effective(Options(num_gpu=35)))),
    Case("F1", "cpu-offload/layers-are-not-gpus",
         healthy(server_samples=servers(vram=0.3e9), requested=Options(num_gpu=1)),
         healthy(server_samples=servers(vram=2e9), requested=Options(num_gpu=17))),
    Case("F2", "clamped-settings/vision-floor",
         healthy(requested=Options(num_ctx=512), effective=Effective(Options(num_ctx=2048))),
         healthy(requested=Options(num_ctx=2048), effective=Effective(Options(num_ctx=2048)))),
    Case("F2", "clamped-settings/trained-context",
         healthy(requested=Options(num_ctx=200_000), effective=Effective(Options(num_ctx=131072))),
         healthy(requested=Options(num_ctx=131072), effective=Effective(Options(num_ctx=131072)))),
    Case("F2", "clamped-settings/round-up",
         cpu_only(requested=Options(num_ctx=300), effective=Effective(Options(num_ctx=512))),
         cpu_only(requested=Options(num_ctx=300), effective=Effective(Options(num_ctx=300)))),
    Case("F3", "context-truncation/silent-cut", healthy(**SMALL, requests=CUT),
         healthy(**SMALL, requests=tuple(replace(each, tokens_sent=140) for each in CUT))),
    Case("F3", "context-truncation/silent-cut", healthy(log=log("truncating input prompt limit=256 prompt=902")),
         healthy(log=log("input prompt fits"))),
    Case("F4", "clamped-settings/auto-keeps-last",
         healthy(requested=Options(num_gpu=-1), effective=Effective(Options(num_gpu=12)),
                 engine_starts=starts({"-ngl": "12"})),
         healthy(requested=Options(num_gpu=-1), effective=Effective(Options(num_gpu=12)), engine_starts=starts({}))),
    Case("F5", "clamped-settings/ignored-option", healthy(log=log('"invalid option provided" option=num_ctxx')),
         healthy(log=log('"option provided" option=num_ctx'))),
    Case("F5", "clamped-settings/ignored-option",
         healthy(server=ServerInfo("openai", "http://127.0.0.1:8000"), requested=Options(num_ctx=512),
                 effective=Effective(Options(), unread=("num_ctx",))),
         healthy(server=ServerInfo("openai", "http://127.0.0.1:8000"), requested=Options(temperature=0.5),
                 effective=Effective(Options(), unread=("temperature",)))),
    Case("F6", "clamped-settings/batch-follows-window",
         healthy(engine_starts=starts({"-c": "4096", "-b": "512"}, {"-c": "32768", "-b": "1024"})),
         healthy(engine_starts=starts({"-c": "4096", "-b": "512"}, {"-c": "32768", "-b": "512"}))),
    Case("F7", "clamped-settings/kv-needs-flash-attention",
         healthy(failures=(Failure("quantized V cache requires flash_attn to be enabled", WALL, 500, True),)),
         healthy(failures=(Failure("flash_attn is enabled", WALL, 500, True),))),
    # codes without a row
    Case("-", "driver-mismatch/updated-under-kernel",
         cpu_only(gpu_missing=Missing("unreachable", "NVML: Driver/library version mismatch")),
         cpu_only(gpu_missing=Missing("unreachable", "NVML: Driver Not Loaded"))),
    Case("-", "gpu-lost/fallen-off-bus", healthy(gpu_samples=XID),
         healthy(gpu_samples=gpus(utilization=Missing("stale", since=1005.0)))),
    Case("-", "low-clocks/stuck", healthy(requests=LONG, gpu_samples=gpus(16, sm_mhz=900.0, pstate=5.0)),
         healthy(requests=LONG, gpu_samples=gpus(16, sm_mhz=1750.0, pstate=2.0))),
)  # fmt: skip

ROWS = {f"{family}{number}" for family, count in zip("ABCDEF", (11, 10, 7, 7, 5, 7), strict=True)
        for number in range(1, count + 1)}  # fmt: skip
IDS = [f"{case.row} {case.names}" for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_row_is_named_by_its_evidence(case: Case) -> None:
    shown = [(each.code, each.severity, [one.id for one in each.causes]) for each in diagnose(case.fires)]
    assert names(case.fires, case), shown


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_its_near_miss_is_not(case: Case) -> None:
    assert not names(case.miss, case)


def test_every_row_and_every_code_has_its_case() -> None:
    assert {case.row for case in CASES} - {"-"} == ROWS
    assert {case.names.partition("/")[0] for case in CASES} == set(CODES)
