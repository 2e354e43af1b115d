"""What llama.cpp writes to its log while it loads a model: the settings that really run, and why a load failed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from chimera.domain.text import plain

MIB = 1024 * 1024

_PREFIX = re.compile(r"^\s*(?:\d+(?:\.\d{2,3}){2,3}\s+)?(?:([DIWE])\s+)?")
"""Time since the start and level, as newer builds print them; older ones have neither."""
_NUMBERS: dict[str, re.Pattern[str]] = {
    "ctx_slot": re.compile(r"\bn_ctx_(?:slot|seq)\s*=\s*(\d+)"),
    "slots": re.compile(r"\bn_slots\s*=\s*(\d+)"),
    "batch": re.compile(r"\bllama_context: n_batch\s*=\s*(\d+)"),
    "ubatch": re.compile(r"\bllama_context: n_ubatch\s*=\s*(\d+)"),
    "threads": re.compile(r"\bn_threads = (\d+)"),
    "threads_batch": re.compile(r"\bn_threads_batch = (\d+)"),
}
_FLASH = re.compile(r"\bllama_context: flash_attn\s*=\s*(\w+)")
_FLASH_RESOLVED = re.compile(r"Flash Attention\b.*\b(enabled|disabled)")
_DEVICE = re.compile(r"\bcommon_param\w*:.*\s- (\S+)\s*: .+\(\d+ MiB, \d+ MiB free\)")
_NO_GPU = "no usable GPU found"
_OFFLOADED = re.compile(r"\boffloaded (\d+)/(\d+) layers to GPU")
_BUFFER = re.compile(r"\b(\S+)\s+(model|KV|RS|compute|output)\s+buffer size\s*=\s*(\d+(?:\.\d+)?) MiB")
_KV_TYPES = re.compile(r"\bK \((\w+)\):.*\bV \((\w+)\):")
_TROUBLE = (
    "error", "failed", "out of memory", "unable to allocate", "ggml_assert", "ggml_abort", "terminate called",
    "what():", "invalid argument", "couldn't",
)  # fmt: skip
"""Signs of trouble in lines of builds that print no level."""
_CONSEQUENCES = (
    "exiting due to", "failed to init server", "cleaning up", "failed to load model", "failed to create context",
    "failed to create_context", "main: exiting", "encountered an error while trying to fit", "failed to fit params",
)  # fmt: skip
"""Lines that only pass on that something failed before."""


@dataclass(slots=True)
class EngineFacts:
    """What the log of one load told; None = it did not."""

    ctx_slot: int | None = None
    slots: int | None = None
    batch: int | None = None
    ubatch: int | None = None
    threads: int | None = None
    threads_batch: int | None = None
    flash: bool | None = None
    kv_k: str | None = None
    kv_v: str | None = None
    gpu_layers: int | None = None
    layers: int | None = None
    """Layers that could be offloaded, the output layer counted."""
    devices: set[str] = field(default_factory=set)
    """Names of what it can compute on."""
    buffers: dict[str, float] = field(default_factory=dict)
    """MiB by name of the buffer's device, all purposes together."""

    def read(self, line: str) -> None:
        """Take in one line of the log. The later one wins where a value is told twice; buffers add up."""
        for name, pattern in _NUMBERS.items():
            if found := pattern.search(line):
                setattr(self, name, int(found[1]))
        if found := _DEVICE.search(line):
            self.devices.add(found[1])
        elif _NO_GPU in line:
            self.devices.add("CPU")
        if found := _FLASH.search(line):
            self.flash = {"enabled": True, "1": True, "disabled": False, "0": False}.get(found[1])
        elif found := _FLASH_RESOLVED.search(line):
            self.flash = found[1] == "enabled"
        elif found := _OFFLOADED.search(line):
            self.gpu_layers, self.layers = int(found[1]), int(found[2])
        elif found := _KV_TYPES.search(line):
            self.kv_k, self.kv_v = found[1].lower(), found[2].lower()
        elif found := _BUFFER.search(line):
            self.buffers[found[1]] = self.buffers.get(found[1], 0.0) + float(found[3])

    @property
    def gpu(self) -> bool | None:
        """The engine can use a GPU; None = it did not say."""
        if self.gpu_layers is not None:
            return True
        return any(not on_host(device) for device in self.devices) if self.devices else None

    @property
    def size_bytes(self) -> int | None:
        """Memory that was allocated or mapped for weights, KV cache and computing."""
        return round(sum(self.buffers.values()) * MIB) if self.buffers else None

    @property
    def vram_bytes(self) -> int | None:
        """Of that, on GPUs."""
        if not self.buffers:
            return None
        return round(sum(size for device, size in self.buffers.items() if not on_host(device)) * MIB)


def on_host(device: str) -> bool:
    """A buffer's name says that it lies in the host's memory: `CPU`, `CPU_Mapped`, `CPU_REPACK`, `CUDA_Host`."""
    return device.startswith(("CPU", "AMX", "BLAS", "ACCEL")) or device.endswith("Host")


def message_of(line: str) -> str:
    """A log line without time and level, made harmless."""
    return plain(_PREFIX.sub("", line, count=1))


def cause_of(lines: Iterable[str]) -> str | None:
    """The line that says why a load failed or a server died, or None where none does.

    llama.cpp reports a failure from the inside out, so the first line of trouble after the last success is the
    cause and what follows passes it on.
    """
    errors: list[str] = []
    for line in lines:
        level = _PREFIX.match(line)
        text = message_of(line)
        low = text.lower()
        if not text or low.startswith(("traceback", "file ")):
            continue
        if (level and level[1] == "E") or (level and level[1] is None and any(sign in low for sign in _TROUBLE)):
            errors.append(text)
    causes = [text for text in errors if not any(sign in text.lower() for sign in _CONSEQUENCES)]
    return next(iter(causes or errors), None)
