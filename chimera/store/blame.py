"""The blame line of a session: what held it back and what it took, beside what it gave.

And of a run what its GPUs' power limits allow: advice alone, as Chimera changes no setting of a GPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from chimera.domain.measurement import Measurement
from chimera.domain.run import Run, Session

VRAM_FACT = "vram_peak_bytes"
"""Key in `Session.facts`: most VRAM that the engine held in the session, bytes."""
THROTTLES = {
    "power-cap": "power cap",
    "sw-thermal": "SW thermal",
    "hw-thermal": "HW thermal",
    "power-brake": "power brake",
    "hw-slowdown": "HW slowdown",
}
"""Reasons of lowered clocks as they are shown; the first three always, where their counters are known."""
_ALWAYS = frozenset({"power-cap", "sw-thermal", "hw-thermal"})
_STEPS = (0.9, 0.8, 0.7, 0.6)
"""Shares of the default power limit worth trying: decoding waits for memory, so it loses less than the power saved."""


def blame(session: Session, measurements: Sequence[Measurement]) -> dict[str, Any]:
    """What is known of a session; JSON-able, None where nothing is."""
    facts = session.facts
    rates = [one.rate for one in measurements if one.valid and one.rate is not None]
    rate = statistics.median(rates) if rates else None
    roof = (facts.get("needs") or {}).get("roof_tok_s")
    energy = facts.get("energy_j_per_token")
    return {
        "rate_tok_s": rate,
        "roof_share": rate / roof if rate is not None and roof else None,
        "throttle_shares": facts.get("throttle_shares") or {},
        "sm_mhz_mean": facts.get("sm_mhz_mean"),
        "sm_mhz_min": facts.get("sm_mhz_min"),
        "energy_j_per_token": energy,
        "tok_s_per_w": 1 / energy if energy else None,
        "power_limit_w": facts.get("power_limit_w"),
        VRAM_FACT: facts.get(VRAM_FACT) or facts.get("gpu_vram_peak_bytes"),
        "foreign_cpu_percent": facts.get("foreign_cpu_percent"),
        "foreign_gpu_percent": facts.get("foreign_gpu_percent"),
    }


def blame_words(found: Mapping[str, Any]) -> str:
    """The same in one line; what is unknown is left out."""
    parts = []
    if (rate := found["rate_tok_s"]) is not None:
        roof = found["roof_share"]
        parts.append(f"{rate:.1f} tok/s" + (f", {roof:.0%} of the roof" if roof is not None else ""))
    shares = found["throttle_shares"]
    held = [f"{words} {shares[name]:.0%}" for name, words in THROTTLES.items() if shares.get(name) or (
        name in shares and name in _ALWAYS
    )]  # fmt: skip
    parts += [", ".join(held)] if held else []
    if (mean := found["sm_mhz_mean"]) is not None:
        parts.append(f"SM {mean:.0f} MHz, lowest {found['sm_mhz_min']:.0f}")
    if (energy := found["energy_j_per_token"]) is not None:
        limit = f" at a limit of {found['power_limit_w']:.0f} W" if found["power_limit_w"] else ""
        parts.append(f"{energy:.3g} J/token, {found['tok_s_per_w']:.3g} tok/s per W{limit}")
    if found[VRAM_FACT]:
        parts.append(f"VRAM {found[VRAM_FACT] / 2**30:.2f} GiB")
    others = [
        f"{value:.0f} % of the {what}"
        for what, value in (("CPU", found["foreign_cpu_percent"]), ("GPU", found["foreign_gpu_percent"]))
        if value is not None
    ]
    parts += [f"others {' and '.join(others)}"] if others else []
    return "; ".join(parts)


def aim_words(aim: str, value: float) -> str:
    """One value of the Pareto front, with its unit."""
    return {
        "decode_tok_s": f"{value:.1f} tok/s",
        "ttft_s": f"TTFT {value:.3f} s",
        "completion_s": f"completion {value:.2f} s",
        "vram_bytes": f"VRAM {value / 2**30:.2f} GiB",
        "energy_j_per_token": f"{value:.3g} J/token",
        "num_ctx": f"context {value:.0f}",
    }.get(aim, f"{aim} {value:.3g}")


def power_view(run: Run) -> list[dict[str, Any]]:
    """For each GPU whose driver tells its limits, the values of `nvidia-smi -pl` worth trying; JSON-able."""
    found = []
    for gpu in run.gpus:
        low, high, usual = (_watts(gpu.get(name)) for name in ("power_min_w", "power_max_w", "power_default_w"))
        if low is None or high is None or not 0 < low < high:
            continue
        usual = usual or high
        values = sorted({round(usual * step) for step in _STEPS if low <= usual * step < high}, reverse=True)
        if not values:
            continue
        name, index = str(gpu.get("name", "GPU")), gpu.get("index", 0)
        words = (
            f"{name} takes limits of {low:.0f} to {high:.0f} W, {usual:.0f} W by default. For more tok/s per watt try "
            f"{', '.join(f'`nvidia-smi -i {index} -pl {value}`' for value in values)}, each with the same comparison "
            "again and `--objective energy`; Chimera changes no GPU setting."
        )
        found.append({"gpu": gpu.get("uuid"), "min_w": low, "max_w": high, "default_w": usual, "try_w": values,
                      "words": words})  # fmt: skip
    return found


def _watts(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
