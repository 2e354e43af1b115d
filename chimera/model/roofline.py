"""The upper limit that memory bandwidth sets to decoding.

Each token reads the weights and the used part of the KV cache once, so bandwidth / bytes is a ceiling for tokens a
second that no setting lifts (the roofline model of Williams, Waterman and Patterson, 2009, for batch size 1). Real
rates fall with depth more than these bytes explain: measure at depth, do not extrapolate.
"""

from __future__ import annotations

from dataclasses import dataclass

from chimera.domain.options import KvCacheType

from .memory import kv_row_bytes
from .shape import ModelShape


@dataclass(frozen=True, slots=True)
class Read:
    """Bytes read from memory for one step, by where they lie."""

    gpu: int
    cpu: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.gpu + self.cpu


def read_weights(shape: ModelShape, num_gpu: int | None = None) -> Read | None:
    """Bytes of weights that one token reads; None where the sizes of the tensors are not known.

    Dense models read every tensor but the embedding tables, of which a token reads one row; a tied model reads its
    token embedding as the output head. Of routed experts `expert_used_count / expert_count` is read. Vision tensors
    are not read while decoding. `num_gpu` None or -1: all layers on GPUs. Source: llama.cpp's graph.
    """
    if shape.weight_bytes is None or shape.output_bytes is None:
        return None
    units = shape.units if num_gpu is None or num_gpu < 0 else min(num_gpu, shape.units)
    first = shape.units - units
    used = shape.expert_used_count / shape.expert_count if shape.expert_count and shape.expert_used_count else 1.0
    blocks = [
        size - round(experts * (1 - used)) for size, experts in zip(shape.block_bytes, shape.expert_bytes, strict=True)
    ]
    head = shape.output_bytes + ((shape.token_embd_bytes or 0) if shape.tied else 0)
    others = (
        shape.weight_bytes
        - sum(shape.block_bytes)
        - shape.output_bytes
        - shape.vision_bytes
        - (shape.lookup_bytes or 0)
    )
    if units == 0:
        return Read(0, sum(blocks) + head + others)
    return Read(sum(blocks[first:]) + head, sum(blocks[:first]) + others)


def read_kv(shape: ModelShape, depth: int, *, kv_type: KvCacheType = "f16", num_gpu: int | None = None) -> Read:
    """Bytes of KV cache that one token reads behind `depth` tokens.

    Sum over layers of min(depth, window) x (row(K) + row(V)); layers that share another's cache read that one.

    Raises:
        ConfigError: the cache type does not go with this model.
    """
    units = shape.units if num_gpu is None or num_gpu < 0 else min(num_gpu, shape.units)
    first = shape.units - units if units else shape.block_count
    gpu = cpu = 0
    for layer in range(shape.block_count):
        seen = min(depth, shape.sliding_window) if shape.is_local(layer) and shape.sliding_window else depth
        size = seen * kv_row_bytes(shape, _owner(shape, layer), kv_type)
        if layer >= first:
            gpu += size
        else:
            cpu += size
    return Read(gpu, cpu)


def _owner(shape: ModelShape, layer: int) -> int:
    """The layer whose cache this one reads: its own, or the last of its kind among those that have one."""
    if shape.own_kv_layers is None or layer < shape.own_kv_layers:
        return layer
    kind = shape.is_local(layer)
    return next((other for other in range(shape.own_kv_layers - 1, -1, -1) if shape.is_local(other) == kind), layer)


def bytes_per_token(
    shape: ModelShape, *, depth: int = 0, kv_type: KvCacheType = "f16", num_gpu: int | None = None
) -> Read | None:
    """Weights and KV cache that one token reads at batch size 1; None where the weights' sizes are not known."""
    weights = read_weights(shape, num_gpu)
    if weights is None:
        return None
    kv = read_kv(shape, depth, kv_type=kv_type, num_gpu=num_gpu)
    return Read(weights.gpu + kv.gpu, weights.cpu + kv.cpu)


def roof_tok_s(
    shape: ModelShape,
    bandwidth_gb_s: float,
    *,
    cpu_bandwidth_gb_s: float | None = None,
    depth: int = 0,
    kv_type: KvCacheType = "f16",
    num_gpu: int | None = None,
    batch: int = 1,
) -> float | None:
    """Most tokens a second that the bandwidth allows, over all sequences of a batch.

    A step takes bytes on the GPU / its bandwidth plus bytes on the host / its bandwidth (the parts run one after the
    other); weights are read once a step, the KV cache once for each sequence. For a mixture of experts all sequences
    are taken to choose the same experts, so that the figure stays a ceiling. GB/s are 10^9 bytes. With `num_gpu=0`
    there is only the host, and `bandwidth_gb_s` may stand for it. None where the tensors' sizes are not known, or
    where a part lies on the host and its bandwidth is not given.
    """
    weights = read_weights(shape, num_gpu)
    if weights is None:
        return None
    kv = read_kv(shape, depth, kv_type=kv_type, num_gpu=num_gpu)
    gpu, cpu = weights.gpu + batch * kv.gpu, weights.cpu + batch * kv.cpu
    seconds = gpu / (bandwidth_gb_s * 1e9) if gpu else 0.0
    if cpu:
        host = cpu_bandwidth_gb_s if cpu_bandwidth_gb_s is not None else bandwidth_gb_s if not gpu else None
        if host is None:
            return None
        seconds += cpu / (host * 1e9)
    return batch / seconds if seconds else None


def mbu(tok_s: float, bytes_a_token: int, bandwidth_gb_s: float) -> float:
    """Model bandwidth utilisation, 0 to 1: (weights + KV) / time per output token / peak bandwidth (Databricks)."""
    return tok_s * bytes_a_token / (bandwidth_gb_s * 1e9)
