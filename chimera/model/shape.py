"""The shape of a model: what of its file decides about memory and speed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chimera.domain.server import ModelInfo
from chimera.domain.text import plain
from chimera.errors import ConfigError

from .gguf import GgufError, Header, SkippedArray, Tensor, part_paths, read_header

MAX_BLOCKS = 4096
"""More blocks than any model has; a file that claims more is broken."""

SLIDING_PERIODS: dict[str, tuple[int, bool]] = {
    "afmoe": (4, False),
    "cohere2": (4, False),
    "cohere2moe": (4, True),
    "exaone4": (4, False),
    "gemma2": (2, False),
    "gemma3": (6, False),
    "gemma3n": (5, False),
    "gpt-oss": (2, False),
    "llama4": (4, False),
    "olmo2": (4, False),
    "plamo3": (8, False),
    "smallthinker": (4, True),
}
"""Period of llama.cpp's sliding-window layers by architecture, and whether the period's first layer is the global one
(else its last). Files of these architectures do not carry the pattern. Source: llama.cpp, the loaders of the models."""

WINDOW_DEFAULTS: dict[str, int] = {"gemma2": 4096, "llama4": 8192}
"""Windows that llama.cpp assumes where the file names none."""

_OWN_KV_LAYERS: dict[str, int] = {"gemma3n": 20}
"""Architectures whose later layers use the cache of earlier ones: number of layers with a cache of their own."""

_BLOCK = re.compile(r"blk\.(\d+)\.")
_EXPERT = re.compile(r"_exps\b")
_INPUT = ("token_embd.", "token_embd_norm.", "token_types.", "position_embd.", "per_layer_token_embd.")
_LOOKUP = ("token_embd.weight", "per_layer_token_embd.weight", "position_embd.weight", "token_types.weight")
_VISION = ("v.", "mm.", "vision.", "mmproj.", "a.")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What decides how much memory a model takes and how many bytes a token reads. None means: not known."""

    architecture: str
    block_count: int
    embedding_length: int
    head_count: int
    head_count_kv: tuple[int, ...]
    """Key-value heads a layer; 0 for a layer without a cache."""
    key_length: int
    """Elements of one head's key."""
    value_length: int
    key_length_swa: int
    """The same for sliding-window layers, where a model makes a difference."""
    value_length_swa: int
    trained_ctx: int | None = None
    sliding_window: int | None = None
    """Tokens that a local layer looks back; None: every layer is global."""
    sliding_period: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    """For each layer: does it slide; empty: none does."""
    own_kv_layers: int | None = None
    """The first so many layers have a cache of their own; None: all."""
    expert_count: int = 0
    expert_used_count: int = 0
    vision: bool = False
    recurrent: bool = False
    """Has state-space layers: their state is not part of the KV forecast."""
    latent: bool = False
    """Multi-head latent attention: only keys are cached."""
    weight_bytes: int | None = None
    """All tensors together, vision included."""
    token_embd_bytes: int | None = None
    lookup_bytes: int | None = None
    """Tables of which a token reads one row each, the token embedding among them."""
    output_bytes: int | None = None
    """What runs after the last block; for a tied model the token embedding is read again there."""
    tied: bool = False
    """No `output.weight`: the token embedding serves as the head as well."""
    block_bytes: tuple[int, ...] = ()
    """Weights of each block; empty where not known."""
    expert_bytes: tuple[int, ...] = ()
    """Of these, in routed experts."""
    vision_bytes: int = 0
    name: str = ""
    parameters: int | None = None
    quantization: str | None = None

    @property
    def units(self) -> int:
        """What `num_gpu` counts: the blocks and the output layer."""
        return self.block_count + 1

    def is_local(self, layer: int) -> bool:
        """Does this layer keep only a sliding window."""
        return bool(self.sliding_layers) and self.sliding_layers[layer]

    def info(self, *, name: str | None = None, path: Path | None = None) -> ModelInfo:
        """The same for a heading or the journal."""
        return ModelInfo(
            name=name or self.name or self.architecture,
            quantization=self.quantization,
            architecture=self.architecture,
            block_count=self.block_count,
            trained_ctx=self.trained_ctx,
            size_bytes=self.weight_bytes,
            parameters=self.parameters,
            vision=self.vision,
            path=str(path) if path else None,
        )


def from_gguf(path: Path | str) -> ModelShape:
    """The shape of the model in a file; a split model's other parts are read as well.

    Raises:
        GgufError: the file or a part of it is missing, broken, cut off, or lacks a figure that every model has.
    """
    header = read_header(path)
    parts = part_paths(header)
    headers = [header if part == header.path else _read_part(part, header) for part in parts]
    metadata = dict(headers[0].metadata)
    tensors = tuple(tensor for part in headers for tensor in part.tensors)
    values = {key: value for key, value in metadata.items() if not isinstance(value, SkippedArray)}
    return _shape(values, tensors, plain(str(path)), GgufError)


