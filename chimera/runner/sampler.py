"""Telemetry beside a run: one snapshot a second into the journal, from a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from chimera.domain.readings import PENDING
from chimera.domain.server import ServerInfo
from chimera.domain.telemetry import Snapshot

if TYPE_CHECKING:
    from chimera.store.journal import Journal
    from chimera.telemetry.collector import Collector

SAMPLE_S = 1.0
_log = logging.getLogger(__name__)
_PENDING = asdict(PENDING)


class Sampler:
    """Reads GPUs, host and server while a run goes on; costly reads pause while a request is timed."""

    def __init__(self, journal: Journal, run_id: str) -> None:
        self._journal = journal
        self._run_id = run_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="telemetry", daemon=True)
        self._collector: Collector | None = None
        self._quiet = False
        self._server: ServerInfo | None = None
        self._engine: tuple[int, ...] = ()

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def quiet(self, timing: bool) -> None:
        """A request of ours is being timed, or has ended."""
        self._quiet = timing
        if self._collector is not None:
            self._collector.quiet = timing

    def watch(self, server: ServerInfo | None, engine_pid: int | None) -> None:
        """What is watched from now on."""
        self._server = server
        self._engine = (engine_pid,) if engine_pid else ()

    def stop(self) -> None:
        """End; waits for a reading in flight, but not for ever."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _sample(self) -> None:
        from chimera.telemetry.collector import Collector
        from chimera.telemetry.serverwatch import ServerWatch

        self._collector = collector = Collector()
        collector.quiet = self._quiet
        watched: ServerInfo | None = None
        try:
            while not self._ended.wait(SAMPLE_S):
                if self._server != watched:
                    watched = self._server
                    if collector.server is not None:
                        collector.server.close()
                    collector.server = ServerWatch(watched.kind, watched.url) if watched else None
                collector.engine_pids = self._engine
                self._journal.add_samples(self._run_id, [(time.time(), encode(collector.snapshot()))])
        except Exception:  # noqa: BLE001 - a run must not end because watching it failed
            _log.exception("telemetry ended")
        finally:
            collector.close()


def encode(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as the journal keeps it: what was not read is left out, a missing reading keeps its reason."""
    kept: dict[str, Any] = _without_pending(asdict(snapshot))
    return kept


def _without_pending(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_pending(one) for key, one in value.items() if one is not None and one != _PENDING}
    if isinstance(value, list | tuple):
        return [_without_pending(one) for one in value]
    return value
