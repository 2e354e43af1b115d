"""What is no symptom must give nothing, or no more than a remark."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chimera.diagnosis.evidence import EvidenceSet, PastRun, Request
from chimera.diagnosis.rules import diagnose
from chimera.domain.finding import SEVERITIES
from chimera.domain.options import Options
from chimera.domain.readings import Missing
from chimera.domain.server import Effective, ServerInfo

from .builders import GIB, cpu_only, gpu, gpus, healthy, measurement, past, requests, servers


def loudest(evidence: EvidenceSet) -> int:
    return max((SEVERITIES.index(each.severity) for each in diagnose(evidence)), default=-1)


def test_no_evidence_gives_no_finding() -> None:
    assert diagnose(EvidenceSet()) == []


def test_a_healthy_machine_gives_no_finding() -> None:
    assert diagnose(healthy()) == []


def test_a_healthy_embedded_run_gives_no_finding() -> None:
    assert diagnose(cpu_only()) == []


def test_a_hot_card_whose_clocks_stay_up_gives_no_finding() -> None:
    assert diagnose(healthy(gpu_samples=gpus(temperature_c=86.0))) == []


def test_92_percent_utilisation_and_45_percent_vram_give_no_finding() -> None:
    assert diagnose(healthy(gpu_samples=gpus(utilization=92.0, vram_used_bytes=5.4 * GIB))) == []


def test_a_clock_that_drops_when_idle_gives_no_finding() -> None:
    idle = tuple(
        gpu(100 + i, utilization=0.0, sm_mhz=210.0, reasons=1.0, pstate=8.0, power_w=15.0, pcie_gen=1.0)
        for i in range(60)
    )
    assert diagnose(healthy(gpu_samples=gpus() + idle)) == []


def test_a_full_gpu_whose_model_lies_whole_in_it_gives_no_finding() -> None:
    full = gpus(vram_used_bytes=11.7 * GIB, vram_free_bytes=0.2 * GIB)
    assert diagnose(healthy(gpu_samples=full)) == []


def test_the_power_cap_alone_is_only_information() -> None:
    capped = tuple(gpu(i, power_w=170.0, reasons=4.0, throttle_s={"power-cap": 5.0 + i}) for i in range(12))
    findings = diagnose(healthy(gpu_samples=capped))
    assert [(each.code, each.severity) for each in findings] == [("power-throttling", "info")]


def test_one_slow_call_after_a_load_is_only_information() -> None:
    slow = Request(measurement(-5.0, load_s=3.1, ttft_s=3.4, total_s=4.2, cold=True), 1, "c0", 1)
    findings = diagnose(healthy(requests=(slow, *requests())))
    assert [(each.code, each.severity) for each in findings] == [("cold-load", "info")]


def test_a_slower_model_than_another_is_no_symptom() -> None:
    other = past(200.0, model="tiny:1b", digest="sha256:bb")
    assert diagnose(healthy(history=(other,))) == []


def test_the_guides_numbers_do_not_speak_of_another_card() -> None:
    """70 tok/s and a TTFT of 1.5 s are under the guide's marks, which are for an RTX 4080."""
    slow = requests(decode_tok_s=70.0, client_decode_tok_s=70.0, ttft_s=1.5, prefill_s=1.4, total_s=2.4)
    assert diagnose(healthy(requests=slow, history=())) == []


def test_a_remote_servers_machine_is_not_this_one() -> None:
    remote = healthy(
        server=ServerInfo("ollama", "http://192.0.2.7:11434", "0.33.0"),
        gpu_samples=gpus(utilization=0.0, sm_mhz=210.0, temperature_c=30.0),
        server_samples=(),
    )
    assert diagnose(remote) == []


def test_a_driver_that_tells_nothing_gives_no_finding() -> None:
    nothing = Missing("unsupported", "NVML: Not Supported")
    blind = gpus(
        utilization=nothing, temperature_c=nothing, sm_mhz=nothing, power_w=nothing, reasons=nothing, throttle_s={},
        vram_total_bytes=nothing, vram_used_bytes=nothing, vram_free_bytes=nothing, pstate=nothing,
        pcie_gen=nothing, processes=nothing,
    )  # fmt: skip
    assert diagnose(healthy(gpu_samples=blind)) == []


def test_cold_and_discarded_requests_never_enter_the_steady_figures() -> None:
    warmup = Request(measurement(-9.0, role="warmup", decode_tok_s=9.0, load_s=4.0), 1, "c0", 1)
    cold = Request(measurement(-4.0, decode_tok_s=9.0, load_s=3.0, cold=True), 1, "c0", 1)
    few = requests(3)
    assert loudest(healthy(requests=(warmup, cold, *few))) <= SEVERITIES.index("info")


def test_a_candidate_that_is_slower_than_the_baseline_is_a_verdict_and_no_symptom() -> None:
    slow = tuple(replace(each, candidate="c1", session=2) for each in requests(5, decode_tok_s=30.0))
    assert diagnose(healthy(requests=requests(5) + slow)) == []


@pytest.mark.parametrize("asked", [Options(num_gpu=35), Options(num_gpu=-1), Options(num_ctx=4096), Options()])
def test_settings_that_run_as_asked_give_no_finding(asked: Options) -> None:
    assert diagnose(healthy(requested=asked, effective=Effective(Options(num_ctx=4096, num_gpu=35)), history=())) == []


def test_a_changed_version_without_a_fall_gives_no_finding() -> None:
    assert diagnose(healthy(history=(past(version="0.32.0", driver="570.0"),))) == []


def test_history_of_other_settings_is_no_baseline() -> None:
    other = PastRun("old", 1.0, 300.0, 0.05, 0.01, 5, "0.33.0", "575.1", "gemma3:latest", "sha256:aa",
                    Options(num_ctx=512, num_gpu=12), 64)  # fmt: skip
    assert diagnose(healthy(history=(other,), effective=Effective())) == []


def test_another_model_in_memory_is_no_offload_of_ours() -> None:
    assert diagnose(healthy(server_samples=servers(size=4e9, vram=3.99e9))) == []