def from_show(body: Mapping[str, Any]) -> ModelShape:
    """The shape of a model from the body of Ollama's `/api/show`; heads a layer come from the table of tensors.

    Raises:
        ConfigError: the body lacks a figure that every model has.
    """
    where = "the answer of /api/show"
    info = body.get("model_info")
    if not isinstance(info, Mapping):
        raise ConfigError(f"{where} has no model_info: it is of another server, or of an Ollama before 0.1.40.")
    values: dict[str, Any] = {str(key): tuple(v) if isinstance(v, list) else v for key, v in info.items()}
    capabilities = body.get("capabilities")
    if isinstance(capabilities, list) and "vision" in capabilities:
        values["chimera.vision"] = True
    details = body.get("details")
    if isinstance(details, Mapping) and isinstance(details.get("quantization_level"), str):
        values["chimera.quantization"] = details["quantization_level"]
    return _shape(values, tuple(_shown_tensors(body.get("tensors"))), where, ConfigError)


def _read_part(path: Path, first: Header) -> Header:
    if not path.exists():
        raise GgufError(
            f"{plain(str(path))}: is missing: the model is split over {first.split_count} files "
            f"(split.count) and {plain(first.path.name)} is one of them. Put all parts into one folder."
        )
    return read_header(path)


def _shown_tensors(rows: object) -> Iterable[Tensor]:
    if not isinstance(rows, list):
        return
    for row in rows:
        if not isinstance(row, Mapping):
            continue
        name, kind, shape = row.get("name"), row.get("type"), row.get("shape")
        if isinstance(name, str) and isinstance(kind, str) and isinstance(shape, list):
            sizes = tuple(size for size in shape if isinstance(size, int) and size >= 0)
            if len(sizes) == len(shape):
                yield Tensor(name, kind.upper(), sizes)


