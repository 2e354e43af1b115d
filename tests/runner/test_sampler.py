"""The blame line of a session, from what was seen beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from chimera.domain.run import Target
from chimera.domain.telemetry import Cost, GpuCounters, GpuInfo, GpuProcess, GpuSample, GpuState, HostSample, Snapshot
from chimera.domain.workload import Workload
from chimera.runner import sampler
from chimera.runner.sampler import Sampler, session_facts
from chimera.store.blame import power_view
from chimera.store.journal import Journal
from tests.diagnosis.builders import measurement

from .test_worker import journal, wait_until

__all__ = ["journal"]


def seen(at: float, calls: int, held_s: float, energy_j: float) -> Snapshot:
    gpu = GpuSample(
        "GPU-a", at, throttle_s={"sw-thermal": held_s, "power-cap": 0.0}, energy_j=energy_j, vram_used_bytes=at * 1e9,
        sm_mhz=1000 + at,
    )  # fmt: skip
    host = HostSample(at, own_cpu_percent=2.0 + at / 10, foreign_cpu_percent=5.0)
    return Snapshot(at, GpuState(at, (GpuInfo("GPU-a", 0, "A"),), (gpu,)), host, None, Cost(nvml_calls=calls))


def test_what_held_a_session_back_and_what_watching_it_took() -> None:
    facts = session_facts([seen(10, 100, 1.0, 50.0), seen(12, 118, 1.0, 90.0), seen(14, 136, 2.0, 250.0)], tokens=100)
    assert facts["throttle_shares"] == {"sw-thermal": 0.25, "power-cap": 0.0}
    assert (facts["throttled_share"], facts["power_capped_share"]) == (0.25, 0.0)
    assert (facts["energy_j"], facts["energy_j_per_token"]) == (200.0, 2.0)
    assert facts["gpu_vram_peak_bytes"] == 14e9
    assert facts["nvml_calls_s"] == 9.0
    assert facts["own_cpu_percent"] == pytest.approx(3.2)


def test_energy_and_throttling_are_of_the_whole_session_where_its_ends_were_read() -> None:
    readings = [seen(10, 100, 1.0, 50.0), seen(12, 118, 1.0, 90.0)]
    before = (GpuCounters("GPU-a", 9.0, 10.0, {"sw-thermal": 0.5}),)
    after = (GpuCounters("GPU-a", 13.0, 110.0, {"sw-thermal": 1.5}), GpuCounters("GPU-b", 13.0, 1.0))
    facts = session_facts(readings, 100, before, after)
    assert facts["energy_j_per_token"] == 1.0
    assert facts["throttle_shares"] == {"sw-thermal": 0.25}
    assert session_facts(readings, 100, before)["energy_j"] == 40.0, "one end alone says nothing"
    assert "energy_j" not in session_facts(readings[:1], 100), "one reading is no energy, not none"


class Growing:
    """A collector of one GPU whose limits are known from the second look on."""

    def __init__(self) -> None:
        self.server = None
        self.engine_pids: tuple[int, ...] = ()
        self.quiet = False
        self.looks = 0

    def snapshot(self) -> Snapshot:
        self.looks += 1
        at = float(self.looks)
        info = GpuInfo("GPU-a", 0, "A")
        if self.looks > 1:
            info = replace(info, power_min_w=100.0, power_max_w=400.0, power_default_w=350.0)
        return Snapshot(at, GpuState(at, (info,), (GpuSample("GPU-a", at),)), HostSample(at))

    def close(self) -> None:
        pass


def test_what_is_learnt_of_a_gpu_later_is_kept_with_the_run_once(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing = Growing()
    monkeypatch.setattr("chimera.telemetry.collector.Collector", lambda: growing)
    monkeypatch.setattr(sampler, "SAMPLE_S", 0.01)
    kept: list[object] = []
    identify = journal.identify

    def noted(run_id: str, **more: Any) -> None:
        kept.append(more)
        identify(run_id, **more)

    monkeypatch.setattr(journal, "identify", noted)
    run = journal.create_run("run", Target("ollama", "http://127.0.0.1:9"), Workload(), seed=1, trials=[])
    watch = Sampler(journal, run.id)
    watch.start()
    wait_until(lambda: growing.looks > 4, 10)
    watch.stop()
    assert len(kept) == 2, "written when it changed, not with each sample"
    (view,) = power_view(journal.run(run.id))
    assert (view["min_w"], view["max_w"]) == (100.0, 400.0)


def test_what_is_not_known_is_left_out() -> None:
    facts = session_facts([Snapshot(1.0, GpuState(1.0), HostSample(1.0))], tokens=0)
    assert facts == {}


def test_memory_of_the_engine_before_and_of_the_load_is_not_the_sessions() -> None:
    readings = [seen(10, 100, 1.0, 50.0), seen(12, 118, 1.0, 90.0), seen(14, 136, 2.0, 250.0)]
    assert session_facts(readings[::-1], 100, since=13.0)["gpu_vram_peak_bytes"] == 14e9
    assert "gpu_vram_peak_bytes" not in session_facts(readings, 100, since=15.0)


def test_programs_are_those_of_the_session_where_requests_left_no_moment_to_look() -> None:
    nobody_yet = seen(10, 100, 1.0, 50.0)
    programs = (GpuProcess(7, "llama-server", sm_percent=60.0), GpuProcess(9, "python3", sm_percent=33.0))
    after = (GpuCounters("GPU-a", 12.0, processes=programs),)
    facts = session_facts([nobody_yet], 100, (), after, engine=frozenset({7}))
    assert facts["foreign_gpu_percent"] == 33.0


def test_energy_is_of_the_requests_and_not_of_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    joules = iter([500.0, 600.0, 700.0, 900.0])
    looks: list[bool] = []

    class Driver:
        def counters(self, *, processes: bool = True) -> tuple[GpuCounters, ...]:
            looks.append(processes)
            value = next(joules)
            return (GpuCounters("GPU-a", value, value),)

    watch = Sampler(cast("Any", None), "r1")
    monkeypatch.setattr(watch, "_collector", Driver())
    watch.begin_session()
    watch._session.append(seen(10, 100, 1.0, 50.0))
    watch.begin_requests()
    facts = watch.end_session([measurement(completion_tokens=50)])
    assert facts["energy_j_per_token"] == 2.0
    assert looks == [True, True], "shares are since the load, not since some earlier look"
    watch.begin_session()
    watch.begin_requests()
    watch._session.append(seen(10, 100, 1.0, 50.0))
    watch.interrupted()
    facts = watch.end_session([measurement(completion_tokens=50)])
    assert not {"energy_j", "energy_j_per_token", "throttled_share"} & set(facts), "a pause is not the requests' time"
