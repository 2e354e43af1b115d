"""The NVML collector against a library that stands in for the driver's, in processes of their own."""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from chimera.domain.telemetry import GpuState
from chimera.telemetry.gpu import bandwidth_gb_s
from chimera.telemetry.nvml import NvmlCollector

from .standin import GIB, NO_PROCESS, SCENARIOS, library, no_driver_env, nvml_env, play, play_in, run_json

Line = dict[str, Any]

READINGS = (
    "utilization", "memory_utilization", "vram_total_bytes", "vram_used_bytes", "vram_reserved_bytes",
    "vram_free_bytes", "temperature_c", "margin_c", "memory_temperature_c", "sm_mhz", "mem_mhz", "pstate", "power_w",
    "power_limit_w", "energy_j", "fan_percent", "pcie_gen", "pcie_width", "pcie_tx_bytes_s", "pcie_rx_bytes_s",
    "reasons", "ecc_errors", "remapped_rows",
)  # fmt: skip


@functools.cache
def played(scenario: str, ticks: int = 4) -> list[Line]:
    """A scenario at its defaults, played once for all tests that look at it."""
    return play(scenario, ticks=ticks)


def last(lines: list[Line]) -> dict[str, Any]:
    """The state of the last tick."""
    state: dict[str, Any] = lines[-2]["state"]
    return state


def reason(reading: Any) -> str | None:
    """Why a reading is missing; None for a number."""
    return reading.get("missing") if isinstance(reading, dict) else None


def throttles(sample: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["reason"]: one for one in sample["throttles"]}


# -- a healthy GPU -------------------------------------------------------------------------------------------------


def test_a_healthy_gpu_gives_every_value_in_its_unit() -> None:
    state = last(played("one_gpu"))
    (info,), (sample,) = state["infos"], state["samples"]
    assert state["missing"] is None
    assert (info["name"], info["architecture"], info["driver"]) == ("NVIDIA GeForce RTX 3090", "Ampere", "575.57.08")
    assert info["bandwidth_gb_s"] == pytest.approx(936.1, abs=0.05)
    assert (info["bus_id"], info["persistence"]) == ("0000:01:00.0", True)
    assert (info["power_min_w"], info["power_default_w"], info["power_max_w"]) == (100, 350, 366)
    expected = {
        "utilization": 87, "memory_utilization": 55, "vram_total_bytes": 24 * GIB, "vram_used_bytes": 10 * GIB,
        "temperature_c": 61, "margin_c": 34, "sm_mhz": 1950, "mem_mhz": 9751, "pstate": 2, "power_w": 280,
        "power_limit_w": 350, "fan_percent": 55, "pcie_gen": 4, "pcie_width": 16, "reasons": 0,
    }  # fmt: skip
    assert {key: sample[key] for key in expected} == expected
    assert sample["vram_reserved_bytes"] == pytest.approx(0.4 * GIB, abs=1)
    assert sample["vram_free_bytes"] == pytest.approx(13.6 * GIB, abs=2)
    assert sample["pcie_rx_bytes_s"] == pytest.approx(900e6, rel=0.1)
    assert sample["pcie_tx_bytes_s"] == pytest.approx(40e6, rel=0.1)
    assert reason(sample["memory_temperature_c"]) == "unsupported"
    assert reason(sample["ecc_errors"]) == "unsupported"
    assert set(sample["throttle_s"].values()) == {0.0}
    assert sample["throttles"] == []
    (process,) = sample["processes"]
    assert (process["pid"], process["vram_bytes"], process["sm_percent"]) == (os.getpid(), 9.5 * GIB, 85)
    assert process["name"] == psutil.Process().name()


def test_energy_and_power_agree() -> None:
    first, *_, end = (line["state"]["samples"][0] for line in played("one_gpu")[:-1])
    watts = (end["energy_j"] - first["energy_j"]) / (end["at"] - first["at"])
    assert watts == pytest.approx(280, rel=0.1)


def test_two_gpus_are_told_apart_by_uuid() -> None:
    state = last(played("two_gpus"))
    assert [info["uuid"] for info in state["infos"]] == [sample["uuid"] for sample in state["samples"]]
    assert len({info["uuid"] for info in state["infos"]}) == 2
    assert [sample["utilization"] for sample in state["samples"]] == [87, 0]
    # Idle lowers clocks, but is no throttling.
    assert state["samples"][1]["reasons"] == 1
    assert state["samples"][1]["throttles"] == []


def test_eight_gpus_are_all_read() -> None:
    state = last(played("eight_gpus"))
    assert [info["index"] for info in state["infos"]] == list(range(8))
    assert [sample["temperature_c"] for sample in state["samples"]] == [50 + index for index in range(8)]
    assert [sample["memory_temperature_c"] for sample in state["samples"]] == [60 + index for index in range(8)]
    assert {sample["ecc_errors"] for sample in state["samples"]} == {0}
    assert all(reason(sample["fan_percent"]) == "unsupported" for sample in state["samples"])


