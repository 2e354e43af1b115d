"""What held a session back, and what a GPU's power limits allow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chimera.domain.measurement import Measurement
from chimera.domain.run import Run, Session, Target
from chimera.domain.workload import Workload
from chimera.store.blame import aim_words, blame, blame_words, power_view

FACTS: dict[str, Any] = {
    "needs": {"roof_tok_s": 160.0},
    "throttle_shares": {
        "power-cap": 0.12,
        "sw-thermal": 0.0,
        "hw-thermal": 0.0,
        "power-brake": 0.03,
        "sync-boost": 1.0,
    },
    "sm_mhz_mean": 1890.4,
    "sm_mhz_min": 1695.0,
    "energy_j_per_token": 0.4,
    "power_limit_w": 350.0,
    "vram_peak_bytes": 6 * 2**30,
    "foreign_cpu_percent": 3.0,
    "foreign_gpu_percent": 0.0,
}


def request(rate: float, **changes: Any) -> Measurement:
    return replace(Measurement("measure", 0.0, 1.0, decode_tok_s=rate), **changes)


def test_the_line_has_all_that_is_known_and_only_requests_that_count() -> None:
    rows = [request(96.0), request(98.0), request(400.0, void_reason="cache-hit"), request(10.0, role="warmup")]
    line = blame_words(blame(Session(1, "c0", facts=FACTS), rows))
    assert line == (
        "97.0 tok/s, 61% of the roof; power cap 12%, SW thermal 0%, HW thermal 0%, power brake 3%; "
        "SM 1890 MHz, lowest 1695; 0.4 J/token, 2.5 tok/s per W at a limit of 350 W; VRAM 6.00 GiB; "
        "others 3 % of the CPU and 0 % of the GPU"
    )


def test_what_is_unknown_is_left_out_and_never_zero() -> None:
    found = blame(Session(1, "c0"), [])
    assert blame_words(found) == ""
    assert {value for name, value in found.items() if name != "throttle_shares"} == {None}
    assert blame_words(blame(Session(1, "c0", facts={"foreign_cpu_percent": 40.2}), [request(9.5)])) == (
        "9.5 tok/s; others 40 % of the CPU"
    )


def a_run(**gpu: Any) -> Run:
    gpus = ({"uuid": "GPU-1", "index": 2, "name": "Card", **gpu},)
    return Run("r", "sweep", "done", 0.0, Target("embedded"), Workload(), 1, gpus=gpus)


def test_limits_worth_trying_are_named_where_the_driver_tells_the_range() -> None:
    (view,) = power_view(a_run(power_min_w=100.0, power_max_w=350.0, power_default_w=300.0))
    assert view["try_w"] == [270, 240, 210, 180]
    assert "`nvidia-smi -i 2 -pl 270`" in view["words"]
    assert "Chimera changes no GPU setting" in view["words"]
    (low,) = power_view(a_run(power_min_w=250.0, power_max_w=300.0, power_default_w=300.0))
    assert low["try_w"] == [270], "never below what the driver takes"


@pytest.mark.parametrize(
    "gpu",
    [
        {},
        {"power_min_w": {"kind": "unsupported"}, "power_max_w": 300.0},
        {"power_min_w": 300.0, "power_max_w": 300.0, "power_default_w": 300.0},
        {"power_min_w": 0.0, "power_max_w": 300.0},
    ],
)
def test_no_advice_without_limits(gpu: dict[str, Any]) -> None:
    assert power_view(a_run(**gpu)) == []


def test_aims_have_their_units() -> None:
    assert aim_words("vram_bytes", 3 * 2**30) == "VRAM 3.00 GiB"
    assert aim_words("decode_tok_s", 98.14) == "98.1 tok/s"
    assert aim_words("num_ctx", 4096.0) == "context 4096"
