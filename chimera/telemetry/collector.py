"""GPUs, host and server joined into one snapshot a second, with what the watching itself costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

from chimera.domain.telemetry import Cost, GpuCounters, GpuState, HostSample, ServerSample, Snapshot

from .host import HostCollector
from .nvml import NvmlCollector

TICK_S = 1.0


class GpuSource(Protocol):
    """What gives the state of the GPUs."""

    quiet: bool
    calls: int

    def read(self, now: float) -> GpuState:
        """All GPUs; never raises."""

    def counters(self, now: float, *, processes: bool = True) -> tuple[GpuCounters, ...]:
        """The monotonic counters, and who computes where that is wanted; never raises."""

    def free_bytes(self) -> float | None:
        """Free memory of all GPUs now; None where it is not known. Never raises."""

    def close(self) -> None:
        """Let go of the driver."""


class HostSource(Protocol):
    """What gives the state of the host."""

    quiet: bool

    def read(self, now: float) -> HostSample:
        """This machine; never raises."""

    def watch(self, *, engine: Iterable[int] = (), own: Iterable[int] = ()) -> None:
        """Say whose processor time is whose."""


class ServerSource(Protocol):
    """What gives the state of the server."""

    def read(self, now: float) -> ServerSample:
        """What it does for all its clients; never raises."""

    def close(self) -> None:
        """Let go of connections."""


class Collector:
    """Takes snapshots for one thread, about one a second; the server may be polled oftener by another.

    Args:
        server: The watch of the server that is looked at, if any; may be replaced at any time.
        gpus: By default this host's, through NVML.
        host: By default this host.
        clock: Monotonic seconds.
        own_pids: Chimera's processes besides this one.
    """

    def __init__(
        self,
        server: ServerSource | None = None,
        *,
        gpus: GpuSource | None = None,
        host: HostSource | None = None,
        clock: Callable[[], float] = time.monotonic,
        own_pids: Iterable[int] = (),
    ) -> None:
        self.server = server
        self.gpus: GpuSource = gpus if gpus is not None else NvmlCollector(clock=clock)
        self.host: HostSource = host if host is not None else HostCollector()
        self.engine_pids: tuple[int, ...] = ()
        """The engine's processes where the server watch cannot find them: a child of our own."""
        self.own_pids: tuple[int, ...] = tuple(own_pids)
        self.quiet = False
        """Set while a request of ours is timed: costly reads pause."""
        self._clock = clock

    def snapshot(self) -> Snapshot:
        """Read everything that is due. Never raises; each part says itself what is missing."""
        cpu = time.thread_time()
        at = self._clock()
        self.gpus.quiet = self.host.quiet = self.quiet
        gpus = self.gpus.read(at)
        after_gpus = self._clock()
        server = self.server.read(self._clock()) if self.server is not None else None
        after_server = self._clock()
        pids = self.engine_pids + (server.engine_pids if server is not None else ())
        self.host.watch(engine=pids, own=self.own_pids)
        host = self.host.read(self._clock())
        after_host = self._clock()
        cost = Cost(
            nvml_calls=self.gpus.calls,
            gpu_s=after_gpus - at,
            server_s=after_server - after_gpus,
            host_s=after_host - after_server,
            cpu_s=time.thread_time() - cpu,
            quiet=self.quiet,
        )
        return Snapshot(at=at, gpus=gpus, host=host, server=server, cost=cost)

    def counters(self, *, processes: bool = True) -> tuple[GpuCounters, ...]:
        """Energy, throttle times and programs now, for the ends of a session."""
        return self.gpus.counters(self._clock(), processes=processes)

    def free_bytes(self) -> float | None:
        """Free memory of all GPUs at this moment, between two snapshots; None where it is not known."""
        return self.gpus.free_bytes()

    def close(self) -> None:
        """Let go of the driver and of the server's connections; may be called twice."""
        self.gpus.close()
        if self.server is not None:
            self.server.close()
