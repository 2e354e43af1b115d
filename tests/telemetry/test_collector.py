"""GPUs, host and server in one snapshot, and what importing and watching cost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from chimera.domain.readings import Missing
from chimera.domain.telemetry import GpuCounters, GpuState, HostSample, ServerSample
from chimera.telemetry.collector import Collector
from chimera.telemetry.host import HostCollector

from .standin import nvml_env, run_json

ROOT = Path(__file__).parents[2]


class FakeGpus:
    quiet = False
    calls = 0

    def __init__(self) -> None:
        self.was_quiet: list[bool] = []
        self.closed = False

    def read(self, now: float) -> GpuState:
        self.calls += 8
        self.was_quiet.append(self.quiet)
        return GpuState(now)

    def counters(self, now: float, *, processes: bool = True) -> tuple[GpuCounters, ...]:
        return (GpuCounters("GPU-a", now, 5.0),)

    def free_bytes(self) -> float | None:
        return None

    def close(self) -> None:
        self.closed = True


class FakeHost:
    quiet = False

    def __init__(self) -> None:
        self.watched: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def read(self, now: float) -> HostSample:
        return HostSample(now)

    def watch(self, *, engine: Iterable[int] = (), own: Iterable[int] = ()) -> None:
        self.watched = (tuple(engine), tuple(own))


class FakeServer:
    def __init__(self) -> None:
        self.closed = False

    def read(self, now: float) -> ServerSample:
        return ServerSample(now, engine_pids=(41,))

    def close(self) -> None:
        self.closed = True


class Clock:
    """Each look at it takes a tenth of a second."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 0.1
        return self.now


def test_a_snapshot_joins_all_parts_and_tells_its_cost() -> None:
    gpus, host, server = FakeGpus(), FakeHost(), FakeServer()
    collector = Collector(server, gpus=gpus, host=host, clock=Clock(), own_pids=[7])
    collector.engine_pids = (40,)
    snapshot = collector.snapshot()
    assert snapshot.at == pytest.approx(100.1)
    assert snapshot.gpus.at == snapshot.at
    assert snapshot.server is not None
    assert host.watched == ((40, 41), (7,))
    assert snapshot.cost.nvml_calls == 8
    assert snapshot.cost.gpu_s == pytest.approx(0.1)
    assert snapshot.cost.server_s > 0
    assert snapshot.cost.host_s > 0
    assert not snapshot.cost.quiet


def test_quiet_reaches_every_part_and_is_recorded() -> None:
    gpus, host = FakeGpus(), FakeHost()
    collector = Collector(gpus=gpus, host=host)
    collector.quiet = True
    assert collector.snapshot().cost.quiet
    collector.quiet = False
    collector.snapshot()
    assert gpus.was_quiet == [True, False]
    assert not host.quiet


def test_close_lets_go_of_everything() -> None:
    gpus, server = FakeGpus(), FakeServer()
    collector = Collector(server, gpus=gpus, host=FakeHost())
    collector.close()
    assert gpus.closed
    assert server.closed


def test_counters_are_those_of_the_gpus_now() -> None:
    (counters,) = Collector(gpus=FakeGpus(), host=FakeHost(), clock=lambda: 5.0).counters()
    assert (counters.at, counters.energy_j) == (5.0, 5.0)


def test_a_snapshot_of_this_machine_costs_little() -> None:
    collector = Collector(host=HostCollector())
    collector.snapshot()
    cost = []
    for _ in range(3):
        time.sleep(0.9)
        cost.append(collector.snapshot().cost.cpu_s)
    collector.close()
    assert min(cost) < 0.05


REAL = """
import json, time
from chimera.telemetry.collector import Collector
collector = Collector()
collector.snapshot(); time.sleep(1.0)
snapshot = collector.snapshot()
print(json.dumps({"gpus": len(snapshot.gpus.samples), "calls": snapshot.cost.nvml_calls, "cpu": snapshot.cost.cpu_s}))
collector.close()
"""


def test_a_snapshot_with_eight_gpus_is_whole() -> None:
    (line,) = run_json(REAL, nvml_env("eight_gpus"))
    assert line["gpus"] == 8
    assert line["calls"] > 8 * 8


LIGHT = """
import sys
import chimera.telemetry.alerts, chimera.telemetry.collector, chimera.telemetry.serverwatch, chimera.telemetry.reasons
heavy = "httpx pydantic numpy sqlalchemy scipy optuna psutil pynvml textual rich http.client".split()
print([name for name in heavy if name in sys.modules])
watch = chimera.telemetry.serverwatch.ServerWatch("ollama", "http://127.0.0.1:9")
collector = chimera.telemetry.collector.Collector(watch)
print([name for name in heavy if name in sys.modules])
"""


def test_importing_and_building_the_telemetry_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"], done.stdout + done.stderr


def test_missing_is_never_zero() -> None:
    snapshot = Collector(gpus=FakeGpus(), host=HostCollector(proc=Path("/nowhere"), sys=Path("/nowhere"))).snapshot()
    assert isinstance(snapshot.host.pressure_cpu, Missing)
    assert isinstance(snapshot.host.cpu_limit_cores, Missing)
