"""The options that can be asked of a server, by Ollama's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

KvCacheType = Literal["f16", "q8_0", "q4_0"]
KV_CACHE_TYPES: tuple[KvCacheType, ...] = get_args(KvCacheType)
FlashAttention = Literal["on", "off", "auto"]
FLASH_ATTENTION: tuple[FlashAttention, ...] = get_args(FlashAttention)

OptionValue = int | float | str


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of one configuration; None means "not asked for", the server's default then holds."""

    num_gpu: int | None = None
    """Layers on the GPU, the output layer counted; -1 = automatic, 0 = CPU."""
    num_ctx: int | None = None
    """Context per slot, in tokens."""
    num_batch: int | None = None
    """Batch and micro-batch, in tokens."""
    num_thread: int | None = None
    """CPU threads."""
    flash_attention: FlashAttention | None = None
    kv_cache_type: KvCacheType | None = None
    num_parallel: int | None = None
    """Slots: requests served at the same time."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repeat_penalty: float | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Options:
        """Options from a mapping; keys that are no option are left out.

        The caller validates values: this is for what was validated or written by us before.
        """
        return cls(**{name: values[name] for name in OPTION_NAMES if values.get(name) is not None})

    def as_dict(self) -> dict[str, OptionValue]:
        """The options that are set, in their fixed order."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def over(self, other: Options) -> Options:
        """These options, and the other's where these are silent."""
        return Options.of({**other.as_dict(), **self.as_dict()})

    def only(self, names: frozenset[str]) -> Options:
        """Just the named ones."""
        return Options.of({name: value for name, value in self.as_dict().items() if name in names})

    @property
    def load(self) -> Options:
        """The part that makes a server reload its model."""
        return self.only(LOAD_OPTIONS)

    @property
    def sampling(self) -> Options:
        """The part that a server takes with each request."""
        return self.only(SAMPLING_OPTIONS)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.as_dict().items()) or "server defaults"


OPTION_NAMES: tuple[str, ...] = tuple(field.name for field in fields(Options))
SAMPLING_OPTIONS: frozenset[str] = frozenset({"temperature", "top_p", "top_k", "repeat_penalty"})
LOAD_OPTIONS: frozenset[str] = frozenset(OPTION_NAMES) - SAMPLING_OPTIONS

OPTION_RANGES: dict[str, tuple[float, float]] = {
    "num_gpu": (-1, 100_000),
    "num_ctx": (1, 100_000_000),
    "num_batch": (1, 1_048_576),
    "num_thread": (1, 4096),
    "num_parallel": (1, 256),
    "temperature": (0, 5),
    "top_p": (0, 1),
    "top_k": (0, 1_000_000),
    "repeat_penalty": (0, 10),
}
"""Smallest and largest value that makes sense; the server may clamp further."""
