"""One request, timed honestly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VoidReason = Literal[
    "cache-hit",        # the prompt, or its start, was cached: TTFT and prefill would be fake
    "short-output",     # it ended before the length that was asked for
    "reload-inside",    # the model was loaded inside the request
    "foreign-client",   # another client used the server meanwhile
    "truncated",        # prompt or output was cut to the context
    "refused",          # the server said no
    "error",            # the server failed, or its answer was no answer
    "timeout",          # nothing came for too long
    "interrupted",      # the worker was stopped or killed inside the session
    "shared-gpu",       # another program computed on the GPU during the session
    "same-settings",    # it loads what another candidate runs already, by what was read back: not measured again
]  # fmt: skip
"""Rules fixed beforehand; nothing is ever void because of its value."""

Role = Literal["warmup", "measure"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One request. Seconds are on the client's monotonic clock unless `timing_source` says otherwise.

    `queue_s + load_s + prefill_s + decode_s + other_s = total_s` wherever all of them are known; `other_s` is the
    honest rest: HTTP, the first sample, what nobody accounts for. None means unknown, never 0.
    """

    role: Role
    """`warmup`: the discarded first full-length request after a load. `measure`: it counts."""
    started_at: float
    """Wall clock, seconds since the epoch, when the request was sent."""
    total_s: float
    """Send to the end of the answer."""
    ttft_s: float | None = None
    """Send to the first token of any channel, thinking included."""
    queue_s: float | None = None
    load_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    other_s: float | None = None
    timing_source: Literal["server", "client"] = "client"
    """Who timed prefill and decode."""
    prompt_tokens: int | None = None
    """Tokens of the whole prompt, cached ones included, as the server counts."""
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    """As the server counts; where it does not tell, the events that came (`tokens_estimated`)."""
    tokens_estimated: bool = False
    client_decode_tok_s: float | None = None
    """(n-1) / (last - first token event), from our own stamps."""
    decode_tok_s: float | None = None
    """(n-1) / the server's decode time, where it tells; else None."""
    prefill_tok_s: float | None = None
    """Computed prompt tokens / prefill time; None where the cached share is unknown."""
    effective_tok_s: float | None = None
    """Output tokens / total_s: queue, load and prefill included."""
    itl_p50_s: float | None = None
    """Gap between token events (inter-token latency): median."""
    itl_p95_s: float | None = None
    itl_max_s: float | None = None
    finish_reason: str | None = None
    cold: bool = False
    void_reason: VoidReason | None = None
    error: str | None = None
    """A sentence, where `void_reason` is an error or a refusal."""
    retries: int = 0
    """1 where the connection was lost before any byte of the answer and the request was sent once more."""
    agent: int = 0
    instance: int = 0

    @property
    def valid(self) -> bool:
        """It counts: measured, and not void."""
        return self.role == "measure" and self.void_reason is None

    @property
    def rate(self) -> float | None:
        """The decode rate to show, tokens a second: the server's own where it tells, else ours."""
        return self.decode_tok_s if self.decode_tok_s is not None else self.client_decode_tok_s
