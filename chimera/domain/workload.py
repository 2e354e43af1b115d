"""What is asked of the server, again and again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Workload:
    """The shape of the requests of a run."""

    prompt_tokens: int = 64
    output_tokens: int = 64
    requests: int = 5
    """Measured ones a session; one full-length request before them is discarded."""
    agents: int = 1
    """Clients at the same time."""
    instances: int = 1
    """Servers that they are spread over."""
    prompt_file: str | None = None
    """A file with the prompt to use instead of a generated one. Its text is never stored."""
    fixed_prompt: bool = False
    """Send the same prompt each time, on purpose: the server's prompt cache then answers."""
    think_s: float = 0.0
    """Pause of each of several agents between an answer and its next request."""
    timeout_s: float = 120.0
    """Longest time without a byte from the server before a request is given up."""

    def as_dict(self) -> dict[str, Any]:
        """For the journal and exports; `Workload(**d)` is its inverse."""
        return asdict(self)
