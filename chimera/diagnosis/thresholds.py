"""Every limit that a rule compares with and where it comes from; absolute references for one machine each."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Threshold:
    """A limit with its origin."""

    value: float
    unit: str
    source: str
    """Where the number comes from."""


_RULES = "decision rules, put right from the guide"
_NVML = "NVML's documentation of clock event reasons"
_MEASURED = "measured on the embedded engine"
_OURS = "Chimera's choice"

THRESHOLDS: dict[str, Threshold] = {
    # throughput
    "rate-drop": Threshold(0.15, "of the own baseline", _RULES),
    "roof-share": Threshold(0.60, "of the bandwidth roof", _RULES),
    "roof-applies-below": Threshold(250.0, "tok/s", f"{_OURS}: above it the fixed cost of a token hides bandwidth"),
    "context-span": Threshold(2.0, "times the shortest prompt", f"{_OURS}: less says nothing about length"),
    "context-collapse": Threshold(3.0, "times slower", _RULES),
    "offload": Threshold(0.995, "of the model in GPU memory", f"{_OURS}: the server's sums are rounded"),
    "token-table": Threshold(0.85, "of the model in GPU memory", f"{_OURS}: tables are a tenth of a model at most"),
    # time to first token
    "ttft-rise": Threshold(1.5, "times the own baseline", f"{_OURS}: a time to first token spreads more than a rate"),
    "ttft-patience": Threshold(10.0, "s", f"{_OURS}: where a person looks elsewhere"),
    "ttft-part": Threshold(0.5, "of the time to first token", f"{_OURS}: the largest part is the cause"),
    "ttft-part-seconds": Threshold(0.5, "s", "a load above max(0.5 s, 5x the warm median) is a cold call"),
    "reload-load": Threshold(1.0, "s", _RULES),
    "reload-count": Threshold(2.0, "of the last 5 requests", _RULES),
    "reload-window": Threshold(5.0, "requests", _RULES),
    "idle-gap": Threshold(60.0, "s", f"{_OURS}: a load after a longer pause is a cold call, not a quarrel"),
    "queue-share": Threshold(0.3, "of the time to first token", f"{_OURS}: below it waiting is not what is felt"),
    "queue-seconds": Threshold(0.25, "s", f"{_OURS}: below it waiting is not what is felt"),
    "fair-share": Threshold(0.9, "Jain's index", f"{_OURS}: of two agents one then gets half of the other's rate"),
    "cached-share": Threshold(0.1, "of the prompt", "only the token that begins every prompt may be cached"),
    "cached-speedup": Threshold(3.0, "times the usual prefill rate", "a repeated prompt showed 3x on Ollama, 46x on "
                                "llama.cpp"),
    "stream-tail": Threshold(0.1, "of the decode time", f"{_OURS}: tokens that come all at once were not streamed"),
    # memory
    "vram-full": Threshold(0.95, "of the GPU's memory", _RULES),
    "vram-full-windows": Threshold(0.97, "of the GPU's memory", "where Windows' driver spills into system memory"),
    "vram-margin": Threshold(1024.0**3, "bytes", "what llama.cpp keeps free on each device by default"),
    "accounting-gap": Threshold(200.0 * 1024**2, "bytes", "CUDA's own context takes 200-600 MiB"),
    # consistency
    "cv": Threshold(0.05, "of the mean", _RULES),
    "cv-n": Threshold(5.0, "measurements", _RULES),
    "ttft-cv": Threshold(0.25, "of the mean", f"{_OURS}: a time to first token spreads more than a rate"),
    "structured-share": Threshold(0.25, "of the variance", f"{_OURS}: a smaller part is not worth a cure"),
    "short-output": Threshold(16.0, "tokens", "below it a rate is mostly rounding"),
    "length-off": Threshold(0.10, "off the length that was asked for", _RULES),
    # heat, power, clocks
    "thermal-share": Threshold(0.01, "of the time under load", "any thermal time above 1 % of a run"),
    "power-share": Threshold(0.01, "of the time under load", "as for heat"),
    "bit-samples": Threshold(2.0, "samples in a row", f"{_NVML}: bits blip at P-state changes, counters do not"),
    "hot": Threshold(80.0, "°C", _RULES),
    "hot-clock": Threshold(0.90, "of the run's peak clock", _RULES),
    "hot-samples": Threshold(3.0, "samples in a row", _RULES),
    "rate-held": Threshold(0.95, "of the rate before", "decode is bound by memory bandwidth: judge by the rate"),
    "low-clock": Threshold(0.80, "of the highest SM clock", "a stuck P-state shows 28-80 % less"),
    "low-clock-seconds": Threshold(10.0, "s", f"{_OURS}: boosting up takes a second or two"),
    "busy-utilization": Threshold(50.0, "%", f"{_OURS}: below it the GPU waits for something else"),
    "power-room": Threshold(0.90, "of the power limit", f"{_OURS}: nearer, power may be the limit"),
    # load by others
    "foreign-cpu": Threshold(15.0, "% of all cores", f"{_MEASURED}: decode falls well before half the cores are gone"),
    "foreign-cpu-heavy": Threshold(30.0, "% of all cores", f"{_MEASURED}: threads then wait at barriers"),
    "foreign-cpu-gpu": Threshold(80.0, "% of all cores", f"{_OURS}: a model on the GPU needs about one core"),
    "foreign-sm": Threshold(5.0, "% of the GPU", "another tenant: a compute process above 5 %"),
    "foreign-sm-heavy": Threshold(20.0, "% of the GPU", f"{_OURS}"),
    "steal": Threshold(5.0, "% of the CPU", f"{_OURS}: the hypervisor gave it to another guest"),
    "memory-pressure": Threshold(10.0, "% of the time", f"{_OURS}: PSI, some task waited for memory"),
    "stall": Threshold(1.0, "s between two tokens", "a foreign prefill froze a stream for 3.5 s"),
    "stall-ratio": Threshold(20.0, "times the usual gap", f"{_OURS}"),
    # PCIe
    "pcie-use": Threshold(0.5, "of what the link can carry", f"{_OURS}: decode alone needs almost nothing"),
    # GPU at work
    "gpu-idle": Threshold(5.0, "% utilisation while a request runs", f"{_OURS}"),
    "gpu-idle-samples": Threshold(5.0, "samples", f"{_OURS}"),
    # history
    "history-n": Threshold(3.0, "measurements", "never a judgement from fewer than 3"),
}  # fmt: skip


def limit(name: str) -> float:
    """The value of a threshold of the table."""
    return THRESHOLDS[name].value


@dataclass(frozen=True, slots=True)
class AbsoluteReference:
    """Numbers that somebody reported for one model on one class of card; they say nothing about any other."""

    model: str
    """Regular expression for the whole model name."""
    gpu: str
    """Regular expression found in the GPU's name."""
    vram_gb: tuple[float, float]
    min_tok_s: float | None
    max_ttft_s: float | None
    source: str

    def matches(self, model: str | None, gpu: str, vram_bytes: float | None) -> bool:
        """Model, card and memory are those of the report."""
        if model is None or vram_bytes is None or re.fullmatch(self.model, model) is None:
            return False
        return re.search(self.gpu, gpu) is not None and self.vram_gb[0] <= vram_bytes / 1e9 <= self.vram_gb[1]


REFERENCES: tuple[AbsoluteReference, ...] = (
    AbsoluteReference(
        model=r"gemma3(:latest)?",
        gpu=r"\bRTX 4080\b",
        vram_gb=(11.5, 13.5),
        min_tok_s=90.0,
        max_ttft_s=1.0,
        source="Chimera Optimization Guide, November 2025 (RTX 4080 with 12 GB, gemma3:latest)",
    ),
)
