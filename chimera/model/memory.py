"""How much memory a configuration takes, said before it loads.

The KV cache is computed from the shape and is exact for llama.cpp; weights come from the table of tensors; compute and
output buffers depend on the engine's graph and are not modelled but learned from the log of an earlier load.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from chimera.domain.options import KV_CACHE_TYPES, KvCacheType
from chimera.domain.readings import Source
from chimera.errors import ConfigError

from .gguf import BLOCKS
from .shape import ModelShape

MIB = 1024 * 1024
CELL_STEP = 256
"""llama.cpp rounds the cells of a cache up to a multiple of this."""
DEFAULT_BATCH = 512
"""llama.cpp's micro-batch where none is asked for."""
FIT_MARGIN_BYTES = 1024 * MIB
"""Free memory that llama.cpp's own fit leaves on each device."""


def padded(tokens: int) -> int:
    """Tokens rounded up to the cells that llama.cpp allocates."""
    return -(-tokens // CELL_STEP) * CELL_STEP


def micro_batch(num_ctx: int, num_parallel: int, num_batch: int | None) -> int:
    """The micro-batch that runs: llama.cpp cuts batches to the whole context as asked for, before rounding it."""
    return max(1, min(num_batch or DEFAULT_BATCH, num_ctx * num_parallel))


@dataclass(frozen=True, slots=True)
class KvCache:
    """Bytes of the KV cache and how they come about."""

    per_layer: tuple[int, ...]
    global_bytes: int
    local_bytes: int
    """Of sliding-window layers."""
    cells_global: int
    """A stream; a slot has a stream of its own unless the cache is unified."""
    cells_local: int
    streams: int
    source: Source
    """`derived` by llama.cpp's own rule; `estimated` where the model has states that the rule does not cover."""

    @property
    def total(self) -> int:
        """All layers, in bytes."""
        return self.global_bytes + self.local_bytes


def kv_cache(
    shape: ModelShape,
    num_ctx: int,
    *,
    num_parallel: int = 1,
    kv_type: KvCacheType = "f16",
    num_batch: int | None = None,
    unified: bool = False,
    swa_full: bool = False,
) -> KvCache:
    """Forecast the KV cache for `num_ctx` tokens a slot.

    KV = sum over layers of cells x streams x (row(K) + row(V)), rows in the cache type's blocks. Global layers have
    the slot's whole context as cells, sliding ones `window + micro-batch`, each rounded up to 256. `unified`: one
    stream for all slots (llama-server's `--kv-unified`). `swa_full`: sliding layers keep everything (`--swa-full`).
    Source: llama.cpp's KV cache, checked against what it logs.

    Raises:
        ConfigError: the type is not known, or its blocks do not divide a row of this model.
    """
    if kv_type not in KV_CACHE_TYPES:
        raise ConfigError(f"kv_cache_type {kv_type}: is not one of {', '.join(KV_CACHE_TYPES)}.")
    asked = num_ctx * num_parallel
    sequence = padded(asked) if unified else padded(padded(asked) // num_parallel)
    streams = 1 if unified else num_parallel
    batch = micro_batch(num_ctx, num_parallel, num_batch)
    window = shape.sliding_window or 0
    local = padded(min(sequence, window * (num_parallel if unified else 1) + batch)) if window else sequence
    if swa_full:
        local = sequence
    per_layer = tuple(
        (local if shape.is_local(layer) else sequence) * streams * kv_row_bytes(shape, layer, kv_type)
        for layer in range(shape.block_count)
    )
    local_bytes = sum(size for layer, size in enumerate(per_layer) if shape.is_local(layer))
    return KvCache(
        per_layer=per_layer,
        global_bytes=sum(per_layer) - local_bytes,
        local_bytes=local_bytes,
        cells_global=sequence,
        cells_local=local,
        streams=streams,
        source="estimated" if shape.recurrent or shape.latent else "derived",
    )


def kv_row_bytes(shape: ModelShape, layer: int, kv_type: KvCacheType) -> int:
    """Bytes that one token takes in one layer's cache, keys and values; 0 for a layer without a cache of its own.

    Raises:
        ConfigError: the type's blocks do not divide a head of this model.
    """
    if shape.own_kv_layers is not None and layer >= shape.own_kv_layers:
        return 0
    heads = shape.head_count_kv[layer]
    local = shape.is_local(layer)
    key = shape.key_length_swa if local else shape.key_length
    value = 0 if shape.latent else shape.value_length_swa if local else shape.value_length
    elements, size = BLOCKS[kv_type.upper()]
    for length in (key, value):
        if length * heads % elements:
            raise ConfigError(
                f"kv_cache_type {kv_type}: its blocks of {elements} do not divide this model's {length} x {heads} "
                "elements a token. Use f16."
            )
    return (key + value) * heads // elements * size


# ---- what an engine's log tells


BufferKind = Literal["model", "KV", "compute", "output", "RS"]
_BUFFER = re.compile(
    r"(?P<component>\w+):\s+(?P<device>\S+)\s+(?P<kind>model|KV|compute|output|RS) buffer size\s*=\s*"
    r"(?P<size>\d+(?:\.\d+)?) MiB"
)
_PART = re.compile(r"creating\s+(?P<part>non-SWA|SWA) KV cache")
_HOST = re.compile(r"(?:CPU|BLAS)$|CPU_|.*_Host$")


@dataclass(frozen=True, slots=True)
class Buffer:
    """One buffer that the engine allocated."""

    component: str
    """Part of the engine that logged it: `load_tensors`, `llama_kv_cache`, ..."""
    device: str
    kind: BufferKind
    part: str
    """`SWA` or `non-SWA` for the two caches of a model with sliding windows, else empty."""
    bytes: int

    @property
    def on_gpu(self) -> bool:
        """Device memory: everything but the names that llama.cpp gives to host buffers."""
        return _HOST.match(self.device) is None


@dataclass(frozen=True, slots=True)
class Buffers:
    """All buffers of one load."""

    entries: tuple[Buffer, ...]

    def total(self, *kinds: BufferKind, on_gpu: bool | None = None) -> int | None:
        """Bytes of all buffers of these kinds, on GPUs, on the host, or both; None where the log named none at all."""
        found = [entry for entry in self.entries if entry.kind in kinds]
        if not found:
            return None
        return sum(entry.bytes for entry in found if on_gpu is None or entry.on_gpu == on_gpu)


def parse_buffers(log: str) -> Buffers:
    """Buffers from the log of llama.cpp, or of an Ollama that runs it.

    Lines come twice where the engine first measures what would fit, with zeros; the last one counts. Models with
    sliding windows have two caches that log under one name, told apart by the line before.
    """
    found: dict[tuple[str, str, str, str], Buffer] = {}
    part = ""
    for line in log.splitlines():
        if match := _PART.search(line):
            part = match["part"]
        elif match := _BUFFER.search(line):
            kind: BufferKind = match["kind"]  # type: ignore[assignment]  # the pattern admits no other
            here = part if kind == "KV" else ""
            buffer = Buffer(match["component"], match["device"], kind, here, round(float(match["size"]) * MIB))
            found[(buffer.component, buffer.device, kind, here)] = buffer
    return Buffers(tuple(found.values()))


@dataclass(frozen=True, slots=True)
class Learned:
    """Buffers of an earlier load of this model by this engine, and the configuration that they belong to."""

    buffers: Buffers
    num_ctx: int
    num_parallel: int = 1
    num_batch: int | None = None
    kv_type: KvCacheType = "f16"
    num_gpu: int | None = None
    flash_attention: str | None = None


# ---- the forecast


@dataclass(frozen=True, slots=True)
class Figure:
    """Bytes, how they are known, and where from; None bytes means: not known."""

    bytes: int | None
    source: Source
    why: str = ""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a configuration takes, by part, on the GPUs and on the host."""

    weights_gpu: Figure
    weights_cpu: Figure
    kv_gpu: Figure
    kv_cpu: Figure
    compute_gpu: Figure
    compute_cpu: Figure
    output: Figure
    """Buffer for the logits; it lies on the host."""
    kv: KvCache
    units_gpu: int
    """Layers on GPUs, the output layer counted."""
    units: int

    @property
    def gpu(self) -> Figure:
        """Together on the GPUs; a lower bound (`estimated`) where the compute buffer is not known."""
        return _sum(self.weights_gpu, self.kv_gpu, self.compute_gpu)

    @property
    def cpu(self) -> Figure:
        """Together in the host's memory."""
        return _sum(self.weights_cpu, self.kv_cpu, self.compute_cpu, self.output)


@dataclass(frozen=True, slots=True)
class Placement:
    """Weights by where they lie after a partial offload."""

    gpu: int
    cpu: int
    units_gpu: int


def placement(shape: ModelShape, num_gpu: int | None) -> Placement | None:
    """Where the weights lie for so many offloaded layers (None or -1: all), or None where their sizes are unknown.

    The output layer goes first, then blocks from the last to the first; the token embedding stays on the host for
    look-ups, and a tied model holds it a second time on the GPU as its head. Source: llama.cpp's tensor placement.
    """
    if shape.weight_bytes is None or shape.output_bytes is None:
        return None
    units = shape.units if num_gpu is None or num_gpu < 0 else min(num_gpu, shape.units)
    if units == 0:
        return Placement(0, shape.weight_bytes, 0)
    first = shape.units - units
    blocks = sum(shape.block_bytes[first:])
    head = shape.output_bytes + ((shape.token_embd_bytes or 0) if shape.tied else 0)
    gpu = blocks + head + shape.vision_bytes
    return Placement(gpu, shape.weight_bytes - blocks - shape.output_bytes - shape.vision_bytes, units)


def forecast(
    shape: ModelShape,
    num_ctx: int,
    *,
    num_parallel: int = 1,
    num_gpu: int | None = None,
    kv_type: KvCacheType = "f16",
    num_batch: int | None = None,
    flash_attention: str | None = None,
    unified: bool = False,
    learned: Learned | None = None,
) -> Forecast:
    """Forecast the memory of a configuration; `num_gpu` None or -1 stands for all layers on GPUs, 0 for none.

    Raises:
        ConfigError: the KV cache type does not go with this model, or flash attention is off for a quantised one.
    """
    refuse_quantised_without_flash(kv_type, flash_attention)
    kv = kv_cache(shape, num_ctx, num_parallel=num_parallel, kv_type=kv_type, num_batch=num_batch, unified=unified)
    placed = placement(shape, num_gpu)
    units = shape.units if num_gpu is None or num_gpu < 0 else min(num_gpu, shape.units)
    kv_gpu = sum(kv.per_layer[shape.units - units :]) if units else 0
    unknown = Figure(None, "unknown", "the model's tensor table is not known, or has types that are not")
    compute_gpu, compute_cpu, output = _learned_figures(
        learned, num_ctx, num_parallel, num_batch, kv_type, units, flash_attention
    )
    return Forecast(
        weights_gpu=Figure(placed.gpu, "derived", "table of tensors") if placed else unknown,
        weights_cpu=Figure(placed.cpu, "derived", "table of tensors") if placed else unknown,
        kv_gpu=Figure(kv_gpu, kv.source, "llama.cpp's rule for its cache"),
        kv_cpu=Figure(kv.total - kv_gpu, kv.source, "llama.cpp's rule for its cache"),
        compute_gpu=compute_gpu if units else Figure(0, "derived", "no layer on a GPU"),
        compute_cpu=compute_cpu,
        output=output,
        kv=kv,
        units_gpu=units,
        units=shape.units,
    )


def refuse_quantised_without_flash(kv_type: str | None, flash_attention: str | None) -> None:
    """Say no to a quantised V cache with flash attention off, as llama.cpp does.

    Raises:
        ConfigError: that is what was asked for.
    """
    if flash_attention == "off" and kv_type not in (None, "f16"):
        raise ConfigError(
            f"kv_cache_type {kv_type} with flash_attention off: llama.cpp refuses a quantised cache without flash "
            "attention. Set flash_attention to on or auto, or kv_cache_type to f16."
        )


def _learned_figures(
    learned: Learned | None,
    num_ctx: int,
    num_parallel: int,
    num_batch: int | None,
    kv_type: str,
    units: int,
    flash_attention: str | None,
) -> tuple[Figure, Figure, Figure]:
    """Compute buffers on GPUs and host, and the output buffer, from an earlier load's log.

    For another configuration the compute buffer grows with the micro-batch and the output buffer with the slots; a
    smaller micro-batch is not credited, so that the figure errs to the safe side.
    """
    if learned is None:
        nothing = Figure(None, "unknown", "no load of this model has been seen yet")
        return nothing, nothing, nothing
    before = micro_batch(learned.num_ctx, learned.num_parallel, learned.num_batch)
    now = micro_batch(num_ctx, num_parallel, num_batch)
    same = (learned.num_ctx, learned.num_parallel, before, learned.kv_type, learned.num_gpu, learned.flash_attention)
    asked = (num_ctx, num_parallel, now, kv_type, units if learned.num_gpu is not None else None, flash_attention)
    source: Source = "measured" if same == asked else "estimated"
    why = "log of the same configuration" if same == asked else "log of another configuration of this model"
    growth = max(1.0, now / before)
    slots = num_parallel / learned.num_parallel

    def figure(size: int | None, factor: float) -> Figure:
        if size is None:
            return Figure(None, "unknown", "the log did not name this buffer")
        return Figure(round(size * factor), source, why)

    return (
        figure(learned.buffers.total("compute", on_gpu=True), growth),
        figure(learned.buffers.total("compute", on_gpu=False), growth),
        figure(learned.buffers.total("output"), slots),
    )


def _sum(*figures: Figure) -> Figure:
    known = [figure.bytes for figure in figures if figure.bytes is not None]
    if not known:
        return Figure(None, "unknown", figures[0].why)
    if len(known) < len(figures):
        return Figure(sum(known), "estimated", "at least: " + next(f.why for f in figures if f.bytes is None))
    order: tuple[Source, ...] = ("measured", "derived", "estimated", "unknown")
    return Figure(sum(known), max((figure.source for figure in figures), key=order.index))


Answer = Literal["fits", "tight", "does-not-fit", "unknown"]


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a forecast goes into the memory that is there."""

    answer: Answer
    needed_bytes: int | None
    sentence: str


def fits(wanted: Forecast, free_bytes: int, total_bytes: int) -> Fit:
    """Compare what a configuration needs on a GPU with what is free on it.

    `tight`: it goes in by the figures that are known, but leaves less than llama.cpp's own margin of 1 GiB, or less
    than 5 % of the card, or the compute buffer is not known yet.
    """
    need = wanted.gpu
    if need.bytes is None:
        return Fit("unknown", None, f"How much it needs is not known: {need.why}.")
    whole = f"{need.bytes / MIB:,.0f} MiB are needed on the GPU"
    at_least = "at least " if wanted.compute_gpu.bytes is None or wanted.weights_gpu.bytes is None else ""
    if need.bytes > total_bytes:
        return Fit(
            "does-not-fit", need.bytes, f"{at_least}{whole}, which has {total_bytes / MIB:,.0f} MiB in all: never fits."
        )
    if need.bytes > free_bytes:
        return Fit("does-not-fit", need.bytes, f"{at_least}{whole}, {free_bytes / MIB:,.0f} MiB are free.")
    left = free_bytes - need.bytes
    if need.bytes and (at_least or left < FIT_MARGIN_BYTES or left < 0.05 * total_bytes):
        return Fit("tight", need.bytes, f"{at_least}{whole}, {left / MIB:,.0f} MiB stay free: it may fail to load.")
    return Fit("fits", need.bytes, f"{whole}, {left / MIB:,.0f} MiB stay free.")
