"""What a run with agents has shown, for a person; from the document that `--json` prints."""

from __future__ import annotations

from typing import Any

from .output import emit, emit_table

WIDTH = 40
"""Cells of the longest bar."""


def emit_agents(report: dict[str, Any]) -> None:
    """Arms, each agent, saturation, and at the end what it comes to."""
    arms = report["arms"]
    emit()
    emit_table(
        [
            "", "arm", "tok/s", "speed-up", "efficiency", "fairness", "tok/s each", "TTFT p95", "worst", "queue p95",
            "waited", "failed", "done in s", *(["VRAM GiB"] if _any(arms, "vram_bytes") else []),
            *(["J/token"] if _any(arms, "energy_j_per_token") else []),
        ],
        [
            (
                arm["candidate"], arm["label"], _fixed(arm["aggregate_tok_s"], 1), _fixed(arm["speedup"]),
                _share(arm["efficiency"]), _fixed(arm["fairness"]), _fixed(arm["decode_tok_s"], 1),
                _fixed(arm["ttft_p95_s"]), _fixed(arm["ttft_worst_s"]), _fixed(arm["queue_p95_s"]), arm["deferred"],
                _failed(arm["failures"]), _fixed(arm["completion_s"]),
                *([_fixed(arm["vram_bytes"] and arm["vram_bytes"] / 2**30)] if _any(arms, "vram_bytes") else []),
                *([_fixed(arm["energy_j_per_token"], 3)] if _any(arms, "energy_j_per_token") else []),
            )
            for arm in arms
        ],
    )  # fmt: skip
    _emit_each(arms)
    several = [arm for arm in arms if arm["agents"] > 1]
    if several:
        guide = ", ".join(f"{arm['candidate']} {_share(arm['guide_efficiency'])}" for arm in several)
        emit(f"  efficiency by the guide's formula: {guide}. {report['guide_formula']}")
    if report["saturation"]:
        _emit_saturation(report)
    if report["digest"]:
        emit()
    for line in report["digest"]:
        emit(line)


def _emit_each(arms: list[dict[str, Any]]) -> None:
    """What each agent of each arm got."""
    emit()
    emit_table(
        ["", "agent", "server", "valid", "failed", "tokens", "tok/s", "effective", "TTFT", "worst", "queue", "done s"],
        [
            (
                arm["candidate"], one["agent"] + 1, one["instance"] + 1, one["requests"], one["failed"], one["tokens"],
                _fixed(one["decode_tok_s"], 1), _fixed(one["effective_tok_s"], 1), _fixed(one["ttft_s"]),
                _fixed(one["ttft_worst_s"]), _fixed(one["queue_s"]), _fixed(one["completion_s"]),
            )
            for arm in arms
            if arm["agents"] > 1
            for one in arm["per_agent"]
        ],
    )  # fmt: skip


def _emit_saturation(report: dict[str, Any]) -> None:
    """Rate and latency against concurrency, with a bar each; `·` reaches to the end of the interval."""
    loads = report["saturation"]
    mark = f" <- knee{'' if report['knee_shown'] else '?'}"
    most = max(load["high"] or load["aggregate_tok_s"] for load in loads)
    slowest = max((load["ttft_p95_s"] or 0.0 for load in loads), default=0.0)
    emit()
    emit_table(
        ["agents", "tok/s", "95 % interval", "throughput".ljust(WIDTH), "TTFT p95", "latency".ljust(WIDTH // 2)],
        [
            (
                f"{load['agents']}{mark if load['agents'] == report['knee'] else ''}",
                _fixed(load["aggregate_tok_s"], 1),
                f"{_fixed(load['low'], 1)} to {_fixed(load['high'], 1) or 'unknown'}",
                _bar(load["aggregate_tok_s"], load["high"], most, WIDTH),
                _fixed(load["ttft_p95_s"]),
                _bar(load["ttft_p95_s"] or 0.0, None, slowest, WIDTH // 2),
            )
            for load in loads
        ],
    )


def _bar(value: float, high: float | None, most: float, width: int) -> str:
    if most <= 0:
        return ""
    full = round(value / most * width)
    return "█" * full + "·" * (min(width, round((high or value) / most * width)) - full)


def _any(arms: list[dict[str, Any]], name: str) -> bool:
    return any(arm[name] for arm in arms)


def _failed(failures: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in failures.items()) or "0"


def _fixed(value: float | None, digits: int = 2) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"
