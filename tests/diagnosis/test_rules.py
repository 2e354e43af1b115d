"""For every rule a case that fires it and a near miss that does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from chimera.diagnosis.evidence import EngineStart, EvidenceSet, Failure, LogLine, Neighbour, Request, SessionFacts
from chimera.diagnosis.rules import CODES, diagnose, since_first_seen
from chimera.domain.options import Options
from chimera.domain.readings import Missing
from chimera.domain.server import Effective, ModelInfo, ServerInfo, ServerKind
from chimera.domain.telemetry import GpuProcess, LoadedModel, ServerSample, SlotState, Throttle
from chimera.domain.workload import Workload

from .builders import (
    GIB,
    GPU,
    MODEL,
    OFFSET,
    UUID,
    WALL,
    cause_ids,
    cause_of,
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

SLOW: dict[str, Any] = {"decode_tok_s": 40.0, "client_decode_tok_s": 40.0}

# -- low-throughput --------------------------------------------------------------------------------------------------


def test_half_the_own_baseline_is_low_throughput_with_both_figures() -> None:
    finding = must(healthy(requests=requests(**SLOW), history=(past(80.0),)), "low-throughput")
    assert finding.severity == "warn"
    assert finding.evidence[0].value == pytest.approx(40.0)
    assert finding.evidence[0].threshold == pytest.approx(68.0)
    assert len(finding.evidence[0].series) == 8


def test_ten_percent_under_the_baseline_is_not_low_throughput() -> None:
    assert found(healthy(requests=requests(decode_tok_s=72.0), history=(past(80.0),)), "low-throughput") is None


def test_two_measurements_are_no_judgement() -> None:
    assert found(healthy(requests=requests(2, **SLOW), history=(past(80.0),)), "low-throughput") is None


def test_under_60_percent_of_the_roof_is_a_notice_without_a_baseline() -> None:
    finding = must(healthy(requests=requests(**SLOW), history=(), roof_tok_s=110.0), "low-throughput")
    assert finding.severity == "notice"
    assert found(healthy(history=(), roof_tok_s=110.0), "low-throughput") is None


def test_a_roof_of_a_tiny_model_says_nothing() -> None:
    assert found(healthy(history=(), roof_tok_s=9000.0), "low-throughput") is None


def test_the_guides_row_holds_for_its_model_and_card_only() -> None:
    card = replace(GPU, name="NVIDIA GeForce RTX 4080 Laptop GPU")
    samples = gpus(vram_total_bytes=12.0e9)
    finding = must(healthy(gpu_infos=(card,), gpu_samples=samples, history=()), "low-throughput")
    assert finding.severity == "notice"
    assert "November 2025" in finding.evidence[-1].via
    desktop = gpus(vram_total_bytes=17.1e9)
    assert found(healthy(gpu_infos=(card,), gpu_samples=desktop, history=()), "low-throughput") is None


def test_low_throughput_names_layers_on_the_cpu_first() -> None:
    evidence = healthy(
        requests=requests(**SLOW), server_samples=servers(vram=2.4e9), gpu_samples=gpus(utilization=30.0),
        installed=(MODEL, replace(MODEL, name="gemma3:4b-q3", size_bytes=int(2.2e9), digest="sha256:cc")),
    )  # fmt: skip
    finding = must(evidence, "low-throughput")
    assert finding.cause == "low-throughput/cpu-offload"
    assert any("gemma3:4b-q3" in each.text for each in finding.remedies)


def test_low_throughput_names_what_speaks_against_offload() -> None:
    evidence = healthy(requests=requests(**SLOW), server_samples=servers(vram=3.9e9), gpu_samples=gpus())
    cause = cause_of(must(evidence, "low-throughput"), "low-throughput/cpu-offload")
    assert [each.what for each in cause.speaks_against] == ["GPU utilisation while requests run"]


def test_low_throughput_names_throttling_with_its_share() -> None:
    hot = tuple(gpu(i, throttle_s={"sw-thermal": i * 0.6}, reasons=0.0) for i in range(12))
    finding = must(healthy(requests=requests(**SLOW), gpu_samples=hot), "low-throughput")
    assert finding.cause == "low-throughput/throttling"
    assert finding.causes[0].speaks_for[0].value == pytest.approx(0.6, abs=0.01)


def test_low_throughput_names_foreign_load_on_a_cpu() -> None:
    finding = must(cpu_only(requests=requests(**SLOW), host_samples=hosts(foreign_cpu_percent=45.0)), "low-throughput")
    assert finding.cause == "low-throughput/foreign-load"


def test_low_throughput_names_a_context_that_grows() -> None:
    grown = tuple(
        replace(
            each, measurement=replace(each.measurement, prompt_tokens=64 + 700 * i, decode_tok_s=80.0 / (1 + i / 8))
        )
        for i, each in enumerate(requests(9))
    )
    evidence = healthy(requests=grown, baseline_tok_s=80.0)
    assert "low-throughput/long-context" in cause_ids(must(evidence, "low-throughput"))
    level = tuple(replace(each, measurement=replace(each.measurement, decode_tok_s=40.0)) for each in grown)
    assert "low-throughput/long-context" not in cause_ids(must(healthy(requests=level, baseline_tok_s=80.0),
                                                               "low-throughput"))  # fmt: skip


def test_low_throughput_names_too_many_threads_and_the_right_number() -> None:
    slow = requests(**SLOW)
    finding = must(cpu_only(requests=slow, requested=Options(num_thread=16), baseline_tok_s=80.0), "low-throughput")
    assert finding.cause == "low-throughput/threads"
    assert {"num_thread": 8} in [each.options for each in finding.remedies]
    fine = must(cpu_only(requests=slow, requested=Options(num_thread=8), baseline_tok_s=80.0), "low-throughput")
    assert "low-throughput/threads" not in cause_ids(fine)


def test_low_throughput_names_a_quantised_cache_on_a_cpu_only() -> None:
    asked = Options(kv_cache_type="q4_0", flash_attention="on")
    finding = must(cpu_only(requests=requests(**SLOW), requested=asked, baseline_tok_s=80.0), "low-throughput")
    assert "low-throughput/kv-quantised" in cause_ids(finding)
    whole = must(healthy(requests=requests(**SLOW), requested=asked, baseline_tok_s=80.0), "low-throughput")
    assert "low-throughput/kv-quantised" not in cause_ids(whole)


def test_low_throughput_without_support_names_checks_and_no_cause() -> None:
    bare = EvidenceSet(requests=requests(**SLOW), baseline_tok_s=80.0, gpu_infos=(GPU,))
    finding = must(bare, "low-throughput")
    assert finding.cause is None
    assert {each.id for each in finding.causes if each.check} >= {
        "low-throughput/cpu-offload", "low-throughput/foreign-load",
    }  # fmt: skip


def test_low_throughput_on_battery_says_so() -> None:
    evidence = healthy(requests=requests(**SLOW), host_samples=hosts(on_battery=True))
    assert "low-throughput/power-saving" in cause_ids(must(evidence, "low-throughput"))


def test_swapping_is_named() -> None:
    evidence = cpu_only(requests=requests(**SLOW), baseline_tok_s=80.0, host_samples=hosts(pressure_memory=35.0))
    assert must(evidence, "low-throughput").cause == "low-throughput/memory-pressure"
    assert must(evidence, "foreign-load").cause == "foreign-load/memory"


# -- high-ttft -------------------------------------------------------------------------------------------------------


def ttft(total: float = 3.0, **parts: float) -> tuple[Request, ...]:
    return requests(8, gap_s=4.0, ttft_s=total, total_s=total + 0.8, **{"prefill_s": 0.1, "queue_s": 0.0, **parts})


def test_a_ttft_of_fifteen_times_the_baseline_is_high_by_its_prefill() -> None:
    finding = must(healthy(requests=ttft(prefill_s=2.9, prompt_tokens=100)), "high-ttft")
    assert finding.severity == "warn"
    assert finding.cause == "high-ttft/long-prompt"


def test_a_ttft_near_the_baseline_is_not_high() -> None:
    assert found(healthy(requests=ttft(0.25, prefill_s=0.2)), "high-ttft") is None


def test_a_ttft_of_queueing_is_cured_by_slots_and_never_by_sampling() -> None:
    evidence = healthy(requests=ttft(queue_s=2.8), workload=Workload(agents=3))
    finding = must(evidence, "high-ttft")
    assert finding.cause == "high-ttft/queueing"
    assert {"num_parallel": 3} in [each.options for each in finding.remedies]


def test_no_streaming_is_named() -> None:
    once = requests(ttft_s=0.99, prefill_s=0.18)
    assert must(healthy(requests=once), "high-ttft").cause == "high-ttft/not-streaming"
    assert found(healthy(), "high-ttft") is None


def test_a_prefix_that_is_computed_anew_is_named() -> None:
    turns = tuple(
        replace(each, measurement=replace(each.measurement, prompt_tokens=2000 + 300 * i, ttft_s=4.0 + i,
                                          prefill_s=3.9 + i,
                                          total_s=6.0 + i))
        for i, each in enumerate(requests(5, gap_s=12.0))
    )  # fmt: skip
    evidence = healthy(requests=turns, baseline_ttft_s=0.5, log=(LogLine("slot: forcing full prompt re-processing"),))
    assert must(evidence, "high-ttft").cause == "high-ttft/no-prefix-reuse"


def test_thinking_is_named() -> None:
    late = tuple(replace(each, answer_s=9.0) for each in ttft(0.6, prefill_s=0.5))
    finding = must(healthy(requests=late), "high-ttft")
    assert "high-ttft/thinking" in cause_ids(finding)


def test_time_that_nothing_accounts_for_is_named() -> None:
    assert must(healthy(requests=ttft(prefill_s=0.2)), "high-ttft").cause == "high-ttft/overhead"


def test_no_cure_of_a_ttft_is_a_sampling_setting_or_a_window() -> None:
    for parts in ({"prefill_s": 2.9}, {"queue_s": 2.8}, {"load_s": 2.8}, {"prefill_s": 0.2}):
        for finding in diagnose(healthy(requests=ttft(**parts))):
            if finding.code == "high-ttft":
                for remedy in finding.remedies:
                    assert not {"temperature", "top_p", "top_k", "num_ctx"} & set(remedy.options or {})
                    assert "temperature" not in remedy.text


# -- memory ----------------------------------------------------------------------------------------------------------

OOM = Failure(
    "llama-server process has terminated: exit status 1: cudaMalloc failed: out of memory", WALL, 500, True,
    Options(num_gpu=80, num_ctx=8192),
)  # fmt: skip


def test_a_load_out_of_memory_is_vram_exhaustion_and_60_layers_are_no_cure_of_34() -> None:
    evidence = healthy(
        requests=(), failures=(OOM,), requested=OOM.options, effective=None, forecast_bytes=9.6e9,
        gpu_samples=gpus(vram_free_bytes=6.4 * GIB), server_samples=(),
    )  # fmt: skip
    finding = must(evidence, "vram-exhaustion")
    assert finding.severity == "error"
    assert finding.cause == "vram-exhaustion/explicit-layers"
    layers = [each.options["num_gpu"] for each in finding.remedies if each.options and "num_gpu" in each.options]
    assert layers
    assert all(int(each) < 35 for each in layers)
    assert -1 in layers


def test_another_failure_is_no_vram_exhaustion() -> None:
    other = Failure("model 'nope:1b' not found", WALL, 404)
    assert found(healthy(failures=(other,)), "vram-exhaustion") is None


def test_a_full_gpu_with_a_part_on_the_cpu_is_vram_exhaustion() -> None:
    full = gpus(vram_used_bytes=11.6 * GIB, vram_free_bytes=0.3 * GIB)
    evidence = healthy(gpu_samples=full, server_samples=servers(size=13e9, vram=10e9))
    assert must(evidence, "vram-exhaustion").severity == "warn"
    asked = replace(evidence, requested=Options(num_gpu=20))
    assert found(asked, "vram-exhaustion") is None


def test_a_forecast_above_what_is_free_is_vram_exhaustion() -> None:
    evidence = healthy(server_samples=(), effective=None, forecast_bytes=14 * GIB, requests=())
    assert must(evidence, "vram-exhaustion").evidence[0].source == "estimated"
    assert found(replace(evidence, forecast_bytes=4 * GIB), "vram-exhaustion") is None


def test_a_decode_that_collapses_with_context_is_vram_exhaustion() -> None:
    grown = tuple(
        replace(each, measurement=replace(each.measurement, prompt_tokens=100 if i < 4 else 6000,
                                          decode_tok_s=80.0 if i < 4 else 12.0))
        for i, each in enumerate(requests(8))
    )  # fmt: skip
    evidence = healthy(requests=grown, gpu_samples=())
    assert must(evidence, "vram-exhaustion").cause == "vram-exhaustion/context-collapse"
    mild = tuple(
        replace(each, measurement=replace(each.measurement, decode_tok_s=max(40.0, each.measurement.decode_tok_s or 0)))
        for each in grown
    )
    assert found(replace(evidence, requests=mild), "vram-exhaustion") is None


def test_windows_spilling_over_the_bus_is_named() -> None:
    full = gpus(vram_used_bytes=11.8 * GIB, vram_free_bytes=0.1 * GIB, pcie_rx_bytes_s=6e9)
    finding = must(healthy(gpu_samples=full, platform="windows"), "vram-exhaustion")
    assert finding.cause == "vram-exhaustion/system-memory"
    assert found(healthy(gpu_samples=full, platform="linux"), "vram-exhaustion") is None


def test_two_servers_and_other_programs_are_named_when_memory_runs_out() -> None:
    tenants = (GpuProcess(77, "ollama", 5e9), GpuProcess(900, "game", 4e9))
    evidence = healthy(
        failures=(OOM,), neighbours=(Neighbour("http://127.0.0.1:11435", "gemma3", 4e9),),
        gpu_samples=gpus(processes=tenants),
    )  # fmt: skip
    ids = cause_ids(must(evidence, "vram-exhaustion"))
    assert {"vram-exhaustion/two-servers", "vram-exhaustion/other-processes"} <= set(ids)
    assert any("game" in each.text for each in must(evidence, "vram-exhaustion").remedies)


def test_who_holds_the_memory_is_named_also_where_the_engine_never_came_up() -> None:
    evidence = healthy(failures=(OOM,), engine_pids=frozenset(), gpu_samples=gpus(
        processes=(GpuProcess(900, "python3", 11e9),)))  # fmt: skip
    checks = [each.check for each in must(evidence, "vram-exhaustion").causes]
    assert "On the GPU: python3 10.2 GiB; which of them is the server is not known here." in checks


def test_a_smaller_window_is_a_cure_only_where_it_frees_enough_and_holds_the_prompts() -> None:
    evidence = healthy(
        server_samples=servers(size=5.0e9, vram=4.2e9, context=16384.0), effective=Effective(Options(num_ctx=16384)),
        kv_bytes_per_token=136_000.0, gpu_samples=gpus(vram_free_bytes=0.2 * GIB, vram_used_bytes=11.7 * GIB),
        history=(),
    )  # fmt: skip
    windows = [
        int(each.options["num_ctx"])
        for each in must(evidence, "cpu-offload").remedies
        if each.options and "num_ctx" in each.options
    ]
    assert len(windows) == 1
    assert 16384 - windows[0] >= 0.8e9 / 136_000
    assert windows[0] >= 2048
    long = tuple(replace(each, measurement=replace(each.measurement, prompt_tokens=16000)) for each in requests())
    used = must(replace(evidence, requests=long), "cpu-offload")
    assert not [each for each in used.remedies if each.options and "num_ctx" in each.options]


def test_a_part_of_the_model_on_the_cpu_is_cpu_offload() -> None:
    finding = must(healthy(server_samples=servers(vram=3.0e9)), "cpu-offload")
    assert finding.severity == "warn"
    assert finding.evidence[0].value == pytest.approx(0.75) or "layers" in str(finding.evidence[0].value)


def test_the_servers_log_gives_the_layers() -> None:
    line = LogLine("load_tensors: offloaded 22/35 layers to GPU")
    finding = must(healthy(server_samples=servers(vram=3.0e9), log=(line,)), "cpu-offload")
    assert finding.title.startswith("13 of 35 layers")


def test_all_layers_on_the_gpu_are_no_offload_although_the_token_table_stays_on_the_host() -> None:
    line = LogLine("load_tensors: offloaded 35/35 layers to GPU")
    assert found(healthy(server_samples=servers(vram=3.9e9), log=(line,)), "cpu-offload") is None
    # Experts on the host: the log counts their layers all the same.
    assert found(healthy(server_samples=servers(vram=2.0e9), log=(line,)), "cpu-offload") is not None
    other = LogLine("load_tensors: offloaded 29/29 layers to GPU")
    assert found(healthy(server_samples=servers(vram=3.9e9), log=(other,)), "cpu-offload") is not None, "another model"


def test_layers_that_were_asked_for_are_only_information() -> None:
    evidence = healthy(server_samples=servers(vram=2.0e9), requested=Options(num_gpu=17))
    finding = must(evidence, "cpu-offload")
    assert (finding.severity, finding.cause) == ("info", "cpu-offload/layers-asked")


def test_num_gpu_1_is_one_layer_and_not_one_gpu() -> None:
    evidence = healthy(server_samples=servers(vram=0.3e9), requested=Options(num_gpu=1))
    finding = must(evidence, "cpu-offload")
    assert (finding.severity, finding.cause) == ("warn", "cpu-offload/layers-are-not-gpus")


# -- the GPU ---------------------------------------------------------------------------------------------------------


def test_a_model_on_the_cpu_beside_a_gpu_is_gpu_unused() -> None:
    finding = must(healthy(server_samples=servers(vram=0.0), log=(
        LogLine("msg=\"inference compute\" id=0 library=cpu total=32GiB"),)), "gpu-unused")  # fmt: skip
    assert (finding.severity, finding.cause) == ("warn", "gpu-unused/not-found")


def test_num_gpu_0_was_asked_for() -> None:
    assert found(healthy(server_samples=servers(vram=0.0), requested=Options(num_gpu=0)), "gpu-unused") is None


def test_a_gpu_that_idles_while_requests_run_is_unused_where_nobody_tells_the_placement() -> None:
    idle = healthy(server_samples=(), gpu_samples=gpus(utilization=1.0, sm_mhz=210.0, reasons=1.0),
                   server=ServerInfo("openai", "http://localhost:8000"))  # fmt: skip
    assert must(idle, "gpu-unused")
    busy = replace(idle, gpu_samples=gpus(utilization=60.0))
    assert found(busy, "gpu-unused") is None


@pytest.mark.parametrize(
    ("xid", "cause", "severity"),
    [(79, "gpu-lost/fallen-off-bus", "error"), (154, "gpu-lost/reset-required", "error"),
     (31, "gpu-lost/application-fault", "notice"), (48, "gpu-lost/memory-errors", "error"),
     (999, "gpu-lost/unknown", "notice")],
)  # fmt: skip
def test_an_xid_is_named_with_its_meaning(xid: int, cause: str, severity: str) -> None:
    finding = must(healthy(gpu_samples=gpus(xids=(xid,))), "gpu-lost")
    assert (finding.cause, finding.severity) == (cause, severity)


def test_a_lost_gpu_is_an_error_and_a_stale_reading_is_not() -> None:
    lost = Missing("lost", "NVML: GPU is lost", 1005.0)
    finding = must(healthy(gpu_samples=(*gpus(5), gpu(5, utilization=lost, vram_used_bytes=lost))), "gpu-lost")
    assert finding.severity == "error"
    assert finding.since == pytest.approx(OFFSET + 1005.0)
    stale = Missing("stale", since=1005.0)
    assert found(healthy(gpu_samples=(*gpus(5), gpu(5, utilization=stale))), "gpu-lost") is None


def test_a_server_that_falls_to_the_cpu_after_sleep_lost_its_gpu() -> None:
    before, after = servers(6), servers(12, vram=0.0)[6:]
    evidence = healthy(server_samples=before + after, resumed_at=OFFSET + 1006.0,
                       gpu_samples=gpus(vram_free_bytes=11 * GIB))  # fmt: skip
    assert must(evidence, "gpu-lost").cause == "gpu-lost/suspend"
    assert found(evidence, "gpu-unused") is None
    caged = replace(evidence, resumed_at=None, container=True)
    assert must(caged, "gpu-lost").cause == "gpu-lost/container"
    occupied = replace(evidence, gpu_samples=gpus(vram_free_bytes=1 * GIB, vram_used_bytes=10 * GIB))
    assert found(occupied, "gpu-lost") is None


def test_a_driver_that_does_not_match_its_library_is_named() -> None:
    missing = Missing("unreachable", "NVML: Driver/library version mismatch")
    evidence = cpu_only(gpu_missing=missing)
    assert must(evidence, "driver-mismatch").severity == "error"
    assert found(cpu_only(gpu_missing=Missing("unsupported", "no NVIDIA driver")), "driver-mismatch") is None


def test_a_narrow_link_in_use_is_a_bottleneck_and_a_narrow_link_alone_is_not() -> None:
    narrow = gpus(pcie_gen=3.0, pcie_width=1.0, pcie_rx_bytes_s=0.8e9)
    finding = must(healthy(gpu_samples=narrow), "pcie-bottleneck")
    assert finding.cause == "pcie-bottleneck/narrow-link"
    assert found(healthy(gpu_samples=gpus(pcie_gen=1.0, pcie_width=4.0)), "pcie-bottleneck") is None


def test_a_needless_split_is_named_and_a_needed_one_is_not() -> None:
    other = replace(GPU, uuid="GPU-2", index=1)
    ours = (GpuProcess(77, "llama-server", 2 * GIB),)
    pair = gpus(processes=ours) + tuple(replace(each, uuid="GPU-2") for each in gpus(processes=ours))
    evidence = healthy(gpu_infos=(GPU, other), gpu_samples=pair, requests=requests(**SLOW))
    assert must(evidence, "pcie-bottleneck").cause == "pcie-bottleneck/needless-split"
    big = (GpuProcess(77, "llama-server", 5.4 * GIB),)
    full = gpus(processes=big, vram_free_bytes=1 * GIB)
    needed = full + tuple(replace(each, uuid="GPU-2") for each in full)
    assert found(replace(evidence, gpu_samples=needed), "pcie-bottleneck") is None


# -- heat, power, clocks ---------------------------------------------------------------------------------------------


def test_heat_between_samples_is_found_by_counters_with_its_share() -> None:
    """All bits are clear in every sample, and yet the counter grew by 0.3 s a second."""
    hot = tuple(gpu(i, reasons=0.0, throttle_s={"sw-thermal": 40.0 + 0.3 * i, "power-cap": 5.0}) for i in range(12))
    finding = must(healthy(gpu_samples=hot), "thermal-throttling")
    assert finding.evidence[0].value == pytest.approx(0.3, abs=0.01)
    assert finding.evidence[0].via == "NVML time counters"
    assert finding.subject == UUID


def test_half_a_percent_of_heat_is_not_throttling() -> None:
    hot = tuple(gpu(i, throttle_s={"sw-thermal": 0.005 * i}) for i in range(12))
    assert found(healthy(gpu_samples=hot), "thermal-throttling") is None


def test_shares_that_the_collector_counted_are_taken() -> None:
    hot = gpus(throttle_s={}, throttles=(Throttle("hw-thermal", 0.5, "counter"),))
    finding = must(healthy(gpu_samples=hot), "thermal-throttling")
    assert (finding.severity, finding.cause) == ("error", "thermal-throttling/hardware")


def test_a_bit_counts_from_its_second_sample_in_a_row_on() -> None:
    def with_bits(on: set[int]) -> EvidenceSet:
        samples = tuple(gpu(i, throttle_s={}, reasons=float(0x20 if i in on else 0)) for i in range(12))
        return healthy(gpu_samples=samples)

    assert must(with_bits({4, 5, 6}), "thermal-throttling").evidence[0].via == "reason bits"
    assert found(with_bits({3, 6, 9}), "thermal-throttling") is None


def test_heat_while_idle_never_counts() -> None:
    idle = tuple(gpu(100 + i, utilization=0.0, throttle_s={"sw-thermal": 1.0 * i}) for i in range(30))
    assert found(healthy(gpu_samples=gpus() + idle), "thermal-throttling") is None


def test_heat_that_costs_nothing_is_a_notice() -> None:
    hot = tuple(gpu(i, throttle_s={"sw-thermal": 0.3 * i}) for i in range(12))
    assert must(healthy(gpu_samples=hot), "thermal-throttling").severity == "notice"
    slow = healthy(gpu_samples=hot, requests=requests(**SLOW))
    assert must(slow, "thermal-throttling").severity == "warn"


def test_a_hot_card_with_falling_clock_and_no_reasons_is_throttling() -> None:
    none = Missing("unsupported")
    falling = tuple(gpu(i, reasons=none, throttle_s={}, temperature_c=84.0, sm_mhz=1950.0 - 60 * i) for i in range(12))
    finding = must(healthy(gpu_samples=falling), "thermal-throttling")
    assert finding.cause == "thermal-throttling/falling-clock"
    cooler = tuple(replace(each, temperature_c=76.0) for each in falling)
    assert found(healthy(gpu_samples=cooler), "thermal-throttling") is None


def test_hot_memory_under_a_cool_core_is_named() -> None:
    hot = tuple(gpu(i, temperature_c=62.0, throttle_s={"sw-thermal": 0.3 * i}) for i in range(12))
    assert "thermal-throttling/memory-heat" in cause_ids(must(healthy(gpu_samples=hot), "thermal-throttling"))


def test_session_totals_serve_where_no_samples_were_kept() -> None:
    facts = (SessionFacts(1, throttle_shares={"sw-thermal": 0.2}), SessionFacts(2, throttle_shares={"sw-thermal": 0.1}))
    finding = must(healthy(gpu_samples=(), sessions=facts), "thermal-throttling")
    assert finding.evidence[0].value == pytest.approx(0.15)
    cool = (SessionFacts(1, throttle_shares={"sw-thermal": 0.001}),)
    assert found(healthy(gpu_samples=(), sessions=cool), "thermal-throttling") is None


def test_the_power_cap_with_a_falling_rate_is_a_warning() -> None:
    capped = tuple(gpu(i, power_w=170.0, throttle_s={"power-cap": 0.9 * i}) for i in range(12))
    evidence = healthy(gpu_samples=capped, requests=requests(**SLOW))
    finding = must(evidence, "power-throttling")
    assert (finding.severity, finding.cause) == ("warn", "power-throttling/cap")


def test_a_power_brake_is_an_error_and_a_blip_is_nothing() -> None:
    braked = tuple(gpu(i, throttle_s={"power-brake": 0.2 * i}) for i in range(12))
    finding = must(healthy(gpu_samples=braked), "power-throttling")
    assert (finding.severity, finding.cause) == ("error", "power-throttling/power-brake")
    blip = tuple(gpu(i, throttle_s={}, reasons=float(0x8 if i == 5 else 0)) for i in range(12))
    assert found(healthy(gpu_samples=blip), "power-throttling") is None


def test_a_lasting_hardware_slowdown_is_an_error() -> None:
    slowed = tuple(gpu(i, throttle_s={}, reasons=float(0x8 if i > 3 else 0)) for i in range(12))
    assert must(healthy(gpu_samples=slowed), "power-throttling").cause == "power-throttling/hardware-slowdown"


LONG = requests(16)


def stuck(**changes: object) -> EvidenceSet:
    return healthy(requests=LONG, gpu_samples=gpus(16, **{"sm_mhz": 900.0, "pstate": 5.0, **changes}))


def test_low_clocks_under_load_without_a_reason_are_a_stuck_state() -> None:
    finding = must(stuck(), "low-clocks")
    assert (finding.severity, finding.cause) == ("warn", "low-clocks/stuck")
    assert finding.evidence[0].window_s is not None
    assert finding.evidence[0].window_s >= 10


@pytest.mark.parametrize(
    "changes",
    [{"sm_mhz": 1750.0}, {"temperature_c": 85.0}, {"power_w": 168.0}, {"reasons": 1.0}, {"utilization": 20.0}],
    ids=["83 % of the clock", "hot", "at the power limit", "starved", "hardly used"],
)  # fmt: skip
def test_low_clocks_with_a_reason_are_not_stuck(changes: dict[str, object]) -> None:
    hit = found(stuck(**changes), "low-clocks")
    assert hit is None


def test_nine_seconds_of_low_clocks_are_not_stuck() -> None:
    samples = tuple(gpu(i, sm_mhz=900.0 if i < 10 else 1950.0) for i in range(16))
    assert found(healthy(requests=LONG, gpu_samples=samples), "low-clocks") is None


def test_locked_clocks_and_a_virtual_gpu_have_names_of_their_own() -> None:
    assert must(stuck(reasons=2.0), "low-clocks").cause == "low-clocks/locked"
    virtual = replace(
        stuck(reasons=Missing("unsupported"), throttle_s={}), gpu_infos=(replace(GPU, name="NVIDIA L40S-24Q"),)
    )
    assert must(virtual, "low-clocks").cause == "low-clocks/vgpu-licence"


# -- loads, queue, cache ---------------------------------------------------------------------------------------------


def reloading(count: int, *, gap_s: float = 6.0, load_s: float = 3.0) -> tuple[Request, ...]:
    return tuple(
        replace(each, measurement=replace(each.measurement, load_s=load_s, ttft_s=load_s + 0.2, total_s=load_s + 1,
                                          cold=True, void_reason="reload-inside"))
        if i >= 8 - count else each
        for i, each in enumerate(requests(8, gap_s=gap_s))
    )  # fmt: skip


def test_loads_in_two_of_the_last_five_requests_are_reload_thrash() -> None:
    finding = must(healthy(requests=reloading(2)), "reload-thrash")
    assert finding.evidence[0].value == 2
    assert finding.cause is None
    assert "arguments" in finding.causes[0].check


def test_one_load_is_no_thrash_and_short_loads_are_none() -> None:
    assert found(healthy(requests=reloading(1)), "reload-thrash") is None
    assert found(healthy(requests=reloading(4, load_s=0.8)), "reload-thrash") is None


def test_loads_after_long_pauses_are_cold_loads() -> None:
    evidence = healthy(requests=reloading(3, gap_s=400.0), clock_offset_s=None)
    assert found(evidence, "reload-thrash") is None
    finding = must(evidence, "cold-load")
    assert (finding.severity, finding.cause) == ("notice", "cold-load/keep-alive")


def test_a_window_that_alternates_names_the_other_client() -> None:
    turns = tuple(servers(1, context=8192.0 if i % 2 else 4096.0)[0] for i in range(8))
    samples = tuple(replace(each, at=1000.0 + 5 * i) for i, each in enumerate(turns))
    finding = must(healthy(requests=reloading(4), server_samples=samples), "reload-thrash")
    assert finding.cause == "reload-thrash/other-options"
    assert "4096 → 8192" in str(cause_of(finding, finding.cause).speaks_for[0].value)


def test_own_options_that_alternate_are_named_with_the_one_to_keep() -> None:
    mixed = tuple(
        replace(each, requested=Options(num_ctx=4096 if i % 2 else 8192)) for i, each in enumerate(reloading(4))
    )
    finding = must(healthy(requests=mixed), "reload-thrash")
    assert finding.cause == "reload-thrash/own-options"
    assert finding.remedies[0].options in ({"num_ctx": 4096}, {"num_ctx": 8192})


def test_engine_starts_that_go_back_and_forth_are_thrash_even_without_own_requests() -> None:
    def start(i: int, window: int) -> EngineStart:
        return EngineStart(WALL + 20 * i, 100 + i, {"-c": str(window), "--port": str(4000 + i)})

    back = tuple(start(i, 8192 if i % 2 else 4096) for i in range(4))
    finding = must(EvidenceSet(engine_starts=back), "reload-thrash")
    assert "-c 4096 → 8192" in str(finding.evidence[0].value)
    onward = tuple(start(i, 4096 * (i + 1)) for i in range(4))
    assert found(EvidenceSet(engine_starts=onward), "reload-thrash") is None


def test_a_crash_that_looks_like_a_reload_is_named() -> None:
    crash = Failure("an error was encountered while running the model: unexpected EOF", WALL + 3)
    finding = must(healthy(requests=reloading(3), failures=(crash,)), "reload-thrash")
    assert finding.cause == "reload-thrash/crash"


def test_a_wait_for_a_slot_is_queueing() -> None:
    """As captured: total 11.98 s, of which 9.69 s are in no field of the server."""
    waits = requests(5, gap_s=13.0, total_s=11.98, ttft_s=10.2, queue_s=9.69, prefill_s=0.47)
    finding = must(healthy(requests=waits, workload=Workload(agents=2), history=()), "queueing")
    assert finding.cause == "queueing/slots"
    assert {"num_parallel": 2} in [each.options for each in finding.remedies]


def test_a_short_wait_is_no_queueing() -> None:
    assert found(healthy(requests=requests(queue_s=0.1, ttft_s=0.3)), "queueing") is None


def test_a_full_queue_is_named() -> None:
    busy = Failure("server busy, please try again.  maximum pending requests exceeded", WALL, 503)
    finding = must(healthy(failures=(busy,)), "queueing")
    assert finding.cause == "queueing/server-busy"
    loading = Failure("Loading model", WALL, 503)
    assert found(healthy(failures=(loading,)), "queueing") is None


def test_requests_that_wait_at_the_server_are_seen_from_outside() -> None:
    watched = servers(waiting=2.0)
    assert must(healthy(requests=(), server_samples=watched), "queueing")
    once = (*servers(11), servers(12, waiting=2.0)[11])
    assert found(healthy(requests=(), server_samples=once), "queueing") is None


def test_a_fixed_prompt_is_a_cache_hit_and_no_ttft_is_claimed() -> None:
    hits = requests(cached_tokens=63, ttft_s=0.02, prefill_s=0.01)
    evidence = healthy(requests=hits, workload=Workload(prompt_file="p.txt", fixed_prompt=True), baseline_ttft_s=0.001)
    finding = must(evidence, "prompt-cache-hit")
    assert finding.cause == "prompt-cache-hit/fixed-prompt"
    assert found(evidence, "high-ttft") is None
    assert all("ttft" not in each.code for each in diagnose(evidence))


def test_a_shared_prefix_is_a_cache_hit_and_the_first_token_alone_is_not() -> None:
    finding = must(healthy(requests=requests(cached_tokens=30)), "prompt-cache-hit")
    assert finding.cause == "prompt-cache-hit/shared-prefix"
    assert found(healthy(requests=requests(cached_tokens=1)), "prompt-cache-hit") is None


def test_a_server_that_does_not_count_cached_tokens_is_caught_by_its_prefill_rate() -> None:
    """As captured: the same prompt twice, 15 tokens in 487 ms and then in 53 ms."""
    repeated = tuple(
        replace(each, measurement=replace(each.measurement, cached_tokens=None, prompt_tokens=15,
                                          prefill_s=0.487 if i == 0 else 0.053))
        for i, each in enumerate(requests(4))
    )  # fmt: skip
    assert must(healthy(requests=repeated, workload=Workload(prompt_file="p.txt")), "prompt-cache-hit")
    unique = tuple(replace(each, measurement=replace(each.measurement, cached_tokens=None)) for each in requests(4))
    assert found(healthy(requests=unique, workload=Workload(prompt_file="p.txt")), "prompt-cache-hit") is None


def test_cold_calls_are_counted_and_shown_apart() -> None:
    evidence = healthy(requests=reloading(1, gap_s=100.0), clock_offset_s=None)
    finding = must(evidence, "cold-load")
    assert finding.severity == "info"
    assert "apart" in finding.title
    assert found(healthy(), "cold-load") is None


# -- settings --------------------------------------------------------------------------------------------------------


def test_80_layers_of_34_blocks_run_as_35() -> None:
    evidence = healthy(requested=Options(num_gpu=80), effective=Effective(Options(num_gpu=35), {"num_gpu": "derived"}))
    finding = must(evidence, "clamped-settings")
    assert (finding.severity, finding.cause) == ("notice", "clamped-settings/num-gpu")
    assert (finding.evidence[0].value, finding.evidence[0].threshold) == (35.0, 80)
    assert finding.evidence[0].source == "derived"


def test_a_window_under_the_vision_floor_and_over_the_trained_context_are_named() -> None:
    low = healthy(requested=Options(num_ctx=512), effective=Effective(Options(num_ctx=2048)))
    assert must(low, "clamped-settings").cause == "clamped-settings/vision-floor"
    high = healthy(requested=Options(num_ctx=200_000), effective=Effective(Options(num_ctx=131072)))
    assert must(high, "clamped-settings").cause == "clamped-settings/trained-context"


def test_a_window_that_is_rounded_up_is_only_information() -> None:
    rounded = cpu_only(
        model=replace(MODEL, vision=False), requested=Options(num_ctx=300), effective=Effective(Options(num_ctx=512))
    )
    finding = must(rounded, "clamped-settings")
    assert (finding.severity, finding.cause) == ("info", "clamped-settings/round-up")


def test_settings_that_run_as_asked_are_not_clamped() -> None:
    exact = healthy(requested=Options(num_gpu=20, num_ctx=4096), effective=Effective(Options(num_gpu=20, num_ctx=4096)))
    assert found(exact, "clamped-settings") is None


def test_an_ignored_option_and_a_batch_that_follows_are_named() -> None:
    line = LogLine('level=WARN msg="invalid option provided" option=num_ctxx')
    assert must(healthy(log=(line,)), "clamped-settings").cause == "clamped-settings/ignored-option"
    starts = (
        EngineStart(WALL, 1, {"-c": "4096", "-b": "512"}),
        EngineStart(WALL + 9, 2, {"-c": "32768", "-b": "1024"}),
    )
    finding = must(healthy(engine_starts=starts), "clamped-settings")
    assert finding.cause == "clamped-settings/batch-follows-window"
    pinned = healthy(engine_starts=starts, requested=Options(num_batch=512))
    assert found(pinned, "clamped-settings") is None


def test_a_quantised_cache_without_flash_attention_is_an_error_with_the_setting() -> None:
    failed = Failure("quantized V cache requires flash_attn to be enabled", WALL, 500, True)
    finding = must(healthy(failures=(failed,)), "clamped-settings")
    assert finding.severity == "error"
    assert {"flash_attention": "on"} in [each.options for each in finding.remedies]


def test_auto_that_kept_the_last_value_is_named() -> None:
    starts = (EngineStart(WALL, 1, {"-c": "4096", "-ngl": "12"}),)
    evidence = healthy(requested=Options(num_gpu=-1), effective=Effective(Options(num_gpu=12)), engine_starts=starts)
    assert must(evidence, "clamped-settings").cause == "clamped-settings/auto-keeps-last"


def test_a_prompt_that_was_cut_in_silence_is_truncation_and_names_the_window_it_needs() -> None:
    """As captured: 902 tokens into a window of 256, status 200, 131 evaluated."""
    cut = tuple(
        replace(each, tokens_sent=902, output_tokens=64, measurement=replace(each.measurement, prompt_tokens=131))
        for each in requests(3)
    )
    evidence = healthy(requests=cut, effective=Effective(Options(num_ctx=256)), model=replace(MODEL, vision=False))
    finding = must(evidence, "context-truncation")
    assert finding.cause == "context-truncation/silent-cut"
    assert {"num_ctx": 1024} in [each.options for each in finding.remedies]


def test_a_tokenizer_that_counts_a_little_less_is_no_truncation() -> None:
    near = tuple(
        replace(each, tokens_sent=240, measurement=replace(each.measurement, prompt_tokens=226)) for each in requests(3)
    )
    assert found(healthy(requests=near, effective=Effective(Options(num_ctx=256))), "context-truncation") is None


def test_a_refusal_that_wraps_json_in_a_string_gives_its_numbers() -> None:
    text = ('{"error":{"code":400,"message":"request (902 tokens) exceeds the available context size (256 tokens), try '
            'increasing it","type":"exceed_context_size_error","n_prompt_tokens":902,"n_ctx":256}}')  # fmt: skip
    evidence = healthy(requests=requests(3), failures=(Failure(text, WALL, 400),),
                       effective=Effective(Options(num_ctx=256)), history=())  # fmt: skip
    finding = must(evidence, "context-truncation")
    assert finding.cause == "context-truncation/refused"
    assert {"num_ctx": 1024} in [each.options for each in finding.remedies]


def test_a_window_that_ends_before_the_answer_is_truncation_within_the_trained_context() -> None:
    void = tuple(
        replace(each, tokens_sent=200, measurement=replace(each.measurement, prompt_tokens=200, completion_tokens=56,
                                                           void_reason="truncated"))
        for each in requests(3)
    )  # fmt: skip
    small = replace(MODEL, trained_ctx=256, vision=False)
    evidence = healthy(requests=void, effective=Effective(Options(num_ctx=256)), model=small, history=())
    finding = must(evidence, "context-truncation")
    assert finding.cause == "context-truncation/output-cut"
    assert all(each.options is None for each in finding.remedies)
    assert any("trained" in each.text for each in finding.remedies)


# -- load by others --------------------------------------------------------------------------------------------------


def test_a_busy_loop_on_all_cores_is_foreign_load_with_its_share() -> None:
    finding = must(cpu_only(host_samples=hosts(foreign_cpu_percent=52.0)), "foreign-load")
    assert (finding.severity, finding.cause) == ("warn", "foreign-load/cpu")
    assert finding.evidence[0].value == pytest.approx(52.0)
    assert [each.options for each in finding.remedies if each.options] == [{"num_thread": 4}]


def test_a_little_work_of_others_is_not_foreign_load() -> None:
    assert found(cpu_only(host_samples=hosts(foreign_cpu_percent=9.0)), "foreign-load") is None


def test_work_beside_a_model_on_the_gpu_needs_most_of_the_cores_to_matter() -> None:
    assert found(healthy(host_samples=hosts(foreign_cpu_percent=50.0)), "foreign-load") is None
    assert must(healthy(host_samples=hosts(foreign_cpu_percent=90.0)), "foreign-load").severity == "notice"


def test_work_of_others_between_requests_does_not_count() -> None:
    later = tuple(replace(each, at=each.at + 500) for each in hosts(foreign_cpu_percent=95.0))
    assert found(cpu_only(host_samples=hosts() + later), "foreign-load") is None


def test_another_tenant_of_the_gpu_is_foreign_load_and_the_engine_is_not() -> None:
    ours = GpuProcess(77, "llama-server", 4e9, 90.0)
    other = GpuProcess(900, "train.py", 3e9, 35.0)
    finding = must(healthy(gpu_samples=gpus(processes=(ours, other))), "foreign-load")
    assert (finding.cause, finding.severity) == ("foreign-load/gpu", "warn")
    assert found(healthy(gpu_samples=gpus(processes=(ours,))), "foreign-load") is None
    small = replace(other, sm_percent=2.0)
    assert found(healthy(gpu_samples=gpus(processes=(ours, small))), "foreign-load") is None
    nobody = healthy(gpu_samples=gpus(processes=(ours, other)), engine_pids=frozenset())
    assert found(nobody, "foreign-load") is None
    untied = replace(other, name="?")
    assert found(healthy(gpu_samples=gpus(processes=(ours, untied))), "foreign-load") is None, "it may be the engine"
    elsewhere = tuple(replace(each, uuid="GPU-2", processes=(other,)) for each in gpus())
    second = healthy(gpu_samples=(*gpus(processes=(ours,)), *elsewhere))
    assert found(second, "foreign-load") is None, "on a GPU that the engine is not on"
    two = healthy(gpu_samples=gpus(processes=(ours, other)), workload=Workload(agents=2, instances=2))
    assert found(two, "foreign-load") is None, "it may be the second instance"


def words(evidence: EvidenceSet, code: str) -> str:
    return " ".join(each.text for each in must(evidence, code).remedies)


@pytest.mark.parametrize("kind", ["ollama", "llama_server", "embedded", "openai"])
def test_cures_are_told_in_the_words_of_the_server_at_hand(kind: ServerKind) -> None:
    def here(**changes: Any) -> EvidenceSet:
        return healthy(server=ServerInfo(kind, "http://127.0.0.1:9"), **changes)

    asked = here(server_samples=servers(vram=2.0e9), requested=Options(num_gpu=17))
    layers = next(each for each in must(asked, "cpu-offload").remedies if each.options == {"num_gpu": -1}).text
    assert ("unload the model first" in layers) == (kind in {"ollama", "openai"})
    assert ("`-ngl -1`" in layers) == (kind == "llama_server")
    busy = words(here(failures=(Failure("server busy", WALL, 503),)), "queueing")
    assert ("OLLAMA_MAX_QUEUE" in busy) == (kind == "ollama")
    cold = tuple(
        replace(each, measurement=replace(each.measurement, load_s=2.0, cold=True)) if not place else each
        for place, each in enumerate(requests(8))
    )
    assert ("keep_alive" in words(here(requests=cold), "cold-load")) == (kind in {"ollama", "openai"})


def test_a_list_of_processes_that_samples_repeat_is_one_look() -> None:
    ours, other = GpuProcess(77, "llama-server", 4e9, 90.0), GpuProcess(900, "train.py", 3e9, 35.0)
    same = gpus(processes=(ours, other), processes_at=999.0)
    assert found(healthy(gpu_samples=same), "foreign-load") is None, "a moment before the requests"
    both = tuple(replace(each, processes_at=1000.0 + i // 6) for i, each in enumerate(same))
    finding = must(healthy(gpu_samples=both), "foreign-load")
    assert [len(each.series) for each in finding.evidence if each.what == "GPU used by other programs"] == [2]
    gone = tuple(replace(each, processes=(ours,)) for each in both[6:])
    value = next(each.value for each in must(healthy(gpu_samples=both[:6] + gone), "foreign-load").evidence)
    assert value == 17.5


def test_a_run_that_left_no_moment_to_look_has_the_lists_of_its_sessions_ends() -> None:
    ours, other = GpuProcess(77, "llama-server", 4e9, 90.0), GpuProcess(900, "train.py", 3e9, 35.0)
    one_look = gpus(processes=(ours, other), processes_at=999.0)
    finding = must(healthy(gpu_samples=one_look, sessions=(SessionFacts(1, foreign_gpu_percent=30.0),)), "foreign-load")
    assert (finding.cause, finding.severity) == ("foreign-load/gpu", "warn")
    assert [each.value for each in finding.evidence[:2]] == [30.0, "train.py"]
    quiet = (SessionFacts(1, foreign_gpu_percent=1.0), SessionFacts(2))
    assert found(healthy(gpu_samples=one_look, sessions=quiet), "foreign-load") is None


def test_time_stolen_by_the_hypervisor_is_named() -> None:
    assert must(cpu_only(host_samples=hosts(steal_percent=12.0)), "foreign-load").cause == "foreign-load/steal"
    assert found(cpu_only(host_samples=hosts(steal_percent=1.0)), "foreign-load") is None


def test_a_stream_that_stood_still_for_anothers_prompt_is_named() -> None:
    frozen = tuple(
        replace(each, measurement=replace(each.measurement, itl_max_s=3.5 if i == 3 else 0.02, total_s=4.0))
        for i, each in enumerate(requests(8, gap_s=4.2))
    )
    prefill = (SlotState(0, True, 1, 80, 0, 40), SlotState(1, True, 2, 3000, 0, 0))
    seen = tuple(ServerSample(1000.0 + i, busy=2.0, waiting=0.0, slots=prefill) for i in range(34))
    finding = must(cpu_only(requests=frozen, server_samples=seen, history=()), "foreign-load")
    assert finding.cause == "foreign-load/shared-batch"
    alone = tuple(replace(each, busy=1.0, slots=prefill[:1]) for each in seen)
    assert found(cpu_only(requests=frozen, server_samples=alone, history=()), "foreign-load") is None


def test_another_client_is_named_and_our_own_agents_are_not() -> None:
    busy = servers(busy=2.0)
    assert must(healthy(server_samples=busy), "foreign-load").cause == "foreign-load/client"
    assert found(healthy(server_samples=busy, workload=Workload(agents=2)), "foreign-load") is None


# -- consistency -----------------------------------------------------------------------------------------------------

TWO_GROUPS = [80.0, 81.0, 55.0, 80.5, 54.5, 79.5, 55.5, 80.2, 54.8, 80.1, 55.2, 54.6]


def test_two_groups_of_rates_are_called_bimodal() -> None:
    finding = must(healthy(requests=rates(TWO_GROUPS), history=()), "inconsistent-performance")
    assert "two groups" in finding.title
    assert "inconsistent-performance/bimodal" in cause_ids(finding)


def test_scatter_with_output_length_is_explained_by_it() -> None:
    varied = tuple(
        replace(each, output_tokens=None, measurement=replace(
            each.measurement, completion_tokens=20 * 2 ** (i % 4), decode_tok_s=80.0 - 8 * (i % 4)))
        for i, each in enumerate(requests(12))
    )  # fmt: skip
    finding = must(healthy(requests=varied, history=()), "inconsistent-performance")
    assert finding.cause == "inconsistent-performance/output-length"
    assert finding.causes[0].share is not None
    assert finding.causes[0].share > 0.9


NOISE = [80.0, 71.0, 88.0, 79.0, 92.0, 74.0, 83.0, 77.0, 86.0, 81.0]


def test_scatter_without_a_pattern_is_noise_and_not_inconsistency() -> None:
    evidence = healthy(requests=rates(NOISE), history=())
    assert [each.code for each in diagnose(evidence)] == ["measurement-noise"]
    assert must(evidence, "measurement-noise").cause == "measurement-noise/scatter"


def test_scatter_on_a_busy_machine_is_foreign_load_and_noise_at_most() -> None:
    evidence = cpu_only(requests=rates(TWO_GROUPS), host_samples=hosts(16, foreign_cpu_percent=40.0), history=())
    assert {each.code for each in diagnose(evidence)} == {"foreign-load", "measurement-noise"}


def test_a_timeout_among_good_requests_is_inconsistent() -> None:
    late = Request(measurement(20.0, void_reason="timeout", error="nothing came for 120 s"), 1, "c0", 1)
    finding = must(healthy(requests=(*requests(), late)), "inconsistent-performance")
    assert finding.cause == "inconsistent-performance/failures"
    stopped = Request(measurement(20.0, void_reason="interrupted"), 1, "c0", 1)
    assert found(healthy(requests=(*requests(), stopped)), "inconsistent-performance") is None


def test_a_crash_in_mid_stream_is_named() -> None:
    text = "an error was encountered while running the model: unexpected EOF"
    broken = Request(measurement(20.0, void_reason="error", error=text), 1, "c0", 1)
    assert must(healthy(requests=(*requests(), broken)), "inconsistent-performance").cause == \
        "inconsistent-performance/crash"  # fmt: skip


def test_four_percent_of_scatter_is_nothing() -> None:
    calm = [80 + (value - 81.1) / 3 for value in NOISE]
    assert diagnose(healthy(requests=rates(calm), history=())) == []


def test_short_answers_and_answers_of_the_wrong_length_are_noise() -> None:
    short = tuple(replace(each, output_tokens=8) for each in requests(completion_tokens=8))
    assert must(healthy(requests=short), "measurement-noise").cause == "measurement-noise/short-output"
    wrong = requests(completion_tokens=50)
    assert must(healthy(requests=wrong), "measurement-noise").cause == "measurement-noise/length"
    near = requests(completion_tokens=60)
    assert found(healthy(requests=near), "measurement-noise") is None


# -- history ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "cause"),
    [
        (past(100.0, version="0.32.0"), "server-regression/version"),
        (past(100.0, driver="570.0"), "server-regression/driver"),
        (past(100.0, digest="sha256:old"), "server-regression/model"),
        (past(100.0, options=Options(num_ctx=2048)), "server-regression/settings"),
    ],
)
def test_a_baseline_that_fell_after_a_change_names_the_change(before: object, cause: str) -> None:
    evidence = healthy(requests=requests(decode_tok_s=60.0), history=(before,))
    finding = must(evidence, "server-regression")
    assert finding.cause == cause


@pytest.mark.parametrize(("others", "severity", "against"), [(70.0, "notice", 1), (20.0, "warn", 0)])
def test_a_busy_machine_speaks_against_a_regression(others: float, severity: str, against: int) -> None:
    evidence = cpu_only(
        requests=requests(decode_tok_s=60.0),
        host_samples=hosts(foreign_cpu_percent=others),
        history=(past(100.0, options=Options(num_ctx=2048)),),
    )
    finding = must(evidence, "server-regression")
    assert finding.severity == severity
    assert ("something else slows it down now" in finding.title) is bool(against)
    assert [len(one.speaks_against) for one in finding.causes] == [against]
    if against:
        assert finding.causes[0].speaks_against[0].value == pytest.approx(others)
        assert finding.causes[0].check


def test_a_baseline_that_fell_without_a_change_is_no_regression() -> None:
    evidence = healthy(requests=requests(decode_tok_s=60.0), history=(past(100.0),))
    assert found(evidence, "server-regression") is None
    assert must(evidence, "low-throughput")


def test_a_fall_within_the_earlier_scatter_is_no_regression() -> None:
    noisy = past(90.0, version="0.32.0", cv=0.12)
    assert found(healthy(requests=requests(decode_tok_s=70.0), history=(noisy,)), "server-regression") is None


# -- all together ----------------------------------------------------------------------------------------------------


def test_findings_come_worst_first_and_each_once() -> None:
    evidence = healthy(
        requests=requests(**SLOW), failures=(OOM,), requested=Options(num_gpu=80),
        effective=Effective(Options(num_gpu=35, num_ctx=4096)), gpu_samples=gpus(xids=(79,)),
    )  # fmt: skip
    findings = diagnose(evidence)
    order = [("error", "warn", "notice", "info").index(each.severity) for each in findings]
    assert order == sorted(order)
    assert len({(each.code, each.subject) for each in findings}) == len(findings)
    assert findings == diagnose(evidence)


def test_every_piece_of_evidence_says_how_it_is_known() -> None:
    evidence = healthy(
        requests=requests(**SLOW), server_samples=servers(vram=3e9), failures=(OOM,),
        host_samples=hosts(foreign_cpu_percent=90.0, steal_percent=10.0),
    )  # fmt: skip
    for finding in diagnose(evidence):
        assert finding.evidence
        for each in (*finding.evidence, *(one for cause in finding.causes for one in cause.speaks_for)):
            assert each.source in ("measured", "derived", "estimated", "unknown")
            assert each.via
            assert each.value is not None


def test_text_of_a_server_cannot_reach_the_terminal_as_control_characters() -> None:
    evil = Failure("cudaMalloc failed: out of memory\x1b[2J\x07\r\nX", WALL, 500, True)
    finding = must(healthy(failures=(evil,)), "vram-exhaustion")
    assert all(character.isprintable() for character in str(finding.evidence[0].value))


def test_a_finding_keeps_the_time_at_which_it_was_first_seen() -> None:
    evidence = healthy(requests=requests(**SLOW))
    first = since_first_seen([], diagnose(evidence), WALL)
    later = since_first_seen(first, diagnose(evidence), WALL + 60)
    assert {each.since for each in later} == {each.since for each in first}
    assert all(each.since is not None for each in later)


def test_a_sweeps_own_loads_are_no_thrash() -> None:
    warmups = tuple(
        Request(measurement(40.0 * i, role="warmup", load_s=3.0, ttft_s=3.2, total_s=4.0), i, "c0", i) for i in range(5)
    )
    assert diagnose(healthy(requests=warmups + tuple(requests(5)))) == []


def test_engines_that_a_sweeps_sessions_start_are_no_thrash() -> None:
    windows = ("4096", "8192", "4096", "8192")
    starts = tuple(EngineStart(WALL + 60 * i + 4, 100 + i, {"-c": each}) for i, each in enumerate(windows))
    sessions = tuple(SessionFacts(i + 1, f"c{i % 2}", started_at=WALL + 60 * i, load_s=3.0) for i in range(4))
    assert diagnose(EvidenceSet(engine_starts=starts, sessions=sessions)) == []
    strangers = tuple(replace(each, at=each.at + 20) for each in starts)
    assert must(EvidenceSet(engine_starts=strangers, sessions=sessions), "reload-thrash")


def test_the_cases_above_cover_every_code() -> None:
    import pathlib

    text = pathlib.Path(__file__).read_text(encoding="utf-8")
    for code in CODES:
        assert f'"{code}")' in text, code


def test_models_that_are_installed_are_named_as_cures_smallest_step_first() -> None:
    installed = (
        MODEL,
        ModelInfo("gemma3:4b-it-q3", quantization="Q3_K_M", size_bytes=int(2.1e9), parameters=MODEL.parameters),
        ModelInfo("gemma3:1b", size_bytes=int(0.8e9), parameters=1_000_000_000),
        ModelInfo("llama3:70b", size_bytes=int(40e9), parameters=70_000_000_000),
    )
    finding = must(healthy(server_samples=servers(vram=3e9), installed=installed), "cpu-offload")
    words = " ".join(each.text for each in finding.remedies)
    assert "gemma3:4b-it-q3" in words
    assert "llama3:70b" not in words


@pytest.mark.parametrize(("installed", "says"), [((), "was not asked"), ((MODEL,), "none is installed")])
def test_no_smaller_model_is_denied_where_nobody_asked_for_them(installed: tuple[ModelInfo, ...], says: str) -> None:
    finding = must(healthy(server_samples=servers(vram=3e9), installed=installed), "cpu-offload")
    assert any(says in each.text for each in finding.remedies)


def test_two_gpus_are_told_apart() -> None:
    other = replace(GPU, uuid="GPU-2", index=1)
    hot = tuple(gpu(i, throttle_s={"sw-thermal": 0.3 * i}) for i in range(12))
    cool = tuple(replace(each, uuid="GPU-2", throttle_s={"sw-thermal": 1.0}) for each in hot)
    findings = diagnose(healthy(gpu_infos=(GPU, other), gpu_samples=hot + cool))
    assert [each.subject for each in findings if each.code == "thermal-throttling"] == [UUID]
    assert "GPU 0" in findings[0].title


def test_a_model_that_another_server_loaded_is_not_ours() -> None:
    foreign = (LoadedModel("llama3:8b", 8e9, 1e9, 4096.0),)
    assert diagnose(healthy(server_samples=servers(models=foreign))) == []


def crowd(rates: Sequence[float], candidate: str = "c1", **more: Any) -> tuple[Request, ...]:
    """Requests of agents that each get so many tokens a second."""
    return tuple(
        replace(each, candidate=candidate, measurement=replace(each.measurement, agent=agent, total_s=64 / rate))
        for agent, rate in enumerate(rates)
        for each in requests(1, completion_tokens=64, **more)
    )


def test_a_wait_of_several_agents_is_judged_where_several_take_part() -> None:
    alone = tuple(replace(each, candidate="c0") for each in requests(5, queue_s=0.0))
    together = crowd((6.0, 6.0, 6.0), queue_s=9.69, ttft_s=10.2)
    finding = must(healthy(requests=(*alone, *together), workload=Workload(agents=3), history=()), "queueing")
    assert finding.cause == "queueing/slots"
    assert finding.title.startswith("3 of 3 requests waited")


def test_agents_with_unequal_shares_are_named_with_the_figures() -> None:
    finding = must(healthy(requests=crowd((20.0, 6.0)), workload=Workload(agents=2), history=()), "queueing")
    assert finding.cause == "queueing/unfair"
    index, least = finding.evidence[0].value, finding.evidence[1].value
    assert index == pytest.approx(26**2 / (2 * (400 + 36)))
    assert least == pytest.approx(6.0)
    assert found(healthy(requests=crowd((20.0, 18.0)), workload=Workload(agents=2), history=()), "queueing") is None