@pytest.mark.parametrize(
    ("bits", "mhz", "spec"),
    [
        pytest.param(384, 10501, 1008.1, id="RTX 4090"),
        pytest.param(384, 9751, 936.1, id="RTX 3090"),
        pytest.param(192, 7501, 360.0, id="RTX 3060 12G"),
        pytest.param(512, 14001, 1792.1, id="RTX 5090"),
        pytest.param(256, 5001, 320.1, id="T4"),
        pytest.param(384, 9001, 864.1, id="L40S"),
        pytest.param(5120, 1593, 2039.0, id="A100 80G SXM"),
        pytest.param(5120, 2619, 3352.3, id="H100 SXM"),
    ],
)
def test_bandwidth_of_known_cards_matches_their_data_sheets(bits: int, mhz: int, spec: float) -> None:
    assert bandwidth_gb_s(bits, mhz) == pytest.approx(spec, abs=0.05)
    info = last(play("one_gpu", bus_width=bits, mem_clock=mhz, ticks=1))["infos"][0]
    assert info["bandwidth_gb_s"] == pytest.approx(spec, abs=0.05)


def test_newer_generations_tell_degrees_left_by_their_distance_to_the_limit() -> None:
    state = last(played("ada"))
    # 61 now + 23 left to the operating limit - (-5), which is where slowdown begins.
    assert state["infos"][0]["slowdown_c"] == 89
    assert state["samples"][0]["margin_c"] == 28


def test_a_temperature_of_slowdown_that_wavers_by_a_degree_is_no_news() -> None:
    extra = "".join(f"at {at} margin {23 + more}\n" for at, more in ((4, -1), (9, 1), (14, 0), (24, 6)))
    lines = play("ada", ticks=35, extra=extra)[:-1]
    told = [(line["t"], line["state"]["infos"][0]["slowdown_c"]) for line in lines if line["t"] > 1]
    assert {value for t, value in told if t < 24} == {89}
    assert told[-1][1] == 95, "what differs by more is"
    assert {line["state"]["samples"][0]["margin_c"] for line in lines if line["t"] > 1} == {27, 28, 29, 34}


def test_a_newer_generation_on_an_older_driver_still_has_its_threshold() -> None:
    state = last(play("one_gpu", old=True, arch=8, slowdown=90))
    assert state["infos"][0]["slowdown_c"] == 90
    assert state["samples"][0]["margin_c"] == 29


# -- what a driver does not tell -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_no_scenario_gives_a_zero_for_an_unknown_value_or_ends_the_collector(scenario: str) -> None:
    known_zeros = {"reasons", "ecc_errors", "remapped_rows", "utilization", "memory_utilization", "vram_reserved_bytes"}
    for line in played(scenario)[:-1]:
        assert line["took"] < 1.0
        for sample in line["state"]["samples"]:
            for name in READINGS:
                if name not in known_zeros:
                    assert sample[name] != 0, (scenario, line["tick"], name)
                if isinstance(sample[name], dict):
                    assert sample[name]["missing"], (scenario, name)


def test_metrics_that_are_not_supported_are_missing_and_the_others_stay() -> None:
    sample = last(played("not_supported"))["samples"][0]
    for name in ("utilization", "memory_utilization", "fan_percent", "power_w", "power_limit_w", "reasons", "energy_j"):
        assert reason(sample[name]) == "unsupported", name
        assert sample[name]["detail"] == "NVML: Not Supported"
    assert (sample["temperature_c"], sample["sm_mhz"], sample["vram_used_bytes"]) == (61, 1950, 10 * GIB)


def test_an_unsupported_metric_is_asked_for_again_once_a_minute() -> None:
    lines = play("not_supported", ticks=16, plan={"every": 5}, extra="at 30 util 44\nat 30 mem_util 5")
    seen = [(line["t"], line["state"]["samples"][0]["utilization"]) for line in lines[:-1]]
    assert all(reason(value) == "unsupported" for t, value in seen if t < 59)
    assert next(value for t, value in seen if t > 66) == 44


def test_values_that_mean_not_available_are_missing() -> None:
    sample = last(played("garbage"))["samples"][0]
    for name in set(READINGS) - {"ecc_errors", "remapped_rows", "energy_j"}:
        assert reason(sample[name]) == "unsupported", (name, sample[name])
    assert "991" in sample["utilization"]["detail"]
    assert reason(sample["throttle_s"]["sw-thermal"]) == "unsupported"
    (process,) = sample["processes"]
    assert reason(process["vram_bytes"]) == "unsupported"
    assert reason(process["sm_percent"]) == "stale"


