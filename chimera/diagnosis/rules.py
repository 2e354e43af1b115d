"""All rules, and what they find together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import get_args

from chimera.domain.finding import SEVERITIES, Finding, FindingCode

from . import consistency, gpu, history, load, memory, settings, thermal, throughput, ttft
from .evidence import EvidenceSet, sane

Rule = Callable[[EvidenceSet], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    *gpu.RULES,
    *memory.RULES,
    *throughput.RULES,
    *ttft.RULES,
    *settings.RULES,
    *thermal.RULES,
    *load.RULES,
    *consistency.RULES,
    *history.RULES,
)
"""One a code, each a pure function from evidence to findings."""

_ORDER: dict[str, int] = {
    code: place
    for place, code in enumerate(
        (
            "gpu-lost", "driver-mismatch", "vram-exhaustion", "gpu-unused", "cpu-offload", "context-truncation",
            "reload-thrash", "thermal-throttling", "power-throttling", "low-clocks", "foreign-load", "queueing",
            "server-regression", "pcie-bottleneck", "low-throughput", "high-ttft", "inconsistent-performance",
            "clamped-settings", "prompt-cache-hit", "cold-load", "measurement-noise",
        )
    )
}  # fmt: skip
"""Among equals in severity, what explains others comes first."""

CODES: tuple[FindingCode, ...] = get_args(FindingCode)


def diagnose(evidence: EvidenceSet) -> list[Finding]:
    """What the evidence shows, worst first, each symptom once, always in the same order.

    Never raises on evidence of the declared types, however absurd its values: what cannot be is left out first.
    """
    known = sane(evidence)
    best: dict[tuple[str, str, int | None], Finding] = {}
    for rule in RULES:
        for found in rule(known):
            key = (found.code, found.subject, found.session)
            if key not in best or _rank(found) < _rank(best[key]):
                best[key] = found
    return sorted(best.values(), key=_rank)


def _rank(found: Finding) -> tuple[int, int, str, str]:
    return -SEVERITIES.index(found.severity), _ORDER[found.code], found.subject, found.title


def since_first_seen(before: list[Finding], now: list[Finding], at: float) -> list[Finding]:
    """The new findings with the times at which each was first seen; those without one begin now.

    `at` is the wall clock. For screens that ask again and again.
    """
    known = {(each.code, each.subject, each.session): each.since for each in before}
    found = []
    for each in now:
        first = known.get((each.code, each.subject, each.session))
        found.append(replace(each, since=first if first is not None else each.since if each.since is not None else at))
    return found
