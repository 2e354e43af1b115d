"""Plain data for the panels, the same at every call: moments of a made-up afternoon."""

from __future__ import annotations

import math

from chimera.domain.finding import Evidence, Finding
from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.readings import Missing
from chimera.domain.run import Progress, Run, Statistic, Target, Trial
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.domain.telemetry import (
    GpuInfo,
    GpuProcess,
    GpuSample,
    GpuState,
    HostSample,
    LoadedModel,
    ServerSample,
    SlotState,
    Throttle,
    VramParts,
)
from chimera.domain.verdict import Verdict, VerdictWord
from chimera.domain.workload import Workload
from chimera.widgets import TrialView
from chimera.widgets.trials import TrialState

GIB = 1024**3
WALL = 1_764_338_400.0
"""14:00:00 UTC."""
UNSUPPORTED = Missing("unsupported", "NVML: Not Supported")


def wave(tick: float, low: float, high: float, period: float = 17.0) -> float:
    """A value that moves between two bounds, always in the same way."""
    return low + (high - low) * (0.5 + 0.35 * math.sin(tick / period * 6.283) + 0.15 * math.sin(tick * 1.7))


def gpu_info(index: int = 0, name: str = "NVIDIA GeForce RTX 4080 Laptop GPU") -> GpuInfo:
    return GpuInfo(
        uuid=f"GPU-{index}", index=index, name=name, architecture="Ada", driver="580.95", bus_width_bits=192.0,
        max_sm_mhz=2610.0, max_mem_mhz=9001.0, bandwidth_gb_s=432.0, slowdown_c=87.0, pcie_max_gen=4.0,
        pcie_max_width=16.0, power_default_w=150.0, power_min_w=5.0, power_max_w=175.0,
    )  # fmt: skip


def gpu_sample(index: int = 0, tick: float = 0.0) -> GpuSample:
    used = wave(tick, 9.6, 9.9) * GIB
    temperature = round(wave(tick, 68, 76, 60))
    return GpuSample(
        uuid=f"GPU-{index}", at=100.0 + tick, utilization=round(wave(tick, 78, 98)),
        memory_utilization=round(wave(tick, 55, 70)),
        vram_total_bytes=12 * GIB, vram_used_bytes=used, vram_reserved_bytes=0.3 * GIB,
        vram_free_bytes=11.7 * GIB - used, temperature_c=temperature, margin_c=87.0 - temperature,
        memory_temperature_c=UNSUPPORTED, sm_mhz=round(wave(tick, 2190, 2340) / 15) * 15, mem_mhz=8501.0, pstate=2.0,
        power_w=round(wave(tick, 138, 149.6)), power_limit_w=150.0, energy_j=4e5 + 140 * tick,
        fan_percent=45.0, pcie_gen=4.0,
        pcie_width=8.0, pcie_tx_bytes_s=wave(tick, 2e6, 9e6), pcie_rx_bytes_s=wave(tick, 8e6, 4e7), reasons=4.0,
        throttles=(Throttle("power-cap", round(wave(tick, 0.4, 0.8), 2), "counter"),),
        processes=(GpuProcess(4711, "ollama", used - 0.4 * GIB), GpuProcess(1042, "Xorg", 0.4 * GIB)),
    )  # fmt: skip


PARTS = {
    "GPU-0": VramParts(weights_bytes=5.9 * GIB, kv_bytes=2.1 * GIB, compute_bytes=0.7 * GIB, foreign_bytes=0.4 * GIB)
}


def gpus(count: int = 1, tick: float = 0.0) -> GpuState:
    name = "NVIDIA GeForce RTX 4080 Laptop GPU" if count == 1 else "NVIDIA H100 80GB HBM3"
    return GpuState(
        at=100.0 + tick,
        infos=tuple(gpu_info(index, name) for index in range(count)),
        samples=tuple(gpu_sample(index, tick + 5 * index) for index in range(count)),
        driver="580.95",
    )


NO_GPU = GpuState(
    at=100.0,
    missing=Missing("unsupported", "no NVIDIA driver is loaded on this machine (libnvidia-ml.so.1 was not found)"),
)


def host(tick: float = 0.0) -> HostSample:
    cores = tuple(wave(tick + 3 * core, 2, 60 if core % 3 else 99, 11 + core) for core in range(16))
    return HostSample(
        at=100.0 + tick, cpu_percent=sum(cores) / 16, per_core_percent=cores, load_1m=wave(tick, 3.1, 3.4, 90),
        memory_total_bytes=32 * GIB, memory_used_bytes=wave(tick, 18.8, 19.4, 80) * GIB, swap_used_bytes=0.2 * GIB,
        swap_total_bytes=8 * GIB, pressure_cpu=wave(tick, 1, 3), pressure_memory=0.0, pressure_io=0.4,
        disk_read_bytes_s=0.0, cpu_mhz=4200.0, governor="powersave", steal_percent=0.0, on_battery=False,
        engine_cpu_percent=wave(tick, 160, 190), foreign_cpu_percent=wave(tick, 3, 7), own_cpu_percent=0.7,
    )  # fmt: skip


