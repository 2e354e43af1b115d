"""What a server does for all its clients, seen from outside: no proxy, and never a request that generates.

A llama.cpp server shows its slots, Ollama's engines are such servers, vLLM counts tokens in `/metrics`. What takes
long (Ollama's `/api/ps` can block for seconds, finding processes takes milliseconds) runs in a thread of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from chimera.domain.readings import Missing
from chimera.domain.server import ServerKind
from chimera.domain.telemetry import ServerSample

from .llama_watch import LlamaWatch
from .ollama_watch import OllamaWatch
from .openai_watch import OpenAIWatch
from .peek import NoAnswer
from .watching import AWAY_S, BUSY_S, IDLE_S, Look, hidden


class ServerWatch:
    """Watches one server.

    Args:
        kind: What the server is.
        url: Its address.
        clock: Monotonic seconds.
    """

    def __init__(self, kind: ServerKind, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.kind: ServerKind = kind
        self.url = url.rstrip("/")
        self.latest = ServerSample(at=float("-inf"))
        """The last sample."""
        self._clock = clock
        self._reading = threading.Lock()
        self._silent_since: float | None = None
        self._closed = False
        self._look: Look
        if kind == "ollama":
            self._look = OllamaWatch(self.url)
        elif kind == "openai":
            self._look = OpenAIWatch(self.url)
        else:
            self._look = LlamaWatch(self.url, ours=kind == "embedded")

    def read(self, now: float) -> ServerSample:
        """What the server does now. Never raises.

        Waits a second at most for each of the two or three things that it asks. Called while another thread reads,
        or too early, it gives the last sample.

        Args:
            now: Monotonic seconds.
        """
        if not self._reading.acquire(blocking=False):
            return self.latest
        try:
            if self._closed or 0 <= now - self.latest.at < BUSY_S / 2:
                return self.latest
            started = self._clock()
            try:
                sample = self._look.look(now, lambda: now + self._clock() - started)
                self._silent_since = None
            except NoAnswer as error:
                sample = self._silent(now, str(error))
            except Exception as error:  # noqa: BLE001 - a server may answer anything; the watch goes on
                sample = self._silent(now, f"its answer could not be read ({type(error).__name__})")
            self.latest = sample
            return sample
        finally:
            self._reading.release()

    def interval(self) -> float:
        """Seconds to wait before the next look: four looks a second while it works, one while it is idle."""
        sample = self.latest
        if not sample.reachable or sample.sleeping:
            return AWAY_S
        working = not isinstance(sample.busy, Missing) and sample.busy > 0
        return BUSY_S if working or sample.loading or sample.prefilling else IDLE_S

    def close(self) -> None:
        """Let go of connections and threads; the last sample stays. May be called twice."""
        self._closed = True
        with self._reading:
            self._look.close()

    def _silent(self, now: float, words: str) -> ServerSample:
        if self._silent_since is None:
            self._silent_since = now
        why = Missing("unreachable", words, self._silent_since)
        note = f"{self.url} does not answer: {words}"
        return replace(hidden(now, why), reachable=False, note=note, engine_pids=self.latest.engine_pids)
