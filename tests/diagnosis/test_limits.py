"""Both sides of limits that the cases of the rules only pass from afar."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chimera.diagnosis.evidence import Request
from chimera.domain.readings import Missing
from chimera.domain.telemetry import GpuProcess

from .builders import (
    GIB,
    WALL,
    cause_ids,
    cpu_only,
    found,
    gpu,
    gpus,
    healthy,
    hosts,
    measurement,
    must,
    past,
    rates,
    requests,
    servers,
)


def waiting(**parts: Any) -> tuple[Request, ...]:
    return requests(6, gap_s=70.0, **parts)


def test_a_person_waits_ten_seconds_and_not_five() -> None:
    long = waiting(ttft_s=11.0, prefill_s=10.8, total_s=12.0)
    assert must(healthy(requests=long, history=()), "high-ttft").severity == "notice"
    half = waiting(ttft_s=5.0, prefill_s=4.9, total_s=6.0)
    assert found(healthy(requests=half, history=()), "high-ttft") is None


@pytest.mark.parametrize(("now", "high"), [(0.29, False), (0.45, True)])
def test_a_ttft_is_high_from_one_and_a_half_times_the_baseline(now: float, high: bool) -> None:
    evidence = healthy(requests=requests(ttft_s=now, prefill_s=now - 0.02))
    assert (found(evidence, "high-ttft") is not None) is high


@pytest.mark.parametrize(("wait", "ttft", "seen"), [(0.3, 0.5, True), (0.3, 2.0, False), (0.2, 0.3, False)])
def test_a_wait_must_be_a_third_of_the_ttft_and_a_quarter_of_a_second(wait: float, ttft: float, seen: bool) -> None:
    evidence = healthy(requests=requests(queue_s=wait, ttft_s=ttft, prefill_s=0.1, total_s=ttft + 0.8), history=())
    assert (found(evidence, "queueing") is not None) is seen


def with_loads(places: set[int], gap_s: float = 6.0) -> tuple[Request, ...]:
    return tuple(
        replace(each, measurement=replace(each.measurement, load_s=2.0, cold=True)) if i in places else each
        for i, each in enumerate(requests(12, gap_s=gap_s))
    )


def test_only_the_last_five_requests_speak_of_thrash() -> None:
    assert must(healthy(requests=with_loads({8, 11})), "reload-thrash")
    assert found(healthy(requests=with_loads({2, 4})), "reload-thrash") is None


@pytest.mark.parametrize(("gap_s", "thrash"), [(30.0, True), (80.0, False)])
def test_a_load_after_more_than_a_minute_of_quiet_is_cold(gap_s: float, thrash: bool) -> None:
    evidence = healthy(requests=with_loads({8, 10, 11}, gap_s), clock_offset_s=None)
    assert (found(evidence, "reload-thrash") is not None) is thrash
    assert (found(evidence, "cold-load") is not None) is not thrash


@pytest.mark.parametrize(("load_s", "cold"), [(0.3, False), (0.7, True)])
def test_a_load_of_half_a_second_makes_a_request_cold(load_s: float, cold: bool) -> None:
    first = Request(measurement(-3.0, load_s=load_s, decode_tok_s=79.7), 1, "c0", 1)
    assert (found(healthy(requests=(first, *requests())), "cold-load") is not None) is cold


@pytest.mark.parametrize(("cached", "hit"), [(4, False), (8, True)])
def test_a_tenth_of_the_prompt_may_be_cached(cached: int, hit: bool) -> None:
    assert (found(healthy(requests=requests(cached_tokens=cached)), "prompt-cache-hit") is not None) is hit


@pytest.mark.parametrize(("free", "full"), [(0.3, True), (2.0, False)])
def test_vram_is_full_from_95_percent_on(free: float, full: bool) -> None:
    samples = gpus(vram_free_bytes=free * GIB, vram_used_bytes=(11.8 - free) * GIB)
    evidence = healthy(gpu_samples=samples, server_samples=servers(size=13e9, vram=9e9))
    assert (found(evidence, "vram-exhaustion") is not None) is full
    assert found(evidence, "cpu-offload") is not None


@pytest.mark.parametrize(("more", "told"), [(0.1, False), (0.5, True)])
def test_the_drivers_figure_above_the_servers_is_explained_from_200_mib(more: float, told: bool) -> None:
    held = (GpuProcess(77, "llama-server", 9e9 + more * GIB),)
    samples = gpus(vram_free_bytes=0.3 * GIB, vram_used_bytes=11.5 * GIB, processes=held)
    finding = must(healthy(gpu_samples=samples, server_samples=servers(size=13e9, vram=9e9)), "vram-exhaustion")
    assert ("vram-exhaustion/accounting" in cause_ids(finding)) is told


@pytest.mark.parametrize(("step", "hot"), [(0.03, True), (0.004, False)])
def test_heat_counts_from_one_percent_of_the_time(step: float, hot: bool) -> None:
    samples = tuple(gpu(i, throttle_s={"sw-thermal": step * i, "power-cap": step * i}) for i in range(12))
    evidence = healthy(gpu_samples=samples)
    assert (found(evidence, "thermal-throttling") is not None) is hot
    assert (found(evidence, "power-throttling") is not None) is hot


@pytest.mark.parametrize(("clocks", "hot"), [((1700.0,) * 3, True), ((1700.0,) * 2, False), ((1850.0,) * 6, False)])
def test_hot_and_slow_takes_three_samples_under_90_percent(clocks: tuple[float, ...], hot: bool) -> None:
    none = Missing("unsupported")
    late = tuple(
        gpu(6 + i, temperature_c=84.0, sm_mhz=each, reasons=none, throttle_s={}) for i, each in enumerate(clocks)
    )
    early = gpus(6, temperature_c=79.0, sm_mhz=1950.0, reasons=none, throttle_s={})
    assert (found(healthy(gpu_samples=early + late, requests=requests(12)), "thermal-throttling") is not None) is hot


@pytest.mark.parametrize(("foreign", "severity"), [(20.0, "notice"), (45.0, "warn")])
def test_foreign_load_is_a_warning_from_30_percent_on(foreign: float, severity: str) -> None:
    assert must(cpu_only(host_samples=hosts(foreign_cpu_percent=foreign)), "foreign-load").severity == severity


@pytest.mark.parametrize(("share", "severity"), [(10.0, "notice"), (30.0, "warn")])
def test_another_tenant_is_a_warning_from_20_percent_on(share: float, severity: str) -> None:
    tenant = (GpuProcess(9, "train", 1e9, share),)
    assert must(healthy(gpu_samples=gpus(processes=tenant)), "foreign-load").severity == severity


def test_a_pressure_of_two_percent_is_none() -> None:
    assert found(cpu_only(host_samples=hosts(pressure_memory=2.0)), "foreign-load") is None


def test_a_link_that_is_used_to_a_tenth_is_no_bottleneck() -> None:
    samples = gpus(pcie_gen=3.0, pcie_width=4.0, pcie_rx_bytes_s=0.4e9)
    assert found(healthy(gpu_samples=samples), "pcie-bottleneck") is None


def test_four_measurements_are_too_few_to_call_scatter() -> None:
    assert found(healthy(requests=rates([80, 60, 90, 70]), history=()), "measurement-noise") is None


@pytest.mark.parametrize(("wait", "seen"), [(0.03, False), (0.6, True)])
def test_times_to_first_token_must_scatter_by_a_quarter(wait: float, seen: bool) -> None:
    mixed = tuple(
        replace(each, measurement=replace(each.measurement, ttft_s=0.2 + wait * (i % 2), queue_s=wait * (i % 2)))
        for i, each in enumerate(requests(10))
    )
    evidence = healthy(requests=mixed, history=(past(ttft_s=None),))
    assert (found(evidence, "inconsistent-performance") is not None) is seen


def test_a_model_that_ran_half_as_long_ago_as_today_is_dated() -> None:
    finding = must(healthy(requests=requests(decode_tok_s=60.0), history=(past(100.0, version="0.1"),)),
                   "server-regression")  # fmt: skip
    assert finding.since == WALL - 86400


def test_a_card_that_works_a_little_is_not_unused() -> None:
    evidence = healthy(server_samples=(), gpu_samples=gpus(utilization=20.0))
    assert found(evidence, "gpu-unused") is None


def test_a_gpu_that_idled_for_three_samples_is_not_called_unused() -> None:
    evidence = healthy(requests=requests(2), server_samples=(), gpu_samples=gpus(3, utilization=1.0, reasons=1.0))
    assert found(evidence, "gpu-unused") is None