SERVER = ServerInfo(kind="ollama", url="http://127.0.0.1:11434", version="0.33.0")
MODEL = ModelInfo(
    name="gemma3:latest", digest="a2af6cc3eb7f", quantization="Q4_K_M", architecture="gemma3", block_count=34,
    trained_ctx=131072, size_bytes=int(3.1 * GIB), parameters=4_300_000_000, vision=True,
)  # fmt: skip
EFFECTIVE = Effective(
    options=Options(num_gpu=35, num_ctx=2048, num_batch=512, num_thread=8, num_parallel=1),
    sources={"num_gpu": "derived", "num_ctx": "measured", "num_batch": "derived", "num_thread": "measured"},
    notes=(
        "num_gpu 80 runs as 35: the model has 34 layers and the output layer.",
        "num_ctx 512 runs as 2048: models with vision start there.",
    ),
    unread=("num_thread",),
    size_bytes=int(5.1 * GIB),
    vram_bytes=int(5.1 * GIB),
)


def server_sample(tick: float = 0.0) -> ServerSample:
    return ServerSample(
        at=100.0 + tick, rate=wave(tick, 96, 99), busy=1.0, waiting=0.0,
        slots=(SlotState(0, True, 7, 64, 0, int(tick) % 64, 64 - int(tick) % 64), SlotState(1, False)),
        models=(LoadedModel("gemma3:latest", 5.1 * GIB, 5.1 * GIB, 2048.0, WALL + 252),),
        via="child /slots",
    )  # fmt: skip


def measurement(index: int) -> Measurement:
    """The index-th request: warm-up, then valid ones, one of them void, one cold."""
    queue, prefill, other = 0.003 + 0.001 * (index % 3), wave(index, 0.18, 0.2), 0.009
    load = 1.94 if index == 0 else 0.0
    ttft = queue + load + prefill + other
    decode = 63 / wave(index, 96.5, 98.8)
    return Measurement(
        role="warmup" if index == 0 else "measure", started_at=WALL + 3 * index, total_s=ttft + decode, ttft_s=ttft,
        queue_s=queue, load_s=load, prefill_s=prefill, decode_s=decode, other_s=other, timing_source="server",
        prompt_tokens=64, cached_tokens=0, completion_tokens=64, client_decode_tok_s=63 / decode * 1.001,
        decode_tok_s=63 / decode, cold=index == 0, void_reason="cache-hit" if index == 4 else None,
    )  # fmt: skip


MEASUREMENTS = tuple(measurement(index) for index in range(9))

RUN = Run(
    id="k7f2", kind="sweep", state="running", created_at=WALL, target=Target("ollama", SERVER.url, MODEL.name),
    workload=Workload(), seed=7, preset="single-agent", server=SERVER, model=MODEL, started_at=WALL,
)  # fmt: skip


def progress(tick: float = 0.0) -> Progress:
    return Progress(
        stage="measuring", at=WALL + tick, session=3, sessions=24, request=1 + int(tick / 8) % 3, requests=3,
        candidate="c1", options={"num_gpu": 80, "num_ctx": 512, "num_batch": 512, "temperature": 0.8},
        tokens=int(tick * 8) % 64, tokens_planned=64, rate=wave(tick, 96, 99), ttft_s=0.21, eta_s=260 - tick,
    )  # fmt: skip


FINDINGS = (
    Finding(
        "clamped-settings", "notice", "num_gpu 80 runs as 35: all layers are on the GPU",
        (Evidence("num_gpu", 35, 80, source="derived"),),
    ),
    Finding(
        "power-throttling", "warn", "The power limit lowers the clocks",
        (Evidence("power cap", 62, 50, 60, "measured", "%"),), since=WALL - 240,
    ),
    Finding(
        "thermal-throttling", "error", "GPU 0 slows down because of heat",
        (Evidence("thermal slowdown", 3.1, 1, 60, "measured", "%"),), since=WALL - 60,
    ),
)  # fmt: skip


def trial_view(
    candidate: str,
    layers: int,
    kv: str,
    median: float | None,
    verdict: Verdict | None = None,
    state: TrialState = "done",
    *,
    sessions: int = 8,
    merged: tuple[str, ...] = (),
    note: str = "",
) -> TrialView:
    return TrialView(
        Trial(
            candidate,
            "baseline" if candidate == "c0" else "candidate",
            Options(num_gpu=layers, num_ctx=512, kv_cache_type="q8_0" if kv == "q8_0" else "f16"),
            Options(num_gpu=min(layers, 35), num_ctx=2048, kv_cache_type="q8_0" if kv == "q8_0" else "f16"),
            merged,
        ),
        sessions=sessions,
        void=1 if candidate == "c2" else 0,
        statistic=None if median is None else Statistic(median, 0.008, sessions),
        verdict=verdict,
        state=state,
        note=note,
    )


def verdict(candidate: str, word: VerdictWord, effect: float, low: float, high: float) -> Verdict:
    return Verdict(candidate, "c0", "decode_tok_s", word, effect, (low, high), 0.9833, 8)


VERDICTS = (
    verdict("c1", "same", 1.003, 0.996, 1.010),
    verdict("c2", "better", 1.062, 1.041, 1.083),
    verdict("c3", "worse", 0.41, 0.40, 0.42),
    verdict("c4", "undecided", 1.021, 0.985, 1.058),
)
TRIALS = (
    trial_view("c0", 35, "f16", 96.9),
    trial_view("c1", 80, "f16", 97.2, VERDICTS[0], merged=("c5", "c6")),
    trial_view("c2", 80, "q8_0", 102.9, VERDICTS[1]),
    trial_view("c3", 9, "f16", 39.7, VERDICTS[2], "dropped", sessions=3),
    trial_view("c4", 26, "f16", 98.9, VERDICTS[3], "running", sessions=5),
    trial_view("c7", 120, "q8_0", None, None, "failed", sessions=0, note="out of memory"),
    trial_view("c8", 17, "q8_0", None, None, "waiting", sessions=0),
)
