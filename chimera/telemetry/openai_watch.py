"""A server with only the OpenAI dialect looked at: vLLM counts for everybody, others tell nothing."""

from __future__ import annotations

from collections.abc import Callable

from chimera.domain.readings import PENDING, Missing, Reading
from chimera.domain.telemetry import ServerSample

from .peek import Peek
from .watching import SHORT_S, Counters, hidden, wants_key

_SPAN_S = 2.0
_UNTOLD = Missing("unsupported", "vLLM does not tell")
_MUTE = Missing("unsupported", "this server tells nobody what it does for its clients")


class OpenAIWatch:
    """Looks at one server."""

    def __init__(self, url: str) -> None:
        self._peek = Peek(url)
        self._counters = Counters("vllm:", "generation_tokens_total", _SPAN_S)
        self._counts: bool | None = None
        self._ttft: Reading = PENDING

    def look(self, now: float, stamp: Callable[[], float]) -> ServerSample:
        """One sample; raises `NoAnswer`."""
        if self._counts is not False:
            answer = self._peek.get("/metrics", SHORT_S)
            if why := wants_key(answer):
                return hidden(now, why)
            if answer.ok and self._counters.take(answer.text(), stamp()):
                self._counts = True
                return self._counted(now)
            self._counts = bool(self._counts)  # one that has counted before will do so again
        self._peek.get("/v1/models", SHORT_S)  # a sign of life; its answer says nothing of its work
        return hidden(now, _MUTE)

    def _counted(self, now: float) -> ServerSample:
        counters = self._counters
        rate: Reading = PENDING
        if counters.span >= _SPAN_S / 2:
            rate = counters.grown("generation_tokens_total") / counters.span
        answered = counters.grown("time_to_first_token_seconds_count")
        if answered > 0:
            self._ttft = counters.grown("time_to_first_token_seconds_sum") / answered
        running = counters.get("num_requests_running")
        waiting = counters.get("num_requests_waiting")
        return ServerSample(
            at=now,
            rate=rate,
            ttft_s=self._ttft,
            busy=_UNTOLD if running is None else running,
            waiting=_UNTOLD if waiting is None else waiting,
            models=_UNTOLD,
            via="/metrics",
            rate_window_s=counters.span,
            tokens_total=_UNTOLD if counters.tokens is None else counters.tokens,
        )

    def close(self) -> None:
        """Let go of the connection."""
        self._peek.close()
