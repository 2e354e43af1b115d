"""Evidence as the tests need it: a healthy machine, from which each test changes one thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from chimera.diagnosis.evidence import EvidenceSet, PastRun, Request
from chimera.diagnosis.rules import diagnose
from chimera.domain.finding import Cause, Finding
from chimera.domain.measurement import Measurement
from chimera.domain.options import Options
from chimera.domain.server import Effective, ModelInfo, ServerInfo
from chimera.domain.telemetry import GpuInfo, GpuSample, HostSample, LoadedModel, ServerSample
from chimera.domain.workload import Workload

WALL = 1_790_000_000.0
OFFSET = WALL - 1000.0
"""Wall clock minus monotonic: requests begin at monotonic 1000."""
GIB = 1024.0**3
UUID = "GPU-1"

MODEL = ModelInfo(
    "gemma3:latest", digest="sha256:aa", quantization="Q4_K_M", architecture="gemma3", block_count=34,
    trained_ctx=131072, size_bytes=int(3.3e9), parameters=4_300_000_000, vision=True,
)  # fmt: skip
SERVER = ServerInfo("ollama", "http://127.0.0.1:11434", "0.33.0")
GPU = GpuInfo(
    UUID, 0, "NVIDIA GeForce RTX 3060", driver="575.1", max_sm_mhz=2100.0, max_mem_mhz=7501.0, slowdown_c=93.0,
    pcie_max_gen=4.0, pcie_max_width=16.0,
)  # fmt: skip


def measurement(at: float = 0.0, **changes: Any) -> Measurement:
    plain = Measurement(
        "measure", WALL + at, total_s=1.0, ttft_s=0.2, queue_s=0.001, load_s=0.002, prefill_s=0.18, decode_s=0.79,
        other_s=0.027, timing_source="server", prompt_tokens=64, cached_tokens=0, completion_tokens=64,
        client_decode_tok_s=79.7, decode_tok_s=79.7, prefill_tok_s=355.0, effective_tok_s=64.0, itl_p50_s=0.0125,
        itl_p95_s=0.014, itl_max_s=0.02, finish_reason="length",
    )  # fmt: skip
    return replace(plain, **changes)


WIGGLE = (1.0, 1.004, 0.997, 1.002, 0.995, 1.003, 0.999, 1.001, 0.998, 1.005)


def requests(count: int = 8, gap_s: float = 1.2, **changes: Any) -> tuple[Request, ...]:
    """Equal requests with half a percent of scatter, one after the other."""
    return tuple(
        Request(
            measurement(
                i * gap_s,
                **{"decode_tok_s": 79.7 * WIGGLE[i % 10], "client_decode_tok_s": 79.7 * WIGGLE[i % 10], **changes},
            ),
            session=1, candidate="c0", round=1, tokens_sent=64, output_tokens=64,
        )
        for i in range(count)
    )  # fmt: skip


def rates(values: Sequence[float], **changes: Any) -> tuple[Request, ...]:
    """Requests with these decode rates."""
    return tuple(
        replace(each, measurement=replace(each.measurement, decode_tok_s=value, client_decode_tok_s=value))
        for each, value in zip(requests(len(values), **changes), values, strict=True)
    )


def gpu(i: int, **changes: Any) -> GpuSample:
    plain = GpuSample(
        UUID, 1000.0 + i, utilization=92.0, memory_utilization=70.0, vram_total_bytes=12 * GIB,
        vram_used_bytes=5.4 * GIB, vram_reserved_bytes=0.2 * GIB, vram_free_bytes=6.4 * GIB, temperature_c=68.0,
        sm_mhz=1950.0, mem_mhz=7301.0, pstate=2.0, power_w=140.0, power_limit_w=170.0, pcie_gen=4.0, pcie_width=16.0,
        pcie_rx_bytes_s=2e7, pcie_tx_bytes_s=1e7, reasons=0.0,
        throttle_s={"power-cap": 5.0, "sw-thermal": 1.0, "hw-thermal": 0.0, "power-brake": 0.0}, processes=(),
    )  # fmt: skip
    return replace(plain, **changes)


def gpus(count: int = 12, **changes: Any) -> tuple[GpuSample, ...]:
    return tuple(gpu(i, **changes) for i in range(count))


def hosts(count: int = 12, **changes: Any) -> tuple[HostSample, ...]:
    plain = {
        "cpu_percent": 20.0, "per_core_percent": (20.0,) * 8, "foreign_cpu_percent": 2.0, "engine_cpu_percent": 100.0,
        "steal_percent": 0.0, "pressure_memory": 0.0, "cpu_limit_cores": 8.0, **changes,
    }  # fmt: skip
    return tuple(HostSample(1000.0 + i, **plain) for i in range(count))


def servers(count: int = 12, *, size: float = 4.0e9, vram: float = 4.0e9, context: float = 4096.0, **changes: Any) -> \
        tuple[ServerSample, ...]:  # fmt: skip
    held = (LoadedModel(MODEL.name, size, vram, context),)
    return tuple(ServerSample(1000.0 + i, **{"busy": 1.0, "waiting": 0.0, "models": held, **changes})
                 for i in range(count))  # fmt: skip


def past(rate: float = 80.0, **changes: Any) -> PastRun:
    plain = PastRun(
        "k7f2", WALL - 86400, rate, 0.2, 0.01, 5, "0.33.0", "575.1", MODEL.name, MODEL.digest,
        Options(num_ctx=4096), 64,
    )  # fmt: skip
    return replace(plain, **changes)


def healthy(**changes: Any) -> EvidenceSet:
    """A model that lies whole on a GPU and does what it did yesterday."""
    plain: dict[str, Any] = {
        "requests": requests(),
        "gpu_infos": (GPU,),
        "gpu_samples": gpus(),
        "driver": "575.1",
        "host_samples": hosts(),
        "server_samples": servers(),
        "clock_offset_s": OFFSET,
        "server": SERVER,
        "model": MODEL,
        "workload": Workload(),
        "effective": Effective(Options(num_ctx=4096)),
        "history": (past(),),
        "engine_pids": frozenset({77}),
        "platform": "linux",
        "physical_cores": 8,
    }
    return EvidenceSet(**{**plain, **changes})


def cpu_only(**changes: Any) -> EvidenceSet:
    """The embedded engine on a machine without a GPU."""
    return healthy(
        **{
            "gpu_infos": (), "gpu_samples": (), "driver": None, "server": ServerInfo("embedded", ""),
            "server_samples": (), "engine_pids": frozenset(), **changes,
        }
    )  # fmt: skip


def found(evidence: EvidenceSet, code: str) -> Finding | None:
    return next((each for each in diagnose(evidence) if each.code == code), None)


def must(evidence: EvidenceSet, code: str) -> Finding:
    hit = found(evidence, code)
    assert hit is not None, [each.code for each in diagnose(evidence)]
    return hit


def cause_of(finding: Finding, cause_id: str) -> Cause:
    return next(each for each in finding.causes if each.id == cause_id)


def cause_ids(finding: Finding) -> list[str]:
    return [each.id for each in finding.causes if each.speaks_for]
