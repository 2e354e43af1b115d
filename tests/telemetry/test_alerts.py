"""Alerts that stay, over snapshots with invented times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chimera.domain.readings import Missing
from chimera.domain.telemetry import (
    GpuInfo,
    GpuProcess,
    GpuSample,
    GpuState,
    HostSample,
    LoadedModel,
    ServerSample,
    Snapshot,
    Throttle,
)
from chimera.telemetry.alerts import HOLD_S, AlertBook
from chimera.telemetry.reasons import BY_ID, REASONS, decode, describe_xid

GIB = 2**30
INFO = GpuInfo("GPU-a", 0, "Card")
HEALTHY = GpuSample(
    "GPU-a", 0.0, vram_total_bytes=24.0 * GIB, vram_used_bytes=10.0 * GIB, vram_reserved_bytes=0.4 * GIB, margin_c=30.0
)


def snapshot(at: float, sample: GpuSample = HEALTHY, **more: object) -> Snapshot:
    state = GpuState(at, (INFO,), (replace(sample, at=at),))
    return replace(Snapshot(at, state, HostSample(at)), **more)  # type: ignore[arg-type]  # any field of a snapshot


def throttled(share: float, reason: str = "sw-thermal", seconds: float | None = None) -> GpuSample:
    return replace(HEALTHY, throttles=(Throttle(reason, share, "counter", seconds),))


def test_a_healthy_gpu_raises_nothing() -> None:
    book = AlertBook()
    assert [book.see(snapshot(float(at))) for at in range(5)] == [()] * 5
    assert book.alerts == ()
    assert book.marks == ()


def test_throttling_that_is_over_stays_listed_with_its_times_and_worst_share() -> None:
    book = AlertBook()
    for at, share in enumerate([0.0, 0.2, 0.6, 0.3, 0.0]):
        book.see(snapshot(float(at), throttled(share, seconds=share) if share else HEALTHY))
    book.see(snapshot(20.0))
    (alert,) = book.alerts
    assert (alert.code, alert.severity, alert.active, alert.count) == ("throttle", "warning", False, 1)
    assert (alert.first, alert.last) == (1.0, 3.0)
    assert alert.total_s == pytest.approx(1.1)
    assert alert.worst == 60
    assert [(mark.at, mark.kind) for mark in book.marks] == [(1.0, "alert")]


def test_a_pause_shorter_than_the_hold_is_one_episode_and_a_longer_one_two() -> None:
    book = AlertBook()
    begun = []
    for at in (0.0, 1.0, HOLD_S, 1.0 + 3 * HOLD_S):
        begun.append(len(book.see(snapshot(at, throttled(0.5)))))
        book.see(snapshot(at + 0.5))
    assert begun == [1, 0, 0, 1]
    assert book.alerts[0].count == 2


def test_the_power_cap_alone_is_no_alert() -> None:
    book = AlertBook()
    for reason in ("power-cap", "sync-boost", "app-clocks", "reliability"):
        assert book.see(snapshot(0.0, throttled(1.0, reason))) == ()


@pytest.mark.parametrize("reason", ["sw-thermal", "hw-thermal", "power-brake", "hw-slowdown", "thermal"])
def test_heat_and_hardware_slowdowns_are_alerts(reason: str) -> None:
    (alert,) = AlertBook().see(snapshot(0.0, throttled(0.02, reason)))
    assert alert.title == f"GPU: {BY_ID[reason].words}"


def test_a_reason_below_one_percent_of_the_window_is_no_alert() -> None:
    assert AlertBook().see(snapshot(0.0, throttled(0.01))) == ()


def test_a_lost_gpu_is_told_since_when() -> None:
    book = AlertBook()
    gone = Missing("lost", "NVML: GPU is lost", 6.5)
    (alert,) = book.see(snapshot(7.0, replace(HEALTHY, lost=gone, margin_c=gone)))
    assert (alert.code, alert.severity, alert.first) == ("gpu-lost", "error", 6.5)
    assert book.see(snapshot(8.0, replace(HEALTHY, lost=gone, margin_c=gone))) == ()
    assert book.alerts[0].total_s == pytest.approx(1.0)


def test_a_sleeping_gpu_is_not_lost() -> None:
    asleep = Missing("stale", "asleep: its power is off until something uses it", 1.0)
    assert AlertBook().see(snapshot(2.0, replace(HEALTHY, lost=asleep))) == ()


def test_each_critical_error_counts_once_however_long_it_stays_in_the_list() -> None:
    book = AlertBook()
    for at in range(4):
        book.see(snapshot(float(at), replace(HEALTHY, xids=(79,))))
    assert [(alert.title, alert.count, alert.active) for alert in book.alerts] == [
        (f"GPU: {describe_xid(79)}", 1, False)
    ]
    book.see(snapshot(9.0, replace(HEALTHY, xids=(79, 31, 79))))
    assert {alert.title: alert.count for alert in book.alerts} == {
        f"GPU: {describe_xid(79)}": 2,
        f"GPU: {describe_xid(31)}": 1,
    }


def test_nearly_full_memory_counts_the_reserved_part() -> None:
    full = replace(HEALTHY, vram_used_bytes=(24 * 0.97 - 0.4) * GIB)
    (alert,) = AlertBook().see(snapshot(0.0, full))
    assert (alert.code, alert.unit) == ("vram-full", "%")
    assert alert.worst == pytest.approx(97.0)
    assert AlertBook().see(snapshot(0.0, replace(full, vram_used_bytes=(24 * 0.97 - 0.5) * GIB))) == ()
    untold = replace(full, vram_used_bytes=Missing("unsupported"))
    assert AlertBook().see(snapshot(0.0, untold)) == ()


def test_the_least_margin_is_the_worst() -> None:
    book = AlertBook()
    for at, margin in enumerate((3.0, 1.0, 2.0)):
        book.see(snapshot(float(at), replace(HEALTHY, margin_c=margin)))
    (alert,) = book.alerts
    assert (alert.code, alert.worst, alert.unit) == ("hot", 1.0, "°C left")


def test_another_process_on_the_gpu_is_named_only_when_the_engine_is_known() -> None:
    other = GpuProcess(7, "blender", 1.0 * GIB, 40.0)
    engine = GpuProcess(8, "llama-server", 9.0 * GIB, 50.0)
    unknown = GpuProcess(9, "?", Missing("unsupported"), 60.0)
    shared = replace(HEALTHY, processes=(other, engine, unknown))
    assert AlertBook().see(snapshot(0.0, shared)) == ()
    server = ServerSample(0.0, engine_pids=(8,))
    (alert,) = AlertBook().see(snapshot(0.0, shared, server=server))
    assert alert.title == "GPU is shared with blender (pid 7)"
    assert AlertBook(own_pids=(7,)).see(snapshot(0.0, shared, server=server)) == ()


def test_memory_pressure_of_the_host_is_an_alert() -> None:
    tight = HostSample(0.0, pressure_memory=25.0)
    (alert,) = AlertBook().see(snapshot(0.0, host=tight))
    assert (alert.code, alert.worst) == ("memory-pressure", 25.0)
    left = HostSample(0.0, memory_total_bytes=100.0, memory_used_bytes=97.0)
    (alert,) = AlertBook().see(snapshot(0.0, host=left))
    assert alert.worst == pytest.approx(3.0)


def test_acknowledging_keeps_what_still_holds_until_it_ends() -> None:
    book = AlertBook()
    book.see(snapshot(0.0, throttled(0.5)))
    book.acknowledge()
    (alert,) = book.alerts
    assert alert.acknowledged
    book.see(snapshot(1.0))
    assert len(book.alerts) == 1
    book.see(snapshot(20.0))
    assert not book.alerts
    book.see(snapshot(21.0, throttled(0.5)))
    assert not book.alerts[0].acknowledged
    book.see(snapshot(40.0))
    book.acknowledge("another")
    assert len(book.alerts) == 1
    book.acknowledge(book.alerts[0].key)
    assert not book.alerts


def test_a_suspended_machine_does_not_count_as_hours_of_trouble() -> None:
    book = AlertBook()
    book.see(snapshot(0.0, replace(HEALTHY, margin_c=1.0)))
    book.see(snapshot(7200.0, replace(HEALTHY, margin_c=1.0)))
    assert book.alerts[0].total_s <= 10


def test_several_gpus_are_told_apart() -> None:
    book = AlertBook()
    infos = (INFO, GpuInfo("GPU-b", 1, "Card"))
    samples = (HEALTHY, replace(throttled(0.5), uuid="GPU-b"))
    (alert,) = book.see(Snapshot(0.0, GpuState(0.0, infos, samples), HostSample(0.0)))
    assert alert.title.startswith("GPU 1: ")
    assert alert.gpu == "GPU-b"


def test_models_that_come_and_go_are_marked() -> None:
    book = AlertBook()
    loaded: list[tuple[str, ...]] = [("a",), ("a",), ("a", "b"), ("b",)]
    for at, names in enumerate(loaded):
        server = ServerSample(float(at), models=tuple(LoadedModel(name) for name in names))
        book.see(snapshot(float(at), server=server))
    book.mark(9.0, "preset", "Speed")
    assert [(mark.at, mark.text) for mark in book.marks] == [(2.0, "b loaded"), (3.0, "a unloaded"), (9.0, "Speed")]


def test_the_book_stays_bounded() -> None:
    book = AlertBook()
    server = ServerSample(0.0, engine_pids=(1,))
    for pid in range(2, 1000):
        busy = replace(HEALTHY, processes=(GpuProcess(pid, "job", 1.0, 50.0),))
        book.see(snapshot(pid * 10.0, busy, server=server))
    assert len(book.alerts) <= 200
    assert len(book.marks) <= 500


def test_reasons_have_distinct_bits_fields_and_words() -> None:
    bits = [reason.bit for reason in REASONS if reason.bit]
    assert len(set(bits)) == len(bits)
    assert sorted(bits) == [1 << position for position in range(11)]
    fields = [reason.field for reason in REASONS if reason.field is not None]
    assert len(set(fields)) == len(fields)
    assert all(reason.words and reason.advice for reason in REASONS)
    assert [reason.id for reason in decode(0x4 | 0x40 | 0x1)] == ["hw-thermal", "power-cap", "gpu-idle"]