@dataclass(frozen=True, slots=True)
class _Keys:
    """Typed look-ups under the architecture's prefix."""

    values: Mapping[str, Any]
    architecture: str
    where: str
    error: type[ConfigError]

    def integer(self, key: str) -> int | None:
        value = self.values.get(f"{self.architecture}.{key}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value or value < 0:
            return None
        return int(value) if value < 1 << 62 else None

    def required(self, key: str, limit: int = 1 << 31) -> int:
        value = self.integer(key)
        if value is None or not 0 < value <= limit:
            raise self.error(
                f"{self.where}: {plain(self.architecture)}.{key} is missing or no sensible number, "
                "so nothing can be said of this model's memory and layers."
            )
        return value

    def per_layer(self, key: str, layers: int) -> tuple[int, ...] | None:
        value = self.values.get(f"{self.architecture}.{key}")
        if isinstance(value, tuple):
            numbers = tuple(int(v) for v in value if isinstance(v, int | float) and 0 <= v < 1 << 31)
            return numbers[:layers] if len(numbers) >= layers else None
        single = self.integer(key)
        return None if single is None else (single,) * layers


def _shape(values: Mapping[str, Any], tensors: tuple[Tensor, ...], where: str, error: type[ConfigError]) -> ModelShape:
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise error(f"{where}: general.architecture is missing. It is not a language model's file.")
    keys = _Keys(values, architecture, where, error)
    layers = keys.required("block_count", MAX_BLOCKS)
    embedding = keys.required("embedding_length")
    heads_each = keys.per_layer("attention.head_count", layers)
    heads = max(heads_each, default=0) if heads_each else 0
    key_length = keys.integer("attention.key_length") or (embedding // heads if heads else 0)
    value_length = keys.integer("attention.value_length") or (embedding // heads if heads else 0)
    latent = keys.integer("attention.key_length_mla") is not None
    window = keys.integer("attention.sliding_window") or WINDOW_DEFAULTS.get(architecture)
    sliding, period = _sliding(values, architecture, layers) if window else ((), None)
    shared = keys.integer("attention.shared_kv_layers")
    weights = _weights(tensors, layers)
    vision_keys = any(key.startswith((f"{architecture}.vision.", "clip.vision.")) for key in values)
    names = {tensor.name for tensor in tensors}
    name = values.get("general.name")
    quantization = values.get("chimera.quantization")
    key_length_swa = keys.integer("attention.key_length_swa") or key_length
    value_length_swa = keys.integer("attention.value_length_swa") or value_length
    return ModelShape(
        architecture=architecture,
        block_count=layers,
        embedding_length=embedding,
        head_count=heads,
        head_count_kv=keys.per_layer("attention.head_count_kv", layers)
        or _heads_of_tensors(
            tensors,
            tuple(key_length_swa if sliding and sliding[layer] else key_length for layer in range(layers)),
        )
        or heads_each
        or (0,) * layers,
        key_length=key_length,
        value_length=value_length,
        key_length_swa=key_length_swa,
        value_length_swa=value_length_swa,
        trained_ctx=keys.integer("context_length"),
        sliding_window=window if sliding else None,
        sliding_period=period,
        sliding_layers=sliding,
        own_kv_layers=max(0, layers - shared) if shared else _OWN_KV_LAYERS.get(architecture),
        expert_count=keys.integer("expert_count") or 0,
        expert_used_count=keys.integer("expert_used_count") or 0,
        vision=values.get("chimera.vision") is True or vision_keys or weights.vision > 0,
        recurrent=any(key.startswith(f"{architecture}.ssm.") for key in values),
        latent=latent,
        weight_bytes=weights.total,
        token_embd_bytes=weights.token_embd,
        lookup_bytes=weights.lookup,
        output_bytes=weights.output,
        tied="token_embd.weight" in names and "output.weight" not in names,
        block_bytes=weights.blocks,
        expert_bytes=weights.experts,
        vision_bytes=weights.vision,
        name=plain(name) if isinstance(name, str) else "",
        parameters=_parameters(values, tensors),
        quantization=plain(quantization) if isinstance(quantization, str) else _quantization(values),
    )


def _sliding(values: Mapping[str, Any], architecture: str, layers: int) -> tuple[tuple[bool, ...], int | None]:
    """Which layers slide: by the file's own pattern, else by what is known of the architecture, else none.

    An architecture that is not known here counts as all global, which is what llama.cpp does with those that it
    loads without a window, and too much for the others.
    """
    pattern = values.get(f"{architecture}.attention.sliding_window_pattern")
    period, global_first = SLIDING_PERIODS.get(architecture, (None, False))
    if isinstance(pattern, tuple) and pattern:
        return tuple(bool(pattern[layer % len(pattern)]) for layer in range(layers)), None
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern >= 0:
        period = pattern
    if period is None:
        return (), None
    if period == 0:
        return (True,) * layers, 0
    place = 0 if global_first else period - 1
    return tuple(layer % period != place for layer in range(layers)), period


def _heads_of_tensors(tensors: tuple[Tensor, ...], key_lengths: tuple[int, ...]) -> tuple[int, ...] | None:
    """Key-value heads a layer from the shapes of the key projections; `/api/show` gives arrays only when verbose."""
    found: dict[int, int] = {}
    for tensor in tensors:
        match = _BLOCK.match(tensor.name)
        if match and tensor.name.endswith(".attn_k.weight") and len(tensor.shape) == 2:
            layer = int(match[1])
            if layer < len(key_lengths) and key_lengths[layer]:
                found[layer] = tensor.shape[1] // key_lengths[layer]
    return tuple(found.get(layer, 0) for layer in range(len(key_lengths))) if found else None


@dataclass(frozen=True, slots=True)
class _Weights:
    total: int | None
    token_embd: int | None
    lookup: int | None
    output: int | None
    blocks: tuple[int, ...]
    experts: tuple[int, ...]
    vision: int


def _weights(tensors: tuple[Tensor, ...], layers: int) -> _Weights:
    blocks, experts = [0] * layers, [0] * layers
    total = vision = lookup = output = 0
    token_embd: int | None = None
    known = bool(tensors)
    for tensor in tensors:
        size = tensor.bytes
        if size is None:
            known = False
            continue
        total += size
        match = _BLOCK.match(tensor.name)
        if match and int(match[1]) < layers:
            blocks[int(match[1])] += size
            if _EXPERT.search(tensor.name):
                experts[int(match[1])] += size
        elif tensor.name.startswith(_VISION):
            vision += size
        elif tensor.name.startswith(_INPUT):
            if tensor.name == "token_embd.weight":
                token_embd = size
            if tensor.name in _LOOKUP:
                lookup += size
        else:
            output += size
    if not known:
        return _Weights(None, token_embd, None, None, (), (), vision)
    return _Weights(total, token_embd, lookup, output, tuple(blocks), tuple(experts), vision)


def _parameters(values: Mapping[str, Any], tensors: tuple[Tensor, ...]) -> int | None:
    stated = values.get("general.parameter_count")
    if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0:
        return stated
    total = 0
    for tensor in tensors:
        elements = 1
        for dimension in tensor.shape:
            elements *= dimension
        total += elements
    return total or None


_FILE_TYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip
"""Names of `general.file_type`; a label for people, never used to compute sizes."""


def _quantization(values: Mapping[str, Any]) -> str | None:
    number = values.get("general.file_type")
    return _FILE_TYPES.get(number) if isinstance(number, int) and not isinstance(number, bool) else None
