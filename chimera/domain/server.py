"""What is known of a server and of the model that it serves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .options import Options
from .readings import Source

KEY_VARIABLE = "CHIMERA_API_KEY"
"""Environment variable with the key for a server that wants one; the only way to give one."""

ServerKind = Literal["ollama", "llama_server", "openai", "embedded"]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server that answered, identified by its answers."""

    kind: ServerKind
    url: str
    """Base address without a trailing slash; empty for the embedded engine before it runs."""
    version: str | None = None
    product: str = ""
    """What it calls itself where the kind is broad: `vLLM`, `LM Studio`."""

    @property
    def title(self) -> str:
        """For a heading: `Ollama 0.33.0`, `llama.cpp b11549 (embedded)`."""
        name = (
            self.product
            or {
                "ollama": "Ollama",
                "llama_server": "llama-server",
                "openai": "OpenAI-compatible server",
                "embedded": "llama.cpp (embedded)",
            }[self.kind]
        )
        return f"{name} {self.version}" if self.version else name


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as its server or its file describes it; None where neither tells."""

    name: str
    digest: str | None = None
    """Content digest, `sha256:...` or the server's own short form."""
    quantization: str | None = None
    architecture: str | None = None
    block_count: int | None = None
    trained_ctx: int | None = None
    size_bytes: int | None = None
    """Weights, as a file."""
    parameters: int | None = None
    vision: bool = False
    path: str | None = None
    """The GGUF file, where it lies on this host and may be read."""


@dataclass(frozen=True, slots=True)
class Effective:
    """What the server really runs after a configuration was asked for (rule: requested is not effective)."""

    options: Options = field(default_factory=Options)
    """Only what is known; an option that could not be read back is None."""
    sources: dict[str, Source] = field(default_factory=dict)
    """For each option above: `measured` (read back from the server) or `derived` (by a documented rule)."""
    notes: tuple[str, ...] = ()
    """Sentences for a person, one a difference: `num_gpu 80 runs as 19: the model has 18 layers + output`."""
    unread: tuple[str, ...] = ()
    """Options that were asked for and that this server does not let anyone read back."""
    size_bytes: int | None = None
    """Memory that the server says it allocated for the model, in all."""
    vram_bytes: int | None = None
    """Of that, on GPUs."""
    pid: int | None = None
    """The engine's process on this host, where it is known."""