def test_unified_memory_is_the_hosts_and_hides_pcie() -> None:
    state = last(played("unified"))
    (info,), (sample,) = state["infos"], state["samples"]
    assert info["integrated"]
    assert info["bandwidth_gb_s"] == 273
    assert sample["vram_total_bytes"] == psutil.virtual_memory().total
    assert sample["vram_used_bytes"] == 9.5 * GIB
    assert 0 < sample["vram_free_bytes"] < sample["vram_total_bytes"]
    for name in ("vram_reserved_bytes", "pcie_gen", "pcie_width", "pcie_tx_bytes_s", "pcie_rx_bytes_s", "mem_mhz"):
        assert reason(sample[name]) == "unsupported", name


def test_memory_that_is_not_told_is_not_the_hosts_on_an_ordinary_card() -> None:
    state = last(
        play("one_gpu", total_gib=0, extra="code.nvmlDeviceGetMemoryInfo 3\ncode.nvmlDeviceGetMemoryInfo_v2 3")
    )
    assert not state["infos"][0]["integrated"]
    assert reason(state["samples"][0]["vram_total_bytes"]) == "unsupported"


def test_processes_of_wsl_or_a_container_have_no_name_and_no_memory() -> None:
    (process,) = last(played("wsl"))["samples"][0]["processes"]
    assert (process["pid"], process["name"]) == (NO_PROCESS, "?")
    assert reason(process["vram_bytes"]) == "unsupported"
    assert reason(process["sm_percent"]) == "stale"


def test_an_old_driver_without_newer_functions_is_read_by_the_older_ones() -> None:
    sample = last(play("power_cap", old=True, ticks=4))["samples"][0]
    assert sample["vram_used_bytes"] == pytest.approx(10.4 * GIB, abs=1)
    assert reason(sample["vram_reserved_bytes"]) == "unsupported"
    assert sample["power_w"] == pytest.approx(349.5)
    assert sample["reasons"] == 4
    assert len(sample["processes"]) == 1
    assert throttles(sample)["power-cap"]["source"] == "counter"
    assert throttles(sample)["power-cap"]["share"] == pytest.approx(0.95, abs=0.05)


