"""The blame line of a session, from what was seen beside it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from chimera.domain.telemetry import (
    Cost,
    GpuCounters,
    GpuInfo,
    GpuProcess,
    GpuSample,
    GpuState,
    HostSample,
    Snapshot,
)
from chimera.runner.sampler import Sampler, session_facts
from tests.diagnosis.builders import measurement


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


def test_what_is_not_known_is_left_out() -> None:
    facts = session_facts([Snapshot(1.0, GpuState(1.0), HostSample(1.0))], tokens=0)
    assert facts == {}


def test_memory_of_the_engine_before_and_of_the_load_is_not_the_sessions() -> None:
    readings = [seen(10, 100, 1.0, 50.0), seen(12, 118, 1.0, 90.0), seen(14, 136, 2.0, 250.0)]
    assert session_facts(readings[::-1], 100, loaded_at=13.0)["gpu_vram_peak_bytes"] == 14e9
    assert "gpu_vram_peak_bytes" not in session_facts(readings, 100, loaded_at=15.0)


def test_programs_are_those_of_the_session_where_requests_left_no_moment_to_look() -> None:
    before = seen(10, 100, 1.0, 50.0)  # nobody was seen yet
    programs = (GpuProcess(7, "llama-server", sm_percent=60.0), GpuProcess(9, "python3", sm_percent=33.0))
    facts = session_facts([before], 100, engine=frozenset({7}), programs={"GPU-a": programs})
    assert facts["foreign_gpu_percent"] == 33.0


def test_energy_is_of_the_requests_and_not_of_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    joules = iter([100.0, 500.0, 600.0])
    looks: list[float] = []

    class Driver:
        def counters(self) -> tuple[GpuCounters, ...]:
            value = next(joules)
            return (GpuCounters("GPU-a", value, value),)

        def programs(self) -> dict[str, tuple[GpuProcess, ...]]:
            looks.append(0.0)
            return {}

    sampler = Sampler(cast("Any", None), "r1")
    monkeypatch.setattr(sampler, "_collector", Driver())
    sampler.begin_session()
    sampler._session.append(seen(10, 100, 1.0, 50.0))
    sampler.loaded()
    facts = sampler.end_session([measurement(completion_tokens=50)])
    assert facts["energy_j_per_token"] == 2.0
    assert len(looks) == 2, "shares are since the load, not since some earlier look"
