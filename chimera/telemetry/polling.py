"""A server watched at its own rate, in a thread of its own: a slow server delays nobody, and nobody delays it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from chimera.domain.readings import Missing
from chimera.domain.server import ServerInfo

if TYPE_CHECKING:
    from chimera.domain.telemetry import ServerSample

    from .serverwatch import ServerWatch

SOON_S, SOON = 0.25, 8
"""The first so many looks follow each other quickly, until the server's models are known."""


class ServerPoll:
    """Looks at one server as often as it is worth it; which one may change at any time.

    Args:
        tell: Called in this thread with each new sample.
        clock: Monotonic seconds.
    """

    def __init__(
        self, tell: Callable[[ServerSample], object] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.slow = False
        """Look once a second at most: while a request of ours is timed, and its own figures tell more."""
        self._tell = tell
        self._clock = clock
        self._wanted: ServerInfo | None = None
        self._latest: ServerSample | None = None
        self._turn = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="server-poll", daemon=True)

    def watch(self, server: ServerInfo | None) -> None:
        """Watch this server from now on, or none."""
        if server is not None and not server.url:
            server = None
        if _key(server) == _key(self._wanted):
            return
        self._wanted, self._latest = server, None
        self._turn.set()
        if not self._thread.is_alive() and not self._ended:
            self._thread.start()

    def read(self, now: float) -> ServerSample:
        """The newest sample, at once; `Collector` asks for it."""
        from chimera.domain.telemetry import ServerSample  # the UI paints before it needs what is read

        return self._latest or ServerSample(at=now)

    @property
    def latest(self) -> ServerSample | None:
        """The newest sample; None where nothing is watched, or nothing was seen yet."""
        return self._latest

    def close(self) -> None:
        """End, without waiting for an answer in flight."""
        self._ended = True
        self._turn.set()

    def _run(self) -> None:
        from .serverwatch import ServerWatch

        watch: ServerWatch | None = None
        of: ServerInfo | None = None
        looks = 0
        while not self._ended:
            self._turn.clear()
            if self._wanted is not of:
                if watch is not None:
                    watch.close()
                of, looks = self._wanted, 0
                watch = ServerWatch(of.kind, of.url, clock=self._clock) if of is not None else None
            if watch is None:
                self._turn.wait()
                continue
            began = self._clock()
            sample = watch.read(began)
            if of is self._wanted and sample is not self._latest and not self._ended:
                self._latest = sample
                if self._tell is not None:
                    self._tell(sample)
            looks += 1
            wait_s = SOON_S if looks < SOON and _unsettled(sample) else max(watch.interval(), 1.0 if self.slow else 0.0)
            self._turn.wait(max(wait_s - (self._clock() - began), 0.02))
        if watch is not None:
            watch.close()


def _unsettled(sample: ServerSample) -> bool:
    """What was asked beside the look, its models first of all, has not come in yet."""
    return isinstance(sample.models, Missing) and sample.models.reason == "pending" and sample.reachable


def _key(server: ServerInfo | None) -> tuple[str, str] | None:
    return None if server is None else (server.kind, server.url)