def test_no_permission_for_one_metric_is_said() -> None:
    sample, *instances = last(played("mig_without_privilege"))["samples"]
    assert reason(sample["processes"]) == reason(sample["vram_used_bytes"]) == "denied"
    assert sample["temperature_c"] == 61
    assert [one["vram_used_bytes"] // 2**20 for one in instances] == [8000, 512, 100]


def test_all_instances_of_a_gpu_are_read_although_the_driver_may_not_be_asked_much() -> None:
    _, *instances = last(played("mig_full", 12))["samples"]
    assert [one["vram_used_bytes"] // 2**20 for one in instances] == [100 * part for part in range(1, 8)]
    assert all(isinstance(one["processes"], list) for one in instances)


# -- MIG -----------------------------------------------------------------------------------------------------------


def test_mig_instances_stand_behind_their_gpu() -> None:
    state = last(played("mig"))
    whole, *instances = state["infos"]
    assert [info["name"].rpartition(" ")[2] for info in instances] == ["3g.20gb", "2g.10gb", "1g.5gb"]
    assert {info["parent"] for info in instances} == {whole["uuid"]}
    assert whole["mig"]
    assert whole["parent"] is None
    # 5120 bits at 1215 MHz, of which the instances have 4, 2 and 1 eighths.
    assert [info["bandwidth_gb_s"] for info in instances] == [777.6, 388.8, 194.4]
    parent, *samples = state["samples"]
    assert reason(parent["utilization"]) == "unsupported"
    assert parent["temperature_c"] == 61
    assert [sample["vram_used_bytes"] // 2**20 for sample in samples] == [8000, 512, 100]
    assert all(reason(sample["temperature_c"]) == "unsupported" for sample in samples)
    assert "whole GPU" in samples[0]["power_w"]["detail"]


# -- no driver -----------------------------------------------------------------------------------------------------


def test_a_driver_that_does_not_match_its_library_says_what_to_do() -> None:
    missing = last(played("mismatch"))["missing"]
    assert missing["missing"] == "unreachable"
    assert "mismatch" in missing["detail"]
    assert "Reboot" in missing["detail"]


def test_a_host_without_nvml_says_so() -> None:
    lines = play_in(no_driver_env(), {"ticks": 2})
    missing = last(lines)["missing"]
    assert missing["missing"] == "unsupported"
    assert "libnvidia-ml.so.1 is not installed" in missing["detail"]
    assert last(lines)["infos"] == []


@pytest.mark.parametrize(
    ("scenario", "why", "words"),
    [
        ("no_permission", "denied", "may not open"),
        ("no_module", "unreachable", "modprobe nvidia"),
        ("no_gpu", "unsupported", "--gpus all"),
    ],
)
def test_why_there_is_no_gpu_is_told_in_plain_words(scenario: str, why: str, words: str) -> None:
    missing = last(played(scenario))["missing"]
    assert missing["missing"] == why
    assert words in missing["detail"]


def test_opening_the_driver_is_tried_with_growing_pauses() -> None:
    lines = play("no_module", ticks=30)
    polled = [(line["t"], line["calls"]) for line in lines[:-1]]
    attempts = [0.0, *(t for (_, before), (t, after) in itertools.pairwise(polled) if after > before)]
    gaps = [round(later - earlier) for earlier, later in itertools.pairwise(attempts)]
    assert gaps == [1, 2, 5, 15]


# -- GPUs that go --------------------------------------------------------------------------------------------------


def test_a_lost_gpu_stays_lost_and_the_other_goes_on() -> None:
    lines = play("lost", ticks=12)[:-1]
    for line in lines:
        first, second = line["state"]["samples"]
        assert first["lost"] is None
        assert first["utilization"] == 87
        if line["t"] < 7.9:
            assert second["lost"] is None
        elif line["t"] > 9.1:
            for name in READINGS:
                assert reason(second[name]) == "lost", name
            assert reason(second["processes"]) == "lost"
            assert 8 <= second["lost"]["since"] - line["started"] <= 9.1
            assert second["throttles"] == []
    assert len({line["state"]["samples"][1]["lost"]["since"] for line in lines if line["t"] > 9.1}) == 1


def test_a_lost_gpu_comes_back_only_with_reinit() -> None:
    lines = play("lost", ticks=12, plan={"reinit_at": 10}, at=2, extra="at 6 code.* 0")[:-1]
    seconds = {line["tick"]: line["state"]["samples"][1] for line in lines}
    assert reason(seconds[9]["temperature_c"]) == "lost"
    assert seconds[11]["temperature_c"] == 35


def test_a_gpu_that_is_lost_before_the_start_is_listed_as_lost() -> None:
    state = last(play("two_gpus", extra="code.handle 15"))
    assert [info["name"] for info in state["infos"]] == ["NVIDIA GeForce RTX 3090", "GPU 1"]
    assert state["samples"][0]["utilization"] == 87
    assert reason(state["samples"][1]["utilization"]) == "lost"


def test_unknown_errors_of_a_gpu_that_worked_close_the_driver_and_open_it_again() -> None:
    lines = play("container_lost", ticks=16, at=3, back=7)[:-1]
    samples = [(line["t"], line["state"]["samples"][0], line["state"]["infos"][0]["uuid"]) for line in lines]
    assert len({uuid for *_, uuid in samples}) == 1
    during = [sample for t, sample, _ in samples if 4.1 < t < 6.9]
    assert during
    assert {reason(sample["temperature_c"]) for sample in during} == {"lost"}
    assert "container" in during[0]["temperature_c"]["detail"]
    assert samples[-1][1]["temperature_c"] == 61


def test_a_connection_that_the_driver_forgot_is_opened_again() -> None:
    lines = play("uninitialized", ticks=12)[:-1]
    temperatures = [line["state"]["samples"][0]["temperature_c"] for line in lines]
    assert temperatures[0] == temperatures[-1] == 61
    assert any(reason(one) == "lost" for one in temperatures)


def test_a_forked_process_opens_the_driver_anew() -> None:
    lines = play("one_gpu", ticks=6, plan={"fork_at": 3})
    pids = [line["pid"] for line in lines if "pid" in line]
    assert len(set(pids)) == 2
    child = [line for line in lines if line.get("pid") == pids[-1]]
    assert all(line["state"]["samples"][0]["temperature_c"] == 61 for line in child)


def test_a_critical_error_is_kept_although_the_gpu_is_lost_afterwards() -> None:
    lines = play("xid_79", ticks=9)[:-1]
    assert lines[0]["state"]["samples"][0]["xids"] == []
    end = lines[-1]["state"]["samples"][0]
    assert end["xids"] == [79]
    assert end["lost"]["missing"] == "lost"


# -- throttling ----------------------------------------------------------------------------------------------------


def test_throttling_between_two_samples_is_seen_by_its_counter() -> None:
    lines = play("short_throttle", ticks=5, at=2.2, seconds=0.3)[:-1]
    assert {line["state"]["samples"][0]["reasons"] for line in lines} == {0}
    seen = [throttles(line["state"]["samples"][0]) for line in lines]
    found = [one["sw-thermal"] for one in seen if one]
    assert sum(one["seconds"] for one in found) == pytest.approx(0.3, abs=0.01)
    assert {one["source"] for one in found} == {"counter"}


def test_fields_that_the_driver_passes_over_beside_one_that_it_refuses_are_asked_for_again() -> None:
    # As driver 580 on an H200: no error and zeros. A minute later the refused field is tried once more.
    lines = play("one_gpu", ticks=64, extra="cut_fields 1\nfield.270 5e12\nfield.271 3e12")
    samples = [sample for line in lines[:-1] for sample in line["state"]["samples"]]
    assert {sample["throttle_s"]["hw-thermal"] for sample in samples} == {5000.0}
    assert {sample["throttle_s"]["power-brake"] for sample in samples} == {3000.0}
    assert not any(sample["throttles"] for sample in samples)
    assert calls_a_second(lines[:-1]) <= 12


def test_a_counter_of_32_bits_that_wraps_within_a_tick_gives_no_false_rate() -> None:
    # The H200 at 59 GB/s: it wraps 14 times a second.
    extra = "narrow_pcie 1\nrate.197 3e9\nrate.198 59e9"
    lines = play("one_gpu", ticks=3, plan={"real": True}, extra=extra)
    for line in lines[1:-1]:
        [sample] = line["state"]["samples"]
        assert sample["pcie_rx_bytes_s"] == pytest.approx(59e9, rel=0.1)
        assert sample["pcie_tx_bytes_s"] == pytest.approx(3e9, rel=0.1)
    slow = play("one_gpu", ticks=6, plan={"real": True, "every": 1.0}, extra="narrow_pcie 1\nrate.198 1.5e9")
    rates = [line["state"]["samples"][0]["pcie_rx_bytes_s"] for line in slow[1:-1]]
    assert rates == [pytest.approx(1.5e9, rel=0.1)] * 5, "also where it wraps between two ticks"


def test_what_is_left_of_a_counter_of_32_bits_is_no_rate() -> None:
    # Busy for half of a tick: the look at its end finds the link idle.
    extra = "narrow_pcie 1\nrate.197 59e9\nrate.198 59e9\nat 1.5 rate.198 0\nat 1.5 rate.197 0"
    lines = play("one_gpu", ticks=4, plan={"real": True}, extra=extra)[1:-1]
    for name in ("pcie_rx_bytes_s", "pcie_tx_bytes_s"):
        rates = [line["state"]["samples"][0][name] for line in lines]
        assert rates == [pytest.approx(59e9, rel=0.1), 0.0, 0.0], name


def test_where_a_counter_of_32_bits_may_have_wrapped_and_no_moment_tells_there_is_no_rate() -> None:
    sample = last(play("one_gpu", ticks=3, extra="narrow_pcie 1\nstill 1"))["samples"][0]
    assert reason(sample["pcie_rx_bytes_s"]) == reason(sample["pcie_tx_bytes_s"]) == "pending"
    assert "anew" in sample["pcie_rx_bytes_s"]["detail"]


def test_the_first_share_of_a_process_is_of_the_last_seconds() -> None:
    [process] = last(play("one_gpu", extra="long_sm 24"))["samples"][0]["processes"]
    assert process["sm_percent"] == 85, "not the mean over all that the driver remembers"


@pytest.mark.parametrize(
    ("scenario", "name", "share"),
    [("sw_thermal", "sw-thermal", 0.4), ("hw_thermal", "hw-thermal", 0.7), ("power_cap", "power-cap", 0.95),
     ("power_brake", "power-brake", 0.5)],
)  # fmt: skip
def test_each_reason_is_named_with_its_share_of_time(scenario: str, name: str, share: float) -> None:
    sample = last(played(scenario))["samples"][0]
    assert list(throttles(sample)) == [name]
    assert throttles(sample)[name]["share"] == pytest.approx(share, abs=0.05)
    assert throttles(sample)[name]["source"] == "counter"


def test_opening_a_slow_driver_does_not_lower_the_first_share() -> None:
    lines = play("power_cap", ticks=2, delay_ms=20, share=0.95, plan={"real": True})
    assert lines[0]["took"] > 0.4, "opening takes its time here"
    assert throttles(last(lines)["samples"][0])["power-cap"]["share"] == pytest.approx(0.95, abs=0.04)


FREE = """
import json, time
from chimera.telemetry.nvml import NvmlCollector
collector = NvmlCollector()
print(json.dumps({"free": collector.free_bytes()}))
collector.read(time.monotonic())
for _ in range(5):
    before = collector.calls
    print(json.dumps({"free": collector.free_bytes(), "calls": collector.calls - before}))
    time.sleep(0.12)
"""


def test_free_memory_is_read_anew_between_two_readings() -> None:
    falling = f"free {20 * GIB}\n" + "\n".join(f"at {tenth / 10} free {(20 - tenth) * GIB}" for tenth in range(1, 10))
    opened, *looks = run_json(FREE, nvml_env("one_gpu", extra=falling))
    assert opened["free"] is None, "nothing was opened yet"
    values = [look["free"] for look in looks]
    assert values == sorted(set(values), reverse=True), "each look sees less"
    assert {look["calls"] for look in looks} == {1}
    assert run_json(FREE, nvml_env("not_supported", extra="code.* 15"))[-1]["free"] is None


def test_bits_alone_count_only_after_two_samples() -> None:
    lines = play("bits_only", ticks=6, reasons=0x8 | 0x2 | 0x1, until=3.5)[:-1]
    by_tick = {round(line["t"]): line["state"]["samples"][0] for line in lines}
    assert by_tick[0]["throttles"] == []
    assert list(throttles(by_tick[2])) == ["hw-slowdown", "app-clocks"]
    assert throttles(by_tick[2])["hw-slowdown"] == {
        "reason": "hw-slowdown", "share": 1.0, "source": "bits", "seconds": None,
    }  # fmt: skip
    assert by_tick[4]["throttles"] == []
    assert reason(by_tick[2]["throttle_s"]["sw-thermal"]) == "unsupported"


def test_older_drivers_tell_thermal_time_as_violation_status() -> None:
    sample = last(play("older_counters", ticks=13, share=0.5, old=True))["samples"][0]
    # The counter says for how long, the bit that it was the software's slowdown.
    assert throttles(sample)["sw-thermal"]["share"] == pytest.approx(0.5, abs=0.03)
    assert throttles(sample)["sw-thermal"]["source"] == "counter"
    assert sample["throttle_s"]["thermal"] > 0


def test_hot_or_busy_or_stuck_without_a_reason_is_no_throttling() -> None:
    for scenario in ("hot_unthrottled", "busy_half_full", "stuck_pstate", "nearly_full", "idle_clocks"):
        assert last(played(scenario))["samples"][0]["throttles"] == [], scenario


def test_counters_are_read_for_the_ends_of_a_request() -> None:
    lines = play("power_cap", ticks=3)
    (counters,) = lines[-1]["counters"]
    assert counters["throttle_s"]["power-cap"] == pytest.approx(0.95 * (counters["at"] - lines[0]["started"]), rel=0.1)
    assert counters["energy_j"] > 1000


def test_the_ends_of_a_session_tell_who_computed_on_the_gpu_also_where_lists_paused() -> None:
    lines = play("one_gpu", ticks=25, plan={"quiet_from": 3})
    late = last(lines)["samples"][0]
    assert reason(late["processes"]) == "stale"
    assert late["processes_at"] < lines[3]["t"] + lines[0]["started"], "it says when it was read"
    (counters,) = lines[-1]["counters"]
    (process,) = counters["processes"]
    assert (process["pid"], process["sm_percent"]) == (os.getpid(), 85)


@pytest.mark.parametrize("scenario", ["one_gpu", "older_counters"])
def test_each_end_of_short_sessions_tells_who_computed_and_the_energy(scenario: str) -> None:
    """A session of about 4 seconds after another, on a driver that takes more calls, as on an H100."""
    plan = {"looks": 1, "look_every": 2, "quiet_from": 1}
    lines = play(scenario, ticks=41, extra=FEWER_FIELDS, plan=plan)[:-1]
    ends = [line["looks"][0] for line in lines if line["looks"] and line["tick"] >= 10]
    assert len(ends) == 16
    assert all(isinstance(end["processes"], list) for end in ends)
    assert all(isinstance(end["energy_j"], float) for end in ends)


@pytest.mark.parametrize("scenario", ["mig_full", "mig", "older_counters", "one_gpu"])
@pytest.mark.parametrize("every", [3, 4])
def test_what_is_kept_free_for_the_ends_of_sessions_starves_no_other_reader(scenario: str, every: int) -> None:
    plan = {"looks": 1, "look_every": every, "quiet_from": 1}
    lines = play(scenario, ticks=121, extra=FEWER_FIELDS, plan=plan)[:-1]
    samples = [line["state"]["samples"][0] for line in lines[60:]]
    for name in ("margin_c", "mem_mhz", "pstate", "power_limit_w"):
        stale = sum(reason(sample[name]) == "stale" for sample in samples)
        assert stale <= len(samples) // 10, name
    ends = [line["looks"][0] for line in lines if line["looks"] and line["tick"] >= 10]
    assert all(isinstance(end["processes"], list) for end in ends)
    assert all(isinstance(end["energy_j"], float) for end in ends)
    calls = [line["calls"] for line in lines]
    assert max(later - before for before, later in zip(calls, calls[10:], strict=False)) <= 120


def test_temperature_follows_the_known_curve() -> None:
    lines = play("heating", ticks=30, t0=40, t_end=83, tau=10)[:-1]
    for line in lines:
        expected = 83 - (83 - 40) * 2.718281828 ** (-line["t"] / 10)
        assert line["state"]["samples"][0]["temperature_c"] == pytest.approx(expected, abs=2.5)
    assert lines[-1]["state"]["samples"][0]["temperature_c"] > 79


# -- what it costs -------------------------------------------------------------------------------------------------


def calls_a_second(lines: list[Line]) -> float:
    """The most driver calls a second and GPU over any ten seconds, the opening among them."""
    counted = [(-1.0, 0)] + [(line["t"], line["counted"]) for line in lines]
    gpus = max(1, *(sum(info["parent"] is None for info in line["state"]["infos"]) for line in lines))
    return max(
        (after - before) / 10 / gpus
        for (begin, before), (end, after) in itertools.combinations(counted, 2)
        if end - begin < 10.1
    )


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_at_most_twelve_calls_a_second_and_gpu_over_any_ten_seconds(scenario: str, old: bool) -> None:
    lines = play(scenario, ticks=24, old=old)[:-1]
    assert calls_a_second(lines) <= 12
    # The collector's own count: a list that turns out to be empty needs one call where two are counted.
    assert 0 <= lines[-1]["calls"] - lines[-1]["counted"] <= 24


FEWER_FIELDS = "field.83.code 3\nfield.185.code 3\nfield.186.code 3"
"""Power and energy are not told as fields, so each costs a call of its own."""


@pytest.mark.parametrize(
    ("scenario", "old", "extra"),
    [
        *itertools.product(("one_gpu", "eight_gpus", "mig_full", "ada", "not_supported"), (False, True), ("",)),
        *itertools.product(("one_gpu", "mig_full", "older_counters", "ada"), (False, True), (FEWER_FIELDS,)),
        *itertools.product(("one_gpu", "ada"), (False, True), ("narrow_pcie 1\ncut_fields 1",)),
    ],
)
def test_what_is_rarely_read_or_tried_again_keeps_to_the_allowance(scenario: str, old: bool, extra: str) -> None:
    lines = play(scenario, ticks=131, old=old, extra=extra)[:-1]
    assert calls_a_second(lines) <= 12
    # Nothing waits for ever for its turn.
    assert not any(is_late(value) for line in lines for sample in line["state"]["samples"] for value in sample.values())
    assert not any(
        reason(value) == "pending" for part in ("infos", "samples") for one in last(lines + lines[-1:])[part]
        for value in one.values()
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scenario", "old", "extra"),
    [*itertools.product(("older_counters",), (False, True), ("", FEWER_FIELDS)), ("one_gpu", False, "")],
)
def test_the_ends_of_many_short_sessions_keep_to_the_allowance(scenario: str, old: bool, extra: str) -> None:
    lines = play(scenario, ticks=40, old=old, extra=extra, plan={"looks": 2})[:-1]
    assert calls_a_second(lines) <= 12


def test_a_counter_that_there_was_no_room_for_is_not_of_an_earlier_moment() -> None:
    lines = play("older_counters", ticks=40, old=True, extra="rate.75 0.5", plan={"looks": 1})[:-1]
    held = [(line["t"], look["throttle_s"].get("thermal")) for line in lines for look in line["looks"]]
    told = [(t, seconds) for t, seconds in held if isinstance(seconds, float)]
    assert 0 < len(told) < len(held)
    for t, seconds in told:
        assert seconds == pytest.approx(0.5 * t, abs=0.01)


def is_late(value: Any) -> bool:
    return reason(value) == "stale" and "not read again" in value["detail"]


def test_a_reading_that_comes_too_early_asks_the_driver_nothing() -> None:
    lines = play("one_gpu", ticks=30, plan={"every": 0.2})[:-1]
    assert lines[-1]["calls"] <= 12 * 10
    assert len({line["state"]["at"] for line in lines}) <= 8


def test_slow_calls_cost_time_but_no_values() -> None:
    lines = play("one_gpu", ticks=6, delay_ms=20, plan={"real": True})[:-1]
    assert lines[-1]["state"]["samples"][0]["utilization"] == 87
    assert lines[-1]["took"] < 0.6
    assert lines[-1]["state"]["samples"][0]["pcie_rx_bytes_s"] == pytest.approx(900e6, rel=0.1)


def test_while_quiet_costly_calls_pause_and_old_values_become_stale() -> None:
    lines = play("one_gpu", ticks=23, plan={"quiet_from": 1})[:-1]
    loud = play("one_gpu", ticks=23)[:-1]
    assert lines[-1]["calls"] < loud[-1]["calls"] - 20
    by_time = [(line["t"], line["state"]["samples"][0]) for line in lines]
    early = next(sample for t, sample in by_time if 5 < t < 14)
    late = by_time[-1][1]
    assert early["fan_percent"] == 55
    assert len(early["processes"]) == 1
    assert reason(late["fan_percent"]) == reason(late["processes"]) == "stale"
    assert "paused" in late["fan_percent"]["detail"]
    assert late["pstate"] == 2
    assert late["utilization"] == 87


# -- sleeping laptops ----------------------------------------------------------------------------------------------


def pci(root: Path, *states: str) -> Path:
    """A /sys with NVIDIA GPUs on buses 1, 2, ... in these power states."""
    for bus, state in enumerate(states, start=1):
        device = root / f"bus/pci/devices/0000:{bus:02x}:00.0"
        (device / "power").mkdir(parents=True, exist_ok=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030000\n")
        (device / "power/runtime_status").write_text(f"{state}\n")
    return root


def test_a_sleeping_gpu_is_left_asleep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> None:
        raise AssertionError("opening the driver wakes the GPU")

    monkeypatch.setattr("pynvml.nvmlInit", forbidden)
    about = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information"
    about.parent.mkdir(parents=True)
    about.write_text("Model: \t\t NVIDIA GeForce RTX 4070 Laptop GPU\nIRQ:   \t\t 193\n")
    collector = NvmlCollector(sys=pci(tmp_path / "sys", "suspended"), proc=tmp_path / "proc")
    for now in range(3):
        state = collector.read(float(now))
        assert state.infos[0].name == "NVIDIA GeForce RTX 4070 Laptop GPU"
        assert "asleep" in str(state.samples[0].temperature_c)
    assert collector.calls == 0


SLEEPY = """
import json, pathlib, sys
from chimera.telemetry.nvml import NvmlCollector
root = pathlib.Path(sys.argv[1])
status = root / "bus/pci/devices/0000:02:00.0/power/runtime_status"
collector = NvmlCollector(sys=root)
for now in range(8):
    if now in (3, 6):
        status.write_text("suspended" if now == 6 else "active")
    state = collector.read(float(now))
    print(json.dumps({i.index: str(s.temperature_c) for i, s in zip(state.infos, state.samples)}))
"""


def test_one_gpu_sleeps_and_wakes_while_the_other_is_read(tmp_path: Path) -> None:
    root = pci(tmp_path, "active", "suspended")
    done = subprocess.run(
        [sys.executable, "-c", SLEEPY, str(root)],
        env=nvml_env("two_gpus"), capture_output=True, text=True, timeout=30, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(one["0"] == "61.0" for one in seen)
    assert "asleep" in seen[2]["1"]
    assert seen[4]["1"] == "35.0"
    assert "asleep" in seen[7]["1"]


def test_an_idle_gpu_that_can_sleep_is_let_go_and_taken_up_again(tmp_path: Path) -> None:
    root = pci(tmp_path / "sys", "active")
    power = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/power"
    power.parent.mkdir(parents=True)
    power.write_text("Runtime D3 status:          Enabled (fine-grained)\nVideo Memory:  Active\n")
    env = nvml_env("idle_laptop")
    lines = run_json(RESTING.replace("ROOT", str(tmp_path)), env)
    seen = {line["t"]: line["temperature"] for line in lines}
    assert seen[0] == seen[60] == "34.0"
    assert "can go to sleep" in seen[62]
    assert "asleep" in seen[66]
    assert seen[72] == "34.0"
    # It was woken and stays awake: left alone once more after a minute, taken up again, then not for ten minutes.
    assert "can go to sleep" in seen[134]
    assert seen[160] == seen[300] == "34.0"
    assert root.exists()


def test_an_idle_gpu_that_cannot_sleep_is_watched_on(tmp_path: Path) -> None:
    pci(tmp_path / "sys", "active")
    lines = run_json(RESTING.replace("ROOT", str(tmp_path)), nvml_env("idle_laptop"))
    assert {line["temperature"] for line in lines if line["t"] < 64} == {"34.0"}


RESTING = """
import json, pathlib
from chimera.telemetry.nvml import NvmlCollector
root = pathlib.Path("ROOT")
status = root / "sys/bus/pci/devices/0000:01:00.0/power/runtime_status"
collector = NvmlCollector(sys=root / "sys", proc=root / "proc")
for now in range(0, 301, 2):
    if now in (64, 70):
        status.write_text("suspended" if now == 64 else "active")
    state = collector.read(float(now))
    print(json.dumps({"t": now, "temperature": str(state.samples[0].temperature_c)}))
"""

# -- the stand-in itself -------------------------------------------------------------------------------------------


def test_the_stand_in_lays_out_structures_as_the_binding_does() -> None:
    import pynvml

    sizes = {
        "c_nvmlMemory_v2_t": 40, "c_nvmlMemory_t": 24, "c_nvmlFieldValue_t": 40, "c_nvmlProcessInfo_v3_t": 24,
        "c_nvmlProcessUtilizationSample_t": 32, "nvmlPciInfo_t": 68, "c_nvmlEventData_t": 32,
        "c_nvmlDeviceAttributes": 40, "c_nvmlViolationTime_t": 16, "c_nvmlMarginTemperature_v1_t": 8,
    }  # fmt: skip
    assert {name: ctypes.sizeof(getattr(pynvml, name)) for name in sizes} == sizes
    assert pynvml.c_nvmlFieldValue_t.value.offset == 32
    assert pynvml.c_nvmlProcessInfo_v3_t.gpuInstanceId.offset == 16


def test_the_old_variant_lacks_the_newer_symbols() -> None:
    old = ctypes.CDLL(str(library(old=True) / "libnvidia-ml.so.1"))
    new = ctypes.CDLL(str(library() / "libnvidia-ml.so.1"))
    for name in ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetMemoryInfo_v2"):
        assert hasattr(new, name)
        assert not hasattr(old, name)


# -- the class itself ----------------------------------------------------------------------------------------------


def test_close_may_be_called_twice_and_keeps_the_last_state(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = NvmlCollector()
    state = collector.read(0.0)
    collector.close()
    collector.close()
    assert collector.read(100.0) is state
    assert isinstance(state, GpuState)


def test_a_broken_binding_is_a_state_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    state = NvmlCollector(sys=Path("/nowhere")).read(0.0)
    assert state.missing is not None
    assert "nvidia-ml-py" in state.missing.detail
